"""The scenarios of the check, each with small bounds."""

from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from lease_model.explorer import REAL, Scenario
from lease_model.moves import Circumstances
from lease_model.rules import BEFORE_COPYING, DEAD, OLD
from lease_model.settling import settle
from lease_model.store import put_lease
from lease_model.world import HostState, StoreState, World
from pyflannel.model.lease import LEASE_TTL_S, Lease, LeaseAttributes
from pyflannel.model.lease_protocol import Wanted
from pyflannel.model.network_config import IpNetwork, NetworkConfig

FIRST, SECOND, THIRD = (IPv4Network(f"10.100.{n}.0/24") for n in (1, 2, 3))


def network(first: int = 1, last: int = 3, length: int = 24) -> NetworkConfig:
    """Return a network config with the subnets from 10.100.FIRST.0 to 10.100.LAST.0."""
    return NetworkConfig(
        network=IPv4Network("10.100.0.0/16"),
        subnet_length=length,
        subnet_min=IPv4Address(f"10.100.{first}.0"),
        subnet_max=IPv4Address(f"10.100.{last}.0"),
    )


def host(
    number: int,
    *,
    address: int | None = None,
    owner: str | None = None,
    ttl_s: int = LEASE_TTL_S,
) -> HostState:
    """Return a host that has not started. Without arguments, its address and identity are unique."""
    public_ip = IPv4Address(f"192.168.50.{address or number}")
    attributes = LeaseAttributes(public_ip=public_ip, owner=owner or f"id{number}")
    wanted = Wanted(network=network(), attributes=attributes, ttl_s=ttl_s)
    return HostState(name=f"host{number}", wanted=wanted)


def lease(subnet: IpNetwork, address: int, owner: str | None = None) -> Lease:
    """Return a written lease; without an owner, as the original writes it."""
    attributes = LeaseAttributes(public_ip=IPv4Address(f"192.168.50.{address}"), owner=owner)
    return Lease(subnet=subnet, attributes=attributes)


def scenario(
    name: str,
    hosts: tuple[HostState, ...],
    *,
    store: StoreState = StoreState(),  # noqa: B008, a value
    faults: tuple[str, ...] = (),
    most_faults: int = 2,
    ticks: int = 2,
    last: int = 3,
    other_network: NetworkConfig | None = None,
    folds_subnets: bool = True,
) -> Scenario:
    """Return a scenario in the network from 10.100.1.0/24 to `last`."""
    world = World(
        hosts=hosts,
        store=store,
        network=network(last=last),
        faults=most_faults if faults else 0,
        ticks=ticks,
    )
    circumstances = Circumstances(faults=frozenset(faults), other_network=other_network)
    return Scenario(name=name, world=world, circumstances=circumstances, folds_subnets=folds_subnets)


def store_with(*leases: tuple[Lease, str], ttl_s: float | None = LEASE_TTL_S) -> StoreState:
    """Return a store with these leases, each with the host that it represents."""
    store = StoreState()
    for value, writer in leases:
        store = put_lease(store, value, ttl_s, 0.0, writer)
    return replace(store, history=())


def begun(before: Scenario, *newcomers: HostState) -> Scenario:
    """Return a scenario that starts with additional hosts beside the settled hosts of another scenario."""
    world = settle(before.world, REAL, before.circumstances).world
    world = replace(before.world, hosts=(*world.hosts, *newcomers), store=world.store, now=world.now)
    return replace(before, world=world)


def others_after_the_loss() -> Scenario:
    """Two hosts with one address start beside a host with the only subnet, until the store loses its data.

    Then one of the two hosts may acquire the subnet with a write of the same revision as the first host's
    write, and the other of the two may ask whether the owner is running.
    """
    first = scenario(
        "a claim on another host's lease at the same revision",
        (host(1),),
        store=store_with((lease(FIRST, 1, "id1"), "host1")),
        faults=("data lost",),
        most_faults=1,
        last=1,
    )
    return begun(first, host(2, address=7), host(3, address=7))


def sharers_and_the_loss() -> Scenario:
    """A host asks whether the host with its address is running. The store loses the claim or its answer."""
    first = scenario(
        "a claim that went with the store's data",
        (host(1, address=7),),
        store=store_with((lease(FIRST, 7, "id1"), "host1")),
        faults=("data lost",),
        most_faults=1,
        ticks=3,
        last=2,
    )
    return begun(first, host(2, address=7))


def beside_a_clone() -> Scenario:
    """A clone starts beside a running host, with its address and machine-id, and an empty state directory.

    A lease does not contain the machine-id, so the protocol cannot use it as a proof.
    """
    first = scenario(
        "a clone with the machine-id",
        (host(1, address=7),),
        faults=_COPY_FAULTS,
        ticks=3,
        last=2,
    )
    return begun(first, host(2, address=7))


