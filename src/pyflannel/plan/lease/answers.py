"""The answers of the store, and the reactions of a host to them."""

from typing import assert_never

from msgspec.structs import replace

from pyflannel.model.lease import CLAIM_TTL_S, Claim, Lease
from pyflannel.model.lease_protocol import (
    Acquired,
    Action,
    ClaimSeen,
    DeleteLease,
    Held,
    List,
    Listed,
    Lost,
    PutClaim,
    PutLease,
    Renewed,
    Wanted,
    Watch,
)
from pyflannel.model.network_config import IpNetwork
from pyflannel.plan.lease.choice import (
    Choice,
    Contest,
    NoneFree,
    TakenBy,
    choose,
    choose_free,
    is_ours,
    keep,
    lacks_ipv6,
    merged_attributes,
    must_contest,
    occupied,
    with_ipv6,
)
from pyflannel.plan.lease.holding import contest, degrade, hold, look_again, overwritten, store_back
from pyflannel.plan.lease.state import (
    Contesting,
    Degraded,
    Draw,
    Holding,
    LeaseState,
    Listing,
    Putting,
    Resting,
    Step,
)

JITTER_S = 0.25
"""Maximum random pause in seconds after another host wrote first, so that the other hosts do not collide
again."""

CONFIG_S = 5.0
"""Pause in seconds before another list request if the network config has changed. The new config ends the
pause."""

BUSY_S = 0.1
"""Response time in seconds above which a store counts as busy."""

IN_TURN_MAX_S = 5.0
"""Longest pause in seconds between the acquisition of the lease and the watch."""

EXHAUSTED_S = 10.0
"""Pause in seconds before another list request if no subnet was free."""


def on_listed(state: LeaseState, listed: Listed, now: float, draw: Draw) -> Step:
    """Choose from the listed leases, if the host waits for a list."""
    if not isinstance(state.phase, Listing):
        return state, ()
    actions: list[Action] = []
    if not state.is_watching:
        # The maximum of both is not used, because a store that lost its data counts from the beginning.
        # Missed changes are in the list, or the watch, which continues from the revision of the list,
        # delivers them again.
        state = replace(state, revision=listed.revision, watch_at=None, is_unsure=False, missed=())
    elif state.is_unsure and listed.revision < state.revision:
        # The store has lost data, so the new watch must continue from the revision of the list.
        state = replace(state, revision=listed.revision)
        actions.append(Watch(listed.revision))
    else:
        state = replace(state, is_unsure=False)
    state = replace(state, is_checking=False)
    if state.held is not None:
        following, chosen = _listed_while_running(state, state.held, listed, now)
    elif listed.revision < (state.wanted.config_revision or 0):
        # The list is older than the config. Since then, other hosts may have acquired subnets of another
        # length.
        following, chosen = look_again(state, now + JITTER_S)
    else:
        choice, before = choose(listed, state.wanted, state.answered, draw)
        actions.extend(before)
        following, chosen = _begin(state, choice, now, taken=tuple(occupied(listed)))
    if not isinstance(following.phase, Putting | Contesting):  # otherwise the answer to the write decides
        following, chosen = store_back(following, chosen, was=state)
    # A host without a lease starts the watch after it has a lease. If the watch started earlier, each of a
    # thousand hosts that start together would receive the leases of all others while all of them try to
    # write.
    if following.held is not None or not isinstance(following.phase, Putting):
        following, watch = _watch(following)
        actions.extend(watch)
    return following, (*actions, *chosen)


def _watch(state: LeaseState) -> Step:
    """Watch from the latest known revision, unless a watch is open or already scheduled."""
    if state.is_watching or state.watch_at is not None:
        return state, ()
    return replace(state, is_watching=True), (Watch(state.revision),)


def _watch_in_turn(state: LeaseState, took_s: float, now: float) -> Step:
    """Start the watch. If the store took longer to answer, the watch starts later, because many hosts try to
    write.

    Each host that already watches receives every new lease, which delays the writes of the other hosts. The
    watch delivers the earlier changes immediately when it starts.
    """
    if took_s < BUSY_S or state.is_watching or state.watch_at is not None:
        return _watch(state)
    return replace(state, watch_at=now + min(2 * took_s, IN_TURN_MAX_S)), ()


def _listed_while_running(state: LeaseState, held: Held, listed: Listed, now: float) -> Step:
    subnet = held.lease.subnet
    claims = tuple(ClaimSeen(claim) for claim in listed.claims if claim.subnet == subnet)
    state = replace(state, missed=(*claims, *state.missed))
    existing = next((lease for lease in listed.leases if lease.subnet == subnet), None)
    if existing is not None and lacks_ipv6(existing, state.wanted) and _is_certain(existing, state.wanted):
        put = with_ipv6(existing, listed, state.wanted)
        if put is not None:
            state, writes = _begin(state, put, now)
            return state, (DeleteLease(existing), *writes)
    if existing is not None and _is_untouched(existing, held, state.wanted):
        return hold(state, held, now)
    # A lease that is written again keeps its attributes.
    wanted = replace(state.wanted, attributes=merged_attributes(held.lease.attributes, state.wanted))
    return _begin(state, keep(held.lease, listed, wanted, state.answered), now)


def _is_certain(lease: Lease, wanted: Wanted) -> bool:
    return is_ours(lease, wanted) and not must_contest(lease, wanted)


