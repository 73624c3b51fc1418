"""Items as netlink requests: the requests for an operation, the meaning of an answer, and next-hop
objects.
"""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from ipaddress import IPv4Address, IPv4Network

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.errors import is_permanent
from pyflannel.kernel.network.device_ioctls import DEVICE_FILE
from pyflannel.kernel.network.items import KINDS
from pyflannel.model.link import Address
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace
from pyflannel.wire.netlink import addresses, neighbours, routes
from pyflannel.wire.netlink.addresses import add_address, remove_address
from pyflannel.wire.netlink.message import Acknowledgement, Request
from pyflannel.wire.netlink.neighbours import (
    put_fdb_entry,
    put_neighbour,
    remove_fdb_entry,
    remove_neighbour,
)
from pyflannel.wire.netlink.routes import (
    UNICAST,
    RouteRecord,
    put_next_hop,
    put_route,
    put_route_by,
    remove_next_hop,
    remove_route,
    remove_route_by,
)

GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})
"""Error numbers of the kernel for a removal whose object does not exist."""

_NO_TUN = (
    "Load the driver with `modprobe tun`. If only the file is missing: `mkdir -p /dev/net && "
    "mknod /dev/net/tun c 10 200`. In a container: --device /dev/net/tun."
)
_NO_RIGHT_TO_TUN = (
    "Run flanneld as root, or with CAP_NET_ADMIN. In a container: --device /dev/net/tun, --cap-add NET_ADMIN."
)
_HINTS = {
    errno.EPERM: "Run flanneld as root, or give it CAP_NET_ADMIN (in a container: --cap-add NET_ADMIN).",
    errno.EACCES: "Run flanneld as root, or give it CAP_NET_ADMIN (in a container: --cap-add NET_ADMIN).",
    errno.EROFS: "Mount /proc/sys writable. In a container: --privileged, or set the value with --sysctl.",
    errno.EBUSY: "Another program created the device at the same time: find and stop this program.",
    errno.ENODEV: "The link was removed. flanneld creates it again in the next pass.",
    errno.ENETUNREACH: "The gateway is on no network of this host: check the addresses of the interface.",
    errno.EEXIST: "Another program created an object with this key: find it with `ip route` or `ip -d link`.",
    errno.ENOBUFS: "The kernel has no free memory: see its log (dmesg).",
    errno.ENOMEM: "The kernel has no free memory: see its log (dmesg).",
}


def refusal(operation: Operation, code: int, text: str = "") -> Refusal:
    """Return the refusal with an error number; `text` is the kernel's explanation."""
    name = errno.errorcode.get(code, f"errno {code}")
    cause = f"{name}: {os.strerror(code)}"
    return Refusal(
        operation=operation,
        cause=f"{cause} ({text})" if text else cause,
        hint=_HINTS.get(code, "See the kernel's log (dmesg) for the reason."),
        is_permanent=is_permanent(code),
    )


def refusal_of(operation: Operation, error: OSError) -> Refusal:
    """Return the refusal for a failed system call."""
    refused = refusal(operation, error.errno or 0, str(error.filename or ""))
    if error.filename != DEVICE_FILE:
        return refused
    hint = _NO_RIGHT_TO_TUN if error.errno in (errno.EPERM, errno.EACCES) else _NO_TUN
    return replace(refused, hint=hint)


_KIND_NUMBERS = {name: number for number, name in KINDS.items()}

_REMOVALS = frozenset({addresses.DELETE, neighbours.DELETE, routes.DELETE_NEXT_HOP, routes.DELETE})

_GONE_BEFORE = GONE | {errno.EINVAL}
"""Error numbers of the kernel for a missing object, if the removal is not the last request of its operation.
EINVAL means that the next-hop object of the route does not exist."""

IndexOf = Callable[[str], int]
"""Function that returns the index of the link with a name; raises OSError if there is no such link."""


class Asked(Struct, frozen=True):
    """An operation and the requests that perform it, in order."""

    operation: Operation
    requests: tuple[Request, ...]


def ask(operation: Operation, index_of: IndexOf, *, by_next_hops: Set[str] = frozenset()) -> Asked:
    """Return an operation on any item except a link, with its requests.

    Routes of the links in `by_next_hops` refer to next-hop objects.

    Raises:
        OSError: the link of the item does not exist. Removing an item whose link does not exist needs no
            request, and does not raise this error.
        TypeError: the item is a link, or not an object of the kernel.
    """
    try:
        return Asked(operation, _requests(operation, index_of, by_next_hops))
    except OSError as error:
        if isinstance(operation, Remove) and error.errno == errno.ENODEV:
            return Asked(operation, ())
        raise


