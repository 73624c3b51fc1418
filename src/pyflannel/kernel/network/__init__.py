"""Links, addresses, neighbours and routes of the network namespace that the process is in, by netlink."""
