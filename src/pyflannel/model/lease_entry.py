"""A line of the list of leases, as a person or a script reads it."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pyflannel.model.lease import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEntry:
    """One lease; the same names are the JSON of the control socket and of `flannelctl leases --json`.

    Attributes:
        backend_type: as published: empty for udp and alloc.
        owner: identity of the holder; None in leases of the original flannel.
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
            owner=attributes.owner.owner if attributes.owner else None,
            port=attributes.port,
            is_reservation=not lease.has_ttl,
            expires_in_s=expires_in_s,
            revision=lease.revision,
        )