def ask_again(asked: Asked, answers: Sequence[Acknowledgement], index_of: IndexOf) -> Asked | None:
    """Return further requests for a route, or None if no request can help.

    Further requests are needed in three cases. First, a link without carrier accepts routes, but no next-hop
    objects. Second, the kernel answers EEXIST if a route of another program precedes an existing route with
    the same key (`ip route prepend`). In this case, the existing route is removed first. No packet is lost,
    because the kernel already used the other route.

    The third case is an IPv6 route whose gateway is inside its destination. While the existing route uses
    another link, the kernel answers EINVAL (net/ipv6/route.c, ip6_route_check_nh_onlink). The existing route
    is removed first, and for a few microseconds no route exists.
    """
    match asked.operation:
        case Add(Route() as route) | Replace(_, Route() as route) if len(answers) > 1 and answers[0].errno:
            return Asked(asked.operation, (put_route(_record(route, index_of)),))
        case Add(Route() as route) | Replace(_, Route() as route) if answers[-1].errno == errno.EEXIST:
            record = _record(route, index_of)
            return Asked(asked.operation, (*_route_removal(route, record), put_route(record)))
        case Replace(Route() as old, Route() as route) if _is_in_the_way(old, route, answers[-1].errno):
            removal = _route_removal(old, _record(old, index_of))
            return Asked(asked.operation, (*removal, put_route(_record(route, index_of))))
        case _:
            return None


def _is_in_the_way(old: Route, new: Route, answer: int) -> bool:
    """Return whether the kernel found the old route when it searched for the gateway of the new route."""
    is_moved = new.is_onlink and new.destination.version == 6 and old.link != new.link
    return answer == errno.EINVAL and is_moved and new.gateway in new.destination


def failure(asked: Asked, answers: Sequence[Acknowledgement]) -> Acknowledgement | None:
    """Return the answer that refuses the operation, or None if the operation took effect.

    The removal of an object that does not exist counts as successful.
    """
    for place, (request, answer) in enumerate(zip(asked.requests, answers, strict=True), start=1):
        gone = GONE if place == len(answers) else _GONE_BEFORE
        if answer.errno and not (request.kind in _REMOVALS and answer.errno in gone):
            return answer
    return None


def _requests(operation: Operation, index_of: IndexOf, by_next_hops: Set[str]) -> tuple[Request, ...]:
    match operation:
        case Add(Address() as item):
            return (add_address(index_of(item.link), item.address),)
        case Replace(Address() as old, Address() as new):
            index = index_of(new.link)
            return remove_address(index, old.address, old.peer), add_address(index, new.address)
        case Remove(Address() as item):
            return (remove_address(index_of(item.link), item.address, item.peer),)
        case Add(Neighbour() as item) | Replace(_, Neighbour() as item):
            return (put_neighbour(index_of(item.link), item.address, item.mac),)
        case Remove(Neighbour() as item):
            return (remove_neighbour(index_of(item.link), item.address),)
        case Add(FdbEntry() as item):
            return (put_fdb_entry(index_of(item.link), item.mac, item.destination),)
        case Replace(FdbEntry() as old, FdbEntry() as new):
            return _fdb_requests(old, new, index_of(new.link))
        case Remove(FdbEntry() as item):
            return (remove_fdb_entry(index_of(item.link), item.mac),)
        case Add(Route() as item) | Replace(_, Route() as item):
            return _route_put(item, _record(item, index_of), item.link in by_next_hops)
        case Remove(Route() as item):
            return _route_removal(item, _record(item, index_of))
        case _:
            raise TypeError(f"not an operation on an address, neighbour, FDB entry or route: {operation!r}")


def _fdb_requests(old: FdbEntry, new: FdbEntry, index: int) -> tuple[Request, ...]:
    """Return the requests that replace `old` with `new`.

    The kernel changes the first destination in place, unless the planned destination is already among the
    other destinations. Surplus destinations are removed after that, so that no frame is lost.
    """
    put = put_fdb_entry(index, new.mac, new.destination)
    if not old.is_plain:
        # No request can remove single attributes of the object. A short gap loses no frame, because frames
        # already take another path.
        return remove_fdb_entry(index, new.mac), put
    if not old.others:
        return (put,)
    left_over = [one for one in (old.destination, *old.others) if one != new.destination]
    return put, *(remove_fdb_entry(index, new.mac, one) for one in left_over)


