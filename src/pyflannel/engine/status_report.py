"""The daemon's state as a Status, for the API and flannelctl."""

from collections.abc import Iterator, Mapping, Sequence

from msgspec.structs import replace

from pyflannel.engine.condition import HostCondition, LeaseCondition
from pyflannel.engine.lease_log import EXHAUSTED_HINT, exhausted_text, holder_text, left_out_text, shared_text
from pyflannel.engine.supervisor import Supervisor
from pyflannel.errors import sentences
from pyflannel.model.forwarder import Stranger
from pyflannel.model.item import Item
from pyflannel.model.link import Link
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.probe import NarrowPath
from pyflannel.model.state import Refusal, State
from pyflannel.model.status import (
    BackendStatus,
    FirewallStatus,
    LeaseStatus,
    NetworkStatus,
    Notice,
    ReconcileStatus,
    RefusedPeer,
    Status,
    StoreStatus,
    StrangerStatus,
    UnderlayStatus,
    WireguardPeerStatus,
    WireguardStatus,
)
from pyflannel.model.tunnel_guard import GuardPeer, GuardTable
from pyflannel.model.wireguard import WireguardContact, WireguardDevice
from pyflannel.plan.backends import notes_on
from pyflannel.plan.diff import found
from pyflannel.plan.peers import place_of_subnet
from pyflannel.plan.strangers import explain
from pyflannel.ports import Clock


def status_of(supervisor: Supervisor, *, version: str, store_url: str, clock: Clock) -> Status:
    """Return the current status."""
    condition, planner, reconciler = supervisor.condition, supervisor.planner, supervisor.reconciler
    inputs, counts, now = condition.inputs, reconciler.counts, clock.now()
    waiting = supervisor.waiting_for
    shared = _shared(supervisor)
    refused = planner.refused if shared else {}
    known = {refused[subnet] for subnet in shared}
    warnings = [conflict.text for conflict in planner.conflicts if conflict.text not in known]
    if condition.store.is_stale:
        warnings.append("leases are stale: the store has not answered since the start of flanneld")
    if condition.leases.left_out:
        warnings.append(left_out_text(condition.leases))
    if condition.lease.shared is not None:
        warnings.append(shared_text(condition.lease.shared))
    trouble = _config_trouble(condition)
    if trouble is not None and inputs.config is not None:
        warnings.append(trouble.text)
    refused_peers = _refused_peers(supervisor, shared)
    return Status(
        version=version,
        owner=condition.identity.owner,
        host_name=supervisor.host_name,
        is_ready=waiting is None,
        waiting_for=waiting,
        network=NetworkStatus(
            text=condition.config.text,
            network=inputs.config.network if inputs.config and inputs.config.enable_ipv4 else None,
            ipv6_network=inputs.config.ipv6_network if inputs.config and inputs.config.enable_ipv6 else None,
            trouble=trouble,
        ),
        lease=_lease(condition, now),
        underlay=_underlay(condition),
        backend=_backend(supervisor),
        store=_store(condition, store_url, now),
        peers=planner.peer_count + sum(one.subnet not in planner.objections for one in refused_peers),
        leases=len(condition.leases),
        conflicts=len(planner.conflicts),
        refused_peers=refused_peers,
        fast_path=supervisor.fast_path.status(inputs.config),
        firewall=_firewall(supervisor),
        reconcile=ReconcileStatus(
            passes=counts.passes,
            failures=counts.failures,
            duration_s=counts.duration_s,
            pass_durations=counts.pass_durations,
            peer_durations=counts.peer_durations,
            repairs=counts.repairs,
            repairs_by_kind=dict(counts.repairs_by_kind),
            last_repair=counts.last_repair,
            refused=tuple(sentences(_refusal(one), one.hint) for one in reconciler.refused()),
            held=tuple(found(operation) for operation in reconciler.delayed()),
        ),
        warnings=tuple(warnings),
        path_mtus=tuple(_path_mtus(supervisor, now)),
    )


def _refusal(refused: Refusal) -> str:
    """Return an operation that did not take effect, and the cause."""
    return f"{found(refused.operation)}; refused: {refused.cause}"


