"""The adapter of the tunnel guard while the plan changes."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from pyflannel.kernel.filters.tunnel_guard import TunnelGuardTarget
from pyflannel.model.item import Item, ItemMap
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardTable
from pyflannel.wire.netlink.message import Request

_Value = TypeVar("_Value")


class Target(TunnelGuardTarget):
    """A target without a kernel. The plan gets a table while it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: ItemMap[Item] = ItemMap()

    async def _dump(self, request: Request, read: Callable[[bytes], _Value]) -> list[_Value]:
        await asyncio.sleep(0)
        self.plan.put(GuardTable(device=f"flannel{len(self.plan)}"))
        return []


def test_the_plan_may_change_while_strangers_are_read() -> None:
    async def check() -> None:
        async with Target() as target:
            target.plan.add([GuardTable(device="flannel0"), GuardTable(device="flannel0", family=6)])
            await target.snapshot(State(target.plan))

            assert await target.strangers("flannel0") == []

    asyncio.run(check())
