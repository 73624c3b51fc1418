"""Value types, such as leases, links and routes. They are frozen and slotted, and do no I/O, read no clock
and write no log.
"""
