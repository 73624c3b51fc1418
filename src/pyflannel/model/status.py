"""The status of a daemon.

`None` means unknown, or not available so far. Names with `_s` are in seconds. The JSON of the control socket
and of `flannelctl status --json` has the same structure and names: a field may be added, never renamed.
"""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, NamedTuple

from msgspec import Struct, field

from pyflannel.errors import sentences
from pyflannel.model.fast_path import Feature
from pyflannel.model.forwarder import StrangerReason
from pyflannel.model.lease import LeaseEntry, PeerEntry, host_text
from pyflannel.model.network_config import AnyAddress, AnyNetwork, IpAddress, IpNetwork
from pyflannel.model.probe import NarrowPath


class Notice(Struct, frozen=True):
    """One line of text. `hint` is the remedy; it is empty if there is no remedy."""

    text: str
    hint: str = ""

    def __str__(self) -> str:
        return sentences(self.text, self.hint)


STRANGERS_SHOWN = 64
"""Maximum number of rejected senders in a status; the senders of the most packets are kept."""

LeasePhase = Literal["acquiring", "held", "lost", "taken"]
"""The phases: acquiring a subnet; holding it; acquiring it again after it was lost; another host holds it."""

FastPathMode = Literal["safe", "flow", "off", "user-space", "uncached"]

BY_PROGRAMS: frozenset[FastPathMode] = frozenset({"safe", "flow"})
"""The modes in which eBPF programs receive packets."""

SignatureFault = Literal[
    "unsigned",
    "invalid",
    "not_allowed",
    "replayed",
    "changed_key",
    "held_subnet",
    "too_many_keys",
    "not_ours",
]
"""Reasons why a host does not accept a lease.

`changed_key`: the owner of the lease had another key before. `held_subnet`: the holder of the subnet has
another key. `not_ours`: the lease names this host as the holder, but this host has not signed it. See
`plan.lease.trust.FAULTS`.
"""

REFUSED_LEASES_SHOWN = 64
"""Maximum number of refused leases in a status: leases that are still in the store are first, then the
latest refusals."""


class NetworkStatus(Struct, frozen=True, kw_only=True):
    """The network config in force, and the range of the network.

    Attributes:
        trouble: reason why the host does not use the config in the store, and the remedy.
    """

    text: str | None = None
    network: IPv4Network | None = None
    ipv6_network: IPv6Network | None = None
    trouble: Notice | None = None


class LeaseStatus(Struct, frozen=True, kw_only=True):
    """The lease of this host.

    Attributes:
        subnet: the current or last subnet; packets use it in every phase of the lease.
        ipv6_subnet: the current or last IPv6 subnet; None if the network has no IPv6.
        is_reservation: True if an operator wrote the lease without a TTL, so that it never expires.
        expires_in_s: seconds until the store deletes the lease, unless it is renewed.
        since_s: seconds since the start of the phase.
        holder: the host that holds the subnet in the phase `taken`.
        trouble: reason why there is no lease, and the remedy; None if this is unknown or if there is a lease.
        losses: number of times that the lease was lost or taken since flanneld started.
    """

    phase: LeasePhase | None = None
    subnet: AnyNetwork | None = None
    ipv6_subnet: IPv6Network | None = None
    is_reservation: bool = False
    expires_in_s: float | None = None
    since_s: float | None = None
    holder: str | None = None
    trouble: Notice | None = None
    losses: int = 0


class UnderlayStatus(Struct, frozen=True, kw_only=True):
    """The interface that carries the tunnel. Peers send to `public_ip`.

    Attributes:
        prefix_length: number of bits of the prefix of `address`; None if it is unknown.
        ipv6_link: interface that carries IPv6, if it differs from `link`; None otherwise.
    """

    link: str
    address: AnyAddress
    public_ip: AnyAddress
    mtu: int
    prefix_length: int | None = None
    ipv6_address: IPv6Address | None = None
    public_ipv6: IPv6Address | None = None
    ipv6_link: str | None = None


