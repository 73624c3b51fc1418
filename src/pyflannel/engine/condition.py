"""The host's condition in one network, as one value.

Log lines, the status, readiness and metrics are views of the condition. These views do not change the
condition, and events reach the data path without these views. The supervisor computes a new condition after
each event, and passes the inputs in it to the planner.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from pyflannel.model.docker import NO_DOCKER, DockerParts
from pyflannel.model.host import ALONE, Bridge, Surroundings, Underlay
from pyflannel.model.lease import Identity, Lease
from pyflannel.model.lease_protocol import (
    Acquired,
    Contested,
    Exhausted,
    Held,
    Lost,
    Renewed,
    Report,
    SharedAddress,
    StoreAway,
    StoreBack,
    Taken,
    Unassigned,
)
from pyflannel.model.lease_set import LeaseSet, SubnetMap
from pyflannel.model.network_config import IpAddress, IpNetwork, NetworkConfig
from pyflannel.model.status import LeasePhase, Notice
from pyflannel.model.wireguard import UNKNOWN, WireguardFacts
from pyflannel.plan.backends import Backend
from pyflannel.plan.generations import Generation


class Inputs(Struct, frozen=True, kw_only=True):
    """The inputs of a plan that may change while the host runs.

    Attributes:
        config: the network config in force; None until a config is known.
        backend: the backend of the config.
        previous: earlier configs that peers may still use to send, the newest first.
        is_prepared: True if this host can receive packets by `backend`; before that, this host sends by
            `previous`.
        underlay: the interface that carries the tunnel.
        lease: this host's lease.
        leases: the leases that are valid for the data path, including this host's.
        bridges: bridges of containers; only known if the fast path is used.
        has_fast_path: True if eBPF programs may carry packets.
        caches_flows: True if these programs may cache the firewall's decisions (mode flow).
        owner: identity of this host.
        surroundings: addresses and routes outside the overlay.
        wireguard: WireGuard key and implementation, for the wireguard backend.
        greeted: WireGuard keys of peers to which this host may send by `backend` while it has `previous`.
        path_mtus: the measured MTU of each path that carries only smaller packets than planned, by the peer's
            subnet in the address family of the path.
        docker: networks of Docker that the network plugin created.
    """

    config: NetworkConfig | None = None
    backend: Backend | None = None
    previous: tuple[Generation, ...] = ()
    is_prepared: bool = True
    underlay: Underlay | None = None
    lease: Lease | None = None
    leases: SubnetMap[Lease] = field(default_factory=SubnetMap)
    bridges: tuple[Bridge, ...] = ()
    has_fast_path: bool = False
    caches_flows: bool = False
    owner: str = ""
    surroundings: Surroundings = ALONE
    wireguard: WireguardFacts = UNKNOWN
    greeted: frozenset[str] = frozenset()
    path_mtus: Mapping[IpNetwork, int] = field(default_factory=dict)
    docker: DockerParts = NO_DOCKER

    @property
    def generations(self) -> tuple[Generation, ...]:
        """The configs of this host, in the order of their precedence for sending; empty while none is
        known.
        """
        if self.config is None or self.backend is None:
            return ()
        newest = Generation(self.config, self.backend)
        return (newest, *self.previous) if self.is_prepared else (*self.previous, newest)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The backends of `generations`, in the same order."""
        return tuple(one.backend for one in self.generations)

    @property
    def fast_path_config(self) -> NetworkConfig | None:
        """The config of the udp backend, even if it is a previous config; otherwise the config in force."""
        found = (one.config for one in self.generations if one.config.backend_type == "udp")
        return next(found, self.config)


_LOSSES = ("lost", "taken")
"""Phases in which the store does not contain this host's lease. Either phase may follow the other phase."""


