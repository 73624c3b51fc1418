"""Which leases a host knows of, after each event of the lease protocol."""

from pyflannel.model.lease_protocol import Event, Listed, Seen
from pyflannel.model.lease_set import LeaseSet
from pyflannel.plan.lease.state import LeaseState


def know(leases: LeaseSet, event: Event, state: LeaseState) -> LeaseSet:
    """Return what is known after `event`; `leases` itself when it says nothing new.

    `state` is where the protocol stood when the event came. A listing that took longer to arrive than what
    an open watch has told since is old news: nothing would ever tell again what came after it.
    """
    match event:
        case Listed(revision=revision) if _is_overtaken(revision, state):
            return leases
        case Listed(leases=listed, revision=revision):
            return LeaseSet.of(listed, revision)
        case Seen(changes):
            return leases.after(changes)
        case _:
            return leases


def _is_overtaken(revision: int, state: LeaseState) -> bool:
    return state.is_watching and not state.is_unsure and revision < state.revision
