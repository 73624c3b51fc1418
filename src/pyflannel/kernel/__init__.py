"""Adapter: the kernel of one network namespace, and the files of the host."""
