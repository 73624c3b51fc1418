"""Several targets as one: each item goes to the target that can hold it."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from itertools import groupby
from operator import or_

from pyflannel.model.item import Item
from pyflannel.model.state import Operation, Refusal, Remove, Replace, State
from pyflannel.ports import Announce, ChangeChannel, Target


class Targets:
    """A Target made of others, by the type of item that each holds."""

    def __init__(self, by_type: Mapping[type, Target]) -> None:
        self._by_type = by_type
        self._targets = list(dict.fromkeys(by_type.values()))

    async def snapshot(self, desired: State) -> State:
        """Return the union of all snapshots."""
        snapshots = await asyncio.gather(*(target.snapshot(desired) for target in self._targets))
        return reduce(or_, snapshots)

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Apply runs of operations for one target together; their order stays."""
        refusals: list[Refusal] = []
        for target, run in groupby(operations, key=lambda operation: self._by_type[type(_item(operation))]):
            refusals.extend(await target.apply(list(run)))
        return refusals

    def changes(self) -> ChangeChannel:
        """Open a channel of the changes of all targets."""
        return ChangeChannel(*(partial(_read_changes, target) for target in self._targets))


async def _read_changes(target: Target, announce: Announce) -> None:
    async with target.changes() as changes:
        while True:
            await changes.next()
            announce()


def _item(operation: Operation) -> Item:
    match operation:
        case Remove(item):
            return item
        case Replace(_, new):
            return new
        case _:
            return operation.item
