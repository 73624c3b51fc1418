"""Links, addresses, neighbours and routes of the network namespace of the process, through netlink."""
