"""Reads of the path of packets: XDP programs and tracked connections."""

import json
import sys

ATTACH = """
import ctypes, platform, struct, sys
from pyroute2 import IPRoute

PASS = struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit
code, terms = ctypes.create_string_buffer(PASS), ctypes.create_string_buffer(b"GPL")
load = struct.pack("=IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(terms))  # BPF_PROG_TYPE_XDP
load = ctypes.create_string_buffer(load.ljust(48, bytes(1)))
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
program = ctypes.CDLL(None, use_errno=True).syscall(number, 5, load, 48)  # BPF_PROG_LOAD
assert program > 0, ctypes.get_errno()
with IPRoute() as netlink:
    (index,) = netlink.link_lookup(ifname=sys.argv[1])
    netlink.link("set", index=index, xdp_fd=program)
"""
"""Attaches a program to a link. The link keeps the program after this process has ended."""

READ = """
import asyncio, json
from pyflannel.kernel.host.packet_path import tracked_connections, xdp_links
print(json.dumps([sorted(asyncio.run(xdp_links())), tracked_connections()]))
"""


def test_links_with_an_xdp_program_are_found(namespace) -> None:
    namespace.ip("link add one type veth peer two")
    assert _read(namespace)[0] == []

    namespace.command(sys.executable, "-c", ATTACH, "one")

    assert _read(namespace)[0] == ["one"]


def test_the_connections_that_the_kernel_tracks_are_counted(namespace) -> None:
    namespace.ip("link set lo up")
    namespace.command("nft", "add table ip t; add chain ip t c { type filter hook output priority 0; }")
    namespace.command("nft", "add rule ip t c ct state new accept")
    namespace.command("ping", "-c", "1", "127.0.0.1")

    count, most = _read(namespace)[1]

    assert count == 1
    assert most > count


def _read(namespace) -> list:
    return json.loads(namespace.command(sys.executable, "-c", READ))
