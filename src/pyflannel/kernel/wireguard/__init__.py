"""WireGuard devices and the key of this host, by the program `wg`."""
