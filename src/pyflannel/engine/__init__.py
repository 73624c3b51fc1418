"""Continuous reconciliation. The package uses asyncio and ports, and no calls of the operating system."""
