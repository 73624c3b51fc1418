"""The packet filter of the network namespace that the process is in, through iptables and nftables."""
