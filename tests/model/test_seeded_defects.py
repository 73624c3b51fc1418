"""The checker finds and reports each of these known defects of flannel or pyflannel."""

from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from lease_model.explorer import REAL, Counterexample, Scenario, explore
from lease_model.moves import Circumstances
from lease_model.rules import OLD
from lease_model.scenarios import (
    FIRST,
    beside_a_clone,
    host,
    lease,
    network,
    others_after_the_loss,
    resumed_twice,
    scenario,
    sharers_and_the_loss,
    store_with,
)
from lease_model.store import lease_at, revision_of, transact
from lease_model.story import replay, tell
from lease_model.world import Protocol, Request, StoreState, World
from pyflannel.model.lease_protocol import (
    Check,
    Conflicted,
    Event,
    LeaseChange,
    LeaseGone,
    LeaseSeen,
    Listed,
    PutLease,
    Seen,
    Watch,
    WatchLost,
    Wrote,
)
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import NetworkConfig
from pyflannel.plan.lease.state import Contesting, Draw, LeaseState, Step, known_leases
from pyflannel.plan.lease.step import step

TWO_HOSTS = scenario("two hosts", (host(1), host(2)), faults=("deleted manually",), most_faults=1, ticks=1)


def found(where: Scenario, defect: Protocol) -> Counterexample:
    """Return the counterexample. Without the defect, no counterexample exists, and the scenario settles."""
    example = explore(where, defect, most_states=30_000, settle_every=1).counterexample
    assert example is not None
    assert [violation.rule for violation in replay(example, defect)][:1] == [example.violation.rule]
    assert replay(example) == ()
    story = tell(example, defect)
    assert example.violation.text in story
    assert example.scenario.name in story
    return example


def unconditional(store: StoreState, request: PutLease, now: float, writer: str) -> tuple[StoreState, Event]:
    """Write without a condition."""
    current = lease_at(store, request.lease.subnet)
    expected = revision_of(current) if current is not None else 0
    store, _ = transact(store, replace(request, expected=expected), now, writer)
    return store, Wrote(request, store.revision)


def test_a_renewal_without_a_condition_is_found() -> None:
    """The renewal overwrites the lease of a host that has acquired the subnet since then."""

    def careless(store: StoreState, request: Request, now: float, writer: str) -> tuple[StoreState, Event]:
        if isinstance(request, PutLease) and request.expected > 0:
            return unconditional(store, request, now, writer)
        return transact(store, request, now, writer)

    example = found(TWO_HOSTS, Protocol(transact=careless))

    assert example.violation.rule == "no write to foreign keys"


def test_a_creation_without_a_compare_is_found() -> None:
    """Two hosts choose one subnet, and both use it."""

    def careless(store: StoreState, request: Request, now: float, writer: str) -> tuple[StoreState, Event]:
        if isinstance(request, PutLease) and request.expected == 0:
            return unconditional(store, request, now, writer)
        return transact(store, request, now, writer)

    example = found(TWO_HOSTS, Protocol(transact=careless))

    assert example.violation.rule == "no write to foreign keys"


