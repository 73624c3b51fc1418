"""The findings of doctor: one small check for each kind of fault."""
