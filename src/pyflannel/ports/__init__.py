"""What the engine needs from the world, as protocols: each has at least two implementations."""
