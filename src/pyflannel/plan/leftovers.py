"""What an original flannel left on a host, and other things inside the network that nobody planned.

The original marks nothing. Its devices are told by name and kind, its routes by what it writes: protocol
boot, a gateway, a whole subnet. What stands at a key of the plan is taken over and is none of this; a daemon
leaves the rest alone, and only an operator's order removes it.

Source: flannel 0.6.2 to 0.28.9, as their kernel objects were seen.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Network

from pyflannel.model.footing import Footing
from pyflannel.model.link import MARK, Link
from pyflannel.model.route import PROTOCOL_KERNEL, Route
from pyflannel.model.route_protocol import PROTOCOLS
from pyflannel.model.state import Item, State

PROTOCOL_BOOT = 3
"""rtm_protocol of routes whose maker says none (linux/rtnetlink.h, RTPROT_BOOT)."""

_DEVICES = (
    ("tun", re.compile(r"flannel0")),
    ("vxlan", re.compile(r"flannel(-v6)?\.\d+")),
    ("ipip", re.compile(r"flannel\.ipip")),
    ("wireguard", re.compile(r"flannel-wg(-v6)?")),
)
"""Kinds and names of the original's devices."""


def left_by_original(found: Iterable[Item], footing: Footing) -> State:
    """Return the devices and routes among `found` that look like the original's."""
    return State.collect(
        item
        for item in found
        if (isinstance(item, Link) and _is_originals_link(item))
        or (isinstance(item, Route) and _is_originals_route(item, footing))
    )


def unplanned_routes(found: Iterable[Item], footing: Footing) -> State:
    """Return the routes to parts of the network that are neither ours nor the original's.

    They draw packets away from the peers. In its own subnet a host has what it wants.
    """
    items = tuple(found)
    ours = {item.name for item in items if isinstance(item, Link) and item.alias.startswith(MARK)}
    return State.collect(
        item
        for item in items
        if isinstance(item, Route)
        and is_within(item, footing)
        and item.protocol not in PROTOCOLS | {PROTOCOL_KERNEL}
        and item.link not in ours
        and not _is_originals_route(item, footing)
    )


def is_within(route: Route, footing: Footing) -> bool:
    """Return whether the route is to a part of the network that is not the host's own."""
    destination, network, subnet = route.destination, footing.network, footing.subnet
    if network is None or not isinstance(destination, IPv4Network) or not destination.subnet_of(network):
        return False
    return subnet is None or not destination.subnet_of(subnet)


def _is_originals_link(link: Link) -> bool:
    return not link.alias.startswith(MARK) and any(
        link.kind == kind and name.fullmatch(link.name) for kind, name in _DEVICES
    )


def _is_originals_route(route: Route, footing: Footing) -> bool:
    return _is_originals_blackhole(route, footing) or (
        is_within(route, footing)
        and footing.subnet is not None
        and route.destination.prefixlen == footing.subnet.prefixlen
        and route.protocol == PROTOCOL_BOOT
        and route.kind == "unicast"
        and route.gateway is not None
        and route.link == footing.underlay
        and route.metric == 0
    )


def _is_originals_blackhole(route: Route, footing: Footing) -> bool:
    """Return whether it is the route that keeps what no bridge wants of the subnet from the default route."""
    return (
        route.destination == footing.subnet
        and route.kind == "blackhole"
        and route.protocol == PROTOCOL_BOOT
        and route.metric == 0
    )
