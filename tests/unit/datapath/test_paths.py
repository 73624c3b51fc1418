"""Batches in both directions: the result equals that of single packets, also for coalesced packets."""

import os
import socket
from contextlib import closing
from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyflannel.datapath.counters import Counters, IcmpErrors
from pyflannel.datapath.forwarding import Drop, PeerTable, inbound, outbound
from pyflannel.datapath.relay import InboundPath, OutboundPath
from pyflannel.datapath.tun import Offloads, Tun
from pyflannel.wire.forwarder_control import Peer, Settings
from pyflannel.wire.packet import HEADER, checksum

MTU = 1472
SETTINGS = Settings("flannel0", 0x0A640100, 0x0A640100, 24, 0x0A090001, 8285, MTU)
PEERS = [
    Peer(0x0A640200, 24, 0x0A090002, 8285),
    Peer(0x0A640280, 25, 0x0A090003, 8285),
    Peer(0x0A640300, 24, 0x0A640301, 8286),
]
"""The underlay address of the third peer is in its own subnet."""


def table() -> PeerTable:
    made = PeerTable()
    made.replace(PEERS)
    return made


def packet(source: int, destination: int, payload: bytes, *, protocol: int = 17, ttl: int = 64) -> bytes:
    header = bytearray(
        HEADER.pack(0x45, 0, 20 + len(payload), 7, 0x4000, ttl, protocol, 0, source, destination)
    )
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header) + payload


def segments(source: int, destination: int, count: int, size: int) -> list[bytes]:
    """Consecutive TCP segments of one flow, without options and with true checksums."""
    made = []
    for number in range(count):
        tcp = bytearray(pack("!HHIIHHHH", 80, 81, 1000 + number * size, 1, 0x5010, 500, 0, 0) + bytes(size))
        pseudo = pack("!IIHH", source, destination, 6, len(tcp))
        tcp[16:18] = checksum(pseudo + tcp).to_bytes(2, "big")
        whole = bytearray(packet(source, destination, bytes(tcp), protocol=6))
        whole[4:6], whole[10:12] = number.to_bytes(2, "big"), bytes(2)
        whole[10:12] = checksum(whole[:20]).to_bytes(2, "big")
        made.append(bytes(whole))
    return made


addresses = st.sampled_from(
    [0x0A640105, 0x0A640205, 0x0A640285, 0x0A640305, 0x0A640905, 0x0A640106, 0, 0xE0000001, 0x0A640301]
)
TUNNEL_DATAGRAM = pack("!HHHH", 8285, 8286, 108, 0) + bytes(100)
"""The payload of a tunnel datagram to the underlay address of the third peer."""

packets = st.one_of(
    st.builds(
        packet, addresses, addresses, st.sampled_from([TUNNEL_DATAGRAM, TUNNEL_DATAGRAM[:3], bytes(108)])
    ),
    st.binary(max_size=60),
    st.just(b""),
    st.builds(packet, addresses, addresses, st.binary(max_size=40), ttl=st.sampled_from([0, 1, 2, 64])),
    st.builds(packet, addresses, addresses, st.sampled_from([bytes(MTU - 20), bytes(MTU - 19), bytes(100)])),
).map(lambda one: [one])
alike = st.lists(
    st.builds(
        packet,
        *(st.just(0x0A640105), st.just(0x0A640205), st.sampled_from([bytes(40), bytes(40), bytes(39)])),
        ttl=st.sampled_from([1, 2, 64]),
    ),
    max_size=9,
).flatmap(lambda made: st.permutations([*made, *(b"\x44" + one[1:] for one in made[:1])]))
"""Packets of one direction with small differences: in the size, in the TTL, in the first byte."""

streams = st.lists(
    st.one_of(
        alike.map(list),
        packets.map(list),
        st.builds(segments, addresses, addresses, st.integers(1, 9), st.sampled_from([9, 100])),
    ),
    max_size=6,
).map(lambda parts: [one for part in parts for one in part])


class Arrivals:
    """A socket with received datagrams: datagrams of equal size and a shorter last datagram are joined, as by
    UDP_GRO.
    """

    def __init__(self, datagrams: list[tuple[bytes, str]], *, joined: bool) -> None:
        self._calls: list[tuple[list[bytes], str]] = []
        for data, sender in datagrams:
            call, whose = self._calls[-1] if self._calls else ([], "")
            fits = len(call[-1:]) and len(call[0]) == len(call[-1]) >= len(data) > 0 and len(call) < 40
            if joined and fits and sender == whose:
                call.append(data)
            else:
                self._calls.append(([data], sender))

    def setsockopt(self, *_: object) -> None:
        pass

    def recvmsg_into(self, buffers, _):
        if not self._calls:
            raise BlockingIOError
        datagrams, sender = self._calls.pop(0)
        data = b"".join(datagrams)
        buffers[0][: len(data)] = data
        ancillary = [(17, 104, pack("=i", len(datagrams[0])))] if len(datagrams) > 1 else []
        return len(data), ancillary, 0, (sender, 8285)


