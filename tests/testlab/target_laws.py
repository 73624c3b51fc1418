"""Laws of a host that a plan is applied to, whether it is one in memory or the real kernel.

Whatever other programs did to it, one pass makes it what the plan says, and no more. Each law takes a world
of its own, which has what no plan can be without, and nothing of ours.
"""

from collections.abc import Sequence
from typing import Protocol

from pyflannel.model.host import HostFile
from pyflannel.model.item import Item
from pyflannel.model.link import MARK, Address, Link
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.route import PROTOCOL_FLANNEL, FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.plan.diff import diff, order
from pyflannel.plan.ownership import ours
from pyflannel.ports import Target

DEVICE = "flannel0"
"""The name that the daemon claims."""


class World(Protocol):
    """A host with other programs on it."""

    @property
    def target(self) -> Target:
        """What passes are made on."""

    async def damage(self, operations: Sequence[Operation]) -> None:
        """Let another program do these, as `adapted` says, and as far as it can."""

    async def found(self, desired: State) -> State:
        """Return what there is where the plan, or anything named in it, is or was."""


def adapted(operation: Operation, state: State) -> Operation | None:
    """Return what a program does that wants the same of a host in another state; None if nothing is to do."""
    there = state.by_key.get(operation.subject.key)
    match operation:
        case Remove(_):
            return None if there is None else Remove(there)
        case Add(item) | Replace(_, item):
            return Add(item) if there is None else Replace(there, item)


async def one_pass(world: World, desired: State) -> Sequence[Refusal]:
    """Make one pass, as the reconciler does; return what was refused."""
    operations = order(diff(desired, ours(await world.target.snapshot(desired), desired)))
    return await world.target.apply(operations) if operations else ()


async def check_one_pass_heals(world: World, desired: State, damage: Sequence[Operation]) -> None:
    """Whatever happened, one pass restores the plan, and nothing in it is refused."""
    assert not await one_pass(world, desired)
    await world.damage(damage)

    refused = await one_pass(world, desired)

    assert not refused
    await _check_is(world, desired)


async def check_foreign_objects_are_untouched(
    world: World, desired: State, damage: Sequence[Operation]
) -> None:
    """What is not ours is the same after a pass as before it."""
    await world.damage(damage)
    before = await world.found(desired)

    await one_pass(world, desired)

    after = await world.found(desired)
    assert [item for item in foreign(before, desired) if item not in after] == []


async def check_a_plan_leaves_no_trace(world: World, desired: State) -> None:
    """The empty plan removes all that a plan made, but for the file, which nobody owns without a plan."""
    before = await world.found(desired)
    await one_pass(world, desired)

    refused = await one_pass(world, State.EMPTY)

    assert not refused
    after = await world.found(desired)
    assert {item for item in after if not isinstance(item, HostFile)} == {*before}


async def check_a_cut_pass_is_finished(
    world: World, desired: State, damage: Sequence[Operation], cut: float
) -> None:
    """A batch that ended after a part of its operations leaves nothing that the next does not mend."""
    await world.damage(damage)
    operations = order(diff(desired, ours(await world.target.snapshot(desired), desired)))
    await world.target.apply(operations[: round(cut * len(operations))])

    refused = await one_pass(world, desired)

    assert not refused
    await _check_is(world, desired)


def foreign(state: State, desired: State) -> list[Item]:
    """Return what is not ours of what was found, by the rules of ownership in words of their own."""
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
    """Check that ours is what the plan says, and that another pass would do nothing."""
    left = ours(await world.found(desired), desired)
    assert list(diff(desired, left)) == []
    assert left == desired
    assert list(diff(desired, ours(await world.target.snapshot(desired), desired))) == []
