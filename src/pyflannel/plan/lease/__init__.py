"""The lease protocol: a pure function of state and event, and its decisions."""
