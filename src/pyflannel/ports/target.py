"""What a plan is applied to: the kernel of one network namespace, the host's files, a process of ours."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from pyflannel.model.operation import Operation, Refusal
from pyflannel.model.state import State


class Target(Protocol):
    """Something that can be read, changed, and that says when it may have changed.

    A snapshot is made afresh from what is there, never from memory. It may hold foreign objects too:
    what is ours among them is decided by `plan.ownership`, from the plan that `desired` holds.
    """

    async def snapshot(self, desired: State) -> State:
        """Return what is there now, normalised so that it compares equal to plans.

        `desired` tells the adapter where to look; objects that it does not name may be left out unless
        they carry our mark or hang on a device of ours. It is the plan until the next snapshot, and the
        adapter may keep it: items are exchanged in it before `apply` hears of them.

        Raises:
            TargetError: it could not be read.
        """

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations in order and return the refused; one refusal does not stop the rest."""

    def changes(self) -> AsyncIterator[None]:
        """Yield after each burst of changes, whoever made them; a burst is announced at least once."""
