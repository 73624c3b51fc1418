"""Netlink messages as octets, in the host's byte order: links, addresses, routes. No sockets."""
