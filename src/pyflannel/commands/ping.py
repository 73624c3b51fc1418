"""ping and bench: the path to one host or container."""

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path

from pyflannel.assembly.directories import Places
from pyflannel.commands.examination import examined
from pyflannel.commands.membership import known_host
from pyflannel.commands.reach import bench_path, probe_path, targets_of
from pyflannel.errors import FlannelError
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import Family, IpNetwork
from pyflannel.model.probe import BenchReport, PingReport
from pyflannel.model.status import Finding, Status
from pyflannel.plan.doctor.findings import merged
from pyflannel.plan.doctor.ping import joined, judged

_EXAMINED_S = 2.0
"""Deadline in seconds for the examination of the host, so that a command takes at most 5 s."""


async def ping_path(places: Places, socket: Path | None, name: str) -> PingReport:
    """Probe the path to a host in each family, or to a container, and find the place where packets stop.

    `socket`: control socket, if the user specified it.

    Raises:
        FlannelError: no lease belongs to this name, or no probe can be sent.
        NotReadyError: flanneld does not respond, and no leases are saved on this host.
    """
    places, status, leases = await known_host(places, socket)
    targets = targets_of(status, leases, name)
    local, paths = await asyncio.gather(
        _findings_in_time(places, status, leases, {one.family: one.peer.subnet for one in targets}),
        asyncio.gather(*(probe_path(one.status, one.peer, one.container) for one in targets)),
    )
    return joined(
        {
            one.family: judged(
                one.peer,
                steps,
                is_container=one.container is not None,
                status=one.status,
                local=local.get(one.family, ()),
            )
            for one, steps in zip(targets, paths, strict=True)
        }
    )


async def bench_host(places: Places, socket: Path | None, name: str) -> BenchReport:
    """Measure the paths to a host in the first family of the network, or to a container. The arguments and
    errors are the same as those of `ping_path`.
    """
    _, status, leases = await known_host(places, socket)
    first = targets_of(status, leases, name)[0]
    return await bench_path(first.status, first.peer, first.container)


async def _findings_in_time(
    places: Places, status: Status, leases: list[LeaseEntry], peer: Mapping[Family, IpNetwork]
) -> Mapping[Family, tuple[Finding, ...]]:
    """Return the findings about this host itself by family, with the packets of a peer first; empty if the
    examination does not end in time.

    `peer`: the subnet of the peer in each family.
    """

    async def first(family: Family) -> Collection[IpNetwork]:
        return {peer[family]} if family in peer else ()

    with contextlib.suppress(TimeoutError, FlannelError):
        async with asyncio.timeout(_EXAMINED_S):
            found = await examined(places, status, leases, first)
            common = found.get(None, ())
            return {family: merged((*common, *found.get(family, ()))) for family in peer}
    return {}