def test_reuse_by_address_alone_is_found() -> None:
    """A running host loses its lease to a clone with its machine-id."""

    def careless(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
        wanted = state.wanted.attributes
        if isinstance(event, Listed):
            leases = tuple(
                replace(lease, attributes=replace(lease.attributes, owner=wanted.owner))
                if lease.attributes.public_ip == wanted.public_ip
                else lease
                for lease in event.leases
            )
            event = replace(event, leases=leases)
        return step(state, event, now, draw)

    example = found(beside_a_clone(), replace(REAL, step=careless))

    assert example.violation.rule == "no write to foreign keys"


def test_a_compaction_that_is_treated_as_an_empty_list_is_found() -> None:
    """All peers disappear permanently."""

    def careless(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
        if isinstance(event, WatchLost) and event.is_compacted:
            return state, (Watch(after=event_horizon),)
        return step(state, event, now, draw)

    def forgetful(leases: LeaseSet, event: Event, state: LeaseState) -> LeaseSet:
        if isinstance(event, WatchLost) and event.is_compacted:
            return LeaseSet()
        return known_leases(leases, event, state)

    event_horizon = 2  # the compacted revision, after one lease was written
    where = scenario("two hosts", (host(1), host(2)), faults=("compaction",), most_faults=1)

    example = found(where, replace(REAL, step=careless, known_leases=forgetful))

    assert example.violation.rule == "every peer's lease is known"


def test_a_watch_that_reads_only_the_first_event_of_a_response_is_found() -> None:
    """The other events are never delivered again."""

    def first(event: Event) -> Event:
        return Seen(event.changes[:1], event.revision) if isinstance(event, Seen) else event

    defect = Protocol(
        step=lambda state, event, now, draw: step(state, first(event), now, draw),
        known_leases=lambda leases, event, state: known_leases(leases, first(event), state),
        transact=transact,
    )

    example = found(scenario("three hosts", (host(1), host(2), host(3))), defect)

    assert example.violation.rule == "every peer's lease is known"


def test_a_watch_of_the_own_key_as_a_prefix_is_found() -> None:
    """`64.0.0.0-24` begins with `64.0.0.0-2`. The end of the lease with the longer key is not a loss of the
    host's own lease.
    """
    own, other = IPv4Network("64.0.0.0/2"), IPv4Network("64.0.0.0/24")

    def careless(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
        if isinstance(event, Seen):
            event = Seen(tuple(map(as_own, event.changes)), event.revision)
        return step(state, event, now, draw)

    def as_own(change: LeaseChange) -> LeaseChange:
        match change:
            case LeaseGone(subnet, revision) if key(subnet).startswith(key(own)):
                return LeaseGone(own, revision)
            case LeaseSeen(lease) if key(lease.subnet).startswith(key(own)):
                return LeaseSeen(replace(lease, subnet=own))
            case _:
                return change

    def key(subnet: IPv4Network) -> str:
        return str(subnet).replace("/", "-")

    whole = NetworkConfig(
        network=IPv4Network("0.0.0.0/0"),
        subnet_length=2,
        subnet_min=IPv4Address("64.0.0.0"),
        subnet_max=IPv4Address("128.0.0.0"),
    )
    world = World(
        hosts=(host(1),),
        store=store_with((lease(own, 1, "id1"), "host1"), (lease(other, 9), OLD)),
        network=whole,
        faults=1,
    )
    circumstances = Circumstances(faults=frozenset({"deleted manually"}))
    where = Scenario(name="a longer key", world=world, circumstances=circumstances, folds_subnets=False)

    example = found(where, replace(REAL, step=careless))

    assert example.violation.rule == "no false alarm"


def test_a_host_that_renumbers_when_its_lease_is_lost_is_found() -> None:
    """The containers of the host keep addresses of the old subnet."""

    def careless(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
        after, actions = step(state, event, now, draw)
        if isinstance(event, Seen) and state.is_settled and not after.is_settled:
            after = replace(after, held=None)
        return after, actions

    example = found(TWO_HOSTS, replace(REAL, step=careless))

    assert example.violation.rule == "a running host's subnet changes only on an order"


def test_a_reservation_that_is_given_a_ttl_is_found() -> None:
    """The reservation would expire a day later."""

    def careless(store: StoreState, request: Request, now: float, writer: str) -> tuple[StoreState, Event]:
        if not isinstance(request, PutLease) or request.ttl_s is not None:
            return transact(store, request, now, writer)
        store, answer = transact(store, replace(request, ttl_s=60), now, writer)
        return store, replace(answer, write=request) if isinstance(answer, Wrote | Conflicted) else answer

    reserved = store_with((lease(FIRST, 1), "host1"), ttl_s=None)
    where = scenario("a reservation", (host(1),), store=reserved)

    example = found(where, Protocol(transact=careless))

    assert example.violation.rule == "a reservation never gets a TTL"


def test_a_listing_that_removes_leases_of_the_watch_is_found() -> None:
    """A former defect of pyflannel: the watch overtook the response to a listing."""

    def forgetful(leases: LeaseSet, event: Event, state: LeaseState) -> LeaseSet:
        if isinstance(event, Listed):
            return LeaseSet.of(event.leases, event.revision)
        return known_leases(leases, event, state)

    example = found(TWO_HOSTS, replace(REAL, known_leases=forgetful))

    assert example.violation.rule == "every peer's lease is known"


SUBNET_LENGTHS = scenario(
    "two subnet lengths",
    (host(1), host(2)),
    faults=("config",),
    most_faults=1,
    other_network=network(length=25),
    folds_subnets=False,
)


def test_a_creation_with_an_outdated_config_is_found() -> None:
    """The existing subnet of another length is a part of the new subnet, with another key."""

    def careless(store: StoreState, request: Request, now: float, writer: str) -> tuple[StoreState, Event]:
        if not isinstance(request, PutLease):
            return transact(store, request, now, writer)
        store, answer = transact(store, replace(request, config_revision=None), now, writer)
        return store, replace(answer, write=request) if isinstance(answer, Wrote | Conflicted) else answer

    example = found(SUBNET_LENGTHS, Protocol(transact=careless))

    assert example.violation.rule == "no two owners of overlapping subnets"


def test_a_choice_from_a_listing_that_is_older_than_the_config_is_found() -> None:
    """The listing lacks subnets that were acquired with the previous config between the listing and the read
    of the config.
    """

    def careless(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
        if isinstance(event, Listed):
            event = replace(event, revision=max(event.revision, state.wanted.config_revision or 0))
        return step(state, event, now, draw)

    example = found(SUBNET_LENGTHS, replace(REAL, step=careless))

    assert example.violation.rule == "no two owners of overlapping subnets"


def test_a_watch_that_continues_in_another_store_is_found() -> None:
    """The store lost its data, and its revision exceeds the revision that the host knows. The watch misses
    existing keys.
    """

    def careless(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
        after, actions = step(state, event, now, draw)
        return after, tuple(action for action in actions if not isinstance(action, Check))

    where = scenario("a store that lost its data", (host(1), host(2)), faults=("data lost, grown",), ticks=2)

    example = found(where, replace(REAL, step=careless))

    assert example.violation.rule in {
        "every host that can get a subnet has one",
        "every peer's lease is known",
    }


def test_an_answer_to_a_claim_before_the_store_is_known_to_be_the_same_is_found() -> None:
    """A former defect of pyflannel: another lease at the same revision was treated as the claimed lease."""

    def hasty(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
        if not isinstance(event, Seen) or not state.is_unsure:
            return step(state, event, now, draw)
        state, answers = step(replace(state, is_unsure=False), event, now, draw)
        state, checks = step(replace(state, is_unsure=True), Seen((), event.revision), now, draw)
        return state, (*answers, *checks)

    example = found(others_after_the_loss(), replace(REAL, step=hasty))

    assert example.violation.rule in {"no write to foreign keys", "no false alarm"}


def test_a_claim_that_remains_valid_after_the_watch_was_closed_is_found() -> None:
    """A former defect of pyflannel: the store lost the claim, and the owner's lease got the same revision."""

    def stubborn(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
        after, actions = step(state, event, now, draw)
        if isinstance(event, WatchLost) and isinstance(state.phase, Contesting):
            after = replace(after, phase=state.phase)
        return after, actions

    example = found(sharers_and_the_loss(), replace(REAL, step=stubborn))

    assert example.violation.rule == "no write to foreign keys"


def test_a_write_of_a_copy_that_is_treated_as_own_is_found() -> None:
    """A former defect of pyflannel: two hosts from one snapshot overwrote each other's lease endlessly."""

    def trusting(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
        return step(replace(state, is_in_doubt=True), event, now, draw)

    example = found(resumed_twice(), replace(REAL, step=trusting))

    assert example.violation.rule in {"the world settles", "copies of one host report it"}
