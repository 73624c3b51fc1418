"""The path of one packet through the objects of the kernel of this host.

No step uses the plan. A lease is only compared with the objects: it names the host of an address.
"""
