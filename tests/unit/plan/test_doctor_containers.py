"""The findings of doctor about containers: wrong neighbour entries, and ports that learn no MAC addresses."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Interface, InterfaceAddress, Interfaces
from pyflannel.model.network_config import IpAddress
from pyflannel.model.route import Route
from pyflannel.model.status import Finding, LeaseStatus, Membership, Status
from pyflannel.plan.doctor.containers import CHECKS
from pyflannel.plan.doctor.observed import (
    ContainerLink,
    ContainerNamespace,
    Observed,
    SetNeighbour,
    SilentPort,
)

OWN = IPv4Network("10.100.15.0/24")
GATEWAY, ONE, OTHER = (IPv4Address(f"10.100.15.{number}") for number in (1, 2, 3))
ELSEWHERE = IPv4Address("10.100.16.2")
BRIDGE_MAC, ONE_MAC, OTHER_MAC, WRONG = (f"02:00:00:00:00:0{number}" for number in (1, 2, 3, 9))


def container(number: int, address: IPv4Address, mac: str, *entries: SetNeighbour) -> ContainerNamespace:
    link = ContainerLink(name="eth0", mtu=1450, mac=mac, peer=number + 10, addresses=frozenset({address}))
    return ContainerNamespace(
        pid=number,
        process=f"nginx, pid {number}",
        addresses=frozenset({address}),
        links=(link,),
        set_neighbours=entries,
    )


def seen(*entries: SetNeighbour, ports: tuple[SilentPort, ...] = ()) -> Observed:
    held = (InterfaceAddress(address=IPv4Interface(f"{GATEWAY}/24")),)
    bridge = Interface(name="docker0", index=5, mtu=1450, addresses=held, mac=BRIDGE_MAC, kind="bridge")
    ends = (Interface(name=f"veth{number}", index=number + 10, mtu=1450, kind="veth") for number in (1, 2))
    return Observed(
        status=Status(version="1", lease=LeaseStatus(subnet=OWN)),
        membership=Membership(network=IPv4Network("10.100.0.0/16"), subnet=OWN, underlay="eth0", peers={}),
        interfaces=Interfaces(interfaces=(bridge, *ends)),
        items=(Route(destination=OWN, link="docker0", source=GATEWAY, protocol=2),),
        ports={"docker0": {"veth1": 1450, "veth2": 1450}},
        containers=(container(1, ONE, ONE_MAC, *entries), container(2, OTHER, OTHER_MAC)),
        silent_ports=ports,
    )


def found(observed: Observed) -> list[Finding]:
    return [one for check in CHECKS for one in check(observed)]


@pytest.mark.parametrize(("address", "right"), [(GATEWAY, BRIDGE_MAC), (OTHER, OTHER_MAC)])
def test_a_permanent_entry_with_another_mac_address_is_named(address: IPv4Address, right: str) -> None:
    (one,) = found(seen(SetNeighbour(address=address, link="eth0", mac=WRONG)))

    assert (one.code, one.severity) == ("container-neighbour", "error")
    assert one.evidence == (
        f"nginx, pid 1: ip neighbour show {address} dev eth0: lladdr {WRONG} PERMANENT,"
        f" but {address} has {right}",
    )
    assert one.fix == f"nsenter --net --target 1 ip neighbour delete {address} dev eth0"


@pytest.mark.parametrize(
    ("address", "mac"),
    [
        (GATEWAY, BRIDGE_MAC),
        (OTHER, OTHER_MAC),
        (ELSEWHERE, WRONG),  # this host does not know its MAC address
        (IPv6Address("fd00::1"), WRONG),  # examined with the other family
    ],
)
def test_a_right_or_unknown_entry_is_no_finding(address: IpAddress, mac: str) -> None:
    assert found(seen(SetNeighbour(address=address, link="eth0", mac=mac))) == []


def test_two_containers_with_one_address_may_have_either_mac_address() -> None:
    healthy = seen(SetNeighbour(address=OTHER, link="eth0", mac=WRONG))
    twin = container(3, OTHER, WRONG)

    assert found(replace(healthy, containers=(*healthy.containers, twin))) == []


PORT = SilentPort(bridge="docker0", name="veth2", index=12, floods=False)


@pytest.mark.parametrize(("floods", "severity"), [(False, "error"), (True, "warning")])
def test_a_port_that_learns_nothing_is_named_if_the_fdb_lacks_its_container(
    floods: bool, severity: str
) -> None:
    (one,) = found(seen(ports=(replace(PORT, floods=floods),)))

    assert (one.code, one.severity) == ("port-not-learning", severity)
    assert one.evidence == (
        f"bridge -details link show dev veth2: learning off{'' if floods else ' flood off'};"
        f" bridge fdb show br docker0: no entry for {OTHER_MAC} of nginx, pid 2",
    )
    assert one.fix == "bridge link set dev veth2 learning on"


def test_a_port_with_an_entry_or_without_a_container_is_no_finding() -> None:
    known = replace(PORT, macs=frozenset({OTHER_MAC}))
    empty = replace(PORT, index=99)

    assert found(seen(ports=(known, empty))) == []


def test_no_finding_about_containers_on_a_healthy_host() -> None:
    assert found(seen()) == []


def with_link(observed: Observed, **changes: object) -> Observed:
    """Return the observations with changes of the link of the first container."""
    first, *others = observed.containers
    (link,) = first.links
    return replace(observed, containers=(replace(first, links=(replace(link, **changes),)), *others))


def test_a_closed_port_of_a_container_is_named() -> None:
    (one,) = found(replace(seen(), closed_ports={"veth1": "DOWN"}))

    assert (one.code, one.severity) == ("port-closed", "error")
    assert one.evidence == ("ip link show veth1: DOWN, the port of nginx, pid 1",)
    assert one.fix == "ip link set veth1 up"


def test_a_link_that_is_down_in_a_container_is_named() -> None:
    (one,) = found(replace(with_link(seen(), is_up=False), closed_ports={"veth1": "NO-CARRIER"}))

    assert one.evidence == ("eth0 of nginx, pid 1 is down, and veth1 has NO-CARRIER",)
    assert one.fix.startswith("nsenter --net --target 1 ip link set eth0 up  #")


def test_a_closed_port_without_a_visible_container_is_no_finding() -> None:
    assert found(replace(seen(), containers=(), closed_ports={"veth1": "NO-CARRIER"})) == []


def test_a_link_of_a_container_at_no_bridge_is_named() -> None:
    (one,) = found(replace(seen(), ports={"docker0": {"veth2": 1450}}))

    assert (one.code, one.severity) == ("port-closed", "error")
    assert one.fix == "ip link set veth1 master docker0 up"


def test_a_container_with_a_route_of_its_own_needs_no_bridge() -> None:
    routed = replace(seen(), ports={"docker0": {"veth2": 1450}})
    own = Route(destination=IPv4Network(f"{ONE}/32"), link="veth1", protocol=3)

    assert found(replace(routed, items=(*routed.items, own))) == []


@pytest.mark.parametrize("held", [frozenset(), frozenset({IPv6Address("fe80::1")})])
def test_a_container_without_address_is_named(held: frozenset[IpAddress]) -> None:
    (one,) = found(with_link(seen(), addresses=held))

    assert (one.code, one.severity, one.evidence) == (
        "container-address",
        "warning",
        ("eth0 of nginx, pid 1",),
    )


def test_a_wrong_permanent_entry_of_this_host_for_a_container_is_named() -> None:
    """A right entry, and an entry for an unknown address, are no finding."""
    entries = [(ONE, WRONG), (OTHER, OTHER_MAC), (ELSEWHERE, WRONG)]
    held = tuple(SetNeighbour(address=address, link="docker0", mac=mac) for address, mac in entries)

    (one,) = found(replace(seen(), bridge_neighbours=held))

    assert (one.code, one.severity) == ("container-neighbour", "error")
    (line,) = one.evidence
    assert line == (f"ip neighbour show {ONE} dev docker0: lladdr {WRONG} PERMANENT, but {ONE} has {ONE_MAC}")
    assert one.fix == f"ip neighbour delete {ONE} dev docker0"


def test_a_route_beside_the_bridge_to_a_container_is_named() -> None:
    other = Route(destination=IPv4Network(f"{ONE}/32"), link="eth0", protocol=3)
    well = seen()

    (one,) = found(replace(well, items=(*well.items, other)))

    assert (one.code, one.severity) == ("unplanned-route", "error")
    assert one.evidence == (f"{ONE} is at docker0, but route {ONE}/32 dev eth0 proto 3",)
    assert one.fix == f"ip route delete {ONE}/32 proto 3"


def test_a_missing_route_to_the_bridge_is_named() -> None:
    whole = Route(destination=IPv4Network("10.100.0.0/16"), link="flannel0", protocol=2)

    (one,) = found(replace(seen(), items=(whole,)))

    assert [line.partition(" ")[0] for line in one.evidence] == [str(ONE), str(OTHER)]
    assert one.fix == f"ip route add {OWN} dev docker0"


def test_a_container_without_a_network_is_information() -> None:
    alone = ContainerNamespace(pid=9, process="sleep, pid 9", container_id="0b20cc2d451d")
    sandbox = ContainerNamespace(pid=10, process="systemd-hostnam, pid 10")

    (one,) = found(replace(seen(), containers=(*seen().containers, alone, sandbox)))

    assert (one.code, one.severity) == ("container-unconnected", "info")
    assert one.evidence == ("container 0b20cc2d451d, sleep, pid 9",)
    assert one.fix.startswith("docker network connect bridge 0b20cc2d451d")


@pytest.mark.parametrize("times", [0, 1])
def test_missing_routes_of_a_bridge_that_is_down_are_no_finding(times: int) -> None:
    """The kernel removes the routes of a link that is set down, possibly after the links were read."""
    well = seen()
    links = tuple(
        replace(one, is_up=one.name != "docker0" or times > 0) for one in well.interfaces.interfaces
    )
    whole = Route(destination=IPv4Network("10.100.0.0/16"), link="flannel0", protocol=2)
    down = replace(well, interfaces=Interfaces(interfaces=links), items=(whole,))

    assert found(replace(down, set_down={"docker0": times} if times else {})) == []
