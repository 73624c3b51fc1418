"""Leases and claims: which host holds which subnet, and how the lists of leases and peers show it."""

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Vtep:
    """The vxlan backend's: whom peers send to.

    Attributes:
        mac: MAC address of the VTEP, lower case with colons.
        vni: VXLAN network identifier; None in leases of release 0.6, which publishes none.
        mac_prefix: how the network config wants `mac` to begin; not published.
    """

    mac: str
    vni: int | None = None
    mac_prefix: bytes = field(default=b"", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WireguardData:
    """The wireguard backend's: whom peers encrypt for.

    Attributes:
        public_key: of the host, in base64.
        port: UDP port; None in leases of release 0.20, which publishes none.
    """

    public_key: str
    port: int | None = None


BackendData = Vtep | WireguardData
"""Every backend's data; another backend's type joins by a union."""


LEASE_TTL_S = 24 * 3600
"""How long a subnet is held without renewal (flannel's own 24 h)."""

CLAIM_TTL_S = 10
"""How long a living owner has to answer a claim on its subnet."""


LONGEST_OWNER = 256
"""Characters of an owner: more than any name of a Kubernetes Node has (253)."""

_LONGEST_HOST_NAME = 253
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!\d+\Z){_LABEL}", re.ASCII | re.IGNORECASE)


def is_host_name(text: str) -> bool:
    """Return whether a text is a host name, not an address.

    Source: RFC 1123 section 2.1. The length of the text form follows from RFC 1035 section 2.3.4.
    """
    return len(text) <= _LONGEST_HOST_NAME and _HOST_NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a host is, whatever its address.

    Attributes:
        owner: random id made at the first start, or what `--node-id` says; published in the lease.
        machine: digest of the machine-id, by which a copied state directory is detected; "" when unknown.
    """

    owner: str
    machine: str = ""


PARTIAL_CHECKSUM = "partial-checksum"
"""Of `reads`: takes packets whose checksums the sender left to hardware that never saw them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAttributes:
    """What a host tells its peers in its lease.

    Attributes:
        public_ip: address of the host on the underlay; 0.0.0.0 when it has none.
        backend_type: as published: empty for udp and alloc.
        backend_data: the backend's own JSON, as text; None when absent, or when it is `vtep` as pyflannel
            writes it: nearly all leases are so, and a text of each would need a megabyte.
        vtep: the VTEP that a vxlan lease publishes; None if it publishes none.
        wireguard: the key and port in `backend_data` of a wireguard lease; None if it contains no key.
        owner: `Identity.owner` of the holder; None in leases of the original flannel.
        host_name: host name of the holder, only for people: two hosts may have the same one. None if it is
            not published, or not a host name.
        port: UDP port where the holder's udp backend listens; None when not published.
        reads: what the holder's data path can read beyond the original's, sorted.
    """

    public_ip: IPv4Address
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    backend_data: str | None = None
    backend_v6_data: str | None = None
    owner: str | None = None
    host_name: str | None = None
    port: int | None = None
    reads: tuple[str, ...] = ()
    vtep: Vtep | None = None
    wireguard: WireguardData | None = field(default=None, compare=False)

    @property
    def host_text(self) -> str:
        """The holder for people: its host name, if known, and its address."""
        return host_text(self.public_ip, self.host_name)


def host_text(address: IPv4Address, host_name: str | None) -> str:
    """Return a host for people: `docker2 (192.168.50.101)`, or the address alone."""
    return str(address) if host_name is None else f"{host_name} ({address})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A subnet held by a host.

    Attributes:
        revision: store revision of the last write; 0 for a lease that is not yet written.
        has_ttl: False for a reservation, which never expires and never gets a TTL.
        since: store revision since which the holder has published its VTEP or its key here, as far as is
            known; 0 when it is not.
    """

    subnet: IPv4Network
    ipv6_subnet: IPv6Network | None = None
    attributes: LeaseAttributes
    revision: int = 0
    has_ttl: bool = True
    since: int = field(default=0, compare=False)


def renewal_margin_s(wanted_s: float, ttl_s: float) -> float:
    """Return how many seconds before its end a lease is renewed: as wanted, but at most half of its TTL."""
    return min(wanted_s, ttl_s / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A host asks whether the holder of `subnet` is alive; unanswered, it takes the lease over.

    Attributes:
        held_s: how long the asking host has run on this lease itself, after a copy of it wrote the lease: the
            one that has run on it for longer keeps it. None when the asking host does not run on it.
    """

    subnet: IPv4Network
    owner: str
    public_ip: IPv4Address
    held_s: float | None = None
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LastKnown:
    """The network config as text, our own lease, and all leases, our own among them."""

    config: str
    own: Lease
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEntry:
    """One lease; the same names are the JSON of the control socket and of `flannelctl leases --json`.

    Attributes:
        backend_type: as published: empty for udp and alloc.
        owner: identity of the holder; None in leases of the original flannel.
        host_name: host name of the holder; None if it is unknown.
        port: UDP port of the holder's udp backend, when published.
        is_reservation: it never expires.
        expires_in_s: seconds until it does; None for a reservation, or when only the daemon was asked.
        revision: store revision of the last write.
    """

    subnet: IPv4Network
    ipv6_subnet: IPv6Network | None = None
    public_ip: IPv4Address
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    owner: str | None = None
    host_name: str | None = None
    port: int | None = None
    is_reservation: bool = False
    expires_in_s: float | None = None
    revision: int = 0

    @classmethod
    def of(cls, lease: Lease, *, expires_in_s: float | None = None) -> "LeaseEntry":
        """Return the line for `lease`."""
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
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerEntry:
    """Another host of the network; the same names are the JSON of `flannelctl peers --json`.

    Attributes:
        backend_type: as published: empty for udp and alloc.
        owner: identity of the host; None for an original flannel.
        host_name: host name of the host; None if it is unknown.
        refused: why this host does not send to it; None when it does.
        is_encrypted: packets to it are encrypted.
        handshake_age_s: seconds since the latest handshake with it; None if there was none.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    backend_type: str = ""
    owner: str | None = None
    host_name: str | None = None
    refused: str | None = None
    is_encrypted: bool = False
    handshake_age_s: float | None = None
