"""The forwarder or the kernel correctly handles the packets that the programs leave to them."""

import fcntl
import hashlib
import os
import re
import selectors
import socket
import struct
import threading
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest
from msgspec.structs import replace

from pyflannel.kernel.bpf.layout import Outcome
from pyflannel.lab.waiting import wait_until
from pyflannel.model.fast_path import Role
from pyflannel.model.state import State

DEADLINE_S = 60.0
UDP_SEGMENT = 103  # linux/udp.h
TUNSETIFF = 0x400454CA  # linux/if_tun.h, as are the flags
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SOL_PACKET, PACKET_VNET_HDR = 263, 15  # linux/socket.h, linux/if_packet.h
IP_RECVERR = 11  # linux/in.h


def test_a_peer_that_is_not_direct_is_served_by_user_space(relayed):
    one, two = relayed
    one.heal(one.plan(two.peer(is_direct=False)))
    before = one.forwarder_counters()["sent_packets"]

    answered, _ = one.container.ping(two.container.address)

    assert answered == 3
    assert one.counts()[Outcome.LEFT_UNREADY_PEER] >= 3
    assert one.forwarder_counters()["sent_packets"] - before >= 3


def test_nat_changes_a_packet_that_user_space_sent_over_a_virtual_underlay(relayed):
    """The sender leaves the checksum of the datagram to a network card, which does not exist here."""
    one, two = relayed
    one.heal(one.plan(two.peer(is_direct=False)))
    programs = [two.program(role) for role in (Role.ENCAPSULATE, Role.DECAPSULATE, Role.LAST_HOP)]
    unjoined = [replace(each, tunnel=replace(each.tunnel, gro_link="")) for each in programs]
    two.heal(State.of(one.peer(), two.container.entry, *unjoined))
    two.namespace.command("nft", "add table ip t")
    two.namespace.command("nft", "add chain ip t c { type nat hook prerouting priority -100; }")
    two.namespace.command("nft", "add rule ip t c tcp dport 81 dnat to :80")

    async def listen() -> socket.socket:
        return socket.create_server((two.container.address, 80))

    async def connect() -> socket.socket:
        return socket.create_connection((two.container.address, 81), timeout=10)

    with two.container.namespace.run(listen), one.container.namespace.run(connect) as channel:
        assert channel.getpeername() == (two.container.address, 81)
    assert two.counts()[Outcome.LEFT_UNREADY_PEER] >= 1


def test_fragments_arrive_completely(relayed):
    """All fragments take the same path. 4000 bytes need three fragments."""
    one, two = relayed
    before = [host.counts() for host in relayed]

    answered, _ = one.container.ping(two.container.address, "-s", "4000")

    assert answered == 3
    for host, earlier in zip(relayed, before, strict=True):
        now = host.counts()
        assert now[Outcome.LEFT_FRAGMENT] >= 9
        assert now[Outcome.ENCAPSULATED] == earlier[Outcome.ENCAPSULATED]
        assert now[Outcome.DECAPSULATED] == earlier[Outcome.DECAPSULATED]


def test_the_answer_to_a_packet_that_is_too_long_contains_the_mtu(relayed):
    one, two = relayed
    one.namespace.ip(f"link set {one.container.link} mtu 1500")
    one.container.namespace.ip("link set eth0 mtu 1500")

    answered, said = one.container.ping(two.container.address, "-M", "do", "-s", "1460", count=1)

    assert answered == 0
    assert f"From {one.gateway} icmp_seq=1 Frag needed and DF set (mtu = 1472)" in said


def test_a_packet_of_exactly_the_mtu_is_carried(linked):
    one, two = linked

    assert one.container.ping(two.container.address, "-M", "do", "-s", "1444")[0] == 3


def test_each_hop_answers_expired_packets(relayed):
    """The hops are the same as in user space: host, its end of the tunnel, the peer's end, the peer."""
    one, two = relayed
    hops = {ttl: hop(one.container, two.container.address, ttl) for ttl in range(1, 6)}

    assert hops == {
        1: one.gateway,
        2: "10.100.15.0",
        3: "10.100.20.0",
        4: "10.100.20.0",
        5: two.container.address,
    }
    assert one.counts()[Outcome.LEFT_EXPIRED] == 1
    assert two.counts()[Outcome.LEFT_EXPIRED] == 1


def hop(container, address: str, ttl: int) -> str:
    """Return the sender of the answer to a ping with this TTL."""
    _, said = container.ping(address, "-t", str(ttl), count=1)
    return re.search(r"[Ff]rom ([\d.]+)", said)[1]


def test_options_arrive(relayed):
    one, two = relayed
    before = [host.counts() for host in relayed]

    answered, said = one.container.ping(two.container.address, "-R")

    assert answered == 3
    assert "RR:" in said
    for host, earlier in zip(relayed, before, strict=True):
        now = host.counts()
        assert now[Outcome.LEFT_OPTIONS] >= 3
        assert now[Outcome.ENCAPSULATED] == earlier[Outcome.ENCAPSULATED]
        assert now[Outcome.DECAPSULATED] == earlier[Outcome.DECAPSULATED]


