"""A planner whose inputs a test changes one by one. The planner logs as the daemon does."""

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from pyflannel.engine.condition import Inputs
from pyflannel.engine.plan_log import PlanLog
from pyflannel.engine.planner import Planner
from pyflannel.engine.world import PlanOptions
from pyflannel.model.lease import Lease
from pyflannel.model.lease_set import SubnetMap
from pyflannel.model.state import Add, Operation, PlanResult, Replace, State
from pyflannel.plan.diff import diff, losses, order

SUBNET_FILE = "/run/flannel/subnet.env"


class Planning(Planner):
    """A planner and its inputs."""

    def __init__(self, inputs: Inputs, options: PlanOptions | None = None) -> None:
        super().__init__(options or PlanOptions(subnet_file=SUBNET_FILE))
        self.inputs = inputs
        self._plan_log = PlanLog(FakeClock())

    def take(self, **changes: Any) -> PlanResult:
        """Change some inputs and update the plan."""
        self.inputs = replace(self.inputs, **changes)
        result = self.update(self.inputs)
        self._plan_log.log_update(self, result, self.inputs.backend)
        return result


def by_subnet(leases: Iterable[Lease]) -> SubnetMap[Lease]:
    """Return leases as an input of the planner."""
    return SubnetMap((lease.subnet, lease) for lease in leases)


def plan_of(inputs: Inputs, options: PlanOptions | None = None) -> State:
    """Return the plan for these inputs, computed from the beginning."""
    planner = Planner(options or PlanOptions(subnet_file=SUBNET_FILE))
    planner.update(inputs)
    plan = planner.plan
    assert plan is not None
    return plan


def pass_operations(desired: State, actual: State) -> list[Operation]:
    """Return the operations that the reconciler applies after one scan, in order; `actual` contains only
    objects that pyflannel owns.
    """
    return with_losses(list(diff(desired, actual)), desired)


def with_losses(operations: Sequence[Operation], desired: State) -> list[Operation]:
    """Return the operations, and the operations that restore the objects that the kernel drops because of
    them, in order.
    """
    restored = [
        Add(item) if left is None else Replace(left, item) for item, left in losses(operations, desired)
    ]
    return order([*operations, *restored], desired)
