"""A host among many leases: measurements, and their output."""
