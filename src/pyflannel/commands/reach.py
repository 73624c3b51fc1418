"""Probes the peers of this host, to find which peers are reachable, and where the packets to one peer
stop.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from statistics import median
from typing import Literal, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from pyflannel.errors import FlannelError, TargetError
from pyflannel.kernel.host.packet_path import ask_route
from pyflannel.kernel.network.echo import DEADLINE_S, ROUND_S, count_replies, send_echoes
from pyflannel.kernel.network.interfaces import KernelInterfaces
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.lease import FamilyReach, LeaseEntry
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.probe import (
    BenchLine,
    BenchReport,
    Echo,
    EchoResult,
    Loss,
    PeerReach,
    PingStep,
    StepName,
    milliseconds,
)
from pyflannel.model.status import ReachStatus, Status
from pyflannel.plan.doctor.families import families_of, leases_in, status_in
from pyflannel.plan.peers import place_of_subnet
from pyflannel.wire.netlink.links import dump_links, parse_link
from pyflannel.wire.netlink.neighbours import NeighbourRecord, dump_neighbours, parse_neighbour

PROBED = 256
"""Maximum number of peers that one command probes. A larger random sample would not show more."""

SAMPLED, SAMPLE_DEADLINE_S = 32, 1.0
"""Maximum number of peers that `status` probes, and the seconds after which a peer counts as silent."""

_SKIPPED = EchoResult(state="skipped")
_TUNNELS = frozenset({"vxlan", "udp", "", "wireguard"})
"""The backends with a device that has the first address of the host's subnet."""

_MTUS = (1500, 1480, 1450, 1420, 1400, 1380, 1280, 576)
"""Sizes in bytes of the probe packets that are smaller than the MTU of the network."""


async def probe_peers(
    status: Status, leases: Sequence[LeaseEntry], *, most: int = PROBED, deadline_s: float = DEADLINE_S
) -> dict[IpNetwork, PeerReach]:
    """Return the results for the peers to which this host sends, or for a random sample of them if there are
    many.

    Raises:
        TargetError: this process has no permission to send ICMP echo requests.
    """
    peers = list(peers_of(status, leases))
    if len(peers) > most:
        peers = random.sample(peers, most)
    mtu = status.backend.mtu if status.backend is not None else None
    measured = _measured(status)
    echoes: list[Echo] = []
    for peer in peers:
        underlay, tunnel = ends_of(peer)
        echoes += [] if underlay is None else [Echo(destination=underlay, source=_own_address(status))]
        sizes = (mtu or 0, measured.get(peer.subnet, 0))
        echoes += [] if tunnel is None else _sized(Echo(destination=tunnel), mtu, sizes)
    results = dict(zip(echoes, await send_echoes(echoes, deadline_s=deadline_s), strict=True))
    return {peer.subnet: _reach_of(peer, status, mtu, results) for peer in peers}


def sample_of(status: Status, leases: Sequence[LeaseEntry]) -> list[LeaseEntry]:
    """Return the leases of the peers that one command probes: all peers, or a random sample of many peers."""
    peers = list(peers_of(status, leases))
    return random.sample(peers, PROBED) if len(peers) > PROBED else peers


_LOSS_ROUNDS, _LOSS_PACKETS = 10, 640
"""Maximum number of requests to one peer, and to all peers together, by which losses are counted."""


