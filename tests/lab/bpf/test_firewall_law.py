"""The law of the flow cache: with any rules of the firewall, the same packets arrive as without programs.

Two labs get the same random rules and the same packets. In one lab, the programs cache flows. In the other
lab, the forwarders or, with vxlan, the kernel carries the packets. The test renews the permits after each
change, as the daemon does.
`test_flow_cache.py` tests that a change takes effect within a second without a renewed permit.
"""

import random
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial

import pytest

from pyflannel.kernel.bpf.layout import Outcome
from pyflannel.lab.waiting import together, wait_until

PORTS = range(6000, 6004)
TCP_PORT = 7000
PACKETS = 6
PAUSE_S = 0.005
SILENT_PAUSES = 80
"""If no packet arrives in this number of pauses, the missing packets were dropped. A pause takes longer while
the machine is busy.
"""

A, B = "10.100.15.2", "10.100.20.2"
OVERLAY = "ip daddr 10.100.0.0/16"
"""A condition for inner packets. The tunnel's datagrams are UDP too, and in user space they pass the rules of
the underlay."""
NO_LINGER = struct.pack("ii", 1, 0)


@dataclass
class Side:
    """One of the labs: two hosts, and a UDP socket for each port in both containers."""

    hosts: list
    sockets: list[list[socket.socket]] = field(default_factory=list)

    def open(self, stack: ExitStack, open_socket) -> None:
        for host in self.hosts:
            made = [
                stack.enter_context(open_socket(host.container.namespace, socket.SOCK_DGRAM)) for _ in PORTS
            ]
            for one, port in zip(made, PORTS, strict=True):
                one.bind((host.container.address, port))
                one.setblocking(False)
            self.sockets.append(made)

    def send(self, source: int) -> None:
        """Send packets of each flow."""
        for number in range(PACKETS):
            for each, port in zip(self.sockets[source], PORTS, strict=True):
                each.sendto(b"%d %d" % (port, number), ((A, B)[1 - source], port))

    def receive(self, source: int) -> Iterator[tuple[int, bytes]]:
        """Yield the port and the content of the packets from `source` that arrived."""
        for each, port in zip(self.sockets[1 - source], PORTS, strict=True):
            with suppress(BlockingIOError, ConnectionRefusedError):
                while True:
                    yield port, each.recv(100)

    def connect(self, open_socket) -> bytes:
        """Open a connection and send data over it. Return the received bytes."""
        with (
            open_socket(self.hosts[1].container.namespace, socket.SOCK_STREAM) as listener,
            open_socket(self.hosts[0].container.namespace, socket.SOCK_STREAM) as client,
        ):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            listener.bind((B, TCP_PORT))
            listener.listen()
            listener.settimeout(0.3)
            client.settimeout(0.3)
            try:
                client.connect((B, TCP_PORT))
                accepted, _ = listener.accept()
            except OSError:
                return b"not connected"
            received = b""
            accepted.settimeout(0.3)
            with accepted, suppress(TimeoutError):
                for number in range(10):
                    client.send(b"%d" % number)
                    received += accepted.recv(100)
            return received

    def change(self, commands: list[tuple[int, str]]) -> None:
        for place, command in commands:
            words = ["nft", command[4:]] if command.startswith("nft ") else ["sh", "-c", command]
            self.hosts[place].namespace.command(*words)


def exchange(sides: Sequence[Side], source: int) -> list[set[tuple[int, bytes]]]:
    """Send packets of each flow in both labs; return the packets that arrive in each."""
    for side in sides:
        side.send(source)
    arrived: list[set[tuple[int, bytes]]] = [set() for _ in sides]
    silent_pauses = 0
    while silent_pauses < SILENT_PAUSES and any(len(some) < PACKETS * len(PORTS) for some in arrived):
        before = sum(map(len, arrived))
        for side, some in zip(sides, arrived, strict=True):
            some.update(side.receive(source))
        silent_pauses = silent_pauses + 1 if sum(map(len, arrived)) == before else 0
        time.sleep(PAUSE_S)
    return arrived


BASE = """
table inet t {
    set blocked {
        type inet_service
    }
    chain prerouting {
        type filter hook prerouting priority -10
    }
    chain forward {
        type filter hook forward priority 1
        tcp dport @blocked drop
        udp dport @blocked drop
    }
    chain postrouting {
        type filter hook postrouting priority 10
    }
}
table ip n {
    chain prerouting {
        type nat hook prerouting priority -100
    }
    chain postrouting {
        type nat hook postrouting priority 100
    }
}
"""
RESET = (
    "iptables -F FORWARD; iptables -P FORWARD ACCEPT; nft flush ruleset; nft -f - <<'END'\n" + BASE + "END"
)


