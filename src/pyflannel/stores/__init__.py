"""Adapter: where leases live."""
