"""The checks of doctor: one small function for each kind of fault."""
