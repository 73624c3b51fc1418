"""The datagrams of cached flows over vxlan, beside the datagrams of the kernel. No process of pyflannel
runs.
"""

import itertools
import json
import socket
import struct
from contextlib import closing, suppress
from ipaddress import IPv4Address

import pytest
from msgspec.structs import replace

from pyflannel.kernel.bpf.hooks import TcxHooks
from pyflannel.kernel.bpf.layout import FLOWS, Outcome
from pyflannel.kernel.bpf.maps import TunnelMaps, read_entries, update_entries
from pyflannel.kernel.bpf.objects import KernelObjects
from pyflannel.kernel.bpf.standing import StandingPrograms, shared_maps
from pyflannel.lab.waiting import wait_until
from pyflannel.model.fast_path import BpfProgram, Role
from pyflannel.model.state import State
from pyflannel.wire.packet import checksum

ETH_P_IP, ETH_P_ALL = 0x0800, 3
IP_TOS = 1
SO_NO_CHECK = 11  # asm-generic/socket.h
INNER_AT = 50
PORT = 8472
SOON_S = 60.0
PAYLOAD = b"x" * 40
"""Packets of this length are not longer than the first packets of the tests."""

_ports = itertools.count(5000)


@pytest.fixture(scope="module")
def hosts(make_shared_namespace, tmp_path_factory, make_hosts):
    """Two hosts with vxlan whose programs cache flows."""
    with make_hosts(make_shared_namespace, tmp_path_factory.mktemp("hosts"), "vxlan") as made:
        for host in made:
            host.caches_flows = True
            host.namespace.command("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=1")
            host.heal(host.plan())
        yield made


@pytest.fixture
def permitted(hosts):
    """The same hosts with a permit of the current ruleset."""
    for host in hosts:
        host.heal(host.plan())
    return hosts


def arrived(tap: socket.socket) -> list[bytes]:
    """Return the datagrams of vxlan that a host received."""
    found = []
    with suppress(BlockingIOError):
        while True:
            packet, (_, protocol, kind, *_) = tap.recvfrom(2000)
            is_received = (protocol, kind) == (ETH_P_IP, socket.PACKET_HOST)
            if is_received and packet[22:24] == PORT.to_bytes(2, "big"):
                found.append(packet)
    return found


@pytest.fixture
def tap(hosts):
    """A socket that receives all packets at the underlay of host two."""

    async def listen() -> socket.socket:
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))

    with hosts[1].namespace.run(listen) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        opened.bind(("eth0", ETH_P_ALL))
        opened.setblocking(False)
        yield opened


def send(host, destination, open_socket, port: int, *, count: int, tos: int = 0) -> None:
    """Send packets of one flow to a container. Each packet arrives before the next packet is sent."""
    with (
        open_socket(host.container.namespace, socket.SOCK_DGRAM) as sender,
        open_socket(destination.container.namespace, socket.SOCK_DGRAM) as sink,
    ):
        sender.setsockopt(socket.IPPROTO_IP, IP_TOS, tos)
        sender.bind((host.container.address, port))
        sink.bind((destination.container.address, port))
        for _ in range(count):
            sender.sendto(PAYLOAD, sink.getsockname())
            assert sink.recv(100) == PAYLOAD


def test_the_bytes_of_cached_flows_are_counted_by_sender(permitted, open_socket):
    one, two = permitted
    sender = IPv4Address(one.address), one.subnet.network_address
    packets, size = two.counts().get(Outcome.CACHED_IN, 0), two.received().get(sender, 0)
    send(one, two, open_socket, next(_ports), count=50)

    cached = two.counts()[Outcome.CACHED_IN] - packets
    assert cached > 25
    assert two.received()[sender] - size == cached * (INNER_AT + 28 + len(PAYLOAD))


@pytest.mark.parametrize("tos", [0, 0x48, 1, 3], ids=["plain", "class", "ecn", "congested"])
def test_a_datagram_of_a_cached_flow_equals_that_of_the_kernel(permitted, tap, open_socket, tos):
    one, two = permitted
    before = one.counts().get(Outcome.CACHED_OUT, 0)
    send(one, two, open_socket, next(_ports), count=20, tos=tos)

    assert one.counts()[Outcome.CACHED_OUT] - before > 10
    first, *others = arrived(tap)
    assert len(others) == 19
    for packet in others:
        assert checksum(packet[:20]) == 0
        assert packet[:4] == first[:4]
        assert packet[6:10] == first[6:10]
        assert packet[12:26] == first[12:26]  # addresses, ports and length
        assert packet[28:INNER_AT] == first[28:INNER_AT]  # VXLAN, inner MAC addresses and EtherType
        assert checksum(packet[INNER_AT : INNER_AT + 20]) == 0
        assert packet[INNER_AT + 8 : INNER_AT + 10] == first[INNER_AT + 8 : INNER_AT + 10]  # TTL and protocol
    assert {packet[26:28] for packet in others[5:]} == {bytes(2)}


