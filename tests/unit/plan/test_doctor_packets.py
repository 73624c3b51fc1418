"""The findings of doctor about packets: routes, interfaces, addresses."""

import shlex
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from msgspec.structs import replace

from pyflannel.model.host import DefaultRoute, Interface, InterfaceAddress, Interfaces
from pyflannel.model.link import Link, Vxlan
from pyflannel.model.route import Route, RouteAnswer
from pyflannel.model.status import (
    BackendStatus,
    UnderlayStatus,
)
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import ContainerLink, ContainerNamespace, ContainerRoute, Observed
from pyflannel.plan.doctor.policy_rules import PolicyRule, mark_of
from testlab.healthy_host import HEALTHY, HERE, LINKS, NETWORK, OWN, PEER, THERE, found, interface, iptables


def test_a_healthy_host_has_no_findings() -> None:
    assert findings(HEALTHY) == ()


def test_a_host_that_answers_no_requests_is_named() -> None:
    assert found(replace(HEALTHY, ignores_echoes=True)).fix == "sysctl -w net.ipv4.icmp_echo_ignore_all=0"
    assert found(replace(HEALTHY, ignores_arp=True)).code == "arp-ignored"


def answer(**more: Any) -> RouteAnswer:
    return replace(
        RouteAnswer(way="container out", destination=PEER.network_address + 2, text="the answer"), **more
    )


def test_a_refused_source_is_named_with_its_interface() -> None:
    refused = answer(way="tunnel in", destination=HERE, refused_at="eth0")

    one = found(replace(HEALTHY, answers=(refused, refused)))

    assert (one.code, one.evidence) == ("source-refused", ("the answer", "the answer"))
    assert one.fix == "sysctl -w net/ipv4/conf/all/rp_filter=2 net/ipv4/conf/eth0/rp_filter=2"


@pytest.mark.parametrize(
    ("rule", "saved", "link", "is_named"),
    [
        (
            "90: from all fwmark 0x99 lookup 77",
            "-A PREROUTING -j MARK --set-xmark 0x99/0xffffffff",
            None,
            True,
        ),
        (
            "90: from all fwmark 0x99 lookup 77",
            "-A PREROUTING -j MARK --set-xmark 0x98/0xffffffff",
            None,
            False,
        ),
        (
            "90: from all fwmark 0x99 lookup 77",
            "-A PREROUTING -j MARK --set-xmark 0x99/0xffffffff",
            "flannel.1",
            False,
        ),
    ],
)
def test_a_policy_rule_for_a_mark_is_named_if_a_filter_rule_sets_the_mark(
    rule: str, saved: str, link: str | None, is_named: bool
) -> None:
    rules = iptables(":PREROUTING ACCEPT", saved, table="mangle")
    seen = replace(HEALTHY, ruleset=rules, marked_answers=(answer(link=link, rules=(rule,)),))

    named = [one for one in findings(seen) if one.code == "policy-rule"]

    assert [one.severity for one in named] == (["warning"] if is_named else [])
    for one in named:
        assert one.evidence[0] == f"ip rule: {rule}"
        assert saved.removeprefix("-A PREROUTING ") in one.evidence[1]


@pytest.mark.parametrize(
    ("rule", "mark"),
    [
        ("90: from all fwmark 0x99 lookup 77", 0x99),
        ("90: from all fwmark 0x80000/0xff0000 unreachable", 0x80000),
        ("90: not from all fwmark 0xca6c lookup 51820", 0),
        ("90: from all lookup 77", 0),
    ],
)
def test_the_mark_of_a_policy_rule_is_read(rule: str, mark: int) -> None:
    assert mark_of(rule) == mark


def test_a_policy_rule_is_named_if_packets_leave_the_route_of_the_main_table() -> None:
    rule = "100: from all to 10.100.0.0/16 lookup 77"

    one = found(replace(HEALTHY, answers=(answer(link="eth0", rules=(rule,)),)))

    assert (one.code, one.evidence) == ("policy-rule", (f"ip rule: {rule}", "the answer"))
    assert findings(replace(HEALTHY, answers=(answer(link="flannel.1", rules=(rule,)),))) == ()


