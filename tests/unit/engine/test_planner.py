"""The planner: what changes one peer gives the plan that planning everything would."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.engine.planner import NAMED_IN_LOG, Planner
from pyflannel.model.fast_path import BpfContainer
from pyflannel.model.host import Bridge, BridgedContainer, Host, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.lease_protocol import Held
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.link import Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import FdbEntry, Route
from pyflannel.model.state import Add, Operation, Remove, Replace, State
from pyflannel.plan.packet_filter import FilterOptions

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
    port: int | None = None
    config_line: str | None = None
    config_warnings: tuple[str, ...] = ()
    smallest_mtu: int = 0

    def lease_data(self, owner: str) -> None:
        return None

    def mtu(self, host: Host) -> int:
        return 1450

    def notes(self, host: Host) -> tuple[str, ...]:
        return ()

    def obstacle(self, underlay: Underlay) -> str | None:
        return "a larger MTU" if underlay.mtu < self.smallest_mtu else None

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IPv4Network, str]:
        """Of peers that want one object the one at the highest address has it."""
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


def planner() -> Planner:
    made = Planner(
        subnet_file="/run/flannel/subnet.env",
        packet_filter=FilterOptions(),
        device="flannel0",
        mark="pyflannel",
    )
    made.config, made.backend, made.held = CONFIG, Backend(), Held(lease=OWN)
    address = IPv4Address("172.16.0.99")
    made.underlay = Underlay(link="eth0", address=address, mtu=1500, public_ip=address)
    return made


def lease(number: int, host: int, backend_type: str = "") -> Lease:
    return Lease(
        subnet=IPv4Network(f"10.100.{number}.0/24"),
        attributes=LeaseAttributes(public_ip=IPv4Address(f"172.16.0.{host}"), backend_type=backend_type),
    )


def after(state: State, operations: list[Operation]) -> State:
    items = {item.key: item for item in state}
    for operation in operations:
        match operation:
            case Remove(item):
                assert items.pop(item.key) == item
            case Add(item):
                assert items.setdefault(item.key, item) is item
            case Replace(old, new):
                assert items[new.key] == old
                items[new.key] = new
    return State.collect(items.values())


leases = st.lists(
    st.builds(lease, st.integers(10, 30), st.integers(1, 12), st.sampled_from(["", "", "udp"])), max_size=8
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


@given(st.lists(st.tuples(leases, leases, bridges), min_size=1, max_size=6))
def test_planning_what_changed_gives_what_planning_all_gives(
    story: list[tuple[list[Lease], list[Lease], tuple[Bridge, ...]]],
) -> None:
    """After each change the plan is that of a planner that knows nothing of before."""
    followed = planner()
    followed.update()
    for known, lingering, found in story:
        before = None if (plan := followed.desired()) is None else State.collect(plan)
        followed.leases, followed.lingering = LeaseSet.of(known), tuple(lingering)
        followed.bridges = found
        operations = followed.update()

        fresh = planner()
        fresh.leases, fresh.lingering = LeaseSet.of(known), tuple(lingering)
        fresh.bridges = found
        assert fresh.update() is None
        assert followed.desired() == fresh.desired()
        assert followed.peers == fresh.peers
        assert followed.objections == fresh.objections
        if operations is not None:
            assert before is not None
            assert after(before, operations) == followed.desired()


def test_one_lease_re_plans_one_peer() -> None:
    """And is put into the plan that there is: of a large one nobody makes another."""
    made = planner()
    made.leases = LeaseSet.of(lease(number, number) for number in (1, 2))
    assert made.update() is None
    plan = made.desired()

    made.leases = LeaseSet.of(lease(number, number) for number in (1, 2, 3))
    operations = made.update()

    assert operations is not None
    assert plan is not None
    assert [type(operation) for operation in operations] == [Add, Add]
    assert all(operation.item in plan for operation in operations if isinstance(operation, Add))
    assert made.update() == []


def test_a_peer_with_an_objection_is_named_once(caplog) -> None:
    made = planner()
    made.leases = LeaseSet.of([lease(1, 1), lease(2, 2, "udp")])

    made.update()
    made.leases = LeaseSet.of([lease(1, 1), lease(2, 2, "udp"), lease(3, 3)])
    made.update()

    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "Ignoring it lease=10.100.2.0/24 address=172.16.0.2"
    ]
    assert made.objections == {IPv4Network("10.100.2.0/24"): "Ignoring it"}
    made.leases = LeaseSet.of([lease(1, 1), lease(2, 2)])
    made.update()
    assert made.objections == {}


def test_of_very_many_conflicts_the_first_are_named_and_all_are_kept(caplog) -> None:
    """As after a change of Network, with ten thousand leases of before."""
    followed = planner()
    outside = [
        replace(lease(0, host), subnet=IPv4Network((0x0B000000 + (host << 8), 24))) for host in range(30)
    ]

    followed.leases = LeaseSet.of([*followed.leases, *outside])
    followed.update()
    followed.update()

    said = [record.getMessage() for record in caplog.records if "onflict" in record.getMessage()]
    assert len(followed.conflicts) == len(outside)
    assert len(said) == NAMED_IN_LOG + 1
    assert said[-1] == "Conflicts: 10 more; flannelctl status names them"


def test_where_the_backend_cannot_work_what_stands_is_kept() -> None:
    made = planner()
    made.backend = Backend(smallest_mtu=1500)
    made.update()
    before = made.desired()
    assert made.underlay is not None

    made.underlay = replace(made.underlay, mtu=1400)
    made.update()

    assert made.obstacle == "a larger MTU"
    assert made.desired() == before
    made.underlay = replace(made.underlay, mtu=1600)
    made.update()
    assert made.obstacle is None
