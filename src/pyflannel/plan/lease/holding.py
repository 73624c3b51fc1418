"""The protocol of a host that has a lease: renewal, degradation, the changes that its watch delivers, and
lost requests.
"""

from msgspec.structs import replace

from pyflannel.model.lease import CLAIM_TTL_S, Claim, Lease, renewal_margin_s
from pyflannel.model.lease_protocol import (
    Action,
    Check,
    ClaimGone,
    ClaimSeen,
    Contested,
    DeleteClaim,
    Failed,
    Held,
    LeaseChange,
    LeaseGone,
    LeaseSeen,
    List,
    Lost,
    PutClaim,
    PutLease,
    Reidentify,
    Renewed,
    SharedAddress,
    StoreAway,
    StoreBack,
    Taken,
    Unreadable,
    Wanted,
    WatchLost,
)
from pyflannel.model.network_config import IpNetwork
from pyflannel.plan.lease.choice import claim_on, is_ours, merged_attributes, must_contest
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


def degrade(state: LeaseState, by: Lease, now: float) -> Step:
    """Keep using the subnet although another host holds it in the store, unless the host is configured to
    renumber.
    """
    if state.held is None:
        return replace(state, phase=Listing()), (List(),)
    taken = Taken(state.held.lease, by)
    if state.wanted.renumbers:
        wanted = replace(state.wanted, previous=None)
        return replace(state, wanted=wanted, held=None, phase=Listing()), (taken, List())
    return replace(state, phase=Degraded(by)), (taken,)


def contest(state: LeaseState, lease: Lease, now: float) -> Step:
    """Ask the holder of a lease that matches this host whether it is alive."""
    is_copied = state.held is not None and is_ours(lease, state.wanted)
    claim = Claim(
        subnet=lease.subnet,
        owner=state.wanted.owner,
        public_ip=state.wanted.attributes.public_ip,
        host_name=state.wanted.attributes.host_name,
        held_s=held_s(state, now) if is_copied else None,
    )
    phase = Contesting(lease=lease, until=now + CLAIM_TTL_S, asked_at=now)
    return replace(state, phase=phase), (Contested(lease), PutClaim(claim))


def held_s(state: LeaseState, now: float) -> float:
    """Return the number of seconds since this daemon first held a lease."""
    return 0.0 if state.runs_since is None else now - state.runs_since


def renew(state: LeaseState, now: float) -> Step:
    """Write the lease again, unless a renewal is in progress."""
    assert state.held is not None
    if isinstance(state.phase, Holding) and state.phase.put is not None:
        return state, ()
    put = claim_on(state.held.lease, state.wanted)
    return replace(state, phase=Holding(renew_at=None, put=put, sent_at=now)), (put,)


RETRY_MAX_S = 5.0
"""Longest pause in seconds between two attempts to reach the store."""


def on_failed(state: LeaseState, failed: Failed, now: float, draw: Draw) -> Step:
    """Schedule the next attempt of a failed request for whose answer the host waits, with growing pauses."""
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
            return replace(after, phase=Resting(now + pause)), (away,)  # the list shows the outcome
        case Contesting() if isinstance(failed.write, PutClaim):
            return replace(after, phase=Resting(now + pause)), (away,)
        case Holding(put=put) if put is not None and failed.write == put:
            return replace(after, phase=Holding(renew_at=now + pause)), (away,)
        case Holding(put=None) | Degraded() if isinstance(failed.write, Check):
            return replace(after, phase=Resting(now + pause)), (away,)  # a listing follows
        case _:
            return state, ()  # the host does not wait for this request, so nothing is repeated


def on_watch_lost(state: LeaseState, lost: WatchLost, now: float, draw: Draw) -> Step:
    """Watch again from the latest known revision; if the store has compacted it, request a list."""
    state = replace(state, is_watching=False, is_unsure=True)
    if lost.is_compacted:
        # The single changes are no longer available, so the host requests a list. The revisions of missed
        # changes may be from a time before the store lost its data.
        state = replace(state, missed=())
        match state.phase:
            case Listing():
                return state, ()
            case Holding() | Degraded() | Resting():
                return replace(state, phase=Listing()), (List(),)
            case _:
                return look_again(state, now)  # the list shows whether a lost write took effect
    if lost.was_steady:
        state = replace(state, short_watches=0)
    pause = retry_pause_s(max(state.failures, state.short_watches), draw)
    away = StoreAway(lost.cause, pause, lost.hint)
    if not lost.was_steady:
        state = replace(state, short_watches=state.short_watches + 1)
    if isinstance(state.phase, Contesting):
        # The store may have lost the claim, and the holder may have written its lease again at the same
        # revision.
        state, _ = look_again(state, state.phase.until)
    return replace(state, watch_at=now + pause, failures=state.failures + 1), (away,)


