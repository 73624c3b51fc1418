"""A host that runs on a lease: writing it anew, and what becomes of it when somebody else has it."""

from dataclasses import replace

from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import List, Taken
from pyflannel.plan.lease.choice import claim_on
from pyflannel.plan.lease.state import Degraded, Holding, LeaseState, Listing, Step


def degrade(state: LeaseState, by: Lease, now: float) -> Step:
    """Run on although somebody else has the subnet, unless the host was told to renumber then."""
    if state.held is None:
        return replace(state, phase=Listing()), (List(),)
    taken = Taken(state.held.lease, by)
    if state.wanted.renumbers:
        wanted = replace(state.wanted, previous=None)
        return replace(state, wanted=wanted, held=None, phase=Listing()), (taken, List())
    return replace(state, phase=Degraded(by)), (taken,)


def renew(state: LeaseState, now: float) -> Step:
    """Write the lease anew, unless that is under way."""
    assert state.held is not None
    if isinstance(state.phase, Holding) and state.phase.put is not None:
        return state, ()
    put = claim_on(state.held.lease, state.wanted)
    return replace(state, phase=Holding(renew_at=None, put=put, sent_at=now)), (put,)