def strangers_of(supervisor: Supervisor, strangers: Sequence[Stranger]) -> tuple[StrangerStatus, ...]:
    """Return the senders that the guard rejected, with their current leases."""
    held = supervisor.condition.held
    return explain(strangers, supervisor.condition.leases, held.lease.subnet if held else None)


def _lease(condition: HostCondition, now: float) -> LeaseStatus:
    held, lease = condition.held, condition.lease
    return LeaseStatus(
        phase=lease.phase,
        subnet=held.lease.subnet if held else None,
        ipv6_subnet=held.lease.ipv6_subnet if held else None,
        is_reservation=held is not None and not held.lease.has_ttl,
        expires_in_s=max(0.0, held.expires_at - now) if held and held.expires_at is not None else None,
        since_s=now - lease.since_s,
        holder=None if lease.taken is None else holder_text(lease.taken),
        trouble=_lease_trouble(lease),
        losses=lease.losses,
    )


def _lease_trouble(lease: LeaseCondition) -> Notice | None:
    if lease.unassigned is not None:
        return Notice(lease.unassigned.cause, lease.unassigned.hint)
    return None if lease.exhausted is None else Notice(exhausted_text(lease.exhausted), EXHAUSTED_HINT)


def _store(condition: HostCondition, url: str, now: float) -> StoreStatus:
    store = condition.store
    return StoreStatus(
        url=url,
        is_connected=store.has_answered and not (store.is_away or store.is_stale),
        is_stale=store.is_stale,
        since_s=now - store.since_s,
        last_error=store.error,
        last_error_age_s=None if store.error_s is None else now - store.error_s,
    )


def _underlay(condition: HostCondition) -> UnderlayStatus | None:
    underlay = condition.inputs.underlay
    if underlay is None:
        return None
    return UnderlayStatus(
        link=underlay.link,
        address=underlay.address,
        public_ip=underlay.public_ip,
        mtu=underlay.mtu,
        prefix_length=max(
            (prefix.prefixlen for prefix in underlay.on_link if underlay.address in prefix), default=None
        ),
        ipv6_address=underlay.ipv6_address,
        public_ipv6=underlay.public_ipv6,
        ipv6_link=None if underlay.ipv6_uplink is None else underlay.ipv6_uplink.link,
    )


def _backend(supervisor: Supervisor) -> BackendStatus | None:
    inputs = supervisor.condition.inputs
    config, backend = inputs.config, inputs.backend
    if config is None or backend is None:
        return None
    hosts = supervisor.planner.hosts(inputs)
    if not hosts:
        return BackendStatus(type=config.backend_type, notes=backend.config_warnings)
    host = hosts[0]
    (link, port), *others = [_tunnel(backend.plan_host(one)) for one in hosts]
    ipv6_link, ipv6_port = others[0] if others else (None, None)
    return BackendStatus(
        type=config.backend_type,
        link=link,
        mtu=min(map(backend.mtu, hosts)),
        notes=(
            *notes_on(config, backend, host),
            *supervisor.planner.change_notes,
            *supervisor.planner.family_notes,
        ),
        is_encrypted=all(one.is_encrypted for one in inputs.backends),
        port=backend.tunnel_port,
        ipv6_link=None if ipv6_link == link else ipv6_link,
        ipv6_port=None if ipv6_port == port else ipv6_port,
    )


_FILTER_KINDS: tuple[type[Item], ...] = (IptablesChain, NftTable, GuardTable, GuardPeer)
"""The kinds of objects of the packet filter."""


def _firewall(supervisor: Supervisor) -> FirewallStatus | None:
    config, plan = supervisor.condition.inputs.config, supervisor.planner.plan
    if config is None or plan is None:
        return None
    reconciler = supervisor.reconciler
    refused = (r for r in reconciler.refused() if isinstance(r.operation.subject, _FILTER_KINDS))
    delayed = (one for one in reconciler.delayed() if isinstance(one.subject, _FILTER_KINDS))
    return FirewallStatus(
        engine="nftables" if config.enable_nftables else "iptables",
        objects=tuple(item.title for kind in _FILTER_KINDS[:3] for item in plan.of_type(kind)),
        is_in_place=not reconciler.lacks(_FILTER_KINDS),
        missing=(
            *map(_refusal, refused),
            *(f"{found(one)}; another program keeps undoing it" for one in delayed),
        ),
    )


