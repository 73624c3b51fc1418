"""The rules that hold at any time. The rules are checked with the real writer of each key in the store."""

from collections.abc import Iterator

from msgspec import Struct

from lease_model.store import lease_at, revision_of
from lease_model.world import Entry, HostState, Request, StoreState, World
from pyflannel.model.lease import Claim, Lease
from pyflannel.model.lease_protocol import (
    Acquired,
    Action,
    DeleteLease,
    Event,
    Listed,
    Lost,
    PutLease,
    SharedAddress,
    Taken,
    Unreadable,
)
from pyflannel.model.network_config import IpNetwork
from pyflannel.plan.lease.state import Degraded, Holding

OLD = "an original flannel"
"""Writer of the lease of a running host with the original flannel."""

DEAD = "a dead host"
"""Writer of the lease of a host that was removed permanently."""


BEFORE_COPYING = "a host before it was copied"
"""Writer of a lease that two copies of a host use, until one of them writes it."""


class Violation(Struct, frozen=True):
    """A broken rule, and the details of the violation."""

    rule: str
    text: str


def of_write(
    before: StoreState, after: StoreState, request: Request, host: HostState, world: World
) -> Iterator[Violation]:
    """Yield the violations by a write that took effect."""
    match request:
        case PutLease(lease=lease):
            current = lease_at(before, lease.subnet)
            for other in before.entries:
                is_beside = other is not current and not isinstance(other.value, Claim)
                is_new = current is None or current.writer != host.name
                if is_new and is_beside and other.value.subnet.overlaps(lease.subnet):
                    text = f"{host.name} takes {lease.subnet}, {other.writer} has {other.value.subnet}"
                    yield Violation("no two owners of overlapping subnets", text)
            if current is None:
                return
            if _is_reservation(current) and not _is_reservation(lease_at(after, lease.subnet)):
                yield Violation("a reservation never gets a TTL", f"{host.name} gives {lease.subnet} one")
            if not _may_replace(host, current, world):
                text = f"{host.name} writes over the lease {lease.subnet} of {current.writer}"
                yield Violation("no write to foreign keys", text)
        case DeleteLease(lease):
            current = lease_at(before, lease.subnet)
            if current is not None and current.writer != host.name:
                text = f"{host.name} deletes the lease {lease.subnet} of {current.writer}"
                yield Violation("no write to foreign keys", text)
        case _:
            pass


def _is_reservation(entry: Entry | None) -> bool:
    return entry is not None and isinstance(entry.value, Lease) and not entry.value.has_ttl


def _may_replace(host: HostState, current: Entry, world: World) -> bool:
    """Return whether a host may replace `current`: its own key, or the key of an owner that did not
    answer.
    """
    if _is_own(current, host):
        return True
    if not isinstance(current.value, Lease):
        return current.value.subnet == host.subnet
    attributes, wanted = current.value.attributes, host.wanted.attributes
    has_our_address, has_our_name = (
        attributes.public_ip == wanted.public_ip,
        attributes.owner == wanted.owner,
    )
    if has_our_address and has_our_name:
        return True  # a copy wrote the lease, which no host can distinguish from its own write
    looks_like_ours = has_our_address or has_our_name
    if current.writer == DEAD:
        return looks_like_ours
    owner = next((other for other in world.hosts if other.name == current.writer), None)
    if owner is None:
        return False
    if attributes.owner != owner.wanted.attributes.owner:
        return True  # the copy has yielded to its original host
    if has_our_name and host.subnet == owner.subnet:
        return True  # two copies use one subnet, and one of them must yield
    return owner.is_excused or owner.subnet != current.value.subnet


def of_step(
    before: HostState, event: Event, after: HostState, actions: tuple[Action, ...], store: StoreState
) -> Iterator[Violation]:
    """Yield the violations by a step of one host."""
    assert before.state is not None
    assert after.state is not None
    was, now = before.state.held, after.state.held
    stays = was is None or (now is not None and now.lease.subnet == was.lease.subnet)
    if was is not None and not stays and not after.state.wanted.renumbers:
        text = f"{after.name} ran on {was.lease.subnet}, now on {now.lease.subnet if now else 'nothing'}"
        yield Violation("a running host's subnet changes only on an order", text)
    for action in actions:
        match action:
            case Acquired(held) if was is None and not after.wanted.network.admits(held.lease.subnet):
                text = f"{after.name} begins to run on {held.lease.subnet}"
                yield Violation("no host starts outside the network config", text)
            case Lost(lease):
                current = lease_at(store, lease.subnet)
                is_ours = current is not None and _is_own(current, after)
                if current is not None and is_ours and revision_of(current) == lease.revision:
                    text = f"{after.name} reports the loss of {lease.subnet}, which exists"
                    yield Violation("no false alarm", text)
            case Taken(lease=lease, by=by):
                current = lease_at(store, by.subnet)
                if current is not None and _is_own(current, after) and _names(current, after):
                    yield Violation("no false alarm", f"{after.name} takes its own write for another's")
            case PutLease(lease=lease) if isinstance(event, Listed) and was is None:
                yield from _of_choice(after, event, lease)
            case _:
                pass


def of_reports(host: HostState, actions: tuple[Action, ...], world: World) -> Iterator[Violation]:
    """Yield a report of a shared address or identity by a running host, although no other host has this
    address or identity.

    A starting host may treat a late write of its own previous run as a write of another host.
    """
    if host.subnet is None or host.state is None or host.state.held is None:
        return
    others = [other for other in world.hosts if other.name != host.name]
    is_shared = any(
        other.wanted.attributes.public_ip == host.wanted.attributes.public_ip
        or _origin(other) == _origin(host)
        for other in others
    )
    if not is_shared and any(isinstance(action, SharedAddress) for action in actions):
        yield Violation("no false alarm", f"{host.name} reports a shared address, but no other host has it")