def look_again(state: LeaseState, until: float) -> Step:
    """Request a list at the given time, and then choose again."""
    return replace(state, phase=Resting(until)), ()


def store_back(state: LeaseState, actions: tuple[Action, ...], *, was: LeaseState) -> Step:
    """Record that the store answered; report it if the previous request failed."""
    if not was.failures:
        return state, actions
    return replace(state, failures=0), (StoreBack(), *actions)


def retry_pause_s(failures: int, draw: Draw) -> float:
    """Return the pause before a retry: 0.1 s, doubled for each failure up to RETRY_MAX_S, minus a random part
    of up to a half.

    With the random part, hosts do not retry at the same time.
    """
    longest = min(0.1 * 2.0 ** min(failures, 16), RETRY_MAX_S)
    return longest * (1 - draw(500) / 1000)


_COPY = "a copy of this host"


def on_seen(state: LeaseState, changes: tuple[LeaseChange, ...], now: float) -> Step:
    """Handle all changes that a watch delivered, in the order of their arrival."""
    actions: list[Action] = []
    if state.failures:
        state = replace(state, failures=0)
        actions.append(StoreBack())
    for change in changes:
        state, more = _changed(state, change, now)
        actions.extend(more)
    if state.is_unsure and not isinstance(state.phase, Listing):  # a list would show the loss of data
        checks = _check(state)
        state = replace(state, is_unsure=False, is_checking=bool(checks))
        actions.extend(checks)
    return state, tuple(actions)


def _check(state: LeaseState) -> tuple[Check, ...]:
    """Return the action that checks whether the store has lost its data while no watch was open.

    The watch would not show a loss if the store has already passed the latest known revision.
    """
    match state.phase:
        case Holding(put=None) if state.held is not None:
            return (Check(state.held.lease),)
        case Degraded(by):
            return (Check(by),)
        case _:
            return ()  # the next answer or list of the store shows a loss


def hold(state: LeaseState, held: Held, now: float) -> Step:
    """Enter Holding; then handle the changes that arrived while the host waited for the answer."""
    renew_at = None
    if held.expires_at is not None:
        renew_at = held.expires_at - renewal_margin_s(state.wanted.renew_margin_s, state.wanted.ttl_s)
    missed = state.missed
    state = replace(state, held=held, phase=Holding(renew_at=renew_at), missed=())
    actions: tuple[Action, ...] = ()
    is_due = renew_at is not None and renew_at <= now and not (state.is_unsure or state.is_checking)
    if is_due or held.lease.attributes != merged_attributes(held.lease.attributes, state.wanted):
        state, actions = renew(state, now)
    for change in missed:
        state, more = _changed(state, change, now)
        actions = (*actions, *more)
    return state, actions


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
    """Return whether the other host's lease may be gone: deleted, unreadable, or replaced by the lease of
    this host.
    """
    return isinstance(change, LeaseGone | Unreadable) or (
        isinstance(change, LeaseSeen) and is_ours(change.lease, wanted)
    )


def _subnet(change: LeaseChange) -> IpNetwork:
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
        case LeaseGone(gone, at, ipv6) | Unreadable(gone, at, ipv6) if gone == subnet and at > revision:
            if ipv6 != held.lease.ipv6_subnet:
                return state, ()  # another key of the IPv4 subnet, for example without IPv6
            return replace(state, phase=Listing()), (Lost(held.lease), List())
        case LeaseSeen(lease) if lease.subnet == subnet and lease.revision > revision:
            if holding.put is not None and lease.attributes == holding.put.lease.attributes:
                # The write is this host's renewal before its answer arrived, or a later change by an
                # operator.
                return replace(state, missed=(*state.missed, change)), ()
            return overwritten(state, held, lease, now)
        case ClaimSeen(claim) if claim.subnet == subnet:
            return _answer(state, claim, now)
        case _:
            return state, ()


def overwritten(state: LeaseState, held: Held, lease: Lease, now: float) -> Step:
    """React to a write to this host's key. The writer may be this host, an operator, a copy of this host,
    or another host.
    """
    if not is_ours(lease, state.wanted):
        return degrade(state, lease, now)
    if _is_by_a_copy(state, held, lease):
        return _meet_copy(state, lease, now)
    has_our_address = lease.attributes.public_ip == held.lease.attributes.public_ip
    if must_contest(lease, state.wanted) and not has_our_address:
        return replace(state, phase=Listing()), (List(),)
    return _adopt(state, held, lease, now)


