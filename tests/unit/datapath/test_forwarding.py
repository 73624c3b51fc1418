"""The outcome of packets equals that of the original's proxy, except its defects."""

import json
from pathlib import Path
from socket import inet_aton
from struct import pack

import pytest

from pyflannel.datapath.forwarding import Drop, PeerTable, inbound, outbound
from pyflannel.wire.forwarder_control import Peer, Settings
from pyflannel.wire.packet import HEADER, icmp_time_exceeded, icmp_unreachable

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "udp-proxy.json").read_text())["cases"]
"""71 packets that were sent through the original, releases 0.6.2 and 0.20.2, and their outcome."""


def number(text: str) -> int:
    return int.from_bytes(inet_aton(text), "big")


SETTINGS = Settings(
    "flannel0", number("10.77.40.0"), number("10.77.40.0"), 24, number("192.168.50.101"), 8285, 1472
)
PEERS = [
    Peer(number("10.77.50.0"), 24, number("192.168.50.102"), 8285),
    Peer(number("10.77.50.128"), 25, number("192.168.50.103"), 8285),
    Peer(number("10.77.60.0"), 24, number("192.168.50.103"), 8285),
]

DIFFERENCES = {
    "004": ("TTL 1 ends with an ICMP time exceeded, not silently", Drop.EXPIRED, True),
    "005": ("TTL 0 ends here; the original forwarded it as 255, with a wrong checksum", Drop.EXPIRED, True),
    "008": ("the longest prefix has precedence, not the first", None, True),
    "026": ("a header length of 4 words is no header", Drop.INCONSISTENT, False),
    "029": ("no ICMP error is sent to 0.0.0.0", Drop.NO_ROUTE, False),
    "031": ("the quote ends with the packet, not in the rest of an earlier packet", Drop.NO_ROUTE, True),
    "032": ("the quote ends with the packet, not in the rest of an earlier packet", Drop.NO_ROUTE, True),
    "035": ("no ICMP error about the limited broadcast", Drop.NO_ROUTE, False),
    "037": ("no ICMP error about a multicast", Drop.NO_ROUTE, False),
    "038": ("no ICMP error about a multicast", Drop.NO_ROUTE, False),
    "059": ("a header length of 4 words is no header", Drop.INCONSISTENT, False),
    "064": ("IPv6 is not read as IPv4", Drop.NOT_IPV4, False),
    "071": ("TTL 1 ends with an ICMP time exceeded to the sender", Drop.EXPIRED, True),
    "073": ("the inner source is another peer's", Drop.IMPOSTOR, False),
    "074": ("no peer has the inner source", Drop.STRANGER, False),
    "076": ("the inner destination is not in the host's subnet", Drop.NOT_OURS, False),
    "077": ("the inner destination is not in the host's subnet", Drop.NOT_OURS, False),
    "079": ("no peer has the host's address", Drop.STRANGER, False),
    "080": ("the inner destination is not in the host's subnet", Drop.NOT_OURS, False),
    "094": ("IPv6 is not read as IPv4", Drop.NOT_IPV4, False),
    "098": ("longer than the MTU: dropped, not cut", Drop.LONG, False),
    "100": ("longer than the MTU: dropped, not cut", Drop.LONG, False),
    "101": ("the header contains a larger length than the packet", Drop.INCONSISTENT, False),
}
"""Case: the reason, pyflannel's verdict (None: it passes), and whether a packet is sent."""


def ids(case) -> str:
    return f"{case['id'][-3:]} {case['into']}: {case['name']}"


def forward(case):
    """Return the verdict, the packets to peers as (endpoint, payload), and those to the device, in hex."""
    table = PeerTable()
    table.replace(PEERS)
    packet = bytearray.fromhex(case["packet"])
    size = len(packet)
    packet += b"\xee" * 100  # a buffer is longer than the packet in it
    if case["into"] == "tun":
        verdict = outbound(packet, 0, size, table, SETTINGS.mtu)
        if not isinstance(verdict, Drop):
            address, port = verdict
            return None, [(f"{address}:{port}", packet[:size].hex())], []
        error = None
        if verdict is Drop.NO_ROUTE:
            error = icmp_unreachable(packet, size, SETTINGS.tunnel_address)
        elif verdict is Drop.EXPIRED:
            error = icmp_time_exceeded(packet, size, SETTINGS.tunnel_address)
        return verdict, [], [error.hex()] if error else []
    drop = inbound(packet, 0, size, case["from"].partition(":")[0], table, SETTINGS)
    if drop is None:
        return None, [], [packet[:size].hex()]
    error = icmp_time_exceeded(packet, size, SETTINGS.tunnel_address) if drop is Drop.EXPIRED else None
    return drop, [(case["from"], error.hex())] if error else [], []


