"""Probes of peers: ICMP echo requests, their results, and the reports of flannelctl."""

from collections.abc import Callable, Iterator
from ipaddress import IPv6Network
from typing import Literal

from msgspec import Struct

from pyflannel.model.network_config import AnyAddress, AnyNetwork, Family, IpAddress, IpNetwork

ProbeState = Literal["reached", "rejected", "silent", "unsent", "skipped"]
"""States of a probe: an echo reply arrived; an ICMP error arrived; nothing arrived; the kernel refused to
send; the path was not probed."""


class Echo(Struct, frozen=True, kw_only=True):
    """An ICMP echo request.

    Attributes:
        source: source address; None to let the kernel choose the address.
        size: size in bytes of the IP packet.
        ttl: TTL or hop limit; None for the value of the host.
    """

    destination: IpAddress
    source: IpAddress | None = None
    size: int = 84
    ttl: int | None = None

    @property
    def family(self) -> Family:
        """The family of the addresses."""
        return self.destination.version


class EchoResult(Struct, frozen=True, kw_only=True):
    """The result of an echo request.

    Attributes:
        rtt_s: round-trip time; None without a reply.
        text: reason why there is no reply, in one line; "" if it is unknown.
        sender: sender of the ICMP error; None if there is no ICMP error.
        mtu: largest IP packet that a router on the path forwards, from its ICMP error.
        attempts: number of requests, including the request that was answered; the number of all requests if
            none was answered.
    """

    state: ProbeState
    rtt_s: float | None = None
    text: str = ""
    sender: IpAddress | None = None
    mtu: int | None = None
    attempts: int = 1


class ProbedPath(Struct, frozen=True, kw_only=True):
    """The path to one peer in one family.

    Attributes:
        end: the address behind the tunnel that answers the probes; without a tunnel, the address on the
            underlay.
        underlay: the address of the peer on the underlay.
        mtu: bytes of the largest packet of a container.
        overhead: bytes that the tunnel adds.
        padding: the tunnel pads its packets to a multiple of this number of bytes.
    """

    end: IpAddress
    underlay: IpAddress
    mtu: int
    overhead: int
    padding: int = 1

    @property
    def outer(self) -> int:
        """The bytes of the largest tunnel packet."""
        return self.mtu + self.overhead

    def inner(self, outer: int) -> int:
        """Return the bytes of the largest packet of a container in a tunnel packet of this size."""
        inner = outer - self.overhead
        return self.mtu if inner >= self.mtu else inner // self.padding * self.padding


class ProbedPaths(Struct, frozen=True):
    """The paths to all peers. The paths are computed one by one, because there may be ten thousand paths.

    Attributes:
        planned: equal for two plans with the same tunnel and the same MTU in each family.
        subnets: returns the subnets of the peers in each family.
        path_to: returns the path to the peer with a subnet; None if there is no path.
    """

    planned: object
    subnets: Callable[[], Iterator[IpNetwork]]
    path_to: Callable[[IpNetwork], ProbedPath | None]


class PathMtu(Struct, frozen=True):
    """The MTU of a path that carries only smaller packets than planned.

    Attributes:
        planned: bytes of the largest packet of a container.
        measured: bytes of the largest packet that arrives.
        since_s: time of the first probe with this result, in seconds of the clock.
    """

    planned: int
    measured: int
    since_s: float


class NarrowPath(Struct, frozen=True, kw_only=True):
    """A path to a peer that carries only smaller packets than planned, for documents.

    Attributes:
        subnet: the subnet of the peer.
        ipv6_subnet: IPv6 subnet of the peer if this is the path of IPv6 packets; None for the path of IPv4
        packets.
        planned: bytes of the largest packet of a container.
        measured: bytes of the largest packet that arrives.
        since_s: seconds since the first probe with this result.
        is_routed: True if the route to the peer has the measured MTU; False if larger packets are lost.
    """

    subnet: AnyNetwork
    ipv6_subnet: IPv6Network | None = None
    planned: int
    measured: int
    since_s: float
    is_routed: bool


def milliseconds(result: EchoResult) -> float | None:
    """Return the round-trip time in milliseconds."""
    return None if result.rtt_s is None else round(result.rtt_s * 1000, 3)


SILENT = EchoResult(state="silent", text="no answer")


class Loss(Struct, frozen=True):
    """The number of single echo requests on the decisive path of a peer, and the number of these requests
    without a reply.
    """

    sent: int
    lost: int


class PeerReach(Struct, frozen=True, kw_only=True):
    """The results for one peer.

    Attributes:
        underlay: result of the echo request to the public address of the peer.
        tunnel: result of the echo request through the tunnel to the overlay address of the peer; `skipped` if
            the peer has no such address.
        path_mtu: largest probed packet that arrived through the tunnel; None if it is unknown.
    """

    subnet: AnyNetwork
    public_ip: AnyAddress
    host_name: str | None = None
    underlay: EchoResult
    tunnel: EchoResult
    path_mtu: int | None = None

    @property
    def decisive(self) -> EchoResult:
        """The result for the path of the packets of containers, or for the probed part of this path."""
        return self.underlay if self.tunnel.state == "skipped" else self.tunnel

    @property
    def is_reached(self) -> bool:
        """Return whether the peer answered on this path."""
        return self.decisive.state == "reached"


StepName = Literal["underlay", "tunnel", "container"]


