"""An XDP program for the links of a lab."""

DROP, PASS = "1", "2"
"""Actions of a program (linux/bpf.h, XDP_DROP and XDP_PASS)."""

ATTACH = """
import ctypes, platform, struct, sys
from pyroute2 import IPRoute

steps = (0xB7, 0, 0, int(sys.argv[2])), (0x95, 0, 0, 0)  # r0 = the action; exit
action = b"".join(struct.pack("=BBhi", *step) for step in steps)
code, terms = ctypes.create_string_buffer(action), ctypes.create_string_buffer(b"GPL")
load = struct.pack("=IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(terms))  # BPF_PROG_TYPE_XDP
load = ctypes.create_string_buffer(load.ljust(48, bytes(1)))
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
program = ctypes.CDLL(None, use_errno=True).syscall(number, 5, load, 48)  # BPF_PROG_LOAD
assert program > 0, ctypes.get_errno()
with IPRoute() as netlink:
    (index,) = netlink.link_lookup(ifname=sys.argv[1])
    netlink.link("set", index=index, xdp_fd=program)
"""
"""Attaches an XDP program to a link. The arguments are the link and the action for each packet.

The link keeps the program after this process has ended.
"""
