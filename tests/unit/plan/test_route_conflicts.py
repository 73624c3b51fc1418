"""Routes of the overlay that would redirect packets of the underlay are found before they are planned."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Host, Surroundings, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.route import Route
from pyflannel.plan.routes import (
    HostPrefix,
    Routed,
    address_objection,
    avoided,
    conflicts,
    network_notes,
    network_objection,
    on_link_prefixes,
    overlay_objection,
    route_objection,
    subnet_objection,
)

PREFIX = IPv4Network("192.168.50.0/24")
UNDERLAY = Underlay(
    link="eth0",
    address=IPv4Address("192.168.50.102"),
    mtu=1500,
    public_ip=IPv4Address("192.168.50.102"),
    on_link=(IPv4Network("172.16.0.0/12"), PREFIX),
)
NOTHING = Surroundings()


@pytest.mark.parametrize(
    ("destination", "effect"),
    [
        ("192.168.50.0/24", "replaces"),
        ("192.168.50.128/25", "captures"),
        ("192.168.50.1/32", "captures"),
        ("192.168.0.0/16", "contains"),
        ("128.0.0.0/1", "contains"),
        ("0.0.0.0/1", None),
        ("192.168.51.0/24", None),
        ("10.100.0.0/16", None),
    ],
)
def test_the_effects_of_a_route_on_a_prefix_of_the_host(destination: str, effect: str | None) -> None:
    """A longer prefix has precedence, an equal one replaces the route, a shorter one yields."""
    other = HostPrefix(PREFIX, "the prefix of eth0")

    found = conflicts([IPv4Network(destination)], [other])

    assert [(one.other, one.effect) for one in found] == ([(other, effect)] if effect else [])


def test_each_conflict_with_each_prefix_is_found() -> None:
    found = conflicts([IPv4Network("0.0.0.0/0")], on_link_prefixes("eth0", UNDERLAY.on_link))

    assert [(str(one.other.prefix), one.effect) for one in found] == [
        ("172.16.0.0/12", "contains"),
        ("192.168.50.0/24", "contains"),
    ]


@pytest.mark.parametrize(
    ("destination", "word"),
    [
        ("192.168.50.0/24", "is the prefix of eth0 itself"),
        ("172.16.0.0/12", "is the prefix of eth0 itself"),
        ("172.16.7.0/24", "is a part of 172.16.0.0/12, the prefix of eth0"),
        ("192.168.0.0/16", None),
        ("10.100.3.0/24", None),
    ],
)
def test_a_route_that_redirects_packets_of_the_underlay_is_refused(
    destination: str, word: str | None
) -> None:
    """A route that is shorter than the prefix of the underlay redirects nothing."""
    found = route_objection(IPv4Network(destination), UNDERLAY, NOTHING)

    assert found is None if word is None else word in (found or "")


STORE = IPv4Address("10.20.0.5")


def route(destination: str, **more: Any) -> Route:
    return Route(destination=IPv4Network(destination), **{"link": "eth1", "protocol": 4, **more})


@pytest.mark.parametrize("needed", [Surroundings(stores=(STORE,)), Surroundings(gateways=(STORE,))])
class TestNeededAddresses:
    """The store and the default gateway, at any address."""

    def test_a_route_is_refused_if_it_has_precedence_over_the_route_to_a_needed_address(
        self, needed: Surroundings
    ) -> None:
        """The default route, a shorter route and a route with another metric have no precedence."""
        others = (route("10.0.0.0/8"), route("10.20.0.0/16", metric=100))
        for surroundings in (needed, replace(needed, routes=others)):
            found = route_objection(IPv4Network("10.20.0.0/16"), UNDERLAY, surroundings)

            assert "10.20.0.0/16 contains 10.20.0.5, " in (found or "")

    def test_a_longer_route_keeps_a_needed_address_reachable(self, needed: Surroundings) -> None:
        """Hosts with addresses in 10.0.0.0/8 may therefore have this network."""
        surroundings = replace(needed, routes=(route("10.20.0.0/24"),))

        assert route_objection(IPv4Network("10.0.0.0/8"), UNDERLAY, surroundings) is None

    def test_a_prefix_of_the_underlay_keeps_a_needed_address_reachable(self, needed: Surroundings) -> None:
        underlay = replace(UNDERLAY, on_link=(IPv4Network("10.20.0.0/24"),))

        assert route_objection(IPv4Network("10.0.0.0/8"), underlay, needed) is None

    def test_an_address_of_the_host_itself_is_never_lost(self, needed: Surroundings) -> None:
        """The kernel checks its own addresses first."""
        surroundings = replace(needed, addresses=frozenset([STORE]))

        assert route_objection(IPv4Network("10.20.0.0/16"), UNDERLAY, surroundings) is None


class TestRoutesOfOtherPrograms:
    """No route is replaced, and a route that equals the planned route is taken over."""

    DESTINATION = IPv4Network("10.100.3.0/24")
    PEER = Lease(subnet=DESTINATION, attributes=LeaseAttributes(public_ip=IPv4Address("192.168.50.101")))

    @pytest.mark.parametrize(
        "other",
        [
            route("10.100.3.0/24", link="docker0", protocol=2),
            route("10.100.3.0/24", gateway=IPv4Address("192.168.50.7"), link="eth0"),
            route("10.100.3.0/24", kind="blackhole", link=""),
            route("10.100.3.0/24", kind="multipath", gateway=IPv4Address("192.168.50.101"), link="eth0"),
        ],
    )
    def test_a_route_to_the_same_destination_is_not_replaced(self, other: Route) -> None:
        surroundings = Surroundings(routes=(other,))

        found = route_objection(self.DESTINATION, UNDERLAY, surroundings, adopted=self.PEER.part(4))

        assert found is not None
        assert "which is not replaced" in found

    @pytest.mark.parametrize(
        "other",
        [
            route("10.100.3.0/24", metric=100),
            route("10.100.3.0/25"),
            route("10.100.0.0/16"),
            route("10.100.3.0/24", gateway=IPv4Address("192.168.50.101"), link="eth0", protocol=3),
        ],
    )
    def test_a_route_that_remains_or_equals_the_plan_is_no_obstacle(self, other: Route) -> None:
        """An original leaves the last of these routes with host-gw."""
        surroundings = Surroundings(routes=(other,))

        assert route_objection(self.DESTINATION, UNDERLAY, surroundings, adopted=self.PEER.part(4)) is None


@pytest.mark.parametrize(
    ("network", "routed", "is_refused"),
    [
        ("0.0.0.0/1", "network", True),
        ("10.0.0.0/8", "network", True),
        ("192.168.0.0/16", "network", False),
        ("192.168.50.0/24", "network", True),
        ("192.168.50.0/25", "network", True),
        ("172.17.0.0/16", "network", True),
        ("10.100.0.0/16", "network", False),
        ("0.0.0.0/1", "peers", False),
        ("192.168.0.0/16", "peers", False),
        ("192.168.50.0/24", "peers", True),
        ("192.168.50.0/25", "peers", True),
        ("192.168.50.0/25", "nothing", False),
        ("0.0.0.0/1", "nothing", False),
    ],
)
def test_networks_that_redirect_the_underlay(network: str, routed: Routed, is_refused: bool) -> None:
    """If peers have separate routes, each lease is checked, unless all leases would overlap the underlay."""
    underlay = replace(UNDERLAY, on_link=(PREFIX,))
    surroundings = Surroundings(
        stores=(STORE,), gateways=(PREFIX[1],), routes=(route("172.17.0.0/16", link="docker0", protocol=2),)
    )

    found = network_objection(IPv4Network(network), routed, underlay, surroundings)

    assert (found is not None) == is_refused


def test_a_subnet_for_containers_that_would_disconnect_the_host_is_refused() -> None:
    surroundings = Surroundings(stores=(STORE,))

    assert subnet_objection(IPv4Network("10.20.0.0/24"), UNDERLAY, surroundings) is not None
    assert subnet_objection(IPv4Network("192.168.50.64/26"), UNDERLAY, surroundings) is not None
    assert subnet_objection(IPv4Network("10.21.0.0/24"), UNDERLAY, surroundings) is None


def test_a_subnet_whose_first_address_is_needed_is_refused() -> None:
    """The tunnel device gets that address, regardless of the length of the present route."""
    first = Surroundings(stores=(IPv4Address("10.20.0.0"),), routes=(route("10.20.0.0/31"),))

    assert "begins with 10.20.0.0" in (subnet_objection(IPv4Network("10.20.0.0/24"), UNDERLAY, first) or "")
    assert subnet_objection(IPv4Network("192.168.50.0/23"), UNDERLAY, NOTHING) is not None


def test_a_new_subnet_avoids_addresses_and_routes_of_the_host() -> None:
    """The new subnet avoids prefixes of the underlay, routes of other programs, and needed addresses."""
    surroundings = Surroundings(
        stores=(STORE,),
        gateways=(IPv4Address("192.168.50.1"),),
        routes=(route("10.9.0.0/24"), route("10.0.0.0/8"), route("172.17.0.0/16")),
    )
    underlay = replace(UNDERLAY, on_link=(IPv4Network("10.8.0.0/24"), PREFIX))

    found = avoided(IPv4Network("10.0.0.0/8"), underlay, surroundings)

    assert [str(prefix) for prefix in found] == ["10.8.0.0/24", "10.9.0.0/24", "10.20.0.5/32"]


def test_a_store_in_a_container_of_this_host_is_not_lost() -> None:
    """The bridge exists, so the subnet is already routed to the bridge."""
    surroundings = Surroundings(stores=(STORE,), routes=(route("10.20.0.0/24", link="docker0", protocol=2),))

    assert subnet_objection(IPv4Network("10.20.0.0/24"), UNDERLAY, surroundings) is None


@pytest.mark.parametrize(
    ("network", "word"),
    [
        ("192.168.50.0/24", "is the prefix of eth0 itself"),
        ("192.168.50.0/25", "is a part of 192.168.50.0/24, the prefix of eth0"),
        ("192.168.0.0/16", "contains 192.168.50.0/24, the prefix of eth0"),
    ],
)
def test_a_network_that_overlaps_the_underlay_causes_a_note(network: str, word: str) -> None:
    (note,) = network_notes(IPv4Network(network), UNDERLAY, NOTHING)

    assert note.startswith(f"Network {network} ")
    assert word in note


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ("10.100.7.0/24", "contains 10.100.7.0/24, routed by another program (route 10.100.7.0/24 dev eth1"),
        ("10.100.0.0/16", "has a route of another program too"),
        ("10.0.0.0/8", "is a part of 10.0.0.0/8"),
    ],
)
def test_a_network_that_overlaps_a_route_of_another_program_causes_a_note(other: str, word: str) -> None:
    (note,) = network_notes(IPv4Network("10.100.0.0/16"), UNDERLAY, Surroundings(routes=(route(other),)))

    assert word in note


def test_many_overlapping_routes_are_counted_after_the_first() -> None:
    many = tuple(route(f"10.100.{number}.0/24") for number in range(30))

    notes = network_notes(IPv4Network("10.100.0.0/16"), UNDERLAY, Surroundings(routes=many))

    assert len(notes) == 9
    assert notes[-1] == "Network 10.100.0.0/16 overlaps 22 more routes of this host"


def test_a_dns_server_in_the_network_causes_a_note() -> None:
    """The DNS server may run in a container, so the network is not refused."""
    surroundings = Surroundings(resolvers=(IPv4Address("10.100.0.10"), IPv4Address("10.9.0.1")))

    (note,) = network_notes(IPv4Network("10.100.0.0/16"), UNDERLAY, surroundings)

    assert note.startswith("Network 10.100.0.0/16 contains 10.100.0.10, a DNS server of this host")
    assert route_objection(IPv4Network("10.100.0.0/16"), UNDERLAY, surroundings) is None


def test_a_network_apart_from_the_underlay_causes_no_note() -> None:
    assert network_notes(IPv4Network("10.100.0.0/16"), UNDERLAY, NOTHING) == ()
    assert network_notes(None, UNDERLAY, NOTHING) == ()


class TestAddresses:
    """PublicIP of a peer, which a client of the store may choose freely."""

    HOST = Host(
        lease=Lease(
            subnet=IPv4Network("10.100.15.0/24"), attributes=LeaseAttributes(public_ip=UNDERLAY.public_ip)
        ),
        underlay=replace(UNDERLAY, on_link=(PREFIX,)),
        surroundings=Surroundings(addresses=frozenset([IPv4Address("172.17.0.1")])),
    )

    def objection(self, address: str, host: Host = HOST) -> str | None:
        return address_objection(IPv4Address(address), host)

    @pytest.mark.parametrize(
        ("address", "word"),
        [
            ("0.0.0.0", "not the address of a host"),
            ("0.1.2.3", "not the address of a host"),
            ("127.0.0.1", "not the address of a host"),
            ("127.255.0.9", "not the address of a host"),
            ("224.0.0.1", "not the address of a host"),
            ("239.255.255.255", "not the address of a host"),
            ("255.255.255.255", "not the address of a host"),
            ("192.168.50.0", "reserved in 192.168.50.0/24"),
            ("192.168.50.255", "reserved in 192.168.50.0/24"),
            ("192.168.50.102", "an address of this host"),
            ("172.17.0.1", "an address of this host"),
            ("169.254.7.7", "link-local"),
        ],
    )
    def test_an_address_that_no_other_host_can_have_is_refused(self, address: str, word: str) -> None:
        assert word in (self.objection(address) or "")

    @pytest.mark.parametrize(
        "address", ["100.64.0.7", "10.10.10.101", "203.0.113.9", "240.0.0.7", "255.0.0.1"]
    )
    def test_other_addresses_are_accepted(self, address: str) -> None:
        """Examples are addresses of carrier-grade NAT (RFC 6598), and reserved addresses, which cause a
        warning.
        """
        assert self.objection(address) is None

    def test_a_link_local_address_needs_a_route_without_a_gateway(self) -> None:
        underlay = replace(UNDERLAY, on_link=(IPv4Network("169.254.0.0/16"),))

        assert self.objection("169.254.7.7", replace(self.HOST, underlay=underlay)) is None

    def test_an_address_in_the_overlay_is_refused_unless_it_has_a_longer_route(self) -> None:
        routed = [IPv4Network("10.0.0.0/8")]
        longer = replace(self.HOST.surroundings, routes=(route("10.20.0.0/16"),))

        assert "would loop" in (overlay_objection(STORE, routed, self.HOST) or "")
        assert overlay_objection(STORE, routed, replace(self.HOST, surroundings=longer)) is None
        assert overlay_objection(IPv4Address("11.0.0.1"), routed, self.HOST) is None