@pytest.mark.parametrize(
    ("rule", "routes", "cause", "fix"),
    [
        (
            "100: from all to 10.100.16.0/24 lookup 77",
            ("default via 10.0.0.9 dev eth0",),
            "a policy rule diverts packets of containers to other hosts",
            "ip rule delete priority 100 from all to 10.100.16.0/24 lookup 77",
        ),
        (
            "500: from all to 10.100.15.2 lookup 99",
            ("local 10.100.15.2 dev lo scope host",),
            "a policy rule diverts packets of containers of other hosts to containers of this host",
            "ip rule delete priority 500 from all to 10.100.15.2 lookup 99",
        ),
        (
            "90: from all iif docker0 [detached] blackhole",
            (),
            "a policy rule diverts packets of containers to other hosts",
            "ip rule delete priority 90 from all iif docker0 blackhole",
        ),
        (
            "220: from all lookup 220",  # of strongSwan, which adds it again
            ("default dev ipsec0",),
            "a policy rule diverts packets of containers of this host and of other hosts",
            "ip rule add to 10.100.0.0/16 lookup main priority 1",
        ),
    ],
)
def test_only_the_policy_rule_that_decides_is_named_and_deleted(
    rule: str, routes: tuple[str, ...], cause: str, fix: str
) -> None:
    """A rule for other packets, and a rule whose table has no route for them, do not decide."""
    others = (
        "50: from all to 192.0.2.0/24 lookup 5",
        "60: from all lookup 6",
        "70: from all lookup main suppress_prefixlength 0",
    )
    answers = (answer(rules=(*others, rule)),)
    seen = replace(
        HEALTHY, answers=answers, rule_routes={others[0]: ("default dev eth9",), others[1]: (), rule: routes}
    )

    one = found(seen)

    assert (one.code, one.severity, one.cause, one.fix) == ("policy-rule", "error", cause, fix)
    shown = [f"ip -4 route show table {rule.split()[-1]}: {route}" for route in routes]
    assert one.evidence == (f"ip rule: {rule}", *shown, "the answer")


def test_a_rule_that_diverts_only_packets_to_containers_of_this_host_is_named() -> None:
    rule = "500: from all to 10.100.15.2 lookup 99"
    good = replace(HEALTHY.answers[0], rules=(rule,))
    items = (*HEALTHY.items, Route(destination=OWN, link="docker0", protocol=2))
    wrong = answer(way="container in", destination=OWN[2], is_local=True, link="lo")
    seen = replace(HEALTHY, items=items, answers=(good, wrong), rule_routes={rule: ("local 10.100.15.2",)})

    assert found(seen).code == "policy-rule"
    assert findings(replace(seen, answers=(good, replace(wrong, link="docker0", is_local=False)))) == ()


@pytest.mark.parametrize(
    ("rule", "is_selected"),
    [
        ("9: from all lookup 7", True),
        ("9: from 10.100.15.0/24 lookup 7", True),
        ("9: from 10.100.16.0/24 lookup 7", False),
        ("9: from all to 10.100.16.2 lookup 7", True),
        ("9: from all iif docker0 lookup 7", True),
        ("9: from all iif eth0 lookup 7", False),
        ("9: from all oif eth0 lookup 7", False),
        ("9: from all fwmark 0x7 lookup 7", False),
        ("9: from all fwmark 0/0xff lookup 7", True),
        ("9: not from all fwmark 0xca6c lookup 7", True),
        ("9: not from all to 10.100.0.0/16 lookup 7", False),
        ("9: from all ipproto tcp dport 80 lookup 7", False),
    ],
)
def test_the_selectors_of_a_policy_rule_are_evaluated(rule: str, is_selected: bool) -> None:
    assert PolicyRule.parse(rule).selects(OWN[2], PEER[2], "docker0") is is_selected


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("9: from all ipproto tcp sport 80-90 lookup 7", ("ipproto", "tcp", "sport", "80")),
        ("9: from all ipproto ipv6-icmp lookup 7", ("ipproto", "ipv6-icmp")),
        ("9: from all tos 0x10 dport 53 lookup 7", ("tos", "0x10", "dport", "53")),
        ("9: from all ipproto sctp lookup 7", ()),
        ("9: not from all ipproto tcp lookup 7", ()),
        ("9: from all lookup 7", ()),
    ],
)
def test_the_kernel_is_asked_with_the_kind_of_packets_that_a_rule_selects(
    rule: str, kind: tuple[str, ...]
) -> None:
    assert PolicyRule.parse(rule).kind == kind


