"""Laws of a host to which a plan is applied. The laws hold for a kernel in memory and for a real kernel.

Each law uses a new host, on which other programs may have changed any object.
"""

from collections.abc import Sequence
from typing import Protocol

from doubles.planning import pass_operations
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item
from pyflannel.model.link import MARK, Address, Link
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.route import PROTOCOL_FLANNEL, FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.plan.diff import diff
from pyflannel.plan.ownership import ours

DEVICE = "flannel0"
"""The name that the daemon claims."""


class World(Protocol):
    """A host with other programs on it."""

    async def snapshot(self, desired: State) -> State:
        """Return the state of the host."""

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations of pyflannel. Return the refused operations."""

    async def damage(self, operations: Sequence[Operation]) -> None:
        """Perform operations of another program, each changed by `adapted`."""

    async def found(self, desired: State) -> State:
        """Return all objects of the host at the keys of the plan and of earlier operations."""


def adapted(operation: Operation, state: State) -> Operation | None:
    """Return the operation that has the same result in another state; None if the state has this result
    already.
    """
    there = state.by_key.get(operation.subject.key)
    match operation:
        case Remove(_):
            return None if there is None else Remove(there)
        case Add(item) | Replace(_, item):
            return Add(item) if there is None else Replace(there, item)


async def operations_of_pass(world: World, desired: State) -> list[Operation]:
    """Return the operations of one pass, as the reconciler computes them."""
    return pass_operations(desired, ours(await world.snapshot(desired), desired))


async def one_pass(world: World, desired: State) -> Sequence[Refusal]:
    """Make one pass. Return the refusals."""
    operations = await operations_of_pass(world, desired)
    return await world.apply(operations) if operations else ()


async def check_one_pass_repairs(world: World, desired: State, damage: Sequence[Operation]) -> None:
    """Check that one pass restores the plan after any damage, and that no operation is refused."""
    assert not await one_pass(world, desired)
    await world.damage(damage)

    refused = await one_pass(world, desired)

    assert not refused
    await _check_is(world, desired)


async def check_foreign_objects_are_untouched(
    world: World, desired: State, damage: Sequence[Operation]
) -> None:
    """Check that a pass does not change foreign objects."""
    await world.damage(damage)
    before = await world.found(desired)

    await one_pass(world, desired)

    after = await world.found(desired)
    assert [item for item in _foreign(before, desired) if item not in after] == []


async def check_the_empty_plan_leaves_no_trace(world: World, desired: State) -> None:
    """Check that the empty plan removes all objects of a plan except its file, which has no mark."""
    before = await world.found(desired)
    await one_pass(world, desired)

    refused = await one_pass(world, State.EMPTY)

    assert not refused
    after = await world.found(desired)
    assert {item for item in after if not isinstance(item, HostFile)} == {*before}


async def check_a_cut_pass_is_finished(
    world: World, desired: State, damage: Sequence[Operation], cut: float
) -> None:
    """Check that the next pass restores the plan if a batch ends after a part of its operations."""
    await world.damage(damage)
    operations = await operations_of_pass(world, desired)
    await world.apply(operations[: round(cut * len(operations))])

    refused = await one_pass(world, desired)

    assert not refused
    await _check_is(world, desired)


def _foreign(state: State, desired: State) -> list[Item]:
    """Return the foreign objects. This is a second implementation of the rules of ownership."""
    marked = {link.name for link in state.of_type(Link) if link.alias == MARK}
    links = {*marked, *(link.name for link in desired.of_type(Link))}

    def is_foreign(item: Item) -> bool:
        match item:
            case Link():
                return item.name not in links
            case Address() | Neighbour() | FdbEntry():
                return item.link not in links
            case Route():
                return item.link not in links and item.protocol != PROTOCOL_FLANNEL
            case IptablesChain() | NftTable():
                return item.device not in {*links, DEVICE}
            case HostFile():
                return True
            case _:
                return False

    return [item for item in state if item.key not in desired.by_key and is_foreign(item)]


async def _check_is(world: World, desired: State) -> None:
    """Check that owned objects are as planned, and that another pass would do nothing."""
    left = ours(await world.found(desired), desired)
    assert list(diff(desired, left)) == []
    assert left == desired
    assert await operations_of_pass(world, desired) == []