def test_datagrams_to_be_segmented_arrive_completely(relayed, open_socket):
    """One call sends forty datagrams, as with QUIC. The host must not send these datagrams as one
    datagram.
    """
    one, two = relayed
    payload = os.urandom(40_000)
    with (
        open_socket(two.container.namespace, socket.SOCK_DGRAM) as receiver,
        open_socket(one.container.namespace, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((two.container.address, 0))
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sender.sendto(payload, receiver.getsockname())
        received = [receiver.recv(2000) for _ in range(40)]

    assert {len(datagram) for datagram in received} == {1000}
    assert hashlib.sha256(b"".join(received)).digest() == hashlib.sha256(payload).digest()
    assert one.counts()[Outcome.LEFT_SEGMENTED] >= 1


def test_an_address_without_a_lease_is_unreachable(relayed, open_socket):
    one = relayed[0]
    with open_socket(one.container.namespace, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sender.connect(("10.100.99.1", 9))
        sender.send(b"hello?")

        with pytest.raises(OSError, match="unreachable"):
            sender.recv(1)

    assert one.counts()[Outcome.LEFT_NO_ROUTE] == 1


def test_a_peer_that_is_missing_in_the_table_is_served_by_user_space(relayed):
    """Another program deleted the entry of the peer on both hosts, and no audit has repaired it yet."""
    one, two = relayed
    one.heal(one.plan())

    assert one.container.ping(two.container.address)[0] == 3
    assert two.container.ping(one.container.address)[0] == 3
    assert one.counts()[Outcome.LEFT_STRANGER] >= 6


def test_a_program_without_its_device_leaves_packets_to_other_programs(linked):
    """Another program deleted flannel0 while no daemon ran.

    Another program or a socket gets the packets.
    """
    one, two = linked
    two.namespace.ip("link delete flannel0")

    assert one.container.ping(two.container.address, "-W", "1", count=1)[0] == 0
    assert two.counts()[Outcome.LEFT_NO_DEVICE] == 1
    assert Outcome.DECAPSULATED not in two.counts()


@pytest.mark.parametrize(("size", "outcome"), [(65507, "ENCAPSULATED"), (65508, "LEFT_LONG")])
def test_packets_too_long_for_another_header_are_left(linked, size, outcome):
    """TCP that is still to be segmented may have the maximum length of a header."""
    one, two = linked
    ends = IPv4Address(one.container.address).packed + IPv4Address(two.container.address).packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, socket.IPPROTO_TCP, 0) + ends
    segment = struct.pack("!HHIIBBHHH", 1, 1, 0, 0, 0x50, 0x10, 1000, 0, 0)
    to_be_segmented = struct.pack("=BBHHHH", 1, 1, 40, 1432, 20, 16)  # linux/virtio_net.h

    async def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as device:
            device.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            packet = to_be_segmented + header + segment + bytes(size - 40)
            device.sendto(packet, ("flannel0", 0x0800))

    one.namespace.run(send)

    counts = one.counts()
    assert counts[Outcome[outcome]] == 1
    assert not {Outcome.ENCAPSULATED, Outcome.LEFT_LONG} - {Outcome[outcome]} & counts.keys()


def test_without_an_underlay_packets_are_left_to_other_programs(linked):
    one, two = linked
    one.namespace.ip("link delete eth0")

    assert one.container.ping(two.container.address, "-W", "1", count=1)[0] == 0
    assert one.counts()[Outcome.LEFT_NO_DEVICE] == 1
    assert Outcome.ENCAPSULATED not in one.counts()


def test_other_packets_than_ipv4_reach_the_forwarder(relayed, open_socket):
    one, two = relayed
    inner = struct.pack("!IHBB", 0x60000000, 0, 59, 64) + bytes(32)
    with open_socket(one.namespace, socket.SOCK_DGRAM) as sender:
        sender.sendto(inner, (two.address, 8285))

    wait_until(
        lambda: two.forwarder_counters()["dropped_in_not_ipv4"] == 1,
        what="the forwarder counts it",
        deadline_s=DEADLINE_S,
    )
    # flannel0 has IPv6 here, and sends neighbour solicitations.
    assert two.counts()[Outcome.LEFT_NOT_IPV4] >= 1
    assert Outcome.LEFT_OPTIONS not in two.counts()


@pytest.fixture
def without_frames(hosts):
    """The hosts on an underlay without Ethernet headers, like that of a VPN."""
    ends = []
    for host in hosts:
        host.namespace.attempt("ip", "link", "delete", "eth0")

    async def open_device() -> int:
        device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TUN | IFF_NO_PI))
        return device

    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        for host in hosts:
            ends.append(host.namespace.run(open_device))
            stack.callback(os.close, ends[-1])
            host.namespace.ip(f"address add {host.address}/24 dev eth0")
            host.namespace.ip("link set eth0 up")
        for end, other in zip(ends, reversed(ends), strict=True):
            selector.register(end, selectors.EVENT_READ, other)
        is_over = threading.Event()

        def carry() -> None:
            while not is_over.is_set():
                for key, _ in selector.select(timeout=0.1):
                    os.write(key.data, os.read(key.fd, 65536))

        carrier = threading.Thread(target=carry)
        carrier.start()
        stack.callback(carrier.join)
        stack.callback(is_over.set)
        yield hosts


def test_packets_without_an_ethernet_header_pass_through_user_space(without_frames, send_stream):
    one, two = without_frames
    one.heal(one.plan(two.peer()))
    two.heal(two.plan(one.peer()))
    one.start_forwarder(two)
    two.start_forwarder(one)

    assert one.container.ping(two.container.address)[0] == 3
    assert send_stream(one.container, two.container, size=1 << 20)

    assert one.counts()[Outcome.ENCAPSULATED] > 3
    assert Outcome.DECAPSULATED not in two.counts()
