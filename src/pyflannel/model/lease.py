"""Leases and claims: who holds which subnet, as the store's records say."""

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pyflannel.model.backend_data import Vtep

LEASE_TTL_S = 24 * 3600
"""How long a subnet is held without renewal (flannel's own 24 h)."""

CLAIM_TTL_S = 10
"""How long a living owner has to answer a claim on its subnet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a host is, whatever its address.

    Attributes:
        owner: random id made at the first start, or what `--node-id` says.
        machine: digest of the machine-id, so that a re-installed host is known again; "" when unknown.
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
        backend_data: the backend's own JSON, as text; None when absent.
        vtep: what `backend_data` says in a vxlan lease; None where it says of no VTEP.
        owner: identity of the holder; None in leases of the original flannel.
        port: UDP port where the holder's udp backend listens; None when not published.
        reads: what the holder's data path can read beyond the original's, sorted.
    """

    public_ip: IPv4Address
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    backend_data: str | None = None
    backend_v6_data: str | None = None
    owner: Identity | None = None
    port: int | None = None
    reads: tuple[str, ...] = ()
    vtep: Vtep | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A subnet held by a host.

    Attributes:
        revision: store revision of the last write; 0 for a lease that is not yet written.
        has_ttl: False for a reservation, which never expires and never gets a TTL.
    """

    subnet: IPv4Network
    ipv6_subnet: IPv6Network | None = None
    attributes: LeaseAttributes
    revision: int = 0
    has_ttl: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A newcomer asks whether the holder of `subnet` is alive; unanswered, it takes the lease over."""

    subnet: IPv4Network
    owner: str
    public_ip: IPv4Address
    revision: int = 0
