"""The settings of this host on the path of packets: sysctls, links, traffic control, policy rules, routes."""

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

from pyflannel.errors import TargetError
from pyflannel.kernel.filters.programs import run_program
from pyflannel.model.host import QueueingDiscipline, TakingFilter
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.route import RouteAnswer, Way

_IPV4, _IPV6 = Path("/proc/sys/net/ipv4"), Path("/proc/sys/net/ipv6/conf")
_DEVICES = Path("/sys/class/net")


def forwards(family: Family) -> bool | None:
    """Return whether the host forwards packets of a family; None if the setting is unreadable."""
    value = _number(_IPV4 / "ip_forward" if family == 4 else _IPV6 / "all/forwarding")
    return None if value is None else value != 0


def unforwarded(links: Iterable[str], family: Family) -> frozenset[str]:
    """Return the links whose received packets of a family the host does not forward.

    For IPv6, only the setting of the whole host counts, and since Linux 6.17 `force_forwarding` of a link
    (ip6_forward in net/ipv6/ip6_output.c).
    """
    if family == 4:
        return frozenset(link for link in links if _number(_IPV4 / f"conf/{link}/forwarding") == 0)
    if forwards(family) is not False:
        return frozenset()
    return frozenset(link for link in links if _number(_IPV6 / f"{link}/force_forwarding") != 1)


def is_strict(link: str) -> bool:
    """Return whether the host drops packets whose return route uses another link than the link on which they
    arrived (RFC 3704).

    The greater value of the global setting and the setting of the link applies
    (Documentation/networking/ip-sysctl).
    """
    return max(_number(_IPV4 / f"conf/{name}/rp_filter") or 0 for name in ("all", link)) == 1


def lacks_arp(link: str) -> bool:
    """Return whether ARP is off on a link whose frames have MAC addresses (linux/if.h)."""
    flags = _number(_DEVICES / link / "flags") or 0
    return bool(flags & _NO_ARP) and is_ethernet(link)


def ignores_arp(link: str) -> bool:
    """Return whether the kernel answers no ARP requests for its addresses at a link (arp_ignore of
    networking/ip-sysctl.rst).
    """
    return max(_number(_IPV4 / f"conf/{name}/arp_ignore") or 0 for name in ("all", link)) == _NO_ANSWER


_NO_ANSWER = 8


def ignores_echoes(family: Family) -> bool:
    """Return whether the kernel answers no ICMP echo requests of a family."""
    return (
        _number(_IPV4 / "icmp_echo_ignore_all" if family == 4 else _IPV6.parent / "icmp/echo_ignore_all") == 1
    )


def is_ethernet(link: str) -> bool:
    """Return whether the frames of a link have MAC addresses (linux/if_arp.h)."""
    return _number(_DEVICES / link / "type") == _ETHERNET


_NO_ARP, _ETHERNET = 0x80, 1


def own_ttl(link: str, family: Family) -> int | None:
    """Return the TTL of the packets that this host sends by a link, or their hop limit; None if it is
    unreadable. IPv6 uses the setting of the link (ip6_dst_hoplimit in net/ipv6/output_core.c).
    """
    return _number(_IPV4 / "ip_default_ttl" if family == 4 else _IPV6 / f"{link}/hop_limit")


def fragment_memory(family: Family) -> dict[str, int]:
    """Return the settings that limit the memory for fragments of packets, in bytes. IPv6 has a separate limit
    for connection tracking.
    """
    ipv6 = {
        "net.ipv6.ip6frag_high_thresh": _IPV6.parent,
        "net.netfilter.nf_conntrack_frag6_high_thresh": _TRACKING,
    }
    places = {"net.ipv4.ipfrag_high_thresh": _IPV4} if family == 4 else ipv6
    limits = {name: _number(place / name.rpartition(".")[2]) for name, place in places.items()}
    return {name: limit for name, limit in limits.items() if limit is not None}


async def tunnel_ttl(link: str) -> int | None:
    """Return the TTL of the outer packets of a vxlan device; None if the device uses the TTL of the host,
    or its TTL is unreadable.
    """
    with contextlib.suppress(TargetError, ValueError, KeyError, TypeError, IndexError):
        ran = await run_program("ip", "-json", "-details", "link", "show", "dev", link)
        value = json.loads(ran.output)[0]["linkinfo"]["info_data"]["ttl"]
        return value if isinstance(value, int) and value else None
    return None


async def passthru_links(kinds: Iterable[str]) -> dict[str, str]:
    """Return the macvlan and macvtap links with the mode passthru, each with the link whose frames it takes;
    empty if they are unreadable.

    `kinds`: the kinds of all links of the host.
    """
    found: dict[str, str] = {}
    for kind in _OF_MACVLAN.intersection(kinds):
        with contextlib.suppress(TargetError, ValueError, KeyError, TypeError):
            ran = await run_program("ip", "-json", "-details", "link", "show", "type", kind)
            found |= passthru_in(ran.output)
    return found


_OF_MACVLAN = frozenset({"macvlan", "macvtap"})