class BackendStatus(Struct, frozen=True, kw_only=True):
    """The backend: its type, its device, and the MTU of a container in bytes.

    Attributes:
        link: name of the device; None if the backend has no device.
        is_encrypted: True if all packets to other hosts are encrypted.
        notes: notes about unusual properties of the backend on this host, one line each.
        port: UDP port on which this host receives tunnel packets; None if there is no tunnel.
        ipv6_link: device that carries IPv6, if it is another one; None otherwise.
        ipv6_port: UDP port of the tunnel for IPv6, if it is another one; None otherwise.
        received: number of bytes of inner packets received from peers since the counters started; None if the
            backend does not count them.
        sent: number of bytes of inner packets sent to peers, counted like `received`.
    """

    type: str
    link: str | None = None
    mtu: int | None = None
    notes: tuple[str, ...] = ()
    is_encrypted: bool = False
    port: int | None = None
    ipv6_link: str | None = None
    ipv6_port: int | None = None
    received: int | None = None
    sent: int | None = None


class WireguardPeerStatus(Struct, frozen=True, kw_only=True):
    """A WireGuard peer of this host.

    Attributes:
        endpoint: current destination of packets to the peer; None if it is unknown.
        handshake_age_s: seconds since the latest handshake; None if there was no handshake.
        received: number of bytes received from the peer since the device was created.
        sent: number of bytes sent to the peer since the device was created.
    """

    subnet: AnyNetwork
    public_key: str
    endpoint: str | None = None
    handshake_age_s: float | None = None
    received: int = 0
    sent: int = 0


class WireguardStatus(Struct, frozen=True, kw_only=True):
    """The WireGuard device of this host and its peers, in the order of their subnets.

    Attributes:
        is_in_kernel: True if the kernel encrypts; False if wireguard-go does.
    """

    public_key: str
    is_in_kernel: bool
    peers: tuple[WireguardPeerStatus, ...] = ()


class RefusedPeer(Struct, frozen=True, kw_only=True):
    """A host with a lease to which this host does not send, and the reason; `host_name` is None if it is
    unknown.
    """

    subnet: AnyNetwork
    public_ip: AnyAddress
    reason: str
    host_name: str | None = None

    @property
    def host_text(self) -> str:
        """Text that names the host: its host name, if known, and its address."""
        return host_text(self.public_ip, self.host_name)


class StoreRequests(Struct, frozen=True, kw_only=True):
    """The number of requests to the store since flanneld started, for one operation and result.

    Attributes:
        operation: `get`, `list`, `write`, `watch` or `time_to_live`.
        result: `ok`, `error`, or `conflict` if the condition of a write failed.
    """

    operation: str
    result: str
    count: int


class StoreStatus(Struct, frozen=True, kw_only=True):
    """The store of leases.

    Attributes:
        url: URL without secrets.
        is_stale: True if the leases are the leases of the previous run, because the store has not answered
            yet.
        since_s: seconds since the store became reachable or unreachable.
        last_error: the latest failure, even if it is resolved.
        last_error_age_s: seconds since the latest failure.
        answer_s: duration in seconds of the latest answered request; None if no request was answered yet.
        answer_age_s: seconds since the store last answered a request or announced a change.
        requests: requests since flanneld started.
        lost_watches: number of watches that ended, by reason: `compacted` if the store no longer had the
            history, otherwise `lost`.
    """

    url: str
    is_connected: bool = False
    is_stale: bool = False
    since_s: float | None = None
    last_error: str | None = None
    last_error_age_s: float | None = None
    answer_s: float | None = None
    answer_age_s: float | None = None
    requests: tuple[StoreRequests, ...] = ()
    lost_watches: Mapping[str, int] = field(default_factory=dict)


class StoreTimes(Struct, frozen=True, kw_only=True):
    """The durations of requests that the daemon has just sent to the store.

    Attributes:
        answered_s: duration in seconds of each answered request, in the order of the requests.
        failure: reason why a request was not answered; None if all requests were answered.
        remedy: the remedy for an operator, if the request failed before its deadline; None otherwise.
    """

    answered_s: tuple[float, ...] = ()
    failure: str | None = None
    remedy: str | None = None


class FirewallStatus(Struct, frozen=True, kw_only=True):
    """The packet filter of this host.

    Attributes:
        engine: program whose rules the network config selects.
        objects: the chains and tables of flanneld: the planned objects; without a daemon, the existing
            objects.
        is_in_place: True if all rules of flanneld are as planned; None if flanneld does not respond.
        missing: rules of flanneld that are not as planned, with the reason, one line each.
        drops: rules and policies of other programs, settings for forwarding, and bridges that are down, which
            drop packets of the overlay, one line each; None if they are unknown. flannelctl evaluates them;
            the daemon does not.
    """

    engine: Literal["iptables", "nftables"]
    objects: tuple[str, ...] = ()
    is_in_place: bool | None = None
    missing: tuple[str, ...] = ()
    drops: tuple[str, ...] | None = None


