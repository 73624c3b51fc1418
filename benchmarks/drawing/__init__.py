"""Pictures in SVG: bars and curves in one frame. They are drawn from values and texts."""
