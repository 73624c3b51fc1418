"""Values: what a lease, a link, a route is. Frozen and slotted; no I/O, no clock, no logging."""
