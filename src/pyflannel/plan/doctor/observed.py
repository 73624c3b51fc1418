"""The observations of a host for the checks, and the texts of their findings."""

from collections.abc import Mapping, Sequence
from shlex import quote

from msgspec import Struct, field

from pyflannel.model.fast_path import BpfProgram
from pyflannel.model.host import Interfaces, IpsecEnds, IpsecPolicy, QueueingDiscipline, TakingFilter
from pyflannel.model.item import Item
from pyflannel.model.link import MARK, Link
from pyflannel.model.netfilter import Ruleset
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.packet_filter import LeftRules
from pyflannel.model.probe import EchoResult
from pyflannel.model.route import Route, RouteAnswer
from pyflannel.model.status import Membership, Status

NAMED = 8
"""Maximum number of objects that one finding names."""

PROBED = 64
"""Maximum number of addresses of containers to which doctor sends an ICMP echo request."""

DOCKER0 = "docker0"
"""The bridge of Docker's default network."""

DOCKER_FIX = "mk-docker-opts -c -d /etc/default/docker  # restart Docker with it, recreate containers"
"""The command that gives Docker the options of this host."""


class BadNeighbour(Struct, frozen=True, kw_only=True):
    """A neighbour entry on the underlay that may stop the packets to a peer.

    Attributes:
        address: the next hop on the path to the peer: the peer itself, or a gateway.
        text: the entry, in words of `ip neighbour`.
        is_set: True if a person or a program set the MAC address; otherwise the next hop answers neither
            ARP nor neighbour discovery.
    """

    address: IpAddress
    link: str
    text: str
    is_set: bool = False


class ContainerLink(Struct, frozen=True, kw_only=True):
    """A link in the namespace of a container. The link has an address of this host's subnet, or its other end
    is a port of a bridge in this subnet.

    Attributes:
        mtu: MTU in bytes.
        mac: MAC address in lower case with colons; "" if the link has none.
        peer: index of the other end of a veth in the namespace of the host; 0 if it is unknown.
        is_up: True if the link is administratively up.
        addresses: all addresses of the link, of both families.
        has_ipv6: True if IPv6 is enabled on the link.
        hop_limit: hop limit of IPv6 packets that leave by the link; None if it is unknown.
        xdp: the option by which `ip link set` removes the XDP program of the link; "" without a program.
        programs: directions, ingress or egress, in which eBPF programs of traffic control see the packets.
        has_filters: True if the link may have filters of traffic control.
    """

    name: str
    mtu: int
    mac: str = ""
    peer: int = 0
    is_up: bool = True
    addresses: frozenset[IpAddress] = frozenset()
    has_ipv6: bool = True
    hop_limit: int | None = None
    xdp: str = ""
    programs: tuple[str, ...] = ()
    has_filters: bool = False

    def addresses_in(self, subnet: IpNetwork) -> list[IpAddress]:
        """Return the addresses of the link in a subnet."""
        return [address for address in self.addresses if address in subnet]


class NamespaceSettings(Struct, frozen=True, kw_only=True):
    """The sysctls in the namespace of a container that stop its own packets.

    Attributes:
        ports: the local ports of connections that a program opens (ip_local_port_range).
        reserved: the ports that the kernel never chooses (ip_local_reserved_ports).
        ttl: TTL of IPv4 packets (ip_default_ttl).
    """

    ports: range
    reserved: tuple[range, ...] = ()
    ttl: int = 64


class SetNeighbour(Struct, frozen=True, kw_only=True):
    """A permanent neighbour entry in the namespace of a container, or of this host at a bridge."""

    address: IpAddress
    link: str
    mac: str


class SilentPort(Struct, frozen=True, kw_only=True):
    """A port of a bridge that learns no MAC addresses.

    Attributes:
        floods: True if frames to unknown MAC addresses leave through the port.
        macs: the MAC addresses that entries of the FDB assign to the port.
    """

    bridge: str
    name: str
    index: int
    floods: bool
    macs: frozenset[str] = frozenset()


class ContainerRoute(Struct, frozen=True, kw_only=True):
    """A route in the namespace of a container.

    Attributes:
        gateway: the next hop; None if the destination is on the link.
        is_refused: True if the namespace refuses packets for the destination, for example by a blackhole.
    """

    destination: IpNetwork
    gateway: IpAddress | None = None
    is_refused: bool = False


class InnerAnswer(Struct, frozen=True, kw_only=True):
    """The answer of the kernel about the route of a packet of a container to another host.

    Attributes:
        asked_source: source of the packet; None if the kernel chooses it.
        link: link by which the packet leaves; "" if the kernel does not send it.
        source: the source that the kernel chooses; None if the packet has a source.
        error: error of the kernel in words; "" if the kernel sends the packet.
    """

    destination: IpAddress
    asked_source: IpAddress | None = None
    link: str = ""
    gateway: IpAddress | None = None
    source: IpAddress | None = None
    error: str = ""


