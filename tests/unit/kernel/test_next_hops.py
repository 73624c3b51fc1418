"""The routes that use next hops, and their numbers."""

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pyflannel.kernel.network.requests import WORTH_IT, WORTH_IT_ON_A_CABLE, links_worth_it, next_hop_number
from pyflannel.model.route import Route
from pyflannel.model.state import Add, Remove, Replace

ROUTE = Route(
    destination=IPv4Network("10.100.1.0/24"),
    link="flannel.1",
    gateway=IPv4Address("10.100.1.0"),
    is_onlink=True,
)
DIRECT = replace(ROUTE, link="eth0", gateway=IPv4Address("172.16.0.2"), is_onlink=False)
networks = st.builds(
    lambda base, length: IPv4Network((base, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 27),
)


@given(networks, networks)
def test_no_two_destinations_share_a_next_hop(one: IPv4Network, other: IPv4Network) -> None:
    numbers = [next_hop_number(replace(ROUTE, destination=network)) for network in (one, other)]

    assert None not in numbers
    assert (numbers[0] == numbers[1]) == (one == other)


def test_special_routes_have_no_next_hop() -> None:
    for route in (
        replace(ROUTE, gateway=None),
        replace(ROUTE, metric=7),
        replace(ROUTE, source=IPv4Address("10.100.15.0")),
        replace(ROUTE, kind="blackhole"),
        replace(ROUTE, destination=IPv4Network("10.100.1.0/28")),
    ):
        assert next_hop_number(route) is None


def test_only_thousands_of_routes_use_next_hops() -> None:
    assert links_worth_it([Add(ROUTE)] * (WORTH_IT - 1)) == set()
    assert links_worth_it([Add(ROUTE)] * WORTH_IT) == {"flannel.1"}
    assert links_worth_it([Replace(ROUTE, ROUTE)] * WORTH_IT + [Add(DIRECT)]) == {"flannel.1"}
    assert links_worth_it([Remove(ROUTE)] * WORTH_IT) == set()


def test_a_physical_link_needs_more_routes() -> None:
    assert links_worth_it([Add(DIRECT)] * (WORTH_IT_ON_A_CABLE - 1)) == set()
    assert links_worth_it([Add(DIRECT)] * WORTH_IT_ON_A_CABLE) == {"eth0"}
