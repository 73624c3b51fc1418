"""The rules for signed leases if an attacker controls the store: every order of events within bounds.

Two honest hosts have signed some leases, on two subnets. The attacker has its own key. The attacker
determines the leases that a third host reads: it replaces, replays, deletes and reorders them, moves them to
another subnet, and forges. The third host may restart at any time, and an operator may remove a key from the
allow-list and add it again. The third host consists of the real rules (`Trust`), the real file of counters
and the real set of leases.

With `require` and an allow-list, the traffic for a subnet is sent only to a host that signed a lease on this
subnet with an allowed key. A lease is not accepted again after a later lease of its key, or after a lease of
another key on its subnet.

Without an allow-list, the rule is weaker: the traffic may be sent to a key of the attacker. An owner still
keeps its first key, and a subnet keeps its key until its lease was deleted or the third host restarted. Old
leases are not accepted again either.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

import pytest
from msgspec import Struct
from msgspec.structs import replace

from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.lease_protocol import LeaseChange, LeaseGone, LeaseSeen, Unreadable
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.status import SignatureFault
from pyflannel.plan.lease.trust import Trust
from pyflannel.wire.lease_signature import KnownKeys, format_known_keys, parse_known_keys

SUBNETS = IPv4Network("10.3.1.0/24"), IPv4Network("10.3.2.0/24")
A, B, EVE = (name.encode() * 32 for name in "ABE")
REVISION = 1
"""Time of each write. The order of the writes is the order of the events."""


class Statement(NamedTuple):
    """A signed lease: its key, subnet and counter, and its owner."""

    key: bytes
    subnet: IPv4Network
    counter: int
    owner: str


class Offer(NamedTuple):
    """A lease that the attacker writes: a signed lease, perhaps on another subnet, or a forged lease."""

    statement: Statement
    subnet: IPv4Network
    is_authentic: bool = True

    @property
    def lease(self) -> Lease:
        """The lease as the host reads it."""
        return lease_of(self)


@lru_cache
def lease_of(offer: Offer) -> Lease:
    attributes = LeaseAttributes(
        public_ip=IPv4Address("192.0.2.1"),
        owner=offer.statement.owner,
        signing_key=offer.statement.key,
        counter=offer.statement.counter,
        signature=bytes([offer.is_authentic]) * 64,
    )
    return Lease(subnet=offer.subnet, attributes=attributes, revision=REVISION)


def offers(subnets_of_a: Iterable[IPv4Network], subnets_of_b: Iterable[IPv4Network]) -> tuple[Offer, ...]:
    """Return all leases that the attacker can write if the hosts have signed leases on these subnets."""
    signed = [
        Statement(key, subnet, counter, key[:1].decode())
        for key, subnets in ((A, subnets_of_a), (B, subnets_of_b))
        for counter, subnet in enumerate(subnets, start=1)
    ]
    shown = [Offer(one, subnet, subnet == one.subnet) for one in signed for subnet in SUBNETS]
    shown += [
        Offer(Statement(key, SUBNETS[0], 9, key[:1].decode()), SUBNETS[0], is_authentic=False)
        for key in (A, B)
    ]
    shown += [
        Offer(Statement(EVE, subnet, counter, owner), subnet)
        for subnet, counter, owner in itertools.product(SUBNETS, (1, 9), ("E", "A"))
    ]
    return tuple(shown)


class Memory(NamedTuple):
    """The leases that the hosts accepted, as the test recorded them. The record shows whether an event is a
    violation.

    Attributes:
        latest: the highest accepted counter of each key.
        replaced: accepted statements that another key replaced on their subnet.
        keys: the first accepted key of each owner.
        held: the last accepted key of each subnet, unless its lease was deleted or the host restarted since.
        on: the last accepted statement of each subnet.
    """

    latest: frozenset[tuple[bytes, int]] = frozenset()
    replaced: frozenset[Statement] = frozenset()
    keys: frozenset[tuple[str, bytes]] = frozenset()
    held: frozenset[tuple[IPv4Network, bytes]] = frozenset()
    on: frozenset[tuple[IPv4Network, Statement]] = frozenset()


NOTHING = Memory()


class World(Struct, frozen=True):
    """The state of the third host, and the notes of the test.

    Attributes:
        file: lease-counters.json, which the host writes before a lease takes effect.
        free: the subnets that `Trust` knows to be free.
        leases: the leases to which the host sends.
    """

    allowed: frozenset[bytes] | None
    file: bytes = format_known_keys(KnownKeys(0, {}, {}, {}))
    free: frozenset[IPv4Network] = frozenset()
    leases: frozenset[Lease] = frozenset()
    memory: Memory = NOTHING


class Rules(Struct, frozen=True, kw_only=True):
    """The code of the host. A test replaces a part of the code by a defect.

    Attributes:
        restart: returns the content of the file after a restart.
        revoke: returns the leases after a change of the allow-list.
    """

    trust: type[Trust] = Trust
    restart: Callable[[KnownKeys], KnownKeys] = lambda known: known
    revoke: Callable[[LeaseSet, frozenset[bytes]], LeaseSet] = lambda leases, allowed: leases.without(
        lambda lease: lease.attributes.signing_key not in allowed
    )


@lru_cache
def known_of(file: bytes) -> KnownKeys:
    return parse_known_keys(file)


def trust_of(world: World, rules: Rules) -> Trust:
    known = known_of(world.file)
    return rules.trust(
        allowed=world.allowed,
        floors=dict(known.floors),
        owners=dict(known.owners),
        holders=dict(known.holders),
        free=dict.fromkeys(world.free),
    )


def file_of(trust: Trust) -> bytes:
    """Return the file. The order of the entries has no meaning, so equal states are one state."""
    parts = (dict(sorted(one.items())) for one in (trust.floors, trust.owners, trust.holders))
    return format_known_keys(KnownKeys(0, *parts))


def after(world: World, change: LeaseChange) -> frozenset[Lease]:
    return frozenset(LeaseSet.of(world.leases).after([change]))


def following(world: World, shown: tuple[Offer, ...], rules: Rules) -> Iterator[tuple[World, str]]:
    """Yield each next world, with the violation of the event; "" if there is none."""
    trust = trust_of(world, rules)
    for offer in shown:
        if trust.objection(offer.lease, offer.is_authentic) is not None:
            refused = after(world, Unreadable(offer.subnet, REVISION))
            assert refused == world.leases
            continue
        accepting = trust_of(world, rules)
        accepting.accept(offer.lease)
        yield (
            replace(
                world,
                file=file_of(accepting),
                free=frozenset(accepting.free),
                leases=after(world, LeaseSeen(offer.lease)),
                memory=noted(world.memory, offer),
            ),
            violation(world, offer),
        )
    for subnet in SUBNETS:
        trust = trust_of(world, rules)
        trust.delete(subnet)
        held = frozenset(one for one in world.memory.held if one[0] != subnet)
        yield (
            replace(
                world,
                file=file_of(trust),
                free=frozenset(trust.free),
                leases=after(world, LeaseGone(subnet, REVISION)),
                memory=world.memory._replace(held=held),
            ),
            "",
        )
    known = rules.restart(parse_known_keys(world.file))
    restarted = rules.trust(allowed=world.allowed)
    restarted.restore(known.floors, known.owners, known.holders)
    yield (
        World(
            world.allowed,
            file=format_known_keys(known),
            free=frozenset(restarted.free),
            memory=world.memory._replace(held=frozenset()),
        ),
        "",
    )
    if world.allowed is not None:
        allowed = frozenset({A}) if world.allowed == {A, B} else frozenset({A, B})
        left = frozenset(rules.revoke(LeaseSet.of(world.leases), allowed))
        wrong = any(lease.attributes.signing_key not in allowed for lease in left)
        yield (
            replace(world, allowed=allowed, leases=left),
            "traffic is sent to a key that is not allowed any more" if wrong else "",
        )


def noted(memory: Memory, offer: Offer) -> Memory:
    statement, subnet = offer.statement, offer.subnet
    latest, on, keys = dict(memory.latest), dict(memory.on), dict(memory.keys)
    former = on.get(subnet)
    replaced = memory.replaced | ({former} if former is not None and former.key != statement.key else set())
    latest[statement.key] = max(statement.counter, latest.get(statement.key, 0))
    keys.setdefault(statement.owner, statement.key)
    return Memory(
        latest=frozenset(latest.items()),
        replaced=frozenset(replaced - {statement}),
        keys=frozenset(keys.items()),
        held=frozenset({**dict(memory.held), subnet: statement.key}.items()),
        on=frozenset({**on, subnet: statement}.items()),
    )


def violation(world: World, offer: Offer) -> str:
    """Return the rule that the acceptance of a lease violates; "" if it violates none."""
    statement, memory = offer.statement, world.memory
    if world.allowed is not None and statement.key not in world.allowed:
        return "traffic is sent to a key that is not allowed"
    if not offer.is_authentic or statement.subnet != offer.subnet:
        return "traffic is sent to a host that has not signed for the subnet"
    if statement.counter < dict(memory.latest).get(statement.key, 0):
        return "an older lease of a key returns"
    if statement in memory.replaced:
        return "a lease returns after another key took its subnet"
    if world.allowed is None:
        if dict(memory.keys).get(statement.owner, statement.key) != statement.key:
            return "an owner has another key"
        if dict(memory.held).get(offer.subnet, statement.key) != statement.key:
            return "a subnet has another key, and its lease was not deleted"
    return ""


def explore(
    shown: tuple[Offer, ...], allowed: frozenset[bytes] | None, rules: Rules, most: int
) -> tuple[str, int]:
    """Visit the worlds, nearest first. Return the first violation and the number of visited worlds."""
    start = World(allowed)
    waiting, seen = deque([start]), {start}
    while waiting and len(seen) < most:
        for world, wrong in following(waiting.popleft(), shown, rules):
            if wrong:
                return wrong, len(seen)
            if world not in seen:
                seen.add(world)
                waiting.append(world)
    return "", len(seen)


ONE, TWO = SUBNETS


def histories(length: int) -> list[tuple[Offer, ...]]:
    """Return the histories with this number of signed leases per host. Host A signed its first on subnet ONE.

    The other histories differ only in the names of the subnets.
    """
    of_a = ((ONE, *others) for others in itertools.product(SUBNETS, repeat=length - 1))
    return [offers(*each) for each in itertools.product(of_a, itertools.product(SUBNETS, repeat=length))]


HISTORIES = histories(2)
WORLDS, WORLDS_LONG = 500, 4_000
"""Maximum number of visited worlds of each history. In the long run, each host has signed three leases."""


@pytest.mark.parametrize("allowed", [frozenset({A, B}), None], ids=["allow-list", "first key"])
@pytest.mark.timeout(7200)
def test_no_order_of_events_violates_a_rule(
    allowed: frozenset[bytes] | None, long_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    visited, most = 0, WORLDS_LONG if long_run else WORLDS
    for shown in histories(3) if long_run else HISTORIES:
        wrong, worlds = explore(shown, allowed, Rules(), most)
        assert wrong == ""
        assert allowed is None or worlds < most  # all worlds were visited
        visited += worlds
    with capsys.disabled():
        print(f"\n  {visited} worlds of signed leases", end="")


def test_without_an_allow_list_another_key_is_accepted_after_a_deletion() -> None:
    """Without an allow-list, the stronger rule does not hold: a stranger may use a deleted subnet."""
    world, (_, *others) = World(None), HISTORIES[0]
    honest = HISTORIES[0][0]
    eves = next(offer for offer in others if offer.statement.owner == "E" and offer.subnet == ONE)
    trust = Trust()
    trust.accept(honest.lease)
    assert trust.objection(eves.lease, is_authentic=True) == "held_subnet"

    trust.delete(ONE)

    assert trust.objection(eves.lease, is_authentic=True) is None
    assert world.allowed is None


def without(fault: SignatureFault) -> type[Trust]:
    """Return rules that lack one objection."""

    class Lenient(Trust):
        def objection(self, lease: Lease, is_authentic: bool) -> SignatureFault | None:
            found = Trust.objection(self, lease, is_authentic)
            return None if found == fault else found

    return Lenient


class NoReplacement(Trust):
    """Does not raise the counter of the former holder of a subnet."""

    def accept(self, lease: Lease) -> None:
        self.holders.pop(lease.subnet, None)
        Trust.accept(self, lease)


def lost(**parts: Mapping[object, object]) -> Rules:
    """Return the rules of a host that loses these parts of its file at a restart."""
    return Rules(restart=lambda known: known._replace(**parts))


BOTH = frozenset({A, B})
DEFECTS: dict[str, tuple[frozenset[bytes] | None, Rules, str]] = {
    "any key": (BOTH, Rules(trust=without("not_allowed")), "a key that is not allowed"),
    "any signature": (BOTH, Rules(trust=without("invalid")), "not signed for the subnet"),
    "any counter": (BOTH, Rules(trust=without("replayed")), "an older lease of a key returns"),
    "no replacement": (BOTH, Rules(trust=NoReplacement), "after another key took its subnet"),
    "counters that are not kept": (BOTH, lost(floors={}), "an older lease of a key returns"),
    "holders that are not kept": (BOTH, lost(holders={}), "after another key took its subnet"),
    "a revoked lease that stays": (
        BOTH,
        Rules(revoke=lambda leases, _: leases),
        "a key that is not allowed any more",
    ),
    "any key of an owner": (None, Rules(trust=without("changed_key")), "an owner has another key"),
    "owners that are not kept": (None, lost(owners={}), "an owner has another key"),
    "any key on a subnet": (None, Rules(trust=without("held_subnet")), "its lease was not deleted"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_check_finds_a_seeded_defect(defect: str) -> None:
    allowed, rules, expected = DEFECTS[defect]
    found = {explore(shown, allowed, rules, 5_000)[0] for shown in HISTORIES}

    assert any(expected in wrong for wrong in found)
