"""Objects that match the objects of the original, and unplanned routes."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

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
"""A route that the backend host-gw of the original left."""


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
def test_devices_are_recognized_by_name_and_kind(name: str, kind: str, is_original: bool) -> None:
    link = Link(name=name, kind=kind, mtu=1450, alias="")

    assert bool(left_by_original([link], MEMBERSHIP)) == is_original
    assert not left_by_original([replace(link, alias="pyflannel")], MEMBERSHIP)
    assert not left_by_original([replace(link, alias="pyflannel /run/blue")], MEMBERSHIP)


def test_a_route_of_the_original_is_recognized() -> None:
    assert left_by_original([ROUTE], MEMBERSHIP) == State.of(ROUTE)
    assert not unplanned_routes([ROUTE], MEMBERSHIP)


def test_a_route_to_a_peer_with_another_gateway_is_not_from_the_original() -> None:
    """The original's route has the address of the lease as gateway. An operator added the route to another
    gateway.
    """
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
def test_other_routes_into_the_network_are_unplanned(route: Route) -> None:
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
def test_own_routes_kernel_routes_and_routes_elsewhere_are_not_reported(route: Route) -> None:
    """Routes inside the host's own subnet are not included."""
    assert not left_by_original([route], MEMBERSHIP)
    assert not unplanned_routes([route], MEMBERSHIP)


def test_without_a_known_network_no_route_is_reported() -> None:
    for membership in (Membership(), replace(MEMBERSHIP, subnet=None)):
        assert not left_by_original([ROUTE], membership)
    assert not unplanned_routes([ROUTE], Membership())


def test_routes_on_an_own_device_are_left_to_the_daemon() -> None:
    link = Link(name="flannel.1", kind="vxlan", mtu=1450)
    route = replace(ROUTE, link="flannel.1", protocol=4)

    assert not unplanned_routes([link, route], MEMBERSHIP)
