"""What the watch sees, and what it means to a host in each phase."""

from dataclasses import replace
from ipaddress import IPv4Network

from pyflannel.model.lease import CLAIM_TTL_S, Claim, Lease, renewal_margin_s
from pyflannel.model.lease_protocol import (
    Action,
    Check,
    ClaimGone,
    ClaimSeen,
    DeleteClaim,
    Held,
    LeaseChange,
    LeaseGone,
    LeaseSeen,
    List,
    Lost,
    Reidentify,
    Renewed,
    SharedAddress,
    StoreBack,
    Unreadable,
    Wanted,
)
from pyflannel.plan.lease.choice import is_ours, must_contest, said
from pyflannel.plan.lease.holding import contest, degrade, held_s, renew
from pyflannel.plan.lease.state import (
    Contesting,
    Degraded,
    Holding,
    LeaseState,
    Listing,
    Putting,
    Reidentifying,
    Resting,
    Step,
)

_COPY = "a copy of this host"


def on_seen(state: LeaseState, changes: tuple[LeaseChange, ...], now: float) -> Step:
    """Take all that a watch saw, in its order."""
    actions: list[Action] = []
    if state.failures:
        state = replace(state, failures=0)
        actions.append(StoreBack())
    for change in changes:
        state, more = _changed(state, change, now)
        actions.extend(more)
    if state.is_unsure and not isinstance(state.phase, Listing):  # the listing will tell
        checks = _check(state)
        state = replace(state, is_unsure=False, is_checking=bool(checks))
        actions.extend(checks)
    return state, tuple(actions)


def _check(state: LeaseState) -> tuple[Check, ...]:
    """Ask whether the store, where the watch goes on, is still the one that we know.

    One that lost its data, and has grown past the revision that we have seen, would never tell us.
    """
    match state.phase:
        case Holding(put=None) if state.held is not None:
            return (Check(state.held.lease),)
        case Degraded(by):
            return (Check(by),)
        case _:
            return ()  # an answer that shows it is under way, or a listing will be


def hold(state: LeaseState, held: Held, now: float) -> Step:
    """Enter Holding; then see what was missed while the answer was awaited."""
    renew_at = None
    if held.expires_at is not None:
        renew_at = held.expires_at - renewal_margin_s(state.wanted.renew_margin_s, state.wanted.ttl_s)
    missed = state.missed
    state = replace(state, held=held, phase=Holding(renew_at=renew_at), missed=())
    actions: tuple[Action, ...] = ()
    is_due = renew_at is not None and renew_at <= now and not (state.is_unsure or state.is_checking)
    if is_due or held.lease.attributes != said(held.lease.attributes, state.wanted):
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
            return overwritten(state, held, lease, now)
        case ClaimSeen(claim) if claim.subnet == subnet:
            return _answer(state, claim, now)
        case _:
            return state, ()


def overwritten(state: LeaseState, held: Held, lease: Lease, now: float) -> Step:
    """See who wrote to our key: somebody in our name, a copy of this host, or another host."""
    if not is_ours(lease, state.wanted):
        return degrade(state, lease, now)
    if _is_by_a_copy(state, held, lease):
        return _meet_copy(state, lease, now)
    has_our_address = lease.attributes.public_ip == held.lease.attributes.public_ip
    if must_contest(lease, state.wanted) and not has_our_address:
        return replace(state, phase=Listing()), (List(),)
    return _adopt(state, held, lease, now)


def _is_by_a_copy(state: LeaseState, held: Held, lease: Lease) -> bool:
    """Return whether a living copy of this host wrote our lease: it was not us, nor an operator.

    What an operator writes is a reservation. A lease without identity may be of an original flannel.
    """
    has_identity = lease.attributes.owner is not None
    return has_identity and not state.is_in_doubt and lease.has_ttl and held.lease.has_ttl


