"""Measurements of a host in a network with many leases, and their output."""
