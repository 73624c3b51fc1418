"""WireGuard devices and the key of this host, managed with the program `wg`."""