def _is_by_a_copy(state: LeaseState, held: Held, lease: Lease) -> bool:
    """Return whether a running copy of this host wrote the lease, and not this host or an operator.

    An operator writes only reservations. A lease without an owner may be from an original flannel.
    """
    has_identity = lease.attributes.owner is not None
    return has_identity and not state.is_in_doubt and lease.has_ttl and held.lease.has_ttl


def _meet_copy(state: LeaseState, lease: Lease, now: float) -> Step:
    """Report a running copy of this host, and find out with a claim which copy has held the lease for
    longer.
    """
    shared = SharedAddress(lease.subnet, _COPY, lease.attributes.host_text, is_ours=None)
    state, actions = contest(state, lease, now)
    return state, (shared, *actions)


def _adopt(state: LeaseState, held: Held, lease: Lease, now: float) -> Step:
    """Use a lease that was written in this host's name, by a write whose answer was lost, or by an
    operator.
    """
    state = replace(state, is_in_doubt=False)
    adopted = Held(lease=lease, expires_at=held.expires_at if lease.has_ttl else None)
    state, actions = hold(state, adopted, now)
    if lease.has_ttl:
        state, renewal = renew(state, now)  # after a renewal, the expiry of the lease is known
        return state, (*actions, *renewal)
    return state, (Renewed(adopted), *actions)  # an operator made the lease a reservation


def _answer(state: LeaseState, claim: Claim, now: float) -> Step:
    """Answer a claim by writing this host's lease again, so that the write of the claimant fails."""
    is_of_copy = claim.owner == state.wanted.owner
    if is_of_copy and claim.held_s is None and claim.public_ip == state.wanted.attributes.public_ip:
        return state, (DeleteClaim(claim),)  # the claim is from this host's previous run
    is_renewing = isinstance(state.phase, Holding) and state.phase.put is not None
    if is_renewing or state.is_unsure or state.is_checking:
        # The claimant may have read the lease after the renewal in progress, so another renewal is needed. If
        # the store has lost its data, the running check shows this.
        return replace(state, missed=(*state.missed, ClaimSeen(claim))), ()
    if is_of_copy and claim.held_s is not None and claim.held_s > held_s(state, now):
        return _yield_lease(state, claim.subnet, claim.host_text)
    state, renewal = renew(state, now)
    answer = (*renewal, DeleteClaim(claim))
    if not is_of_copy and claim.public_ip != state.wanted.attributes.public_ip:
        return state, answer  # the claim was about the lease of an earlier holder of the subnet
    shared = SharedAddress(claim.subnet, _COPY if is_of_copy else claim.owner, claim.host_text, is_ours=True)
    return state, (*answer, shared)


def _changed_while_contesting(
    state: LeaseState, contest: Contesting, change: LeaseChange, now: float
) -> Step:
    match change:
        case ClaimGone(subnet, revision):
            is_answer = subnet == contest.lease.subnet and 0 < contest.claim_revision < revision
            is_answer = is_answer and now < contest.asked_at + CLAIM_TTL_S  # then the claim expires
        case LeaseSeen(lease) if lease.subnet == contest.lease.subnet:
            is_answer = lease.revision > contest.lease.revision
            if is_answer and state.held is not None and is_ours(lease, state.wanted):
                # A copy of this host may write before it reads the claim. The copy answers by deleting the
                # claim.
                return replace(state, phase=replace(contest, lease=lease)), ()
        case LeaseGone(subnet) if subnet == contest.lease.subnet:
            return replace(state, phase=Listing()), (List(),)
        case _:
            is_answer = False
    return _answered(state, contest) if is_answer else (state, ())


def _answered(state: LeaseState, contest: Contesting) -> Step:
    attributes = contest.lease.attributes
    owner = attributes.owner or ""
    state = replace(state, answered=state.answered | {owner})
    if owner == state.wanted.owner:
        return _yield_lease(state, contest.lease.subnet, attributes.host_text)
    shared = SharedAddress(contest.lease.subnet, owner, attributes.host_text, is_ours=False)
    return replace(state, phase=Listing()), (shared, List())


def _yield_lease(state: LeaseState, subnet: IpNetwork, host: str) -> Step:
    """Leave the lease and the identity to the original of this copy."""
    shared = SharedAddress(subnet, "the original of this copy", host, is_ours=False)
    return replace(state, phase=Reidentifying()), (shared, Reidentify())
