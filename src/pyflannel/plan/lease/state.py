"""Where a host stands in the lease protocol."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import Action, Held, LeaseChange, PutLease, Wanted

Draw = Callable[[int], int]
"""`draw(n)` gives a number below n."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All leases were asked for."""


@dataclass(frozen=True, slots=True)
class Resting:
    """Nothing is asked until then; after it, all leases are."""

    until: float


@dataclass(frozen=True, slots=True)
class Putting:
    """A lease was asked for, at that time.

    Attributes:
        occupied: the subnets that were known not to be free.
    """

    put: PutLease
    sent_at: float
    occupied: tuple[IPv4Network, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contesting:
    """The holder of `lease` has until then to show that it lives.

    Attributes:
        asked_at: when we asked for the claim: it cannot have expired before its TTL from then.
        claim_revision: the claim's, once it is written; until then nobody was asked anything.
    """

    lease: Lease
    until: float
    asked_at: float
    claim_revision: int = 0


@dataclass(frozen=True, slots=True)
class Reidentifying:
    """We are the copy of a living host, and wait for an identity of our own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The lease is ours. A renewal is under way when `put` is given, or comes at `renew_at`."""

    renew_at: float | None
    put: PutLease | None = None
    sent_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Degraded:
    """The host runs on a subnet that the store gave to somebody else."""

    by: Lease


Phase = Listing | Resting | Putting | Contesting | Reidentifying | Holding | Degraded


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """All that the protocol knows.

    Attributes:
        held: what the host runs on; None before the first lease.
        revision: everything up to it was seen, by a listing or a watch; the watch goes on from it.
        is_watching: a watch is open.
        is_unsure: the watch was lost, or is opened later than what it goes on from; whether in the store that
            we know is to be checked once it says that it is open.
        is_checking: that is under way.
        watch_at: when to open the watch again.
        failures: how often in a row the store did not answer.
        answered: owners at our address that showed that they live.
        missed: changes of the subnet that we run on, or ask for, while an answer was awaited; the answer
            tells which of them came after it.
        wake_at: the time that was asked for last.
    """

    wanted: Wanted
    phase: Phase = Resting(0.0)
    held: Held | None = None
    revision: int = 0
    is_watching: bool = False
    is_unsure: bool = False
    is_checking: bool = False
    watch_at: float | None = None
    failures: int = 0
    answered: frozenset[str] = frozenset()
    missed: tuple[LeaseChange, ...] = ()
    wake_at: float | None = None

    @property
    def is_settled(self) -> bool:
        """The store's key names us."""
        return isinstance(self.phase, Holding)

    @property
    def is_sure(self) -> bool:
        """The store is the one that we know: in another one, a revision that we know may be another's."""
        return self.is_watching and not self.is_unsure and not self.is_checking


Step = tuple[LeaseState, tuple[Action, ...]]
"""Where a host stands after an event, and what is to be done."""