def _tunnel(plan: State) -> tuple[str | None, int | None]:
    """Return the name of the device in the plan of a host, and the UDP port of a device of wireguard."""
    links = (item.name for item in plan if isinstance(item, Link))
    ports = (item.port for item in plan if isinstance(item, WireguardDevice))
    return next(links, None), next(ports, None)


def _path_mtus(supervisor: Supervisor, now: float) -> Iterator[NarrowPath]:
    """Yield the paths to peers that carry only smaller packets than planned, ordered by subnet."""
    measured, inputs = supervisor.path_mtus.measured, supervisor.condition.inputs
    found = [(subnet, supervisor.planner.planned_peer(subnet), path) for subnet, path in measured.items()]
    for subnet, peer, path in sorted(found, key=lambda one: (one[0].version, one[0])):
        if peer is not None:
            yield NarrowPath(
                subnet=peer.subnet,
                ipv6_subnet=peer.ipv6_subnet if subnet.version == 6 else None,
                planned=path.planned,
                measured=path.measured,
                since_s=now - path.since_s,
                is_routed=subnet in inputs.path_mtus and not inputs.previous,
            )


def wireguard_of(supervisor: Supervisor, contacts: Sequence[WireguardContact]) -> WireguardStatus | None:
    """Return the WireGuard device and its contact with each peer; None with another backend."""
    inputs = supervisor.condition.inputs
    if inputs.backend is None or not inputs.backend.is_encrypted or not inputs.wireguard.key:
        return None
    by_key: dict[str, WireguardContact] = {}
    for one in contacts:
        other = by_key.get(one.public_key)
        by_key[one.public_key] = one if other is None else other.joined(one)
    return WireguardStatus(
        public_key=inputs.wireguard.key,
        is_in_kernel=inputs.wireguard.is_in_kernel,
        peers=tuple(
            WireguardPeerStatus(
                subnet=peer.subnet,
                public_key=contact.public_key,
                endpoint=contact.endpoint or None,
                handshake_age_s=contact.handshake_age_s,
                received=contact.received,
                sent=contact.sent,
            )
            for peer in supervisor.planner.peers
            if (part := peer.part(peer.subnet.version)) is not None
            and part.wireguard is not None
            and (contact := by_key.get(part.wireguard.public_key)) is not None
            and peer.subnet not in supervisor.planner.objections
        ),
    )


def _config_trouble(condition: HostCondition) -> Notice | None:
    trouble = condition.config.trouble
    if trouble is None:
        return None
    is_first = condition.inputs.config is None
    how = "waits for" if is_first else "keeps running with the last valid network config, waits for"
    return replace(trouble, text=f"{how} {trouble.text}")


def _shared(supervisor: Supervisor) -> Mapping[IpNetwork, str]:
    """Return the reason for each peer that is refused because it shares this host's address or identity."""
    shared = supervisor.condition.lease.shared
    if shared is None:
        return {}
    owners = supervisor.planner.refused_owners(supervisor.condition.leases)
    return {subnet: shared_text(shared) for subnet, owner in owners.items() if owner == shared.other}


def _refused_peers(supervisor: Supervisor, shared: Mapping[IpNetwork, str]) -> tuple[RefusedPeer, ...]:
    leases = supervisor.condition.leases.by_subnet
    return tuple(
        RefusedPeer(
            subnet=subnet,
            public_ip=lease.attributes.public_ip,
            reason=shared.get(subnet, reason),
            host_name=lease.attributes.host_name,
        )
        for subnet, reason in sorted(
            supervisor.planner.refused.items(), key=lambda one: place_of_subnet(one[0])
        )
        if (lease := leases.get(subnet)) is not None
    )
