"""The lease protocol: a pure step, and what it decides by."""