@pytest.mark.parametrize("case", [c for c in GOLDEN if c["id"][-3:] not in DIFFERENCES], ids=ids)
def test_each_packet_is_handled_as_by_the_original(case):
    """Destination, checksum and ICMP error of each packet are the same bytes."""
    _, sent, written = forward(case)

    assert sent == [(out["to"], out["payload"]) for out in case["datagrams_out"]]
    assert written == case["written_to_tun"]


@pytest.mark.parametrize("case", [c for c in GOLDEN if c["id"][-3:] in DIFFERENCES], ids=ids)
def test_defects_of_the_original_are_not_copied(case):
    """The test checks pyflannel's result for each difference, and that the original's result is different."""
    _, expected, is_something_sent = DIFFERENCES[case["id"][-3:]]

    verdict, sent, written = forward(case)

    assert verdict is expected
    assert len(sent) + len(written) == is_something_sent
    theirs = [(out["to"], out["payload"]) for out in case["datagrams_out"]], case["written_to_tun"]
    assert (sent, written) != theirs


LOOPED = Peer(number("10.77.60.0"), 24, number("10.77.60.9"), 8285)
"""A peer whose underlay address is in its own subnet, so that the host routes it into the tunnel."""


def outbound_verdict(payload: bytes, *, protocol: int = 17, fragment: int = 0, options: bytes = b""):
    """Return the outcome of a packet to the underlay address of the looped peer."""
    table = PeerTable()
    table.replace([LOOPED])
    size = 20 + len(options) + len(payload)
    header = HEADER.pack(
        0x45 + len(options) // 4,
        0,
        size,
        7,
        fragment,
        64,
        protocol,
        0,
        number("10.77.40.0"),
        LOOPED.address,
    )
    packet = bytearray(header + options + payload)
    return outbound(packet, 0, size, table, SETTINGS.mtu)


@pytest.mark.parametrize("source_port", [8285, 40000])
@pytest.mark.parametrize("options", [b"", b"\x01" * 8])
def test_a_tunnel_datagram_from_the_device_is_dropped(source_port: int, options: bytes) -> None:
    """The datagram would loop. A NAT may have changed its source."""
    payload = pack("!HHHH", source_port, 8285, 8, 0)

    assert outbound_verdict(payload, options=options) is Drop.LOOP


@pytest.mark.parametrize("fragment", [0x2000, 0x0003, 0x2003])
def test_a_fragment_of_a_tunnel_datagram_is_dropped(fragment: int) -> None:
    """The first fragment has the port. For later fragments, the address decides."""
    is_first = not fragment & 0x1FFF
    payload = pack("!HHHH", 8285, 8285, 3000, 0) if is_first else bytes(64)

    assert outbound_verdict(payload, fragment=fragment) is Drop.LOOP


@pytest.mark.parametrize(
    ("payload", "protocol"),
    [
        (pack("!HHHH", 8285, 53, 8, 0), 17),
        (pack("!HHHH", 8285, 8285, 8, 0), 6),
        (pack("!HHHH", 8285, 8285, 8, 0), 1),
    ],
)
def test_other_packets_to_the_address_of_a_peer_pass(payload: bytes, protocol: int) -> None:
    """A datagram with another port or protocol is not a tunnel datagram."""
    assert outbound_verdict(payload, protocol=protocol) == ("10.77.60.9", 8285)


def test_packets_longer_than_the_mtu_pass_in_neither_direction():
    """If another program raises the MTU of the device, no datagram is too long for peers."""
    for number in ("053", "097"):
        (case,) = [c for c in GOLDEN if c["id"][-3:] == number]
        packet = bytearray.fromhex(case["packet"] + "00")
        packet[2:4] = len(packet).to_bytes(2, "big")

        assert forward(case)[0] is None
        assert forward({**case, "packet": packet.hex()}) == (Drop.LONG, [], [])


def test_an_icmp_error_quotes_no_bytes_after_the_packet():
    """The packet is a header without payload, so that the ICMP error has 20 + 8 + 20 bytes."""
    (case,) = [c for c in GOLDEN if c["id"] == "udp-proxy-032"]

    _, _, (error,) = forward(case)

    assert error.endswith(case["packet"])
    assert len(bytes.fromhex(error)) == 48


def test_the_port_of_a_sender_is_not_checked():
    """A NAT between two hosts may change the port."""
    (case,) = [c for c in GOLDEN if c["id"] == "udp-proxy-068"]

    assert forward({**case, "from": "192.168.50.102:40000"}) == forward(case)


def test_the_longest_prefix_proves_the_sender():
    """The owner of the wider subnet cannot send for hosts of the narrower subnet."""
    (case,) = [c for c in GOLDEN if c["id"] == "udp-proxy-068"]
    packet = bytearray.fromhex(case["packet"])
    packet[12:16] = inet_aton("10.77.50.130")
    from_narrow = {**case, "packet": packet.hex(), "from": "192.168.50.103:8285"}

    assert forward(from_narrow)[0] is None
    assert forward({**from_narrow, "from": "192.168.50.102:8285"})[0] is Drop.IMPOSTOR
