"""The user-space forwarder of the udp backend. This separate process imports neither model nor asyncio."""
