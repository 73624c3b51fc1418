"""The host beside its network: files, locks, clocks, settings, its service manager."""
