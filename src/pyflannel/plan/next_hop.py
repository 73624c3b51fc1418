"""Peers as next hops on the underlay: whether one can be sent to, and the route by way of it."""

from pyflannel.model.host import Host
from pyflannel.model.lease import Lease
from pyflannel.model.route import Route

_EVERY_ADDRESS = 31
"""From this prefix length on no address of a prefix is its broadcast (RFC 3021)."""


def address_objection(peer: Lease, host: Host) -> str | None:
    """Return why nothing can be sent to a peer's address, whatever the backend; None when it can."""
    address = peer.attributes.public_ip
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_reserved:
        return f"{address} is no address of a host"
    if address == host.underlay.address:
        return f"{address} is our own address"
    for prefix in host.underlay.on_link:
        ends = prefix.network_address, prefix.broadcast_address
        if prefix.prefixlen < _EVERY_ADDRESS and address in ends:
            return f"{address} is no address of a host, but one of {prefix} itself"
    return None


def direct_route(peer: Lease, host: Host) -> Route:
    """Return the route to a peer's subnet by way of the peer, which must be on our link."""
    return Route(
        destination=peer.subnet,
        gateway=peer.attributes.public_ip,
        link=host.underlay.link,
        protocol=host.protocol,
    )
