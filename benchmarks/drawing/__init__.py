"""Pictures in SVG: bars and curves in one frame. The pictures are drawn from values and texts."""
