"""The decapsulating program accepts a packet only if user space accepts it with the same result.

Each frame is checked twice. BPF_PROG_TEST_RUN passes the frame to the program. The test also sends the frame
to a host without the program, where the IP and UDP code of the kernel and then the forwarder check the frame.
"""

import ctypes
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doubles.hostile_inputs import Edits, damage, edits
from pyflannel.datapath.forwarding import Drop, PeerTable, inbound
from pyflannel.kernel.bpf.layout import SHARED, Settings, pack_settings
from pyflannel.kernel.bpf.libbpf import Libbpf
from pyflannel.kernel.bpf.maps import TunnelMaps
from pyflannel.kernel.bpf.objects import read_object
from pyflannel.kernel.bpf.syscall import call_bpf
from pyflannel.model.fast_path import BpfPeer, Role
from pyflannel.wire.forwarder_control import Peer
from pyflannel.wire.forwarder_control import Settings as ForwarderSettings
from pyflannel.wire.packet import checksum

PROG_TEST_RUN = 10  # linux/bpf.h
NEXT, DROPPED, TAKEN = 0xFFFFFFFF, 2, 7  # linux/pkt_cls.h: TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
_RUN = struct.Struct("=IIIIQQII")

OWN, OTHER = "10.9.0.20", "10.9.0.21"
SUBNET = IPv4Network("10.100.20.0/24")
PORT = 8285
MTU = 1400
ETHERNET, IP, UDP = 14, 20, 8
SHORTEST = ETHERNET - 6 + IP  # bytes of a frame without its destination: a trial run refuses shorter frames
PEERS = [
    Peer(int(IPv4Address("10.100.15.0")), 24, int(IPv4Address("10.9.0.15")), PORT),
    Peer(int(IPv4Address("10.100.15.128")), 25, int(IPv4Address("10.9.0.16")), PORT),
    Peer(int(IPv4Address("10.100.30.0")), 24, int(IPv4Address("10.9.0.17")), 9),
]
NOWHERE = bytes.fromhex("020000000099")
SOURCE_AND_TYPE = bytes.fromhex("0200000000010800")
FRAMES, SEEDS_LONG, FRAMES_LONG = 1000, 2000, 1_000_000


class Frame(NamedTuple):
    """An Ethernet frame without its destination; `is_ours` is true if this host is its destination."""

    is_ours: bool
    data: bytes


class Fields(NamedTuple):
    """Fields of the headers that a sender can forge. The value None means a correct length or checksum."""

    outer_first: int = 0x45
    outer_length: int = 0
    outer_fragment: int = 0x4000
    outer_protocol: int = 17
    outer_source: str = "10.9.0.15"
    outer_destination: str = OWN
    outer_sum: int | None = None
    port: int = PORT
    udp_length: int = 0
    has_udp_sum: bool = False
    inner_first: int = 0x45
    inner_length: int = 0
    inner_fragment: int = 0
    inner_ttl: int = 64
    inner_protocol: int = 6
    inner_source: str = "10.100.15.2"
    inner_destination: str = "10.100.20.2"
    inner_sum: int | None = None
    payload: int = 20
    trailer: int = 0
    is_ours: bool = True


def ip_header(
    first: int, length: int, fragment: int, ttl: int, protocol: int, ends: tuple[str, str], given: int | None
) -> bytes:
    header = bytearray(struct.pack("!BBHHHBBH", first, 0, length & 0xFFFF, 7, fragment, ttl, protocol, 0))
    header += packed(ends)
    header[10:12] = struct.pack("!H", checksum(header) if given is None else given)
    return bytes(header)


def packed(ends: tuple[str, str]) -> bytes:
    return b"".join(IPv4Address(end).packed for end in ends)


def frame_of(f: Fields) -> Frame:
    """Return the frame with these fields."""
    total = IP + f.payload
    inner = ip_header(
        f.inner_first,
        total + f.inner_length,
        f.inner_fragment,
        f.inner_ttl,
        f.inner_protocol,
        (f.inner_source, f.inner_destination),
        f.inner_sum,
    )
    datagram = inner + bytes(number % 256 for number in range(f.payload))
    size = UDP + total + f.udp_length & 0xFFFF
    udp = struct.pack("!HHHH", PORT, f.port, size, 0)
    ends = f.outer_source, f.outer_destination
    if f.has_udp_sum:
        pseudo = packed(ends) + struct.pack("!HH", socket.IPPROTO_UDP, size)
        udp = udp[:6] + struct.pack("!H", checksum((pseudo + udp + datagram)[: len(pseudo) + size]) or 0xFFFF)
    length = IP + UDP + total + f.outer_length
    outer = ip_header(f.outer_first, length, f.outer_fragment, 64, f.outer_protocol, ends, f.outer_sum)
    return Frame(f.is_ours, SOURCE_AND_TYPE + outer + udp + datagram + bytes(f.trailer))


