"""Packets that the programs carry, on the real kernel. No process of pyflannel runs on either host."""

import json
import socket
import struct
from contextlib import closing, suppress
from ipaddress import IPv4Address

from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.layout import PEERS, Outcome
from pyflannel.kernel.bpf.maps import read_entries_at_once
from pyflannel.lab.waiting import wait_until
from pyflannel.model.fast_path import Role
from pyflannel.model.state import State
from pyflannel.wire.packet import checksum

ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
DO_NOT_FRAGMENT = 0x4000
MACS_AT = 20  # offset in struct peer of maps.h


def test_containers_reach_each_other_without_any_process(linked):
    one, two = linked

    answered, said = one.container.ping(two.container.address)

    assert answered == 3
    assert "ttl=60" in said  # as in user space: each host and each end of the tunnel decrements the TTL once
    for host in linked:
        assert host.counts() == {Outcome.ENCAPSULATED: 3, Outcome.DECAPSULATED: 3, Outcome.DELIVERED: 3}


def test_packets_follow_a_changed_neighbour(linked):
    """The programs keep the Ethernet header of a peer, but only for some milliseconds."""
    one, two = linked
    assert one.container.ping(two.container.address)[0] == 3
    assert kept_header(one, two) == mac_of(two) + mac_of(one)

    def reaches() -> bool:
        return one.container.ping(two.container.address, "-W", "0.3", count=1)[0] == 1

    for mac, is_reached in (("02:00:00:00:00:99", False), (mac_of(two).hex(":"), True)):
        one.namespace.ip(f"neigh replace {two.address} lladdr {mac} dev eth0 nud permanent")
        wait_until(
            lambda is_reached=is_reached: reaches() is is_reached,
            what=f"packets go to {mac}",
            deadline_s=5,
        )


def mac_of(host) -> bytes:
    shown = json.loads(host.namespace.ip("-json link show eth0"))
    return bytes.fromhex(shown[0]["address"].replace(":", ""))


def kept_header(host, peer) -> bytes:
    """Return the Ethernet addresses of the latest packet to a peer for which the route was looked up."""

    async def read() -> bytes:
        with closing(FastPath()) as path:
            await path.read([peer.peer()])
            table = path._maps["flannel0"].descriptors[PEERS.name]
            (value,) = read_entries_at_once(table, PEERS.key_bytes, PEERS.value_bytes).values()
            return value[MACS_AT : MACS_AT + 12]

    return host.namespace.run(read)


def test_a_stream_arrives_unchanged(linked, send_stream):
    one, two = linked

    assert send_stream(one.container, two.container)
    assert send_stream(two.container, one.container)


def test_a_stream_is_not_split_into_segments_on_its_path(linked, send_stream):
    """The stream has 5,700 segments. Far fewer packets leave each device, because one packet carries several
    segments.
    """
    one, two = linked
    before = two.packets_sent(two.container.link)

    assert send_stream(one.container, two.container)

    assert two.counts()[Outcome.DELIVERED] < 3000
    assert two.packets_sent(two.container.link) - before < 3000


def test_each_byte_of_the_tunnel_headers(linked, send_stream):
    """The segments of a stream fill the underlay's MTU. No device on the path may split a segment."""
    one, two = linked
    for feature in ("tso", "gso", "tx-udp_tnl-segmentation"):
        one.namespace.attempt("ethtool", "-K", "eth0", feature, "off")

    async def listen() -> socket.socket:
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))

    with two.namespace.run(listen) as tap:
        tap.bind(("eth0", ETH_P_ALL))
        tap.setblocking(False)
        assert send_stream(one.container, two.container, size=1 << 20)
        arrived = []
        with suppress(BlockingIOError):
            while True:
                packet, (_, protocol, kind, *_) = tap.recvfrom(2000)
                arrived += [packet] if (protocol, kind) == (ETH_P_IP, socket.PACKET_HOST) else []

    for packet in arrived:
        assert checksum(packet[:20]) == 0
        assert packet[:4] == struct.pack("!BBH", 0x45, 0, len(packet))
        assert packet[6:10] == struct.pack("!HBB", DO_NOT_FRAGMENT, 64, socket.IPPROTO_UDP)
        assert packet[12:20] == IPv4Address(one.address).packed + IPv4Address(two.address).packed
        assert packet[20:28] == struct.pack("!HHHH", 8285, 8285, len(packet) - 20, 0)
    assert max(map(len, arrived)) == 1500


def test_packets_of_the_last_hop_program_bypass_the_bridge(linked):
    one, two = linked
    before = two.packets_sent("docker0")

    answered, _ = one.container.ping(two.container.address, count=50)

    assert answered == 50
    assert two.packets_sent("docker0") - before < 50  # for example ARP requests


def test_packets_of_the_host_itself_pass_the_bridge(linked):
    two = linked[1]
    two.namespace.command("ping", "-c", "2", "-i", "0.05", "-W", "2", two.container.address)

    assert Outcome.DELIVERED not in two.counts()


def test_a_container_without_an_entry_is_reached_by_the_bridge(linked):
    one, two = linked
    another = two.add_container(last=3)

    assert one.container.ping(another.address)[0] == 3
    assert Outcome.DELIVERED not in two.counts()


def test_a_container_whose_mac_changed_is_reached_by_the_bridge(linked):
    one, two = linked
    two.container.namespace.ip("link set eth0 address 02:42:00:00:00:99")
    two.namespace.ip("neighbour flush dev docker0")

    assert one.container.ping(two.container.address)[0] == 3
    assert Outcome.DELIVERED not in two.counts()


def test_a_container_that_replaced_another_is_reached_before_its_entry_is_updated(linked):
    """Docker assigns the same address and MAC address again. The kernel removed the previous veth itself."""
    one, two = linked
    assert one.container.ping(two.container.address)[0] == 3
    two.namespace.ip(f"link delete {two.container.link}")
    successor = two.add_container(link="successor")

    assert one.container.ping(successor.address)[0] == 3
    assert two.counts()[Outcome.DELIVERED] == 3  # packets to the previous container


def test_packets_reach_the_new_container_after_its_entry_was_replaced(linked):
    one, two = linked
    two.namespace.ip(f"link delete {two.container.link}")
    two.container = two.add_container(link="successor")

    two.heal(two.plan(one.peer()))

    assert one.container.ping(two.container.address)[0] == 3
    assert two.counts()[Outcome.DELIVERED] == 3


def test_without_the_last_hop_packets_pass_the_bridge(linked, send_stream):
    one, two = linked
    plan = two.plan(one.peer())
    two.heal(State.of(*(item for item in plan if item != two.program(Role.LAST_HOP))))
    before = two.packets_sent("docker0")

    assert send_stream(one.container, two.container)

    assert two.packets_sent("docker0") > before
    assert Outcome.DELIVERED not in two.counts()


def test_hosts_reach_containers_of_other_hosts(linked):
    one, two = linked

    said = one.namespace.command("ping", "-c", "3", "-i", "0.05", "-W", "2", two.container.address)

    assert "3 received" in said
    assert one.counts()[Outcome.ENCAPSULATED] == 3