def _is_untouched(existing: Lease, held: Held, wanted: Wanted) -> bool:
    """Return whether this host's lease is unchanged in the store.

    The revision alone is not sufficient: a store that lost its data may assign the same revision again.
    """
    return existing.revision == held.lease.revision and is_ours(existing, wanted)


def _begin(state: LeaseState, choice: Choice, now: float, *, taken: tuple[IpNetwork, ...] = ()) -> Step:
    match choice:
        case PutLease():
            return replace(state, phase=Putting(choice, now, taken)), (choice,)
        case Contest(lease):
            return contest(state, lease, now)
        case TakenBy(lease):
            return degrade(state, lease, now)
        case NoneFree():
            return replace(state, phase=Resting(now + EXHAUSTED_S)), ()
        case _:
            assert_never(choice)


def on_wrote(state: LeaseState, write: Action, revision: int, now: float) -> Step:
    """Use the written lease, or wait for the answer to a claim."""
    match state.phase, write:
        case Putting(put, sent_at), PutLease() if write == put:
            is_admitted = all(
                state.wanted.network.admits(subnet)
                for subnet in (put.lease.subnet, put.lease.ipv6_subnet)
                if subnet is not None
            )
            if state.held is None and not is_admitted:
                return replace(state, phase=Listing()), (List(),)  # the config changed in the meantime
            held = _held(put, revision, sent_at)
            runs_since = sent_at if state.runs_since is None else state.runs_since
            state = replace(state, answered=frozenset(), runs_since=runs_since, is_in_doubt=False)
            state, watch = _watch_in_turn(state, now - sent_at, now)
            state, actions = hold(state, held, now)
            return state, (Acquired(held), *watch, *actions)
        case Holding(put=put, sent_at=sent_at), PutLease() if write == put:
            held = _held(write, revision, sent_at)
            state, actions = hold(replace(state, is_in_doubt=False), held, now)
            return state, (Renewed(held), *actions)
        case Contesting() as contest, PutClaim(claim) if claim.subnet == contest.lease.subnet:
            phase = replace(contest, claim_revision=revision, until=now + CLAIM_TTL_S)
            return replace(state, phase=phase), ()
        case _:
            return state, ()


def on_checked(state: LeaseState, lease: Lease, current: Lease | None, now: float) -> Step:
    """Request a list if the store has lost a known lease, which the watch would not deliver."""
    state = replace(state, is_checking=False)
    match state.phase:
        case Holding(put=None) if state.held is not None and state.held.lease == lease:
            pass
        case Holding(put=None) if state.held is not None:
            return hold(state, state.held, now)  # the watch has delivered another lease since then
        case Degraded(by) if by == lease:
            pass
        case _:
            return state, ()
    if current is not None and current.revision > max(state.revision, lease.revision):
        return state, ()
    if current is not None and _is_same(current, lease):
        if isinstance(state.phase, Holding) and state.held is not None:
            return hold(
                state, state.held, now
            )  # requests of the operator and claims have waited for this check
        return state, ()
    return replace(state, phase=Listing()), (List(),)


def _is_same(current: Lease, lease: Lease) -> bool:
    """Return whether a lease is the known lease; a store that lost its data may use a revision twice."""
    known, found = lease.attributes, current.attributes
    return (current.revision, found.owner, found.public_ip) == (lease.revision, known.owner, known.public_ip)


def _held(put: PutLease, revision: int, sent_at: float) -> Held:
    """Return the lease of a successful write. The TTL is counted from the request, so that it is never too
    long.
    """
    lease = replace(put.lease, revision=revision, has_ttl=put.ttl_s is not None)
    return Held(lease=lease, expires_at=None if put.ttl_s is None else sent_at + put.ttl_s)


def on_conflicted(
    state: LeaseState, write: Action, current: Lease | Claim | None, now: float, draw: Draw
) -> Step:
    """Choose again after another host wrote first, or react to another writer of the held lease's key."""
    match state.phase, write:
        case Putting(put, occupied=taken), PutLease() if write == put:
            if isinstance(current, Lease) and _may_draw_again(state, put, current):
                ipv6 = () if current.ipv6_subnet is None else (current.ipv6_subnet,)
                taken = (*taken, current.subnet, *ipv6)
                choice, reports = choose_free(taken, state.wanted, draw)
                state, actions = _begin(state, choice, now, taken=taken)
                return state, (*reports, *actions)
            if write.config_revision is not None and current is None:
                # The config has changed. The new config will arrive soon, or has already arrived.
                is_known = state.wanted.config_revision != write.config_revision
                return look_again(state, now + (0.0 if is_known else CONFIG_S))
            return look_again(state, now + JITTER_S * draw(1000) / 1000)
        case Contesting(), PutClaim():
            return look_again(state, now + CLAIM_TTL_S)  # another host contests the lease
        case Holding(put=put), PutLease() if write == put and state.held is not None:
            if isinstance(current, Lease):
                return overwritten(state, state.held, current, now)
            return replace(state, phase=Listing()), (Lost(state.held.lease), List())
        case _:
            return state, ()


def _may_draw_again(state: LeaseState, put: PutLease, current: Lease) -> bool:
    """Return whether the last list is sufficient, because another host only took one of many free subnets.

    If a thousand hosts start together, a hundred choose the same subnet as another host. These hosts need no
    further list. After a change of the config, the list may not contain overlapping subnets of another
    length.
    """
    return (
        put.expected == 0
        and state.held is None
        and put.config_revision == state.wanted.config_revision
        and not is_ours(current, state.wanted)
    )
