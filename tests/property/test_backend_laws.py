"""Laws of the backends: plans of peers are independent, do not conflict, and do not depend on their order."""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.strategies import IPV6_NETWORK, NETWORK, OWN_KEY, keys, subnets
from pyflannel.model.host import Host, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep, WireguardData
from pyflannel.model.link import Address
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import State
from pyflannel.model.wireguard import WireguardFacts, WireguardPeer
from pyflannel.plan.backend.alloc import AllocBackend
from pyflannel.plan.backend.host_gw import HostGwBackend
from pyflannel.plan.backend.udp import UdpBackend
from pyflannel.plan.backend.vxlan import VxlanBackend, is_of_one_device, vtep_mac
from pyflannel.plan.backend.wireguard import WireguardBackend
from pyflannel.plan.backends import Backend
from pyflannel.wire.lease_json import format_backend_data, parse_vtep

ON_LINK = IPv4Network("192.168.50.0/24")

macs = st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":")) | st.sampled_from(
    ["0e:2a:00:00:00:01", "0e:2a:00:00:00:02"]
)
vteps = st.builds(Vtep, mac=macs, vni=st.none() | st.sampled_from([1, 2]) | st.integers(0, 2**24 - 1))
ON_LINK_IPV6 = IPv6Network("fd07::/64")
addresses_ipv6 = st.integers(1, 254).map(lambda host: ON_LINK_IPV6[host]) | st.integers(0, 2**128 - 1).map(
    IPv6Address
)
subnets_ipv6 = st.integers(1, 20).map(lambda number: IPv6Network((0xFD00_0005_0000 << 80 | number << 64, 64)))
addresses = st.integers(1, 254).map(lambda host: ON_LINK[host]) | st.integers(0, 2**32 - 1).map(IPv4Address)
backends: st.SearchStrategy[Backend] = st.one_of(
    st.builds(VxlanBackend, vni=st.sampled_from([1, 2]), routes_directly=st.booleans()),
    st.just(HostGwBackend()),
    st.just(AllocBackend()),
    st.just(UdpBackend(network=NETWORK)),
    st.just(WireguardBackend(network=NETWORK)),
    st.builds(
        WireguardBackend,
        network=st.just(NETWORK),
        ipv6_network=st.just(IPV6_NETWORK),
        mode=st.sampled_from(["separate", "auto", "ipv4", "ipv6"]),
    ),
)


@st.composite
def peers(draw: st.DrawFn) -> Lease:
    """Leases of every backend, good and bad."""
    attributes = LeaseAttributes(
        public_ip=draw(addresses),
        backend_type=draw(st.sampled_from(["vxlan", "vxlan", "host-gw", "wireguard", ""])),
        vtep=draw(st.none() | vteps),
        wireguard=draw(st.none() | st.builds(WireguardData, public_key=keys)),
        wireguard_v6=draw(st.none() | st.builds(WireguardData, public_key=keys)),
        public_ipv6=draw(st.none() | addresses_ipv6),
        vtep_v6=draw(st.none() | vteps),
    )
    ipv6_subnet = draw(st.none() | subnets_ipv6)
    revision = draw(st.integers(0, 3))
    return Lease(subnet=draw(subnets), ipv6_subnet=ipv6_subnet, attributes=attributes, revision=revision)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Backend, Host, list[Lease]]:
    """A backend, a host in one family that it carries, and its peers."""
    backend = draw(backends)
    own, *others = draw(
        st.lists(
            peers(),
            min_size=1,
            max_size=8,
            unique_by=(lambda lease: lease.subnet, lambda lease: lease.ipv6_subnet or lease.subnet),
        )
    )
    families = [family for family in backend.families if family == 4 or own.ipv6_subnet is not None]
    underlay = Underlay(
        link="eth0",
        address=ON_LINK[1],
        mtu=draw(st.integers(576, 9000)),
        public_ip=ON_LINK[1],
        on_link=(ON_LINK, ON_LINK_IPV6),
        ipv6_address=ON_LINK_IPV6[1],
        public_ipv6=ON_LINK_IPV6[1],
    )
    facts = WireguardFacts(key=OWN_KEY, published=OWN_KEY)
    host = Host(
        lease=own,
        underlay=underlay,
        owner=draw(st.text(max_size=4)),
        wireguard=facts,
        family=draw(st.sampled_from(families)),
    )
    return backend, host, others