@pytest.mark.parametrize(
    ("selectors", "severity"),
    [("ipproto tcp sport 80", "warning"), ("ipproto tcp", "error"), ("tos 0x10", "warning")],
)
def test_a_rule_that_diverts_one_kind_of_packets_is_named(selectors: str, severity: str) -> None:
    rule = f"9: from {OWN} {selectors} lookup 147"
    (good,) = HEALTHY.answers
    wrong = answer(link="eth0", rules=(rule,))
    seen = replace(HEALTHY, kind_answers=(wrong,), rule_routes={rule: ("default via 10.0.0.9 dev eth0",)})

    one = found(seen)

    assert (one.code, one.severity) == ("policy-rule", severity)
    assert one.evidence == (
        f"ip rule: {rule}",
        "ip -4 route show table 147: default via 10.0.0.9 dev eth0",
        "the answer",
    )
    assert one.fix == f"ip rule delete priority 9 from {OWN} {selectors} lookup 147"
    assert findings(replace(seen, kind_answers=(replace(good, rules=(rule,)),))) == ()
    assert findings(replace(seen, rule_routes={rule: ()})) == ()


@pytest.mark.parametrize(
    ("links", "code", "fix"),
    [
        (
            (*LINKS[:2], interface("docker0", "10.100.15.1/24", is_up=False)),
            "bridge-down",
            "ip link set docker0 up",
        ),
        (
            (*LINKS, interface("eth1", "10.100.16.9/24")),
            "overlay-address",
            "ip address delete 10.100.16.9/24 dev eth1",
        ),
        (
            (interface("eth0", "10.0.0.7/24"), *LINKS[1:]),
            "address-gone",
            "ip address add 10.0.0.1/24 dev eth0  # then add the default route, which the kernel deleted with"
            " the address",
        ),
        (
            (interface("eth0", "192.0.2.7/24"), *LINKS[1:]),
            "address-gone",
            "ip address show dev eth0  # the link needs 10.0.0.1 again: let the network service of this host"
            " configure the link, or add the address with the prefix length from the documentation of the"
            " network; then add the default route, which the kernel deleted with the address",
        ),
    ],
)
def test_a_fault_of_an_interface_is_named(links: tuple[Interface, ...], code: str, fix: str) -> None:
    one = found(replace(HEALTHY, interfaces=Interfaces(interfaces=links)))

    assert (one.code, one.fix) == (code, fix)


def test_a_lost_address_gets_the_prefix_length_that_flanneld_saw() -> None:
    underlay = replace(HEALTHY.status.underlay, prefix_length=26)
    seen = replace(HEALTHY, status=replace(HEALTHY.status, underlay=underlay))

    one = found(replace(seen, interfaces=Interfaces(interfaces=(interface("eth0"), *LINKS[1:]))))

    assert one.code == "address-gone"
    assert one.fix.startswith("ip address add 10.0.0.1/26 dev eth0  # then add the default route")


def test_a_lost_address_beside_a_default_route_needs_no_other_route() -> None:
    links = (interface("eth0", "10.0.0.7/24"), *LINKS[1:])
    routes = (DefaultRoute(link="eth0", gateway=IPv4Address("10.0.0.254")),)

    one = found(replace(HEALTHY, interfaces=Interfaces(interfaces=links, default_routes=routes)))

    assert (one.code, one.fix) == ("address-gone", "ip address add 10.0.0.1/24 dev eth0")


