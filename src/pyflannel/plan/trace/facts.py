"""The objects of the kernel through which a packet may pass, and the steps of its path."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from shlex import quote

from msgspec import Struct, field

from pyflannel.model.fast_path import BpfPeer, BpfProgram, Role
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import Interface, Interfaces
from pyflannel.model.lease import LeaseEntry, host_text
from pyflannel.model.link import Vxlan
from pyflannel.model.netfilter import Ruleset
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.probe import PingReport, TraceStep, TraceStepName
from pyflannel.model.route import FdbEntry, RouteAnswer, Way
from pyflannel.model.wireguard import WireguardPeer
from pyflannel.plan.doctor.flows import Flow, as_reply, container_packet, overlay_flow
from pyflannel.plan.doctor.observed import ContainerNamespace
from pyflannel.plan.netfilter import IN, OUT, THROUGH

REPAIR = (
    "flannelctl status  # a running flanneld restores it within seconds; flannelctl events shows refusals"
)
LOOK = "flannelctl doctor"


class TraceLink(Struct, frozen=True, kw_only=True):
    """A link of this host.

    Attributes:
        kind: the kernel's kind; "" for a physical device.
        resolves: True if the link resolves addresses to MAC addresses, by ARP or by neighbour discovery.
        is_ethernet: True if frames on the link have MAC addresses.
        is_forwarding: for a port of a bridge: True if it forwards frames.
    """

    name: str
    kind: str = ""
    is_up: bool = True
    has_carrier: bool = True
    resolves: bool = True
    is_ethernet: bool = True
    is_forwarding: bool = True
    vxlan: Vxlan | None = None


class RouteQuestion(Struct, frozen=True, kw_only=True):
    """A query to the kernel about the route of a packet."""

    way: Way
    destination: IpAddress
    source: IpAddress | None = None
    arrives_at: str | None = None


class UnansweredError(Exception):
    """A query about a route has no answer yet."""

    def __init__(self, question: RouteQuestion) -> None:
        super().__init__(question)
        self.question = question


class Facts(Struct, frozen=True, kw_only=True):
    """The objects of the kernel of this host, the results of queries to the kernel, and the results of
    probes, in the family of the packet.

    Attributes:
        network: range of the overlay; None if it is unknown.
        own: subnet of this host; None if it is unknown.
        leases: the leases of all hosts, as in a network with this family alone.
        neighbours: MAC address of a neighbour, by its link and its address; except unresolved neighbours.
        fdb: destination of each FDB entry, by the device and the MAC address.
        ports: name of the port of a bridge behind which a MAC address was learned, by bridge and address.
        forwards: True if the host forwards packets of the family; None if this is unknown.
        unforwarded: links whose packets the host does not forward, although it forwards packets of other
            links.
        containers: the network namespaces of containers, as far as they are visible.
        rules_unread: reason why filter rules could not be read; None if all were read.
        encryption: all WireGuard peers of this host.
        listen_ports: UDP port of each WireGuard device, by its name.
        answers: answer of the kernel to each query; None if the kernel could not be asked.
        probed: the answers of the other host to probes; None if no probe could be sent.
        silent: containers of this host that did not answer an ICMP echo.
    """

    source: IpAddress
    destination: IpAddress
    network: IpNetwork | None = None
    own: IpNetwork | None = None
    leases: Sequence[LeaseEntry] = ()
    links: Mapping[str, TraceLink] = field(default_factory=dict)
    interfaces: Interfaces = field(default_factory=Interfaces)
    neighbours: Mapping[tuple[str, IpAddress], str] = field(default_factory=dict)
    fdb: Mapping[tuple[str, str], FdbEntry] = field(default_factory=dict)
    ports: Mapping[tuple[str, str], str] = field(default_factory=dict)
    forwards: bool | None = True
    unforwarded: frozenset[str] = frozenset()
    containers: Sequence[ContainerNamespace] = ()
    ruleset: Ruleset = ()
    rules_unread: str | None = None
    programs: Sequence[BpfProgram] = ()
    program_peers: Sequence[BpfPeer] = ()
    forwarder: Forwarder | None = None
    forwarder_peers: Sequence[ForwarderPeer] = ()
    encryption: Sequence[WireguardPeer] = ()
    listen_ports: Mapping[str, int] = field(default_factory=dict)
    answers: Mapping[RouteQuestion, RouteAnswer | None] = field(default_factory=dict)
    probed: PingReport | None = None
    silent: frozenset[IpAddress] = frozenset()

    @property
    def family(self) -> Family:
        """The family of the packet."""
        return self.destination.version

    def route(
        self,
        way: Way,
        destination: IpAddress,
        source: IpAddress | None = None,
        arrives_at: str | None = None,
    ) -> RouteAnswer:
        """Return the answer of the kernel to a query.

        Raises:
            UnansweredError: the query has no answer yet.
        """
        question = RouteQuestion(way=way, destination=destination, source=source, arrives_at=arrives_at)
        if question not in self.answers:
            raise UnansweredError(question)
        found = self.answers[question]
        return found or RouteAnswer(way=way, destination=destination, text="the kernel could not be asked")

    def lease_of(self, address: IpAddress) -> LeaseEntry | None:
        """Return the lease of the host to which an address belongs."""
        return next(
            (one for one in self.leases if address in one.subnet or address == one.public_ip),
            None,
        )

    def bridge_of(self, address: IpAddress) -> Interface | None:
        """Return the bridge of this host whose prefix contains the address."""
        bridges = (one for one in self.interfaces.interfaces if one.kind == "bridge")
        return next(
            (one for one in bridges if any(address in held.address.network for held in one.addresses)), None
        )

    def port_to(self, bridge: str, address: IpAddress) -> str:
        """Return the port of a bridge behind which an address is; "" if it is unknown, or no bridge."""
        return self.ports.get((bridge, self.neighbours.get((bridge, address), "")), "")

    def is_here(self, address: IpAddress) -> bool:
        """Return whether the address belongs to this host, or is in its subnet or in the prefix of one of its
        bridges.
        """
        is_own = self.own is not None and address in self.own
        return is_own or self.interfaces.holder(address) is not None or self.bridge_of(address) is not None

    def program(self, role: Role, link: str) -> BpfProgram | None:
        """Return the current program of a role at a link."""
        found = (one for one in self.programs if one.is_current)
        return next((one for one in found if one.role is role and one.link == link), None)


class Leg(Struct, frozen=True, kw_only=True):
    """One direction: from a container to another container, or the direction of the reply."""

    source: IpAddress
    destination: IpAddress
    is_way_back: bool = False

    def flow(self, facts: Facts, iif: str, oif: str) -> Flow:
        """Return the packet at the filter rules."""
        packet = container_packet(
            self.source,
            self.destination,
            iif=iif,
            oif=oif,
            in_port=facts.port_to(iif, self.source),
            out_port=facts.port_to(oif, self.destination),
        )
        if self.is_way_back:
            packet = as_reply(packet)
        hooks = THROUGH if iif and oif else IN if iif else OUT
        return overlay_flow(packet, facts.network or ip_network(self.destination), hooks)

    @property
    def reply(self) -> "Leg":
        """The path of the reply."""
        return Leg(source=self.destination, destination=self.source, is_way_back=True)


def passes(name: TraceStepName, found: str) -> TraceStep:
    """Return a step that the packet passes."""
    return TraceStep(name=name, state="passes", found=found)


def fails(name: TraceStepName, found: str, cause: str, fix: str) -> TraceStep:
    """Return a step that stops the packet."""
    return TraceStep(name=name, state="fails", found=found, cause=cause, fix=fix)


def unknown(name: TraceStepName, found: str, cause: str) -> TraceStep:
    """Return a step whose result is unknown, because information is missing on this host."""
    return TraceStep(name=name, state="unknown", found=found, cause=cause)


def host_of(peer: LeaseEntry) -> str:
    """Return the text that names the host of a lease."""
    return host_text(peer.public_ip, peer.host_name)


def link_down(name: TraceStepName, link: TraceLink) -> TraceStep:
    """Return the step of a link that is down."""
    found = f"ip link show {link.name}: state DOWN"
    return fails(name, found, f"{link.name} is down", f"ip link set {quote(link.name)} up")
