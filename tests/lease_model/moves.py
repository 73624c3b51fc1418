"""The possible next events of a world."""

from collections.abc import Iterator
from ipaddress import IPv4Address

from msgspec import Struct

from lease_model import rules
from lease_model.store import (
    revision_of_change,
)
from lease_model.world import HostState, World
from pyflannel.model.lease import Claim
from pyflannel.model.lease_protocol import Check, List
from pyflannel.model.network_config import IpNetwork, NetworkConfig

HOUR_S = 3600.0
STEPS_S = {"clock steps +25 h": 25 * HOUR_S, "clock steps -2 h": -2 * HOUR_S}

FAULTS = (
    "crash",
    "lost answer",
    "failed request",
    "watch cut",
    "compaction",
    "store away",
    "slow",
    "deleted manually",
    "reserved manually",
    "invalid value",
    "data lost",
    "data lost, grown",
    "address",
    "reinstall",
    "old renews",
    "config",
    *STEPS_S,
)
"""All kinds of faults that a scenario may contain. Each of these events counts as one fault."""


class Move(Struct, frozen=True, kw_only=True):
    """One event of a host, given by its place in the world, or of a subnet's key.

    Attributes:
        drawn: if the host chooses a subnet, the index of the chosen subnet among all free subnets.
    """

    what: str
    host: int = -1
    subnet: IpNetwork | None = None
    drawn: int = 0


class Circumstances(Struct, frozen=True, kw_only=True):
    """The possible events of a scenario besides the protocol's own moves.

    Attributes:
        faults: the possible kinds, of FAULTS.
        other_network: the network config after a change.
    """

    faults: frozenset[str]
    other_network: NetworkConfig | None = None


def moves(world: World, circumstances: Circumstances) -> Iterator[Move]:
    """Yield every possible move. A fault needs a remaining fault of the world."""
    for place, host in enumerate(world.hosts):
        yield from _of_host(world, place, host)
    for entry in world.store.entries:
        if entry.expires_at is not None and entry.expires_at <= world.now:
            what = "claim expires" if isinstance(entry.value, Claim) else "lease expires"
            yield Move(what=what, subnet=entry.value.subnet)
    if world.ticks and next_deadline(world) is not None and not is_due(world):
        if not is_busy(world):
            yield Move(what="time passes")
        elif world.faults and "slow" in circumstances.faults:
            yield Move(what="slow")
    if world.faults:
        yield from _faults(world, circumstances)


def _of_host(world: World, place: int, host: HostState) -> Iterator[Move]:
    if host.orphan is not None:
        yield Move(what="late request", host=place)
    if host.is_unreachable:
        yield Move(what="store back", host=place)
    if host.state is None:
        yield Move(what="start", host=place)
        return
    if host.requests:
        yield Move(what="request", host=place)
    if host.answers:
        yield Move(what="answer", host=place)
    if can_see(world, host):
        yield Move(what="watch", host=place)
    if host.wake_at is not None and host.wake_at - host.skew_s <= world.now:
        yield Move(what="wake", host=place)
    held = host.state.held
    if host.wanted.config_revision != world.store.config_revision and (
        held is None or world.network.admits(held.lease.subnet)
    ):
        yield Move(what="config seen", host=place)


def _faults(world: World, circumstances: Circumstances) -> Iterator[Move]:
    kinds = circumstances.faults
    for place, host in enumerate(world.hosts):
        for kind in (
            "crash",
            "lost answer",
            "failed request",
            "watch cut",
            "store away",
            "address",
            *STEPS_S,
        ):
            if kind in kinds and _can_suffer(host, kind):
                yield Move(what=kind, host=place)
        if "reinstall" in kinds and host.state is None:
            yield Move(what="reinstall", host=place)
    for entry in world.store.entries:
        if isinstance(entry.value, Claim):
            continue
        for kind in ("deleted manually", "reserved manually", "invalid value"):
            if kind in kinds:
                yield Move(what=kind, subnet=entry.value.subnet)
        if "old renews" in kinds and entry.writer == rules.OLD:
            yield Move(what="old renews", subnet=entry.value.subnet)
    if "compaction" in kinds and world.store.compacted < world.store.revision:
        yield Move(what="compaction")
    all_watch = all(host.watch is not None for host in world.hosts if host.state is not None)
    is_asked = any(host.requests or host.answers for host in world.hosts)
    for kind in ("data lost", "data lost, grown"):
        if kind in kinds and world.store.entries and all_watch and not is_asked:
            yield Move(what=kind)
    if "config" in kinds and world.network != circumstances.other_network:
        yield Move(what="config")


def _can_suffer(host: HostState, kind: str) -> bool:
    if host.state is None:
        return False
    match kind:
        case "lost answer":
            return (
                bool(host.requests)
                and not isinstance(host.requests[0], List | Check)
                and not host.is_unreachable
            )
        case "failed request":
            return bool(host.requests) and not host.is_unreachable
        case "watch cut":
            return host.watch is not None and host.watch >= 0
        case "store away":
            return not host.is_unreachable
        case "clock steps +25 h" | "clock steps -2 h":
            return host.skew_s == 0
        case "address":
            return host.wanted.attributes.public_ip != moved_address(host)
        case _:
            return True


def can_see(world: World, host: HostState) -> bool:
    """Return whether the watch of a host has an event: a change, that it is open, or its end."""
    if host.watch is None:
        return False
    if (
        host.is_unreachable
        or not host.is_open
        or not world.store.compacted <= host.watch <= world.store.revision
    ):
        return True
    history = world.store.history
    return bool(history) and revision_of_change(history[-1]) > host.watch


def is_busy(world: World) -> bool:
    """Return whether a message is in transit between a host and the store."""
    return any(
        host.state is not None and (host.requests or host.answers or can_see(world, host))
        for host in world.hosts
    )


def is_due(world: World) -> bool:
    """Return whether an event that is scheduled for this time is still outstanding."""
    return any(
        host.wake_at is not None and not host.is_unreachable and host.wake_at - host.skew_s <= world.now
        for host in world.hosts
        if host.state is not None
    ) or any(entry.expires_at is not None and entry.expires_at <= world.now for entry in world.store.entries)


def next_deadline(world: World) -> float | None:
    """Return the next deadline. Attempts of hosts without a reachable store do not count."""
    wakes = [
        (host.is_unreachable, host.wake_at - host.skew_s)
        for host in world.hosts
        if host.state is not None and host.wake_at is not None
    ]
    ends = [entry.expires_at for entry in world.store.entries if entry.expires_at is not None]
    times = [*ends, *(at for is_unreachable, at in wakes if not is_unreachable)] or [at for _, at in wakes]
    return min((at for at in times if at > world.now), default=None)


def moved_address(host: HostState) -> IPv4Address:
    """Return the only other address that a host may get: its first address plus 100."""
    address = host.wanted.attributes.public_ip
    assert isinstance(address, IPv4Address)
    return address if int(address) & 0xFF >= 100 else address + 100