def _meet_copy(state: LeaseState, lease: Lease, now: float) -> Step:
    """Share identity and address with a living copy: ask it which of us has run on the lease for longer."""
    shared = SharedAddress(lease.subnet, _COPY, str(lease.attributes.public_ip), is_ours=None)
    state, actions = contest(state, lease, now)
    return state, (shared, *actions)


def _adopt(state: LeaseState, held: Held, lease: Lease, now: float) -> Step:
    """Take over what somebody wrote to our key in our name: a lost answer of ours, or an operator."""
    state = replace(state, is_in_doubt=False)
    adopted = Held(lease=lease, expires_at=held.expires_at if lease.has_ttl else None)
    state, actions = hold(state, adopted, now)
    if lease.has_ttl:
        state, renewal = renew(state, now)  # so that we know when it ends
        return state, (*actions, *renewal)
    return state, (Renewed(adopted), *actions)  # made a reservation: it stays one


def _answer(state: LeaseState, claim: Claim, now: float) -> Step:
    """Show a newcomer that we live: our lease is written anew, so that its take-over loses in any case."""
    public_ip = str(claim.public_ip)
    is_of_copy = claim.owner == state.wanted.owner
    if is_of_copy and claim.held_s is None and claim.public_ip == state.wanted.attributes.public_ip:
        return state, (DeleteClaim(claim),)  # left over from our own life before this one
    is_renewing = isinstance(state.phase, Holding) and state.phase.put is not None
    if is_renewing or state.is_unsure or state.is_checking:
        # The renewal under way may have been done before the newcomer looked: it needs another one. And in
        # another store the lease at our revision may be the one that is claimed: that is being asked.
        return replace(state, missed=(*state.missed, ClaimSeen(claim))), ()
    if is_of_copy and claim.held_s is not None and claim.held_s > held_s(state, now):
        return _give_way(state, claim.subnet, public_ip)
    state, renewal = renew(state, now)
    answer = (*renewal, DeleteClaim(claim))
    if not is_of_copy and claim.public_ip != state.wanted.attributes.public_ip:
        return state, answer  # it was about another lease, of a host that had the subnet before
    shared = SharedAddress(claim.subnet, _COPY if is_of_copy else claim.owner, public_ip, is_ours=True)
    return state, (*answer, shared)


def _changed_while_contesting(
    state: LeaseState, contest: Contesting, change: LeaseChange, now: float
) -> Step:
    match change:
        case ClaimGone(subnet, revision):
            is_answer = subnet == contest.lease.subnet and 0 < contest.claim_revision < revision
            is_answer = is_answer and now < contest.asked_at + CLAIM_TTL_S  # later, it is its own end
        case LeaseSeen(lease) if lease.subnet == contest.lease.subnet:
            is_answer = lease.revision > contest.lease.revision
            if is_answer and state.held is not None and is_ours(lease, state.wanted):
                # A copy of this host, which may write before it sees the claim, answers by deleting that.
                return replace(state, phase=replace(contest, lease=lease)), ()
        case LeaseGone(subnet) if subnet == contest.lease.subnet:
            return replace(state, phase=Listing()), (List(),)
        case _:
            is_answer = False
    return _answered(state, contest) if is_answer else (state, ())


def _answered(state: LeaseState, contest: Contesting) -> Step:
    attributes = contest.lease.attributes
    owner = attributes.owner or ""
    public_ip = str(attributes.public_ip)
    state = replace(state, answered=state.answered | {owner})
    if owner == state.wanted.owner:
        return _give_way(state, contest.lease.subnet, public_ip)
    shared = SharedAddress(contest.lease.subnet, owner, public_ip, is_ours=False)
    return replace(state, phase=Listing()), (shared, List())


def _give_way(state: LeaseState, subnet: IPv4Network, public_ip: str) -> Step:
    """Leave lease and identity to the host that this one is a copy of."""
    shared = SharedAddress(subnet, "the host that this one is a copy of", public_ip, is_ours=False)
    return replace(state, phase=Reidentifying()), (shared, Reidentify())
