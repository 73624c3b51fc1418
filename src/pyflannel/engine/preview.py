"""The changes that the next pass would make, now or with another network config. Nothing is changed."""

import asyncio
from collections.abc import Sequence
from functools import reduce
from operator import or_

from pyflannel.engine.condition import Inputs
from pyflannel.engine.planner import Planner
from pyflannel.engine.world import PlanOptions
from pyflannel.model.item import Item
from pyflannel.model.link import Link
from pyflannel.model.state import Add, Blocked, Operation, Remove, Replace, Replaced, State
from pyflannel.model.status import PlannedChange, PlanPreview
from pyflannel.plan.diff import diff, found, order
from pyflannel.plan.doctor.observed import shown
from pyflannel.plan.ownership import ours, taken_links, without_links
from pyflannel.ports import Target


async def preview(inputs: Inputs, options: PlanOptions, targets: Sequence[Target]) -> PlanPreview:
    """Return the differences between the host, whose state is read now, and the plan for these inputs.

    Args:
        inputs: inputs of the plan.
        options: options of the plan.
        targets: targets that read the host. These targets differ from the targets of the reconciler, which
            keep data of the plan in force.

    Raises:
        TargetError: the state of a target cannot be read.
    """
    match Planner(options).update(inputs):
        case Replaced(plan):
            pass
        case Blocked(reason):
            return PlanPreview(waits_for=reason or "its lease, its interface or a network config")
        case _:
            return PlanPreview()
    states = await asyncio.gather(*(target.snapshot(plan) for target in targets))
    actual = reduce(or_, states, State.EMPTY)
    desired = without_links(plan, taken_links(actual, plan, options.mark).keys())
    operations = order(diff(desired, ours(actual, desired, options.mark, options.device)), desired)
    return PlanPreview(changes=tuple(map(_change, operations)))


def _change(operation: Operation) -> PlannedChange:
    match operation:
        case Add(item):
            return PlannedChange(action="add", kind=item.KIND, text=_object(item))
        case Remove(item):
            return PlannedChange(action="remove", kind=item.KIND, text=_object(item))
        case Replace(_, item):
            return PlannedChange(action="change", kind=item.KIND, text=found(operation))


def _object(item: Item) -> str:
    return f"{shown(item)}, {item.kind}" if isinstance(item, Link) and item.kind else shown(item)