class PingStep(Struct, frozen=True, kw_only=True):
    """One part of the path in one family; its attributes are the names in the JSON of `flannelctl ping
    --json`.

    Attributes:
        family: the family of the addresses, 4 or 6.
        source: source address; None if the kernel chose it.
        mtu: size in bytes of the largest packet that arrived; None if no size was probed.
        text: details in one line; "" if there are none.
    """

    name: StepName
    family: Family
    destination: AnyAddress
    source: AnyAddress | None = None
    state: ProbeState
    rtt_ms: float | None = None
    mtu: int | None = None
    text: str = ""


class PingReport(Struct, frozen=True, kw_only=True):
    """The document of `flannelctl ping`.

    Attributes:
        subnet: subnet of the probed host.
        public_ip: address of the probed host on the underlay.
        ok: True if packets reach the host, or the address in the argument.
        stops: place where packets stop; None if packets arrive.
        cause: reason in one line; None if packets arrive.
        fix: the command or the remedy; None if packets arrive.
        containers: error of this host that may stop packets of its containers, although the probes, which
            this host sends itself, arrive; None if there is none. `flannelctl doctor` shows the remedy.
    """

    subnet: AnyNetwork
    public_ip: AnyAddress
    host_name: str | None = None
    ok: bool
    steps: tuple[PingStep, ...]
    stops: Literal["this host", "underlay", "tunnel", "peer", "container"] | None = None
    cause: str | None = None
    fix: str | None = None
    containers: str | None = None


TraceStepName = Literal[
    "host",
    "container",
    "bridge",
    "route",
    "rule",
    "device",
    "neighbour",
    "fdb",
    "program",
    "forwarder",
    "encryption",
    "underlay",
    "peer",
]


class TraceStep(Struct, frozen=True, kw_only=True):
    """One step of the path of a packet; its attributes are the names in the JSON of `flannelctl trace
    --json`.

    Attributes:
        state: `fails`: this step stops the packet; `unknown`: the step could not be read or evaluated.
        found: the object of the kernel, or the answer of the probe, in one line.
        is_way_back: True for a step of the reply's path.
        cause: reason why the step fails or is unknown; None otherwise.
        fix: the command or the remedy; None if the step does not fail.
    """

    name: TraceStepName
    state: Literal["passes", "fails", "unknown"]
    found: str
    is_way_back: bool = False
    cause: str | None = None
    fix: str | None = None


TracedPacket = Literal["request", "reply", "tunnel request", "tunnel reply"]
"""A packet of a probe. A tunnel request contains the request, and a tunnel reply contains the reply."""


class PacketEvent(Struct, frozen=True, kw_only=True):
    """One decision of nf_tables about a packet of the probe.

    Attributes:
        family, table, chain: the chain that decided.
        handle: handle of the rule; None for the policy of the chain.
        verdict: `accept`, `drop`, `jump CHAIN`, `goto CHAIN`, `return`, `queue` or `stolen`.
        iif, oif: the interfaces at the hook; None if there is no interface.
        rule: the rule as nft lists it; "" if it is unknown.
    """

    packet: TracedPacket
    family: str
    table: str
    chain: str
    handle: int | None = None
    verdict: str
    iif: str | None = None
    oif: str | None = None
    rule: str = ""


class PacketTrace(Struct, frozen=True, kw_only=True):
    """The path of a real packet through nf_tables.

    Attributes:
        events: the decisions in their order.
        rtt_ms: round-trip time; None without a reply.
    """

    events: tuple[PacketEvent, ...]
    rtt_ms: float | None = None


class TraceReport(Struct, frozen=True, kw_only=True):
    """The document of `flannelctl trace`.

    Attributes:
        ok: True if no step fails.
        steps: the steps in the order in which the packet passes them, up to the first step that fails.
        stops: name of the step that fails; None if no step fails.
        probe: the path of a real packet; None without `--probe`.
    """

    source: AnyAddress
    destination: AnyAddress
    ok: bool
    steps: tuple[TraceStep, ...]
    stops: TraceStepName | None = None
    cause: str | None = None
    fix: str | None = None
    probe: PacketTrace | None = None


class BenchLine(Struct, frozen=True, kw_only=True):
    """The round-trip times of echo requests of one size over one path, in milliseconds; None if there was no
    reply.

    Attributes:
        name: `measurement` is a path inside this host. This path shows the part of each time that the
            measurement itself needs.
        size: size in bytes of the IP packet.
        sent, received: numbers of requests and replies.
        ratio: ratio of the median to the median of the underlay with the same size; None if one of the two is
            missing.
    """

    name: Literal["measurement", "underlay", "tunnel", "container"]
    destination: AnyAddress
    size: int
    sent: int
    received: int
    min_ms: float | None = None
    median_ms: float | None = None
    p90_ms: float | None = None
    ratio: float | None = None
    text: str = ""


class BenchReport(Struct, frozen=True, kw_only=True):
    """The document of `flannelctl bench`. `ok`: True if each path to the host answered.

    Attributes:
        backend_type: type of the backend, which is never empty.
        measured: the meaning of the times, with one sentence for each.
        not_measured: the properties that the times do not show, with one sentence for each.
    """

    subnet: AnyNetwork
    public_ip: AnyAddress
    host_name: str | None
    backend_type: str
    is_encrypted: bool
    ok: bool
    lines: tuple[BenchLine, ...]
    measured: tuple[str, ...]
    not_measured: tuple[str, ...]
