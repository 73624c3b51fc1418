"""What the store answers, and what a host does about it."""

from dataclasses import replace
from ipaddress import IPv4Network
from typing import assert_never

from pyflannel.model.lease import CLAIM_TTL_S, Claim, Lease
from pyflannel.model.lease_protocol import (
    Acquired,
    Action,
    ClaimSeen,
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
from pyflannel.plan.lease.choice import (
    Choice,
    Contest,
    NoneFree,
    TakenBy,
    choose,
    choose_free,
    is_ours,
    keep,
    occupied,
    said,
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
"""Longest pause after a lost race, so that the losers do not meet again."""

CONFIG_S = 5.0
"""Pause before another look when the network config is not what we know; its news end the pause."""

BUSY_S = 0.1
"""A store that takes longer than that to answer has much to do."""

IN_TURN_MAX_S = 5.0
"""Longest pause between the first lease and the watch."""

EXHAUSTED_S = 10.0
"""Pause before another look when no subnet was free."""


def on_listed(state: LeaseState, listed: Listed, now: float, draw: Draw) -> Step:
    """Choose from all leases there are, if that is what the host waits for."""
    if not isinstance(state.phase, Listing):
        return state, ()
    actions: list[Action] = []
    if not state.is_watching:
        # Not the later of both: a store that lost its data counts anew. What was missed is in the listing, or
        # the watch, which goes on from there, delivers it again.
        state = replace(state, revision=listed.revision, watch_at=None, is_unsure=False, missed=())
    elif state.is_unsure and listed.revision < state.revision:
        # So the watch that is to open has to go on from there: what it begins at may be of another store.
        state = replace(state, revision=listed.revision)
        actions.append(Watch(listed.revision))
    else:
        state = replace(state, is_unsure=False)
    state = replace(state, is_checking=False)
    if state.held is not None:
        following, chosen = _listed_while_running(state, state.held, listed, now)
    elif listed.revision < (state.wanted.config_revision or 0):
        # Older than the config: others may have taken subnets of another length since.
        following, chosen = look_again(state, now + JITTER_S)
    else:
        choice, before = choose(listed, state.wanted, state.answered, draw)
        actions.extend(before)
        following, chosen = _begin(state, choice, now, taken=tuple(occupied(listed)))
    if not isinstance(following.phase, Putting | Contesting):  # else the answer to the write will tell
        following, chosen = store_back(following, chosen, was=state)
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


def _watch_in_turn(state: LeaseState, took_s: float, now: float) -> Step:
    """Watch, the later the longer the store took to answer: there are many who want to write.

    Each of them that watches already is told of every other, which keeps the others waiting: among them who
    lost a race, and has as long to wait again. What a host was not told by then comes at once.
    """
    if took_s < BUSY_S or state.is_watching or state.watch_at is not None:
        return _watch(state)
    return replace(state, watch_at=now + min(2 * took_s, IN_TURN_MAX_S)), ()


def _listed_while_running(state: LeaseState, held: Held, listed: Listed, now: float) -> Step:
    subnet = held.lease.subnet
    claims = tuple(ClaimSeen(claim) for claim in listed.claims if claim.subnet == subnet)
    state = replace(state, missed=(*claims, *state.missed))
    standing = next((lease for lease in listed.leases if lease.subnet == subnet), None)
    if standing is not None and _is_untouched(standing, held, state.wanted):
        return hold(state, held, now)
    # Made anew, the lease says what it said.
    wanted = replace(state.wanted, attributes=said(held.lease.attributes, state.wanted))
    return _begin(state, keep(subnet, listed, wanted, state.answered), now)


def _is_untouched(standing: Lease, held: Held, wanted: Wanted) -> bool:
    """Return whether nothing happened to our lease while we did not look.

    The revision alone does not tell: a store that lost its data gives it out again.
    """
    return standing.revision == held.lease.revision and is_ours(standing, wanted)


def _begin(state: LeaseState, choice: Choice, now: float, *, taken: tuple[IPv4Network, ...] = ()) -> Step:
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
    """Run on what was written, or wait for the answer to a claim."""
    match state.phase, write:
        case Putting(put, sent_at), PutLease() if write == put:
            if state.held is None and not state.wanted.network.admits(put.lease.subnet):
                return replace(state, phase=Listing()), (List(),)  # the config changed meanwhile
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
    """Look at all leases when the store has lost one that we know, and the watch will not tell."""
    state = replace(state, is_checking=False)
    match state.phase:
        case Holding(put=None) if state.held is not None and state.held.lease == lease:
            pass
        case Holding(put=None) if state.held is not None:
            return hold(state, state.held, now)  # the watch has told of another since
        case Degraded(by) if by == lease:
            pass
        case _:
            return state, ()
    if current is not None and current.revision > max(state.revision, lease.revision):
        return state, ()
    if current is not None and _is_same(current, lease):
        if isinstance(state.phase, Holding) and state.held is not None:
            return hold(state, state.held, now)  # orders and claims that came meanwhile have waited for this
        return state, ()
    return replace(state, phase=Listing()), (List(),)


def _is_same(current: Lease, lease: Lease) -> bool:
    """Return whether a lease is the one that we know; the revision alone may have been given out twice."""
    ours, theirs = lease.attributes, current.attributes
    return (current.revision, theirs.owner, theirs.public_ip) == (lease.revision, ours.owner, ours.public_ip)


def _held(put: PutLease, revision: int, sent_at: float) -> Held:
    """Return what a write gave us; the TTL counts from before it, so that we never believe too long."""
    lease = replace(put.lease, revision=revision, has_ttl=put.ttl_s is not None)
    return Held(lease=lease, expires_at=None if put.ttl_s is None else sent_at + put.ttl_s)


def on_conflicted(
    state: LeaseState, write: Action, current: Lease | Claim | None, now: float, draw: Draw
) -> Step:
    """Choose again after a lost race; or see who wrote to the key of a lease that is held."""
    match state.phase, write:
        case Putting(put, occupied=taken), PutLease() if write == put:
            if isinstance(current, Lease) and _may_draw_again(state, put, current):
                taken = (*taken, current.subnet)
                choice, said = choose_free(taken, state.wanted, draw)
                state, actions = _begin(state, choice, now, taken=taken)
                return state, (*said, *actions)
            if write.config_revision is not None and current is None:
                # Another config stands there: its news are on their way, or have come meanwhile.
                is_known = state.wanted.config_revision != write.config_revision
                return look_again(state, now + (0.0 if is_known else CONFIG_S))
            return look_again(state, now + JITTER_S * draw(1000) / 1000)
        case Contesting(), PutClaim():
            return look_again(state, now + CLAIM_TTL_S)  # somebody else contests it: wait for the outcome
        case Holding(put=put), PutLease() if write == put and state.held is not None:
            if isinstance(current, Lease):
                return overwritten(state, state.held, current, now)
            return replace(state, phase=Listing()), (Lost(state.held.lease), List())
        case _:
            return state, ()


def _may_draw_again(state: LeaseState, put: PutLease, current: Lease) -> bool:
    """Return whether the last listing will do: somebody was faster at one of many free subnets.

    So of a thousand hosts that start at once, the hundred that draw what others draw need not be told of all
    of them again. Under another config the listing may lack what overlaps a subnet of another length.
    """
    return (
        put.expected == 0
        and state.held is None
        and put.config_revision == state.wanted.config_revision
        and not is_ours(current, state.wanted)
    )
