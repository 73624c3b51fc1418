"""Parts of the host other than its network: files, locks, clocks, settings, its service manager."""
