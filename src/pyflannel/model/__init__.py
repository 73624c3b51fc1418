"""Value types, such as leases, links and routes. These types are frozen and have slots. The methods of these
types do no I/O, read no clock and write no log.
"""
