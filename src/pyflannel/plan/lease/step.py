"""The lease protocol as a pure function: from a state and an event to the next state and actions.

    Started ─▶ Listing ─▶ Putting ─▶ Holding ─▶ (renews)
                 ▲  │        │          │  lost: deleted, expired, unreadable
                 │  ▼        ▼          ▼
              Resting ◀── conflict   Listing, on the same subnet ─▶ Putting ─▶ Holding
                 ▲  │                   │ another host has it
                 │  ▼                   ▼
              Contesting ─▶ …        Degraded: keeps the subnet, until it is free again

The caller performs the actions and reports each result as an event. The model checker explores the same
function. The subnet of a host (`held`) changes only if an operator orders it, because its containers have
addresses of this subnet.

The store decides which host owns a subnet, because each write is conditional on the revision that it
replaces. A lost answer has no effect, because the next list shows the outcome of the write.

This module handles timers and orders of the operator. `plan.lease.answers` handles the store's answers.
`plan.lease.holding` handles the changes that the watch delivers, failed requests and lost watches.
"""

from typing import assert_never

from msgspec.structs import replace

from pyflannel.model.lease_protocol import (
    Action,
    Checked,
    Conflicted,
    Event,
    Failed,
    List,
    Listed,
    Ordered,
    Seen,
    Started,
    Wake,
    Wanted,
    Watch,
    WatchLost,
    Woke,
    Wrote,
)
from pyflannel.plan.lease.answers import on_checked, on_conflicted, on_listed, on_wrote
from pyflannel.plan.lease.choice import claim_on, lacks_ipv6
from pyflannel.plan.lease.holding import degrade, hold, on_failed, on_seen, on_watch_lost, renew, store_back
from pyflannel.plan.lease.state import (
    Contesting,
    Degraded,
    Draw,
    Holding,
    LeaseState,
    Listing,
    Putting,
    Reidentifying,
    Resting,
    Step,
)


def step(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
    """Advance the protocol by one event.

    `draw(n)` returns a random number below n. Never raises. An event that does not fit the phase is a stale
    answer and is ignored.
    """
    following, actions = _react(state, event, now, draw)
    at = _next_deadline(following)
    if at is not None and at != following.wake_at:
        actions = (*actions, Wake(at))
    return replace(following, wake_at=at), actions


def _react(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
    match event:
        case Started():
            return replace(state, phase=Listing()), (List(),)
        case Woke():
            return _woken(replace(state, wake_at=None), now)
        case Listed():
            return on_listed(state, event, now, draw)
        case Checked(lease, current):
            return on_checked(state, lease, current, now)
        case Seen(changes, revision):
            return on_seen(replace(state, revision=max(state.revision, revision)), changes, now)
        case WatchLost():
            return on_watch_lost(state, event, now, draw)
        case Wrote(write, revision):
            return store_back(*on_wrote(state, write, revision, now), was=state)
        case Conflicted(write, current):
            return store_back(*on_conflicted(state, write, current, now, draw), was=state)
        case Failed():
            return on_failed(state, event, now, draw)
        case Ordered(wanted):
            return _ordered(state, wanted, now)
        case _:
            assert_never(event)


def _next_deadline(state: LeaseState) -> float | None:
    deadlines = [state.watch_at]
    match state.phase:
        case Resting(until) | Contesting(until=until):
            deadlines.append(until)
        case Holding(renew_at=renew_at, put=None):
            deadlines.append(renew_at)
        case _:
            pass
    return min((at for at in deadlines if at is not None), default=None)


def _woken(state: LeaseState, now: float) -> Step:
    actions: list[Action] = []
    if state.watch_at is not None and state.watch_at <= now:
        state = replace(state, watch_at=None, is_watching=True, is_unsure=True)
        actions.append(Watch(state.revision))
    match state.phase:
        case Resting(until) if until <= now:
            return replace(state, phase=Listing()), (*actions, List())
        case Contesting(until=until, claim_revision=0) if until <= now:
            return replace(state, phase=Listing()), (*actions, List())  # the claim was not written
        case Contesting(lease=lease, until=until) if until <= now:
            # The claim expired without an answer. If the holder is running, it has written its lease after
            # the claim, and the following conditional write fails.
            put = claim_on(lease, state.wanted)
            return replace(state, phase=Putting(put, now)), (*actions, put)
        case Holding(renew_at=renew_at, put=None) if renew_at is not None and renew_at <= now:
            if not state.is_sure:
                return replace(state, phase=Listing()), (*actions, List())
            state, renewal = renew(state, now)
            return state, (*actions, *renewal)
        case _:
            return state, tuple(actions)


def _ordered(state: LeaseState, wanted: Wanted, now: float) -> Step:
    is_another = wanted.attributes != state.wanted.attributes
    has_another_config = wanted.config_revision != state.wanted.config_revision
    state = replace(state, wanted=wanted)
    match state.phase:
        case Reidentifying():
            return replace(state, phase=Listing()), (List(),)
        case Holding(put=None) if state.held is not None and lacks_ipv6(state.held.lease, wanted):
            return replace(state, phase=Listing()), (List(),)  # the lease needs an IPv6 subnet in addition
        case Resting() if has_another_config and state.held is None:
            return replace(state, phase=Listing()), (List(),)
        case Contesting() if is_another:
            return replace(state, phase=Listing()), (List(),)  # the lease may no longer match this host
        case Holding(put=None) if state.held is not None and state.is_sure:
            return hold(state, state.held, now)
        case Degraded(by) if wanted.renumbers:
            return degrade(state, by, now)
        case _:
            return state, ()
