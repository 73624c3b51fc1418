"""The fast path in the kernel of a host, read without the daemon, and the time until damage is repaired.

All functions use the network namespace of the calling thread. See `run_inside`.
"""

import asyncio
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from pyflannel.errors import LabError
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.layout import Outcome
from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram, Direction, Role

_DEADLINE_S = 60.0
_POLL_S = 0.001
_PAUSE_S = (1.0, 2.0)
"""Time in seconds between two damages. flanneld would delay the repair of more frequent damage."""

_ANY = BpfPeer(device="flannel0", subnet=IPv4Network("0.0.0.0/32"), address=IPv4Address(0), port=1)
"""A plan with one peer of the device. flanneld's code reads the tables only if the plan has a peer."""

Items = list[BpfProgram | BpfPeer | BpfContainer]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPrograms:
    """Programs and entries of the tunnel of flannel0 as sortable words, and identifiers of all programs."""

    programs: list[str]
    peers: list[str]
    containers: list[str]
    identifiers: list[tuple[int, ...]]


async def look() -> KernelPrograms:
    """Return the current state."""
    with _fast_path() as path:
        found = await path.read([_ANY])
        identifiers = [
            await path.hooks.programs(link, direction)
            for link, _ in socket.if_nameindex()
            for direction in Direction
        ]
    return KernelPrograms(
        programs=sorted(f"{one.role.value} at {one.link}" for one in found if isinstance(one, BpfProgram)),
        peers=sorted(f"{one.subnet} {one.is_direct}" for one in found if isinstance(one, BpfPeer)),
        containers=sorted(str(one.address) for one in found if isinstance(one, BpfContainer)),
        identifiers=[each for each in identifiers if each],
    )


async def packets_by_outcome() -> dict[str, int]:
    """Return the number of packets for each outcome, 0 for an outcome that never occurred."""
    with _fast_path() as path:
        await path.read([_ANY])
        counts = path.counts(_ANY.device)
        return {outcome.value: counts.get(outcome, (0, 0))[0] for outcome in Outcome}


async def remove_program(role: Role) -> None:
    """Remove the programs of a role."""
    with _fast_path() as path:
        for item in await path.read([_ANY]):
            if isinstance(item, BpfProgram) and item.role is role:
                await path.detach(item)


async def remove_peers() -> None:
    """Empty the table of peers."""
    with _fast_path() as path:
        subnets = [item.subnet for item in await path.read([_ANY]) if isinstance(item, BpfPeer)]
        await path.remove_peers(_ANY.device, subnets)


async def time_program(role: Role) -> float:
    """Remove a program at a random moment. Return the seconds until the program is restored.

    Raises:
        LabError: the program is not restored.
    """
    await asyncio.sleep(random.uniform(*_PAUSE_S))
    with _fast_path() as path:
        (item,) = [one for one in await path.read([_ANY]) if isinstance(one, BpfProgram) and one.role is role]
        link = socket.if_nametoindex(item.link)
        before = await path.hooks.programs(link, role.direction)
        await path.detach(item)
        since = time.monotonic()
        while len(await path.hooks.programs(link, role.direction)) < len(before):
            await _poll(since, f"{role.value} at {item.link}")
        return time.monotonic() - since


async def time_entry() -> float:
    """Remove an entry from the table of peers. Return the seconds until the entry is restored.

    Raises:
        LabError: the entry is not restored.
    """
    await asyncio.sleep(random.uniform(*_PAUSE_S))
    with _fast_path() as path:
        peer = next(item for item in await path.read([_ANY]) if isinstance(item, BpfPeer))
        await path.remove_peers(_ANY.device, [peer.subnet])
        since = time.monotonic()
        while peer not in await path.read([peer]):
            await _poll(since, f"the entry of {peer.subnet}")
        return time.monotonic() - since


async def _poll(since: float, what: str) -> None:
    if time.monotonic() - since > _DEADLINE_S:
        raise LabError(f"flanneld does not restore {what}", hint="Read the log of flanneld.")
    await asyncio.sleep(_POLL_S)


@contextmanager
def _fast_path() -> Iterator[FastPath]:
    path = FastPath()
    try:
        yield path
    finally:
        path.close()
