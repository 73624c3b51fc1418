"""Flows that bypass the firewall of two hosts, on the real kernel. No process of pyflannel runs."""

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from msgspec.structs import replace

from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.layout import CACHES_TCP, CACHES_UDP, Outcome, Permit
from pyflannel.model.fast_path import Role
from pyflannel.model.state import State

FOREVER = 1 << 62
IP_RECVTTL = 12  # linux/in.h
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3
CUT_S = 1.0
"""The longest time for which a decision of the firewall is valid."""

_ports = itertools.count(5000)

SOON_S = 0.25
"""A packet that the kernel passes arrives within this time."""

FIREWALL = """
table ip t {
    chain forward {
        type filter hook forward priority 0
        ct state invalid drop
        jump rules
    }
    chain rules {
    }
}
"""


class Talk:
    """UDP sockets in a container of each host, and the packets between them."""

    def __init__(self, stack: ExitStack, open_socket, one, two) -> None:
        self.port = next(_ports)
        self.ends = one, two
        self.sockets = [
            stack.enter_context(open_socket(each.namespace, socket.SOCK_DGRAM)) for each in self.ends
        ]
        for made, container in zip(self.sockets, self.ends, strict=True):
            made.bind((container.address, self.port))
        self.number = 0

    def arrives(self, source: int = 0, size: int = 0) -> bool:
        """Send a packet from one of the two containers. Return whether the packet arrives."""
        self.number += 1
        sent = b"%d " % self.number + bytes(size)
        self.sockets[source].sendto(sent, (self.ends[1 - source].address, self.port))
        sink = self.sockets[1 - source]
        sink.settimeout(SOON_S)
        try:
            while sink.recv(2000) != sent:
                pass
        except TimeoutError:
            return False
        return True


def permit(host, *, skips_veth: bool = True, **changes) -> None:
    """Permit the programs of a host to cache flows, as the daemon does.

    Packets go directly into the container if its veth may be skipped.
    """
    given = {"until_ns": FOREVER, "generation": 1, "protocols": CACHES_UDP | CACHES_TCP} | changes

    async def put():
        with closing(FastPath()) as path:
            await path.read([host.peer()])
            links = (socket.if_nametoindex(host.container.link),)
            path.put_permit("flannel0", Permit(), links)  # no veth may be skipped any more
            path.put_permit("flannel0", Permit(**given), links if skips_veth else ())

    host.namespace.run(put)


@pytest.fixture(scope="module", params=["udp", "vxlan"])
def cached(request, make_shared_namespace, tmp_path_factory, make_hosts):
    """Two hosts with a firewall that tracks connections, in mode flow."""
    with make_hosts(make_shared_namespace, tmp_path_factory.mktemp("hosts"), request.param) as hosts:
        prepare(*hosts)
        yield hosts


def prepare(one, two) -> None:
    for host, peer in ((one, two), (two, one)):
        host.caches_flows = True
        host.namespace.command("nft", "-f", "-", given=FIREWALL)
        host.namespace.command("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=1")
        host.heal(host.plan(peer.peer()))


@pytest.fixture
def talk(cached, open_socket) -> Iterator[Talk]:
    """Two containers with a permit to use the cache."""
    one, two = cached
    for host in cached:
        permit(host)
    with ExitStack() as stack:
        yield Talk(stack, open_socket, one.container, two.container)
    for host in cached:
        host.namespace.command("nft", "flush chain ip t rules")


class Counted:
    """The number of packets that the programs of a host counted since the last scan."""

    def __init__(self, host) -> None:
        self.host = host
        self.before = host.counts()

    def __getitem__(self, outcome: Outcome) -> int:
        return self.host.counts().get(outcome, 0) - self.before.get(outcome, 0)


@pytest.fixture
def counted(cached) -> list[Counted]:
    """The packets of each host since the start of the test."""
    return [Counted(host) for host in cached]


def rule(host, words: str) -> None:
    host.namespace.command("nft", f"add rule ip t rules {words}")


def seconds_until_cut(talk: Talk) -> float:
    since = time.monotonic()
    while talk.arrives():
        assert time.monotonic() - since < 30
    return time.monotonic() - since - SOON_S


