"""The times from changes of leases to the changes in the kernel of a real host."""

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

from pyflannel.errors import LabError
from pyflannel.kernel.network.netlink_socket import NotificationSocket
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.route import Route
from pyflannel.wire.netlink import routes
from pyflannel.wire.netlink.message import Message
from testlab.standing_leases import LeaseWriter, lease_writer

_IPV4_ROUTES = 0x40
"""RTMGRP_IPV4_ROUTE (linux/rtnetlink.h)."""

_DEADLINE_S = 30.0
_PAUSE_MAX_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTimes:
    """The durations for one host that joins and leaves, in seconds.

    Attributes:
        write_s: time from the write to etcd's response.
        join_s: time from the write to the route in the kernel.
        leave_s: time from the deletion to the removal of the route in the kernel.
    """

    write_s: float
    join_s: float
    leave_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """The results of many joins and leaves. `late_s` is the delay of the writer at the end."""

    written: int
    lasted_s: float
    late_s: float


async def time_events(etcd: str, leases: Sequence[Lease]) -> list[EventTimes]:
    """Write and delete each lease, and measure the time until the kernel of this network has the change.

    The hosts join one after the other, at moments that are independent of other events. All deletions are
    written before the waits, because flanneld delays the removal of routes.

    Raises:
        LabError: the kernel does not have a change in time.
    """
    with closing(NotificationSocket(_IPV4_ROUTES)) as listener:
        async with lease_writer(etcd) as writer:
            joins = [await _time_join(writer, listener, lease) for lease in leases]
            leaves = await _time_leaves(writer, listener, leases)
    return [
        EventTimes(write_s=write_s, join_s=join_s, leave_s=leave_s)
        for (write_s, join_s), leave_s in zip(joins, leaves, strict=True)
    ]


async def churn(etcd: str, leases: Sequence[Lease], *, per_s: int, existing: int) -> Churn:
    """Write `per_s` leases a second and delete as many, the oldest first, after `existing` of them exist.

    The last `existing` leases exist when the function ends.
    """
    began = time.monotonic()
    async with lease_writer(etcd) as writer:
        for number, lease in enumerate(leases):
            await asyncio.sleep(began + number / per_s - time.monotonic())
            await writer.put([lease])
            if number >= existing:
                await writer.remove([leases[number - existing]])
    lasted_s = time.monotonic() - began
    return Churn(written=2 * len(leases) - existing, lasted_s=lasted_s, late_s=lasted_s - len(leases) / per_s)


async def _time_join(writer: LeaseWriter, listener: NotificationSocket, lease: Lease) -> tuple[float, float]:
    await asyncio.sleep(random.uniform(0, _PAUSE_MAX_S))
    listener.drain()
    began = time.monotonic()
    seen = asyncio.ensure_future(_times_of(listener, routes.NEW, [lease.subnet]))
    await writer.put([lease])
    write_s = time.monotonic() - began
    return write_s, (await seen)[lease.subnet] - began


async def _time_leaves(
    writer: LeaseWriter, listener: NotificationSocket, leases: Sequence[Lease]
) -> list[float]:
    began: list[float] = []
    gone = asyncio.ensure_future(_times_of(listener, routes.DELETE, [lease.subnet for lease in leases]))
    for lease in leases:
        await asyncio.sleep(random.uniform(0, _PAUSE_MAX_S))
        began.append(time.monotonic())
        await writer.remove([lease])
    at = await gone
    return [at[lease.subnet] - since for lease, since in zip(leases, began, strict=True)]


async def _times_of(
    listener: NotificationSocket, kind: int, subnets: Iterable[IpNetwork]
) -> dict[IpNetwork, float]:
    """Return the times at which the kernel announced the routes to the subnets, as added or as deleted."""
    waited_for = {Route(destination=subnet, link="").key: subnet for subnet in subnets}
    at: dict[IpNetwork, float] = {}

    def concerns(message: Message) -> bool:
        glance = routes.glance_at_route(message.body) if message.kind == kind else None
        if glance is not None and (subnet := waited_for.pop(glance.key, None)) is not None:
            at[subnet] = time.monotonic()
        return not waited_for

    try:
        async with asyncio.timeout(_DEADLINE_S):
            await listener.wait(concerns)
    except TimeoutError as error:
        missing = ", ".join(map(str, waited_for.values()))
        raise LabError(
            f"no change of the routes to {missing} within {_DEADLINE_S:g} s", hint="Read flanneld's log."
        ) from error
    if waited_for:
        raise LabError("the socket lost notifications of the kernel", hint="Measure fewer events at once.")
    return at
