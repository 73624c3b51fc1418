"""Encodes and decodes netlink messages: links, addresses, routes. Opens no sockets."""
