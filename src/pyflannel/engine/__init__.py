"""Continuous reconciliation: asyncio and ports, nothing of the operating system."""