UDP_SUM = slice(ETHERNET - 6 + IP + 6, ETHERNET - 6 + IP + 8)


def without_udp_sum(frame: Frame) -> Frame:
    """Return the frame with a datagram without checksum (RFC 768)."""
    data = bytearray(frame.data)
    data[UDP_SUM] = bytes(len(data[UDP_SUM]))
    return Frame(frame.is_ours, bytes(data))


ODD: dict[str, st.SearchStrategy[Any]] = {
    "outer_first": st.sampled_from([0x46, 0x44, 0x65, 0x35, 0x05]),
    "outer_length": st.integers(-60, 60),
    "outer_fragment": st.sampled_from([0, 0x2000, 1, 0x8000, 0xC000]),
    "outer_protocol": st.sampled_from([6, 1, 4]),
    "outer_source": st.sampled_from(["10.9.0.16", "10.9.0.17", "10.9.0.99"]),
    "outer_destination": st.sampled_from([OTHER, "10.9.0.255"]),
    "outer_sum": st.integers(0, 0xFFFF),
    "port": st.sampled_from([PORT + 1, 0]),
    "udp_length": st.integers(-40, 40),
    "has_udp_sum": st.just(True),
    "inner_first": st.sampled_from([0x46, 0x4F, 0x44, 0x65, 0x40]),
    "inner_length": st.integers(-40, 40),
    "inner_fragment": st.sampled_from([0x4000, 0x2000, 1, 0x8000]),
    "inner_ttl": st.integers(0, 3) | st.integers(0, 255),
    "inner_protocol": st.sampled_from([17, 1, 0]),
    "inner_source": st.sampled_from(["10.100.15.200", "10.100.30.1", "10.100.20.9", "192.0.2.1", "0.0.0.0"]),
    "inner_destination": st.sampled_from(["10.100.20.0", "10.100.20.255", "10.100.21.1", "224.0.0.1"]),
    "inner_sum": st.sampled_from([0, 0xFEFF, 0xFFFE, 0xFFFF]) | st.integers(0, 0xFFFF),
    "payload": st.sampled_from([0, 1, 7, 8, MTU - IP, MTU - IP + 1, MTU - IP + 40]) | st.integers(0, 100),
    "trailer": st.integers(1, 60),
    "is_ours": st.just(False),
}


