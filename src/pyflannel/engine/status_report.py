"""The daemon's state as a Status, for whoever asks through a door."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network

from pyflannel.engine.supervisor import Supervisor
from pyflannel.model.forwarder import Stranger
from pyflannel.model.link import Link
from pyflannel.model.status import (
    BackendStatus,
    LeaseStatus,
    NetworkStatus,
    Notice,
    ReconcileStatus,
    RefusedPeer,
    Status,
    StoreStatus,
    StrangerStatus,
    UnderlayStatus,
)
from pyflannel.plan.backends import notes_on
from pyflannel.plan.describe import found
from pyflannel.plan.strangers import explain
from pyflannel.ports import Clock


def status_of(supervisor: Supervisor, *, version: str, store_url: str, clock: Clock) -> Status:
    """Return what is so at this moment."""
    planner, narrator, reconciler = supervisor.planner, supervisor.narrator, supervisor.reconciler
    inputs, counts = supervisor.inputs, reconciler.counts
    now = clock.now()
    held = supervisor.held
    waiting = supervisor.waiting_for
    lease = LeaseStatus(
        phase=narrator.phase,
        subnet=held.lease.subnet if held else None,
        is_reservation=held is not None and not held.lease.has_ttl,
        expires_in_s=max(0.0, held.expires_at - now) if held and held.expires_at is not None else None,
        since_s=now - narrator.since,
        holder=narrator.holder,
        losses=narrator.losses,
    )
    store = StoreStatus(
        url=store_url,
        is_connected=supervisor.has_store_answered and not (narrator.is_store_away or supervisor.is_stale),
        is_stale=supervisor.is_stale,
        since_s=now - narrator.store_since,
        last_error=narrator.store_error,
        last_error_age_s=None if narrator.store_error_at is None else now - narrator.store_error_at,
    )
    shared = _shared(supervisor)
    known = {planner.refused[subnet] for subnet in shared}
    warnings = [conflict.text for conflict in planner.conflicts if conflict.text not in known]
    if supervisor.is_stale:
        warnings.append("leases are stale: those known before this start; the store has not answered since")
    if narrator.shared is not None:
        warnings.append(narrator.shared)
    trouble = _config_trouble(supervisor)
    if trouble is not None and inputs.config is not None:
        warnings.append(trouble.text)
    refused_peers = _refused_peers(supervisor, shared)
    return Status(
        version=version,
        owner=supervisor.identity.owner,
        is_ready=waiting is None,
        waiting_for=waiting,
        network=NetworkStatus(
            text=supervisor.config_text,
            network=inputs.config.network if inputs.config else None,
            trouble=trouble,
        ),
        lease=lease,
        underlay=_underlay(supervisor),
        backend=_backend(supervisor),
        store=store,
        peers=planner.peer_count + sum(one.subnet not in planner.objections for one in refused_peers),
        leases=len(supervisor.leases),
        conflicts=len(planner.conflicts),
        refused_peers=refused_peers,
        fast_path=supervisor.fast_path.status(inputs.config),
        reconcile=ReconcileStatus(
            passes=counts.passes,
            failures=counts.failures,
            duration_s=counts.duration_s,
            repairs=counts.repairs,
            repairs_by_kind=dict(counts.repairs_by_kind),
            last_repair=counts.last_repair,
            refused=tuple(f"{found(r.operation)}; refused: {r.cause}" for r in reconciler.refused),
            held=tuple(found(operation) for operation in reconciler.delayed),
        ),
        warnings=tuple(warnings),
    )


def strangers_of(supervisor: Supervisor, strangers: Sequence[Stranger]) -> tuple[StrangerStatus, ...]:
    """Return what the leases of this moment say of whom the guard turned away."""
    held = supervisor.held
    return explain(strangers, supervisor.leases, held.lease.subnet if held else None)


def _underlay(supervisor: Supervisor) -> UnderlayStatus | None:
    underlay = supervisor.inputs.underlay
    if underlay is None:
        return None
    return UnderlayStatus(
        link=underlay.link, address=underlay.address, public_ip=underlay.public_ip, mtu=underlay.mtu
    )


def _backend(supervisor: Supervisor) -> BackendStatus | None:
    inputs = supervisor.inputs
    config, backend, host = inputs.config, inputs.backend, supervisor.planner.host(inputs)
    if config is None or backend is None:
        return None
    if host is None:
        return BackendStatus(type=config.backend_type, notes=backend.config_warnings)
    links = (item.name for item in backend.plan_host(host) if isinstance(item, Link))
    return BackendStatus(
        type=config.backend_type,
        link=next(links, None),
        mtu=backend.mtu(host),
        notes=notes_on(config, backend, host),
    )


def _config_trouble(supervisor: Supervisor) -> Notice | None:
    trouble = supervisor.config_trouble
    if trouble is None:
        return None
    is_first = supervisor.inputs.config is None
    how = "waits for" if is_first else "runs on with the network config as it was, waiting for"
    return replace(trouble, text=f"{how} {trouble.text}")


def _shared(supervisor: Supervisor) -> Mapping[IPv4Network, str]:
    """Return what to do about the peers that are refused as they share our address, where they said so."""
    narrator = supervisor.narrator
    if narrator.shared is None:
        return {}
    owners = supervisor.refused_owners
    return {subnet: narrator.shared for subnet, owner in owners.items() if owner == narrator.shared_with}


def _refused_peers(supervisor: Supervisor, shared: Mapping[IPv4Network, str]) -> tuple[RefusedPeer, ...]:
    leases = supervisor.leases.by_subnet
    return tuple(
        RefusedPeer(subnet=subnet, public_ip=lease.attributes.public_ip, reason=shared.get(subnet, reason))
        for subnet, reason in sorted(supervisor.planner.refused.items())
        if (lease := leases.get(subnet)) is not None
    )
