"""A world of hosts and one store, as a value: what the checker moves from, compares and keeps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from pyflannel.model.lease import Claim, Lease
from pyflannel.model.lease_protocol import Action, Check, Event, LeaseChange, List, Unreadable, Wanted, Write
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import NetworkConfig
from pyflannel.plan.lease.state import LeaseState, known_leases
from pyflannel.plan.lease.step import step

Request = List | Check | Write


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What stands at a key of the store.

    Attributes:
        expires_at: when the store drops it; None for never.
        writer: the host whose write this is, or for whom it stands; the protocol never sees it.
    """

    value: Lease | Unreadable | Claim
    expires_at: float | None
    writer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """The store: its keys in the order of their revisions, and its history as far as anybody may ask.

    Attributes:
        config_revision: of the key with the network config, which `World.network` is.
    """

    entries: tuple[Entry, ...] = ()
    history: tuple[LeaseChange, ...] = ()
    revision: int = 1
    compacted: int = 0
    config_revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """One host, its daemon, and what is under way between it and the store.

    Attributes:
        wanted: what the daemon asks for, or will when it starts again.
        state: the protocol's state; None while the daemon is down.
        memory: the lease that the host runs on; it outlives the daemon.
        requests: sent to the store in this order, not yet performed.
        answers: performed, not yet delivered.
        watch: the revision up to which the watch has delivered; None while there is none.
        is_open: the watch has said that it is open.
        orphan: a request of a daemon that died, which may still arrive at the store.
        is_away: the store cannot be reached from here.
        skew_s: how far the host's clock was stepped.
        is_excused: had a fault that may have kept it from answering, since it was last asked.
        is_warned: has ever reported that another host has, or may have, its address, identity or subnet.
    """

    name: str
    wanted: Wanted
    state: LeaseState | None = None
    memory: Lease | None = None
    leases: LeaseSet = field(default_factory=LeaseSet)
    requests: tuple[Request, ...] = ()
    answers: tuple[Event, ...] = ()
    watch: int | None = None
    is_open: bool = False
    wake_at: float | None = None
    orphan: Write | None = None
    is_away: bool = False
    skew_s: float = 0.0
    is_excused: bool = False
    is_warned: bool = False

    @property
    def subnet(self) -> IPv4Network | None:
        """The subnet that the containers of this host have addresses of."""
        return self.memory.subnet if self.memory is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything at one moment; `faults` and `ticks` say how much may still happen."""

    hosts: tuple[HostState, ...]
    store: StoreState
    network: NetworkConfig
    now: float = 0.0
    faults: int = 0
    ticks: int = 0


Transact = Callable[[StoreState, Request, float, str], tuple[StoreState, Event]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What is checked: the real thing, unless a test puts a known defect in its place."""

    step: Callable[
        [LeaseState, Event, float, Callable[[int], int]], tuple[LeaseState, tuple[Action, ...]]
    ] = step
    known_leases: Callable[[LeaseSet, Event, LeaseState], LeaseSet] = known_leases
    transact: Transact
