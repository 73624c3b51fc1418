"""The findings of doctor: with one small check for each kind of fault."""
