"""The state of all hosts and one store as a value, so that the checker can copy and compare it."""

from collections.abc import Callable

from msgspec import Struct, field

from pyflannel.model.lease import Claim, Lease
from pyflannel.model.lease_protocol import Action, Check, Event, LeaseChange, List, Unreadable, Wanted, Write
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import IpNetwork, NetworkConfig
from pyflannel.plan.lease.state import LeaseState, known_leases
from pyflannel.plan.lease.step import step

Request = List | Check | Write


class Entry(Struct, frozen=True, kw_only=True):
    """The content of a key of the store.

    Attributes:
        expires_at: time at which the store removes the key; None for never.
        writer: the host that wrote the key, or that the key represents. The protocol does not see the writer.
    """

    value: Lease | Unreadable | Claim
    expires_at: float | None
    writer: str


class StoreState(Struct, frozen=True, kw_only=True):
    """The store: its keys in the order of their revisions, and the history that clients may request.

    Attributes:
        config_revision: revision of the key with the network config, whose value is `World.network`.
    """

    entries: tuple[Entry, ...] = ()
    history: tuple[LeaseChange, ...] = ()
    revision: int = 1
    compacted: int = 0
    config_revision: int = 1


class HostState(Struct, frozen=True, kw_only=True):
    """One host, its daemon, and the messages between it and the store.

    Attributes:
        wanted: the subnet options of the daemon, also those of its next start.
        state: the protocol's state; None while the daemon is stopped.
        memory: the lease that the host uses; it outlives the daemon.
        requests: sent to the store in this order, not yet performed.
        answers: performed, not yet delivered.
        watch: the last revision that the watch has delivered; None without a watch.
        is_open: the watch has reported that it is open.
        orphan: a request of a killed daemon, which may still arrive at the store.
        is_unreachable: the store is unreachable from this host.
        skew_s: sum of the steps of the host's clock, in seconds.
        is_excused: since the last claim, it had a fault that may have prevented an answer.
        is_warned: it has reported that another host has, or may have, its address, identity or subnet.
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
    is_unreachable: bool = False
    skew_s: float = 0.0
    is_excused: bool = False
    is_warned: bool = False

    @property
    def subnet(self) -> IpNetwork | None:
        """The subnet with the addresses of this host's containers."""
        return self.memory.subnet if self.memory is not None else None


class World(Struct, frozen=True, kw_only=True):
    """The whole state at one moment. `faults` and `ticks` are the numbers of faults and of ticks that are
    still possible.
    """

    hosts: tuple[HostState, ...]
    store: StoreState
    network: NetworkConfig
    now: float = 0.0
    faults: int = 0
    ticks: int = 0


Transact = Callable[[StoreState, Request, float, str], tuple[StoreState, Event]]


class Protocol(Struct, frozen=True, kw_only=True):
    """The checked protocol: the real protocol, unless a test replaces a part by a known defect."""

    step: Callable[
        [LeaseState, Event, float, Callable[[int], int]], tuple[LeaseState, tuple[Action, ...]]
    ] = step
    known_leases: Callable[[LeaseSet, Event, LeaseState], LeaseSet] = known_leases
    transact: Transact
