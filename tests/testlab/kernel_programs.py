"""The fast path in the kernel of a host, seen past the daemon; damage to it, and how long that lasts.

All of it works in the network namespace of the calling thread: `run_inside`.
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
from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram, Direction, Role

_DEADLINE_S = 60.0
_POLL_S = 0.001
_PAUSE_S = (1.0, 2.0)
"""Between two damages: oftener, the daemon would take it for a fight, and wait."""

_ANY = BpfPeer(device="flannel0", subnet=IPv4Network("0.0.0.0/32"), address=IPv4Address(0), port=1)
"""A plan with a peer of the device: whoever has one reads the tables too."""

Items = list[BpfProgram | BpfPeer | BpfContainer]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPrograms:
    """Programs and entries of the tunnel of flannel0, as words that sort; identifiers are of any programs."""

    programs: list[str]
    peers: list[str]
    containers: list[str]
    identifiers: list[tuple[int, ...]]


async def look() -> KernelPrograms:
    """Return what there is now."""
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
    """Return how many packets each outcome had, where any had it."""
    with _fast_path() as path:
        await path.read([_ANY])
        return {
            outcome.value: packets for outcome, (packets, _) in path.counts(_ANY.device).items() if packets
        }


async def take_program(role: Role) -> None:
    """Take the programs of a role away."""
    with _fast_path() as path:
        for item in await path.read([_ANY]):
            if isinstance(item, BpfProgram) and item.role is role:
                await path.detach(item)


async def take_peers() -> None:
    """Empty the table of peers."""
    with _fast_path() as path:
        subnets = [item.subnet for item in await path.read([_ANY]) if isinstance(item, BpfPeer)]
        await path.remove_peers(_ANY.device, subnets)


async def time_program(role: Role) -> float:
    """Take a program away at a moment that has nothing to do with what goes on; return when it is back, in s.

    Raises:
        LabError: it does not come back.
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
    """Take an entry out of the table of peers; return when it is back, in seconds.

    Raises:
        LabError: it does not come back.
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
        raise LabError(f"{what} does not come back", hint="Look at the log of flanneld.")
    await asyncio.sleep(_POLL_S)


@contextmanager
def _fast_path() -> Iterator[FastPath]:
    path = FastPath()
    try:
        yield path
    finally:
        path.close()
