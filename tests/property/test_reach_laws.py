"""Laws of reach: no content of the store cuts a host off, or replaces a route of another program."""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from doubles.planning import SUBNET_FILE, by_subnet
from pyflannel.engine.condition import Inputs
from pyflannel.engine.planner import Planner
from pyflannel.engine.world import PlanOptions
from pyflannel.model.host import Surroundings, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep
from pyflannel.model.link import Address
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import Route
from pyflannel.model.state import State
from pyflannel.plan.backends import backend_of

OWN_ADDRESS = IPv4Address("10.10.10.101")
ON_LINK = IPv4Network("10.10.10.0/24")

# Few bits, so that prefixes nest and addresses hit them.
BASES = [
    IPv4Address((10 << 24) + (second << 16) + (third << 8) + last)
    for second in (10, 20, 100)
    for third in (10, 11, 100)
    for last in (0, 96, 128)
]
addresses = st.sampled_from(BASES).map(lambda base: base + 1)


def prefixes(longest: int) -> st.SearchStrategy[IPv4Network]:
    """Return prefixes up to this length."""
    return st.builds(
        lambda base, length: IPv4Network((base, length), strict=False),
        st.sampled_from(BASES),
        st.integers(1, longest),
    )


kinds = st.sampled_from(["udp", "vxlan", "host-gw", "alloc"])


@st.composite
def leases(draw: st.DrawFn, network: IPv4Network) -> Lease:
    """Leases in a network, which a client of the store may choose freely."""
    within = st.sampled_from([base for base in BASES if base in network])
    attributes = LeaseAttributes(
        public_ip=draw(addresses),
        backend_type=draw(st.sampled_from(["", "vxlan", "host-gw"])),
        vtep=Vtep(mac=f"0e:00:00:00:00:{draw(st.integers(1, 9)):02x}", vni=1),
    )
    subnet = IPv4Network((draw(within), draw(st.integers(network.prefixlen + 2, 30))), strict=False)
    return Lease(subnet=subnet, attributes=attributes)


@st.composite
def foreign_routes(draw: st.DrawFn, planned: Sequence[IPv4Network]) -> Route:
    """Routes of other programs, also to the destinations of planned routes."""
    return Route(
        destination=draw(prefixes(30) | st.sampled_from(planned)),
        link=draw(st.sampled_from(["eth0", "eth1", "docker0"])),
        gateway=draw(st.none() | addresses),
        metric=draw(st.sampled_from([0, 0, 100])),
        protocol=draw(st.sampled_from([2, 3, 4])),
    )


@st.composite
def surroundings(draw: st.DrawFn, planned: Sequence[IPv4Network]) -> Surroundings:
    """The surroundings of a host. Of two routes with one key, the kernel keeps one."""
    routes = draw(st.lists(foreign_routes(planned), max_size=4, unique_by=lambda route: route.key))
    return Surroundings(
        routes=tuple(routes),
        addresses=frozenset([OWN_ADDRESS, *draw(st.lists(addresses, max_size=1))]),
        gateways=tuple(draw(st.lists(addresses, max_size=1))),
        stores=tuple(draw(st.lists(addresses, max_size=2))),
    )


@st.composite
def inputs(draw: st.DrawFn) -> Inputs:
    """Any content of the store, on any host."""
    network, kind = draw(prefixes(28)), draw(kinds)
    config = NetworkConfig(
        network=network, subnet_length=24, backend_type=kind, backend={"DirectRouting": draw(st.booleans())}
    )
    listed = st.lists(leases(network), min_size=1, max_size=6, unique_by=lambda lease: lease.subnet)
    own, *others = draw(listed)
    return Inputs(
        config=config,
        backend=backend_of(config),
        underlay=Underlay(
            link="eth0", address=OWN_ADDRESS, mtu=1500, public_ip=OWN_ADDRESS, on_link=(ON_LINK,)
        ),
        lease=own,
        leases=by_subnet(others),
        owner="f00d",
        surroundings=draw(surroundings([network, *(lease.subnet for lease in others)])),
    )


def plan(given_inputs: Inputs) -> State:
    """Return the plan; an empty plan if the inputs give no plan."""
    planner = Planner(PlanOptions(subnet_file=SUBNET_FILE, has_blackhole=True))
    planner.update(given_inputs)
    return planner.plan or State.EMPTY


def into_overlay(state: State) -> Iterator[tuple[IPv4Network, int]]:
    """Yield destination and metric of each route, including those that the kernel adds with an address."""
    for item in state:
        match item:
            case Route(destination=IPv4Network() as destination, kind="unicast"):
                yield destination, item.metric
            case Address(address=IPv4Interface() as address):
                yield address.network, 0


def best(routes: list[tuple[IPv4Network, int]], address: IPv4Address) -> tuple[int, int]:
    """Return length and negative metric of the selected route; of the default route if no other route
    matches.
    """
    fitting = [(net.prefixlen, -metric) for net, metric in routes if address in net]
    return max(fitting, default=(0, 0))


@given(given_inputs=inputs())
def test_no_content_of_the_store_redirects_needed_addresses(given_inputs: Inputs) -> None:
    """Store, default gateway and the prefix of the underlay remain reachable by the same routes."""
    found = given_inputs.surroundings
    present = [(ON_LINK, 0)]
    present += [(r.destination, r.metric) for r in found.routes if isinstance(r.destination, IPv4Network)]
    added = list(into_overlay(plan(given_inputs)))

    needed = {*found.stores, *found.gateways, *(ON_LINK[number] for number in (0, 1, 97, 129, 255))}
    for address in needed - found.addresses:
        assert best(added, address) <= best(present, address) or best(added, address) == (0, 0)


@given(given_inputs=inputs())
def test_no_route_of_another_program_is_replaced(given_inputs: Inputs) -> None:
    """A foreign route may only be replaced if it equals the planned route, with the peer's address as
    gateway.
    """
    planned = plan(given_inputs).by_key

    for route in given_inputs.surroundings.routes:
        item = planned.get(route.key)
        if item is not None:
            assert isinstance(item, Route)
            assert (item.link, item.gateway) == (route.link, route.gateway)


@given(given_inputs=inputs())
def test_no_tunnel_packet_enters_the_overlay(given_inputs: Inputs) -> None:
    """With the complete plan, no address of a planned peer is routed into the overlay."""
    planner = Planner(PlanOptions(subnet_file=SUBNET_FILE))
    planner.update(given_inputs)
    routes = given_inputs.surroundings.routes
    present = [(ON_LINK, 0), *((route.destination, route.metric) for route in routes)]
    added = list(into_overlay(planner.plan or State.EMPTY))

    for peer in planner.peers:
        address = peer.attributes.public_ip
        if planner.plan is not None and peer.subnet not in planner.refused:
            assert best(added, address) <= best(present, address) or best(added, address) == (0, 0)