def test_a_stream_is_segmented_with_tunnel_headers(permitted, tap, send_stream):
    """Without offloads, the device of the underlay gets segments that fill its MTU."""
    one, two = permitted
    features = ("tso", "gso", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
    for feature in features:
        one.namespace.attempt("ethtool", "-K", "eth0", feature, "off")
    before = one.counts().get(Outcome.CACHED_OUT, 0)
    assert send_stream(one.container, two.container, size=1 << 20)
    for feature in features:
        one.namespace.attempt("ethtool", "-K", "eth0", feature, "on")

    assert one.counts()[Outcome.CACHED_OUT] > before
    found = arrived(tap)
    ends = IPv4Address(one.address).packed + IPv4Address(two.address).packed
    for packet in found:
        assert checksum(packet[:20]) == 0
        assert packet[:4] == struct.pack("!BBH", 0x45, 0, len(packet))
        assert packet[8:10] == bytes([64, socket.IPPROTO_UDP])
        assert packet[12:20] == ends
        assert packet[22:26] == struct.pack("!HH", PORT, len(packet) - 20)
        assert packet[28:36] == struct.pack("!II", 8 << 24, 1 << 8)
        assert packet[36:INNER_AT] == found[0][36:INNER_AT]
        inner = packet[INNER_AT:]
        assert checksum(inner[:20]) == 0
        assert inner[2:4] == struct.pack("!H", len(inner))
    assert max(map(len, found)) == 1500
    assert len({packet[20:22] for packet in found if packet[INNER_AT + 9] == socket.IPPROTO_TCP}) == 1


def test_a_stream_is_not_split_into_segments_on_its_path(permitted, send_stream):
    one, two = permitted
    before = two.packets_sent(two.container.link)
    cached = two.counts().get(Outcome.CACHED_IN, 0)

    assert send_stream(one.container, two.container)

    assert two.packets_sent(two.container.link) - before < 3000
    assert 0 < two.counts()[Outcome.CACHED_IN] - cached < 3000


def test_a_peer_without_programs_carries_cached_flows(permitted, open_socket, send_stream):
    """The peer uses only its vxlan device, as a host with the original does."""
    one, two = permitted
    two.heal(State.EMPTY)
    before = one.counts()

    send(one, two, open_socket, next(_ports), count=20)

    def are_cached() -> bool:
        """Send streams. On a busy machine, a decision ends before many packets of a stream use it."""
        assert send_stream(one.container, two.container)
        assert send_stream(two.container, one.container)
        counts = one.counts()
        return all(
            counts.get(outcome, 0) - before.get(outcome, 0) > 30
            for outcome in (Outcome.CACHED_OUT, Outcome.CACHED_IN)
        )

    wait_until(are_cached, what="flows are cached", deadline_s=SOON_S)
    two.heal(two.plan())


FORGED = {
    "the kept origin": ({}, 1),
    "another host": ({"source": "10.9.0.77"}, 0),
    "another VTEP": ({"vtep": "02:00:00:00:00:77"}, 0),
    "another network": ({"vni": 2}, 0),
    "another port": ({"port": 8473}, 0),
    "congested": ({"tos": 3}, 0),
    "an expiring packet": ({"ttl": 2}, 0),
    "a longer frame": ({"tail": b"tail"}, 0),
    "a longer datagram": ({"more_in_ip": 4}, 0),
    "a shorter datagram": ({"more_in_ip": -4}, 0),
    "a wrong UDP length": ({"more_in_udp": 4}, 0),
    "a wrong outer checksum": ({"damage": 1}, 0),
    "a fragment": ({"fragment": 0x2000}, 0),
}


@pytest.mark.parametrize(("forged", "expected"), FORGED.values(), ids=FORGED)
def test_only_packets_of_the_kept_origin_bypass_the_guard(permitted, open_socket, forged, expected):
    one, two = permitted

    def bypassed() -> int:
        """Return how many packets of one forged frame bypass the guard."""
        port = next(_ports)
        send(one, two, open_socket, port, count=5)
        before = two.counts()[Outcome.CACHED_IN]
        send_frame(one, two, datagram(one, two, port, **forged))
        send(two, one, open_socket, next(_ports), count=1)  # the packet was processed
        return two.counts()[Outcome.CACHED_IN] - before

    if expected:  # on a busy machine, a decision may end before the frame arrives
        wait_until(lambda: bypassed() == expected, what="the frame bypasses the guard", deadline_s=SOON_S)
    else:
        assert bypassed() == 0


ORIGIN_AT = 80
"""Position of the origin in an entry of the table of flows."""


def test_an_origin_that_another_packet_wrote_has_no_decision(permitted, open_socket):
    """A forged packet on another processor can overwrite the origin of a flow while a decision begins."""
    one, two = permitted
    source = "10.9.0.77"

    async def write_origin(forged: bytes, port: int) -> int:
        """Write the origin of this datagram into the entries of the flow; return their number."""
        origin = forged[12:20] + forged[28 : INNER_AT - 2]
        objects = KernelObjects()
        with closing(TcxHooks(objects)) as hooks:
            found = await StandingPrograms(hooks, objects).find(dict(socket.if_nameindex()))
            with closing(TunnelMaps("flannel0", shared_maps(found, "flannel0", objects))) as maps:
                flows = maps.descriptors[FLOWS.name]
                entries = {
                    key: value[:ORIGIN_AT] + origin + value[ORIGIN_AT + len(origin) :]
                    for key, value in read_entries(flows, FLOWS.key_bytes, FLOWS.value_bytes).items()
                    if key[8:10] == port.to_bytes(2, "big")
                }
                assert update_entries(flows, list(entries), list(entries.values())) == {}
        return len(entries)

    def bypassed(is_written: bool) -> int:
        """Return how many packets of a forged frame bypass the guard."""
        port = next(_ports)
        forged = datagram(one, two, port, source=source if is_written else one.address)
        send(one, two, open_socket, port, count=5)
        before = two.counts()[Outcome.CACHED_IN]
        assert two.namespace.run(lambda: write_origin(forged, port)) == 1
        send_frame(one, two, forged)
        send(two, one, open_socket, next(_ports), count=1)  # the packet was processed
        return two.counts()[Outcome.CACHED_IN] - before

    # The first frame proves that the entry, the decision and the frame are as on a real host.
    wait_until(
        lambda: bypassed(is_written=False) == 1, what="the frame bypasses the guard", deadline_s=SOON_S
    )
    assert [bypassed(is_written=True) for _ in range(5)] == [0] * 5


def datagram(
    one,
    two,
    inner_port: int,
    *,
    source: str = "10.9.0.15",
    vtep: str = "02:00:00:00:00:0f",
    vni: int = 1,
    port: int = PORT,
    tos: int = 0,
    ttl: int = 63,
    tail: bytes = b"",
    more_in_ip: int = 0,
    more_in_udp: int = 0,
    damage: int = 0,
    fragment: int = 0,
) -> bytes:
    """Return a datagram of a flow from host one to host two, as the kernel writes it except for the given
    values.
    """
    inner_datagram = struct.pack("!HHHH", inner_port, inner_port, 8 + len(PAYLOAD), 0x1234) + PAYLOAD
    inner = ip_header(one.container.address, two.container.address, len(inner_datagram), ttl=ttl)
    frame = bytes.fromhex(f"020000000014{vtep.replace(':', '')}0800") + inner + inner_datagram
    payload = struct.pack("!II", 8 << 24, vni << 8) + frame
    udp = struct.pack("!HHHH", 40000, port, 8 + len(payload) + more_in_udp, 0)
    size = len(udp) + len(payload) + more_in_ip
    outer = bytearray(ip_header(source, two.address, size, tos=tos, fragment=fragment))
    outer[11] ^= damage
    return bytes(outer) + udp + payload + tail


def ip_header(
    source: str, destination: str, size: int, *, tos: int = 0, ttl: int = 64, fragment: int = 0
) -> bytes:
    """Return the header of a UDP packet with a payload of this size."""
    ends = IPv4Address(source).packed + IPv4Address(destination).packed
    header = bytearray(struct.pack("!BBHHHBBH", 0x45, tos, 20 + size, 0, fragment, ttl, 17, 0) + ends)
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header)


