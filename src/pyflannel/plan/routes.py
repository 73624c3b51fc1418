"""Routes that several backends plan: to a peer on the link, and the blackhole of the own subnet."""

from pyflannel.model.host import Host
from pyflannel.model.lease import Lease
from pyflannel.model.route import Route
from pyflannel.model.state import State

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


# The blackhole for our own subnet: what takes packets to it where no bridge of containers does.
#
# Without it such a packet leaves the host by another route, comes back, as the subnet is ours, and goes round
# until its TTL ends.

METRIC = 2**32 - 1
"""The last of all: the route of a bridge with this very subnet comes before it, whenever it is made."""


def plan_blackhole(host: Host) -> State:
    """Return the route that drops what nobody on this host takes; IPv6 will be a second one."""
    return State.of(
        Route(destination=host.lease.subnet, link="", kind="blackhole", metric=METRIC, protocol=host.protocol)
    )
