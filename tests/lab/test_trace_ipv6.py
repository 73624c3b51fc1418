"""flannelctl trace in a network with IPv6 alone: it names each step of the way that is broken."""

import os
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from typing import Any, NamedTuple

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.documents import read_document
from testlab.ipv6_cluster import Cluster, Ipv6Container, bridge, cluster_in, wait_reached
from testlab.overlay import Overlay, ipv6_underlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 30.0


class Way(NamedTuple):
    """Two hosts on one link, each with a container. No flanneld runs, because it would repair the faults."""

    one: Host
    other: Host

    @property
    def near(self) -> IPv6Address:
        return bridge(self.one).network[2]

    @property
    def far(self) -> IPv6Address:
        return bridge(self.other).network[2]

    def trace(self, *addresses: object, exit_code: int = 0) -> dict[str, Any]:
        words = ["flannelctl", "trace", "--json", *map(str, addresses)]
        ran = self.one.run(words, check=False)
        assert ran.returncode == exit_code, ran.stdout + ran.stderr
        return read_document(["trace"], ran.stdout)


class Fault(NamedTuple):
    """A fault, its reversal, and the step that must fail.

    Attributes:
        is_far: on the other host.
        is_in: the packet is from the other host.
        is_way_back: trace names a step of the reply.
    """

    do: str
    undo: str
    step: str
    is_far: bool = False
    is_in: bool = False
    is_way_back: bool = False


def rule(
    chain: str, match: str, *, before: str = "", is_far: bool = False, is_way_back: bool = False
) -> Fault:
    do, undo = (f"ip6tables {option} {chain} {match} -j DROP" for option in ("-I", "-D"))
    return Fault(f"{before}{do}", undo, "peer" if is_far else "rule", is_far, False, is_way_back)


def moved(way: Way, show: str, delete: str, step: str) -> Fault:
    """Return a fault that removes a route. `ip` prints it in a form that it also accepts."""
    shown = way.one.run(["sh", "-c", show]).stdout.split("\n")[0].replace(" pref medium", "")
    return Fault(delete, f"ip -6 route add {shown}", step)


def again(host: Host) -> str:
    """Return the command that gives the bridge its address again, which it loses when it is set down."""
    return f"ip address replace {bridge(host)} dev br7 nodad"


def in_container(host: Host) -> str:
    return f"ip -n c -6 route add default via {bridge(host).ip}"


def common_faults(way: Way) -> list[Fault]:
    """Faults that every backend may have."""
    forwarding = "sysctl -qw net.ipv6.conf.all.forwarding"
    no_route = "ip netns exec c sleep 99 >/dev/null 2>&1 & echo $! >/run/sleep; ip -n c -6 route del default"
    flush = "ip -6 neighbour flush dev {}; "
    return [
        Fault("ip link set br7 down", f"ip link set br7 up; {again(way.one)}", "bridge"),
        Fault("ip link set c-c nomaster", "ip link set c-c master br7", "bridge"),
        Fault("ip link set c-c nomaster", "ip link set c-c master br7", "bridge", is_in=True),
        Fault(
            "ip -n c -6 address flush dev eth0 scope global; ip -6 neighbour flush dev br7",
            f"ip -n c address add {way.near}/64 dev eth0 nodad; {in_container(way.one)} 2>/dev/null; true",
            "container",
        ),
        Fault(f"{forwarding}=0", f"{forwarding}=1", "route"),
        Fault(no_route, f"kill $(cat /run/sleep); {in_container(way.one)}", "container"),
        rule("FORWARD", f"-s {way.near}"),
        Fault(
            f"nft 'table inet fw {{ chain f {{ type filter hook forward priority 1;"
            f" ip6 saddr {way.far} ip6 daddr {way.near} drop; }}; }}'",
            "nft delete table inet fw",
            "rule",
            is_in=True,
        ),
        rule("FORWARD", f"-s {way.far}", is_far=True),
        rule("INPUT", "-i br7 -p ipv6-icmp --icmpv6-type 136", before=flush.format("br7")),
        rule("INPUT", "-i eth0 -p ipv6-icmp --icmpv6-type 136", before=flush.format("eth0")),
        Fault("ip -n c link set eth0 down", _container_up(way.other), "peer", is_far=True),
        Fault(
            f"ip address del {ipv6_underlay(way.other)} dev eth0",
            f"ip address add {ipv6_underlay(way.other)} dev eth0 nodad",
            "underlay",
            is_far=True,
        ),
    ]


