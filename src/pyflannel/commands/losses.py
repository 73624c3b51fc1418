"""Counts the lost packets on the paths to peers, and separately the lost packets of the largest size."""

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.commands.reach import count_losses, decisive_echoes, sample_of
from pyflannel.errors import TargetError
from pyflannel.kernel.network.echo import count_replies
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.probe import Echo, Loss, PeerReach
from pyflannel.model.status import Finding, Status
from pyflannel.plan.doctor.losses import (
    is_reported,
    large_loss_findings,
    large_losses,
    loss_findings,
    wanted_size,
)

_INTERVAL_S = 0.03
"""Seconds between two probes of a peer. The examination of the host takes longer than ten probes."""

_LARGE_ROUNDS, _LARGE_AGAIN, _LARGE_PEERS = 10, 20, 16
"""Number of large probes to a peer, the number of further probes after a loss, and the maximum number of
peers."""


class Losses(Struct, frozen=True):
    """The findings about lost packets.

    Attributes:
        passing: the subnets of peers at which a part of the large packets arrives.
        lossy: the subnets of peers that a finding names.
    """

    findings: tuple[Finding, ...] = ()
    passing: frozenset[IpNetwork] = frozenset()
    lossy: frozenset[IpNetwork] = frozenset()

    def of_status(self, status: Status) -> Status:
        """Return the status without the MTUs that flanneld measured on paths which lose packets and have the
        planned MTU. A lost probe looks like a packet that is too large.
        """
        wrong = self.passing & self.lossy
        paths = (one for one in status.path_mtus if (one.ipv6_subnet or one.subnet) not in wrong)
        return replace(status, path_mtus=tuple(paths))

    def corrected(self, reach: PeerReach, status: Status) -> PeerReach:
        """Return the results for a peer. If large packets arrive sometimes, the path has the planned MTU."""
        size = wanted_size(status, reach.subnet)
        if reach.subnet not in self.passing or reach.path_mtu is None or size is None:
            return reach
        return replace(reach, path_mtu=max(size, reach.path_mtu))


async def losses_to(
    status: Status, leases: list[LeaseEntry], reach: Awaitable[Sequence[PeerReach]]
) -> Losses:
    """Return the losses on the paths to peers. The peers with a loss are probed twice, because a busy host
    may answer late.

    `reach`: the results of the probes, which show the peers at which no large packet arrived.
    """
    if not status.is_ready:
        return Losses()
    peers = sample_of(status, leases)
    with contextlib.suppress(TargetError):
        small, large = await asyncio.gather(_small_losses(status, peers), _large_losses(status, peers, reach))
        lossy = large_losses(small, large)
        reported = {one for some in (small, lossy) for one, loss in some.items() if is_reported(loss)}
        found = (*loss_findings(small, len(peers)), *large_loss_findings(lossy, status, len(peers)))
        return Losses(
            findings=found,
            passing=frozenset(one.subnet for one, loss in large.items() if loss.lost < loss.sent),
            lossy=frozenset(one.subnet for one in reported),
        )
    return Losses()


async def _small_losses(status: Status, peers: Sequence[LeaseEntry]) -> Mapping[LeaseEntry, Loss]:
    first = await count_losses(status, peers, interval_s=_INTERVAL_S)
    lossy = [one for one in peers if (loss := first.get(one.subnet)) and 0 < loss.lost < loss.sent]
    second = await count_losses(status, lossy) if lossy else {}
    return {
        one: Loss(first[one.subnet].sent + loss.sent, first[one.subnet].lost + loss.lost)
        for one in lossy
        if (loss := second.get(one.subnet)) is not None
    }


async def _large_losses(
    status: Status, peers: Sequence[LeaseEntry], reach: Awaitable[Sequence[PeerReach]]
) -> Mapping[LeaseEntry, Loss]:
    """Return the losses of packets of the planned size, for the peers with such a loss."""
    echoes = _large_echoes(status, peers)
    some = dict(islice(echoes.items(), _LARGE_PEERS))
    first = await _counted(some, _LARGE_ROUNDS)
    narrow = {
        one.subnet
        for one in await reach
        if one.is_reached
        and one.path_mtu is not None
        and one.path_mtu < (wanted_size(status, one.subnet) or 0)
    }
    narrow |= {one.ipv6_subnet or one.subnet for one in status.path_mtus if not one.is_routed}
    again = {
        one: echo
        for one, echo in echoes.items()
        if one.subnet in narrow or (one in first and 0 < first[one].lost < first[one].sent)
    }
    second = await _counted(dict(islice(again.items(), _LARGE_PEERS)), _LARGE_AGAIN)
    return {one: _sum(first.get(one, Loss(0, 0)), loss) for one, loss in second.items()}


def _sum(one: Loss, other: Loss) -> Loss:
    return Loss(one.sent + other.sent, one.lost + other.lost)


def _large_echoes(status: Status, peers: Sequence[LeaseEntry]) -> dict[LeaseEntry, Echo]:
    """Return the echo request of the planned size for each peer."""
    echoes, found = decisive_echoes(status, peers), {}
    for one in peers:
        echo, size = echoes.get(one.subnet), wanted_size(status, one.subnet)
        if echo is not None and size is not None and size > echo.size:
            found[one] = Echo(destination=echo.destination, source=echo.source, size=size)
    return found


async def _counted(echoes: Mapping[LeaseEntry, Echo], rounds: int) -> dict[LeaseEntry, Loss]:
    if not echoes:
        return {}
    received = await count_replies(list(echoes.values()), rounds, interval_s=_INTERVAL_S)
    return {one: Loss(rounds, rounds - count) for one, count in zip(echoes, received, strict=True)}