class Taken:
    """The passed packets, one by one. The tests of TcpRun check the bytes of runs."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.runs = 0

    def write(self, data) -> None:
        self.packets.append(bytes(data))

    def write_run(self, run, view) -> None:
        self.runs += len(run.starts) > 1
        assert run.has_true_checksums() or len(run.starts) == 1
        self.packets += [bytes(view[start : start + size]) for start, size in run.packets()]

    def write_own(self, data) -> None:
        pass

    def send(self, data, endpoint) -> None:
        pass


def judged_alone(datagrams: list[tuple[bytes, str]]) -> tuple[list[bytes], dict[str, int]]:
    """Return the packets to the device and the counters if each packet is checked alone."""
    counters, written = Counters(), []
    for data, sender in datagrams:
        buffer = bytearray(data)
        drop = inbound(buffer, 0, len(data), sender, table(), SETTINGS)
        if drop is None:
            written.append(bytes(buffer))
        else:
            counters.count_dropped_in(drop)
    return written, dropped(counters)


def dropped(counters: Counters) -> dict[str, int]:
    return {name: value for name, value in counters.by_name().items() if value and "dropped" in name}


def remembered(counters: Counters) -> dict[str, int]:
    """Packets that the guard rejected, by the names of the counters."""
    packets: dict[str, int] = {}
    for stranger in counters.strangers.all():
        name = f"dropped_in_{stranger.reason}"
        packets[name] = packets.get(name, 0) + stranger.packets
    return packets


SENDERS = st.sampled_from(["10.9.0.2", "10.9.0.3"])
RUN = [(one, "10.9.0.2") for one in segments(0x0A640205, 0x0A640105, 9, 100)]


@given(streams, SENDERS, SENDERS, st.booleans())
@example([*segments(0x0A640205, 0x0A640105, 3, 100), b""], "10.9.0.2", "10.9.0.2", True)
@example([b"", *segments(0x0A640205, 0x0A640105, 3, 100)], "10.9.0.2", "10.9.0.2", True)
def test_packets_of_peers_are_checked_one_by_one(stream, one, other, joined):
    """Datagrams of two senders, joined by the kernel or not, cause the same bytes, order and counters."""
    half = len(stream) // 2
    datagrams = [(data, one if number < half else other) for number, data in enumerate(stream)]
    counters, taken = Counters(), Taken()
    errors = IcmpErrors(SETTINGS.tunnel_address, counters)
    path = InboundPath(
        *(SETTINGS, Arrivals(datagrams, joined=joined), table(), taken, taken, errors, counters),
        Offloads(print),
    )

    path.relay()

    assert (taken.packets, dropped(counters)) == judged_alone(datagrams)
    assert remembered(counters) == {
        name: value
        for name, value in dropped(counters).items()
        if name.endswith(("_stranger", "_impostor", "_not_ours"))
    }


def test_segments_are_joined_across_datagrams_but_not_across_senders():
    """An impostor cannot continue the flow of another sender."""
    for datagrams, runs, packets_written in ((RUN, 1, 9), ([*RUN[:4], (RUN[4][0], "10.9.0.3")], 1, 4)):
        taken, counters = Taken(), Counters()
        path = InboundPath(
            *(SETTINGS, Arrivals(datagrams, joined=False), table(), taken, taken),
            *(IcmpErrors(SETTINGS.tunnel_address, counters), counters, Offloads(print)),
        )

        path.relay()

        assert (taken.runs, len(taken.packets)) == (runs, packets_written)


@pytest.mark.parametrize(
    ("stream", "is_burst"),
    [
        ([packet(0x0A640205, 0x0A640105, bytes(40))] * 200, True),
        ([packet(0x0A640205, 0x0A640105, bytes(40))] * 100, False),
        (segments(0x0A640205, 0x0A640105, 200, 100), False),
    ],
    ids=["many packets", "few packets", "one run of segments"],
)
def test_a_burst_of_single_packets_ends_with_a_pause(stream, is_burst):
    taken, counters = Taken(), Counters()
    arrivals = Arrivals([(one, "10.9.0.2") for one in stream], joined=True)
    path = InboundPath(
        *(SETTINGS, arrivals, table(), taken, taken),
        *(IcmpErrors(SETTINGS.tunnel_address, counters), counters, Offloads(print)),
    )

    assert path.relay() is is_burst
    assert len(taken.packets) == (160 if is_burst else len(stream))


class Sent:
    """The sent packets and their runs."""

    def __init__(self) -> None:
        self.packets: list[tuple[bytes, tuple[str, int]]] = []

    def send_run(self, run, size, endpoint) -> None:
        sizes = [len(one) for one in run]
        assert sizes[:-1] == [size] * (len(run) - 1)
        assert 0 < sizes[-1] <= size
        assert len(run) <= 64
        assert sum(sizes) <= 65507
        self.packets += [(bytes(one), endpoint) for one in run]


@given(streams, st.booleans())
@example([packet(0x0A640105, 0x0A640205, bytes(MTU - 20))] * 50, True)
@example([packet(0x0A640105, 0x0A640205, bytes(20))] * 70, False)
@example([packet(5, 0x0A640301, body) for body in (bytes(108), bytes(108), TUNNEL_DATAGRAM)], False)
def test_packets_of_the_device_are_checked_one_by_one(stream, has_header):
    """Packets with or without headers cause the same bytes, destinations, order and counters."""
    stream = [one for one in stream if one or has_header]  # an empty read means the end of a file
    counters, sent = Counters(), Sent()
    errors = IcmpErrors(SETTINGS.tunnel_address, counters)
    path = OutboundPath(MTU, table(), sent, Taken(), errors, counters)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    device = Tun.__new__(Tun)
    device.descriptor, device.header_bytes = ours.fileno(), Tun.HEADER_BYTES * has_header

    with closing(ours), closing(theirs):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for one in stream:
            os.write(theirs.fileno(), bytes(device.header_bytes) + one)
        assert path.relay(device)

    expected, alone = [], Counters()
    for one in stream:
        buffer = bytearray(one)
        verdict = outbound(buffer, 0, len(one), table(), MTU)
        if isinstance(verdict, Drop):
            alone.count_dropped_out(verdict)
        else:
            expected.append((bytes(buffer), verdict))
    assert (sent.packets, dropped(counters)) == (expected, dropped(alone))