def _container_up(host: Host) -> str:
    """A link that is set down loses its IPv6 addresses and routes."""
    address = bridge(host).network[2]
    return (
        f"ip -n c link set eth0 up; ip -n c address replace {address}/64 dev eth0 nodad; {in_container(host)}"
    )


def route_lost(way: Way) -> Fault:
    subnet = bridge(way.other).network
    return moved(way, f"ip -6 route show {subnet}", f"ip -6 route del {subnet}", "route")


def vxlan_faults(way: Way) -> list[Fault]:
    gateway, to = bridge(way.other).network[0], ipv6_underlay(way.other).ip
    mac = way.other.run(["cat", "/sys/class/net/flannel-v6.1/address"]).stdout.strip()
    entry = f"{mac} dev flannel-v6.1 dst"
    return [
        route_lost(way),
        Fault(
            f"ip neighbour del {gateway} dev flannel-v6.1",
            f"ip neighbour replace {gateway} lladdr {mac} dev flannel-v6.1 nud permanent",
            "neighbour",
        ),
        rule("INPUT", "-p udp --dport 8472", is_way_back=True),
        Fault(f"bridge fdb del {entry} {to}", f"bridge fdb replace {entry} {to}", "fdb"),
        Fault(f"bridge fdb replace {entry} fd07:1::77", f"bridge fdb replace {entry} {to}", "fdb"),
        rule("OUTPUT", "-p udp --dport 8472"),
        rule("INPUT", "-p udp --dport 8472", is_far=True),
    ]


def host_gw_faults(way: Way) -> list[Fault]:
    subnet, to = bridge(way.other).network, ipv6_underlay(way.other)
    return [
        route_lost(way),
        Fault(
            f"ip -6 route replace {subnet} via {to.network[0xFE]}",
            f"ip -6 route replace {subnet} via {to.ip} proto 80",
            "route",
        ),
        *common_faults(way)[-4:-1],
    ]


def wireguard_faults(way: Way) -> list[Fault]:
    subnet, device = bridge(way.other).network, "flannel-wg-v6"
    (peer,) = way.one.run(["wg", "show", device, "peers"]).stdout.split()
    return [
        Fault(
            f"wg set {device} peer {peer} allowed-ips fd00:5:9::/64",
            f"wg set {device} peer {peer} allowed-ips {subnet}",
            "encryption",
        ),
        rule("OUTPUT", "-p udp --dport 51821"),
        rule("INPUT", "-p udp --dport 51821", is_way_back=True),
        rule("INPUT", "-p udp --dport 51821", is_far=True),
    ]


def quick_faults(way: Way) -> list[Fault]:
    """Faults of the short form."""
    common, vxlan = common_faults(way), vxlan_faults(way)
    return [*common[4:7], common[10], *vxlan[1:4:2]]


BACKENDS: dict[str, Callable[[Way], list[Fault]]] = {
    "vxlan": lambda way: [*common_faults(way), *vxlan_faults(way)],
    "host-gw": host_gw_faults,
    "wireguard": wireguard_faults,
}


@pytest.fixture(scope="module")
def cluster(overlay: Overlay) -> Iterator[Cluster]:
    with cluster_in(overlay) as made:
        yield made


def running(cluster: Cluster, backend: str, *, is_first: bool) -> Way:
    """Run the network with a backend, check that trace names no step, and kill both flannelds."""
    hosts = [cluster.overlay.hosts[name] for name in ("docker1", "docker2")]
    if not is_first:
        for host in hosts:
            host.run(["rm", "/var/lib/flannel/last-known.json"])
    cluster.configure(backend)
    cluster.join(*hosts)
    wait_reached(*hosts)
    if is_first:
        for host in hosts:
            Ipv6Container(host, "c")
    way = Way(*hosts)
    wait_until(lambda: _answers(way), what="an answer of the containers", deadline_s=SOON_S)
    for ends in ((way.far,), (way.near, way.far), (way.far, way.near)):
        assert way.trace(*ends)["ok"]
    if is_first:
        check_whois(way)
    for host in hosts:
        cluster.overlay.daemons[host.name].kill()
    return way


