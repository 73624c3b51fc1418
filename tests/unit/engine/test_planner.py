"""The planner: a change of one peer results in the same plan as planning everything."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.planning import SUBNET_FILE, Planning, by_subnet, plan_of
from pyflannel.engine.condition import Inputs
from pyflannel.engine.plan_log import NAMED_IN_LOG
from pyflannel.engine.planner import Objection
from pyflannel.engine.world import PlanOptions
from pyflannel.model.docker import NO_DOCKER, DockerNetwork, DockerParts, PublishedPort
from pyflannel.model.fast_path import BpfContainer
from pyflannel.model.host import Bridge, BridgedContainer, Host, HostFile, Surroundings, Underlay
from pyflannel.model.item import Item
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep
from pyflannel.model.link import Address, Link
from pyflannel.model.network_config import IPV4_ONLY, Family, NetworkConfig
from pyflannel.model.packet_filter import IsolationRule, NftTable
from pyflannel.model.route import FdbEntry, Route
from pyflannel.model.state import Blocked, Changed, Replaced, State, Unchanged
from pyflannel.model.tunnel_guard import GuardedPath, GuardedTunnel
from pyflannel.model.wireguard import WireguardFacts
from pyflannel.plan.backend.udp import UdpBackend
from pyflannel.plan.backend.vxlan import VxlanBackend
from pyflannel.plan.packet_filter import FilterOptions
from pyflannel.plan.routes import Routed

CONFIG = NetworkConfig(
    network=IPv4Network("10.100.0.0/16"),
    subnet_length=24,
    subnet_min=IPv4Address("10.100.1.0"),
    subnet_max=IPv4Address("10.100.255.0"),
)
OWN = Lease(
    subnet=IPv4Network("10.100.15.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("172.16.0.99"))
)


@dataclass(frozen=True)
class Backend:
    """A backend in which peers with one address want one object, as two VTEPs with one MAC address do."""

    lease_type: str = ""
    routed: Routed = "peers"
    families: tuple[Family, ...] = IPV4_ONLY
    port: int | None = None
    tunnel_port: int | None = None
    config_line: str | None = None
    config_warnings: tuple[str, ...] = ()
    is_encrypted: bool = False
    smallest_mtu: int = 0

    def tunnel_port_in(self, family: Family) -> None:
        return None

    def lease_data(self, owner: str, wireguard: WireguardFacts, family: Family = 4) -> None:
        return None

    def mtu(self, host: Host) -> int:
        return 1450

    def notes(self, host: Host) -> tuple[str, ...]:
        return ()

    def obstacle(self, underlay: Underlay, wireguard: WireguardFacts) -> str | None:
        return "a larger MTU" if underlay.mtu < self.smallest_mtu else None

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IPv4Network, str]:
        """Of several peers that want one object, the peer with the highest address gets the object."""
        best: dict[int, int] = {}
        able = {
            peer.subnet: int(peer.attributes.public_ip)
            for peer in peers
            if self.objection(peer, host) is None
        }
        for address in able.values():
            best[address & 7] = max(address, best.get(address & 7, 0))
        return {
            subnet: "A better one has it" for subnet, address in able.items() if address < best[address & 7]
        }

    def plan_host(self, host: Host) -> State:
        return State.of(Link(name="flannel.1", kind="vxlan", mtu=1450))

    def guarded_path(self, host: Host) -> GuardedPath:
        tunnel = GuardedTunnel(link="flannel.1", port=8472, vni=1)
        return GuardedPath(links=("flannel.1",), tunnel=tunnel)

    def objection(self, peer: Lease, host: Host) -> str | None:
        return "Ignoring it" if peer.attributes.backend_type else None

    def plan_peer(self, peer: Lease, host: Host) -> State:
        if self.objection(peer, host):
            return State.EMPTY
        address = peer.attributes.public_ip
        return State.of(
            FdbEntry(link="flannel.1", mac=f"0e:00:00:00:00:{int(address) & 7:02x}", destination=address),
            Route(destination=peer.subnet, link="flannel.1", gateway=peer.subnet.network_address),
        )

    def plan_bridges(self, bridges: Iterable[Bridge], host: Host) -> State:
        return State.of(
            *(
                BpfContainer(device="flannel.1", address=one.address, mac=one.mac, link=one.port)
                for bridge in bridges
                for one in bridge.containers
            )
        )


OPTIONS = PlanOptions(subnet_file=SUBNET_FILE, packet_filter=FilterOptions(guard="strict"))


def planner() -> Planning:
    address = IPv4Address("172.16.0.99")
    underlay = Underlay(link="eth0", address=address, mtu=1500, public_ip=address)
    inputs = Inputs(config=CONFIG, backend=Backend(), lease=OWN, underlay=underlay)
    return Planning(inputs, OPTIONS)


def lease(number: int, host: int, backend_type: str = "") -> Lease:
    return Lease(
        subnet=IPv4Network(f"10.100.{number}.0/24"),
        attributes=LeaseAttributes(public_ip=IPv4Address(f"172.16.0.{host}"), backend_type=backend_type),
    )


DUAL = replace(
    CONFIG,
    enable_ipv6=True,
    ipv6_network=IPv6Network("fd00:5::/48"),
    ipv6_subnet_length=64,
    ipv6_subnet_min=IPv6Address("fd00:5:0:1::"),
    ipv6_subnet_max=IPv6Address("fd00:5:0:ff::"),
)


def dual_planner() -> Planning:
    """Return a planner of a vxlan network with both families."""
    attributes = replace(OWN.attributes, public_ipv6=IPv6Address("fd07::99"))
    own = replace(OWN, ipv6_subnet=IPv6Network("fd00:5:0:f::/64"), attributes=attributes)
    underlay = Underlay(
        link="eth0",
        address=IPv4Address("172.16.0.99"),
        mtu=1500,
        public_ip=IPv4Address("172.16.0.99"),
        ipv6_address=IPv6Address("fd07::99"),
        public_ipv6=IPv6Address("fd07::99"),
    )
    inputs = Inputs(config=DUAL, backend=VxlanBackend(), lease=own, underlay=underlay, owner="me")
    return Planning(inputs)


def vtep(number: int) -> Vtep:
    return Vtep(mac=f"0e:00:00:00:00:{number:02x}", vni=1)


@st.composite
def dual_leases(draw: st.DrawFn) -> Lease:
    """Leases of a network with both families, some of them without a usable IPv6 part."""
    number, mac = draw(st.integers(10, 30)), draw(st.integers(1, 4))
    address = draw(st.none() | st.integers(1, 12).map(lambda host: IPv6Address(f"fd07::{host}")))
    inside = st.integers(10, 14).map(lambda other: IPv6Address(f"fd00:5:0:{other:x}::7"))
    attributes = LeaseAttributes(
        public_ip=IPv4Address(f"172.16.0.{draw(st.integers(1, 12))}"),
        public_ipv6=draw(st.sampled_from([address, address, draw(inside)])),
        backend_type=draw(st.sampled_from(["vxlan", "vxlan", ""])),
        vtep=vtep(mac),
        vtep_v6=draw(st.none() | st.just(vtep(mac + 16))),
    )
    ipv6 = draw(st.none() | st.integers(10, 14).map(lambda other: IPv6Network(f"fd00:5:0:{other:x}::/64")))
    return Lease(subnet=IPv4Network(f"10.100.{number}.0/24"), ipv6_subnet=ipv6, attributes=attributes)


@given(
    st.lists(st.lists(dual_leases(), max_size=6, unique_by=lambda one: one.subnet), min_size=1, max_size=5)
)
def test_an_incremental_plan_of_both_families_equals_the_full_plan(story: list[list[Lease]]) -> None:
    """IPv6 does not affect the objects of IPv4, except the MTU of containers."""
    followed, ipv4 = dual_planner(), dual_planner()
    ipv4.take(config=CONFIG)
    for known in story:
        followed.take(leases=by_subnet(known))
        ipv4.take(leases=by_subnet(known))

        fresh = dual_planner()
        fresh.take(leases=by_subnet(known))
        assert followed.plan == fresh.plan
        assert followed.objections == fresh.objections
        assert followed.refused == fresh.refused
        assert followed.conflicts == fresh.conflicts
        shared = [item for item in fresh.plan if not (is_ipv6(item) or isinstance(item, HostFile))]
        alone = [item for item in ipv4.plan if not isinstance(item, HostFile)]
        assert State.collect(shared) == State.collect(alone)


def ipv6_planner() -> Planning:
    """Return a planner of the same network with IPv6 alone."""
    planner = dual_planner()
    inputs, own, underlay = planner.inputs, planner.inputs.lease, planner.inputs.underlay
    assert own is not None
    assert own.ipv6_subnet is not None
    assert underlay is not None
    assert underlay.ipv6_address is not None
    address = underlay.ipv6_address
    return Planning(
        replace(
            inputs,
            config=replace(DUAL, enable_ipv4=False, is_assigned=True),
            lease=Lease.of_ipv6(own.ipv6_subnet, own.attributes),
            underlay=replace(underlay, address=address, public_ip=address),
        )
    )


@st.composite
def numbered_leases(draw: st.DrawFn) -> Lease:
    """Leases whose subnets have the same order in both families."""
    lease = draw(dual_leases())
    number = int(lease.subnet.network_address) >> 8 & 0xFF
    return replace(lease, ipv6_subnet=IPv6Network(f"fd00:5:0:{number:x}::/64"))


@given(
    st.lists(
        st.lists(numbered_leases(), max_size=6, unique_by=lambda one: one.subnet), min_size=1, max_size=4
    )
)
@settings(max_examples=30)
def test_a_plan_of_ipv6_alone_is_the_part_of_ipv6_in_a_plan_of_both_families(
    story: list[list[Lease]],
) -> None:
    alone = ipv6_planner()
    for known in story:
        dual, ipv4 = dual_planner(), dual_planner()
        ipv4.take(config=CONFIG, leases=by_subnet(known))
        dual.take(leases=by_subnet(known))

        leases = [Lease.of_ipv6(one.ipv6_subnet, one.attributes) for one in known if one.ipv6_subnet]
        alone.take(leases=by_subnet(leases))

        in_ipv4 = {item.key for item in ipv4.plan or ()}
        expected = [item for item in dual.plan or () if item.key not in in_ipv4]
        found = [item for item in alone.plan or () if not isinstance(item, HostFile)]
        assert State.collect(found) == State.collect(expected)
        assert len(alone.peers) == alone.peer_count


def test_the_subnet_file_of_ipv6_alone_contains_only_the_lines_of_ipv6() -> None:
    planning = ipv6_planner()
    planning.take()

    (file,) = (planning.plan or State.EMPTY).of_type(HostFile)

    assert file.text == (
        "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:f::1/64\n"
        "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
    )


def test_a_host_without_the_family_of_the_network_waits() -> None:
    planning = ipv6_planner()
    ipv4 = dual_planner().inputs.underlay
    assert ipv4 is not None

    blocked = planning.take(underlay=replace(ipv4, ipv6_address=None, public_ipv6=None))

    assert isinstance(blocked, Blocked)


def is_ipv6(item: Item) -> bool:
    """Return whether an object belongs to IPv6."""
    return getattr(item, "link", getattr(item, "name", "")) == "flannel-v6.1"


def test_a_host_without_an_ipv6_address_waits_for_an_ipv6_address() -> None:
    """A lease without PublicIPv6 would crash some releases of the original."""
    planning = dual_planner()
    trouble = "an IPv6 address of eth0: IPv6 is disabled on it (sysctl net.ipv6.conf.eth0.disable_ipv6)"
    underlay = replace(planning.inputs.underlay, ipv6_address=None, public_ipv6=None, ipv6_trouble=trouble)

    assert planning.take(underlay=underlay) == Blocked(trouble)


def test_ipv4_continues_if_a_running_host_has_no_ipv6_address() -> None:
    planning = dual_planner()
    planning.take()
    trouble = "an IPv6 address of eth1: it has none"
    underlay = replace(
        planning.inputs.underlay, link="eth1", ipv6_address=None, public_ipv6=None, ipv6_trouble=trouble
    )

    result = planning.take(underlay=underlay)

    assert isinstance(result, Replaced)
    assert {link.name for link in result.plan.of_type(Link)} == {"flannel.1"}
    assert planning.notes == planning.family_notes == (f"no IPv6 packets are carried: waiting for {trouble}",)


def before_change(plan: State, changed: Changed) -> State:
    """Return the plan before the change."""
    items = {item.key: item for item in plan}
    for key, item in changed.previous.items():
        assert items.get(key) != item
        items.pop(key, None)
        if item is not None:
            items[key] = item
    return State.collect(items.values())


def crossed(number: int, other: int) -> Lease:
    """Return a lease with an address in the overlay: in its own subnet, or in the subnet of another peer."""
    address = IPv4Address(f"10.100.{other}.{other}")
    return Lease(subnet=IPv4Network(f"10.100.{number}.0/24"), attributes=LeaseAttributes(public_ip=address))


leases = st.lists(
    st.builds(lease, st.integers(10, 30), st.integers(1, 12), st.sampled_from(["", "", "udp"]))
    | st.builds(crossed, st.integers(10, 30), st.integers(10, 30)),
    max_size=8,
)


containers = st.lists(
    st.builds(
        BridgedContainer,
        address=st.integers(2, 5).map(lambda host: IPv4Address(f"10.100.15.{host}")),
        mac=st.just("02:42:0a:64:0f:02"),
        port=st.sampled_from(["veth1", "veth2"]),
    ),
    unique_by=lambda one: one.address,
    max_size=3,
)
bridges = st.lists(
    st.builds(Bridge, name=st.just("docker0"), addresses=st.just(()), containers=containers.map(tuple)),
    max_size=1,
).map(tuple)


mtus = st.sampled_from([1500, 1500, 1500, 1400])


@given(st.lists(st.tuples(leases, bridges, mtus), min_size=1, max_size=6))
def test_an_incremental_plan_equals_the_full_plan(
    story: list[tuple[list[Lease], tuple[Bridge, ...], int]],
) -> None:
    """After any history, including obstacles, the plan equals the plan of a new planner."""
    followed = planner()
    followed.take(backend=Backend(smallest_mtu=1450))
    for known, found, mtu in story:
        before = None if followed.plan is None else State.collect(followed.plan)
        underlay = replace(followed.inputs.underlay, mtu=mtu)
        result = followed.take(leases=by_subnet(known), bridges=found, underlay=underlay)

        fresh = planner()
        made = fresh.take(**{name: getattr(followed.inputs, name) for name in Inputs.__struct_fields__})
        assert followed.peers == fresh.peers
        match result:
            case Blocked(reason):
                assert made == Blocked(reason)
                assert followed.plan == before
                continue
            case Unchanged():
                assert followed.plan == before
            case Changed():
                assert before is not None
                assert before_change(followed.plan, result) == before
            case Replaced(plan):
                assert plan == followed.plan
        assert followed.plan == fresh.plan
        assert followed.objections == fresh.objections


def test_peers_that_change_during_an_obstacle_are_planned_after_the_obstacle() -> None:
    """One peer leaves and another peer joins during the obstacle. Nothing else changes."""
    made = planner()
    made.take(backend=Backend(smallest_mtu=1500), leases=by_subnet([lease(1, 1)]))
    underlay = made.inputs.underlay
    made.take(underlay=replace(underlay, mtu=1400))

    made.take(leases=by_subnet([lease(2, 2)]))
    made.take(underlay=underlay)

    assert {item.destination for item in made.plan if isinstance(item, Route)} == {lease(2, 2).subnet}


def planned(made: Planning) -> list[int]:
    """Return the numbers of the subnets with routes to peers."""
    assert made.plan is not None
    return sorted(int(item.destination[0]) >> 8 & 0xFF for item in made.plan if isinstance(item, Route))


def test_a_peer_with_an_address_in_the_overlay_is_refused(caplog) -> None:
    """Tunnel packets to the peer would loop. The peer's address is in its own subnet, in this host's subnet,
    or in another peer's subnet.
    """
    made, refused = planner(), [crossed(20, 20), crossed(21, 15), crossed(22, 23), crossed(23, 22)]

    made.take(leases=by_subnet([*refused, lease(1, 1)]))

    assert planned(made) == [1]
    assert made.refused[crossed(20, 20).subnet] == (
        "10.100.20.20 is in 10.100.20.0/24, which is routed into the overlay: packets would loop"
    )
    assert "10.100.15.15 is in 10.100.15.0/24" in made.refused[crossed(21, 15).subnet]
    assert caplog.text.count("packets would loop") == 4


def test_a_peer_is_removed_while_another_lease_covers_its_address() -> None:
    """An address in the network without another route belongs to a host behind a gateway."""
    made, peer, covering = planner(), crossed(20, 40), lease(40, 1)
    made.take(leases=by_subnet([peer]))
    assert planned(made) == [20]

    assert isinstance(made.take(leases=by_subnet([peer, covering])), Changed)
    assert planned(made) == [40]

    assert isinstance(made.take(leases=by_subnet([peer])), Changed)
    assert planned(made) == [20]


def test_host_addresses_without_conflict_change_nothing() -> None:
    """A host may have thousands of addresses of services that change. A peer with one of these addresses is
    refused.
    """
    made, peers = planner(), by_subnet([lease(1, 1), lease(2, 2)])
    made.take(backend=UdpBackend(network=CONFIG.network), leases=peers)
    addresses = frozenset(IPv4Address("10.96.0.0") + number for number in range(1000))

    assert made.take(surroundings=Surroundings(addresses=addresses)) == Unchanged()
    own = lease(2, 2).attributes.public_ip
    made.take(surroundings=Surroundings(addresses=addresses | {own}))

    assert "an address of this host" in made.refused[lease(2, 2).subnet]


@pytest.mark.parametrize(
    ("link", "protocol", "is_planned"),
    [("flannel.1", 2, True), ("flannel.7", 3, True), ("flannel.7", 101, False), ("docker0", 2, False)],
)
def test_a_route_to_the_subnet_of_a_peer(link: str, protocol: int, is_planned: bool) -> None:
    """A route on the planned device or on the device of an original is adopted. A route of another program
    remains.
    """
    other = Route(destination=lease(1, 1).subnet, link=link, protocol=protocol)
    made = planner()
    backend = VxlanBackend()
    attributes = replace(
        lease(1, 1).attributes, backend_type="vxlan", vtep=Vtep(mac="0e:00:00:00:00:01", vni=1)
    )
    peer = replace(lease(1, 1), attributes=attributes)

    made.take(backend=backend, leases=by_subnet([peer]), surroundings=Surroundings(routes=(other,)))

    assert (planned(made) == [1]) == is_planned
    assert ("has a route of another program" in made.refused.get(peer.subnet, "")) == (not is_planned)


def test_a_change_of_one_lease_plans_only_one_peer_again() -> None:
    """The plan in force is changed in place, because a copy of a large plan would be slow."""
    made = planner()
    assert isinstance(made.take(leases=by_subnet(lease(number, number) for number in (1, 2))), Replaced)
    plan = made.plan

    result = made.take(leases=by_subnet(lease(number, number) for number in (1, 2, 3)))

    assert isinstance(result, Changed)
    assert list(result.previous.values()) == [None, None, None]
    assert all(key in plan.by_key for key in result.previous)
    assert made.take() == Unchanged()


def test_a_refused_peer_is_logged_with_its_host_name(caplog) -> None:
    made, refused = planner(), lease(2, 2, "udp")
    named = replace(refused, attributes=replace(refused.attributes, host_name="docker2"))

    made.take(leases=by_subnet([lease(1, 1), named]))

    assert caplog.messages[-1].endswith("lease=10.100.2.0/24 address=172.16.0.2 host=docker2")


def test_a_refused_peer_is_logged_once(caplog) -> None:
    made, refused = planner(), lease(2, 2, "udp")

    made.take(leases=by_subnet([lease(1, 1), refused]))
    made.take(leases=by_subnet([lease(1, 1), refused, lease(3, 3)]))

    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "Ignoring it lease=10.100.2.0/24 address=172.16.0.2"
    ]
    assert made.objections == {refused.subnet: Objection(refused, "Ignoring it")}
    made.take(leases=by_subnet([lease(1, 1), lease(2, 2)]))
    assert made.objections == {}


def test_of_many_conflicts_the_first_are_logged_and_all_are_kept(caplog) -> None:
    """A change of Network may cause many conflicts, with ten thousand old leases."""
    made = planner()
    outside = [
        replace(lease(0, host), subnet=IPv4Network((0x0B000000 + (host << 8), 24))) for host in range(30)
    ]

    made.take(leases=by_subnet(outside))
    made.take()

    logged = [record.getMessage() for record in caplog.records if "onflict" in record.getMessage()]
    assert len(made.conflicts) == len(outside)
    assert len(logged) == NAMED_IN_LOG + 1
    assert logged[-1] == "Conflicts: 10 more, listed by flannelctl status"


def test_if_the_backend_cannot_work_the_previous_plan_stays_in_force() -> None:
    made = planner()
    made.take(backend=Backend(smallest_mtu=1500))
    before, underlay = State.collect(made.plan), made.inputs.underlay

    result = made.take(underlay=replace(underlay, mtu=1400))

    assert result == Blocked("a larger MTU")
    assert made.plan == before
    assert isinstance(made.take(underlay=replace(underlay, mtu=1600)), Replaced)


DOCKER = DockerParts(
    networks=(DockerNetwork(name="4" * 64, gateway=IPv4Interface("10.100.15.65/27")),),
    ports=(PublishedPort(protocol="tcp", host_port=8080, address=IPv4Address("10.100.15.66"), port=80),),
)


def test_networks_of_docker_are_planned_as_in_a_new_plan() -> None:
    planning = planner()
    planning.take()
    planning.take(docker=DOCKER)
    plan = planning.plan

    assert plan is not None
    assert plan == plan_of(planning.inputs, OPTIONS)
    assert [link.name for link in plan.of_type(Link) if link.kind == "bridge"] == ["flbr-4444444444"]
    chains = [chain.name for table in plan.of_type(NftTable) for chain in table.chains]
    assert chains == ["loopback", "published", "published_own", "docker"]

    planning.take(docker=NO_DOCKER)

    assert planning.plan == plan_of(planning.inputs, OPTIONS)


def test_a_network_of_docker_with_both_families_is_planned_as_in_a_new_plan() -> None:
    planning = dual_planner()
    planning.take()
    network = replace(DOCKER.networks[0], ipv6_gateway=IPv6Interface("fd00:5:0:f:4000::1/80"))
    docker = DockerParts(networks=(network,), others=(IPv6Network("fd00:6::/48"),))

    planning.take(docker=docker)

    plan = planning.plan
    assert plan is not None
    assert plan == plan_of(planning.inputs)
    addresses = {item.address for item in plan.of_type(Address) if item.link == network.bridge}
    assert addresses == {network.gateway, network.ipv6_gateway}
    routes = {item.destination for item in plan.of_type(Route) if item.link == network.bridge}
    assert routes == {network.subnet, IPv6Network("fd00:5:0:f:4000::/80")}
    assert [link.has_ipv6 for link in plan.of_type(Link) if link.name == network.bridge] == [True]
    isolated = [table.family for table in plan.of_type(NftTable) for chain in table.chains]
    assert isolated.count(6) == 1


def test_packets_of_containers_to_another_flannel_network_are_dropped() -> None:
    planning = planner()
    others = IPv4Network("10.101.0.0/16"), IPv4Network("10.100.128.0/17")

    planning.take(docker=replace(DOCKER, others=others))

    assert planning.plan is not None
    (table,) = planning.plan.of_type(NftTable)
    chain = next(one for one in table.chains if one.name == "isolation")
    origins = (IPv4Network("10.100.0.0/16"), "flbr-4444444444")
    assert chain.rules == tuple(IsolationRule(origin, others[0]) for origin in origins)


def test_a_network_of_docker_outside_the_subnet_of_the_host_is_not_planned() -> None:
    planning = planner()
    foreign = DockerNetwork(name="4" * 64, gateway=IPv4Interface("10.100.16.65/27"))

    planning.take(docker=replace(DOCKER, networks=(foreign,)))

    assert planning.plan == plan_of(replace(planning.inputs, docker=NO_DOCKER), OPTIONS)