def test_a_route_in_the_table_local_to_an_address_of_another_host_is_named() -> None:
    there = PEER.network_address + 2
    taken = answer(is_local=True, link="lo", text=f"local {there} dev lo table local")
    unreached = replace(taken, is_local=False)

    one = found(replace(HEALTHY, answers=(taken,)))

    assert (one.code, one.severity, one.evidence) == ("overlay-address", "error", (taken.text,))
    assert one.fix.startswith(f"ip -4 route delete local {there} table local  #")
    assert findings(replace(HEALTHY, answers=(unreached,))) == ()


@pytest.mark.parametrize(
    ("route", "is_named"),
    [
        ("broadcast 10.100.15.2 dev docker0 scope link", True),
        ("unreachable 10.100.15.2", True),
        ("local 10.100.15.0/25 dev lo scope host", True),
        ("local 10.100.15.7 dev lo scope host", True),  # of a container
        ("local 10.100.15.9 dev lo scope host", False),
        ("local 10.100.16.9 dev lo scope host", True),
    ],
)
def test_a_route_of_the_table_local_to_containers_is_named_and_deleted(route: str, is_named: bool) -> None:
    """A policy rule does not decide about its packets. A program of this host may use a free address."""
    container = ContainerNamespace(
        pid=7, process="nginx", addresses=frozenset({OWN[7]}), routes=(LOCAL, DEFAULT)
    )
    rule = "100: from all lookup 77"
    seen = replace(HEALTHY, local_routes=(route,), containers=(container,), rule_routes={rule: ("default",)})
    if "10.100.15.2 " in f"{route} ":
        wrong = answer(way="container in", destination=OWN[2], kind="broadcast", link="lo", rules=(rule,))
        seen = replace(seen, answers=(*seen.answers, wrong))

    named = findings(seen)

    assert [one.code for one in named] == (["overlay-address"] if is_named else [])
    for one in named:
        assert one.evidence == (f"ip -4 route show table local: {route}",)
        assert one.fix == f"ip -4 route delete {route} table local"


@pytest.mark.parametrize(
    ("more", "is_named"),
    [
        ({}, False),
        ({"gateway": IPv4Address("10.0.0.240")}, True),
        ({"kind": "broadcast"}, True),
        ({"link": "eth1"}, True),
    ],
)
def test_another_gateway_or_type_than_that_of_the_route_is_named(
    more: dict[str, Any], is_named: bool
) -> None:
    """A network of the backend host-gw uses one link for all packets."""
    rule = "100: from all lookup 147"
    routes = {rule: ("default via 10.0.0.240 dev eth0",)}
    planned = Route(destination=PEER, link="eth0", gateway=THERE)
    status = replace(HEALTHY.status, backend=BackendStatus(type="host-gw", mtu=1500))
    right = answer(link="eth0", gateway=THERE, rules=(rule,))
    seen = replace(HEALTHY, status=status, items=(planned,), rule_routes=routes)

    named = findings(replace(seen, answers=(replace(right, **more),)))

    assert [one.code for one in named if one.severity == "error"] == (["policy-rule"] if is_named else [])


def test_an_address_of_another_host_at_an_interface_is_one_finding() -> None:
    there = PEER.network_address + 2
    links = (*LINKS, interface("eth1", f"{there}/32"))

    one = found(
        replace(HEALTHY, interfaces=Interfaces(interfaces=links), answers=(answer(is_local=True, link="lo"),))
    )

    assert one.fix == f"ip address delete {there}/32 dev eth1"


@pytest.mark.parametrize(("link", "is_named"), [("docker0", True), ("flannel.1", True), ("eth0", False)])
def test_a_link_of_the_way_whose_packets_are_not_forwarded_is_named(link: str, is_named: bool) -> None:
    found = findings(replace(HEALTHY, unforwarded=frozenset({link})))

    assert [one.code for one in found] == (["forwarding-off"] if is_named else [])
    for one in found:
        assert one.evidence == (f"net.ipv4.conf.{link}.forwarding = 0",)
        assert one.fix == f"sysctl -w net/ipv4/conf/{link}/forwarding=1"