def _answers(way: Way) -> bool:
    ping = ["ip", "netns", "exec", "c", "ping", "-n", "-c1", "-W1", str(way.far)]
    return way.one.run(ping, check=False).returncode == 0


def check_whois(way: Way) -> None:
    """The kernel of this host names the bridge and the port of its own container."""

    def whois(address: object, exit_code: int = 0) -> dict[str, Any]:
        ran = way.one.run(["flannelctl", "whois", "--json", str(address)], check=False)
        assert ran.returncode == exit_code, ran.stdout + ran.stderr
        return read_document(["whois"], ran.stdout)

    near, far = whois(way.near), whois(way.far)
    assert (near["kind"], near["is_here"], near["link"], near["port"]) == ("container", True, "br7", "c-c")
    assert (far["kind"], far["is_here"], far["host_name"]) == ("container", False, way.other.name)
    assert far["subnet"] == str(bridge(way.other).network)
    assert whois(ipv6_underlay(way.other).ip)["kind"] == "host"
    assert whois(bridge(way.other).network[0])["kind"] == "tunnel"
    assert whois("fd00:5:0:99::1", exit_code=1)["kind"] == "unused"
    assert whois("10.10.10.102", exit_code=1)["kind"] == "unused"


def check_probe(way: Way) -> None:
    """A real packet is followed out and back, and to the rule that drops it. No table remains."""
    way.one.run(["sh", "-c", "ip netns exec c sleep 99 >/dev/null 2>&1 & echo $! >/run/sleep"])
    way.one.run(
        [
            "nft",
            "table inet fw { chain f { type filter hook forward priority 1; accept; };"
            " chain o { type filter hook output priority 1; }; }",
        ]
    )
    try:
        passed = way.trace("--probe", way.near, way.far)["probe"]
        way.one.run(["nft", "add rule inet fw o udp dport 8472 counter drop"])
        dropped = way.trace("--probe", way.near, way.far, exit_code=1)["probe"]
    finally:
        way.one.run(["sh", "-c", "nft delete table inet fw; kill $(cat /run/sleep)"])

    chains = [(one["packet"], one["chain"], one["verdict"], one["oif"]) for one in passed["events"]]
    assert ("request", "f", "accept", "flannel-v6.1") in chains
    assert ("tunnel request", "o", "accept", "eth0") in chains
    assert ("reply", "f", "accept", "br7") in chains
    assert passed["rtt_ms"] > 0
    last = dropped["events"][-1]
    assert (last["packet"], last["chain"], last["verdict"]) == ("tunnel request", "o", "drop")
    assert last["rule"].endswith("drop")
    assert dropped["rtt_ms"] is None
    assert "flannel-trace" not in way.one.run(["nft", "list", "tables"]).stdout


@pytest.mark.timeout(600)
def test_each_broken_step_is_named(cluster: Cluster, long_run: bool) -> None:
    """The long form breaks every step of the three backends, the short one some steps of vxlan."""
    for backend, faults in BACKENDS.items() if long_run else [("vxlan", quick_faults)]:
        way = running(cluster, backend, is_first=backend == "vxlan")
        if backend == "vxlan":
            check_probe(way)
        for one in faults(way):
            check(way, backend, one)


def check(way: Way, backend: str, fault: Fault) -> None:
    host = way.other if fault.is_far else way.one
    ends = [way.near, way.far]
    print(f"{backend}: {fault.do}")  # shown if the test fails
    host.run(["sh", "-c", fault.do])
    try:
        report = way.trace(*(reversed(ends) if fault.is_in else ends), exit_code=1)
    finally:
        host.run(["sh", "-c", fault.undo])
    last = report["steps"][-1]
    assert report["stops"] == fault.step, f"{backend}: {fault.do}: {report}"
    assert (last["state"], last["is_way_back"]) == ("fails", fault.is_way_back), report
    assert (last["cause"], last["fix"]) == (report["cause"], report["fix"])
