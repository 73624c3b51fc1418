"""The links of this host that carry packets of its containers."""

from pyflannel.kernel.host.packet_path import port_mtus
from pyflannel.kernel.network.interfaces import KernelInterfaces
from pyflannel.model.host import Interfaces, RouteScope
from pyflannel.model.network_config import Family, IpNetwork
from pyflannel.model.status import Membership, Status
from pyflannel.plan.doctor.families import network_of


async def interfaces_of_host(scope: RouteScope | None = None) -> Interfaces:
    """Return the interfaces of this host, with their addresses.

    `scope`: with an IPv6 network in it, IPv6 routes are also read.

    Raises:
        TargetError: the interfaces are unreadable.
    """
    async with KernelInterfaces() as observer:
        return await observer.observe(scope or RouteScope())


def routes_of_network(status: Status) -> RouteScope:
    """Return the scope that makes the kernel's IPv6 routes visible, if the network has IPv6."""
    found = network_of(status, 6)
    return RouteScope() if found is None else RouteScope(networks=frozenset({found}))


def on_link(interfaces: Interfaces, membership: Membership) -> tuple[IpNetwork, ...]:
    """Return the prefixes that the underlay reaches without a gateway."""
    underlay = None if membership.underlay is None else interfaces.named(membership.underlay)
    return () if underlay is None else underlay.on_link


def bridges_of_containers(
    interfaces: Interfaces, membership: Membership, family: Family, *, is_alone: bool
) -> list[str]:
    """Return the bridges that connect the containers of this host.

    `is_alone`: the host carries only this family.
    """
    found = _own_bridges(interfaces, membership)
    return found or (_bare_bridges(interfaces) if family == 6 and is_alone else [])


def _own_bridges(interfaces: Interfaces, membership: Membership) -> list[str]:
    """Return the bridges with an address of this host's subnet."""
    if membership.subnet is None:
        return []
    return [
        one.name
        for one in interfaces.interfaces
        if one.kind == "bridge" and any(held.address.ip in membership.subnet for held in one.addresses)
    ]


def _bare_bridges(interfaces: Interfaces) -> list[str]:
    """Return the bridges with ports, but without an address, that are down or on which IPv6 is off."""
    return [
        one.name
        for one in interfaces.interfaces
        if one.kind == "bridge"
        and not (one.is_up and one.has_ipv6)
        and not any(held.is_global for held in one.addresses)
        and port_mtus(one.name)
    ]
