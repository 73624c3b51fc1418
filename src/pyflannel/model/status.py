"""What a running daemon says about itself.

Every `None` means that it is not known, or not there yet; every `_s` is seconds. The same tree, with the
same names, is the JSON of the control socket and of `flannelctl status --json`: a field may be added, never
renamed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from pyflannel.errors import sentences
from pyflannel.model.fast_path import Feature
from pyflannel.model.forwarder import StrangerReason
from pyflannel.model.lease import host_text


@dataclass(frozen=True, slots=True)
class Notice:
    """One line for people; `hint` says what to do, and is empty where there is nothing to do."""

    text: str
    hint: str = ""

    def __str__(self) -> str:
        return sentences(self.text, self.hint)


STRANGERS_SHOWN = 64
"""So many strangers a status has, those with most packets."""

LeasePhase = Literal["acquiring", "held", "lost", "taken"]
"""Asking for a subnet; holding it; taking it back after it vanished; another host holds it now."""

FastPathMode = Literal["safe", "off", "user-space"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStatus:
    """The network config: as the host runs with it, and the range that it gives.

    Attributes:
        trouble: why the host does not run with the one in the store, and how that is set right.
    """

    text: str | None = None
    network: IPv4Network | None = None
    trouble: Notice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatus:
    """Our own lease.

    Attributes:
        subnet: held, or held last; packets still use it in every phase.
        is_reservation: the operator wrote it without TTL: it never expires.
        expires_in_s: until the store deletes it, unless it is renewed.
        since_s: how long the phase lasts.
        holder: the host that holds the subnet when it was taken.
        trouble: why there is no lease, and what to do; None where it is not known, or there is one.
        losses: how often it vanished from the store, or another host had the subnet, since flanneld started.
    """

    phase: LeasePhase | None = None
    subnet: IPv4Network | None = None
    is_reservation: bool = False
    expires_in_s: float | None = None
    since_s: float | None = None
    holder: str | None = None
    trouble: Notice | None = None
    losses: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderlayStatus:
    """The interface that carries the tunnel; `public_ip` is what peers send to."""

    link: str
    address: IPv4Address
    public_ip: IPv4Address
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStatus:
    """How packets cross the network: the backend's type, its device, and a container's MTU in octets.

    Attributes:
        link: None where the backend has no device of its own.
        is_encrypted: every packet to another host is encrypted.
        notes: how it runs on this host, where that is not as usual, a line each.
    """

    type: str
    link: str | None = None
    mtu: int | None = None
    notes: tuple[str, ...] = ()
    is_encrypted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WireguardPeerStatus:
    """A peer that packets are encrypted for.

    Attributes:
        endpoint: where packets to it are sent now; None if that is unknown.
        handshake_age_s: since the latest handshake; None if there was none.
        received: octets received from it, and `sent` those sent to it, since the device was made.
    """

    subnet: IPv4Network
    public_key: str
    endpoint: str | None = None
    handshake_age_s: float | None = None
    received: int = 0
    sent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WireguardStatus:
    """The WireGuard device of this host and its peers, in the order of their subnets.

    Attributes:
        is_in_kernel: the kernel encrypts; otherwise wireguard-go.
    """

    public_key: str
    is_in_kernel: bool
    peers: tuple[WireguardPeerStatus, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedPeer:
    """A host with a lease that is not sent to, and why; `host_name` is None if it is unknown."""

    subnet: IPv4Network
    public_ip: IPv4Address
    reason: str
    host_name: str | None = None

    @property
    def host_text(self) -> str:
        """The host for people: its host name, if known, and its address."""
        return host_text(self.public_ip, self.host_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """The store of leases.

    Attributes:
        url: without secrets.
        is_stale: the leases are those known before this start, as it has not answered since.
        since_s: how long it has been connected, or away.
        last_error: the latest failure, also when it is over, and `last_error_age_s` how long it is ago.
    """

    url: str
    is_connected: bool = False
    is_stale: bool = False
    since_s: float | None = None
    last_error: str | None = None
    last_error_age_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderStatus:
    """The process that moves packets in user space, and what it counted, by reason."""

    pid: int | None = None
    is_attached: bool = False
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPathStatus:
    """Which way packets take: through programs in the kernel, or through user space.

    Attributes:
        mode: "user-space" when the kernel is to carry them and cannot, "off" when it is not to.
        reason: why it is not "safe".
        hint: what to do about it, where something can be done.
        counters: packets by what became of them in the programs; empty where there are none.
        octets: the same of octets of inner packets.
        lacking: what it uses that is absent, or hidden from us, when it was asked for last.
        remarks: differences between kernel and plan that no repair can end.
    """

    mode: FastPathMode
    reason: str | None = None
    hint: str | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    octets: Mapping[str, int] = field(default_factory=dict)
    lacking: tuple[Feature, ...] = ()
    remarks: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StrangerStatus:
    """Somebody whose tunnel packets the guard drops, as model.stranger has it.

    Attributes:
        cause: what is wrong with them by the leases of now, in one line.
        hint: what to do about it.
    """

    address: IPv4Address
    reason: StrangerReason
    packets: int
    age_s: float
    inner_source: IPv4Address
    inner_destination: IPv4Address
    cause: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileStatus:
    """The repairs of this host.

    Attributes:
        passes: how often the host was compared with the plan.
        failures: how often it could not be read.
        duration_s: of the latest pass that ended.
        repairs: how many objects were mended that had been right before.
        repairs_by_kind: the same for each kind of object: `link`, `route`, `bpf_program`.
        last_repair: what the latest of them found, as logged.
        refused: operations that did not take effect in the latest pass, and why.
        held: repairs that wait, as somebody keeps undoing them.
    """

    passes: int = 0
    failures: int = 0
    duration_s: float | None = None
    repairs: int = 0
    repairs_by_kind: Mapping[str, int] = field(default_factory=dict)
    last_repair: str | None = None
    refused: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The daemon at one moment.

    Attributes:
        version: version of the daemon; None if it does not respond.
        is_live: the daemon said so itself; False when it does not answer and files had to speak for it.
        owner: the identity of this host in its lease.
        host_name: the host name that this host publishes in its lease; None if it publishes none.
        is_ready: packets can flow, the lease is ours, and the latest pass succeeded.
        waiting_for: in one line, while it is not ready.
        peers: other hosts with a lease.
        leases: all leases that are known, our own too.
        conflicts: how many of them contradict each other or the network config.
        refused_peers: those of them that are not sent to, in the order of their subnets.
        fast_path: of the udp backend.
        wireguard: of the wireguard backend.
        strangers: whose tunnel packets were dropped, since the forwarder started and the programs' maps were
            made; those with most packets first, the first STRANGERS_SHOWN.
        warnings: what a person should look at, one line each: two hosts share an address, a lease was taken.
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
    wireguard: WireguardStatus | None = None
    strangers: tuple[StrangerStatus, ...] = ()
    reconcile: ReconcileStatus | None = None
    warnings: tuple[str, ...] = ()


Severity = Literal["error", "warning", "info"]
"""Packets are lost or may be; something should be looked at; good to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a person should know.

    Attributes:
        code: what kind of thing it is; never renamed.
        cause: in one sentence.
        evidence: what was seen, a line each.
        fix: the command to type, or what to do.
    """

    code: str
    severity: Severity
    cause: str
    evidence: tuple[str, ...] = ()
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The part of this host in a network, as far as it is known; its daemon may be down.

    Attributes:
        network: the whole range.
        subnet: the host's own share.
        underlay: name of the interface that carries the tunnel.
        peers: the address of each peer that is known, by its subnet.
    """

    network: IPv4Network | None = None
    subnet: IPv4Network | None = None
    underlay: str | None = None
    peers: Mapping[IPv4Network, IPv4Address] = field(default_factory=dict)


Event = Literal["repaired", "planned", "refused", "fought over"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One thing that a pass found, and did; the same names are the JSON of `flannelctl events --json`.

    Attributes:
        at: seconds since the epoch.
        event: `repaired`, somebody had damaged it; `planned`, the plan had changed; `refused`, it could not
            be done; `fought over`, somebody keeps undoing it.
        found: what was found, `link flannel0: mtu 1300, wanted 1472`; and of a refusal why.
    """

    at: float
    event: Event
    found: str
