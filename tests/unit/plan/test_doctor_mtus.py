"""The findings of doctor about the MTUs between containers and their bridge."""

from ipaddress import IPv4Address, IPv4Interface, IPv6Network

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Interface, InterfaceAddress, Interfaces
from pyflannel.model.route import Route
from pyflannel.model.status import LeaseStatus
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.mtus import CHECKS
from pyflannel.plan.doctor.observed import ContainerLink, ContainerNamespace, Observed
from testlab.healthy_host import HEALTHY, LINKS, OWN

GATEWAY = IPv4Interface("10.100.15.1/24")


def at_bridge(*ends: tuple[int, int], bridge: int | None = None, others: int | None = None) -> Observed:
    """Return a host with containers: for each, the MTU of its link and of its port.

    `bridge`: the MTU of the bridge, otherwise the smallest one of its ports; `others`: the MTU of a port
    without container.
    """
    ports = {f"veth{number}": port for number, (_, port) in enumerate(ends)}
    if others is not None:
        ports["tap"] = others
    held = (InterfaceAddress(address=GATEWAY),)
    docker0 = Interface(
        name="docker0", index=3, mtu=bridge or min(ports.values()), kind="bridge", addresses=held
    )
    veths = [
        Interface(name=name, index=10 + number, mtu=mtu, kind="veth")
        for number, (name, mtu) in enumerate(ports.items())
    ]
    return replace(
        HEALTHY,
        interfaces=Interfaces(interfaces=(*LINKS[:2], docker0, *veths)),
        items=(*HEALTHY.items, Route(destination=OWN, link="docker0", protocol=2)),
        ports={"docker0": ports},
        containers=tuple(
            ContainerNamespace(
                pid=number,
                process=f"web, pid {number}",
                links=(
                    ContainerLink(
                        name="eth0",
                        mtu=inside,
                        peer=10 + number,
                        addresses=frozenset({IPv4Address(OWN.network_address + 2 + number)}),
                    ),
                ),
            )
            for number, (inside, _) in enumerate(ends)
        ),
    )


def found(seen: Observed) -> list[tuple[str, str, str]]:
    """Return code, severity and fix of the findings."""
    return [(one.code, one.severity, one.fix) for check in CHECKS for one in check(seen)]


@pytest.mark.parametrize(
    ("inside", "port", "fix"),
    [
        (1450, 576, "ip link set veth0 mtu 1450"),
        (1000, 1450, "nsenter --net --target 0 ip link set eth0 mtu 1450"),
        (
            1400,
            1410,
            "ip link set veth0 mtu 1450; nsenter --net --target 0 ip link set eth0 mtu 1450",
        ),
        (9000, 1450, "nsenter --net --target 0 ip link set eth0 mtu 1450"),
        (1450, 9000, "ip link set veth0 mtu 1450"),
    ],
)
def test_ends_of_a_link_with_different_mtus_are_one_finding(inside: int, port: int, fix: str) -> None:
    seen = at_bridge((inside, port), (1450, 1450))

    assert found(seen) == [("port-mtu", "error", fix)]
    (one,) = findings(seen)
    assert one.evidence == (f"eth0 of web, pid 0 has MTU {inside}, its port veth0 has MTU {port}",)


@pytest.mark.parametrize(
    "seen",
    [
        at_bridge((1450, 1450), (1450, 1450)),
        at_bridge((1450, 1446)),  # the kernel accepts four more bytes, for a VLAN tag
        at_bridge((1450, 1450), bridge=1454),
        at_bridge(others=1000),  # a port without a visible container
    ],
)
def test_no_finding_without_lost_packets(seen: Observed) -> None:
    assert found(seen) == []
    assert findings(seen) == ()


def test_a_bridge_with_a_larger_mtu_than_the_port_of_a_container_is_an_error() -> None:
    commands = "ip link set veth0 mtu 1450; nsenter --net --target 0 ip link set eth0 mtu 1450"

    assert found(at_bridge((1000, 1000), bridge=1450)) == [("port-mtu", "error", commands)]