def passthru_in(output: str) -> dict[str, str]:
    """Return the links with the mode passthru in the output of `ip -json -details link show`."""
    return {
        one["ifname"]: one["link"]
        for one in json.loads(output or "[]")
        if one.get("linkinfo", {}).get("info_data", {}).get("mode") == "passthru" and "link" in one
    }


def port_mtus(bridge: str) -> dict[str, int]:
    """Return the MTU of each port of a bridge, in bytes, by name."""
    with contextlib.suppress(OSError):
        ports = os.listdir(_DEVICES / bridge / "brif")
        return {port: mtu for port in sorted(ports) if (mtu := _number(_DEVICES / port / "mtu")) is not None}
    return {}


def silent_ports(bridge: str) -> dict[str, bool]:
    """Return the ports of a bridge that learn no MAC addresses, by name: True if frames to unknown MAC
    addresses leave through the port.
    """
    settings = {port: _DEVICES / port / "brport" for port in port_mtus(bridge)}
    return {
        port: bool(_number(path / "unicast_flood"))
        for port, path in settings.items()
        if _number(path / "learning") == 0
    }


def closed_ports(bridge: str) -> dict[str, str]:
    """Return the ports of a bridge that carry no frames, by name, with their state in words of `ip link`:
    DOWN or NO-CARRIER.
    """
    found: dict[str, str] = {}
    for port in port_mtus(bridge):
        if not (_number(_DEVICES / port / "flags") or 0) & _UP:
            found[port] = "DOWN"
        elif _number(_DEVICES / port / "carrier") == 0:
            found[port] = "NO-CARRIER"
    return found


_UP = 0x1

_TRACKING = Path("/proc/sys/net/netfilter")


def tracked_connections() -> tuple[int, int] | None:
    """Return the number of connections that the kernel tracks, and its maximum; None without connection
    tracking.
    """
    count, most = (_number(_TRACKING / f"nf_conntrack_{name}") for name in ("count", "max"))
    return None if count is None or not most else (count, most)


async def xdp_links() -> frozenset[str]:
    """Return the links with an XDP program; empty if they are unreadable."""
    with contextlib.suppress(TargetError, ValueError, KeyError, TypeError):
        links = json.loads((await run_program("ip", "-json", "link", "show")).output)
        return frozenset(str(one["ifname"]) for one in links if "xdp" in one)
    return frozenset()


_REFUSED = {
    "tunnel in": (os.strerror(errno.EXDEV), os.strerror(errno.EINVAL)),
    "container in": (os.strerror(errno.EXDEV),),
    "container out": (os.strerror(errno.EXDEV),),
    "host out": (),
}
"""Error codes of the kernel for a packet whose source the reverse path filter refuses. For a packet to the
host itself, the answer may be EINVAL, which is also the answer for a blackhole."""

_KERNELS_RULES = frozenset({"0:", "32766:", "32767:"})


async def policy_rules(family: Family) -> tuple[str, ...]:
    """Return the policy rules of other programs, as `ip rule` lists them; empty if they are unreadable."""
    with contextlib.suppress(TargetError):
        return rules_in((await run_program("ip", f"-{family}", "rule")).output)
    return ()


def rules_in(output: str) -> tuple[str, ...]:
    """Return the policy rules of other programs in the output of `ip rule`."""
    rules = (line.split() for line in output.split("\n"))
    return tuple(" ".join(words) for words in rules if words and words[0] not in _KERNELS_RULES)


async def routes_in_table(table: str, destination: IpAddress) -> tuple[str, ...]:
    """Return the routes of a table that match a destination, the route that the kernel uses first; empty if
    they are unreadable.
    """
    words = f"-{destination.version}", "route", "show", "table", table, "match", str(destination)
    with contextlib.suppress(TargetError):
        ran = await run_program("ip", *words)
        lines = [line for line in _routes_in(ran.output) if line]
        return () if ran.status else tuple(reversed([" ".join(line) for line in lines][-_ROUTES_SHOWN:]))
    return ()


_ROUTES_SHOWN = 2


async def local_routes(network: IpNetwork) -> tuple[str, ...]:
    """Return the routes to parts of a network that other programs added to the table local, which the kernel
    searches first; empty if they are unreadable. The kernel's own routes for addresses are not included.
    """
    words = f"-{network.version}", "route", "show", "table", "local", "root", str(network)
    with contextlib.suppress(TargetError):
        ran = await run_program("ip", *words)
        return () if ran.status else local_routes_in(ran.output)
    return ()


def local_routes_in(output: str) -> tuple[str, ...]:
    """Return the routes of other programs in the output of `ip route show table local`."""
    routes = (words for words in _routes_in(output) if words)
    return tuple(" ".join(words) for words in routes if ("proto", "kernel") not in pairwise(words))


def _routes_in(output: str) -> Iterator[list[str]]:
    """Yield the words of each route in the output of `ip route`."""
    for line in output.split("\n"):
        yield [word for word in line.split() if word not in _STATES]


_STATES = frozenset({"linkdown", "dead", "offload", "trap"})
"""Words for the state of a route, which a command that deletes the route must not contain."""


