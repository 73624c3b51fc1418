"""The findings of doctor in a network with IPv6 alone, and each family of a network with both."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_network

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Interface, InterfaceAddress, Interfaces
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.link import Link, Vxlan
from pyflannel.model.netfilter import Ruleset
from pyflannel.model.probe import NarrowPath
from pyflannel.model.route import Route, RouteAnswer
from pyflannel.model.status import (
    BackendStatus,
    Finding,
    LeaseStatus,
    Membership,
    NetworkStatus,
    RefusedPeer,
    Status,
    UnderlayStatus,
)
from pyflannel.plan.doctor.families import families_of, leases_in, network_of, status_in
from pyflannel.plan.doctor.findings import findings, findings_in_family, merged
from pyflannel.plan.doctor.observed import ContainerNamespace, ContainerRoute, Observed
from pyflannel.wire.iptables import parse_save
from pyflannel.wire.iptables_ruleset import ruleset_of

NETWORK, OWN, PEER = (IPv6Network(text) for text in ("fd00:5::/48", "fd00:5:0:1::/64", "fd00:5:0:2::/64"))
HERE, THERE = IPv6Address("fd07:1::1"), IPv6Address("fd07:1::2")
VTEP = Vxlan(vni=1, port=8472, parent="eth0", local=HERE)


def interface(name: str, *addresses: str, kind: str = "") -> Interface:
    held = tuple(InterfaceAddress(address=IPv6Interface(one)) for one in addresses)
    return Interface(name=name, index=1, mtu=1500, kind=kind, addresses=held)


BRIDGE = interface("cni0", "fd00:5:0:1::1/64", kind="bridge")
ALONE = Status(
    version="1",
    is_ready=True,
    network=NetworkStatus(ipv6_network=NETWORK),
    backend=BackendStatus(type="vxlan", link="flannel-v6.1", mtu=1430, port=8472),
    underlay=UnderlayStatus(
        link="eth0", address=HERE, public_ip=HERE, mtu=1500, ipv6_address=HERE, public_ipv6=HERE
    ),
    lease=LeaseStatus(subnet=OWN, ipv6_subnet=OWN),
)
HEALTHY = Observed(
    status=ALONE,
    family=6,
    claimed="flannel0",
    membership=Membership(network=NETWORK, subnet=OWN, underlay="eth0", peers={PEER: THERE}),
    items=(Route(destination=PEER, link="flannel-v6.1", metric=1024),),
    interfaces=Interfaces(
        interfaces=(interface("eth0", "fd07:1::1/64"), interface("flannel-v6.1", "fd00:5:0:1::/128"), BRIDGE)
    ),
    on_link=(IPv6Network("fd07:1::/64"),),
    ports={"cni0": {"veth1": 1430}},
    answers=(RouteAnswer(way="container out", destination=PEER[2], text="", link="flannel-v6.1"),),
)


def ip6tables(*lines: str, table: str = "filter") -> Ruleset:
    return ruleset_of(parse_save("\n".join([f"*{table}", *lines, "COMMIT"])), "ip6tables")


def found(seen: Observed) -> Finding:
    """Return the only finding."""
    (one,) = findings(seen)
    return one


def test_a_healthy_host_has_no_findings() -> None:
    assert findings(HEALTHY) == ()


def test_a_firewall_that_accepts_neighbour_discovery_is_no_finding() -> None:
    """The rules of ufw: neighbour discovery with a hop limit of 255, and no routing header."""
    rules = ip6tables(
        ":INPUT DROP",
        "-A INPUT -m rt --rt-type 0 -j DROP",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j ACCEPT",
        "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -m hl --hl-eq 255 -j ACCEPT",
        "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT",
        "-A INPUT -p udp -m udp --dport 8472 -j ACCEPT",
    )

    assert findings(replace(HEALTHY, ruleset=rules)) == ()


@pytest.mark.parametrize(
    ("rules", "code", "fix"),
    [
        (
            ip6tables(":INPUT ACCEPT", "-A INPUT -p udp -m udp --dport 8472 -j DROP"),
            "tunnel-dropped",
            "ip6tables -I INPUT -p udp --dport 8472 -j ACCEPT",
        ),
        (
            ip6tables(":FORWARD DROP"),
            "forward-dropped",
            "ip6tables -I FORWARD -s fd00:5::/48 -j ACCEPT; ip6tables -I FORWARD -d fd00:5::/48 -j ACCEPT",
        ),
        (
            ip6tables(":INPUT ACCEPT", "-A INPUT -i eth0 -p ipv6-icmp -j DROP"),
            "neighbour-dropped",
            "ip6tables -I INPUT -p ipv6-icmp --icmpv6-type 135 -j ACCEPT;"
            " ip6tables -I INPUT -p ipv6-icmp --icmpv6-type 136 -j ACCEPT",
        ),
        (
            ip6tables(":OUTPUT ACCEPT", "-A OUTPUT -o cni0 -p ipv6-icmp --icmpv6-type 136 -j DROP"),
            "neighbour-dropped",
            "ip6tables -I OUTPUT -p ipv6-icmp --icmpv6-type 135 -j ACCEPT;"
            " ip6tables -I OUTPUT -p ipv6-icmp --icmpv6-type 136 -j ACCEPT",
        ),
    ],
)
def test_a_rule_of_ip6tables_that_drops_packets_is_named(rules: Ruleset, code: str, fix: str) -> None:
    one = found(replace(HEALTHY, ruleset=rules))

    assert (one.code, one.severity, one.fix) == (code, "error", fix)


def test_a_link_without_mac_addresses_needs_no_neighbour_discovery() -> None:
    rules = ip6tables(":INPUT ACCEPT", "-A INPUT -i eth0 -p ipv6-icmp -j DROP")

    found = findings(replace(HEALTHY, ruleset=rules, is_ethernet=False))

    assert [one.code for one in found] == ["probe-dropped"]


def route_to(text: str) -> ContainerRoute:
    """Return a route; the default route has a gateway."""
    destination = ip_network(text)
    gateway = None if destination.prefixlen else IPv6Address("fe80::1")
    return ContainerRoute(destination=destination, gateway=gateway)


def test_a_container_without_an_ipv6_route_is_named() -> None:
    """A container may have addresses of both families, and link-local addresses."""
    addresses = (OWN[2], IPv6Address("fe80::7"), IPv4Address("127.0.0.1"))
    lost = ContainerNamespace(
        pid=7,
        process="nginx, pid 7",
        addresses=frozenset(addresses),
        routes=tuple(map(route_to, ("0.0.0.0/0", "fe80::/64"))),
    )
    well = replace(lost, routes=(route_to("::/0"),))

    one = found(replace(HEALTHY, containers=(well, lost)))

    assert (one.code, one.evidence) == ("container-route", (f"{OWN[2]}, nginx, pid 7",))


def test_routes_and_devices_of_an_original_are_named_in_the_family_of_the_route() -> None:
    elsewhere = IPv6Network("fd00:5:0:9::/64")
    route = Route(
        destination=elsewhere, gateway=IPv6Address("fd07:1::9"), link="eth0", metric=1024, protocol=3
    )
    seen = replace(HEALTHY, items=(*HEALTHY.items, route))
    without_ipv6 = Membership(network=IPv4Network("10.100.0.0/16"), subnet=IPV4, underlay="eth0")

    assert found(seen).code == "left-by-original"
    assert found(seen).fix == "ip route delete fd00:5:0:9::/64 metric 1024 proto 3"
    assert findings_in_family(replace(seen, family=4, membership=without_ipv6, answers=())) == ()


def test_a_network_that_overlaps_the_underlay_is_named() -> None:
    seen = replace(HEALTHY, on_link=(IPv6Network("fd00:5:0:8::/64"),))

    assert found(seen).code == "network-overlaps-underlay"


def test_rules_for_ipv4_do_not_concern_ipv6() -> None:
    text = parse_save("*filter\n:INPUT DROP\n:FORWARD DROP\nCOMMIT")

    assert findings(replace(HEALTHY, ruleset=ruleset_of(text, "iptables"))) == ()


def test_forwarding_that_is_off_is_named_with_a_command_that_keeps_the_routes_of_routers() -> None:
    seen = replace(HEALTHY, forwards=False, unforwarded=frozenset({"cni0", "flannel-v6.1"}))
    from_router = Route(destination=IPv6Network("::/0"), link="eth0", protocol=9)

    assert found(seen).evidence == ("net.ipv6.conf.all.forwarding = 0",)
    assert found(seen).fix == "sysctl -w net.ipv6.conf.all.forwarding=1"
    assert found(replace(seen, items=(*seen.items, from_router))).fix == (
        "sysctl -w net/ipv6/conf/eth0/accept_ra=2 net.ipv6.conf.all.forwarding=1"
    )


def test_a_host_that_forwards_packets_of_the_links_alone_is_no_finding() -> None:
    """Linux 6.17 and newer have force_forwarding for each link."""
    assert findings(replace(HEALTHY, forwards=False, unforwarded=frozenset({"eth0"}))) == ()


@pytest.mark.parametrize(
    ("change", "code", "fix"),
    [
        (
            {"is_up": False, "addresses": ()},
            "bridge-down",
            "ip link set cni0 up; ip address add fd00:5:0:1::1/64 dev cni0",
        ),
        ({"is_up": False}, "bridge-down", "ip link set cni0 up"),
        (
            {"has_ipv6": False, "addresses": ()},
            "ipv6-off",
            "sysctl -w net/ipv6/conf/cni0/disable_ipv6=0; ip address add fd00:5:0:1::1/64 dev cni0",
        ),
    ],
)
def test_a_bridge_that_lost_its_address_is_named(change: dict[str, object], code: str, fix: str) -> None:
    *others, bridge = HEALTHY.interfaces.interfaces
    links = Interfaces(interfaces=(*others, replace(bridge, **change)))

    one = found(replace(HEALTHY, interfaces=links))

    assert (one.code, one.fix) == (code, fix)


def test_other_faults_of_ipv6_are_named() -> None:
    part = Route(destination=IPv6Network("fd00:5:0:2::/65"), link="eth0", metric=1024, protocol=4)
    diverted = replace(HEALTHY.answers[0], link="eth0", rules=("100: from all lookup 7",))
    elsewhere = interface("eth1", "fd00:5:0:2::7/128")
    links = Interfaces(interfaces=(*HEALTHY.interfaces.interfaces, elsewhere))

    assert found(replace(HEALTHY, lacks_arp=True)).cause.startswith("neighbour discovery is off on eth0")
    assert found(replace(HEALTHY, items=(*HEALTHY.items, part))).code == "unplanned-route"
    one = found(replace(HEALTHY, answers=(diverted,)))
    assert (one.code, one.fix) == ("policy-rule", "ip -6 rule add to fd00:5::/48 lookup main priority 1")
    assert found(replace(HEALTHY, interfaces=links)).code == "overlay-address"


def test_the_hop_limit_of_the_underlay_is_evaluated() -> None:
    peers = {PEER: IPv6Address("2001:db8:9::2")}
    seen = replace(HEALTHY, own_ttl=2, membership=replace(HEALTHY.membership, peers=peers))

    (one,) = [one for one in findings(seen) if one.code == "ttl-low"]

    assert one.severity == "error"
    assert one.evidence == (
        "net.ipv6.conf.eth0.hop_limit = 2",
        "a router is on the path to 2001:db8:9::2",
    )
    assert one.fix == "sysctl -w net/ipv6/conf/eth0/hop_limit=64"


def test_the_device_of_each_family_is_compared_with_the_lease() -> None:
    away = replace(ALONE, is_live=False)
    device = Link(
        name="flannel-v6.1", kind="vxlan", mtu=1430, alias="pyflannel", mac="02:00:00:00:00:07", vxlan=VTEP
    )
    other = replace(device, name="flannel.1", vxlan=replace(VTEP, local=IPv4Address("10.0.0.1")))
    seen = replace(
        HEALTHY, status=away, items=(*HEALTHY.items, other, device), published_mac="02:00:00:00:00:08"
    )

    codes = [one.code for one in findings_in_family(replace(seen, is_first=False))]

    assert codes == ["vtep-mac"]


IPV4, IPV4_PEER = IPv4Network("10.100.1.0/24"), IPv4Network("10.100.2.0/24")
BOTH = Status(
    version="1",
    network=NetworkStatus(network=IPv4Network("10.100.0.0/16"), ipv6_network=NETWORK),
    backend=BackendStatus(
        type="wireguard", link="flannel-wg", port=51820, ipv6_link="flannel-wg-v6", ipv6_port=51821
    ),
    underlay=UnderlayStatus(
        link="eth0",
        address=IPv4Address("10.0.0.1"),
        public_ip=IPv4Address("10.0.0.1"),
        mtu=1500,
        ipv6_address=HERE,
        public_ipv6=HERE,
        ipv6_link="eth1",
    ),
    lease=LeaseStatus(subnet=IPV4, ipv6_subnet=OWN),
    refused_peers=(RefusedPeer(subnet=IPV4_PEER, public_ip=IPv4Address("10.0.0.2"), reason="why"),),
    path_mtus=(
        NarrowPath(subnet=IPV4_PEER, planned=1420, measured=1300, since_s=1, is_routed=True),
        NarrowPath(
            subnet=IPV4_PEER, ipv6_subnet=PEER, planned=1420, measured=1290, since_s=1, is_routed=True
        ),
    ),
)
LEASES = (
    LeaseEntry(subnet=IPV4_PEER, ipv6_subnet=PEER, public_ip=IPv4Address("10.0.0.2"), public_ipv6=THERE),
    LeaseEntry(subnet=IPv4Network("10.100.3.0/24"), public_ip=IPv4Address("10.0.0.3")),
)


def test_each_family_is_seen_as_a_network_with_this_family_alone() -> None:
    four, six = (status_in(BOTH, family, LEASES) for family in (4, 6))

    assert families_of(BOTH) == (4, 6)
    assert families_of(ALONE) == families_of(six) == (6,)
    assert [network_of(BOTH, family) for family in (4, 6)] == [IPv4Network("10.100.0.0/16"), NETWORK]
    assert six.lease is not None
    assert six.backend is not None
    assert six.underlay is not None
    assert (six.lease.subnet, six.backend.link, six.backend.port) == (OWN, "flannel-wg-v6", 51821)
    assert (six.underlay.link, six.underlay.address, six.underlay.public_ip) == ("eth1", HERE, HERE)
    assert [one.subnet for one in six.refused_peers] == [PEER]
    assert [one.measured for one in four.path_mtus] == [1300]
    assert [(one.subnet, one.measured) for one in six.path_mtus] == [(PEER, 1290)]
    assert [(one.subnet, one.public_ip) for one in leases_in(LEASES, 6)] == [(PEER, THERE)]
    assert leases_in(LEASES, 4) == list(LEASES)


def test_a_host_that_carries_one_family_of_both_is_examined_in_this_family() -> None:
    underlay = BOTH.underlay
    assert underlay is not None

    assert families_of(replace(BOTH, underlay=replace(underlay, ipv6_address=None))) == (4,)


def test_findings_that_differ_only_in_their_evidence_are_one() -> None:
    one = Finding(code="a", severity="warning", cause="b", evidence=("x",), fix="d")
    other = replace(one, severity="error")

    assert merged([one, other, replace(one, evidence=("x", "y"))]) == (
        other,
        replace(one, evidence=("x", "y")),
    )
