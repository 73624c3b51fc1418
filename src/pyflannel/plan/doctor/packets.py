"""Faults of this host that stop packets of the overlay: forwarding, routes, policy rules."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_network
from shlex import quote

from pyflannel.model.network_config import Family, IpAddress, IpNetwork, is_part
from pyflannel.model.route import Route
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.observed import NAMED, Observed, shown, some
from pyflannel.plan.leftovers import is_within


def forwarding(seen: Observed) -> Iterator[Finding]:
    """Yield findings for settings because of which the host does not forward packets of the overlay."""
    backend = seen.status.backend
    tunnel = backend.link if backend is not None else None
    on_the_way = (*seen.ports, tunnel or seen.membership.underlay or "")
    is_forced = seen.family == 6 and not seen.unforwarded.intersection(on_the_way)
    if seen.forwards is False and not is_forced:
        yield Finding(
            code="forwarding-off",
            severity="error",
            cause=_UNFORWARDED[seen.family],
            evidence=(f"{FORWARDING[seen.family]} = 0",),
            fix=forwarding_on(seen.family, _routers_on(seen)),
        )
        return
    if seen.family == 6:
        return
    if links := [link for link in on_the_way if link in seen.unforwarded]:
        yield Finding(
            code="forwarding-off",
            severity="error",
            cause=f"the host does not forward the packets that arrive at {' and '.join(links)}",
            evidence=tuple(f"net.ipv4.conf.{link}.forwarding = 0" for link in links),
            fix=forwarded(*links),
        )


FORWARDING: Mapping[Family, str] = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
"""The setting that makes the host forward packets of a family."""

_UNFORWARDED: Mapping[Family, str] = {
    4: "the host forwards no packets, so its containers cannot reach other hosts",
    6: "the host forwards no IPv6 packets, so its containers cannot reach other hosts by IPv6",
}
_FROM_ROUTER = 9
"""rtm_protocol of routes from router advertisements (linux/rtnetlink.h, RTPROT_RA)."""


def forwarding_on(family: Family, routers: Iterable[str] = ()) -> str:
    """Return the command that makes the host forward packets of a family.

    `routers`: links with routes from router advertisements. A host that forwards IPv6 packets loses these
    routes, unless accept_ra of the link is 2.
    """
    kept = [quote(f"net/ipv6/conf/{link}/accept_ra=2") for link in routers if family == 6]
    return " ".join(["sysctl -w", *kept, f"{FORWARDING[family]}=1"])


def _routers_on(seen: Observed) -> list[str]:
    routes = (item for item in seen.items if isinstance(item, Route) and item.protocol == _FROM_ROUTER)
    return sorted({route.link for route in routes if route.link})


def forwarded(*links: str) -> str:
    """Return the command that makes the host forward the packets that arrive at these links."""
    return f"sysctl -w {' '.join(quote(f'net/ipv4/conf/{link}/forwarding=1') for link in links)}"


def _short_life(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that routers drop packets of this host, because their TTL is small.

    A vxlan device may have its own TTL; the other tunnels use the TTL of the host, and the programs of the
    fast path a constant. Packets of containers have the TTL of the container. The tunnel of udp reduces
    the TTL of inner packets at both ends, so it drops all packets of the host itself with a TTL of 1 or 2.
    """
    status, link = seen.status, seen.membership.underlay or ""
    backend, path = status.backend, status.fast_path
    lines, commands = [], []
    if seen.own_ttl is not None and seen.own_ttl < _SMALL_TTL:
        name = _TTL[seen.family].format(link)
        lines.append(f"{name.replace('/', '.')} = {seen.own_ttl}")
        commands.append(f"sysctl -w {quote(f'{name}={_USUAL_TTL}')}")
    if backend is not None and seen.tunnel_ttl is not None and seen.tunnel_ttl < _SMALL_TTL:
        lines.append(f"ip -details link show dev {backend.link}: ttl {seen.tunnel_ttl}")
        commands.append(f"ip link set dev {quote(backend.link or '')} type vxlan ttl auto")
    if not lines:
        return
    is_tunnel = backend is not None and backend.port is not None
    if is_tunnel and backend is not None and backend.type == "udp":
        is_tunnel = path is None or path.mode not in ("safe", "flow")
    of_tunnel = seen.tunnel_ttl or seen.own_ttl or _USUAL_TTL
    far = list(_behind_routers(seen))
    is_udp = backend is not None and backend.type == "udp"
    is_expiring = is_udp and seen.own_ttl is not None and seen.own_ttl <= _HOPS_OF_UDP
    is_lost = is_expiring or (is_tunnel and of_tunnel < _FEW_ROUTERS and bool(far))
    least = min(ttl for ttl in (seen.own_ttl, seen.tunnel_ttl) if ttl is not None)
    routers = "the first router drops" if least <= 1 else f"a path of {least} routers loses"
    routers = "the tunnel drops" if is_expiring else routers
    yield Finding(
        code="ttl-low",
        severity="error" if is_lost else "warning",
        cause=f"{routers} packets of this host, because their TTL is {least}",
        evidence=some([*lines, *(f"a router is on the path to {one}" for one in far)]),
        fix="; ".join(commands),
    )


_TTL: Mapping[Family, str] = {4: "net.ipv4.ip_default_ttl", 6: "net/ipv6/conf/{}/hop_limit"}

_SMALL_TTL, _FEW_ROUTERS, _USUAL_TTL = 32, 8, 64
"""A TTL below the first number is too small for long paths. A TTL below the second number is too small for
many networks of one organisation. The third number is the default of the kernel."""


