"""Containers, by a real Docker engine or as bare namespaces, and what runs in them."""
