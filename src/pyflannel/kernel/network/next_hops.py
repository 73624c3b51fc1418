"""Next hops that are objects of their own, for tens of thousands of routes."""

from collections import Counter
from collections.abc import Iterable, Set
from ipaddress import IPv4Address, IPv4Network

from pyflannel.errors import TargetError
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.route import Route
from pyflannel.model.state import Add, Operation, Replace
from pyflannel.wire.netlink.next_hops import (
    dump_next_hops,
    next_hop_protocol,
    parse_next_hop_number,
    remove_next_hop,
)

# Which routes lead by next hops that are objects of their own, so that tens of thousands cost little.
#
# To add a route that names its gateway itself, the kernel walks all such routes of the link, as it would
# share what two have in common (net/ipv4/fib_semantics.c, fib_find_info): 10,000 take it a second, 50,000 a
# minute. A route that refers to a next hop is found by that. It is read with gateway and link like any
# other, but `ip route` shows it with `nhid`, and the kernel drops it when its link loses the carrier. So
# only those that come by the thousand are made so; and those on a physical link, whose cable may be pulled
# while no daemon runs that would put them back, only by five thousand.
#
# Each has a next hop of its own, which goes with it. See docs/decisions.

WORTH_IT = 2000
"""So many routes that are put in on a tunnel's device together."""

WORTH_IT_ON_A_CABLE = 5_000
"""So many on another link."""

_LONGEST_PREFIX = 27
"""Up to it the length fits beside the prefix in one number."""

_READABLE = "/proc/sys/net/ipv4/nexthop_compat_mode"


def next_hop_number(route: Route) -> int | None:
    """Return the number of the route's next hop, which no other route has; None when it has none ever."""
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
    """Return the links whose routes among these operations are so many that they should lead by next hops."""
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


def are_readable() -> bool:
    """Return whether the kernel shows the gateway of a route that refers to a next hop."""
    try:
        with open(_READABLE, encoding="ascii") as setting:
            return setting.read().strip() == "1"
    except OSError:
        return False  # a kernel before 5.3


async def remove_next_hops(protocol: int) -> int:
    """Remove the next hops of this rtm_protocol, and what refers to them; return how many there were.

    A kernel that knows no next hops has none.

    Raises:
        TargetError: the kernel did not answer.
    """

    def read(body: bytes) -> int | None:
        return parse_next_hop_number(body) if next_hop_protocol(body) == protocol else None

    requests = RequestSocket()
    try:
        try:
            numbers = await requests.dump(dump_next_hops(), read)
        except TargetError:
            return 0
        await requests.transact([remove_next_hop(number) for number in numbers])
    finally:
        requests.close()
    return len(numbers)
