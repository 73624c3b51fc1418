"""The rules for signed leases against an adversary who controls the store: every order of events in bounds.

Two honest hosts sign leases on two subnets. The adversary has a key of its own and decides what a third host
sees: each lease that was ever signed, at any time and in any order, forged ones, deletions, or nothing.

With an allow-list, the third host sends the traffic of a subnet only to a host that signed for this subnet by
an allowed key. It never returns to a statement that the same key or a later holder of the subnet replaced.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

import pytest

from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.status import SignatureFault
from pyflannel.plan.lease.trust import Trust

SUBNETS = IPv4Network("10.3.1.0/24"), IPv4Network("10.3.2.0/24")
HONEST = b"A" * 32, b"B" * 32
EVE = b"E" * 32
MOST_STATEMENTS = 2
"""Of each honest key."""


class Statement(NamedTuple):
    """A lease that was signed: the key and the subnet are those that the signer meant."""

    key: bytes
    subnet: IPv4Network
    counter: int


class Offer(NamedTuple):
    """A lease that the adversary shows: a statement, perhaps moved to another subnet or changed."""

    statement: Statement
    subnet: IPv4Network
    is_authentic: bool

    @property
    def lease(self) -> Lease:
        """What the host reads."""
        attributes = LeaseAttributes(
            public_ip=IPv4Address("192.0.2.1"),
            owner=self.statement.key.decode(),
            signing_key=self.statement.key,
            counter=self.statement.counter,
            signature=bytes(64),
        )
        return Lease(subnet=self.subnet, attributes=attributes)


@dataclass(frozen=True, slots=True)
class World:
    """What was signed, what the watching host accepted, in order, and where it sends."""

    signed: tuple[Statement, ...] = ()
    accepted: tuple[Offer, ...] = ()
    sends: tuple[tuple[IPv4Network, Offer], ...] = ()
    has_restarted: bool = False


def trust_of(world: World, allowed: frozenset[bytes] | None, make: Callable[..., Trust]) -> Trust:
    """The knowledge of the watching host, after all that it accepted."""
    trust = make(allowed=allowed)
    for offer in world.accepted:
        trust.accept(offer.lease)
    return trust


def offers(world: World) -> Iterator[Offer]:
    """Everything that the adversary can show: whoever moves or changes a lease cannot sign it again."""
    for statement in world.signed:
        for subnet in SUBNETS:
            yield Offer(statement, subnet, is_authentic=subnet == statement.subnet)
    for subnet in SUBNETS:
        for counter in (1, 9):
            yield Offer(Statement(EVE, subnet, counter), subnet, is_authentic=True)
            for key in HONEST:
                yield Offer(Statement(key, subnet, counter), subnet, is_authentic=False)


def following(world: World, allowed: frozenset[bytes] | None, make: Callable[..., Trust]) -> Iterator[World]:
    for key in HONEST:
        counter = sum(statement.key == key for statement in world.signed) + 1
        if counter <= MOST_STATEMENTS:
            for subnet in SUBNETS:
                yield replace(world, signed=(*world.signed, Statement(key, subnet, counter)))
    trust = trust_of(world, allowed, make)
    sends = dict(world.sends)
    for offer in offers(world):
        if trust.objection(offer.lease, offer.is_authentic) is None and sends.get(offer.subnet) != offer:
            yield replace(
                world,
                accepted=(*world.accepted, offer),
                sends=tuple(sorted({**sends, offer.subnet: offer}.items())),
            )
    for subnet in sends:
        yield replace(world, sends=tuple((other, offer) for other, offer in world.sends if other != subnet))


def violations(world: World) -> Iterator[str]:
    """Yield what must never be."""
    for subnet, offer in world.sends:
        if offer.statement.key not in HONEST:
            yield f"traffic for {subnet} goes to a key that is not allowed"
        elif not offer.is_authentic or offer.statement not in world.signed:
            yield f"traffic for {subnet} goes to {offer.statement.key!r}, which has not signed for it"
    *before, last = world.accepted or (None,)
    for earlier in before:
        assert earlier is not None
        assert last is not None
        if earlier.statement.key == last.statement.key and earlier.statement.counter > last.statement.counter:
            yield f"an older statement of {last.statement.key!r} is accepted again"
    if last is not None and last in before:
        since = before[before.index(last) + 1 :]
        if any(one.subnet == last.subnet and one.statement.key != last.statement.key for one in since):
            yield f"a statement on {last.subnet} that another host replaced is accepted again"


def explore(
    allowed: frozenset[bytes] | None, make: Callable[..., Trust] = Trust, most: int = 60_000
) -> set[str]:
    """Visit the worlds, nearest first, and return the kinds of violations in the nearest that has any."""
    waiting, seen = deque([World()]), {World()}
    while waiting and len(seen) < most:
        world = waiting.popleft()
        for other in following(world, allowed, make):
            if found := set(violations(other)):
                return found
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return set()


def test_with_an_allow_list_traffic_goes_only_to_the_holder_of_the_key(long_run: bool) -> None:
    assert explore(frozenset(HONEST), most=600_000 if long_run else 20_000) == set()


def test_without_an_allow_list_a_deletion_lets_another_key_in() -> None:
    """Pinning at first sight does not keep strangers out: it keeps the keys of known owners apart."""
    assert explore(None) == {f"traffic for {SUBNETS[0]} goes to a key that is not allowed"}


class AnyKey(Trust):
    def objection(self, lease: Lease, is_authentic: bool) -> SignatureFault | None:
        found = Trust.objection(self, lease, is_authentic)
        return None if found == "not_allowed" else found


class AnySignature(Trust):
    def objection(self, lease: Lease, is_authentic: bool) -> SignatureFault | None:
        return Trust.objection(self, lease, True)


class NoFloors(Trust):
    def accept(self, lease: Lease) -> None:
        Trust.accept(self, lease)
        self.floors.clear()


class NoReplacement(Trust):
    def accept(self, lease: Lease) -> None:
        self.holders.clear()
        Trust.accept(self, lease)


@pytest.mark.parametrize(
    ("defect", "violation"),
    [
        (AnyKey, "a key that is not allowed"),
        (AnySignature, "has not signed for it"),
        (NoFloors, "an older statement"),
        (NoReplacement, "that another host replaced is accepted again"),
    ],
)
def test_a_defect_of_the_rules_is_found(defect: type[Trust], violation: str) -> None:
    assert any(violation in found for found in explore(frozenset(HONEST), defect))
