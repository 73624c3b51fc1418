"""Values, such as leases, links and routes. Frozen and slotted; no I/O, no clock, no logging."""
