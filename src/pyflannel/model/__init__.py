"""Value types, such as leases, links and routes. These types are frozen and have slots. Their methods do
no I/O, read no clock and write no log.
"""