def send_frame(one, two, packet: bytes) -> None:
    """Send a packet from the underlay of host one to the underlay of host two."""

    async def open_raw() -> socket.socket:
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))

    shown = json.loads(two.namespace.ip("-json link show eth0"))
    with one.namespace.run(open_raw) as raw:
        raw.sendto(packet, ("eth0", ETH_P_IP, 0, 0, bytes.fromhex(shown[0]["address"].replace(":", ""))))


def test_programs_of_another_network_do_not_end_caching(permitted, open_socket):
    """The programs of two networks are at the same hooks, and each carries only its own VNI."""
    one, two = permitted
    others = [
        BpfProgram(link="eth0", role=role, tunnel=replace(one.tunnel, device="flannel9", vni=2))
        for role in (Role.DECAPSULATE, Role.NEXT_HOP)
    ]
    for host in permitted:
        host.heal(host.plan() | State.of(*others))
    counted = [host.counts() for host in permitted]

    send(one, two, open_socket, next(_ports), count=20)

    assert one.counts()[Outcome.CACHED_OUT] - counted[0].get(Outcome.CACHED_OUT, 0) > 10
    assert two.counts()[Outcome.CACHED_IN] - counted[1].get(Outcome.CACHED_IN, 0) > 10
    for host in permitted:
        host.heal(host.plan())


def test_packets_without_a_checksum_are_left_to_the_kernel(permitted, open_socket):
    """The datagram of a cached packet has no checksum, so the inner packet needs one."""
    one, two = permitted
    port, before = next(_ports), one.counts().get(Outcome.CACHED_OUT, 0)
    with (
        open_socket(one.container.namespace, socket.SOCK_DGRAM) as sender,
        open_socket(two.container.namespace, socket.SOCK_DGRAM) as sink,
    ):
        sender.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        sink.bind((two.container.address, port))
        for _ in range(10):
            sender.sendto(PAYLOAD, sink.getsockname())
            assert sink.recv(100) == PAYLOAD

    assert one.counts().get(Outcome.CACHED_OUT, 0) == before