def together(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return the same change for all lengths that must be consistent, as an attacker would make it."""
    return st.integers(-60, 60).map(lambda change: dict.fromkeys(names, change))


lengths = (
    together("outer_length", "inner_length")
    | together("outer_length", "inner_length", "udp_length")
    | together("outer_length", "udp_length")
)
changes = st.dictionaries(st.sampled_from(sorted(ODD)), st.none(), max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: ODD[name] for name in names})
)
cases = st.tuples(
    changes | st.builds(lambda one, other: {**one, **other}, changes, lengths),
    st.just([]) | st.just([]) | edits(st.binary(min_size=1, max_size=2)),
)


class Judges:
    """The program and its settings in the kernel, and a host with only user space."""

    def __init__(self, program: int, wire: socket.socket, listener: socket.socket, mac: bytes) -> None:
        self._program, self._wire, self._listener, self._mac = program, wire, listener, mac
        self._marker = 0
        self._table = PeerTable()
        self._table.replace(PEERS)
        base = int(SUBNET.network_address)
        self._settings = ForwarderSettings("flannel0", base, base, 24, int(IPv4Address(OWN)), PORT, MTU)
        self._out = ctypes.create_string_buffer(4096)

    def kernel(self, frame: Frame) -> tuple[int, bytes]:
        """Return the program's verdict about a frame, and the resulting packet."""
        here = bytes(6)  # the address of the loopback device, at which a trial run lets a packet arrive
        given = ctypes.create_string_buffer((here if frame.is_ours else NOWHERE) + frame.data)
        size = len(given) - 1
        attributes = ctypes.create_string_buffer(
            _RUN.pack(
                self._program,
                0,
                size,
                len(self._out),
                ctypes.addressof(given),
                ctypes.addressof(self._out),
                1,
                0,
            ),
            _RUN.size,
        )
        call_bpf(PROG_TEST_RUN, attributes)
        _, verdict, _, size, *_ = _RUN.unpack(attributes.raw)
        return verdict, self._out.raw[ETHERNET:size]

    def user_space(self, frame: Frame) -> list[bytes | Drop]:
        """Return the forwarder's result for the datagrams that arrive because of a frame."""
        self._wire.send((self._mac if frame.is_ours else NOWHERE) + frame.data)
        self._marker += 1
        marker = b"that is all %d" % self._marker
        self._wire.send(self._mac + frame_with(marker))
        found: list[bytes | Drop] = []
        while True:
            data, (sender, _) = self._listener.recvfrom(4096)
            if data == marker:
                return found
            buffer = bytearray(data)
            drop = inbound(buffer, 0, len(data), sender, self._table, self._settings)
            found.append(bytes(buffer) if drop is None else drop)


def frame_with(payload: bytes) -> bytes:
    """Return a frame, without its destination, whose datagram has this payload."""
    udp = struct.pack("!HHHH", PORT, PORT, UDP + len(payload), 0) + payload
    return SOURCE_AND_TYPE + ip_header(0x45, IP + len(udp), 0, 64, 17, ("10.9.0.15", OWN), None) + udp


@pytest.fixture
def judges(make_namespace) -> Iterator[Judges]:
    """A host whose underlay receives frames that the test writes."""
    sender, host = make_namespace(), make_namespace()
    sender.ip(f"link add eth0 type veth peer name eth0 netns {host.name}")
    host.ip(f"address add {OWN}/24 dev eth0")
    host.ip(f"address add {OTHER}/24 dev eth0")
    for namespace in (sender, host):
        namespace.ip("link set eth0 mtu 9000 up")
    for namespace in (sender, host):
        namespace.settle(eth0="UP")

    async def open_wire() -> socket.socket:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        wire.bind(("eth0", 0))
        return wire

    async def open_listener() -> tuple[socket.socket, int, bytes]:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((OWN, PORT))
        listener.settimeout(20)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
            probe.bind(("eth0", 0))
            return listener, socket.if_nametoindex("eth0"), probe.getsockname()[4]

    async def load() -> int:
        library, shipped = Libbpf(), read_object()
        maps = library.create_maps(shipped, [layout.name for layout in SHARED])
        tunnel = TunnelMaps("flannel0", maps)
        entries = [
            BpfPeer(
                device="flannel0",
                subnet=IPv4Network((peer.subnet, peer.prefix_length)),
                address=IPv4Address(peer.address),
                port=peer.port,
            )
            for peer in PEERS
        ]
        assert tunnel.put_peers(entries) == {}
        tunnel.put_device(index)
        chosen = Settings(
            build=bytes(8),
            device="flannel0",
            device_index=index,
            underlay_index=index,
            address=IPv4Address(OWN),
            subnet=SUBNET,
            port=PORT,
            mtu=MTU,
        )
        return library.load_program(shipped, Role.DECAPSULATE.value, pack_settings(chosen), maps).program

    with ExitStack() as stack:
        wire = stack.enter_context(sender.run(open_wire))
        listener, index, mac = host.run(open_listener)
        stack.enter_context(listener)
        yield Judges(host.run(load), wire, listener, mac)


def compare(judges: Judges, frame: Frame, seen: Counter[object]) -> None:
    """Fail if the program accepts a packet with another result than user space, or drops an accepted
    packet.
    """
    verdict, data = judges.kernel(frame)
    answers = judges.user_space(frame)
    seen[verdict] += 1
    assert verdict in (NEXT, DROPPED, TAKEN)
    if verdict == TAKEN:
        size = struct.unpack_from("!H", data, 2)[0]
        assert answers == [data[:size]], "the program took it"
    if verdict == DROPPED:
        assert len(answers) == 1, "the program dropped it"
        assert answers[0] in (Drop.IMPOSTOR, Drop.NOT_OURS), "the program dropped it"


@pytest.mark.timeout(1800)
def test_a_packet_that_the_program_takes_is_taken_by_user_space_with_the_same_result(
    judges, long_run
) -> None:
    seen: Counter[object] = Counter()
    found: list[dict[str, Any]] = []

    @settings(max_examples=SEEDS_LONG if long_run else FRAMES, database=None)
    @given(cases)
    def law(case: tuple[dict[str, Any], Edits]) -> None:
        frame = frame_of(Fields(**case[0]))
        if case[1]:
            frame = without_udp_sum(Frame(frame.is_ours, damage(frame.data, case[1])))
        if len(frame.data) >= SHORTEST:
            compare(judges, frame, seen)
            found.append(case[0])

    law()
    chance = random.Random(7)
    for _ in range(FRAMES_LONG if long_run else 0):
        frame = frame_of(Fields(**{**chance.choice(found), **chance.choice(found)}))
        compare(judges, frame, seen)

    assert seen[TAKEN] > sum(seen.values()) // 20
    assert seen[DROPPED] > 10


def test_the_program_does_not_verify_the_checksum_of_the_datagram(judges) -> None:
    """The only difference: user space never gets a datagram with a wrong checksum, and the program would have
    to read the whole datagram.
    """
    good = frame_of(Fields(has_udp_sum=True))
    data = bytearray(good.data)
    data[UDP_SUM] = b"\x12\x34"
    bad = Frame(True, bytes(data))

    assert judges.kernel(bad) == judges.kernel(good)
    assert judges.user_space(bad) == []