class ForwarderStatus(Struct, frozen=True, kw_only=True):
    """The process that moves packets in user space, with its counters by name.

    Attributes:
        restrictions: rights that this process gave up: `own_user`, `no_capabilities`, `filtered_calls`.
    """

    pid: int | None = None
    is_attached: bool = False
    restrictions: tuple[str, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)


class FastPathStatus(Struct, frozen=True, kw_only=True):
    """The path of packets: through programs in the kernel, or through user space.

    Attributes:
        mode: "user-space" or, with vxlan, "uncached" if the kernel should have the programs but cannot;
            "off" if the fast path is disabled.
        reason: reason why the kernel does not carry the packets.
        hint: the remedy, if there is one.
        counters: number of packets by their outcome in the eBPF programs; empty without programs.
        byte_counters: number of bytes of inner packets, by the same outcomes.
        lacking: features that were absent or hidden at the latest probe.
        remarks: differences between kernel and plan that no repair can remove.
        uncached: in mode flow, the reasons why packets do not bypass the firewall.
    """

    mode: FastPathMode
    reason: str | None = None
    hint: str | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    byte_counters: Mapping[str, int] = field(default_factory=dict)
    lacking: tuple[Feature, ...] = ()
    remarks: tuple[Notice, ...] = ()
    uncached: tuple[str, ...] = ()


class Carried(NamedTuple):
    """Packets, or bytes of inner packets, of a tunnel in each direction."""

    received: int
    sent: int


def carried_by_programs(by_outcome: Mapping[str, int]) -> Carried:
    """Return the packets or bytes that the programs of the fast path moved between host and peers.

    A received packet with a cached flow also has the outcome `cached_in`, and is counted once.
    """
    sent = by_outcome.get("encapsulated", 0) + by_outcome.get("cached_out", 0)
    return Carried(received=by_outcome.get("decapsulated", 0), sent=sent)


class StrangerStatus(Struct, frozen=True, kw_only=True):
    """A sender whose tunnel packets the guard drops (`model.forwarder.Stranger`), with an explanation.

    Attributes:
        cause: the reason for the drop according to the current leases, in one line.
        hint: the remedy.
    """

    address: AnyAddress
    reason: StrangerReason
    packets: int
    age_s: float
    inner_source: AnyAddress
    inner_destination: AnyAddress
    cause: str
    hint: str


class RefusedLease(Struct, frozen=True, kw_only=True):
    """A lease whose signature this host does not accept.

    Attributes:
        cause: the reason, in one line.
        hint: the remedy.
        times: number of times that such a lease was written on the subnet since flanneld started.
        age_s: seconds since flanneld last read the lease.
        is_in_store: True if the store still contains the lease.
    """

    subnet: AnyNetwork
    public_ip: AnyAddress
    host_name: str | None = None
    fault: SignatureFault
    cause: str
    hint: str
    times: int = 1
    age_s: float = 0.0
    is_in_store: bool = True

    @property
    def host_text(self) -> str:
        """Text that names the host in the lease: its host name, if known, and its address."""
        return host_text(self.public_ip, self.host_name)


class LeaseSigningStatus(Struct, frozen=True, kw_only=True):
    """The state of the signatures of leases.

    Attributes:
        mode: `require`: refused leases are not used; `warn`: refused leases are used nevertheless.
        allowed: number of keys whose leases are accepted; None if the first key of each owner is accepted.
        counter: counter of the allow-list in force, if an operator signed it.
        is_own_key_allowed: True if the list contains the key of this host; None without a list or a lease.
        trouble: reason why the last valid list is in use instead of the latest list, and the remedy; None if
            the latest list is in use.
        refused: refused leases since flanneld started; at most REFUSED_LEASES_SHOWN.
        refusals: number of refused writes since flanneld started, for each reason.
    """

    mode: Literal["warn", "require"]
    allowed: int | None = None
    counter: int | None = None
    is_own_key_allowed: bool | None = None
    trouble: Notice | None = None
    refused: tuple[RefusedLease, ...] = ()
    refusals: Mapping[SignatureFault, int] = field(default_factory=dict)


