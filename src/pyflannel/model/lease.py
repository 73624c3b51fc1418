"""Leases and claims, which state the holder of each subnet, and the entries of the lists of leases and
peers.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.model.network_config import AnyAddress, AnyNetwork, Family, IpAddress, IpNetwork
from pyflannel.model.probe import NarrowPath
from pyflannel.model.store_record import PartlyCompared, Secret


class Vtep(PartlyCompared, frozen=True, kw_only=True, eq=False):
    """Data of the vxlan backend: the VTEP of the host. A comparison ignores `mac_prefix`.

    Attributes:
        mac: MAC address of the VTEP, lower case with colons.
        vni: VXLAN network identifier; None in leases of release 0.6, which publishes no VNI.
        mac_prefix: prefix of `mac` that the network config requires; it is not published.
    """

    mac: str
    vni: int | None = None
    mac_prefix: bytes = b""

    @property
    def _compared(self) -> object:
        return self.mac, self.vni


class WireguardData(Struct, frozen=True, kw_only=True):
    """Data of the wireguard backend: the key of the host.

    Attributes:
        public_key: public key of the host, in base64.
        port: UDP port; None in leases of release 0.20, which publishes no port.
    """

    public_key: str
    port: int | None = None


BackendData = Vtep | WireguardData
"""The backend data of any type of backend."""


LEASE_TTL_S = 24 * 3600
"""Time in seconds after which a lease expires without renewal (24 h, as in flannel)."""

CLAIM_TTL_S = 10
"""Time in seconds within which a running owner must answer a claim on its subnet."""


LONGEST_OWNER = 256
"""Maximum number of characters of an owner: more than the longest name of a Kubernetes Node (253)."""

_LONGEST_HOST_NAME = 253
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!\d+\Z){_LABEL}", re.ASCII | re.IGNORECASE)


def is_host_name(text: str) -> bool:
    """Return whether a text is a host name, not an address.

    Source: RFC 1123 section 2.1. The length of the text form is limited by RFC 1035 section 2.3.4.
    """
    return len(text) <= _LONGEST_HOST_NAME and _HOST_NAME.fullmatch(text) is not None


KEY_BYTES, SIGNATURE_BYTES = 32, 64
"""Length in bytes of an Ed25519 key, and of its signatures (RFC 8032)."""

LARGEST_COUNTER = 2**53
"""Largest counter of the signed statements of a key: the largest integer that all JSON readers represent."""


class Identity(Struct, frozen=True, kw_only=True):
    """The identity of a host, independent of its address.

    Attributes:
        owner: random ID from the first start, or the value of `--node-id`; published in the lease.
        machine: digest of the machine-id, to detect a copied state directory; "" if it is unknown.
        signing_key: Ed25519 public key of this owner, published in the lease; None if the host has no key.
    """

    owner: str
    machine: str = ""
    signing_key: bytes | None = None


class LeaseKey(NamedTuple):
    """The key pair with which a host signs its lease; the private key in hexadecimal digits."""

    public: bytes
    private: Secret


PARTIAL_CHECKSUM = "partial-checksum"
"""Value of `reads` that means: this host accepts packets with partial checksums, which no hardware has
completed."""

DIRECT = "direct"
"""Value of `reads` in a vxlan network that means: this host accepts packets without the tunnel
(DirectRouting)."""


NO_ADDRESS = IPv4Address(0)
"""The published address of a host without an address."""


class BackendPart(Struct, frozen=True, kw_only=True):
    """The part of a lease that depends on the backend; its attributes have the same meaning as in
    `LeaseAttributes`.
    """

    backend_type: str = ""
    backend_data: str | None = None
    backend_v6_data: str | None = None
    port: int | None = None
    vtep: Vtep | None = None
    vtep_v6: Vtep | None = None
    wireguard: WireguardData | None = None
    wireguard_v6: WireguardData | None = None


MOST_PREVIOUS = 2
"""Maximum number of previous backends, because the config may change again before all hosts have changed."""


class LeaseAttributes(PartlyCompared, frozen=True, kw_only=True, eq=False):
    """The attributes that a host publishes in its lease. A comparison ignores the counter and the signature.

    Attributes:
        public_ip: address of the host on the underlay; its IPv6 address in a network with IPv6 alone.
            0.0.0.0 if the host has no address.
        public_ipv6: the IPv6 address of the host on the underlay; None without IPv6.
        backend_type: the published type of the backend; empty for udp and alloc.
        backend_data: the backend's JSON as text; None if absent, or if it is `vtep` as pyflannel writes it.
            Nearly all leases have this form, and storing their texts would need a megabyte.
        vtep: the VTEP that a vxlan lease publishes; None if the lease publishes no VTEP.
        wireguard: the key and port in `backend_data` of a wireguard lease; None if the lease contains no key.
        backend_v6_data: the same as `backend_data`, for the IPv6 part.
        vtep_v6: the same as `vtep`, for IPv6.
        wireguard_v6: the same as `wireguard`, for IPv6.
        owner: `Identity.owner` of the holder; None in leases of the original flannel.
        host_name: host name of the holder, only for people, because two hosts may have the same name. The
            name is None if it is not published, or not a host name.
        port: UDP port of the holder's udp backend; None if it is not published.
        reads: packet formats that the holder accepts in addition to those of the original, sorted.
        signing_key: Ed25519 public key of the holder; None if it is not published.
        counter: counter of this signed statement, which grows with each write; None if the lease is not
            signed.
        signature: signature of the lease with the key; None if the lease is not signed.
        also: previous backends by which the holder still receives packets, during a change of the backend.
    """

    public_ip: IpAddress
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    backend_data: str | None = None
    backend_v6_data: str | None = None
    owner: str | None = None
    host_name: str | None = None
    port: int | None = None
    reads: tuple[str, ...] = ()
    signing_key: bytes | None = None
    counter: int | None = None
    signature: bytes | None = None
    vtep: Vtep | None = None
    wireguard: WireguardData | None = None
    vtep_v6: Vtep | None = None
    wireguard_v6: WireguardData | None = None
    also: tuple[BackendPart, ...] = ()

    @property
    def _compared(self) -> object:
        """All attributes except the counter, the signature and the data of wireguard, which `backend_data`
        contains.
        """
        return (
            self.public_ip,
            self.public_ipv6,
            self.backend_type,
            self.backend_data,
            self.backend_v6_data,
            self.owner,
            self.host_name,
            self.port,
            self.reads,
            self.signing_key,
            self.vtep,
            self.vtep_v6,
            self.also,
        )

    @property
    def host_text(self) -> str:
        """Text that names the holder for people: its host name, if known, and its address."""
        return host_text(self.public_ip, self.host_name)

    @property
    def backend_part(self) -> BackendPart:
        """The part of the lease that depends on the backend."""
        return BackendPart(
            backend_type=self.backend_type,
            backend_data=self.backend_data,
            backend_v6_data=self.backend_v6_data,
            port=self.port,
            vtep=self.vtep,
            vtep_v6=self.vtep_v6,
            wireguard=self.wireguard,
            wireguard_v6=self.wireguard_v6,
        )

    def with_backend(self, part: BackendPart, also: "tuple[BackendPart, ...]" = ()) -> "LeaseAttributes":
        """Return the attributes with another part of the backend."""
        return replace(
            self,
            backend_type=part.backend_type,
            backend_data=part.backend_data,
            backend_v6_data=part.backend_v6_data,
            port=part.port,
            vtep=part.vtep,
            vtep_v6=part.vtep_v6,
            wireguard=part.wireguard,
            wireguard_v6=part.wireguard_v6,
            also=also,
        )


def host_text(address: IpAddress, host_name: str | None) -> str:
    """Return a host for people: `docker2 (192.168.50.101)`, or only the address."""
    return str(address) if host_name is None else f"{host_name} ({address})"


class LeasePart(NamedTuple):
    """A lease in one address family.

    Attributes:
        subnet: the subnet of the host.
        address: the address of the host on the underlay.
        vtep: the VTEP that carries this family; None if the lease publishes no VTEP.
        wireguard: the key and port for this family; None if the lease publishes no key.
    """

    subnet: IpNetwork
    address: IpAddress
    vtep: Vtep | None
    wireguard: WireguardData | None


class Ipv4End(NamedTuple):
    """The IPv4 subnet of a host and its IPv4 address on the underlay."""

    subnet: IPv4Network
    address: IPv4Address


def ipv4_end(subnet: IpNetwork, address: IpAddress) -> Ipv4End:
    """Return the subnet and the address of a host of a network with IPv4."""
    assert isinstance(subnet, IPv4Network)
    assert isinstance(address, IPv4Address)
    return Ipv4End(subnet, address)


class Lease(PartlyCompared, frozen=True, kw_only=True, eq=False):
    """A subnet held by a host. A comparison ignores `since`.

    Attributes:
        subnet: the subnet that identifies the lease: the IPv4 subnet; the IPv6 subnet in a network with IPv6
            alone.
        ipv6_subnet: the IPv6 subnet; None without IPv6.
        revision: store revision of the last write; 0 for a lease that is not written yet.
        has_ttl: False for a reservation, which never expires and never gets a TTL.
        since: store revision since which the holder has published its VTEP or its key; 0 if the revision is
            unknown.
    """

    subnet: IpNetwork
    ipv6_subnet: IPv6Network | None = None
    attributes: LeaseAttributes
    revision: int = 0
    has_ttl: bool = True
    since: int = 0

    @property
    def _compared(self) -> object:
        return self.subnet, self.ipv6_subnet, self.attributes, self.revision, self.has_ttl

    @classmethod
    def of_ipv6(cls, subnet: IPv6Network, attributes: LeaseAttributes, revision: int = 0) -> "Lease":
        """Return a lease of a network with IPv6 alone. The IPv4 address in `attributes` is ignored."""
        address = attributes.public_ipv6 or NO_ADDRESS
        return cls(
            subnet=subnet,
            ipv6_subnet=subnet,
            attributes=replace(attributes, public_ip=address),
            revision=revision,
        )

    @property
    def variants(self) -> "tuple[Lease, ...]":
        """The lease for each backend by which the holder receives packets, the newest first."""
        attributes = self.attributes
        if not attributes.also:
            return (self,)
        parts = (attributes.backend_part, *attributes.also)
        return tuple(replace(self, attributes=attributes.with_backend(part)) for part in parts)

    def part(self, family: Family) -> LeasePart | None:
        """Return the part of the lease for an address family; None if the lease has no subnet in the family,
        or no IPv6 address.
        """
        attributes, subnet = self.attributes, self.subnet_in(family)
        if subnet is None:
            return None
        if family == 4:
            return LeasePart(subnet, attributes.public_ip, attributes.vtep, attributes.wireguard)
        if attributes.public_ipv6 is None:
            return None
        return LeasePart(subnet, attributes.public_ipv6, attributes.vtep_v6, attributes.wireguard_v6)

    @property
    def ipv4(self) -> Ipv4End:
        """The subnet and the address of the holder in a network with IPv4."""
        return ipv4_end(self.subnet, self.attributes.public_ip)

    def subnet_in(self, family: Family) -> IpNetwork | None:
        """Return the subnet in an address family; None if the lease has no subnet in the family."""
        if family == 6:
            return self.ipv6_subnet
        return self.subnet if self.subnet.version == 4 else None

    @property
    def text(self) -> str:
        """The subnets as text for people: `10.5.52.0/24`, or `10.5.52.0/24 fd00:5:0:34::/64`."""
        return (
            str(self.subnet)
            if self.ipv6_subnet in (None, self.subnet)
            else f"{self.subnet} {self.ipv6_subnet}"
        )


def renewal_margin_s(wanted_s: float, ttl_s: float) -> float:
    """Return the seconds before the expiry of a lease at which it is renewed; at most half of its TTL."""
    return min(wanted_s, ttl_s / 2)


class Claim(Struct, frozen=True, kw_only=True):
    """A claim, with which a host asks whether the holder of `subnet` is alive. If there is no answer, the
    host takes over the lease.

    Attributes:
        host_name: host name of the asking host; None if it is unknown.
        held_s: seconds for which the asking host has held this lease, if a copy of this host wrote the lease.
            The copy that has held the lease for longer keeps the lease. None if the asking host does not hold
            the lease.
    """

    subnet: IpNetwork
    owner: str
    public_ip: IpAddress
    host_name: str | None = None
    held_s: float | None = None
    revision: int = 0

    @property
    def host_text(self) -> str:
        """Text that names the asking host for people: its host name, if known, and its address."""
        return host_text(self.public_ip, self.host_name)


class LastKnown(Struct, frozen=True, kw_only=True):
    """The network config as text, this host's lease, and all leases including this host's.

    Attributes:
        previous: texts of the previous configs, during a change of the backend.
        is_prepared: True if this host can receive packets by the backend of `config`.
    """

    config: str
    own: Lease
    leases: tuple[Lease, ...]
    previous: tuple[str, ...] = ()
    is_prepared: bool = True


class LeaseEntry(Struct, frozen=True, kw_only=True):
    """One entry of the list of leases; its attributes are the names in the JSON of the control socket and of
    `flannelctl leases --json`.

    Attributes:
        backend_type: the published type of the backend; empty for udp and alloc.
        owner: identity of the holder; None in leases of the original flannel.
        host_name: host name of the holder; None if it is unknown.
        port: UDP port of the holder's udp backend, None if it is not published.
        is_reservation: True if the lease never expires.
        expires_in_s: seconds until the expiry; None for a reservation, or if the daemon was asked instead of
            the store.
        revision: store revision of the last write.
        change_age_s: seconds since flanneld last saw this lease change: the host joined or returned, or its
            addresses, backend or keys changed. None if there was no change since flanneld started, or if the
            store was asked.
    """

    subnet: AnyNetwork
    ipv6_subnet: IPv6Network | None = None
    public_ip: AnyAddress
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    owner: str | None = None
    host_name: str | None = None
    port: int | None = None
    is_reservation: bool = False
    expires_in_s: float | None = None
    revision: int = 0
    change_age_s: float | None = None

    def in_family(self, family: Family) -> "LeaseEntry | None":
        """Return the entry as in a network with this family alone; None if the lease has no subnet in it."""
        if self.subnet.version == family:
            return self
        if family == 4 or self.ipv6_subnet is None or self.public_ipv6 is None:
            return None
        return replace(self, subnet=self.ipv6_subnet, public_ip=self.public_ipv6)

    @classmethod
    def of(
        cls, lease: Lease, *, expires_in_s: float | None = None, change_age_s: float | None = None
    ) -> "LeaseEntry":
        """Return the entry of the list for `lease`."""
        attributes = lease.attributes
        return cls(
            subnet=lease.subnet,
            ipv6_subnet=lease.ipv6_subnet,
            public_ip=attributes.public_ip,
            public_ipv6=attributes.public_ipv6,
            backend_type=attributes.backend_type,
            owner=attributes.owner,
            host_name=attributes.host_name,
            port=attributes.port,
            is_reservation=not lease.has_ttl,
            expires_in_s=expires_in_s,
            revision=lease.revision,
            change_age_s=change_age_s,
        )


class FamilyReach(Struct, frozen=True, kw_only=True):
    """The results of the probes of a peer in one family. The attributes mean the same as those of
    `PeerEntry`.
    """

    is_reached: bool
    rtt_ms: float | None = None
    path_mtu: int | None = None
    probes_sent: int | None = None
    probes_lost: int | None = None


class PeerEntry(Struct, frozen=True, kw_only=True):
    """One entry of the list of peers; its attributes are the names in the JSON of `flannelctl peers --json`.

    Attributes:
        backend_type: the published type of the backend; empty for udp and alloc.
        owner: identity of the host; None for a host with the original flannel.
        host_name: host name of the host; None if it is unknown.
        refused: reason why this host does not send to the peer; None if it sends to the peer.
        is_encrypted: True if packets to the peer are encrypted.
        handshake_age_s: seconds since the latest handshake with the peer; None if there was no handshake.
        is_reached: True if the peer answered a probe in the first family of the network; None if it was not
            probed. The results up to `probes_lost` belong to this family.
        rtt_ms: round-trip time of the probe through the tunnel; None without an answer.
        path_mtu: size in bytes of the largest probe that the peer answered; None without an answer.
        probes_sent: number of small probes by which losses were counted; None if no probe was sent.
        probes_lost: number of these probes without a reply within 0.5 s; None if no probe was sent.
        ipv6: results for IPv6, if both hosts also have IPv6; None otherwise.
        received_bytes: bytes of tunnel packets from the peer since its WireGuard device was created, or since
            the tunnel guard has the peer; None if the bytes of the peer are not counted.
        sent_bytes: bytes of tunnel packets to the peer since its WireGuard device was created, or as the
            peer counted them within the last second; None if they are unknown.
        change_age_s: seconds since flanneld last saw the lease of the peer change; None if there was no
            change since flanneld started.
        path_mtus: the paths to the peer that carry only smaller packets than planned, as flanneld has
            measured.
    """

    subnet: AnyNetwork
    ipv6_subnet: IPv6Network | None = None
    public_ip: AnyAddress
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    owner: str | None = None
    host_name: str | None = None
    refused: str | None = None
    is_encrypted: bool = False
    handshake_age_s: float | None = None
    is_reached: bool | None = None
    rtt_ms: float | None = None
    path_mtu: int | None = None
    probes_sent: int | None = None
    probes_lost: int | None = None
    ipv6: FamilyReach | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None
    change_age_s: float | None = None
    path_mtus: tuple[NarrowPath, ...] = ()
