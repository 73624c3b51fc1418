"""Adapters: the stores of leases."""