_HOPS_OF_UDP = 2
"""By how much the tunnel of udp reduces the TTL of a packet."""


def _behind_routers(seen: Observed) -> Iterator[IpAddress]:
    """Yield the addresses of peers that this host reaches only through routers."""
    for address in dict.fromkeys(seen.membership.peers.values()):
        if not any(address in prefix for prefix in seen.on_link):
            yield address


def _fragments(seen: Observed) -> Iterator[Finding]:
    """Yield the settings by which the kernel has too little memory to reassemble packets.

    The kernel also reassembles the packets that it only forwards, if it tracks connections.
    """
    small = {name: limit for name, limit in seen.fragment_memory.items() if limit < _LITTLE_MEMORY}
    if small:
        is_none = min(small.values()) < _LARGEST_PACKET
        yield Finding(
            code="fragments-dropped",
            severity="error" if is_none else "warning",
            cause=f"the kernel drops {'all or most' if is_none else 'many'} fragments of packets, because the"
            " memory to reassemble them is too small: large packets of this host and of containers are lost",
            evidence=tuple(f"{name} = {limit}" for name, limit in small.items()),
            fix=f"sysctl -w {' '.join(f'{name}={_USUAL_MEMORY}' for name in small)}",
        )


_LITTLE_MEMORY, _LARGEST_PACKET, _USUAL_MEMORY = 1 << 18, 1 << 16, 1 << 22
"""Bytes for fragments: few packets at a time, less than one packet of the largest size, and the default of
the kernel.
"""


def _reverse_path(seen: Observed) -> Iterator[Finding]:
    """Yield a finding for a strict filter that drops tunnel packets of peers to which this host sends
    through another link.
    """
    backend = seen.status.backend
    tunnel = backend.link if backend is not None else None
    if tunnel is None or tunnel not in seen.strict or any(one.refused_at == tunnel for one in seen.answers):
        return
    elsewhere = [
        item
        for item in seen.items
        if isinstance(item, Route)
        and item.kind == "unicast"
        and item.link != tunnel
        and is_within(item, seen.membership)
    ]
    if elsewhere:
        yield Finding(
            code="strict-reverse-path",
            severity="warning",
            cause=f"packets of these peers from the tunnel are dropped, because the route to these peers "
            f"does not use {tunnel}",
            evidence=(f"rp_filter of {tunnel} is 1, strict", *some([shown(route) for route in elsewhere])),
            fix=loosened(tunnel),
        )


def loosened(link: str) -> str:
    """Return the command that makes the reverse path filter of a link loose."""
    return f"sysctl -w net/ipv4/conf/all/rp_filter=2 {quote(f'net/ipv4/conf/{link}/rp_filter=2')}"


def _source_refused(seen: Observed) -> Iterator[Finding]:
    """Yield findings for packets whose source the kernel refuses, because it would send replies through
    another interface.
    """
    by_link: dict[str, list[str]] = {}
    for one in seen.answers:
        if one.refused_at is not None:
            by_link.setdefault(one.refused_at, []).append(one.text)
    for link, lines in by_link.items():
        yield Finding(
            code="source-refused",
            severity="error",
            cause=f"rp_filter drops packets of peers that arrive at {link}, because the route to their "
            f"source uses another interface",
            evidence=some(lines),
            fix=loosened(link),
        )


def _local_routes(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the kernel takes or refuses packets to containers, because the table local
    contains a route to them, which precedes all policy rules and the main table.
    """
    own = seen.membership.subnet
    if routes := [route for route in seen.local_routes if is_blocking(route, seen)]:
        yield Finding(
            code="overlay-address",
            severity="error",
            cause="the table local of this host has routes to containers, so this host receives the packets"
            " to them itself, or refuses these packets",
            evidence=some([f"ip -{seen.family} route show table local: {route}" for route in routes]),
            fix="; ".join(f"ip -{seen.family} route delete {one} table local" for one in routes[:NAMED]),
        )
        return
    taken = [
        one
        for one in seen.answers
        if one.way == "container out" and one.is_local and seen.interfaces.holder(one.destination) is None
        if own is not None and one.destination not in own
    ]
    if taken:
        first = taken[0].destination
        yield Finding(
            code="overlay-address",
            severity="error",
            cause="the table local of this host has routes to addresses of other hosts, so this host receives"
            " the packets for these addresses itself",
            evidence=some([one.text for one in taken]),
            fix="; ".join(
                f"ip -{seen.family} route delete local {one.destination} table local" for one in taken[:NAMED]
            )
            + f"  # for a longer range: ip -{seen.family} route show table local match {first}",
        )


def is_blocking(route: str, seen: Observed) -> bool:
    """Return whether a route of the table local concerns containers. An address of this host's own subnet
    that no container has may be used by a program of this host.
    """
    own, destination = seen.membership.subnet, destination_of(route)
    if own is None or destination is None:
        return False
    if not route.startswith("local ") or not is_part(destination, own):
        return True
    return destination.num_addresses > 1 or any(
        destination.network_address in one.addresses for one in seen.containers
    )


def destination_of(route: str) -> IpNetwork | None:
    """Return the destination of a route in the words of `ip route`; None if it has none."""
    words = [word for word in route.split()[:2] if word[0].isdigit() or ":" in word]
    with suppress(ValueError):
        return ip_network(words[0]) if words else None
    return None


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    forwarding,
    _short_life,
    _fragments,
    _source_refused,
    _local_routes,
    _reverse_path,
)
