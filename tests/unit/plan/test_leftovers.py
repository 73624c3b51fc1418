"""What looks like the original's, and what nobody planned."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.model.link import Link
from pyflannel.model.route import Route
from pyflannel.model.state import State
from pyflannel.model.status import Membership
from pyflannel.plan.leftovers import left_by_original, unplanned_routes

MEMBERSHIP = Membership(
    network=IPv4Network("10.100.0.0/16"), subnet=IPv4Network("10.100.15.0/24"), underlay="eth0"
)
ROUTE = Route(
    destination=IPv4Network("10.100.77.0/24"), gateway=IPv4Address("10.10.10.77"), link="eth0", protocol=3
)
"""As the original's host-gw leaves it."""


@pytest.mark.parametrize(
    ("name", "kind", "is_original"),
    [
        ("flannel.1", "vxlan", True),
        ("flannel-v6.1", "vxlan", True),
        ("flannel0", "tun", True),
        ("flannel.ipip", "ipip", True),
        ("flannel-wg", "wireguard", True),
        ("flannel.1", "dummy", False),
        ("flannel1", "tun", False),
        ("flannel9", "tun", False),
        ("vxlan.calico", "vxlan", False),
    ],
)
def test_devices_are_told_by_name_and_kind(name: str, kind: str, is_original: bool) -> None:
    link = Link(name=name, kind=kind, mtu=1450, alias="")

    assert bool(left_by_original([link], MEMBERSHIP)) == is_original
    assert not left_by_original([replace(link, alias="pyflannel")], MEMBERSHIP)
    assert not left_by_original([replace(link, alias="pyflannel /run/blue")], MEMBERSHIP)


def test_a_route_as_the_original_makes_it_is_told() -> None:
    assert left_by_original([ROUTE], MEMBERSHIP) == State.of(ROUTE)
    assert not unplanned_routes([ROUTE], MEMBERSHIP)


def test_a_route_to_the_subnet_of_a_peer_by_way_of_another_host_is_not_the_originals() -> None:
    """The original routes it by way of the address that the lease has. An operator made this one."""
    for address, is_original in (("10.10.10.77", True), ("10.10.10.78", False)):
        membership = replace(MEMBERSHIP, peers={ROUTE.destination: IPv4Address(address)})

        assert bool(left_by_original([ROUTE], membership)) == is_original
        assert bool(unplanned_routes([ROUTE], membership)) == (not is_original)


@pytest.mark.parametrize(
    "route",
    [
        replace(ROUTE, protocol=4),
        replace(ROUTE, metric=7),
        replace(ROUTE, link="eth1"),
        replace(ROUTE, gateway=None),
        replace(ROUTE, kind="blackhole"),
        replace(ROUTE, destination=IPv4Network("10.100.77.0/25")),
        replace(ROUTE, destination=IPv4Network("10.100.0.0/16")),
    ],
)
def test_other_routes_into_the_network_are_unplanned_and_nobody_s(route: Route) -> None:
    assert not left_by_original([route], MEMBERSHIP)
    assert unplanned_routes([route], MEMBERSHIP) == State.of(route)


@pytest.mark.parametrize(
    "route",
    [
        replace(ROUTE, protocol=80),
        replace(ROUTE, protocol=101),
        replace(ROUTE, protocol=2),
        replace(ROUTE, destination=IPv4Network("10.101.77.0/24")),
        replace(ROUTE, destination=IPv4Network("10.100.15.0/24")),
        replace(ROUTE, destination=IPv4Network("10.100.15.7/32")),
        replace(ROUTE, destination=IPv4Network("0.0.0.0/0")),
    ],
)
def test_ours_the_kernel_s_and_those_elsewhere_are_neither(route: Route) -> None:
    """And in its own subnet a host has what it wants."""
    assert not left_by_original([route], MEMBERSHIP)
    assert not unplanned_routes([route], MEMBERSHIP)


def test_nothing_is_said_of_routes_where_the_network_is_not_known() -> None:
    for membership in (Membership(), replace(MEMBERSHIP, subnet=None)):
        assert not left_by_original([ROUTE], membership)
    assert not unplanned_routes([ROUTE], Membership())


def test_routes_on_a_device_of_ours_are_the_daemon_s_to_judge() -> None:
    link = Link(name="flannel.1", kind="vxlan", mtu=1450)
    route = replace(ROUTE, link="flannel.1", protocol=4)

    assert not unplanned_routes([link, route], MEMBERSHIP)
