"""The planner and its backend: refused peers, obstacles, and removed objects."""

import logging
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.planning import SUBNET_FILE, Planning, by_subnet
from pyflannel.engine.condition import Inputs
from pyflannel.engine.peer_probes import paths_of
from pyflannel.engine.plan_log import NAMED_IN_LOG, PEERS_A_MINUTE
from pyflannel.engine.world import PlanOptions
from pyflannel.model.host import HostFile, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep, WireguardData
from pyflannel.model.link import Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import FdbEntry, Route
from pyflannel.model.state import Blocked, Changed, Replaced, State
from pyflannel.model.wireguard import WireguardDevice, WireguardFacts, WireguardPeer
from pyflannel.plan.backend.alloc import AllocBackend
from pyflannel.plan.backend.host_gw import HostGwBackend
from pyflannel.plan.backend.udp import UdpBackend
from pyflannel.plan.backend.vxlan import VxlanBackend
from pyflannel.plan.backend.wireguard import Mode, WireguardBackend
from pyflannel.plan.backends import Backend

CONFIG = NetworkConfig(network=IPv4Network("10.100.0.0/16"), subnet_length=24)
OWN = Lease(
    subnet=IPv4Network("10.100.15.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("172.16.0.99"))
)
UNDERLAY = Underlay(
    link="eth0", address=IPv4Address("172.16.0.99"), mtu=1500, public_ip=IPv4Address("172.16.0.99")
)


def planner(backend: Backend | None = None, *, has_blackhole: bool = False) -> Planning:
    options = PlanOptions(subnet_file=SUBNET_FILE, has_blackhole=has_blackhole)
    inputs = Inputs(
        config=CONFIG, backend=backend or VxlanBackend(), lease=OWN, underlay=UNDERLAY, owner="f00d"
    )
    return Planning(inputs, options)


def lease(number: int, host: int, mac: int = 0, revision: int = 1) -> Lease:
    return Lease(
        subnet=IPv4Network(f"10.100.{number}.0/24"),
        attributes=LeaseAttributes(
            public_ip=IPv4Address(f"172.16.0.{host}"),
            backend_type="vxlan",
            vtep=Vtep(mac=f"0e:00:00:00:00:{mac or host:02x}", vni=1),
        ),
        revision=revision,
        since=revision,
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


leases = st.lists(
    st.builds(lease, st.integers(10, 14), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)), max_size=5
)


@given(st.lists(leases, min_size=1, max_size=6))
def test_the_plan_of_peers_with_one_mac_address_does_not_depend_on_their_order(
    story: list[list[Lease]],
) -> None:
    followed = planner()
    for known in story:
        followed.take(leases=by_subnet(known))

        fresh = planner()
        fresh.take(leases=by_subnet(known))
        assert followed.plan == fresh.plan
        assert followed.refused == fresh.refused


def test_a_copy_of_a_host_is_refused_and_does_not_affect_the_host(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old, new = lease(10, 1, mac=7, revision=4), lease(11, 2, mac=7, revision=5)
    made = planner()

    def destinations() -> list[str]:
        state = made.plan
        assert state is not None
        return [str(item.destination) for item in state if isinstance(item, FdbEntry)]

    for known, reached in (
        ([old], "172.16.0.1"),
        ([old, new], "172.16.0.1"),
        ([new], "172.16.0.2"),
        ([old], "172.16.0.1"),
    ):
        made.take(leases=by_subnet(known))
        assert destinations() == [reached]

    assert made.refused == {}
    (said,) = warnings(caplog)
    assert "its VtepMAC 0e:00:00:00:00:07 is also that of 10.100.10.0/24 at 172.16.0.1" in said
    assert said.endswith("lease=10.100.11.0/24 address=172.16.0.2")


def test_every_lease_that_is_not_planned_for_is_refused_with_a_reason() -> None:
    """The backend refuses the lease, or the content of the lease is invalid for this host."""
    outside = replace(lease(0, 3), subnet=IPv4Network("10.99.0.0/24"))
    other = replace(lease(11, 4), attributes=LeaseAttributes(public_ip=IPv4Address("172.16.0.4")))
    made = planner()

    made.take(leases=by_subnet([lease(10, 1), outside, other]))

    assert made.refused.keys() == {outside.subnet, other.subnet}
    assert "outside the network" in made.refused[outside.subnet]
    assert made.refused[other.subnet] == "Ignoring non-vxlan subnet: type="


def test_many_refused_peers_are_counted_after_the_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = planner(HostGwBackend())

    made.take(leases=by_subnet(lease(number, number) for number in range(20, 50)))
    made.take(leases=by_subnet(lease(number, number) for number in range(20, 51)))

    said = warnings(caplog)
    assert len(said) == NAMED_IN_LOG + 2
    assert said[NAMED_IN_LOG] == "Refused 10 more peers, listed by flannelctl peers"
    assert said[-1].endswith("lease=10.100.50.0/24 address=172.16.0.50")
    assert len(made.refused) == 31


def test_a_backend_that_cannot_work_has_no_plan_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = planner(HostGwBackend())

    made.take(underlay=replace(UNDERLAY, public_ip=IPv4Address("203.0.113.9")))
    made.take()
    behind_nat = made.plan
    said = warnings(caplog)
    made.take(underlay=UNDERLAY)

    assert behind_nat is None
    (line,) = said
    assert "you're on a NAT" in line
    assert made.peers == ()
    assert made.plan is not None


def test_a_note_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    made = planner(VxlanBackend(outer_mtu=9000))

    made.take()
    made.take(underlay=replace(UNDERLAY, driver="vmxnet3"))

    assert [said.partition(":")[0] for said in warnings(caplog)] == ["Note", "Note"]
    assert "Backend.MTU is 9000" in warnings(caplog)[0]
    assert "vmxnet3" in warnings(caplog)[1]


@pytest.mark.parametrize("has_blackhole", [False, True])
def test_the_own_subnet_has_a_blackhole_of_the_lowest_precedence_if_requested(
    has_blackhole: bool,
) -> None:
    made = planner(has_blackhole=has_blackhole)
    made.take()

    state = made.plan
    assert state is not None
    routes = [item for item in state if isinstance(item, Route)]
    assert routes == [
        Route(destination=OWN.subnet, link="", kind="blackhole", metric=2**32 - 1)
        for _ in range(has_blackhole)
    ]


def test_a_host_waits_for_another_subnet_if_its_own_subnet_would_disconnect_the_host() -> None:
    """The bridge of its containers would get packets of the underlay. The backend alloc plans no routes."""
    underlay = replace(UNDERLAY, on_link=(IPv4Network("10.100.0.0/20"),))
    made = planner()

    assert made.take(underlay=underlay) == Blocked(
        "another subnet for this host: 10.100.15.0/24 is a part of 10.100.0.0/20, the prefix of eth0: it is"
        " not routed to the overlay, because this host would lose hosts and gateways of the underlay"
    )
    assert made.plan is None
    assert isinstance(made.take(backend=AllocBackend()), Replaced)


def test_a_lease_that_is_often_added_and_removed_cannot_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = planner(VxlanBackend())

    with caplog.at_level(logging.INFO):
        for _ in range(PEERS_A_MINUTE):
            made.take(leases=by_subnet([lease(10, 1)]))
            made.take(leases=by_subnet([]))

    assert caplog.text.count("Subnet ") == PEERS_A_MINUTE
    assert len(caplog.records) == PEERS_A_MINUTE + 1


def test_a_refused_lease_that_is_renewed_is_not_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    made = planner(HostGwBackend())

    for revision in range(1, 100):
        made.take(leases=by_subnet([lease(10, 1, revision=revision)]))

    assert len(warnings(caplog)) == 1


def test_a_new_peer_costs_nothing_for_refused_leases() -> None:
    """A client of the store can write any number of leases that are refused. The planner checks these leases
    only when they change.
    """
    refused = [replace(lease(10, 1), subnet=IPv4Network(f"10.99.{number}.0/24")) for number in range(50)]
    other = [
        replace(
            lease(number, number), attributes=LeaseAttributes(public_ip=IPv4Address(f"172.16.1.{number}"))
        )
        for number in range(20, 40)
    ]
    sharing = [lease(number, 3, mac=number) for number in range(40, 50)]
    known = [*refused, *other, *sharing]
    made = planner()
    made.take(leases=by_subnet(known))
    conflicts, objections = made.conflicts, made.objections

    made.take(leases=by_subnet([*known, lease(50, 50)]))

    assert (made.conflicts, made.objections) == (conflicts, objections)
    assert made.conflicts is conflicts
    assert made.objections is objections
    assert len(conflicts) == 50 + 9
    assert len(objections) == 20


def test_two_peers_with_one_mac_address_do_not_slow_other_changes() -> None:
    """Only a change of the shared object needs a complete plan."""
    copies = [lease(10, 1, mac=7, revision=4), lease(11, 2, mac=7, revision=5)]
    made = planner()
    made.take(leases=by_subnet(copies))

    results = [made.take(leases=by_subnet([*copies, *more])) for more in ([lease(12, 3)], [lease(12, 4)], [])]
    gone = made.take(leases=by_subnet(copies[1:]))

    assert [type(result) for result in results] == [Changed, Changed, Changed]
    assert isinstance(gone, Replaced)
    assert made.refused == {}


def routes_to(made: Planning, peer: Lease) -> list[tuple[str, int]]:
    """Return device and MTU of each route to the subnets of a peer."""
    assert made.plan is not None
    return [
        (route.link, route.mtu)
        for route in made.plan.of_type(Route)
        if route.destination in (peer.subnet, peer.ipv6_subnet) and route.kind == "unicast"
    ]


@pytest.mark.parametrize(
    ("backend", "kind", "before"),
    [
        (VxlanBackend(), "vxlan", [("flannel.1", 0)]),
        (UdpBackend(network=IPv4Network("10.100.0.0/16")), "udp", []),
    ],
)
def test_the_route_to_a_peer_carries_a_smaller_mtu_of_its_path(
    backend: Backend, kind: str, before: list[tuple[str, int]]
) -> None:
    """With udp, which has one route to the network, the peer gets its own route until the path is better."""
    near, far = (
        replace(one, attributes=replace(one.attributes, backend_type=kind))
        for one in (lease(10, 1), lease(11, 2))
    )
    made = planner(backend)
    made.take(leases=by_subnet([near, far]))
    device = "flannel.1" if kind == "vxlan" else "flannel0"

    made.take(path_mtus={far.subnet: 1350})

    assert routes_to(made, near) == before
    assert routes_to(made, far) == [(device, 1350)]
    made.take(leases=by_subnet([near]))
    assert routes_to(made, far) == []
    made.take(leases=by_subnet([near, far]), path_mtus={})
    assert routes_to(made, far) == before


WIREGUARD = WireguardBackend(network=IPv4Network("10.100.0.0/16"), ipv6_network=IPv6Network("fd00:5::/48"))


@pytest.mark.parametrize(
    ("backend", "kind", "before", "after"),
    [
        (
            VxlanBackend(),
            "vxlan",
            [("flannel.1", 0), ("flannel-v6.1", 0)],
            [("flannel.1", 0), ("flannel-v6.1", 1330)],
        ),
        (HostGwBackend(), "host-gw", [("eth0", 0), ("eth0", 0)], [("eth0", 0), ("eth0", 1330)]),
        (WIREGUARD, "wireguard", [], [("flannel-wg-v6", 1330)]),
        (replace(WIREGUARD, mode="auto"), "wireguard", [], [("flannel-wg", 1330)]),
    ],
)
def test_the_ipv6_route_to_a_peer_carries_a_smaller_mtu_of_its_path(
    backend: Backend, kind: str, before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    """The route of the other family keeps the planned MTU."""
    made, peer = dual_planner(backend), dual_lease(10, 1, kind)
    assert peer.ipv6_subnet is not None
    made.take(leases=by_subnet([peer]))
    assert routes_to(made, peer) == before

    made.take(path_mtus={peer.ipv6_subnet: 1330})

    assert routes_to(made, peer) == after
    made.take(path_mtus={})
    assert routes_to(made, peer) == before


def dual_lease(number: int, host: int, kind: str) -> Lease:
    part = lease(number, host)
    key = WireguardData(public_key=f"{number:043d}=", port=51820)
    attributes = replace(
        part.attributes,
        public_ipv6=IPv6Address(f"fd07::{host}"),
        backend_type=kind,
        vtep_v6=Vtep(mac=f"0e:00:00:00:06:{host:02x}", vni=1),
        wireguard=key,
        wireguard_v6=key,
    )
    return replace(part, ipv6_subnet=IPv6Network(f"fd00:5:0:{number}::/64"), attributes=attributes)


def dual_planner(backend: Backend) -> Planning:
    """Return a planner of a network with both families."""
    own = replace(
        OWN,
        ipv6_subnet=IPv6Network("fd00:5:0:15::/64"),
        attributes=replace(OWN.attributes, public_ipv6=IPv6Address("fd07::99")),
    )
    underlay = replace(
        UNDERLAY,
        ipv6_address=IPv6Address("fd07::99"),
        public_ipv6=IPv6Address("fd07::99"),
        on_link=(IPv4Network("172.16.0.0/24"), IPv6Network("fd07::/64")),
    )
    config = replace(CONFIG, enable_ipv6=True, ipv6_network=IPv6Network("fd00:5::/48"), ipv6_subnet_length=64)
    facts = WireguardFacts(key="A" * 42 + "E=", published="A" * 42 + "E=", is_in_kernel=True)
    inputs = Inputs(
        config=config, backend=backend, lease=own, underlay=underlay, owner="f00d", wireguard=facts
    )
    return Planning(inputs, PlanOptions(subnet_file=SUBNET_FILE))


@pytest.mark.parametrize(
    ("backend", "alone", "kind"),
    [
        (VxlanBackend(), VxlanBackend(), "vxlan"),
        (VxlanBackend(routes_directly=True), VxlanBackend(routes_directly=True), "vxlan"),
        (HostGwBackend(), HostGwBackend(), "host-gw"),
        (WIREGUARD, replace(WIREGUARD, network=None), "wireguard"),
    ],
)
def test_each_backend_plans_ipv6_without_ipv4(backend: Backend, alone: Backend, kind: str) -> None:
    """A network with IPv6 alone has the same IPv6 objects as a network with both families."""
    peers = [dual_lease(number, number - 9, kind) for number in (10, 11)]
    both, ipv4 = dual_planner(backend), dual_planner(backend)
    assert both.inputs.config is not None
    both.take(leases=by_subnet(peers))
    ipv4.take(config=replace(both.inputs.config, enable_ipv6=False), leases=by_subnet(peers))

    made = ipv6_planner(alone)
    made.take(
        leases=by_subnet([Lease.of_ipv6(one.ipv6_subnet, one.attributes) for one in peers if one.ipv6_subnet])
    )

    known = {item.key for item in ipv4.plan or ()}
    expected = [item for item in both.plan or () if item.key not in known]
    assert State.collect(item for item in made.plan or () if not isinstance(item, HostFile)) == State.collect(
        expected
    )
    assert expected
    assert made.peer_count == 2
    assert (paths := paths_of(made, made.inputs)) is not None
    assert len(list(paths.subnets())) == 2


@pytest.mark.parametrize("mode", ["auto", "ipv6"])
def test_one_wireguard_device_carries_ipv6_alone(mode: Mode) -> None:
    made = ipv6_planner(replace(WIREGUARD, network=None, mode=mode))
    peer = dual_lease(10, 1, "wireguard")
    assert peer.ipv6_subnet is not None

    made.take(leases=by_subnet([Lease.of_ipv6(peer.ipv6_subnet, peer.attributes)]))

    plan = made.plan or State.EMPTY
    assert [link.name for link in plan.of_type(Link)] == ["flannel-wg"]
    assert [one.endpoint for one in plan.of_type(WireguardPeer)] == ["[fd07::1]:51820"]
    assert [one.sources for one in plan.of_type(WireguardDevice)] == [(IPv6Address("fd07::99"),)]


def ipv6_planner(backend: Backend) -> Planning:
    """Return a planner of the same network with IPv6 alone."""
    inputs = dual_planner(backend).inputs
    assert inputs.config is not None
    assert inputs.lease is not None
    assert inputs.lease.ipv6_subnet is not None
    assert inputs.underlay is not None
    address = IPv6Address("fd07::99")
    changed = replace(
        inputs,
        config=replace(inputs.config, enable_ipv4=False, is_assigned=True),
        lease=Lease.of_ipv6(inputs.lease.ipv6_subnet, inputs.lease.attributes),
        underlay=replace(inputs.underlay, address=address, public_ip=address),
    )
    return Planning(changed, PlanOptions(subnet_file=SUBNET_FILE))


@pytest.mark.parametrize(
    ("backend", "kind", "ends", "outer"),
    [
        (VxlanBackend(), "vxlan", ("10.100.10.0 172.16.0.1", "fd00:5:0:10:: fd07::1"), (1500, 1500)),
        (HostGwBackend(), "host-gw", ("172.16.0.1 172.16.0.1", "fd07::1 fd07::1"), (1500, 1500)),
        (WIREGUARD, "wireguard", ("10.100.10.0 172.16.0.1", "fd00:5:0:10:: fd07::1"), (1480, 1500)),
        (
            replace(WIREGUARD, mode="ipv6"),
            "wireguard",
            ("10.100.10.0 fd07::1", "fd00:5:0:10:: fd07::1"),
            (1500, 1500),
        ),
        (
            replace(WIREGUARD, mode="ipv4"),
            "wireguard",
            ("10.100.10.0 172.16.0.1", "fd00:5:0:10:: 172.16.0.1"),
            (1480, 1480),
        ),
    ],
)
def test_the_probes_of_a_path_follow_the_tunnel(
    backend: Backend, kind: str, ends: tuple[str, str], outer: tuple[int, int]
) -> None:
    """The tunnel for packets of one family may use the other family on the underlay, and its header then has
    another length.
    """
    made, peer = dual_planner(backend), dual_lease(10, 1, kind)
    made.take(leases=by_subnet([peer]))

    paths = paths_of(made, made.inputs)

    assert paths is not None
    found = [path for subnet in paths.subnets() if (path := paths.path_to(subnet)) is not None]
    assert [(f"{path.end} {path.underlay}", path.outer) for path in found] == list(
        zip(ends, outer, strict=True)
    )


def test_no_path_is_probed_without_a_data_path() -> None:
    made = dual_planner(AllocBackend())
    made.take(leases=by_subnet([dual_lease(10, 1, "")]))

    assert paths_of(made, made.inputs) is None