class RouteTables(Struct, frozen=True, kw_only=True):
    """The policy rules and routes from which the kernel chooses for a packet of a container.

    Attributes:
        rules: policy rules of other programs, as `ip rule` lists them.
        tables: for each table that was read, its routes to the destination, the most specific first.
    """

    destination: IpAddress
    rules: tuple[str, ...]
    tables: Mapping[str, tuple[str, ...]]


class ContainerNamespace(Struct, frozen=True, kw_only=True):
    """Another network namespace of this machine, which may belong to a container.

    Attributes:
        pid: ID of a process in the namespace.
        process: description of this process.
        container_id: first 12 characters of the ID that an engine gave the container; "" without an engine.
        frozen: the file that shows that the control group of the process is frozen; "" if it is not.
        addresses: addresses of the namespace, of both families.
        routes: the routes of the namespace, of both families.
        links: links in this host's subnet, or at a bridge in this subnet; empty if they were not read.
        set_neighbours: permanent neighbour entries of both families; empty if they were not read.
        answers: answers of the kernel about packets to other hosts; empty if the kernel was not asked.
        route_tables: policy rules and routes for some packets whose answer is unusual.
        silent: addresses of the namespace that did not answer an ICMP echo request of this host.
        ruleset: the rules of netfilter in the namespace; empty if they were not read.
        policies: the IPsec policies in the namespace; empty if they were not read.
        taking_filters: filters of traffic control at links of the namespace that took packets; empty if they
            were not read.
        settings: the sysctls of the namespace; None if they were not read.
    """

    pid: int
    process: str
    container_id: str = ""
    frozen: str = ""
    addresses: frozenset[IpAddress] = frozenset()
    routes: tuple[ContainerRoute, ...] = ()
    links: tuple[ContainerLink, ...] = ()
    set_neighbours: tuple[SetNeighbour, ...] = ()
    answers: tuple[InnerAnswer, ...] = ()
    route_tables: tuple[RouteTables, ...] = ()
    silent: frozenset[IpAddress] = frozenset()
    ruleset: Ruleset = ()
    policies: tuple[IpsecPolicy, ...] = ()
    taking_filters: tuple[TakingFilter, ...] = ()
    settings: NamespaceSettings | None = None

    @property
    def mtus(self) -> Mapping[str, int]:
        """MTU in bytes of the links, by name."""
        return {link.name: link.mtu for link in self.links}

    def route_to(self, destination: IpAddress) -> ContainerRoute | None:
        """Return the route of packets to a destination; None if the namespace has no route. Of two routes to
        one prefix, this is the route that does not refuse packets, because its metric is normally lower.
        """
        routes = (one for one in self.routes if destination in one.destination)
        return max(routes, key=lambda one: (one.destination.prefixlen, not one.is_refused), default=None)

    def has_route_to(self, destination: IpAddress) -> bool:
        """Return whether a packet to a destination can leave the namespace."""
        route = self.route_to(destination)
        return route is not None and not route.is_refused

    def expects_on_link(self, destination: IpAddress, own: IpNetwork) -> IpNetwork | None:
        """Return the prefix of an own address in the subnet `own` that also contains a destination, if the
        namespace therefore does not send packets for the destination to a gateway.
        """
        route = self.route_to(destination)
        if route is None or route.is_refused or route.gateway is not None:
            return None
        prefix = route.destination
        return prefix if any(held in own and held in prefix for held in self.addresses) else None


class Certificate(Struct, frozen=True, kw_only=True):
    """A certificate file for the store. If the file contains several certificates, this is the certificate
    that is valid for the longest time.

    Attributes:
        noun: use of the certificate: `client certificate`, `certificate of the authority`.
        not_before: start of its validity, in seconds since the epoch.
        not_after: end of its validity, in seconds since the epoch.
    """

    path: str
    noun: str
    not_before: float
    not_after: float


class OpenFiles(Struct, frozen=True):
    """The number of open files of a process, its limit, and the greatest possible limit (hard limit)."""

    opened: int
    limit: int
    most: int


class DaemonProcess(Struct, frozen=True, kw_only=True):
    """The process that holds the lock of the daemon.

    Attributes:
        is_stopped: True if a signal or a debugger stopped the process.
        files: its open files; None if they are unreadable.
    """

    pid: int
    is_stopped: bool = False
    files: OpenFiles | None = None