@pytest.mark.parametrize("skips_veth", [True, False])
def test_a_stream_bypasses_both_firewalls_and_arrives_unchanged(
    cached, talk, counted, send_stream, skips_veth
):
    one, two = cached
    for host in cached:
        permit(host, skips_veth=skips_veth)
    before = two.packets_sent(two.container.link)

    assert send_stream(one.container, two.container, 16 << 20)
    assert send_stream(two.container, one.container, 8 << 20)

    for host in counted:
        assert host[Outcome.CACHED_OUT] > 5 * max(host[Outcome.ENCAPSULATED], 10)
        assert host[Outcome.CACHED_IN] > 5 * max(host[Outcome.DELIVERED], 10)
    passed = two.packets_sent(two.container.link) - before
    assert passed < counted[1][Outcome.CACHED_IN] if skips_veth else passed > counted[1][Outcome.CACHED_IN]


def test_connections_outlive_the_timeouts_of_connection_tracking_while_packets_flow(
    cached, talk, counted, open_socket
):
    """Only packets that pass the firewall restart the timeouts, also if one end closed the connection."""
    one, two = cached
    for host in cached:
        for state in ("established", "close_wait", "fin_wait", "last_ack"):
            host.namespace.command("sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_timeout_{state}=2")
        rule(
            host, "tcp flags & (syn | ack) == ack ct state new drop"
        )  # drops packets of a connection that the host has forgotten
    with (
        open_socket(two.container.namespace, socket.SOCK_STREAM) as listener,
        open_socket(one.container.namespace, socket.SOCK_STREAM) as client,
    ):
        listener.bind((two.container.address, talk.port))
        listener.listen()
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            exchange_for(3, client, server)
            client.shutdown(socket.SHUT_WR)
            exchange_for(3, server, client)

            assert counted[0][Outcome.CACHED_OUT] > 50
            assert counted[1][Outcome.CACHED_IN] > 50

            # After a timeout without packets, both hosts forget the connection, as without the cache.
            time.sleep(3)
            server.send(b"late")
            client.settimeout(SOON_S)
            with pytest.raises(TimeoutError):
                client.recv(4)


def exchange_for(seconds: float, source: socket.socket, sink: socket.socket) -> None:
    sink.settimeout(5)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        source.send(b"x")
        assert sink.recv(1) == b"x"
        time.sleep(0.01)


@pytest.mark.parametrize("place", [0, 1], ids=["sender", "receiver"])
def test_a_new_rule_cuts_a_flow_within_a_second(cached, talk, counted, place):
    assert all(talk.arrives() for _ in range(50))
    assert counted[0][Outcome.CACHED_OUT] > 30
    assert counted[1][Outcome.CACHED_IN] > 30

    rule(cached[place], f"udp dport {talk.port} drop")

    assert seconds_until_cut(talk) < CUT_S + SOON_S
    assert not any(talk.arrives() for _ in range(3))


def test_a_new_generation_of_the_rules_cuts_a_flow_immediately(cached, talk):
    assert all(talk.arrives() for _ in range(10))
    rule(cached[0], f"udp dport {talk.port} drop")
    permit(cached[0], generation=2)

    assert not talk.arrives()


def test_without_a_permit_each_packet_passes_through_the_firewall(cached, talk):
    one, two = cached
    assert all(talk.arrives() for _ in range(10))
    permit(one, until_ns=0)
    permit(two, protocols=CACHES_TCP)
    sender, receiver = Counted(one), Counted(two)

    assert all(talk.arrives() for _ in range(10))

    assert sender[Outcome.CACHED_OUT] == receiver[Outcome.CACHED_IN] == 0


def test_a_flow_that_the_firewall_drops_is_never_cached(cached, talk, counted):
    rule(cached[0], f"udp dport {talk.port} drop")

    assert not any(talk.arrives() for _ in range(5))
    assert counted[0][Outcome.CACHED_OUT] == 0


def test_the_first_answer_ends_a_decision_that_depends_on_the_connection_state_new(cached, talk, counted):
    """The rule passes only packets of connections without an answer."""
    rule(cached[0], "ip saddr 10.100.15.2 ct state established drop")
    assert all(talk.arrives() for _ in range(10))
    assert counted[0][Outcome.CACHED_OUT] > 5

    assert talk.arrives(source=1)

    assert not any(talk.arrives() for _ in range(3))