async def count_losses(
    status: Status, leases: Sequence[LeaseEntry], *, interval_s: float = ROUND_S
) -> dict[IpNetwork, Loss]:
    """Return the losses on the paths to these peers. Each peer gets up to 10 small requests, one each
    `interval_s`; with more than 64 peers, each gets fewer.

    Raises:
        TargetError: this process has no permission to send ICMP echo requests.
    """
    echoes = decisive_echoes(status, leases)
    if not echoes:
        return {}
    rounds = min(_LOSS_ROUNDS, max(1, _LOSS_PACKETS // len(echoes)))
    received = await count_replies(list(echoes.values()), rounds, interval_s=interval_s)
    return {subnet: Loss(rounds, rounds - count) for subnet, count in zip(echoes, received, strict=True)}


async def probe_families(
    status: Status, leases: Sequence[LeaseEntry]
) -> dict[Family, dict[IpNetwork, FamilyReach]]:
    """Return the results for the peers in each family that this host carries, by their subnets in the family.
    The first family of the network is first.

    Raises:
        TargetError: this process has no permission to send ICMP echo requests.
    """

    async def results(family: Family) -> dict[IpNetwork, FamilyReach]:
        view, parts = status_in(status, family, leases), leases_in(leases, family)
        found, losses = await asyncio.gather(probe_peers(view, parts), count_losses(view, parts))
        return {subnet: family_reach(reach, losses.get(subnet)) for subnet, reach in found.items()}

    families = families_of(status)
    return dict(zip(families, await asyncio.gather(*map(results, families)), strict=True))


def family_reach(reach: PeerReach, loss: Loss | None) -> FamilyReach:
    """Return the results for a peer in one family."""
    return FamilyReach(
        # On a path with losses, the single probes may have replies although the other probes have none.
        is_reached=reach.is_reached or (loss is not None and loss.lost < loss.sent),
        rtt_ms=milliseconds(reach.decisive),
        path_mtu=reach.path_mtu,
        probes_sent=None if loss is None else loss.sent,
        probes_lost=None if loss is None else loss.lost,
    )


async def neighbours_of_host() -> list[tuple[str, NeighbourRecord]]:
    """Return the neighbours that the kernel knows, with the names of their links.

    Raises:
        TargetError: the kernel refused or did not answer.
    """
    with contextlib.closing(RequestSocket()) as requests:
        names = {one.index: one.name for one in await requests.dump(dump_links(), parse_link)}
        found = await requests.dump(dump_neighbours(0), parse_neighbour)
    return [(names.get(one.index, ""), one) for one in found]


async def with_reach(status: Status, leases: Sequence[LeaseEntry]) -> Status:
    """Return the status with the answers of a sample of the peers; unchanged if probes are not possible. A
    peer counts as silent if it gives no answer in one of the families that this host and the peer have.
    """
    if not status.is_ready or not status.peers:
        return status
    peers = list(peers_of(status, leases))
    peers = random.sample(peers, SAMPLED) if len(peers) > SAMPLED else peers

    async def reached(family: Family) -> dict[IpNetwork, bool]:
        view, parts = status_in(status, family, leases), leases_in(peers, family)
        found = await probe_peers(view, parts, deadline_s=SAMPLE_DEADLINE_S)
        return {subnet: one.is_reached for subnet, one in found.items()}

    try:
        results = await asyncio.gather(*map(reached, families_of(status)))
    except TargetError:
        return status
    answers = {
        peer.subnet: all(one.get(subnet, True) for one in results for subnet in _subnets(peer))
        for peer in peers
    }
    silent = sorted((subnet for subnet, is_reached in answers.items() if not is_reached), key=place_of_subnet)
    return (
        replace(status, reach=ReachStatus(probed=len(answers), silent=tuple(silent))) if answers else status
    )


def _subnets(lease: LeaseEntry) -> set[IpNetwork]:
    """Return the subnets of a lease, in each of its families."""
    return {lease.subnet} if lease.ipv6_subnet is None else {lease.subnet, lease.ipv6_subnet}


def peers_of(status: Status, leases: Iterable[LeaseEntry]) -> Iterable[LeaseEntry]:
    """Yield the leases of the other hosts to which this host sends packets."""
    own = status.lease.subnet if status.lease is not None else None
    refused = {peer.subnet for peer in status.refused_peers}
    if status.backend is None or status.backend.type == "alloc":
        return
    yield from (lease for lease in leases if lease.subnet != own and lease.subnet not in refused)


def ends_of(peer: LeaseEntry) -> tuple[IpAddress | None, IpAddress | None]:
    """Return the addresses of a peer on the underlay and on its tunnel device; None for an address that
    the peer does not have.
    """
    underlay = None if peer.public_ip.is_unspecified else peer.public_ip
    return underlay, peer.subnet.network_address if peer.backend_type in _TUNNELS else None


def decisive_echoes(status: Status, leases: Iterable[LeaseEntry]) -> dict[IpNetwork, Echo]:
    """Return the echo request that shows whether a peer is reachable: through the tunnel, or to the address
    of the peer if the backend has no tunnel.
    """
    found = {}
    for peer in peers_of(status, leases):
        underlay, tunnel = ends_of(peer)
        if (destination := tunnel or underlay) is not None:
            found[peer.subnet] = Echo(destination=destination)
    return found


def _own_address(status: Status) -> IpAddress | None:
    return status.underlay.address if status.underlay is not None else None


def _sized(echo: Echo, mtu: int | None, sizes: Iterable[int]) -> list[Echo]:
    """Return the request and its larger variants, none of them larger than the MTU."""
    larger = {size for size in sizes if mtu is not None and echo.size < size <= mtu}
    return [echo, *(Echo(destination=echo.destination, source=echo.source, size=one) for one in larger)]


def _reach_of(
    peer: LeaseEntry, status: Status, mtu: int | None, results: dict[Echo, EchoResult]
) -> PeerReach:
    underlay, tunnel = ends_of(peer)
    near = _SKIPPED if underlay is None else results[Echo(destination=underlay, source=_own_address(status))]
    if tunnel is None:
        far, path_mtu = _SKIPPED, None
    else:
        far, path_mtu = results[Echo(destination=tunnel)], _largest(tunnel, results)
    return PeerReach(
        subnet=peer.subnet,
        public_ip=peer.public_ip,
        host_name=peer.host_name,
        underlay=near,
        tunnel=far,
        path_mtu=path_mtu,
    )


def _measured(status: Status) -> dict[IpNetwork, int]:
    """Return the measured MTU of each path that carries only smaller packets than planned. The key is the
    subnet of the peer in the first address family of the network.
    """
    return {one.subnet: one.measured for one in status.path_mtus if one.ipv6_subnet in (None, one.subnet)}


def _largest(destination: IpAddress, results: dict[Echo, EchoResult]) -> int | None:
    arrived = [
        echo.size
        for echo, result in results.items()
        if echo.destination == destination and result.state == "reached"
    ]
    return max(arrived, default=None)


async def probe_path(status: Status, peer: LeaseEntry, container: IpAddress | None) -> list[PingStep]:
    """Return the result for each part of the path to a host, or to a container on it.

    Raises:
        TargetError: this process has no permission to send ICMP echo requests.
    """
    own = status.lease.subnet if status.lease is not None else None
    mtu = status.backend.mtu if status.backend is not None else None
    bridge = await bridge_address(own)
    underlay, tunnel = ends_of(peer)
    asked: dict[StepName, tuple[IpAddress, IpAddress | None]] = {}
    if underlay is not None and peer.subnet != own:
        asked["underlay"] = underlay, _own_address(status)
    if tunnel is not None and peer.subnet != own:
        asked["tunnel"] = tunnel, None
    asked["container"] = container or peer.subnet.network_address + 1, bridge
    underlay_mtu = status.underlay.mtu if status.underlay is not None else None
    echoes = {
        name: _sized(
            Echo(destination=destination, source=source),
            underlay_mtu if name == "underlay" else mtu,
            (*_MTUS, mtu or 0, _measured(status).get(peer.subnet, 0)),
        )
        for name, (destination, source) in asked.items()
    }
    sent = [echo for some in echoes.values() for echo in some]
    answers, taken = await asyncio.gather(
        send_echoes(sent), _taken_here({one for one, _ in asked.values()} if peer.subnet != own else ())
    )
    results = {echo: taken.get(echo.destination, answer) for echo, answer in zip(sent, answers, strict=True)}
    return [
        PingStep(
            name=name,
            family=destination.version,
            destination=destination,
            source=source,
            state=results[first].state,
            rtt_ms=milliseconds(results[first]),
            # If the MTU is unknown, only the small request was sent. The reply does not show how large
            # packets can be.
            mtu=_largest(destination, results) if larger else None,
            text=results[first].text,
        )
        for name, (destination, source) in asked.items()
        for first, *larger in (echoes[name],)
    ]


async def _taken_here(destinations: Iterable[IpAddress]) -> dict[IpAddress, EchoResult]:
    """Return the result for each address whose packets this host receives itself: no request leaves it."""
    answers = await asyncio.gather(*(ask_route("host out", one) for one in destinations))
    return {
        one.destination: EchoResult(state="unsent", text=f"this host receives them itself: {one.text}")
        for one in answers
        if one is not None and one.is_local
    }


class Target(NamedTuple):
    """A host or a container to probe in one family.

    Attributes:
        status: the status as in a network with this family alone.
        peer: the lease of the host, as in a network with this family alone.
        container: the address of the container; None to probe the host.
    """

    family: Family
    status: Status
    peer: LeaseEntry
    container: IpAddress | None


def targets_of(status: Status, leases: Sequence[LeaseEntry], name: str) -> tuple[Target, ...]:
    """Return the target that the argument refers to, in each family that both hosts carry. The address of a
    container is a target in its own family.

    Raises:
        FlannelError: no other host has this name, no lease contains this address, or this host does not
            carry its family.
    """
    lease, container = _target_of(leases, name)
    families = [family for family in families_of(status) if container is None or container.version == family]
    found = tuple(
        Target(family, status_in(status, family, leases), part, container)
        for family in families
        if (part := lease.in_family(family)) is not None
    )
    if not found:
        raise FlannelError(
            f"this host and the host of {name} have no family in common",
            hint="'flannelctl status' shows the addresses of this host, 'flannelctl leases' those of others.",
        )
    return found


def _target_of(leases: Sequence[LeaseEntry], name: str) -> tuple[LeaseEntry, IpAddress | None]:
    """Return the lease that the argument refers to, and the address of a container if one was given.

    Raises:
        FlannelError: no other host has this name, or no lease contains this address.
    """
    for lease in leases:
        places = (lease.public_ip, lease.public_ipv6, lease.subnet, lease.ipv6_subnet)
        if name == lease.host_name or name in [str(one) for one in places if one is not None]:
            return lease, None
    try:
        address = ip_address(name)
    except ValueError:
        address = None
    subnets = [(lease, subnet) for lease in leases for subnet in _subnets(lease)]
    if address is not None and any(address.version == subnet.version for _, subnet in subnets):
        for lease, subnet in subnets:
            if address in subnet:
                return lease, None if address == subnet.network_address else address
        raise FlannelError(
            f"no lease contains {address}",
            hint="'flannelctl leases' lists the subnets. The host of this address may have lost its lease.",
        )
    raise FlannelError(
        f"no host has the name {name!r}",
        hint="Specify a host by its host name, its address or its subnet. 'flannelctl leases' lists the "
        "hosts.",
    )


async def bridge_address(subnet: IpNetwork | None) -> IpAddress | None:
    """Return the address of this host on the bridge of its containers; None if there is no bridge."""
    if subnet is None:
        return None
    async with KernelInterfaces() as observer:
        interfaces = await observer.observe()
    return next(
        (
            held.address.ip
            for one in interfaces.interfaces
            if one.kind == "bridge"
            for held in one.addresses
            if held.address.ip in subnet
        ),
        None,
    )


_ROUNDS, _BENCH_S = 40, 2.0
"""Maximum number of requests for each path and size, and the seconds after which no new round begins."""

_ANSWER_S, _GAP_S = 0.35, 0.005
"""Deadline in seconds for a reply, shorter than the time after which `send_echoes` repeats a request; and
pause in seconds between two requests."""

_SMALL = 84
"""Size in bytes of a small packet, the same as the default of the program ping."""

_LOOPBACK: Mapping[Family, IpAddress] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}

_MEASURED = (
    "The round-trip time of single ICMP echo packets. The kernel of the other host answers them.",
    "The paths are probed in turn, one request at a time, so that load on a host affects all paths equally.",
    "The line 'measurement' is the round-trip time to this host itself. Every other time includes this time.",
)
_NOT_MEASURED = (
    "Throughput and processor time, because flannelctl sends too few packets.",
    "TCP, and the path inside containers, because this host sends from its bridge.",
)


async def bench_path(status: Status, peer: LeaseEntry, container: IpAddress | None) -> BenchReport:
    """Measure the paths to a host, or to a container on it, for at most 2.4 s.

    At most one request is in flight, and a reply is as large as its request.

    Raises:
        FlannelError: the host is this host, or has no path.
        TargetError: this process has no permission to send ICMP echo requests.
    """
    own = status.lease.subnet if status.lease is not None else None
    if peer.subnet == own:
        raise FlannelError(
            f"{peer.subnet} is the subnet of this host",
            hint="Specify another host; 'flannelctl leases' lists the hosts.",
        )
    mtu = (status.backend.mtu if status.backend is not None else None) or _MTUS[-1]
    underlay, tunnel = ends_of(peer)
    bridge = await bridge_address(own)
    ends: list[tuple[BenchName, IpAddress | None, IpAddress | None]] = [
        ("measurement", _LOOPBACK[peer.subnet.version], None),
        ("underlay", underlay, _own_address(status)),
        ("tunnel", tunnel, None),
        ("container", container or peer.subnet.network_address + 1, bridge),
    ]
    runs = [
        _Run(name, destination, Echo(destination=destination, source=source, size=size))
        for size in sorted({_SMALL, mtu})
        for name, destination, source in ends
        if destination is not None
    ]
    await _take_turns(runs)
    medians = {run.echo.size: run.median for run in runs if run.name == "underlay"}
    return BenchReport(
        subnet=peer.subnet,
        public_ip=peer.public_ip,
        host_name=peer.host_name,
        backend_type=peer.backend_type or "udp",
        is_encrypted=status.backend is not None and status.backend.is_encrypted,
        ok=all(run.times for run in runs),
        lines=tuple(run.line(medians.get(run.echo.size)) for run in runs),
        measured=_MEASURED,
        not_measured=_NOT_MEASURED,
    )


BenchName = Literal["measurement", "underlay", "tunnel", "container"]


class _Run(Struct):
    """The requests of one path and size that were sent so far. `times`: round-trip times of the replies,
    in milliseconds.
    """

    name: BenchName
    destination: IpAddress
    echo: Echo
    sent: int = 0
    times: list[float] = field(default_factory=list)
    text: str = ""

    @property
    def median(self) -> float | None:
        return median(self.times) if self.times else None

    def line(self, underlay: float | None) -> BenchLine:
        middle = self.median
        has_ratio = middle is not None and underlay and self.name not in ("measurement", "underlay")
        return BenchLine(
            name=self.name,
            destination=self.destination,
            size=self.echo.size,
            sent=self.sent,
            received=len(self.times),
            min_ms=min(self.times, default=None),
            median_ms=None if middle is None else round(middle, 3),
            p90_ms=sorted(self.times)[len(self.times) * 9 // 10] if self.times else None,
            ratio=round(middle / underlay, 2) if has_ratio and middle and underlay else None,
            text=self.text,
        )


_SILENT_ROUNDS = 1
"""Maximum number of requests without a reply (not counting the first request); then no more requests are
sent on the path."""


async def _take_turns(runs: Sequence[_Run]) -> None:
    """Send one request on each path, one path after the other. The first request may wait for a neighbour
    and is not counted.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + _BENCH_S
    await send_echoes([run.echo for run in runs], deadline_s=_ANSWER_S)
    for _ in range(_ROUNDS):
        for run in runs:
            if loop.time() > end:
                return
            if run.sent >= _SILENT_ROUNDS and not run.times:
                continue
            (result,) = await send_echoes([run.echo], deadline_s=_ANSWER_S)
            run.sent += 1
            run.text = result.text
            if (rtt := milliseconds(result)) is not None:
                run.times.append(rtt)
            await asyncio.sleep(_GAP_S)