DURATIONS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper limits in seconds of the ranges by which durations are counted."""


class Durations(Struct, frozen=True, kw_only=True):
    """Durations of repeated work.

    Attributes:
        up_to: number of durations that do not exceed the limit, for each limit in DURATIONS_S.
        total_s: sum of all durations in seconds.
    """

    count: int = 0
    up_to: tuple[int, ...] = (0,) * len(DURATIONS_S)
    total_s: float = 0.0

    def plus(self, duration_s: float) -> "Durations":
        """Return the durations with another duration added."""
        return Durations(
            count=self.count + 1,
            up_to=tuple(
                number + (duration_s <= most_s)
                for number, most_s in zip(self.up_to, DURATIONS_S, strict=True)
            ),
            total_s=self.total_s + duration_s,
        )


class ReconcileStatus(Struct, frozen=True, kw_only=True):
    """The repairs of this host.

    Attributes:
        passes: number of comparisons of the state of the host with the plan.
        failures: number of failed attempts to read the state of the host.
        duration_s: duration in seconds of the latest complete pass.
        pass_durations: durations of the passes.
        peer_durations: times from a change of peers in the plan until the state of the host equals the plan.
        repairs: number of repaired objects.
        repairs_by_kind: number of repaired objects of each kind, for example `link`, `route`, `bpf_program`.
        last_repair: the damage that the latest repair found, in the text of the log.
        refused: operations that did not take effect in the latest pass, with the reason and the remedy.
        held: repairs that are delayed because another program keeps undoing them.
    """

    passes: int = 0
    failures: int = 0
    duration_s: float | None = None
    pass_durations: Durations = field(default_factory=Durations)
    peer_durations: Durations = field(default_factory=Durations)
    repairs: int = 0
    repairs_by_kind: Mapping[str, int] = field(default_factory=dict)
    last_repair: str | None = None
    refused: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


class ReachStatus(Struct, frozen=True, kw_only=True):
    """The result of probing peers. flannelctl probes a sample of the peers; the daemon probes none.

    Attributes:
        probed: number of probed peers.
        silent: subnets of the probed peers that did not answer.
    """

    probed: int
    silent: tuple[AnyNetwork, ...] = ()


class DockerNetworkStatus(Struct, frozen=True, kw_only=True):
    """A network of Docker with addresses of flannel.

    Attributes:
        bridge: bridge of the network; "" if a driver other than flannel created the network.
        used: number of addresses in use, including those of the bridge.
        usable: number of addresses that can be used.
    """

    subnet: IPv4Network
    bridge: str
    used: int
    usable: int


class DockerPortStatus(Struct, frozen=True, kw_only=True):
    """A port that the plugin published. Docker does not show the ports that a plugin publishes."""

    protocol: str
    host_address: IPv4Address | None
    host_port: int
    address: IPv4Address
    port: int


class DockerStatus(Struct, frozen=True, kw_only=True):
    """The networks of Docker that the network plugin serves, and the published ports in them."""

    networks: tuple[DockerNetworkStatus, ...] = ()
    ports: tuple[DockerPortStatus, ...] = ()


class Status(Struct, frozen=True, kw_only=True):
    """The status of the daemon at one moment.

    Attributes:
        version: version of the daemon; None if it does not respond.
        is_live: True if the daemon answered; False if the status is from files.
        owner: the identity of this host in its lease.
        host_name: the host name that this host publishes in its lease; None if it publishes no name.
        is_ready: True if packets can flow, this host holds its lease, and the latest pass succeeded.
        waiting_for: reason why the host is not ready, in one line.
        peers: number of other hosts with a lease.
        leases: number of known leases, including this host's.
        conflicts: number of leases that conflict with each other or with the network config.
        refused_peers: peers to which this host does not send, in the order of their subnets.
        fast_path: fast path of the udp backend.
        firewall: the rules of flanneld, and the rules that drop its packets; None while there is no plan.
        wireguard: device and peers of the wireguard backend.
        strangers: senders of dropped tunnel packets since the counters started; at most STRANGERS_SHOWN, with
            the senders of the most packets first.
        lease_signing: signatures of leases; None with --lease-signing=off.
        docker: networks of Docker; None without --docker-plugin.
        warnings: problems for the operator, one line each, for example that two hosts share an address.
        path_mtus: the paths to peers that carry only smaller packets than planned, with the IPv4 paths first.
        reach: answers of peers to the probes of flannelctl; None if no peer was probed.
    """

    version: str | None
    is_live: bool = True
    owner: str | None = None
    host_name: str | None = None
    is_ready: bool = False
    waiting_for: str | None = None
    network: NetworkStatus | None = None
    lease: LeaseStatus | None = None
    underlay: UnderlayStatus | None = None
    backend: BackendStatus | None = None
    store: StoreStatus | None = None
    peers: int = 0
    leases: int = 0
    conflicts: int = 0
    refused_peers: tuple[RefusedPeer, ...] = ()
    forwarder: ForwarderStatus | None = None
    fast_path: FastPathStatus | None = None
    firewall: FirewallStatus | None = None
    wireguard: WireguardStatus | None = None
    strangers: tuple[StrangerStatus, ...] = ()
    lease_signing: LeaseSigningStatus | None = None
    docker: DockerStatus | None = None
    reconcile: ReconcileStatus | None = None
    warnings: tuple[str, ...] = ()
    path_mtus: tuple[NarrowPath, ...] = ()
    reach: ReachStatus | None = None


def peer_entries(status: Status, leases: Sequence[LeaseEntry]) -> list[PeerEntry]:
    """Return the leases of the other hosts, without results of probes."""
    refused = {peer.subnet: peer.reason for peer in status.refused_peers}
    encrypted = {peer.subnet: peer for peer in (status.wireguard.peers if status.wireguard else ())}
    own = status.lease.subnet if status.lease else None
    narrow: dict[AnyNetwork, list[NarrowPath]] = {}
    for path in status.path_mtus:
        narrow.setdefault(path.subnet, []).append(path)
    return [
        PeerEntry(
            subnet=lease.subnet,
            ipv6_subnet=lease.ipv6_subnet,
            public_ip=lease.public_ip,
            public_ipv6=lease.public_ipv6,
            backend_type=lease.backend_type,
            owner=lease.owner,
            host_name=lease.host_name,
            refused=refused.get(lease.subnet),
            is_encrypted=contact is not None,
            handshake_age_s=None if contact is None else contact.handshake_age_s,
            received_bytes=None if contact is None else contact.received,
            sent_bytes=None if contact is None else contact.sent,
            change_age_s=lease.change_age_s,
            path_mtus=tuple(narrow.get(lease.subnet, ())),
        )
        for lease in leases
        if lease.subnet != own
        for contact in (encrypted.get(lease.subnet),)
    ]


Severity = Literal["error", "warning", "info"]
"""Severities: packets are lost or may be lost; a problem to check; information."""


class Finding(Struct, frozen=True, kw_only=True):
    """One finding of doctor.

    Attributes:
        code: kind of the finding; a kind is never renamed.
        cause: the fault, in one sentence.
        evidence: the observations, one line each.
        fix: the command or the remedy.
    """

    code: str
    severity: Severity
    cause: str
    evidence: tuple[str, ...] = ()
    fix: str


class Membership(Struct, frozen=True, kw_only=True):
    """The known membership of this host in one family of a network. The daemon may not be running.

    Attributes:
        network: the whole range.
        subnet: the host's subnet.
        underlay: name of the interface that carries the tunnel.
        peers: the address of each known peer, by its subnet.
    """

    network: IpNetwork | None = None
    subnet: IpNetwork | None = None
    underlay: str | None = None
    peers: Mapping[IpNetwork, IpAddress] = field(default_factory=dict)


class PlannedChange(Struct, frozen=True, kw_only=True):
    """A change that the next pass would make.

    Attributes:
        kind: kind of the object, for example `link`, `route`, `fdb_entry`.
        text: text of the object, or of the difference for a change.
    """

    action: Literal["add", "change", "remove"]
    kind: str
    text: str


class PlanPreview(Struct, frozen=True, kw_only=True):
    """The document of `flannelctl plan`.

    Attributes:
        waits_for: reason why there is no plan; None if there is a plan.
        changes: the changes in the order in which a pass would make them.
    """

    waits_for: str | None = None
    changes: tuple[PlannedChange, ...] = ()


Event = Literal["repaired", "planned", "refused", "fought over"]


class JournalEntry(Struct, frozen=True, kw_only=True):
    """One operation of a pass; its attributes are the names in the JSON of `flannelctl events --json`.

    Attributes:
        at: seconds since the epoch.
        event: `repaired`: another program had damaged the object; `planned`: the plan has changed; `refused`:
            the operation failed; `fought over`: another program keeps undoing the repair.
        found: the difference, for example `link flannel0: mtu 1300, wanted 1472`, with the cause if the
            operation was refused.
    """

    at: float
    event: Event
    found: str
