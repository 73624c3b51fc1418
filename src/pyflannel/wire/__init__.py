"""Formats: bytes and text to values and back; no sockets, no files."""
