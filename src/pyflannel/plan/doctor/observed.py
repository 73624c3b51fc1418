"""The observations of a host for the checks, and the texts of their findings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from pyflannel.model.fast_path import BpfProgram
from pyflannel.model.host import Interfaces
from pyflannel.model.item import Item
from pyflannel.model.link import MARK, Link
from pyflannel.model.netfilter import Ruleset
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.packet_filter import LeftRules
from pyflannel.model.route import Route
from pyflannel.model.status import Membership, Status

NAMED = 8
"""Maximum number of objects that one finding names."""


Way = Literal["tunnel in", "container in", "container out", "host out"]
"""A tunnel packet from a peer to this host; a packet of a container from, or to, another host; a packet that
this host itself sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteAnswer:
    """The answer of the kernel about the route of one packet.

    Attributes:
        destination: the destination of the packet.
        text: the question and the answer in one line.
        link: interface by which the packet leaves; None if it does not leave.
        gateway: the next hop, if it is not the destination itself.
        is_local: the packet is for this host itself.
        refused_at: interface whose reverse path filter drops the packet; None if none does.
        rules: policy rules of other programs, as `ip rule` lists them.
    """

    way: Way
    destination: IPv4Address
    text: str
    link: str | None = None
    gateway: IPv4Address | None = None
    is_local: bool = False
    refused_at: str | None = None
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerNamespace:
    """Another network namespace of this machine, which may be that of a container.

    Attributes:
        pid: a process in it.
        process: this process in words.
        addresses: its own IPv4 addresses.
        routes: the destinations of the routes in its main table.
    """

    pid: int
    process: str
    addresses: frozenset[IPv4Address] = frozenset()
    routes: tuple[IPv4Network, ...] = ()

    def has_route_to(self, destination: IPv4Address) -> bool:
        """Return whether a packet to a destination can leave the namespace."""
        return any(destination in route for route in self.routes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A file of certificates for the store; of several in it, the one that is valid for longest.

    Attributes:
        noun: its use: `client certificate`, `certificate of the authority`.
        not_before: seconds since the epoch.
        not_after: seconds since the epoch.
    """

    path: str
    noun: str
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The observations of a host.

    Attributes:
        claimed: the device name that the daemon claims; None if pyflannel has not run here.
        original: process ID of an original flanneld on this host.
        items: all links, all routes of the main table, and the filter rules with names of flannel.
        left_rules: other filter rules that an original left, or may have left.
        forwards: the host forwards IPv4 packets; None if this is unknown.
        unforwarded: links whose packets the host does not forward, although it forwards those of others.
        strict: links with a strict reverse path filter.
        ruleset: all rules of netfilter, without the tables of pyflannel.
        answers: answers of the kernel about the routes of packets.
        interfaces: all interfaces with their addresses.
        programs: programs of the claimed device, at the hooks of links.
        on_link: prefixes that the underlay reaches without a gateway.
        ports: MTU in bytes of the ports of each bridge in this host's subnet, by name.
        docker0_ports: number of containers at docker0, if it exists.
        docker_drops: rules of Docker 28 or newer that drop packets of other hosts, by the name of the bridge.
        mark: alias of the links of the daemon.
        published_mac: MAC address of the VTEP in the last known lease of this host; None if it has none.
        containers: the network namespaces of containers, as far as they are visible.
        certificates: those that flanneld uses for the store.
        now: seconds since the epoch by the clock of this host.
        has_unit: systemd runs on this host and has the unit flanneld.service.
    """

    status: Status
    membership: Membership
    claimed: str | None = None
    original: int | None = None
    items: tuple[Item, ...] = ()
    left_rules: tuple[LeftRules, ...] = ()
    forwards: bool | None = True
    unforwarded: frozenset[str] = frozenset()
    strict: frozenset[str] = frozenset()
    ruleset: Ruleset = ()
    answers: tuple[RouteAnswer, ...] = ()
    interfaces: Interfaces = field(default_factory=Interfaces)
    programs: tuple[BpfProgram, ...] = ()
    on_link: tuple[IpNetwork, ...] = ()
    ports: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    docker0_ports: int = 0
    docker_drops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mark: str = MARK
    published_mac: str | None = None
    containers: tuple[ContainerNamespace, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    now: float = 0.0
    has_unit: bool = True


def main_route(seen: Observed, destination: IPv4Address) -> Route | None:
    """Return the route of the main table that the kernel uses for a destination."""
    routes = (
        item
        for item in seen.items
        if isinstance(item, Route)
        and isinstance(item.destination, IPv4Network)
        and destination in item.destination
    )
    return max(routes, key=lambda route: (route.destination.prefixlen, -route.metric), default=None)


def some(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the first texts, and the number of the others."""
    more = len(texts) - NAMED
    return (*texts[:NAMED], f"… and {more} more") if more > 0 else tuple(texts)


def shown(item: Item) -> str:
    """Return an object in words; a route with its gateway, its link and its protocol."""
    if not isinstance(item, Route):
        return item.title
    gateway = f" via {item.gateway}" if item.gateway is not None else ""
    link = f" dev {item.link}" if item.link else ""
    return f"{item.title}{gateway}{link} proto {item.protocol}"


def removal(item: Item) -> str:
    """Return the command that removes a link or a route; "" for other items."""
    match item:
        case Link():
            return f"ip link delete {item.name}"
        case Route():
            kind = "" if item.kind in ("unicast", "multipath") else f"{item.kind} "
            metric = f" metric {item.metric}" if item.metric else ""
            return f"ip route delete {kind}{item.destination}{metric} proto {item.protocol}"
        case _:
            return ""
