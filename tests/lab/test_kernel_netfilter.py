"""The evaluation of netfilter's rules is compared with the kernel: random rules, and one packet each."""

import contextlib
import itertools
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from msgspec.structs import replace

from pyflannel.kernel.filters.ruleset import policy_enforcer, read_ruleset
from pyflannel.model.netfilter import TCP, UDP, Judgement, Packet
from pyflannel.model.network_config import Family, IpAddress
from pyflannel.plan.netfilter import IN, OUT, judge

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

NEARS: dict[Family, IpAddress] = {4: ip_address("10.77.0.1"), 6: ip_address("fd77::1")}
FARS: dict[Family, IpAddress] = {4: ip_address("10.77.0.2"), 6: ip_address("fd77::2")}
LENGTHS: dict[Family, int] = {4: 36, 6: 56}
IPTABLES: dict[Family, str] = {4: "iptables", 6: "ip6tables"}
PORT, OTHER_PORT, SENTINEL = 8472, 9999, 7


_EMPTY = (
    "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
    "*mangle\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
    "*filter\n:INPUT ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
)


class Wire:
    """Two namespaces with a veth between them; rules are in the first.

    If the wire has a bridge, the veth is a port of the bridge, and the bridge has the address.
    """

    def __init__(self, make_namespace: Callable, family: Family, *, has_bridge: bool = False) -> None:
        self.family, self.near, self.far = family, NEARS[family], FARS[family]
        self.host, self.peer = make_namespace(), make_namespace()
        self.link, self.port = ("br7", "eth0") if has_bridge else ("eth0", "")
        self.host.ip(f"link add eth0 type veth peer name eth0 netns {self.peer.name}")
        if has_bridge:
            self.host.ip("link add br7 type bridge")
            self.host.ip("link set eth0 master br7 up")
        length, nodad = (24, "") if family == 4 else (64, " nodad")
        for namespace, address, link in ((self.host, self.near, self.link), (self.peer, self.far, "eth0")):
            namespace.ip(f"address add {address}/{length} dev {link}{nodad}")
            namespace.ip(f"link set {link} up")
        self.sockets: dict[tuple[str, int], socket.socket] = {}
        for namespace, address in ((self.host, self.near), (self.peer, self.far)):
            for port in (PORT, SENTINEL):
                self.sockets[namespace.name, port] = self._socket(namespace, (str(address), port))
        self._sources = itertools.count(20000)
        self.host.command("ping", "-c1", "-W5", str(self.far))
        # A rule for all IPv6 packets drops neighbour discovery too.
        for one, other, link in ((self.host, self.far, self.link), (self.peer, self.near, "eth0")):
            mac = one.command("ip", "neighbour", "show", str(other)).split("lladdr ")[1].split()[0]
            one.ip(f"neighbour replace {other} lladdr {mac} dev {link} nud permanent")

    def _socket(self, namespace, address: tuple[str, int]) -> socket.socket:
        async def opened() -> socket.socket:
            made = socket.socket(socket.AF_INET if self.family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
            made.bind(address)
            made.settimeout(5)
            return made

        return namespace.run(opened)

    def close(self) -> None:
        for one in self.sockets.values():
            one.close()

    def arrives(self, *, is_incoming: bool, source_port: int) -> bool:
        """Send a packet, then a sentinel that every rule accepts; return whether the packet arrives."""
        sender, receiver = (self.peer, self.host) if is_incoming else (self.host, self.peer)
        own, to = (self.far, self.near) if is_incoming else (self.near, self.far)
        source = self._socket(sender, (str(own), source_port))
        target, sentinel = self.sockets[receiver.name, PORT], self.sockets[receiver.name, SENTINEL]
        token = os.urandom(8)
        with source:
            with contextlib.suppress(PermissionError):
                source.sendto(token, (str(to), PORT))
            self.sockets[sender.name, SENTINEL].sendto(token, (str(to), SENTINEL))
        while sentinel.recv(100) != token:
            pass
        target.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                if target.recv(100) == token:
                    return True
        return False

    def packet(self, *, is_incoming: bool, source_port: int) -> Packet:
        return Packet(
            source=self.far if is_incoming else self.near,
            destination=self.near if is_incoming else self.far,
            protocol=UDP,
            source_port=source_port,
            destination_port=PORT,
            length=LENGTHS[self.family],
            iif=self.link if is_incoming else "",
            oif="" if is_incoming else self.link,
            in_port=self.port if is_incoming else "",
            out_port="" if is_incoming else self.port,
            back_link=self.link if is_incoming else None,
        )

    def judged(self, *, is_incoming: bool, source_port: int) -> Judgement:
        ruleset = self.host.run(lambda: read_ruleset([self.family])).ruleset
        packet = self.packet(is_incoming=is_incoming, source_port=source_port)
        return judge(packet, ruleset, IN if is_incoming else OUT)

    def clear(self) -> None:
        self.host.command("nft", "flush", "ruleset")
        self.host.command(f"{IPTABLES[self.family]}-legacy-restore", given=_EMPTY)


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def wire(make_namespace, request) -> Iterator[Wire]:
    with contextlib.closing(Wire(make_namespace, request.param)) as one:
        yield one


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def bridged_wire(make_namespace, request) -> Iterator[Wire]:
    with contextlib.closing(Wire(make_namespace, request.param, has_bridge=True)) as one:
        yield one


def ends_of(family: Family, is_incoming: bool) -> tuple[IpAddress, IpAddress]:
    """Return source and destination of the packet."""
    near, far = NEARS[family], FARS[family]
    return (far, near) if is_incoming else (near, far)


_IN_IPV6 = {
    "ip saddr": "ip6 saddr",
    "ip daddr": "ip6 daddr",
    "ip protocol": "ip6 nexthdr",
    "10.0.0.0/8": "fd00::/8",
    "192.168.0.0/16": "2001:db8::/32",
    "/24": "/64",
    "icmp": "ipv6-icmp",
    "nfproto ipv4": "nfproto ipv6",
    "1.2.3.4": "2001:db8::4",
    "{ arp, ip }": "{ arp, ip6 }",
    "type ip": "type ip6",
    "type != ip": "type != ip6",
    "meta protocol ip": "meta protocol ip6",
}


def in_family(condition: str, family: Family) -> str:
    """Return the condition in a family; OTHER is replaced by the header of the other one."""
    if family == 4:
        other = "ip6 {} ::1"
    else:
        other = "ip {} 192.0.2.1"
        for old, new in _IN_IPV6.items():
            condition = condition.replace(old, new)
    condition = condition.replace("OTHER saddr", other.format("saddr"))
    return condition.replace("OTHER daddr !=", other.format("daddr !="))


_ROUTES_BACK = [
    "fib saddr . iif oif missing",
    "fib saddr . iif oif exists",
    "fib saddr . mark oif 0",
    'fib saddr oifname != "eth0"',
    'fib saddr . iif oifname "eth0"',
]


def nft_condition(draw: random.Random, is_incoming: bool, family: Family, hook: str) -> str:
    source, destination = ends_of(family, is_incoming)
    name = "iifname" if is_incoming else "oifname"
    condition = draw.choice(
        [
            "",
            "OTHER saddr",
            "OTHER daddr !=",
            f"ip saddr {source}",
            f"ip saddr != {source}",
            "ip daddr { 10.0.0.0/8, 192.168.0.0/16 }",
            f"ip daddr != {destination}/24",
            f"udp dport {PORT}",
            f"udp dport != {PORT}",
            f"udp dport {{ {OTHER_PORT}, {PORT - 5}-{PORT + 5} }}",
            f"udp sport > {draw.choice([1024, 60000])}",
            "tcp dport 22",
            "meta l4proto udp",
            "meta l4proto { tcp, icmp }",
            "ip protocol udp",
            f'{name} "eth0"',
            f'{name} "et*"',
            f'{name} != "eth*"',
            "meta nfproto ipv4",
            "ct state new",
            "ct state established,related",
            "ct state != new",
            "ct state { new, untracked }",
            "fib daddr type local",
            "meta mark 0x5",
            "meta mark and 0x1 == 0x1",
            "meta mark set 0x5",
            "meta length < 100",
            "ct direction original",
            "ct direction reply",
            "numgen random mod 10 < 5",
            f"ip saddr . udp dport {{ {source} . {PORT}, 1.2.3.4 . 5 }}",
            "ip saddr @known",
            "counter",
            "ct status dnat",
            "limit rate 1000/second",
            *(_ROUTES_BACK if is_incoming and hook == "prerouting" else []),
        ]
    )
    return in_family(condition, family)


def nft_verdict(draw: random.Random, hook: str, targets: list[str]) -> str:
    choices = ["accept", "drop", "drop", "return", ""]
    if hook in ("input", "output"):
        choices += ["reject"]
    choices += [f"{word} {target}" for target in targets for word in ("jump", "goto")]
    choices += [f"udp dport vmap {{ {PORT} : drop, {OTHER_PORT} : accept }}"]
    return draw.choice(choices)


def nft_rules(draw: random.Random, is_incoming: bool, family: Family) -> str:
    """Return a table with base chains at random hooks and priorities."""
    hook = draw.choice(["prerouting", "input"] if is_incoming else ["output", "postrouting"])
    table = draw.choice(["ip" if family == 4 else "ip6", "inet"])
    first = f"udp dport {SENTINEL} accept"

    def rules(targets: list[str]) -> str:
        count = draw.randint(0, 3)
        lines = [
            " ".join(
                [
                    *(nft_condition(draw, is_incoming, family, hook) for _ in range(draw.randint(1, 2))),
                    nft_verdict(draw, hook, targets),
                ]
            ).strip()
            for _ in range(count)
        ]
        return "\n".join([first, *filter(None, lines)])

    policy, priority = draw.choice(["accept", "drop"]), draw.choice([-300, -10, 0, 10])
    member = draw.choice(ends_of(family, is_incoming))
    return f"""table {table} t{draw.randint(0, 999)} {{
        set known {{ type ipv{family}_addr; elements = {{ {member} }} ; }}
        chain c2 {{
            {rules([])}
        }}
        chain c1 {{
            {rules(["c2"])}
        }}
        chain base {{
            type filter hook {hook} priority {priority}; policy {policy};
            {rules(["c1", "c2"])}
        }}
    }}"""


def bridge_rules(draw: random.Random, is_incoming: bool, family: Family) -> str:
    """Return a table of the family bridge with a base chain at a random hook."""
    hooks = ["prerouting", "input", "forward"] if is_incoming else ["output", "postrouting", "forward"]
    source, _ = ends_of(family, is_incoming)
    conditions = [
        "",
        "OTHER daddr !=",
        f"ip saddr {source}",
        f"ip saddr != {source}",
        f"udp dport {PORT}",
        "ether type ip",
        "ether type { arp, ip }",
        "ether type arp",
        "ether type != ip",
        "meta protocol ip",
        "ip protocol udp",
        'iifname "eth0"',
        'iifname "br7"',
        'oifname "eth*"',
        'oifname "br7"',
        "vlan id 5",
        "OTHER saddr",
        "arp operation request",
        "meta mark set 0x5",
        "limit rate 1000/second",
    ]
    conditions = [in_family(one, family) for one in conditions]
    rules = [
        f"{draw.choice(conditions)} {draw.choice(conditions)} {draw.choice(['accept', 'drop', 'drop', ''])}"
        for _ in range(draw.randint(1, 3))
    ]
    lines = [f"udp dport {SENTINEL} accept", "arp operation { request, reply } accept"]
    lines += [one for one in rules if one.strip()]
    hook, priority = draw.choice(hooks), draw.choice([-300, -200, 0, 10])
    policy, text = draw.choice(["accept", "drop"]), "\n".join(lines)
    return f"""table bridge t{draw.randint(0, 999)} {{
        chain base {{
            type filter hook {hook} priority {priority}; policy {policy};
            {text}
        }}
    }}"""


def iptables_rules(draw: random.Random, is_incoming: bool, family: Family) -> str:
    """Return the input of iptables-restore for one table."""
    table = draw.choice(["raw", "mangle", "filter"])
    chains = ["PREROUTING"] if is_incoming else ["OUTPUT"]
    if table != "raw":
        chains += ["INPUT"] if is_incoming else []
    chain = draw.choice(chains if table != "filter" else [chains[-1] if is_incoming else "OUTPUT"])
    source, _ = ends_of(family, is_incoming)
    device = "-i" if is_incoming else "-o"
    conditions = [
        "",
        f"-s {source}",
        f"! -s {source}",
        "-d 10.0.0.0/8",
        "-p udp",
        "! -p udp",
        "-p tcp --dport 22",
        f"-p udp --dport {PORT}",
        f"-p udp ! --dport {PORT}",
        "-p udp --dport 8000:9000",
        f"-p udp -m multiport --dports {OTHER_PORT},{PORT}",
        f"{device} eth0",
        f"! {device} eth+",
        "-m mark --mark 0x5",
        "-m mark ! --mark 0x1/0x1",
        '-m comment --comment "-j ACCEPT"',
        f"-m iprange --src-range {source}-{source}",
        "-m addrtype --dst-type LOCAL" if chain in ("PREROUTING", "INPUT") else "",
        "-m statistic --mode random --probability 0.5",
        f"-m length --length :{LENGTHS[family]}",
        f"-m length ! --length {LENGTHS[family]}",
    ]
    if table != "raw":
        conditions += ["-m conntrack --ctstate NEW", "-m conntrack --ctstate RELATED,ESTABLISHED"]
        conditions += ["-m conntrack --ctdir ORIGINAL", "-m conntrack --ctdir REPLY"]
    verdicts = ["ACCEPT", "DROP", "DROP", "RETURN", "sub", "LOG"]
    if table == "mangle":
        verdicts += ["MARK --set-xmark 0x5/0xff"]
    if table == "filter":
        verdicts += ["REJECT"]

    def rule(where: str, targets: list[str]) -> str:
        return in_family(f"-A {where} {draw.choice(conditions)} -j {draw.choice(targets)}", family)

    flat = [one for one in verdicts if one != "sub"]
    lines = [f"-I {chain} -p udp --dport {SENTINEL} -j ACCEPT"]
    lines += [rule("sub", flat) for _ in range(draw.randint(0, 2))]
    lines += [rule(chain, verdicts) for _ in range(draw.randint(0, 3))]
    policy = draw.choice(["ACCEPT", "DROP"])
    return f"*{table}\n:{chain} {policy} [0:0]\n:sub - [0:0]\n" + "\n".join(lines) + "\nCOMMIT\n"


def install(wire: Wire, draw: random.Random, is_incoming: bool) -> str:
    """Install random rules and return them."""
    installed = []
    program = IPTABLES[wire.family]
    first = ["nft", "nft", program, f"{program}-legacy"] if not wire.port else ["bridge"]
    for kinds in (first, ["nft", program])[: draw.randint(1, 2)]:
        kind = draw.choice(kinds)
        while True:
            with contextlib.suppress(AssertionError):  # contradicting conditions are refused: draw again
                if kind in ("nft", "bridge"):
                    rules = (nft_rules if kind == "nft" else bridge_rules)(draw, is_incoming, wire.family)
                    wire.host.command("nft", "-f", "-", given=rules)
                else:
                    rules = iptables_rules(draw, is_incoming, wire.family)
                    wire.host.command(f"{kind}-restore", "--noflush", given=rules)
                break
        installed.append(f"{kind}:\n{rules}")
    return "\n".join(installed)


DRAWS, DRAWS_LONG = 25, 1000


def compare(wire: Wire, draws: int) -> None:
    """Compare the judgements of random rules with the kernel."""
    counts: dict[str, int] = {}
    for number in range(draws):
        draw = random.Random(number)
        is_incoming = draw.random() < 0.5
        wire.clear()
        rules = install(wire, draw, is_incoming)
        port = draw.choice([0, 40000]) or next(wire._sources)
        if port == 40000:
            port = 40000 + number

        judgement = wire.judged(is_incoming=is_incoming, source_port=port)
        arrives = wire.arrives(is_incoming=is_incoming, source_port=port)

        counts[judgement.kind] = counts.get(judgement.kind, 0) + 1
        if judgement.kind in ("sample", "unknown"):
            assert "random" in rules or "limit" in rules, f"draw {number}: {judgement}\n{rules}"
        else:
            assert arrives == (judgement.kind == "accept"), f"draw {number}: {judgement}\n{rules}"
    wire.clear()
    assert counts["accept"] >= draws // 8
    assert counts["drop"] >= draws // 8


@pytest.mark.timeout(1800)
def test_the_evaluation_of_rules_agrees_with_the_kernel(wire: Wire, long_run: bool) -> None:
    """A judgement is unknown only where a rule has a condition that cannot be evaluated."""
    compare(wire, DRAWS_LONG if long_run else DRAWS)


@pytest.mark.timeout(1800)
def test_the_evaluation_of_rules_at_a_bridge_agrees_with_the_kernel(
    bridged_wire: Wire, long_run: bool
) -> None:
    compare(bridged_wire, DRAWS_LONG if long_run else DRAWS)


FLAGS = [
    "-p tcp --syn",
    "-p tcp ! --syn",
    "-p tcp --tcp-flags ALL NONE",
    "-p tcp --tcp-flags ALL ALL",
    "-p tcp ! --tcp-flags FIN,RST FIN,RST",
    "-p tcp --tcp-flags SYN,ACK SYN,ACK",
    "tcp flags syn",
    "tcp flags ! syn,rst",
    "tcp flags syn,ack",
    "tcp flags == syn",
    "tcp flags != syn",
    "tcp flags & (fin | syn | rst | ack) == syn",
    "tcp flags & (syn | ack) != (syn | ack)",
    "tcp flags { syn, ack, fin | ack }",
    "tcp flags & (syn | ack) == { syn, syn | ack }",
    "tcp flags & rst != 0",
]


@pytest.mark.parametrize("condition", FLAGS)
def test_the_flags_of_tcp_are_compared_as_in_the_kernel(wire: Wire, condition: str) -> None:
    """Segments with all combinations of the flags are sent to a port without a socket. A raw socket receives
    the segments that pass INPUT.
    """

    async def opened() -> socket.socket:
        family = socket.AF_INET if wire.family == 4 else socket.AF_INET6
        return socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)

    if condition.startswith("-p"):
        wire.host.command(*f"{IPTABLES[wire.family]} -A INPUT {condition} -j DROP".split())
    else:
        rules = (
            f"table inet drawn {{ chain input {{ type filter hook input priority 0; {condition} drop; }}; }}"
        )
        wire.host.command("nft", rules)
    ruleset = wire.host.run(lambda: read_ruleset([wire.family])).ruleset
    usual = replace(wire.packet(is_incoming=True, source_port=40000), protocol=TCP)
    with wire.peer.run(opened) as sender, wire.host.run(opened) as receiver:
        receiver.settimeout(5)
        for flags in range(64):
            sender.sendto(segment(flags, PORT), (str(wire.near), 0))
        wire.host.command("nft", "flush", "ruleset")
        sender.sendto(segment(0, SENTINEL), (str(wire.near), 0))
        arrived = set()
        while (received := receiver.recv(100)[-20:])[2:4] != SENTINEL.to_bytes(2):
            if received[2:4] == PORT.to_bytes(2):
                arrived.add(received[13])

    accepted = {
        flags for flags in range(64) if judge(replace(usual, tcp_flags=flags), ruleset, IN).kind == "accept"
    }
    assert accepted == arrived
    assert 0 < len(arrived) < 64


def segment(flags: int, port: int) -> bytes:
    """Return a TCP header. Source: RFC 9293, 3.1."""
    return struct.pack("!HHIIBBHHH", 40000, port, 0, 0, 5 << 4, flags, 0, 0, 0)


def test_programs_that_enforce_network_policies_are_recognised(make_namespace: Callable) -> None:
    host = make_namespace()

    assert host.run(policy_enforcer) is None
    for command, program in (
        ("iptables-nft -N cali-FORWARD", "Calico"),
        ("iptables-nft -N KUBE-ROUTER-FORWARD", "kube-router"),
        ("iptables-nft -N CILIUM_FORWARD", "Cilium"),
        ("nft add table inet kindnet-network-policies", "kindnet"),
        ("nft add table inet kube-network-policies", "kube-network-policies"),
    ):
        host.command("nft", "flush", "ruleset")
        host.command(*command.split())
        assert host.run(policy_enforcer) == program
