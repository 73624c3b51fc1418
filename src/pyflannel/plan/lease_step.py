"""The lease protocol, as a pure step: a state and an event give the next state and what is to be done.

    Started ─▶ Listing ─▶ Putting ─▶ Holding ─▶ (renews for ever)
                 ▲  │        │          │  lost: deleted, expired, unreadable
                 │  ▼        ▼          ▼
              Resting ◀── conflict   Listing, on the same subnet ─▶ Putting ─▶ Holding
                 ▲  │                   │ somebody else has it
                 │  ▼                   ▼
              Contesting ─▶ …        Degraded: runs on, until the subnet is free again

Whoever performs the actions answers each with an event; a checker can explore the very same step. What a
host runs on (`held`) changes only by an order: its containers have addresses of it.

The store decides who owns a subnet: each write names the revision that it replaces. An answer that is lost
does no harm, as the next look at the key shows what came of the write.
"""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network
from typing import assert_never

from pyflannel.model.lease import CLAIM_TTL_S, Claim, Lease
from pyflannel.model.lease_protocol import (
    Acquired,
    Action,
    ClaimGone,
    ClaimSeen,
    Conflicted,
    Contested,
    DeleteClaim,
    Event,
    Failed,
    Held,
    LeaseChange,
    LeaseGone,
    LeaseSeen,
    List,
    Listed,
    Lost,
    Ordered,
    PutClaim,
    PutLease,
    Reidentify,
    Renewed,
    Seen,
    SharedAddress,
    Started,
    StoreAway,
    StoreBack,
    Taken,
    Unreadable,
    Wake,
    Wanted,
    Watch,
    WatchLost,
    Woke,
    Wrote,
)
from pyflannel.plan.lease_choice import (
    Choice,
    Contest,
    NoneFree,
    TakenBy,
    choose,
    claim_on,
    is_ours,
    keep,
    must_contest,
)
from pyflannel.plan.lease_state import (
    Contesting,
    Degraded,
    Holding,
    LeaseState,
    Listing,
    Putting,
    Reidentifying,
    Resting,
)

RETRY_MAX_S = 5.0
"""Longest pause between two tries at a store that does not answer."""

JITTER_S = 0.25
"""Longest pause after a lost race, so that the losers do not meet again."""

EXHAUSTED_S = 10.0
"""Pause before another look when no subnet was free."""


Draw = Callable[[int], int]
Step = tuple[LeaseState, tuple[Action, ...]]