class LinkSetter(Struct, frozen=True, kw_only=True):
    """A program that sets a link down, or whose command line says so.

    Attributes:
        process: description of the process.
        command: start of its command line.
    """

    pid: int
    process: str
    command: str


class EndedContainer(Struct, frozen=True, kw_only=True):
    """A container of Docker that ended with an error.

    Attributes:
        exit_code: its exit code; 128 and the number of a signal if the signal ended it.
        ago_s: seconds since its end.
        lacked_memory: True if the kernel killed it for lack of memory.
    """

    name: str
    exit_code: int
    ago_s: float
    lacked_memory: bool = False


class DockerEngine(Struct, frozen=True, kw_only=True):
    """The process of the Docker engine.

    Attributes:
        is_stopped: True if a signal or a debugger stopped the process.
        hangs_s: seconds in which the process did not answer at its socket; None if it answered.
        ended: the containers that ended with an error during the last hour, the latest first.
    """

    pid: int
    is_stopped: bool = False
    hangs_s: float | None = None
    ended: tuple[EndedContainer, ...] = ()


class Observed(Struct, frozen=True, kw_only=True):
    """The observations of a host in one family of its network.

    A network with both families is examined as two networks, one per family, on the same host.

    Attributes:
        status: the status as in a network with this family alone.
        family: the family.
        is_first: True for the first family of the network, whose findings include those about the whole host.
        may_ask: False if this process has no permission to use the control socket of the daemon.
        daemon: the process of the daemon; None if it does not run, or is not visible.
        forwarder_files: the open files of the forwarder; None without a forwarder, or if they are unreadable.
        claimed: the device name that the daemon claims; None if pyflannel has not run here.
        original: process ID of an original flanneld on this host.
        items: all links, all routes of the main table, and the filter rules whose names are those of flannel.
        left_rules: other filter rules that an original flannel left, or may have left.
        forwards: True if the host forwards packets of the family; None if this is unknown.
        unforwarded: links whose packets the host does not forward, although it forwards packets of other
            links.
        strict: links with a strict reverse path filter.
        own_ttl: TTL or hop limit of the packets that this host sends by its underlay; None if unreadable.
        tunnel_ttl: TTL of the outer packets of the vxlan device; None if the device uses `own_ttl`.
        fragment_memory: the settings that limit the memory for fragments of packets, in bytes.
        ruleset: all rules of netfilter, except those in the tables of pyflannel.
        answers: answers of the kernel about the routes of packets.
        marked_answers: answers about packets of containers to a peer, with the mark of a policy rule. It is
            the only one in `rules`.
        kind_answers: answers about packets of the kinds that policy rules select by protocol, port or type of
            service. The rule is the only one in `rules`.
        local_routes: routes to parts of the network that other programs added to the table local.
        rule_routes: for each policy rule in `answers` with a table of its own, the routes of this table to a
            destination of the packets that the rule selects.
        interfaces: all interfaces with their addresses.
        programs: eBPF programs of the claimed device, at the hooks of links.
        on_link: prefixes that the underlay reaches without a gateway.
        ports: MTU in bytes of the ports of each bridge in this host's subnet, by name. In a network with IPv6
            alone, bridges that have lost their address are included.
        bridge_neighbours: permanent neighbour entries of this host at these bridges.
        silent_ports: the ports of these bridges that learn no MAC addresses.
        set_down: how often other programs set these bridges down during the examination, by name.
        link_setters: programs that may set these bridges down, if one is down or was set down.
        closed_ports: the ports of these bridges that carry no frames, by name, with their state: DOWN
            or NO-CARRIER.
        lacks_arp: True if ARP is off on the underlay, and with it neighbour discovery.
        bridges_without_arp: the bridges of containers on which ARP is off.
        ignores_arp: True if the host answers no ARP requests on the underlay.
        ignores_echoes: True if the host answers no ICMP echo requests.
        is_ethernet: True if the frames of the underlay have MAC addresses.
        set_neighbours: addresses whose MAC address on the underlay an operator has set.
        disciplines: the queueing disciplines of all links.
        tracked: number of connections that the kernel tracks, and its maximum; None without connection
            tracking.
        xdp_links: links with an XDP program.
        passthru_links: macvlan and macvtap links with the mode passthru, each with the link whose frames it
            takes.
        taking_filters: filters of traffic control at the links of the overlay that took packets.
        underlay_ports: ports of the underlay if the underlay is a bridge.
        associations: the ends of the security associations of IPsec; None if they are unreadable.
        docker0_ports: number of containers at docker0, if it exists.
        docker: the Docker engine; None if it does not run.
        gateway_answers: the results of echo requests to the default gateway, from the public address of this
            host and from its address at the bridge of containers; None if they were not sent.
        docker_drops: rules of Docker 28 or newer that drop packets of other hosts, by the name of the bridge.
        mark: alias of the links of the daemon.
        published_mac: MAC address of the VTEP in the last known lease of this host; None if the lease has no
            VTEP.
        containers: the network namespaces of containers, as far as they are visible.
        lost_stores: addresses and ports of the store, if it does not respond. Host names are not resolved.
        certificates: certificates that flanneld uses for the store.
        now: time of this host's clock, in seconds since the epoch.
        has_unit: True if systemd runs on this host and has the unit flanneld.service.
    """

    status: Status
    membership: Membership
    family: Family = 4
    is_first: bool = True
    may_ask: bool = True
    daemon: DaemonProcess | None = None
    forwarder_files: OpenFiles | None = None
    claimed: str | None = None
    original: int | None = None
    items: tuple[Item, ...] = ()
    left_rules: tuple[LeftRules, ...] = ()
    forwards: bool | None = True
    unforwarded: frozenset[str] = frozenset()
    strict: frozenset[str] = frozenset()
    own_ttl: int | None = None
    tunnel_ttl: int | None = None
    fragment_memory: Mapping[str, int] = field(default_factory=dict)
    ruleset: Ruleset = ()
    answers: tuple[RouteAnswer, ...] = ()
    marked_answers: tuple[RouteAnswer, ...] = ()
    kind_answers: tuple[RouteAnswer, ...] = ()
    local_routes: tuple[str, ...] = ()
    rule_routes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    interfaces: Interfaces = field(default_factory=Interfaces)
    programs: tuple[BpfProgram, ...] = ()
    on_link: tuple[IpNetwork, ...] = ()
    ports: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    bridge_neighbours: tuple[SetNeighbour, ...] = ()
    silent_ports: tuple[SilentPort, ...] = ()
    set_down: Mapping[str, int] = field(default_factory=dict)
    link_setters: Mapping[str, tuple[LinkSetter, ...]] = field(default_factory=dict)
    closed_ports: Mapping[str, str] = field(default_factory=dict)
    lacks_arp: bool = False
    bridges_without_arp: frozenset[str] = frozenset()
    ignores_arp: bool = False
    ignores_echoes: bool = False
    is_ethernet: bool = True
    set_neighbours: frozenset[IpAddress] = frozenset()
    disciplines: tuple[QueueingDiscipline, ...] = ()
    tracked: tuple[int, int] | None = None
    xdp_links: frozenset[str] = frozenset()
    passthru_links: Mapping[str, str] = field(default_factory=dict)
    taking_filters: tuple[TakingFilter, ...] = ()
    underlay_ports: tuple[str, ...] = ()
    associations: frozenset[IpsecEnds] | None = None
    docker0_ports: int = 0
    docker: DockerEngine | None = None
    gateway_answers: tuple[EchoResult, EchoResult] | None = None
    docker_drops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mark: str = MARK
    published_mac: str | None = None
    containers: tuple[ContainerNamespace, ...] = ()
    lost_stores: tuple[tuple[IpAddress, int], ...] = ()
    certificates: tuple[Certificate, ...] = ()
    now: float = 0.0
    has_unit: bool = True