@pytest.mark.parametrize(("prefix", "severity"), [("10.100.16.0/25", "error"), ("10.100.0.0/17", "warning")])
def test_an_unplanned_route_that_takes_packets_of_a_peer_is_an_error(prefix: str, severity: str) -> None:
    """A wider route takes no packets, because the kernel prefers the route of the peer."""
    other = Route(destination=IPv4Network(prefix), link="eth0", gateway=IPv4Address("10.0.0.9"), protocol=3)

    (found,) = findings(replace(HEALTHY, items=(*HEALTHY.items, other)))

    assert (found.code, found.severity) == ("unplanned-route", severity)


GATEWAY = OWN.network_address + 1

LOCAL = ContainerRoute(destination=OWN)

DEFAULT = ContainerRoute(destination=IPv4Network("0.0.0.0/0"), gateway=GATEWAY)


def test_a_container_that_refuses_packets_for_other_hosts_is_named() -> None:
    address = OWN.network_address + 2
    refused = ContainerRoute(destination=NETWORK, is_refused=True)
    container = ContainerNamespace(
        pid=7, process="nginx, pid 7", addresses=frozenset({address}), routes=(LOCAL, DEFAULT, refused)
    )

    one = found(replace(HEALTHY, containers=(container,)))
    every = replace(container, routes=(LOCAL, replace(refused, destination=IPv4Network("0.0.0.0/0"))))
    isolated = found(replace(HEALTHY, containers=(every,)))

    assert (one.code, one.severity) == ("container-route", "warning")
    assert one.evidence == ("nginx, pid 7: ip -4 route show 10.100.0.0/16: refuses packets",)
    assert one.fix == "nsenter --net --target 7 ip -4 route delete 10.100.0.0/16"
    assert (isolated.code, isolated.severity) == ("container-route", "info")
    assert isolated.evidence == ("10.100.15.2, nginx, pid 7, refuses packets to 0.0.0.0/0",)
    assert isolated.fix.startswith("nsenter --net --target 7 ip -4 route  #")


def test_a_container_with_a_wrong_gateway_is_named() -> None:
    """A gateway outside the subnet, and another container as the gateway, may be intended."""
    address, other = OWN.network_address + 2, OWN.network_address + 3
    held = (InterfaceAddress(address=IPv4Interface(f"{GATEWAY}/24")),)
    bridge = Interface(name="docker0", index=9, mtu=1450, addresses=held, kind="bridge")
    wrong = ContainerNamespace(
        pid=7,
        process="nginx, pid 7",
        addresses=frozenset({address}),
        routes=(LOCAL, replace(DEFAULT, gateway=OWN.network_address + 77)),
    )
    right = replace(wrong, pid=8, addresses=frozenset({other}), routes=(LOCAL, DEFAULT))
    by_container = replace(wrong, pid=9, routes=(replace(DEFAULT, gateway=other),))
    outside = replace(wrong, pid=10, routes=(replace(DEFAULT, gateway=IPv4Address("172.17.0.1")),))
    seen = replace(HEALTHY, interfaces=Interfaces(interfaces=(*LINKS, bridge)), ports={"docker0": {}})

    one = found(replace(seen, containers=(wrong, right, by_container, outside)))

    assert (one.code, one.severity) == ("container-gateway", "warning")
    assert one.evidence == ("nginx, pid 7: 0.0.0.0/0 via 10.100.15.77",)
    assert one.fix == "nsenter --net --target 7 ip -4 route replace 0.0.0.0/0 via 10.100.15.1"


