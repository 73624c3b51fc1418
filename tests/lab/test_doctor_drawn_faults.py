"""flannelctl doctor names faults that are drawn at random: table, chain, family, direction, device, value."""

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together
from testlab.documents import read_document

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DRAWS, DRAWS_LONG = 14, 200
PAIRS, PAIRS_LONG = 5, 110
NETWORK = "10.100.0.0/16"


class Fault(NamedTuple):
    """The commands that cause a fault and end it, and the code of its finding."""

    do: str
    undo: str
    code: str


class Pair(NamedTuple):
    """The examined host, and its peer."""

    host: Host
    peer: Host


@pytest.fixture(scope="module")
def pair(overlay) -> Pair:
    """Two hosts of a vxlan network on one link, each with a bridge as Docker would have."""
    overlay.set_backend("vxlan")
    hosts = Pair(overlay.hosts["docker1"], overlay.hosts["docker2"])
    together([lambda host=host: overlay.join(host) for host in hosts])
    overlay.settle(*hosts)
    for host in hosts:
        batch = (
            f"link add br7 type bridge\nlink set br7 up\naddress add {host.gateway()} dev br7\n"
            "link add port7 mtu 1450 type veth peer name inside7\nlink set port7 master br7\n"
        )
        host.run(["ip", "-batch", "-"], text=batch)
    return hosts


def some_of(draw: random.Random, *texts: str) -> str:
    return " ".join(text for text in texts if draw.random() < 0.5)