def beside_a_copy() -> Scenario:
    """A copy starts beside a running host, with its identity and its address."""
    first = scenario(
        "a copy with identity and address",
        (host(1, address=7, owner="twin"),),
        faults=_COPY_FAULTS,
        ticks=3,
        last=2,
    )
    before = begun(first, host(2, address=7, owner="twin"))
    return replace(before, world=replace(before.world, now=before.world.now + 1.0))


def resumed_twice() -> Scenario:
    """A snapshot of a running host is resumed twice. Two daemons continue with one state and one address."""
    first = scenario(
        "a snapshot that is resumed twice",
        (host(1),),
        faults=(*_COPY_FAULTS, "address"),
        ticks=3,
        last=2,
    )
    world = begun(first).world
    (entry,) = world.store.entries
    store = replace(world.store, entries=(replace(entry, writer=BEFORE_COPYING),))
    hosts = (*world.hosts, replace(world.hosts[0], name="host2"))
    return replace(first, world=replace(world, hosts=hosts, store=store))


_COPY_FAULTS = ("crash", "lost answer", "watch cut", "compaction", "slow")


def every_scenario() -> tuple[Scenario, ...]:
    """Return all scenarios, the small ones first."""
    return (
        scenario(
            "a host alone",
            (host(1),),
            faults=(
                "crash",
                "lost answer",
                "failed request",
                "watch cut",
                "compaction",
                "store away",
                "slow",
                "deleted manually",
                "invalid value",
                "clock steps +25 h",
                "clock steps -2 h",
            ),
            ticks=4,
            last=2,
        ),
        scenario(
            "a reservation",
            (host(1), host(2)),
            store=store_with((lease(FIRST, 1), "host1"), ttl_s=None),
            faults=(
                "crash",
                "lost answer",
                "watch cut",
                "compaction",
                "deleted manually",
                "reserved manually",
            ),
            last=2,
        ),
        scenario(
            "beside an original flannel",
            (host(1), host(2)),
            store=store_with((lease(FIRST, 9), OLD), (lease(SECOND, 1), "host1")),
            faults=("crash", "lost answer", "old renews", "deleted manually", "compaction"),
        ),
        scenario(
            "a re-installed host",
            (host(1), host(2)),
            faults=("crash", "reinstall", "lost answer", "watch cut"),
            most_faults=3,
            last=2,
        ),
        scenario(
            "a removed host with the same address",
            (host(1, address=7), host(2, address=7)),
            store=store_with((lease(FIRST, 7, "gone"), DEAD)),
            faults=("crash", "lost answer", "watch cut", "compaction", "failed request"),
            ticks=4,
        ),
        scenario(
            "two hosts with one address",
            (host(1, address=7), host(2, address=7)),
            faults=(
                "crash",
                "lost answer",
                "failed request",
                "watch cut",
                "compaction",
                "store away",
                "slow",
            ),
            ticks=4,
        ),
        scenario(
            "leases shorter than a claim",
            (host(1, address=7, ttl_s=5), host(2, address=7, ttl_s=5)),
            faults=("crash", "lost answer", "watch cut", "compaction", "store away", "slow"),
            ticks=4,
        ),
        scenario(
            "a cloned identity",
            (host(1, owner="twin"), host(2, owner="twin")),
            faults=("crash", "lost answer", "watch cut", "compaction", "store away", "deleted manually"),
            ticks=4,
        ),
        scenario(
            "a change of address",
            (host(1), host(2)),
            faults=("address", "lost answer", "crash", "compaction", "watch cut"),
            ticks=3,
        ),
        scenario(
            "a change of the network config",
            (host(1), host(2)),
            faults=("config", "lost answer", "crash"),
            other_network=network(first=2, last=4),
            folds_subnets=False,
        ),
        scenario(
            "a change of the subnets' length",
            (host(1), host(2)),
            faults=("config", "lost answer", "crash"),
            last=2,
            other_network=network(last=2, length=25),
            folds_subnets=False,
        ),
        scenario(
            "a store that lost its data",
            (host(1), host(2)),
            faults=("data lost", "data lost, grown", "watch cut", "lost answer"),
            ticks=3,
        ),
        beside_a_clone(),
        beside_a_copy(),
        resumed_twice(),
        others_after_the_loss(),
        sharers_and_the_loss(),
        scenario(
            "three hosts and two subnets",
            (host(1), host(2), host(3)),
            faults=("lost answer", "deleted manually"),
            most_faults=1,
            last=2,
            ticks=1,
        ),
        scenario(
            "two hosts",
            (host(1), host(2)),
            faults=(
                "crash",
                "lost answer",
                "failed request",
                "watch cut",
                "compaction",
                "store away",
                "deleted manually",
                "invalid value",
                "clock steps +25 h",
                "clock steps -2 h",
            ),
            ticks=3,
        ),
        scenario(
            "three hosts and four subnets",
            (host(1), host(2), host(3)),
            faults=("crash", "lost answer", "watch cut", "compaction", "store away", "deleted manually"),
            last=4,
        ),
    )