def test_a_container_without_a_route_to_other_hosts_is_named() -> None:
    address = OWN.network_address + 2
    lost = ContainerNamespace(pid=7, process="nginx, pid 7", addresses=frozenset({address}), routes=(LOCAL,))
    routed = replace(lost, pid=8, process="web, pid 8", routes=(LOCAL, DEFAULT))
    elsewhere = replace(lost, pid=9, addresses=frozenset({IPv4Address("172.17.0.2")}))

    (found,) = findings(replace(HEALTHY, containers=(lost, routed, elsewhere)))

    assert (found.code, found.severity) == ("container-route", "info")
    assert found.evidence == ("10.100.15.2, nginx, pid 7",)


def test_a_container_with_a_prefix_that_contains_other_hosts_is_named() -> None:
    """It asks for the MAC address of the other container, which no container at the bridge has."""
    address, whole = OWN.network_address + 2, ContainerRoute(destination=NETWORK)
    wide = ContainerNamespace(
        pid=7,
        process="nginx, pid 7",
        addresses=frozenset({address}),
        routes=(whole, DEFAULT),
    )
    right = replace(wide, pid=8, process="web, pid 8", routes=(LOCAL, DEFAULT))
    routed = replace(wide, pid=9, process="api, pid 9", routes=(replace(whole, gateway=GATEWAY),))

    one = found(replace(HEALTHY, containers=(wide, right, routed)))

    assert (one.code, one.evidence) == ("container-prefix", ("nginx, pid 7: 10.100.0.0/16 is on the link",))


def test_a_container_with_a_larger_mtu_than_its_port_is_named() -> None:
    container = ContainerNamespace(
        pid=7, process="nginx, pid 7", links=(ContainerLink(name="eth0", mtu=9000),)
    )
    seen = replace(HEALTHY, containers=(container,))

    one = found(seen)

    assert (one.code, one.evidence) == ("container-mtu", ("eth0 of nginx, pid 7 has MTU 9000",))
    assert one.fix == "nsenter --net --target 7 ip link set eth0 mtu 1450"
    large = found(replace(seen, ports={"docker0": {"veth1": 9000}}))
    assert large.evidence == ("veth1 has MTU 9000",)


def test_an_underlay_without_arp_is_named() -> None:
    """There is no finding if an operator has set the MAC addresses of the peers on the link."""
    seen = replace(HEALTHY, lacks_arp=True)

    one = found(seen)

    assert (one.code, one.severity, one.fix) == ("arp-off", "error", "ip link set eth0 arp on")
    assert one.evidence == ("ip link show eth0: NOARP", "10.0.0.2: no MAC address")
    assert findings(replace(seen, set_neighbours=frozenset({THERE}))) == ()
    assert findings(replace(seen, on_link=())) == ()


def test_containers_of_docker_outside_the_subnet_are_named() -> None:
    """There is no finding if docker0 has no container, or another bridge is in the subnet."""
    docker0 = interface("docker0", "172.17.0.1/16")
    seen = replace(
        HEALTHY, ports={}, docker0_ports=2, interfaces=Interfaces(interfaces=(*LINKS[:2], docker0))
    )

    one = found(seen)

    assert (one.code, one.severity) == ("bridge-subnet", "warning")
    assert one.evidence == ("docker0 has 172.17.0.1/16, and 2 containers",)
    assert findings(replace(seen, docker0_ports=0)) == ()
    assert findings(replace(seen, ports={"cni0": {}})) == ()


def test_a_docker0_that_lost_its_address_is_no_other_subnet() -> None:
    """The containers at docker0 still have addresses of the subnet."""
    container = ContainerNamespace(pid=7, process="web, pid 7", addresses=frozenset({OWN[2]}))
    links = Interfaces(interfaces=(*LINKS[:2], replace(interface("docker0", "172.17.0.1/16"), addresses=())))
    seen = replace(HEALTHY, ports={}, docker0_ports=1, interfaces=links, containers=(container,))

    one = next(one for one in findings(seen) if one.severity == "error")

    assert (one.code, one.fix) == (
        "container-gateway",
        f"ip address add {OWN[1]}/{OWN.prefixlen} dev docker0",
    )
    assert one.evidence == ("ip address show docker0: no address", f"web, pid 7 has an address in {OWN}")