def test_a_bridge_with_a_larger_mtu_than_the_network_loses_only_packets_of_this_host() -> None:
    seen = at_bridge((1450, 1450), bridge=1500)

    assert found(seen) == [("port-mtu", "warning", "ip link set docker0 mtu 1450")]
    assert "packets of this host itself" in findings(seen)[0].cause


def test_a_container_with_a_smaller_mtu_than_the_network_is_a_warning() -> None:
    """The bridge has adopted its MTU, and is no finding of its own."""
    (one,) = findings(at_bridge((1450, 1450), (1000, 1000)))

    assert (one.code, one.severity) == ("mtu-small", "warning")
    assert one.evidence == ("eth0 of web, pid 1 has MTU 1000, its port veth1 has MTU 1000",)
    assert one.fix.partition("  # ")[0] == (
        "ip link set veth1 mtu 1450; nsenter --net --target 1 ip link set eth0 mtu 1450"
    )
    assert "mk-docker-opts -c" in one.fix
    assert "--mtu=1450" in one.fix


def test_a_bridge_whose_mtu_was_set_does_not_adopt_the_mtu_of_its_ports() -> None:
    (_, _, fix), _ = found(at_bridge((1000, 1000), bridge=900))

    assert "; ip link set docker0 mtu 1450  # " in fix


def test_containers_with_the_smaller_mtu_of_the_network_are_no_finding() -> None:
    assert HEALTHY.status.backend is not None
    backend = replace(HEALTHY.status.backend, mtu=1000)
    status = replace(HEALTHY.status, backend=backend)

    assert findings(replace(at_bridge((1000, 1000)), status=status)) == ()
    assert findings(replace(at_bridge((1000, 1000)), status=replace(status, backend=None))) == ()


@pytest.mark.parametrize(
    ("others", "evidence", "fix"),
    [
        (None, "docker0 has MTU 1000", "ip link set docker0 mtu 1450"),
        (
            1000,
            "docker0 has MTU 1000, as its port tap",
            "ip link set tap mtu 1450; ip link set docker0 mtu 1450",
        ),
    ],
)
def test_a_bridge_with_a_smaller_mtu_than_its_containers_is_a_warning(
    others: int | None, evidence: str, fix: str
) -> None:
    (one,) = findings(at_bridge((1450, 1450), bridge=1000, others=others))

    assert (one.code, one.severity, one.fix) == ("mtu-small", "warning", fix)
    assert one.evidence == (evidence, "eth0 of web, pid 0 has MTU 1450, its port veth0 has MTU 1450")


def test_the_ipv6_address_of_a_bridge_that_lost_it_is_added_again() -> None:
    """The kernel removes IPv6 addresses from a link with an MTU below 1280."""
    seen = at_bridge((1450, 576))
    lease = LeaseStatus(subnet=OWN, ipv6_subnet=IPv6Network("fd00:0:0:1::/64"))

    ((_, _, fix),) = found(replace(seen, status=replace(seen.status, lease=lease)))

    assert fix.endswith("; ip address add fd00:0:0:1::1/64 dev docker0")


def test_containers_that_are_too_large_since_the_mtu_of_the_underlay_was_lowered_name_the_underlay() -> None:
    """With Docker's default, 1500, the containers never had the MTU of the network."""
    assert HEALTHY.status.backend is not None
    assert HEALTHY.status.underlay is not None
    status = replace(
        HEALTHY.status,
        backend=replace(HEALTHY.status.backend, mtu=1050),
        underlay=replace(HEALTHY.status.underlay, mtu=1100),
    )

    lowered, default = (findings(replace(at_bridge((size, size)), status=status))[0] for size in (1450, 1500))

    assert (lowered.code, default.code) == ("container-mtu", "container-mtu")
    assert lowered.evidence == ("eth0 has MTU 1100", "veth0 has MTU 1450")
    assert lowered.fix.startswith("ip link set eth0 mtu 1500  # or, if 1100 is intended: mk-docker-opts")
    assert default.fix.startswith("mk-docker-opts")