def _route_put(route: Route, record: RouteRecord, by_next_hop: bool) -> tuple[Request, ...]:
    number = next_hop_number(route) if by_next_hop else None
    if number is None or route.gateway is None:
        return (put_route(record),)
    protocol, is_onlink = route.protocol, route.is_onlink
    next_hop = put_next_hop(number, record.index, route.gateway, protocol=protocol, is_onlink=is_onlink)
    return next_hop, put_route_by(record, number)


def _route_removal(route: Route, record: RouteRecord) -> tuple[Request, ...]:
    """Return the requests that remove a route, with or without a next-hop object.

    The route is removed first, because the kernel would search the whole table if the next-hop object were
    removed first.
    """
    number = next_hop_number(route)
    if number is None:
        return (remove_route(record),)
    return remove_route_by(record, number), remove_next_hop(number), remove_route(record)


def _record(route: Route, index_of: IndexOf) -> RouteRecord:
    return RouteRecord(
        destination=route.destination,
        index=index_of(route.link) if route.link else 0,
        gateway=route.gateway,
        source=route.source,
        metric=route.metric,
        protocol=route.protocol,
        scope=route.scope,
        kind=_KIND_NUMBERS.get(route.kind, UNICAST),
        is_onlink=route.is_onlink,
        mtu=route.mtu,
        is_multipath=route.kind == "multipath",
    )


# Routes that refer to next-hop objects, which make tens of thousands of routes cheap.
#
# If a new route contains its gateway, the kernel searches all routes of the link that contain a gateway for a
# route with the same attributes (net/ipv4/fib_semantics.c, fib_find_info): 10,000 routes take one second,
# 50,000 one minute. If a route refers to a next-hop object, the kernel finds the object by its number. The
# kernel lists a route with a next-hop object by its gateway and link, like any other route. However, `ip
# route` also shows `nhid`, and the kernel removes the route when the link loses its carrier. Therefore
# next-hop objects are used only for thousands of routes. A physical link can lose its carrier while no daemon
# runs that would restore the routes. Therefore the minimum number is higher for physical links.
#
# Each route has its own next-hop object, which is removed together with the route. See docs/decisions.

WORTH_IT = 2000
"""Minimum number of routes of one batch to a tunnel's device for which next-hop objects are used."""

WORTH_IT_ON_A_CABLE = 5_000
"""Minimum number of routes of one batch to any other link for which next-hop objects are used."""

_LONGEST_PREFIX = 27
"""Maximum prefix length of a destination. Up to this length, the zero bits at the end of a network address
have room for the prefix length."""

_READABLE = "/proc/sys/net/ipv4/nexthop_compat_mode"


def next_hop_number(route: Route) -> int | None:
    """Return the unique number of the route's next-hop object, or None if routes of this kind have no
    next-hop object.
    """
    prefix = route.destination
    if (
        isinstance(prefix, IPv4Network)
        and isinstance(route.gateway, IPv4Address)
        and 0 < prefix.prefixlen <= _LONGEST_PREFIX
        and (route.metric, route.source, route.kind) == (0, None, "unicast")
    ):
        return int(prefix.network_address) | prefix.prefixlen
    return None


def links_worth_it(operations: Iterable[Operation]) -> Set[str]:
    """Return the links for which these operations contain enough routes to use next-hop objects."""
    counts: Counter[tuple[str, bool]] = Counter()
    for operation in operations:
        match operation:
            case Add(Route() as route) | Replace(_, Route() as route):
                counts[route.link, route.is_onlink] += 1
            case _:
                pass
    return {
        link
        for (link, is_onlink), count in counts.items()
        if count >= (WORTH_IT if is_onlink else WORTH_IT_ON_A_CABLE)
    }


def are_next_hops_readable() -> bool:
    """Return whether the kernel shows the gateway of a route that refers to a next-hop object."""
    try:
        with open(_READABLE, encoding="ascii") as setting:
            return setting.read().strip() == "1"
    except OSError:
        return False  # a kernel before 5.3