async def queueing_disciplines() -> tuple[QueueingDiscipline, ...]:
    """Return the queueing disciplines of all links; empty if they are unreadable."""
    with contextlib.suppress(TargetError, ValueError, KeyError, TypeError):
        ran = await run_program("tc", "-json", "-statistics", "qdisc", "show")
        return tuple(
            QueueingDiscipline(link=one["dev"], kind=one["kind"], drops=one.get("drops", 0))
            for one in json.loads(ran.output)
        )
    return ()


async def taking_filters(
    links: Mapping[str, str], disciplines: Iterable[QueueingDiscipline]
) -> tuple[TakingFilter, ...]:
    """Return the filters of traffic control at links that have dropped or redirected packets; empty if they
    are unreadable. Only the first _PLACES_ASKED places with filters are read.

    eBPF programs are not examined, because the kernel shows no actions of a program.

    Args:
        links: the kind of every link of the host, by name.
        disciplines: the queueing disciplines of the links.
    """
    with contextlib.suppress(TargetError, ValueError, KeyError, TypeError):
        places = [
            (one.link, direction)
            for one in disciplines
            if one.link in links
            for direction in _FILTERED.get(one.kind, ())
        ][:_PLACES_ASKED]
        words = ("tc", "-json", "-statistics", "filter", "show", "dev")
        shown = await asyncio.gather(*(run_program(*words, *place) for place in places))
        return tuple(
            one
            for (link, direction), ran in zip(places, shown, strict=True)
            for one in taking_in(ran.output, link, direction, links)
        )
    return ()


_PLACES_ASKED = 32
"""Maximum number of links and directions whose filters are read. `tc` needs about 10 ms for each."""


_FILTERED = {"clsact": ("ingress", "egress"), "ingress": ("ingress",)}
"""The directions in which the filters of a queueing discipline may drop packets."""

_TAKING = frozenset({"drop", "stolen"})


def taking_in(output: str, link: str, direction: str, links: Mapping[str, str]) -> Iterator[TakingFilter]:
    """Yield the filters in the output of `tc -json -statistics filter show` whose actions took packets.

    A redirection to an ifb device loses no packets, because the device returns them.
    """
    for one in json.loads(output or "[]"):
        for action in one.get("options", {}).get("actions", ()):
            there = action.get("to_dev", "")
            stats = action.get("stats", {})
            packets = stats.get("drops", 0) if action["kind"] == "police" else stats.get("packets", 0)
            is_taking = action.get("control_action", {}).get("type") in _TAKING
            if is_taking and packets and links.get(there) != "ifb":
                yield TakingFilter(
                    link=link,
                    direction=direction,
                    priority=one["pref"],
                    text=f"{one['kind']} {f'redirects to {there}' if there else 'drops'}",
                    packets=packets,
                )


_NFT_FAMILIES: Mapping[Family, str] = {4: "ip", 6: "ip6"}


async def docker_table(family: Family) -> str:
    """Return the rules of Docker's nftables engine for a family as nft prints them; "" if this engine is not
    in use.
    """
    with contextlib.suppress(TargetError):
        ran = await run_program("nft", "list", "table", _NFT_FAMILIES[family], "docker-bridges")
        return "" if ran.status else ran.output
    return ""


async def ask_route(
    way: Way,
    destination: IpAddress,
    *,
    source: IpAddress | None = None,
    arrives_at: str | None = None,
    rules: tuple[str, ...] = (),
    mark: int = 0,
    kind: tuple[str, ...] = (),
) -> RouteAnswer | None:
    """Return the answer of the kernel about the route of a packet; None if the kernel cannot be asked.

    `kind`: protocol, ports and type of service of the packet, as words of `ip route get`.
    """
    question = ["ip", f"-{destination.version}", "route", "get", str(destination)]
    question += [] if source is None else ["from", str(source)]
    question += [] if arrives_at is None else ["iif", arrives_at]
    question += [] if not mark else ["mark", hex(mark)]
    question += kind
    try:
        ran = await run_program(*question)
    except TargetError:
        return None
    answer = " ".join(ran.output.split("\n")[0].split()) if not ran.status else ran.cause
    words = [] if ran.status else answer.split()
    after = dict(pairwise(words))
    is_ipv4 = destination.version == 4  # the kernel has no reverse path filter for IPv6
    is_refused = is_ipv4 and ran.status and any(one in ran.complaint for one in _REFUSED[way])
    return RouteAnswer(
        way=way,
        destination=destination,
        text=f"{' '.join(question)}: {answer}",
        link=after.get("dev"),
        gateway=_address(after.get("via")),
        is_local=words[:1] == ["local"],
        kind=next((word for word in words[:1] if word in _KINDS), "unicast"),
        refused_at=arrives_at if is_refused else None,
        rules=rules,
    )


_KINDS = frozenset({"local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit"})


def _address(text: str | None) -> IpAddress | None:
    """Return the address; None for the word `inet6`, which precedes the IPv6 gateway of an IPv4 route."""
    with contextlib.suppress(ValueError):
        return None if text is None else ip_address(text)
    return None


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"), 0)
    return None
