"""Pictures as SVG: bars and curves in one frame. What they show comes in as values and words."""
