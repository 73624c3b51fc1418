"""One file per backend, with the kernel objects of a host and of a peer. No backend imports another
backend.
"""