def draw_rule(draw: random.Random, device: str) -> str:
    """Return a command that changes the firewall of a host with this device of the tunnel."""
    port, other = draw.choice(PORTS), draw.choice(PORTS)
    source, destination = draw.choice([(A, B), (B, A)])
    verdict = draw.choice(["drop", "accept", "drop", "reject"])
    chain = draw.choice(["forward", "forward", "postrouting", "prerouting"])
    if chain != "forward" and verdict == "reject":
        verdict = "drop"
    link = draw.choice(
        ["iifname docker0", f"iifname {device}", f"{OVERLAY} meta l4proto udp", "meta l4proto tcp"]
    )
    matches = [
        f"udp dport {port}",
        f"ip saddr {source} ip daddr {destination}",
        f"ip saddr {source} udp sport {port}",
        f"tcp dport {TCP_PORT}",
        link,
        f"iifname docker0 udp dport {{ {port}, {other} }}",
        f"ct state {draw.choice(['new', 'established', 'new,established', 'invalid'])} ip saddr {source}",
        f"meta mark 7 udp dport {port}",
        f"ct mark 3 ip saddr {source}",
        "tcp flags & (fin|syn|rst|ack) == syn",
        f"ct direction original udp dport {port}",
    ]
    counting = [
        f"udp dport {port} numgen inc mod 2 0",
        f"udp dport {port} quota over 150 bytes",
        f"udp dport {port} meta length > 30",
        f"ip ttl 61 udp dport {port}",
    ]
    rules = [
        *[f"nft add rule inet t {chain} {match} {verdict}" for match in matches],
        *[f"nft insert rule inet t forward {match} {draw.choice(['drop', 'accept'])}" for match in counting],
        f"nft insert rule inet t prerouting udp dport {port} meta mark set 7",
        f"nft insert rule inet t prerouting ip saddr {source} ct mark set 3",
        f"nft insert rule inet t postrouting udp dport {port} meta mark set 0",
        f"nft add rule ip n prerouting udp dport {port} dnat to {destination}:{other}",
        f"nft add rule ip n prerouting tcp dport {TCP_PORT} dnat to {B}:{TCP_PORT}",
        f"nft add rule ip n postrouting udp dport {port} snat to {source}:{other}",
        f"nft add rule ip n postrouting oifname docker0 udp dport {port} masquerade",
        f"nft add element inet t blocked {{ {draw.choice([port, TCP_PORT])} }}",
        f"iptables -A FORWARD -p udp --dport {port} -m conntrack --ctstate NEW -j DROP",
        f"iptables -I FORWARD -s {source} -p udp -m multiport --dports {port},{other} -j DROP",
        f"iptables -I FORWARD -p udp --dport {port} -m statistic --mode nth --every 3 --packet 0 -j DROP",
        f"iptables -I FORWARD -p udp --dport {port} -j MARK --set-mark 7",
        "iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -P FORWARD DROP",
        f"iptables -I FORWARD -p udp --dport {port} -j REJECT",
    ]
    return draw.choice(rules)


@pytest.fixture(scope="module", params=["udp", "vxlan"])
def sides(request, make_shared_namespace, tmp_path_factory, make_hosts):
    """The lab with the flow cache, and the lab without programs."""
    with ExitStack() as labs:
        cached, plain = (
            labs.enter_context(
                make_hosts(make_shared_namespace, tmp_path_factory.mktemp(name), request.param)
            )
            for name in ("cached", "plain")
        )
        for host, peer in (cached, cached[::-1]):
            host.caches_flows = True
            host.heal(host.plan(peer.peer()))
        if request.param == "udp":
            plain[0].start_forwarder(plain[1])
            plain[1].start_forwarder(plain[0])
        for host in (*cached, *plain):
            host.namespace.command("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=1")
        for pair in (cached, plain):
            wait_until(
                lambda pair=pair: pair[0].container.ping(B, count=1)[0] == 1,
                what="the containers reach each other",
                deadline_s=30,
            )
        yield Side(cached), Side(plain)


def renew(host) -> tuple[str, ...]:
    """Renew the permits as the daemon does. Return the reasons why flows are not cached."""
    peer = next(one for one in host.others)

    async def work(target):
        await target.snapshot(host.plan(peer.peer()))
        return await target.renew()

    return host.act(work)


@pytest.mark.timeout(1800)
def test_the_same_packets_arrive_with_any_rules(sides, open_socket, long_run):
    cached, _ = sides
    cached.hosts[0].others, cached.hosts[1].others = [cached.hosts[1]], [cached.hosts[0]]
    draw = random.Random(None if long_run else 17)
    before = cached.hosts[0].counts().get(Outcome.CACHED_OUT, 0)
    for _ in range(100 if long_run else 2):
        seed = draw.getrandbits(32)
        example = random.Random(seed)
        history = [(place, RESET) for place in (0, 1)]
        for side in sides:
            side.change(history)
        with ExitStack() as stack:
            for side in sides:
                side.sockets.clear()
                side.open(stack, open_socket)
            for _ in range(3):
                changes = [
                    (example.randrange(2), draw_rule(example, cached.hosts[0].device))
                    for _ in range(example.randint(0, 3))
                ]
                history += changes
                for side in sides:
                    side.change(changes)
                reasons = [renew(host) for host in cached.hosts]
                for source in (0, 1, 0, 1):
                    found, expected = exchange(sides, source)
                    assert found == expected, (seed, source, reasons, changes, history)
                streams = together([partial(side.connect, open_socket) for side in sides])
                assert streams[0] == streams[1], (seed, reasons, changes, history)

    assert cached.hosts[0].counts()[Outcome.CACHED_OUT] - before > 10
