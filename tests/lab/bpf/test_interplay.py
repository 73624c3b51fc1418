"""The fast path with firewalls, offloads, other MTUs, and an original as a peer."""

import socket
import subprocess
import sys

import pytest

from pyflannel.kernel.bpf.layout import Outcome

DEADLINE_S = 60.0
OFFLOADS = ("tx", "rx", "tso", "gso", "gro", "tx-udp_tnl-segmentation")

# The original's proxy: one packet for each datagram. Each end decrements the TTL. The proxy checks nothing.
ORIGINAL = """
import fcntl, os, select, socket, struct, sys

def relay(packet):
    ttl, _, checksum = struct.unpack_from("!BBH", packet, 8)
    checksum += 0x0100
    struct.pack_into("!B", packet, 8, ttl - 1)
    struct.pack_into("!H", packet, 10, (checksum & 0xFFFF) + (checksum >> 16))
    return packet

address, peer = sys.argv[1:]
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"flannel0", 0x1001))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((address, 8285))
print("ready", flush=True)
while True:
    for ready in select.select([tun, udp], [], [])[0]:
        if ready == tun:
            packet = bytearray(os.read(tun, 1472))
            if packet[0] >> 4 == 4:
                udp.sendto(relay(packet), (peer, 8285))
        else:
            packet = bytearray(udp.recv(1472))
            try:
                os.write(tun, relay(packet))
            except OSError:
                pass
"""


@pytest.fixture
def original(hosts):
    """Host two is like the original: no program, a proxy in user space. Host one supports both paths."""
    one, two = hosts
    one.heal(one.plan(two.peer(is_direct=False)))
    one.start_forwarder(two)
    process = subprocess.Popen(
        [
            *("ip", "netns", "exec", two.namespace.name),
            *(sys.executable, "-c", ORIGINAL, two.address, one.address),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        two.namespace.settle(flannel0="UP")
        yield hosts
    finally:
        process.kill()
        process.communicate()


def set_offloads(host, state: str) -> None:
    for offload in OFFLOADS:
        host.namespace.attempt("ethtool", "-K", "eth0", offload, state)


@pytest.mark.parametrize("state", ["on", "off"])
def test_an_original_in_user_space_carries_tcp_in_both_directions(original, send_stream, state):
    one, two = original
    for host in original:
        set_offloads(host, state)

    assert send_stream(one.container, two.container, size=1 << 20)
    assert send_stream(two.container, one.container, size=1 << 20)
    # With offloads, the original leaves the checksums of its datagrams to a card.
    outcome = Outcome.LEFT_UNREADY_PEER if state == "on" else Outcome.DECAPSULATED
    assert one.counts()[outcome] > 10
    assert Outcome.ENCAPSULATED not in one.counts()


def test_an_original_behind_hardware_with_checksum_offload_can_be_a_direct_peer(original, send_stream):
    one, two = original
    set_offloads(one, "off")
    one.heal(one.plan(two.peer()))

    assert send_stream(one.container, two.container, size=1 << 20)
    counts = one.counts()
    assert counts[Outcome.ENCAPSULATED] + counts.get(Outcome.CACHED_OUT, 0) > 10


@pytest.mark.parametrize("state", ["on", "off"])
def test_streams_pass_with_offloads_on_and_off(linked, send_stream, state):
    for host in linked:
        set_offloads(host, state)

    assert send_stream(linked[0].container, linked[1].container)


def test_streams_pass_at_an_mtu_of_9000(linked, send_stream):
    one, two = linked
    for host in linked:
        host.namespace.ip("link set eth0 mtu 9000")
        for link in ("flannel0", "docker0", host.container.link):
            host.namespace.ip(f"link set {link} mtu 8972")
        host.container.namespace.ip("link set eth0 mtu 8972")
        host.mtu = 8972
    one.heal(one.plan(two.peer()))
    two.heal(two.plan(one.peer()))

    assert one.container.ping(two.container.address, "-M", "do", "-s", "8944")[0] == 3
    assert send_stream(one.container, two.container)


@pytest.mark.parametrize("is_called", ["0", "1"])
def test_a_bridge_with_and_without_br_netfilter(linked, send_stream, is_called):
    for host in linked:
        setting = "net.bridge.bridge-nf-call-iptables"
        if not host.namespace.attempt("sysctl", setting):
            pytest.skip("needs br_netfilter in the kernel")
        host.namespace.command("sysctl", "-qw", f"{setting}={is_called}")

    assert send_stream(linked[0].container, linked[1].container)
    assert linked[1].counts()[Outcome.DELIVERED] > 0


def test_a_drop_in_forward_takes_effect_immediately(linked):
    one, two = linked
    iptables = two.namespace.command
    iptables("iptables", "-P", "FORWARD", "DROP")
    iptables("iptables", "-A", "FORWARD", "-s", "10.100.0.0/16", "-j", "ACCEPT")
    assert one.container.ping(two.container.address)[0] == 3

    iptables("iptables", "-I", "FORWARD", "-d", two.container.address, "-j", "DROP")
    assert one.container.ping(two.container.address, "-W", "1", count=1)[0] == 0

    iptables("iptables", "-D", "FORWARD", "-d", two.container.address, "-j", "DROP")
    assert one.container.ping(two.container.address)[0] == 3


def test_connections_are_tracked(linked, send_stream):
    """Host two accepts only answers, so that only host two can open a connection."""
    one, two = linked
    for rule in (
        "-P FORWARD DROP",
        "-A FORWARD -s 10.100.20.0/24 -j ACCEPT",
        "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    ):
        two.namespace.command("iptables", *rule.split())

    assert send_stream(two.container, one.container)
    assert one.container.ping(two.container.address, "-W", "1", count=1)[0] == 0


def test_masquerading_excludes_the_overlay(linked, open_socket):
    one, two = linked
    rule = "-t nat -A POSTROUTING -s 10.100.15.0/24 ! -d 10.100.0.0/16 -j MASQUERADE"
    one.namespace.command("iptables", *rule.split())
    with (
        open_socket(one.container.namespace, socket.SOCK_DGRAM) as sender,
        open_socket(two.container.namespace, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((two.container.address, 0))
        sender.sendto(b"my address?", receiver.getsockname())

        assert receiver.recvfrom(100)[1][0] == one.container.address


def test_a_published_port_reaches_its_container(linked, open_socket):
    """Docker publishes a port at an address of the host. The test uses the address of the bridge."""
    one, two = linked
    rule = (
        f"-t nat -A PREROUTING -d {two.gateway} -p tcp --dport 8080 -j DNAT --to {two.container.address}:80"
    )
    two.namespace.command("iptables", *rule.split())
    with (
        open_socket(two.container.namespace, socket.SOCK_STREAM) as listener,
        open_socket(one.container.namespace, socket.SOCK_STREAM) as client,
    ):
        listener.bind((two.container.address, 80))
        listener.listen()
        client.connect((two.gateway, 8080))
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"published")

        assert client.recv(100) == b"published"
