"""The path of a packet: the first object of the kernel that stops it is named."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from typing import Literal

import pytest
from msgspec.structs import replace

from pyflannel.model.fast_path import BpfPeer, BpfProgram, Role, Tunnel
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import Interface, InterfaceAddress, Interfaces, IpsecPolicy
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.link import Vxlan
from pyflannel.model.netfilter import Action, BaseChain, Hook, Match, Rule, Ruleset
from pyflannel.model.probe import PingReport, PingStep, ProbeState, TraceReport
from pyflannel.model.route import FdbEntry, RouteAnswer, Way
from pyflannel.model.wireguard import WireguardPeer
from pyflannel.plan.doctor.observed import ContainerNamespace, ContainerRoute
from pyflannel.plan.trace.facts import Facts, RouteQuestion, TraceLink
from pyflannel.plan.trace.way import follow
from pyflannel.wire.iptables import parse_save
from pyflannel.wire.iptables_ruleset import ruleset_of

OWN, PEER = IPv4Network("10.100.15.0/24"), IPv4Network("10.100.16.0/24")
HERE, THERE = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
NEAR, FAR = OWN.network_address + 2, PEER.network_address + 2
NEAR_MAC, VTEP, THERE_MAC = "02:00:00:00:00:02", "02:00:00:00:01:00", "02:00:00:00:02:00"


def interface(name: str, address: str, kind: str = "") -> Interface:
    held = (InterfaceAddress(address=IPv4Interface(address)),)
    return Interface(name=name, index=1, mtu=1500, kind=kind, addresses=held)


def probed(state: ProbeState = "reached", stops: Literal["underlay", "tunnel"] | None = None) -> PingReport:
    return PingReport(
        subnet=PEER,
        public_ip=THERE,
        ok=stops is None,
        steps=(PingStep(name="container", family=4, destination=FAR, state=state),),
        stops=stops,
        cause=None if stops is None else "10.0.0.2 does not answer",
        fix=None if stops is None else "flannelctl doctor",
    )


INTERFACES = Interfaces(
    interfaces=(interface("eth0", "10.0.0.1/24"), interface("br0", "10.100.15.1/24", "bridge"))
)
BASE = Facts(
    source=NEAR,
    destination=FAR,
    network=IPv4Network("10.100.0.0/16"),
    leases=(LeaseEntry(subnet=OWN, public_ip=HERE), LeaseEntry(subnet=PEER, public_ip=THERE)),
    links={
        one.name: one
        for one in (
            TraceLink(name="eth0"),
            TraceLink(name="br0", kind="bridge"),
            TraceLink(name="veth1", kind="veth"),
            TraceLink(
                name="flannel.1",
                kind="vxlan",
                vxlan=Vxlan(vni=1, port=8472, parent="eth0", local=HERE),
            ),
            TraceLink(name="flannel0", kind="tun", resolves=False),
            TraceLink(name="flannel-wg", kind="wireguard", resolves=False),
        )
    },
    interfaces=INTERFACES,
    neighbours={("br0", NEAR): NEAR_MAC, ("eth0", THERE): THERE_MAC},
    ports={("br0", NEAR_MAC): "veth1"},
    probed=probed(),
)
GATEWAY = PEER.network_address
VXLAN = replace(
    BASE,
    neighbours={**BASE.neighbours, ("flannel.1", GATEWAY): VTEP},
    fdb={("flannel.1", VTEP): FdbEntry(link="flannel.1", mac=VTEP, destination=THERE)},
)
UDP = replace(
    BASE,
    forwarder=Forwarder(
        link="flannel0",
        tunnel_address=OWN.network_address,
        subnet=OWN,
        listen_address=HERE,
        port=8285,
        mtu=1472,
    ),
    forwarder_peers=(ForwarderPeer(link="flannel0", subnet=PEER, address=THERE, port=8285),),
)
_TUNNEL = Tunnel(device="flannel0", underlay="eth0", address=HERE, subnet=OWN, port=8285, mtu=1472)
FAST = replace(
    BASE,
    programs=(
        BpfProgram(link="flannel0", role=Role.ENCAPSULATE, tunnel=_TUNNEL),
        BpfProgram(link="eth0", role=Role.DECAPSULATE, tunnel=_TUNNEL),
    ),
    program_peers=(BpfPeer(device="flannel0", subnet=PEER, address=THERE, port=8285),),
)
WIREGUARD = replace(
    BASE,
    encryption=(
        WireguardPeer(link="flannel-wg", public_key="key", allowed=(PEER,), endpoint="10.0.0.2:51820"),
    ),
    listen_ports={"flannel-wg": 51820},
)
DEVICES = {"vxlan": "flannel.1", "udp": "flannel0", "fast": "flannel0", "wireguard": "flannel-wg"}
FACTS = {"vxlan": VXLAN, "udp": UDP, "fast": FAST, "wireguard": WIREGUARD, "host-gw": BASE}


class Kernel:
    """The routes of a healthy host with a backend; a test may change answers by direction and destination."""

    def __init__(self, backend: str) -> None:
        self.facts = FACTS[backend]
        self.device = DEVICES.get(backend, "eth0")
        self.gateway = {"vxlan": GATEWAY, "host-gw": THERE}.get(backend)
        self.changed: dict[tuple[Way, IPv4Address], RouteAnswer] = {}

    def answer(self, asked: RouteQuestion) -> RouteAnswer:
        way, to = asked.way, asked.destination
        if (way, to) in self.changed:
            return self.changed[way, to]
        plain = RouteAnswer(way=way, destination=to, text="answer")
        if to in OWN:
            return replace(plain, link="br0")
        if to in PEER:
            return replace(plain, link=self.device, gateway=self.gateway)
        return replace(plain, link="lo", is_local=True) if to == HERE else replace(plain, link="eth0")

    def change(self, way: Way, to: IPv4Address, **answer: object) -> None:
        self.changed[way, to] = replace(RouteAnswer(way=way, destination=to, text="changed"), **answer)

    def trace(self, source: IPv4Address = NEAR, destination: IPv4Address = FAR) -> TraceReport:
        facts = replace(self.facts, source=source, destination=destination)
        while isinstance(found := follow(facts), RouteQuestion):
            facts = replace(facts, answers={**facts.answers, found: self.answer(found)})
        return found


def iptables(*lines: str) -> Ruleset:
    return ruleset_of(parse_save("\n".join(["*filter", *lines, "COMMIT"])), "iptables")


WAYS_OUT = {
    "vxlan": ["bridge", "container", "route", "rule", "neighbour", "fdb", "rule", "underlay", "peer"],
    "udp": ["bridge", "container", "route", "rule", "forwarder", "rule", "underlay", "peer"],
    "fast": ["bridge", "container", "route", "rule", "program", "underlay", "peer"],
    "wireguard": ["bridge", "container", "route", "rule", "encryption", "rule", "underlay", "peer"],
    "host-gw": ["bridge", "container", "route", "rule", "underlay", "peer"],
}
WAYS_IN = {
    "vxlan": ["peer", "underlay", "rule", "device", "route", "rule", "bridge", "container", "peer"],
    "udp": ["peer", "underlay", "rule", "forwarder", "route", "rule", "bridge", "container", "peer"],
    "fast": ["peer", "underlay", "program", "route", "rule", "bridge", "container", "peer"],
    "wireguard": ["peer", "underlay", "rule", "encryption", "route", "rule", "bridge", "container", "peer"],
    "host-gw": ["peer", "route", "rule", "bridge", "container", "peer"],
}


@pytest.mark.parametrize("backend", FACTS)
def test_a_packet_passes_the_steps_of_its_backend_in_both_directions(backend: str) -> None:
    out, back = Kernel(backend).trace(), Kernel(backend).trace(FAR, NEAR)

    assert [one.name for one in out.steps] == WAYS_OUT[backend]
    assert [one.name for one in back.steps] == WAYS_IN[backend]
    assert out.ok
    assert back.ok
    assert {one.state for one in (*out.steps, *back.steps)} == {"passes"}


def without(kernel: Kernel, **changes: object) -> None:
    kernel.facts = replace(kernel.facts, **changes)


Break = Callable[[Kernel], None]


def bridge_rule(hook: Hook, *matches: Match) -> Ruleset:
    """Return a table of the family bridge that drops the packets that match."""
    rule = Rule(matches, Action("drop"), "the rule drop", 3)
    chain = BaseChain(
        program="nft", family="bridge", table="fw", name="c", hook=hook, priority=0, chains={"c": (rule,)}
    )
    return (chain,)


BLOCK = IpsecPolicy(
    direction="out", source=IPv4Network("0.0.0.0/0"), destination=IPv4Network("10.0.0.2/32"), is_block=True
)
DROP_TUNNEL = iptables(":INPUT ACCEPT", "-A INPUT -p udp --dport 8472 -j DROP")
FAULTS: list[tuple[str, Break, str, str]] = [
    ("vxlan", lambda k: without(k, forwards=False), "route", "the host forwards no packets"),
    ("vxlan", lambda k: without(k, neighbours={}), "container", "none answers ARP"),
    ("vxlan", lambda k: without(k, neighbours=BASE.neighbours), "neighbour", "no neighbour entry"),
    ("vxlan", lambda k: without(k, fdb={}), "fdb", "no FDB entry"),
    (
        "vxlan",
        lambda k: without(
            k, fdb={("flannel.1", VTEP): FdbEntry(link="flannel.1", mac=VTEP, destination=HERE)}
        ),
        "fdb",
        "10.0.0.2 holds 10.100.16.0/24, not 10.0.0.1",
    ),
    ("vxlan", lambda k: without(k, ports={}, silent={NEAR}), "bridge", "its veth is down"),
    (
        "vxlan",
        lambda k: without(k, ruleset=iptables(":FORWARD DROP")),
        "rule",
        "chain FORWARD in filter drops packets of 10.100.0.0/16",
    ),
    (
        "vxlan",
        lambda k: without(k, ruleset=iptables(":OUTPUT ACCEPT", "-A OUTPUT -p udp --dport 8472 -j DROP")),
        "rule",
        "drops tunnel packets to UDP port 8472",
    ),
    (
        "vxlan",
        lambda k: without(k, ruleset=bridge_rule("input", Match("iif", ("veth1",)))),
        "rule",
        "nft chain bridge fw c drops packets of 10.100.0.0/16",
    ),
    (
        "vxlan",
        lambda k: without(k, interfaces=replace(INTERFACES, policies=(BLOCK,))),
        "rule",
        "an IPsec policy drops tunnel packets to UDP port 8472 of peers",
    ),
    ("vxlan", lambda k: k.change("container out", FAR), "route", "no route to 10.100.16.2"),
    (
        "vxlan",
        lambda k: k.change("container out", FAR, link="lo", is_local=True),
        "route",
        "this host takes the packets to 10.100.16.2 itself",
    ),
    (
        "vxlan",
        lambda k: k.change("container out", FAR, link="eth0", gateway=HERE),
        "route",
        "the packet leaves by eth0 to 10.0.0.1",
    ),
    ("vxlan", lambda k: k.change("container out", FAR, refused_at="br0"), "route", "rp_filter drops"),
    ("vxlan", lambda k: k.change("host out", THERE), "underlay", "do not leave this host"),
    ("udp", lambda k: without(k, forwarder=None), "forwarder", "no forwarder runs"),
    ("udp", lambda k: without(k, forwarder_peers=()), "forwarder", "no entry for 10.100.16.2"),
    (
        "udp",
        lambda k: without(k, forwarder=replace(UDP.forwarder, is_attached=False)),
        "forwarder",
        "not attached",
    ),
    ("fast", lambda k: without(k, program_peers=()), "forwarder", "no forwarder runs"),
    (
        "fast",
        lambda k: without(k, program_peers=(replace(FAST.program_peers[0], address=HERE),)),
        "program",
        "not 10.0.0.1",
    ),
    ("wireguard", lambda k: without(k, encryption=()), "encryption", "no peer accepts it"),
    (
        "wireguard",
        lambda k: without(k, encryption=(replace(WIREGUARD.encryption[0], endpoint=""),)),
        "encryption",
        "the address of the peer is unknown",
    ),
    (
        "host-gw",
        lambda k: without(k, neighbours={("br0", NEAR): NEAR_MAC}),
        "underlay",
        "10.0.0.2 does not answer ARP on eth0",
    ),
    (
        "host-gw",
        lambda k: without(
            k,
            neighbours={("br0", NEAR): NEAR_MAC},
            links={**BASE.links, "eth0": TraceLink(name="eth0", resolves=False)},
        ),
        "underlay",
        "ARP is off on eth0",
    ),
    (
        "host-gw",
        lambda k: without(k, links={**BASE.links, "eth0": TraceLink(name="eth0", has_carrier=False)}),
        "underlay",
        "no carrier",
    ),
    (
        "host-gw",
        lambda k: without(k, probed=probed("silent", "underlay")),
        "underlay",
        "10.0.0.2 does not answer",
    ),
]


@pytest.mark.parametrize(
    ("backend", "spoil", "step", "cause"), FAULTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_first_step_that_stops_the_packet_is_named(
    backend: str, spoil: Break, step: str, cause: str
) -> None:
    kernel = Kernel(backend)
    spoil(kernel)

    report = kernel.trace()

    assert (report.ok, report.stops) == (False, step)
    assert cause in (report.cause or "")
    assert report.steps[-1].state == "fails"
    assert report.fix


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (
            {"links": {**BASE.links, "br0": replace(BASE.links["br0"], has_carrier=False)}},
            "no port of br0 is up",
        ),
        ({"neighbours": {}}, f"no container at br0 has the address {NEAR}"),
        ({"ports": {}, "silent": frozenset({NEAR})}, f"no port of br0 leads to {NEAR}"),
    ],
)
def test_doctor_finds_the_reason_why_a_container_is_not_connected(
    changes: dict[str, object], cause: str
) -> None:
    kernel = Kernel("vxlan")
    kernel.facts = replace(VXLAN, **changes)

    report = kernel.trace(NEAR, FAR)

    assert (report.cause or "").startswith(cause)
    assert (report.fix or "").startswith("flannelctl doctor  # names ended containers, closed ports")


LOCAL = ContainerRoute(destination=OWN)


@pytest.mark.parametrize(
    ("route", "cause", "command"),
    [
        (
            ContainerRoute(destination=IPv4Network("10.100.0.0/16"), is_refused=True),
            f"the container {NEAR} refuses packets to 10.100.0.0/16",
            "delete 10.100.0.0/16",
        ),
        (
            ContainerRoute(destination=IPv4Network("0.0.0.0/0"), gateway=IPv4Address("10.100.15.77")),
            f"the container {NEAR} sends the packet to 10.100.15.77, an address that neither this host nor a"
            " container has",
            "replace 0.0.0.0/0 via 10.100.15.1",
        ),
    ],
)
def test_a_wrong_route_in_a_container_is_named(route: ContainerRoute, cause: str, command: str) -> None:
    inside = ContainerNamespace(
        pid=7, process="nginx, pid 7", addresses=frozenset({NEAR}), routes=(LOCAL, route)
    )
    kernel = Kernel("vxlan")
    kernel.facts = replace(VXLAN, containers=(inside,))

    report = kernel.trace(NEAR, FAR)

    assert (report.stops, report.cause) == ("container", cause)
    assert report.fix == f"nsenter --net --target 7 ip -4 route {command}"


def test_a_container_that_answers_no_echo_may_have_rules_of_its_own() -> None:
    inside = ContainerNamespace(pid=7, process="nginx, pid 7", addresses=frozenset({NEAR}), routes=(LOCAL,))
    kernel = Kernel("vxlan")
    kernel.facts = replace(VXLAN, silent=frozenset({NEAR}), containers=(inside,))

    (step,) = [one for one in kernel.trace(NEAR, FAR).steps if one.state == "unknown"]

    assert step.name == "container"
    assert (step.cause or "").endswith("nsenter --net --target 7 nft list ruleset")


def test_a_container_without_a_route_is_named_before_the_routes_of_the_host() -> None:
    """The container sends the packet, or the reply."""
    lost = ContainerNamespace(pid=7, process="nginx, pid 7", addresses=frozenset({NEAR}), routes=(LOCAL,))
    for source, destination in ((NEAR, FAR), (FAR, NEAR)):
        kernel = Kernel("vxlan")
        kernel.facts = replace(VXLAN, containers=(lost,))

        report = kernel.trace(source, destination)

        assert (report.stops, report.cause) == ("container", f"the container {NEAR} has no route to {FAR}")
        assert report.fix == "nsenter --net --target 7 ip -4 route add default via 10.100.15.1"


def test_a_link_whose_packets_are_not_forwarded_is_named() -> None:
    for source, destination, link in ((NEAR, FAR, "br0"), (FAR, NEAR, "flannel.1")):
        kernel = Kernel("vxlan")
        kernel.facts = replace(VXLAN, unforwarded=frozenset({link}))

        report = kernel.trace(source, destination)

        assert (report.stops, report.steps[-1].found) == ("route", f"net.ipv4.conf.{link}.forwarding = 0")
        assert report.fix == f"sysctl -w net/ipv4/conf/{link}/forwarding=1"


def test_a_tunnel_over_ipv6_is_followed_to_the_encryption() -> None:
    """The mode is ipv6, so that an IPv6 tunnel carries the IPv4 packet."""
    kernel, there = Kernel("wireguard"), IPv6Address("2001:db8::2")
    without(kernel, encryption=(replace(WIREGUARD.encryption[0], endpoint=f"[{there}]:51820"),))
    eth0, bridge = INTERFACES.interfaces
    held = (*eth0.addresses, InterfaceAddress(address=IPv6Interface("2001:db8::1/64")))
    without(kernel, interfaces=replace(INTERFACES, interfaces=(replace(eth0, addresses=held), bridge)))

    lost = kernel.trace()
    without(kernel, neighbours={**BASE.neighbours, ("eth0", there): THERE_MAC})

    assert (lost.stops, lost.cause) == ("underlay", f"{there} does not answer neighbour discovery on eth0")
    assert [one.name for one in kernel.trace().steps] == WAYS_OUT["wireguard"]
    assert [one.name for one in kernel.trace(FAR, NEAR).steps] == WAYS_IN["wireguard"]


def test_without_an_answer_the_way_of_the_reply_on_this_host_precedes_the_other_host() -> None:
    kernel = Kernel("vxlan")
    without(kernel, probed=probed("silent", "tunnel"))

    assert kernel.trace().stops == "peer"

    without(kernel, ruleset=DROP_TUNNEL)
    report = kernel.trace()
    assert report.stops == "rule"
    assert report.steps[-1].is_way_back
    assert not report.steps[0].is_way_back


def test_an_established_reply_passes_a_firewall_that_accepts_replies() -> None:
    kernel = Kernel("host-gw")
    without(
        kernel,
        probed=probed("silent", "tunnel"),
        ruleset=iptables(
            ":FORWARD DROP",
            "-A FORWARD -s 10.100.15.0/24 -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        ),
    )

    assert kernel.trace().stops == "peer"
    assert kernel.trace(FAR, NEAR).stops == "rule"


def test_a_rule_with_an_unknown_condition_is_no_failure() -> None:
    kernel = Kernel("host-gw")
    without(kernel, ruleset=iptables(":FORWARD ACCEPT", "-A FORWARD -m bpf --bytecode 1 -j DROP"))

    report = kernel.trace()

    assert report.ok
    assert [one.name for one in report.steps if one.state == "unknown"] == ["rule"]


def test_the_strict_filter_of_the_underlay_is_named_for_arriving_packets() -> None:
    kernel = Kernel("vxlan")
    kernel.change("tunnel in", HERE, refused_at="eth0")

    report = kernel.trace(FAR, NEAR)

    assert (report.stops, report.fix) == (
        "underlay",
        "sysctl -w net/ipv4/conf/all/rp_filter=2 net/ipv4/conf/eth0/rp_filter=2",
    )


def test_without_a_probe_nothing_is_concluded_about_the_other_host() -> None:
    kernel = Kernel("host-gw")
    without(kernel, probed=None, neighbours={("br0", NEAR): NEAR_MAC})

    report = kernel.trace()

    assert report.ok
    assert [one.name for one in report.steps if one.state == "unknown"] == ["underlay", "peer"]


def test_a_packet_between_two_containers_of_this_host_is_followed() -> None:
    kernel, other = Kernel("host-gw"), OWN.network_address + 3
    assert kernel.trace(NEAR, other).stops == "container"

    without(kernel, neighbours={**BASE.neighbours, ("br0", other): NEAR_MAC})
    assert [one.name for one in kernel.trace(NEAR, other).steps][-2:] == ["bridge", "container"]


def test_the_rules_of_the_family_bridge_are_followed_at_the_ports_of_the_packet() -> None:
    """The packet is to a container, between two containers, or at a bridge that is the underlay."""
    kernel, other, mac = Kernel("vxlan"), OWN.network_address + 3, "02:00:00:00:00:03"
    without(
        kernel,
        neighbours={**VXLAN.neighbours, ("br0", other): mac},
        ports={**VXLAN.ports, ("br0", mac): "veth2", ("eth0", THERE_MAC): "eth1"},
    )

    without(kernel, ruleset=bridge_rule("output", Match("oif", ("veth1",))))
    assert kernel.trace(FAR, NEAR).stops == "rule"
    assert kernel.trace(NEAR, FAR).ok
    without(kernel, ruleset=bridge_rule("forward", Match("iif", ("veth1",)), Match("oif", ("veth2",))))
    assert kernel.trace(NEAR, other).stops == "rule"
    assert kernel.trace(other, NEAR).ok
    without(kernel, ruleset=bridge_rule("postrouting", Match("oif", ("eth1",))))
    report = kernel.trace(NEAR, FAR)
    assert (report.stops, report.cause) == (
        "rule",
        "nft chain bridge fw c drops tunnel packets to UDP port 8472 of peers",
    )


def test_a_packet_of_the_host_itself_is_followed() -> None:
    report = Kernel("vxlan").trace(HERE, FAR)

    assert [one.name for one in report.steps][:2] == ["host", "route"]
    assert report.ok