def plan(backend: Backend, host: Host, others: list[Lease]) -> dict[Lease, State]:
    outranked = backend.outranked(others, host)
    return {peer: backend.plan_peer(peer, host) for peer in others if peer.subnet not in outranked}


@given(case=cases())
def test_a_peer_is_planned_exactly_if_there_is_no_objection(case: tuple[Backend, Host, list[Lease]]) -> None:
    backend, host, others = case

    for peer in others:
        is_planned = len(backend.plan_peer(peer, host)) > 0
        assert is_planned == (backend.objection(peer, host) is None and not isinstance(backend, AllocBackend))


@given(case=cases(), data=st.data())
def test_the_plan_does_not_depend_on_the_order_of_peers(
    case: tuple[Backend, Host, list[Lease]], data: st.DataObject
) -> None:
    backend, host, others = case

    shuffled = data.draw(st.permutations(others))

    assert plan(backend, host, others) == plan(backend, host, shuffled)


@given(case=cases())
def test_peers_share_a_key_only_with_equal_values(case: tuple[Backend, Host, list[Lease]]) -> None:
    """Two leases of one host share its FDB entry. No two peers have different objects with one key."""
    backend, host, others = case

    items = [
        item for state in (backend.plan_host(host), *plan(backend, host, others).values()) for item in state
    ]

    by_key: dict[object, object] = {}
    for item in items:
        assert by_key.setdefault(item.key, item) == item
        assert isinstance(item, FdbEntry) or items.count(item) == 1


@given(case=cases())
def test_packets_of_a_peer_are_sent_only_to_its_subnet_and_address(
    case: tuple[Backend, Host, list[Lease]],
) -> None:
    backend, host, others = case

    for peer, state in plan(backend, host, others).items():
        part = peer.part(host.family)
        for item in state:
            assert part is not None
            match item:
                case Route():
                    assert item.destination == part.subnet
                    assert item.gateway in (part.address, part.subnet.network_address)
                case FdbEntry():
                    assert item.destination == part.address
                    assert is_of_one_device(item.mac)
                case Neighbour():
                    assert item.address in part.subnet
                case WireguardPeer():
                    assert item.allowed == (part.subnet,)
                    address, _, port = item.endpoint.rpartition(":")
                    own = (peer.attributes.public_ip, peer.attributes.public_ipv6)
                    assert ip_address(address.strip("[]")) in own
                    assert port in ("51820", "51821")


@given(case=cases(), data=st.data())
def test_no_plan_replaces_a_connected_route_of_the_underlay(
    case: tuple[Backend, Host, list[Lease]], data: st.DataObject
) -> None:
    """For any network and leases in the store, the host keeps its route to the underlay."""
    backend, host, others = case
    subnets = [part.subnet for peer in others if (part := peer.part(host.family)) is not None]
    prefix = data.draw(st.sampled_from([NETWORK, ON_LINK, *subnets, *(s.supernet() for s in subnets)]))
    host = replace(host, underlay=replace(host.underlay, on_link=(ON_LINK, ON_LINK_IPV6, prefix)))

    states = [backend.plan_host(host), *plan(backend, host, others).values()]

    # An address of flannel0 makes the kernel add a route to its prefix.
    destinations = {item.destination for state in states for item in state if isinstance(item, Route)}
    destinations |= {item.address.network for state in states for item in state if isinstance(item, Address)}
    assert not destinations & set(host.underlay.on_link)


@given(owner=st.text(), prefix=st.sampled_from([b"", b"\x0e\x2a"]))
def test_each_mac_address_belongs_to_one_host(owner: str, prefix: bytes) -> None:
    mac = vtep_mac(owner, prefix)

    assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac)
    assert is_of_one_device(mac)
    assert int(mac[:2], 16) & 0x02
    assert mac == vtep_mac(owner, prefix)
    assert mac != vtep_mac(owner + "x", prefix)


@given(vtep=vteps)
def test_data_that_is_written_is_read_again(vtep: Vtep) -> None:
    assert parse_vtep(format_backend_data(vtep)) == vtep