@pytest.mark.parametrize(
    "nat",
    [
        "type nat hook postrouting priority 100\nip saddr 10.100.15.2 snat to 10.100.15.77",
        "type nat hook prerouting priority -100\nip daddr 10.100.20.2 dnat to 10.100.20.3",
    ],
    ids=["source", "destination"],
)
def test_a_flow_whose_address_is_translated_is_never_cached(cached, talk, counted, nat):
    one, _ = cached
    one.namespace.command("nft", f"table ip n {{\nchain n {{\n{nat}\n}}\n}}")
    before = one.packets_sent("eth0")
    for _ in range(20):
        talk.sockets[0].sendto(b"x", ("10.100.20.2", talk.port))
    one.namespace.command("nft", "delete table ip n")
    assert one.packets_sent("eth0") - before >= 20

    assert counted[0][Outcome.CACHED_OUT] == 0


def test_a_marked_packet_is_never_cached(cached, talk, counted):
    rule(cached[0], f"udp dport {talk.port} meta mark set 7")

    assert all(talk.arrives() for _ in range(10))
    assert counted[0][Outcome.CACHED_OUT] == 0


def test_another_container_with_the_same_address_does_not_use_the_decision(cached, talk, open_socket):
    """The key of a flow contains the link on which its packets arrived. Rules about links take effect."""
    one, two = cached
    forger = one.add_container(last=9, link="forger")
    forger.namespace.ip(f"address add {one.container.address}/32 dev eth0")
    shortcut = replace(one.program(Role.SHORTCUT), link=forger.link)
    one.heal(one.plan(two.peer()) | State.of(shortcut))
    with open_socket(forger.namespace, socket.SOCK_DGRAM) as forging:
        forging.bind((one.container.address, talk.port))
        assert all(talk.arrives() for _ in range(10))
        counted = Counted(one)
        for _ in range(10):
            forging.sendto(b"forged", (two.container.address, talk.port))

    assert counted[Outcome.CACHED_OUT] == 0


def test_a_packet_longer_than_the_passed_packets_must_pass_the_firewall(cached, talk):
    assert all(talk.arrives() for _ in range(10))
    counted = Counted(cached[1])

    assert talk.arrives(size=500)
    assert counted[Outcome.CACHED_IN] == 0
    assert talk.arrives(size=500)
    assert counted[Outcome.CACHED_IN] == 1


def test_a_smaller_mtu_of_the_route_takes_effect_within_a_second(cached, talk):
    """The firewall passes only packets of the new size. Smaller packets of the flow bypass the firewall."""
    one, two = cached
    sender, sink = talk.sockets
    sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)  # DF, and no path MTU is cached
    assert all(talk.arrives(size=size) for size in (0, 1000) * 10)
    one.add_route(two.subnet, "mtu 600")
    try:
        sink.settimeout(SOON_S)
        began = latest = time.monotonic()
        while time.monotonic() - latest < SOON_S:
            assert latest - began < 2 * CUT_S
            sender.sendto(bytes(1000), sink.getsockname())
            sender.sendto(b"small", sink.getsockname())
            while len(sink.recv(2000)) > 5:
                latest = time.monotonic()
        counted = Counted(one)

        assert latest - began <= CUT_S
        assert all(talk.arrives() for _ in range(10))
        assert counted[Outcome.CACHED_OUT] >= 8
    finally:
        one.namespace.ip(f"route delete {two.subnet} metric 0")


def test_each_host_and_each_end_of_the_tunnel_still_decrements_the_ttl(cached, talk, counted):
    """`traceroute` shows the same hosts as without the cache, and these hosts drop a packet with a small
    TTL.
    """
    sender, sink = talk.sockets
    sink.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    seen = set()
    for _ in range(20):
        sender.sendto(b"x", sink.getsockname())
        _, ancillary, _, _ = sink.recvmsg(100, 100)
        seen.add(int.from_bytes(ancillary[0][2], "little"))
    assert counted[0][Outcome.CACHED_OUT] > 10
    assert seen == {64 - cached[0].hops}

    sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, cached[0].hops // 2)
    counted = Counted(cached[0])
    assert not talk.arrives()
    assert counted[Outcome.CACHED_OUT] == 0


def test_a_container_that_ended_gets_no_packet(cached, talk):
    """This is the last test of the module, because it deletes the container."""
    _, two = cached
    assert all(talk.arrives() for _ in range(10))
    two.namespace.ip(f"link delete {two.container.link}")
    counted = Counted(two)

    assert not talk.arrives()
    assert counted[Outcome.CACHED_IN] == 0