def _of_choice(host: HostState, listed: Listed, chosen: Lease) -> Iterator[Violation]:
    """Yield a violation if a restarted daemon left the subnet of its containers to no other host."""
    subnet = host.subnet
    if subnet is None or chosen.subnet == subnet or not host.wanted.network.admits(subnet):
        return
    owner = host.wanted.owner
    others = [lease for lease in listed.leases if lease.attributes.owner != owner]
    standing = [lease.subnet for lease in others] + [bad.subnet for bad in listed.unreadable]
    own = [lease.subnet for lease in listed.leases if lease.attributes.owner == owner]
    if not any(subnet.overlaps(other) for other in standing) and chosen.subnet not in own:
        text = f"{host.name} ran on {subnet}, which is free, and asks for {chosen.subnet}"
        yield Violation("a running host's subnet changes only on an order", text)


def of_world(world: World) -> Iterator[Violation]:
    """Yield the violations in a world: hosts with complete knowledge that are wrong about their leases."""
    for host in world.hosts:
        state = host.state
        has_seen_all = host.is_open and host.watch == world.store.revision
        if state is None or host.requests or host.answers or not has_seen_all:
            continue
        if isinstance(state.phase, Holding) and state.held is not None:
            entry = lease_at(world.store, state.held.lease.subnet)
            is_in_doubt = entry is not None and state.is_in_doubt and _names(entry, host)
            if entry is None or not (_is_own(entry, host) or is_in_doubt):
                text = f"{host.name} believes that {state.held.lease.subnet} is its own; {_whose(entry)}"
                yield Violation("the owner is whom the store's key names", text)


def of_rest(world: World) -> Iterator[Violation]:
    """Yield the violations in a settled world without faults."""
    spoilt = {entry.value.subnet for entry in world.store.entries if isinstance(entry.value, Unreadable)}
    known = {
        entry.value.subnet: entry.value.revision
        for entry in world.store.entries
        if isinstance(entry.value, Lease)
    }
    for host in world.hosts:
        if not is_settled(host, world):
            phase = host.state.phase if host.state is not None else None
            yield Violation(
                "every host that can get a subnet has one", f"{host.name} remains in phase {phase}"
            )
        # A key that became unreadable may still be valid: its host may be running.
        knows = {lease.subnet: lease.revision for lease in host.leases if lease.subnet not in spoilt}
        if knows != known:
            text = f"{host.name} knows {_text(knows)}, there are {_text(known)}"
            yield Violation("every peer's lease is known", text)
    yield from _of_copies(world)


def _of_copies(world: World) -> Iterator[Violation]:
    """Yield a violation for each copy that does not report its shared subnet after a write of the lease."""
    for host in world.hosts:
        for other in world.hosts:
            if host is other or host.subnet is None or host.subnet != other.subnet:
                continue
            entry = lease_at(world.store, host.subnet)
            is_written = entry is not None and entry.writer != BEFORE_COPYING
            if is_written and _origin(host) == _origin(other) and not host.is_warned:
                text = f"{host.name} shares {host.subnet} with {other.name} and does not report it"
                yield Violation("copies of one host report it", text)


def _origin(host: HostState) -> str:
    """Return the first identity of a host. A host that yielded has a new identity, derived from the first."""
    return host.wanted.owner.rstrip("'")


def _is_own(entry: Entry, host: HostState) -> bool:
    return entry.writer in (host.name, BEFORE_COPYING)


def _names(entry: Entry, host: HostState) -> bool:
    """Return whether the key belongs to a host, which may have changed its identity since the write."""
    return isinstance(entry.value, Lease) and entry.value.attributes.owner == host.wanted.attributes.owner


def is_settled(host: HostState, world: World) -> bool:
    """Return whether a host has its lease, or cannot get one because its subnet or all subnets are used."""
    if host.state is None:
        return False
    held = host.state.held
    if held is None:
        return _is_exhausted(host, world)
    entry = lease_at(world.store, held.lease.subnet)
    if isinstance(host.state.phase, Degraded):
        return any(
            other.value.subnet.overlaps(held.lease.subnet) and other.writer != host.name
            for other in world.store.entries
            if not isinstance(other.value, Claim)
        )
    is_ours = entry is not None and _is_own(entry, host) and revision_of(entry) == held.lease.revision
    return isinstance(host.state.phase, Holding) and is_ours


def _is_exhausted(host: HostState, world: World) -> bool:
    network = host.wanted.network
    taken = [entry.value.subnet for entry in world.store.entries if not isinstance(entry.value, Claim)]
    return not any(
        network.admits(subnet) and not any(subnet.overlaps(other) for other in taken)
        for subnet in _subnets(host)
    )


def _subnets(host: HostState) -> Iterator[IpNetwork]:
    network = host.wanted.network
    assert network.network is not None
    yield from network.network.subnets(new_prefix=network.subnet_length)


def _whose(entry: Entry | None) -> str:
    return "there is none" if entry is None else f"the store has {entry.writer}'s there"


def _text(known: dict[IpNetwork, int]) -> str:
    return ", ".join(f"{subnet}@{known[subnet]}" for subnet in sorted(known)) or "none"