class LeaseCondition(Struct, frozen=True, kw_only=True):
    """This host's lease.

    Attributes:
        phase: phase of the lease protocol.
        since_s: time at which the phase began, in seconds of the clock.
        taken: the latest report that another host holds this host's subnet; None otherwise.
        losses: number of times that this host's lease disappeared from the store.
        contested: the holder that was asked whether it is alive, until the answer is known.
        exhausted: the latest report that no subnet is free; None after a free subnet was found.
        unassigned: the latest report that Kubernetes assigns no usable subnet; None after it assigned one.
        shared: the latest report that another running host has this host's address or identity; None after
            that host stopped using it.
        is_sharer_known: True if the host in `shared` has had a lease since the report. When this lease is
            removed, that host no longer runs.
    """

    phase: LeasePhase = "acquiring"
    since_s: float
    taken: Taken | None = None
    losses: int = 0
    contested: Contested | None = None
    exhausted: Exhausted | None = None
    unassigned: Unassigned | None = None
    shared: SharedAddress | None = None
    is_sharer_known: bool = False

    def after(self, report: Report, now: float) -> "LeaseCondition":
        """Return the condition after a report of the lease protocol at time `now`."""
        match report:
            case Acquired() | Renewed():
                held = replace(self, taken=None, contested=None, exhausted=None, unassigned=None)
                return held._enter("held", now)
            case Lost():
                return self._enter("lost", now)
            case Taken():
                return replace(self, taken=report)._enter("taken", now)
            case Contested():
                return replace(self, contested=report)
            case SharedAddress():
                return replace(self, contested=None, shared=report, is_sharer_known=False)
            case Exhausted():
                return replace(self, contested=None, exhausted=report)
            case Unassigned():
                return replace(self, unassigned=report)
            case _:
                return self

    def after_owners(self, owners: Collection[str]) -> "LeaseCondition":
        """Return the condition after an update of the owners whose leases this host sees."""
        if self.shared is None:
            return self
        if self.shared.other in owners:
            return self if self.is_sharer_known else replace(self, is_sharer_known=True)
        return replace(self, shared=None, is_sharer_known=False) if self.is_sharer_known else self

    def _enter(self, phase: LeasePhase, now: float) -> "LeaseCondition":
        if phase == self.phase:
            return self
        is_loss = phase in _LOSSES and self.phase not in _LOSSES
        return replace(self, phase=phase, since_s=now, losses=self.losses + is_loss)


class StoreCondition(Struct, frozen=True, kw_only=True):
    """The store of leases.

    Attributes:
        is_away: True if the lease protocol cannot reach the store.
        since_s: time at which it became unreachable or reachable, in seconds of the clock.
        error: the latest failure, even if it is resolved.
        error_s: time of the latest failure, in seconds of the clock.
        has_answered: True if the store has returned the network config, or reported that there is no config.
        is_stale: True if the host uses the leases of its previous run, because the store has not answered
            yet.
    """

    since_s: float
    is_away: bool = False
    error: str | None = None
    error_s: float | None = None
    has_answered: bool = False
    is_stale: bool = False

    def after(self, report: Report, now: float) -> "StoreCondition":
        """Return the condition after a report of the lease protocol at time `now`."""
        match report:
            case StoreAway(cause):
                since_s = self.since_s if self.is_away else now
                return replace(self, is_away=True, since_s=since_s, error=cause, error_s=now)
            case StoreBack():
                return replace(self, is_away=False, since_s=now)
            case _:
                return self


class ConfigCondition(Struct, frozen=True, kw_only=True):
    """The network config, in force and in the store.

    Attributes:
        text: text of the config in force; None before the first config.
        revision: revision of the store's key, if the config in force is the config in the store.
        trouble: reason why the host does not use the config in the store.
        store_trouble: reason why the first config could not be read from the store.
    """

    text: str | None = None
    revision: int | None = None
    trouble: Notice | None = None
    store_trouble: str | None = None


class HostCondition(Struct, frozen=True, kw_only=True):
    """This host in one network.

    Attributes:
        identity: the identity (owner) in this host's lease.
        inputs: inputs of the plan.
        held: the current lease of this host, or its last lease if it has no lease now.
        leases: all known leases.
        obstacle: object or state that the backend waits for; "" if it can work.
    """

    identity: Identity
    inputs: Inputs
    lease: LeaseCondition
    store: StoreCondition
    config: ConfigCondition = field(default_factory=ConfigCondition)
    held: Held | None = None
    leases: LeaseSet = field(default_factory=LeaseSet)
    obstacle: str = ""


class PresentCondition:
    """The condition of this host at the current time. Each change replaces the value."""

    def __init__(self, condition: HostCondition) -> None:
        self.condition = condition

    @property
    def inputs(self) -> Inputs:
        """The inputs of the plan."""
        return self.condition.inputs

    def change(self, **changes: Any) -> None:
        """Replace attributes of the condition."""
        self.condition = replace(self.condition, **changes)

    def change_inputs(self, **changes: Any) -> None:
        """Replace some of the inputs of the plan."""
        self.change(inputs=replace(self.condition.inputs, **changes))

    def change_store(self, **changes: Any) -> None:
        """Replace attributes of the store's condition."""
        self.change(store=replace(self.condition.store, **changes))

    def change_config(self, **changes: Any) -> None:
        """Replace attributes of the network config's condition."""
        self.change(config=replace(self.condition.config, **changes))

    def note_stores(self, addresses: Iterable[IpAddress]) -> None:
        """Record the addresses of the store."""
        found = self.inputs.surroundings
        stores = tuple(one for one in addresses if not one.is_loopback)
        if stores != found.stores:
            self.change_inputs(surroundings=replace(found, stores=stores))
