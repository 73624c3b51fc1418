"""Bridges are read from messages in the layout of linux/if_link.h and linux/neighbour.h."""

import struct

from pyflannel.wire.netlink.bridges import BridgeLink, parse_bridge_link, parse_learned
from pyflannel.wire.netlink.message import attribute, nest


def link(index: int, *attributes: bytes) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, 0x1003, 0) + b"".join(attributes)


def test_a_bridge_that_filters_vlans() -> None:
    data = nest(2, attribute(7, b"\x01"))
    body = link(
        3, attribute(3, b"docker0\0"), attribute(6, b"noqueue\0"), nest(18, attribute(1, b"bridge"), data)
    )

    assert parse_bridge_link(body) == BridgeLink(
        index=3,
        name="docker0",
        kind="bridge",
        bridge=0,
        queueing="noqueue",
        is_up=True,
        has_carrier=False,
        resolves=True,
        is_ethernet=True,
        filters_vlans=True,
        is_forwarding=False,
    )


def test_a_bridge_port_is_read() -> None:
    info = nest(18, attribute(1, b"veth"), attribute(4, b"bridge"), nest(5, attribute(1, b"\x03")))
    body = link(7, attribute(3, b"veth1\0"), attribute(10, struct.pack("=I", 3)), info)

    port = parse_bridge_link(body)

    assert (port.kind, port.bridge, port.is_forwarding, port.filters_vlans) == ("veth", 3, True, False)


def test_learned_entries_of_a_bridge_are_read_without_its_own() -> None:
    def entry(state: int) -> bytes:
        head = struct.pack("=BxxxiHBB", 7, 9, state, 0x04, 0)
        return head + attribute(2, bytes.fromhex("02420a640f02")) + attribute(9, struct.pack("=I", 3))

    assert parse_learned(entry(0x02)) == (3, 9, "02:42:0a:64:0f:02")
    assert parse_learned(entry(0x80)) is None
