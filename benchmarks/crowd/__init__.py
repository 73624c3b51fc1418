"""A host among very many leases: what is found out about it, and how that is told."""