def main_route(seen: Observed, destination: IpAddress) -> Route | None:
    """Return the route of the main table that the kernel uses for a destination."""
    routes = (item for item in seen.items if isinstance(item, Route) and destination in item.destination)
    return max(routes, key=lambda route: (route.destination.prefixlen, -route.metric), default=None)


def resolution(address: IpAddress) -> str:
    """Return the name of the protocol that finds the MAC address of a neighbour."""
    return "ARP" if address.version == 4 else "neighbour discovery"


def some(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the first texts, and the number of further texts."""
    more = len(texts) - NAMED
    return (*texts[:NAMED], f"… and {more} more") if more > 0 else tuple(texts)


def shown(item: Item) -> str:
    """Return the description of an object; for a route, it contains its gateway, its link and its
    protocol.
    """
    if not isinstance(item, Route):
        return item.title
    gateway = f" via {item.gateway}" if item.gateway is not None else ""
    link = f" dev {item.link}" if item.link else ""
    kind = "" if item.kind in ("unicast", "multipath") else f"{item.kind} "
    return f"{kind}{item.title}{gateway}{link} proto {item.protocol}"


def removal(item: Item) -> str:
    """Return the command that removes a link or a route; "" for other items."""
    match item:
        case Link():
            return f"ip link delete {quote(item.name)}"
        case Route():
            kind = "" if item.kind in ("unicast", "multipath") else f"{item.kind} "
            metric = f" metric {item.metric}" if item.metric else ""
            return f"ip route delete {kind}{item.destination}{metric} proto {item.protocol}"
        case _:
            return ""