def tunnel_by_iptables(draw: random.Random, pair: Pair) -> Fault:
    program = draw.choice(["iptables", "iptables-legacy"])
    is_in = draw.random() < 0.5
    table, chain = draw.choice(
        [("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "INPUT"), ("filter", "INPUT")]
        if is_in
        else [("raw", "OUTPUT"), ("mangle", "POSTROUTING"), ("filter", "OUTPUT")]
    )
    address = f"-s {pair.peer.address}" if is_in else f"-d {pair.peer.address}"
    device = "-i eth0" if is_in else "-o eth0"
    ports = draw.choice(["--dport 8472", "--dport 8000:9000", "-m multiport --dports 53,8472"])
    target = draw.choice(["DROP", "REJECT"] if table == "filter" else ["DROP"])
    rule = f"{some_of(draw, address, device)} -p udp {ports} -j {target}"
    if draw.random() < 0.5:  # in a chain of its own
        place = f"{program} -t {table}"
        do = f"{place} -N mine; {place} -A mine {rule}; {place} -I {chain} -j mine"
        undo = f"{place} -D {chain} -j mine; {place} -F mine; {place} -X mine"
    else:
        do, undo = (f"{program} -t {table} {option} {chain} {rule}" for option in ("-I", "-D"))
    return Fault(do, undo, "tunnel-dropped" if is_in else "tunnel-not-sent")


def tunnel_by_nft(draw: random.Random, pair: Pair) -> Fault:
    is_in = draw.random() < 0.5
    hook = draw.choice(["prerouting", "input"] if is_in else ["output", "postrouting"])
    family = draw.choice(["ip", "inet"])
    base = f"type filter hook {hook} priority {draw.choice([-350, -150, 0, 50])}"
    if is_in and draw.random() < 0.25:
        family, base = "netdev", "type filter hook ingress device eth0 priority 0"
    address = f"ip saddr {pair.peer.address}" if is_in else f"ip daddr {pair.peer.address}"
    ports = draw.choice(["udp dport 8472", "udp dport { 53, 8472 }", "meta l4proto udp th dport 8472"])
    verdict = draw.choice(
        ["drop", "reject"] if hook in ("input", "output") and family != "netdev" else ["drop"]
    )
    text = f"{some_of(draw, address)} {ports} counter {verdict}"
    table = f"{family} fw{draw.randint(0, 99)}"
    do = f"nft 'table {table} {{ chain c {{ {base}; {text}; }}; }}'"
    return Fault(do, f"nft delete table {table}", "tunnel-dropped" if is_in else "tunnel-not-sent")


def default_deny(draw: random.Random, pair: Pair) -> Fault:
    """A firewall that accepts only replies and ICMP."""
    program = draw.choice(["iptables", "iptables-legacy"])
    accept = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    last = draw.choice([f"{program} -P INPUT DROP", f"{program} -A INPUT -j REJECT"])
    accepted = (accept, "-p icmp -j ACCEPT", "-i lo -j ACCEPT")
    do = "; ".join(f"{program} -A INPUT {rule}" for rule in accepted)
    return Fault(f"{do}; {last}", f"{program} -P INPUT ACCEPT; {program} -F INPUT", "tunnel-dropped")


def forward_by_iptables(draw: random.Random, pair: Pair) -> Fault:
    program = draw.choice(["iptables", "iptables-legacy"])
    table = draw.choice(["filter", "mangle"])
    target = draw.choice(["DROP", "REJECT"] if table == "filter" else ["DROP"])
    # flanneld moves its accept before a rule of the filter table that decides for every packet.
    every = [""] if table == "mangle" else []
    match = draw.choice(
        [*every, "-i br7", "-o br7", "-o flannel.1", f"-s {NETWORK}", f"-d {pair.host.lease()}"]
    )
    do, undo = (f"{program} -t {table} {option} FORWARD {match} -j {target}" for option in ("-I", "-D"))
    return Fault(do, undo, "forward-dropped")


def forward_by_nft(draw: random.Random, pair: Pair) -> Fault:
    family, table = draw.choice(["ip", "inet"]), f"fw{draw.randint(0, 99)}"
    base = f"type filter hook forward priority {draw.choice([-10, 0, 10])}"
    rule = draw.choice(
        ["policy drop", "reject", 'iifname "flannel.1" drop', f"ip daddr {pair.peer.lease()} drop"]
    )
    do = f"nft 'table {family} {table} {{ chain c {{ {base}; {rule}; }}; }}'"
    return Fault(do, f"nft delete table {family} {table}", "forward-dropped")


def forward_by_bridge(draw: random.Random, pair: Pair) -> Fault:
    """A rule for the frames of containers at the bridge."""
    is_in = draw.random() < 0.5
    hook = draw.choice(["prerouting", "input"] if is_in else ["output", "postrouting"])
    base = f"type filter hook {hook} priority {draw.choice([-300, -200, 0, 10])}"
    device = f"{'iifname' if is_in else 'oifname'} {draw.choice(['port7', 'port*'])}"
    address = f"ip {'saddr' if is_in else 'daddr'} {pair.host.lease()}"
    text = f"{some_of(draw, device, 'ether type ip', address)} counter drop"
    table = f"bridge fw{draw.randint(0, 99)}"
    do = f"nft 'table {table} {{ chain c {{ {base}; {text}; }}; }}'"
    return Fault(do, f"nft delete table {table}", "forward-dropped")


def asymmetric_way(draw: random.Random, pair: Pair) -> Fault:
    name = draw.choice(["eth0", "all"])
    before = f"sysctl -qw net/ipv4/conf/{name}/rp_filter"
    do = f"ip link add way type veth peer yaw; ip link set way up; ip link set yaw up; {before}=1"
    route = f"ip route add {pair.peer.address} dev way"
    return Fault(f"{do}; {route}", f"ip link delete way; {before}=0", "source-refused")


def policy_rule(draw: random.Random, pair: Pair) -> Fault:
    table, priority = draw.randint(1000, 2000), draw.randint(1, 30000)
    to = draw.choice([NETWORK, str(pair.peer.lease())])
    route = draw.choice(["blackhole default", f"default via {pair.peer.address}"])
    do = f"ip route add {route} table {table}; ip rule add to {to} lookup {table} priority {priority}"
    return Fault(do, f"ip rule delete priority {priority}; ip route flush table {table}", "policy-rule")


def masquerade(draw: random.Random, pair: Pair) -> Fault:
    match = draw.choice([f"-s {pair.host.lease()} ! -o br7", "-o flannel.1", f"-s {NETWORK}"])
    do, undo = (f"iptables -t nat {option} POSTROUTING {match} -j MASQUERADE" for option in ("-I", "-D"))
    return Fault(do, undo, "source-changed")


def ipsec_block(draw: random.Random, pair: Pair) -> Fault:
    """A policy against tunnel packets, or against those of containers."""
    is_in = draw.random() < 0.5
    ends = (f"{pair.host.address}/32", f"{pair.peer.address}/32")
    source, destination = reversed(ends) if is_in else ends
    selector = f"src {source} dst {draw.choice([destination, '0.0.0.0/0'])}"
    selector += f" {some_of(draw, 'proto udp dport 8472')} dir {'in' if is_in else 'out'}"
    if draw.random() < 0.25:
        selector = f"src {NETWORK} dst {NETWORK} dir {draw.choice(['fwd', 'out'])}"
    do = f"ip xfrm policy add {selector} priority {draw.randint(0, 5000)} action block"
    return Fault(do, f"ip xfrm policy delete {selector}", "ipsec-block")


def bridge_down(draw: random.Random, pair: Pair) -> Fault:
    return Fault("ip link set br7 down", "ip link set br7 up", "bridge-down")


def overlay_address(draw: random.Random, pair: Pair) -> Fault:
    address = pair.peer.lease().network_address + draw.randint(1, 14)
    do = f"ip link add elsewhere type veth peer erehwesle; ip address add {address}/32 dev elsewhere"
    return Fault(do, "ip link delete elsewhere", "overlay-address")


def forwarding_off(draw: random.Random, pair: Pair) -> Fault:
    link = draw.choice(["br7", "flannel.1", None])
    setting = f"sysctl -qw net/ipv4/{f'conf/{link}/forwarding' if link else 'ip_forward'}"
    return Fault(f"{setting}=0", f"{setting}=1", "forwarding-off")


def other_route(draw: random.Random, pair: Pair) -> Fault:
    """A route to a part of the peer's subnet, which the kernel prefers."""
    part = next(pair.peer.lease().subnets(prefixlen_diff=1))
    to = draw.choice([f"via {pair.peer.address}", "dev br7"])
    return Fault(f"ip route add {part} {to}", f"ip route del {part}", "unplanned-route")


KINDS: list[Callable[[random.Random, Pair], Fault]] = [
    tunnel_by_iptables,
    tunnel_by_nft,
    default_deny,
    forward_by_iptables,
    forward_by_nft,
    forward_by_bridge,
    asymmetric_way,
    policy_rule,
    masquerade,
    ipsec_block,
    bridge_down,
    overlay_address,
    forwarding_off,
    other_route,
]
_WARNINGS = frozenset({"source-changed"})


def harmless(draw: random.Random) -> tuple[str, str]:
    """Return commands that add and remove a rule which stops no packet of the overlay."""
    rule = draw.choice(
        [
            "INPUT -p tcp --dport 9999 -j DROP",
            "INPUT -p udp --dport 8471 -j REJECT",
            "FORWARD -s 192.0.2.0/24 -j DROP",
            "OUTPUT -d 192.0.2.7 -p udp --dport 8472 -j DROP",
            "INPUT -m conntrack --ctstate INVALID -j DROP",
        ]
    )
    return f"iptables -I {rule}", f"iptables -D {rule}"


def examined(host: Host) -> list[dict[str, Any]]:
    """Return the findings that are more than information."""
    document = read_document(["doctor"], host.run(["flannelctl", "--json", "doctor"], check=False).stdout)
    return [one for one in document["findings"] if one["severity"] != "info"]


@pytest.mark.timeout(3600)
def test_each_drawn_fault_is_named_without_a_second_error(pair: Pair, long_run: bool) -> None:
    """A harmless rule beside it is not named. The kinds take turns, their details are drawn."""
    assert examined(pair.host) == []
    for number in range(DRAWS_LONG if long_run else DRAWS):
        draw = random.Random(number)
        fault = KINDS[number % len(KINDS)](draw, pair)
        add, remove = harmless(draw)
        pair.host.run(["sh", "-c", f"set -e; {add}; {fault.do}"])
        try:
            found = examined(pair.host)
        finally:
            pair.host.run(["sh", "-c", f"{remove}; {fault.undo}"])
        errors = [one["code"] for one in found if one["severity"] == "error"]
        named = [one["code"] for one in found]
        text = f"draw {number}: {fault.do}\n{found}"
        assert fault.code in named, text
        assert errors == ([] if fault.code in _WARNINGS else [fault.code]), text
    assert examined(pair.host) == []


def drawn_pair(draw: random.Random, number: int, pair: Pair) -> tuple[Fault, Fault]:
    """Return two faults of different kinds. The kinds of the first take turns."""
    first = KINDS[number % len(KINDS)]
    second = draw.choice([kind for kind in KINDS if kind is not first])
    return first(draw, pair), second(draw, pair)


@pytest.mark.timeout(3600)
def test_two_faults_at_once_are_both_named_without_a_third_error(pair: Pair, long_run: bool) -> None:
    """Each fault alone is named by the test above. Two chains that drop the same packets are two findings."""
    for number in range(PAIRS_LONG if long_run else PAIRS):
        faults = drawn_pair(random.Random(1000 + number), number, pair)
        pair.host.run(["sh", "-c", f"set -e; {faults[0].do}; {faults[1].do}"])
        try:
            found = examined(pair.host)
        finally:
            pair.host.run(["sh", "-c", f"{faults[1].undo}; {faults[0].undo}"])
        text = f"pair {number}: {faults[0].do}; {faults[1].do}\n{found}"
        wanted = Counter(fault.code for fault in faults)
        named = Counter(one["code"] for one in found)
        assert wanted <= named, text
        errors = {one["code"] for one in found if one["severity"] == "error"}
        assert errors <= wanted.keys(), text
    assert examined(pair.host) == []
