"""The packet filter of the network namespace that the process is in, by iptables and by nftables."""
