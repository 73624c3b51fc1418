"""The user-space forwarder of the udp backend, a process of its own: it imports no model and no asyncio."""
