"""The path of one packet through the objects of the kernel of this host.

No step uses the plan of flanneld. A lease is only compared with the objects, because it states the host of an
address.
"""