def step(state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
    """Advance the protocol by one event.

    `draw(n)` gives a number below n. Never raises: what makes no sense in a phase is an old answer, and
    changes nothing.
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
            return _listed(state, event, now, draw)
        case Seen(changes, revision):
            return _seen(replace(state, revision=max(state.revision, revision)), changes, now)
        case WatchLost():
            return _watch_lost(state, event, now, draw)
        case Wrote(write, revision):
            return _store_back(*_wrote(state, write, revision, now), was=state)
        case Conflicted(write, current):
            return _store_back(*_conflicted(state, write, current, now, draw), was=state)
        case Failed():
            return _failed(state, event, now, draw)
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


# Time.


def _woken(state: LeaseState, now: float) -> Step:
    actions: list[Action] = []
    if state.watch_at is not None and state.watch_at <= now:
        state = replace(state, watch_at=None, is_watching=True)
        actions.append(Watch(state.revision))
    match state.phase:
        case Resting(until) if until <= now:
            return replace(state, phase=Listing()), (*actions, List())
        case Contesting(until=until, claim_revision=0) if until <= now:
            return replace(state, phase=Listing()), (*actions, List())  # nobody was asked
        case Contesting(lease=lease, until=until) if until <= now:
            # The claim expired unanswered. If the holder lives after all, it wrote its lease when it saw
            # the claim, and this write loses.
            put = claim_on(lease, state.wanted)
            return replace(state, phase=Putting(put, now)), (*actions, put)
        case Holding(renew_at=renew_at, put=None) if renew_at is not None and renew_at <= now:
            state, renewal = _renew(state, now)
            return state, (*actions, *renewal)
        case _:
            return state, tuple(actions)


# The listing, and what is chosen from it.


def _listed(state: LeaseState, listed: Listed, now: float, draw: Draw) -> Step:
    if not isinstance(state.phase, Listing):
        return state, ()
    actions: list[Action] = [StoreBack()] if state.failures else []
    state = replace(state, failures=0)
    if not state.is_watching:
        # Not the later of both: a store that lost its data counts anew.
        state = replace(state, revision=listed.revision, watch_at=None)
    if state.held is not None:
        following, chosen = _listed_while_running(state, state.held, listed, now)
    else:
        choice, before = choose(listed, state.wanted, state.answered, draw)
        actions.extend(before)
        following, chosen = _begin(state, choice, now)
    # Who runs on nothing yet watches from here only when it has its lease: of a thousand hosts that start at
    # once, each would else be told of every other while all of them want to write.
    if following.held is not None or not isinstance(following.phase, Putting):
        following, watch = _watch(following)
        actions.extend(watch)
    return following, (*actions, *chosen)


def _watch(state: LeaseState) -> Step:
    """Watch from what was seen last, unless a watch is open, or waits to be opened again."""
    if state.is_watching or state.watch_at is not None:
        return state, ()
    return replace(state, is_watching=True), (Watch(state.revision),)


def _listed_while_running(state: LeaseState, held: Held, listed: Listed, now: float) -> Step:
    subnet = held.lease.subnet
    claims = tuple(ClaimSeen(claim) for claim in listed.claims if claim.subnet == subnet)
    state = replace(state, missed=(*claims, *state.missed))
    standing = next((lease for lease in listed.leases if lease.subnet == subnet), None)
    if standing is not None and _is_untouched(standing, held, state.wanted):
        return _hold(state, held, now)
    return _begin(state, keep(subnet, listed, state.wanted), now)


def _is_untouched(standing: Lease, held: Held, wanted: Wanted) -> bool:
    """Return whether nothing happened to our lease while we did not look.

    The revision alone does not tell: a store that lost its data gives it out again.
    """
    return standing.revision == held.lease.revision and is_ours(standing, wanted)


def _begin(state: LeaseState, choice: Choice, now: float) -> Step:
    match choice:
        case PutLease():
            return replace(state, phase=Putting(choice, now)), (choice,)
        case Contest(lease):
            claim = Claim(
                subnet=lease.subnet,
                owner=state.wanted.identity.owner,
                public_ip=state.wanted.attributes.public_ip,
            )
            phase = Contesting(lease=lease, until=now + CLAIM_TTL_S, asked_at=now)
            return replace(state, phase=phase), (Contested(lease), PutClaim(claim))
        case TakenBy(lease):
            return _degrade(state, lease, now)
        case NoneFree():
            return replace(state, phase=Resting(now + EXHAUSTED_S)), ()
        case _:
            assert_never(choice)


def _degrade(state: LeaseState, by: Lease, now: float) -> Step:
    if state.held is None:
        return replace(state, phase=Listing()), (List(),)
    taken = Taken(state.held.lease, by)
    if state.wanted.renumbers:
        wanted = replace(state.wanted, previous=None)
        return replace(state, wanted=wanted, held=None, phase=Listing()), (taken, List())
    return replace(state, phase=Degraded(by)), (taken,)


# Answers.


def _wrote(state: LeaseState, write: Action, revision: int, now: float) -> Step:
    match state.phase, write:
        case Putting(put, sent_at), PutLease() if write == put:
            if state.held is None and not state.wanted.network.admits(put.lease.subnet):
                return replace(state, phase=Listing()), (List(),)  # the config changed meanwhile
            held = _held(put, revision, sent_at)
            state, watch = _watch(replace(state, answered=frozenset()))
            state, actions = _hold(state, held, now)
            return state, (Acquired(held), *watch, *actions)
        case Holding(put=put, sent_at=sent_at), PutLease() if write == put:
            held = _held(write, revision, sent_at)
            state, actions = _hold(state, held, now)
            return state, (Renewed(held), *actions)
        case Contesting() as contest, PutClaim(claim) if claim.subnet == contest.lease.subnet:
            phase = replace(contest, claim_revision=revision, until=now + CLAIM_TTL_S)
            return replace(state, phase=phase), ()
        case _:
            return state, ()


def _held(put: PutLease, revision: int, sent_at: float) -> Held:
    """Return what a write gave us; the TTL counts from before it, so that we never believe too long."""
    lease = replace(put.lease, revision=revision, has_ttl=put.ttl_s is not None)
    return Held(lease=lease, expires_at=None if put.ttl_s is None else sent_at + put.ttl_s)


def _hold(state: LeaseState, held: Held, now: float) -> Step:
    """Enter Holding; then see what was missed while the answer was awaited."""
    renew_at = None
    if held.expires_at is not None:
        renew_at = held.expires_at - min(state.wanted.renew_margin_s, state.wanted.ttl_s / 2)
    missed = state.missed
    state = replace(state, held=held, phase=Holding(renew_at=renew_at), missed=())
    actions: tuple[Action, ...] = ()
    if held.lease.attributes != state.wanted.attributes:
        state, actions = _renew(state, now)
    for change in missed:
        state, more = _changed(state, change, now)
        actions = (*actions, *more)
    return state, actions


def _conflicted(
    state: LeaseState, write: Action, current: Lease | Claim | None, now: float, draw: Draw
) -> Step:
    match state.phase, write:
        case Putting(put), PutLease() if write == put:
            return _look_again(state, now + JITTER_S * draw(1000) / 1000)
        case Contesting(), PutClaim():
            return _look_again(state, now + CLAIM_TTL_S)  # somebody else contests it: wait for the outcome
        case Holding(put=put), PutLease() if write == put and state.held is not None:
            if isinstance(current, Lease):
                return _overwritten(state, state.held, current, now)
            return replace(state, phase=Listing()), (Lost(state.held.lease), List())
        case _:
            return state, ()


def _look_again(state: LeaseState, until: float) -> Step:
    return replace(state, phase=Resting(until)), ()


def _failed(state: LeaseState, failed: Failed, now: float, draw: Draw) -> Step:
    pause = _pause(state.failures, draw)
    away = StoreAway(failed.cause, pause)
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
        case _:
            return state, ()  # nobody waits for it, and nothing would be tried again


def _pause(failures: int, draw: Draw) -> float:
    """Return 0.1 s doubling to RETRY_MAX_S, shortened by up to a half so that hosts do not come in step."""
    longest = min(0.1 * 2.0 ** min(failures, 16), RETRY_MAX_S)
    return longest * (1 - draw(500) / 1000)


def _store_back(state: LeaseState, actions: tuple[Action, ...], *, was: LeaseState) -> Step:
    if not was.failures:
        return state, actions
    return replace(state, failures=0), (StoreBack(), *actions)


def _watch_lost(state: LeaseState, lost: WatchLost, now: float, draw: Draw) -> Step:
    state = replace(state, is_watching=False)
    if lost.is_compacted:
        # What happened meanwhile is no longer to be had one by one: look at all of it.
        match state.phase:
            case Listing():
                return state, ()
            case Holding() | Degraded() | Resting():
                return replace(state, phase=Listing()), (List(),)
            case _:
                return _look_again(state, now)  # a lost write shows in the listing
    pause = _pause(state.failures, draw)
    away = StoreAway(lost.cause, pause)
    return replace(state, watch_at=now + pause, failures=state.failures + 1), (away,)


# What the watch sees.


def _seen(state: LeaseState, changes: tuple[LeaseChange, ...], now: float) -> Step:
    actions: list[Action] = []
    if state.failures:
        state = replace(state, failures=0)
        actions.append(StoreBack())
    for change in changes:
        state, more = _changed(state, change, now)
        actions.extend(more)
    return state, tuple(actions)


def _changed(state: LeaseState, change: LeaseChange, now: float) -> Step:
    match state.phase:
        case Holding() as holding if state.held is not None:
            return _changed_while_holding(state, holding, state.held, change, now)
        case Contesting() as contest:
            return _changed_while_contesting(state, contest, change, now)
        case Degraded(by):
            if _subnet(change) == by.subnet and _is_given_back(change, state.wanted):
                return replace(state, phase=Listing()), (List(),)
            return state, ()
        case Putting(put) if _subnet(change) == put.lease.subnet:
            return replace(state, missed=(*state.missed, change)), ()
        case Listing() | Resting() if state.held is not None and _subnet(change) == state.held.lease.subnet:
            return replace(state, missed=(*state.missed, change)), ()
        case _:
            return state, ()


def _is_given_back(change: LeaseChange, wanted: Wanted) -> bool:
    """Return whether the lease that stands in our way may be gone: deleted, spoilt, or ours now."""
    return isinstance(change, LeaseGone | Unreadable) or (
        isinstance(change, LeaseSeen) and is_ours(change.lease, wanted)
    )


def _subnet(change: LeaseChange) -> IPv4Network:
    match change:
        case LeaseSeen(lease):
            return lease.subnet
        case ClaimSeen(claim):
            return claim.subnet
        case LeaseGone(subnet) | Unreadable(subnet) | ClaimGone(subnet):
            return subnet


def _changed_while_holding(
    state: LeaseState, holding: Holding, held: Held, change: LeaseChange, now: float
) -> Step:
    subnet, revision = held.lease.subnet, held.lease.revision
    match change:
        case LeaseGone(gone, at) if gone == subnet and at > revision:
            return replace(state, phase=Listing()), (Lost(held.lease), List())
        case Unreadable(gone, at) if gone == subnet and at > revision:
            return replace(state, phase=Listing()), (Lost(held.lease), List())
        case LeaseSeen(lease) if lease.subnet == subnet and lease.revision > revision:
            if holding.put is not None and lease.attributes == holding.put.lease.attributes:
                # Our own renewal, seen before it was answered, or what an operator made of it since.
                return replace(state, missed=(*state.missed, change)), ()
            return _overwritten(state, held, lease, now)
        case ClaimSeen(claim) if claim.subnet == subnet:
            return _answer(state, claim, now)
        case _:
            return state, ()


def _overwritten(state: LeaseState, held: Held, lease: Lease, now: float) -> Step:
    """See who wrote to our key: somebody in our name, a copy of this host, or another host."""
    if not is_ours(lease, state.wanted):
        return _degrade(state, lease, now)
    has_our_address = lease.attributes.public_ip == held.lease.attributes.public_ip
    if must_contest(lease, state.wanted) and not has_our_address:
        return replace(state, phase=Listing()), (List(),)
    return _adopt(state, held, lease, now)


def _adopt(state: LeaseState, held: Held, lease: Lease, now: float) -> Step:
    """Take over what somebody wrote to our key in our name: a lost answer of ours, or an operator."""
    adopted = Held(lease=lease, expires_at=held.expires_at if lease.has_ttl else None)
    state, actions = _hold(state, adopted, now)
    if lease.has_ttl:
        state, renewal = _renew(state, now)  # so that we know when it ends
        return state, (*actions, *renewal)
    return state, (Renewed(adopted), *actions)  # made a reservation: it stays one


def _answer(state: LeaseState, claim: Claim, now: float) -> Step:
    """Show a newcomer that we live: our lease is written anew, so that its take-over loses in any case."""
    mine = state.wanted.identity.owner, state.wanted.attributes.public_ip
    if (claim.owner, claim.public_ip) == mine:
        return state, (DeleteClaim(claim),)  # left over from our own life before this one
    if isinstance(state.phase, Holding) and state.phase.put is not None:
        # The renewal under way may have been done before the newcomer looked: it needs another one.
        return replace(state, missed=(*state.missed, ClaimSeen(claim))), ()
    state, renewal = _renew(state, now)
    other = "a copy of this host" if claim.owner == mine[0] else claim.owner
    shared = SharedAddress(claim.subnet, other, str(claim.public_ip))
    return state, (*renewal, DeleteClaim(claim), shared)


def _renew(state: LeaseState, now: float) -> Step:
    assert state.held is not None
    if isinstance(state.phase, Holding) and state.phase.put is not None:
        return state, ()
    put = claim_on(state.held.lease, state.wanted)
    return replace(state, phase=Holding(renew_at=None, put=put, sent_at=now)), (put,)


def _changed_while_contesting(
    state: LeaseState, contest: Contesting, change: LeaseChange, now: float
) -> Step:
    match change:
        case ClaimGone(subnet, revision):
            is_answer = subnet == contest.lease.subnet and 0 < contest.claim_revision < revision
            is_answer = is_answer and now < contest.asked_at + CLAIM_TTL_S  # later, it is its own end
        case LeaseSeen(lease):
            is_answer = lease.subnet == contest.lease.subnet and lease.revision > contest.lease.revision
        case LeaseGone(subnet) if subnet == contest.lease.subnet:
            return replace(state, phase=Listing()), (List(),)
        case _:
            is_answer = False
    return _answered(state, contest) if is_answer else (state, ())


def _answered(state: LeaseState, contest: Contesting) -> Step:
    attributes = contest.lease.attributes
    owner = attributes.owner.owner if attributes.owner is not None else ""
    if owner == state.wanted.identity.owner:
        shared = SharedAddress(contest.lease.subnet, "the host we are a copy of", str(attributes.public_ip))
        return replace(state, phase=Reidentifying()), (shared, Reidentify())
    shared = SharedAddress(contest.lease.subnet, owner, str(attributes.public_ip))
    state = replace(state, answered=state.answered | {owner}, phase=Listing())
    return state, (shared, List())


# Orders.


def _ordered(state: LeaseState, wanted: Wanted, now: float) -> Step:
    is_another = wanted.attributes != state.wanted.attributes
    state = replace(state, wanted=wanted)
    match state.phase:
        case Reidentifying():
            return replace(state, phase=Listing()), (List(),)
        case Contesting() if is_another:
            return replace(state, phase=Listing()), (List(),)  # it may look like ours no longer
        case Holding(put=None) if state.held is not None:
            return _hold(state, state.held, now)
        case Degraded(by) if wanted.renumbers:
            return _degrade(state, by, now)
        case _:
            return state, ()