def test_docker0_with_a_former_subnet_is_repaired_with_the_options_of_docker() -> None:
    docker0 = interface("docker0", "10.100.77.1/24")

    one = found(replace(HEALTHY, ports={}, interfaces=Interfaces(interfaces=(*LINKS[:2], docker0))))

    assert one.code == "overlay-address"
    assert one.fix.startswith("mk-docker-opts -c")


@pytest.mark.parametrize(
    ("public", "code"),
    [("10.0.2.15", "nat-address"), ("10.0.0.99", "public-address"), ("203.0.113.7", None)],
)
def test_a_public_address_that_peers_cannot_use_is_named(public: str, code: str | None) -> None:
    """An address outside the prefix of the underlay may be the address of a NAT."""
    underlay = UnderlayStatus(link="eth0", address=HERE, public_ip=IPv4Address(public), mtu=1500)
    seen = replace(HEALTHY, status=replace(HEALTHY.status, underlay=underlay))

    assert [one.code for one in findings(seen)] == ([] if code is None else [code])
    for one in findings(seen):
        if one.code == "public-address":
            assert one.fix.startswith("flanneld --public-ip=10.0.0.1  #")


def test_a_vxlan_device_without_its_published_mac_address_is_named_while_no_daemon_runs() -> None:
    vxlan = Vxlan(vni=1, port=8472, parent="eth0", local=HERE)
    device = Link(name="flannel.1", kind="vxlan", mtu=1450, mac="02:00:00:00:00:01", vxlan=vxlan)
    live = replace(HEALTHY, items=(*HEALTHY.items, device), published_mac="02:00:00:00:00:02")
    dead = replace(live, status=replace(HEALTHY.status, is_live=False))

    assert findings(live) == ()
    assert [one.code for one in findings(replace(dead, published_mac=device.mac))] == ["daemon-away"]
    (one,) = [one for one in findings(dead) if one.code != "daemon-away"]
    assert (one.code, one.severity) == ("vtep-mac", "error")
    assert one.fix == "ip link set flannel.1 address 02:00:00:00:00:02"


NAME = "$(reboot)'`x`;#"


def test_a_name_that_a_container_chose_is_one_word_of_a_command() -> None:
    """An operator copies the command into a shell of root."""
    container = ContainerNamespace(pid=7, process="nginx, pid 7", links=(ContainerLink(name=NAME, mtu=9000),))

    one = found(replace(HEALTHY, containers=(container,)))

    assert shlex.split(one.fix, comments=True)[-3:] == [NAME, "mtu", "1450"]
    assert one.evidence == (f"{NAME} of nginx, pid 7 has MTU 9000",)


@pytest.mark.parametrize(
    ("seen", "last"),
    [
        (
            replace(
                HEALTHY,
                ports={NAME: {}},
                interfaces=Interfaces(interfaces=(*LINKS, interface(NAME, "10.100.15.1/24", is_up=False))),
            ),
            [NAME, "up"],
        ),
        (
            replace(HEALTHY, ports={NAME: {}}, unforwarded=frozenset({NAME})),
            ["-w", f"net/ipv4/conf/{NAME}/forwarding=1"],
        ),
        (
            replace(HEALTHY, interfaces=Interfaces(interfaces=(*LINKS, interface(NAME, "10.100.16.9/24")))),
            ["dev", NAME],
        ),
        (
            replace(HEALTHY, answers=(answer(way="tunnel in", destination=HERE, refused_at=NAME),)),
            ["net/ipv4/conf/all/rp_filter=2", f"net/ipv4/conf/{NAME}/rp_filter=2"],
        ),
    ],
    ids=["bridge", "forwarding", "address", "reverse path"],
)
def test_a_name_of_a_link_is_one_word_of_a_command(seen: Observed, last: list[str]) -> None:
    one = found(seen)

    assert shlex.split(one.fix, comments=True)[-2:] == last
