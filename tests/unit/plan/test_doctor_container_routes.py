"""The findings of doctor about routes inside containers."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Interface, InterfaceAddress, Interfaces
from pyflannel.model.route import Route
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.container_routes import CHECKS, unusual_answer
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import (
    ContainerLink,
    ContainerNamespace,
    ContainerRoute,
    InnerAnswer,
    Observed,
    RouteTables,
)
from testlab.healthy_host import HEALTHY, LINKS, OWN, PEER, THERE

GATEWAY, ADDRESS, UNUSED = (IPv4Address(f"10.100.15.{number}") for number in (1, 2, 77))
OTHER = IPv4Network("10.100.17.0/24")
DEFAULT = ContainerRoute(destination=IPv4Network("0.0.0.0/0"), gateway=GATEWAY)
TO_PEER, TO_OTHER = (
    InnerAnswer(destination=peer.network_address + 2, link="eth0", gateway=GATEWAY, source=ADDRESS)
    for peer in (PEER, OTHER)
)

CONTAINER = ContainerNamespace(
    pid=7,
    process="web, pid 7",
    addresses=frozenset({ADDRESS}),
    links=(ContainerLink(name="eth0", mtu=1450, peer=11, addresses=frozenset({ADDRESS})),),
    routes=(ContainerRoute(destination=OWN), DEFAULT),
    answers=(TO_PEER, TO_OTHER),
)


def with_container(**changes: object) -> Observed:
    """Return a healthy host with two peers and one container at docker0."""
    held = (InterfaceAddress(address=IPv4Interface("10.100.15.1/24")),)
    docker0 = Interface(name="docker0", index=3, mtu=1450, kind="bridge", addresses=held)
    veth = Interface(name="veth1", index=11, mtu=1450, kind="veth")
    return replace(
        HEALTHY,
        membership=replace(HEALTHY.membership, peers={PEER: THERE, OTHER: THERE + 1}),
        interfaces=Interfaces(interfaces=(*LINKS[:2], docker0, veth)),
        ports={"docker0": {"veth1": 1450}},
        items=(*HEALTHY.items, Route(destination=OWN, link="docker0", protocol=2)),
        containers=(replace(CONTAINER, **changes),),
    )


def found(seen: Observed) -> list[Finding]:
    return [one for check in CHECKS for one in check(seen)]


def tables(*rules: str, **read: str) -> tuple[RouteTables, ...]:
    return (
        RouteTables(
            destination=TO_OTHER.destination,
            rules=rules,
            tables={name.removeprefix("table"): (route,) for name, route in read.items()},
        ),
    )


def test_a_healthy_container_is_no_finding() -> None:
    assert findings(with_container()) == ()
    assert unusual_answer(CONTAINER) is None


def refused(error: str = "No route to host") -> InnerAnswer:
    return InnerAnswer(destination=TO_OTHER.destination, asked_source=ADDRESS, error=error)


@pytest.mark.parametrize(
    ("read", "shown", "command"),
    [
        (
            tables(main="unreachable 10.100.17.0/24"),
            "ip -4 route show match 10.100.17.2: unreachable 10.100.17.0/24",
            "ip -4 route delete unreachable 10.100.17.0/24",
        ),
        (
            tables(
                "99: from 10.100.15.2 to 10.100.17.0/24 prohibit", main="default via 10.100.15.1 dev eth0"
            ),
            "ip rule: 99: from 10.100.15.2 to 10.100.17.0/24 prohibit",
            "ip rule delete priority 99 from 10.100.15.2 to 10.100.17.0/24 prohibit",
        ),
        (
            tables("99: from all lookup 7", table7="blackhole default", main="default via 10.100.15.1"),
            "ip rule: 99: from all lookup 7",
            "ip rule delete priority 99 from all lookup 7",
        ),
    ],
)
def test_a_route_or_rule_that_refuses_packets_to_one_peer_is_named(
    read: tuple[RouteTables, ...], shown: str, command: str
) -> None:
    seen = with_container(answers=(TO_PEER, TO_OTHER, refused()), route_tables=read)

    (one,) = found(seen)

    assert unusual_answer(seen.containers[0]) == refused()
    assert (one.code, one.severity) == ("container-route", "warning")
    assert one.evidence[0] == f"web, pid 7: {shown}"
    assert one.evidence[-1].endswith("ip -4 route get 10.100.17.2 from 10.100.15.2: No route to host")
    assert one.fix == f"nsenter --net --target 7 {command}"


def test_every_route_that_refuses_packets_to_a_peer_is_named() -> None:
    routes = [ContainerRoute(destination=peer, is_refused=True) for peer in (PEER, OTHER)]

    (one,) = found(with_container(routes=(*CONTAINER.routes, *routes), answers=()))

    assert one.fix == "; ".join(
        f"nsenter --net --target 7 ip -4 route delete {peer}" for peer in ("10.100.16.0/24", "10.100.17.0/24")
    )


@pytest.mark.parametrize(
    ("destination", "repair"),
    [
        (DEFAULT.destination, "replace 0.0.0.0/0 via 10.100.15.1"),
        (OTHER, "delete 10.100.17.0/24 via 10.100.15.77"),
    ],
)
def test_a_wrong_gateway_to_one_peer_is_named(destination: IPv4Network, repair: str) -> None:
    wrong = ContainerRoute(destination=destination, gateway=UNUSED)
    routes = (wrong, *(one for one in CONTAINER.routes if one.destination != destination))

    (one,) = found(with_container(routes=routes, answers=(TO_PEER, replace(TO_OTHER, gateway=UNUSED))))

    assert (one.code, one.severity) == ("container-gateway", "warning")
    assert one.evidence == (f"web, pid 7: {destination} via {UNUSED}",)
    assert one.fix == f"nsenter --net --target 7 ip -4 route {repair}"


def test_a_bridge_that_has_lost_the_gateway_of_its_containers_is_named() -> None:
    seen = with_container()
    held = (InterfaceAddress(address=IPv4Interface("10.100.15.254/24")),)
    changed = tuple(
        replace(one, addresses=held) if one.name == "docker0" else one for one in seen.interfaces.interfaces
    )

    (one,) = found(replace(seen, interfaces=Interfaces(interfaces=changed)))

    assert (one.code, one.severity) == ("container-gateway", "error")
    assert one.evidence == (
        "docker0: 10.100.15.254, without 10.100.15.1",
        "web, pid 7: 0.0.0.0/0 via 10.100.15.1",
    )
    assert one.fix == "ip address add 10.100.15.1/24 dev docker0"


def test_a_wrong_gateway_in_the_table_of_a_policy_rule_is_named() -> None:
    answer = replace(TO_OTHER, gateway=UNUSED, asked_source=ADDRESS)
    read = tables("99: from all to 10.100.17.0/24 lookup 7", table7=f"default via {UNUSED} dev eth0")

    (one,) = found(with_container(answers=(TO_PEER, TO_OTHER, answer), route_tables=read))

    assert (one.code, one.severity) == ("container-gateway", "warning")
    assert (
        one.fix == "nsenter --net --target 7 ip rule delete priority 99 from all to 10.100.17.0/24 lookup 7"
    )


def test_a_source_that_is_not_in_the_subnet_is_named() -> None:
    """A container of two networks may send by its other link, or from an address that this host knows."""
    answers = tuple(replace(one, source=IPv4Address("192.0.2.5")) for one in (TO_PEER, TO_OTHER))
    seen = with_container(answers=answers)
    other_link = tuple(replace(one, link="eth1") for one in answers)
    known = Route(destination=IPv4Network("192.0.2.5/32"), link="docker0", protocol=3)

    (one,) = found(seen)

    assert (one.code, one.severity) == ("container-source", "warning")
    assert one.evidence == ("web, pid 7: 0.0.0.0/0 by eth0 has the source 192.0.2.5",)
    assert one.fix == (
        "nsenter --net --target 7 ip -4 route replace 0.0.0.0/0 via 10.100.15.1 dev eth0 src 10.100.15.2"
    )
    assert found(with_container(answers=other_link)) == []
    assert found(replace(seen, items=(*seen.items, known))) == []


def test_a_container_without_any_route_is_information() -> None:
    """It is in an internal network, if no rule refuses the packets."""
    answers = tuple(
        replace(refused("Network is unreachable"), destination=one.destination) for one in CONTAINER.answers
    )
    read = replace(tables()[0], tables={"main": ()})

    (one,) = found(with_container(routes=CONTAINER.routes[:1], answers=answers, route_tables=(read,)))

    assert (one.code, one.severity) == ("container-route", "info")
