"""A host with a lease: renewal, degradation, and what follows a failed request or a lost watch."""

from dataclasses import replace

from pyflannel.model.lease import CLAIM_TTL_S, Claim, Lease
from pyflannel.model.lease_protocol import (
    Action,
    Check,
    Contested,
    Failed,
    List,
    PutClaim,
    PutLease,
    StoreAway,
    StoreBack,
    Taken,
    WatchLost,
)
from pyflannel.plan.lease.choice import claim_on, is_ours
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


def degrade(state: LeaseState, by: Lease, now: float) -> Step:
    """Run on although somebody else has the subnet, unless the host was told to renumber then."""
    if state.held is None:
        return replace(state, phase=Listing()), (List(),)
    taken = Taken(state.held.lease, by)
    if state.wanted.renumbers:
        wanted = replace(state.wanted, previous=None)
        return replace(state, wanted=wanted, held=None, phase=Listing()), (taken, List())
    return replace(state, phase=Degraded(by)), (taken,)


def contest(state: LeaseState, lease: Lease, now: float) -> Step:
    """Ask the holder of a lease, which may be ours, whether it lives."""
    is_copied = state.held is not None and is_ours(lease, state.wanted)
    claim = Claim(
        subnet=lease.subnet,
        owner=state.wanted.owner,
        public_ip=state.wanted.attributes.public_ip,
        held_s=held_s(state, now) if is_copied else None,
    )
    phase = Contesting(lease=lease, until=now + CLAIM_TTL_S, asked_at=now)
    return replace(state, phase=phase), (Contested(lease), PutClaim(claim))


def held_s(state: LeaseState, now: float) -> float:
    """Return for how many seconds this daemon has run on a lease."""
    return 0.0 if state.runs_since is None else now - state.runs_since


def renew(state: LeaseState, now: float) -> Step:
    """Write the lease anew, unless that is under way."""
    assert state.held is not None
    if isinstance(state.phase, Holding) and state.phase.put is not None:
        return state, ()
    put = claim_on(state.held.lease, state.wanted)
    return replace(state, phase=Holding(renew_at=None, put=put, sent_at=now)), (put,)


RETRY_MAX_S = 5.0
"""Longest pause between two tries at a store that does not answer."""


def on_failed(state: LeaseState, failed: Failed, now: float, draw: Draw) -> Step:
    """Try again what the host waits for, ever more slowly."""
    pause = retry_pause_s(state.failures, draw)
    away = StoreAway(failed.cause, pause, failed.hint)
    if isinstance(failed.write, Check):
        state = replace(state, is_checking=False)
    if isinstance(failed.write, PutLease):
        state = replace(state, is_in_doubt=True)
    after = replace(state, failures=state.failures + 1)
    match state.phase:
        case Listing() if failed.write is None:
            return replace(after, phase=Resting(now + pause)), (away,)
        case Putting(put) if failed.write == put:
            return replace(after, phase=Resting(now + pause)), (away,)  # the listing shows what came of it
        case Contesting() if isinstance(failed.write, PutClaim):
            return replace(after, phase=Resting(now + pause)), (away,)
        case Holding(put=put) if put is not None and failed.write == put:
            return replace(after, phase=Holding(renew_at=now + pause)), (away,)
        case Holding(put=None) | Degraded() if isinstance(failed.write, Check):
            return replace(after, phase=Resting(now + pause)), (away,)  # then all leases are asked for
        case _:
            return state, ()  # nobody waits for it, and nothing would be tried again


def on_watch_lost(state: LeaseState, lost: WatchLost, now: float, draw: Draw) -> Step:
    """Watch again from what was seen last; where the store no longer knows that, look at all there is."""
    state = replace(state, is_watching=False, is_unsure=True)
    if lost.is_compacted:
        # What happened meanwhile is no longer to be had one by one: look at all of it. The revisions of what
        # was missed may belong to another life of the store.
        state = replace(state, missed=())
        match state.phase:
            case Listing():
                return state, ()
            case Holding() | Degraded() | Resting():
                return replace(state, phase=Listing()), (List(),)
            case _:
                return look_again(state, now)  # a lost write shows in the listing
    if lost.was_steady:
        state = replace(state, short_watches=0)
    pause = retry_pause_s(max(state.failures, state.short_watches), draw)
    away = StoreAway(lost.cause, pause, lost.hint)
    if not lost.was_steady:
        state = replace(state, short_watches=state.short_watches + 1)
    if isinstance(state.phase, Contesting):
        # The store may have lost the claim, and its owner have written its lease again at the same revision.
        state, _ = look_again(state, state.phase.until)
    return replace(state, watch_at=now + pause, failures=state.failures + 1), (away,)


def look_again(state: LeaseState, until: float) -> Step:
    """Ask for all leases at that time, and choose anew."""
    return replace(state, phase=Resting(until)), ()


def store_back(state: LeaseState, actions: tuple[Action, ...], *, was: LeaseState) -> Step:
    """Note that the store answered; say so if it had not before."""
    if not was.failures:
        return state, actions
    return replace(state, failures=0), (StoreBack(), *actions)


def retry_pause_s(failures: int, draw: Draw) -> float:
    """Return 0.1 s doubling to RETRY_MAX_S, shortened by up to a half so that hosts do not come in step."""
    longest = min(0.1 * 2.0 ** min(failures, 16), RETRY_MAX_S)
    return longest * (1 - draw(500) / 1000)
