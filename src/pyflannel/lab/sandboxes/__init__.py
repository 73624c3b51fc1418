"""Sandboxes: processes with mounts, a network and a host name of their own, and what runs in them."""
