"""Probes of peers: ICMP echo requests, their results, and the reports of flannelctl."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Literal

from pyflannel.model.network_config import Family, IpAddress, IpNetwork

ProbeState = Literal["reached", "rejected", "silent", "unsent", "skipped"]
"""An echo reply arrived; an ICMP error arrived; nothing arrived; the kernel refused to send; not probed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """An ICMP echo request.

    Attributes:
        source: source address; None for the one that the kernel chooses.
        size: bytes of the IP packet.
    """

    destination: IpAddress
    source: IpAddress | None = None
    size: int = 84

    @property
    def family(self) -> Family:
        """The family of the addresses."""
        return self.destination.version


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoResult:
    """The result of an echo request.

    Attributes:
        rtt_s: round-trip time; None without a reply.
        text: why there is no reply, in one line; "" if it is unknown.
        sender: sender of the ICMP error; None without one.
        mtu: largest IP packet that a router on the path forwards, from its ICMP error.
        attempts: number of requests up to the one that was answered; of all requests without an answer.
    """

    state: ProbeState
    rtt_s: float | None = None
    text: str = ""
    sender: IpAddress | None = None
    mtu: int | None = None
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedPaths:
    """The paths to the peers in one family.

    Attributes:
        mtu: bytes of the largest packet of a container.
        overheads: bytes that the tunnel adds, by the family of the address on the underlay.
        padding: multiple of bytes to which the tunnel fills its packets.
        has_tunnel: the probes are sent through the tunnel, to the first address of the subnet of the peer.
        peers: the address of each peer on the underlay, by its subnet.
    """

    mtu: int
    overheads: Mapping[Family, int]
    padding: int = 1
    has_tunnel: bool = True
    peers: Mapping[IpNetwork, IpAddress]

    def end(self, subnet: IpNetwork) -> IpAddress:
        """Return the address at the end of the path to a peer."""
        return subnet.network_address if self.has_tunnel else self.peers[subnet]

    def outer(self, subnet: IpNetwork) -> int:
        """Return the bytes of the largest tunnel packet to a peer."""
        return self.mtu + self.overheads[self.peers[subnet].version]

    def inner(self, subnet: IpNetwork, outer: int) -> int:
        """Return the bytes of the largest packet of a container in a tunnel packet of this size."""
        inner = outer - self.overheads[self.peers[subnet].version]
        return self.mtu if inner >= self.mtu else inner // self.padding * self.padding


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The MTU of a path that carries less than planned.

    Attributes:
        planned: bytes of the largest packet of a container.
        measured: bytes of the largest packet that arrives.
        since_s: time of the first probe with this result, in seconds of the clock.
    """

    planned: int
    measured: int
    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowPath:
    """A path to a peer that carries less than planned, for documents.

    Attributes:
        subnet: the IPv4 subnet of the peer.
        ipv6_subnet: its IPv6 subnet if this is the path of IPv6 packets; None for the path of IPv4 packets.
        planned: bytes of the largest packet of a container.
        measured: bytes of the largest packet that arrives.
        since_s: seconds since the first probe with this result.
        is_routed: the route to the peer has the measured MTU. Otherwise, larger packets are lost.
    """

    subnet: IPv4Network
    ipv6_subnet: IPv6Network | None = None
    planned: int
    measured: int
    since_s: float
    is_routed: bool


def milliseconds(result: EchoResult) -> float | None:
    """Return the round-trip time in milliseconds."""
    return None if result.rtt_s is None else round(result.rtt_s * 1000, 3)


SILENT = EchoResult(state="silent", text="no answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReach:
    """The results for one peer.

    Attributes:
        underlay: echo to the public address of the peer.
        tunnel: echo through the tunnel to the overlay address of the peer; `skipped` if it has none.
        path_mtu: largest probed packet that arrived through the tunnel; None if it is unknown.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    host_name: str | None = None
    underlay: EchoResult
    tunnel: EchoResult
    path_mtu: int | None = None

    @property
    def decisive(self) -> EchoResult:
        """The result for the path of the packets of containers, or for the part of it that was probed."""
        return self.underlay if self.tunnel.state == "skipped" else self.tunnel

    @property
    def is_reached(self) -> bool:
        """Return whether the peer answered on this path."""
        return self.decisive.state == "reached"


StepName = Literal["underlay", "tunnel", "container"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PingStep:
    """One part of the path; the same names are the JSON of `flannelctl ping --json`.

    Attributes:
        source: None if the kernel chose it.
        mtu: largest packet that arrived, in bytes; None if no size was probed.
        text: details in one line; "" if there are none.
    """

    name: StepName
    destination: IPv4Address
    source: IPv4Address | None = None
    state: ProbeState
    rtt_ms: float | None = None
    mtu: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PingReport:
    """The document of `flannelctl ping`.

    Attributes:
        subnet: subnet of the host with this address.
        public_ip: its address on the underlay.
        ok: packets of containers reach the host, or the address that was given.
        stops: where packets stop; None if they arrive.
        cause: the reason, in one line; None if they arrive.
        fix: the command or the remedy; None if they arrive.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    host_name: str | None = None
    ok: bool
    steps: tuple[PingStep, ...]
    stops: Literal["this host", "underlay", "tunnel", "peer", "container"] | None = None
    cause: str | None = None
    fix: str | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStep:
    """One step of the path of a packet; the same names are the JSON of `flannelctl trace --json`.

    Attributes:
        state: `fails`: the packet does not get further; `unknown`: this could not be read or evaluated.
        found: the object of the kernel, or the answer of the probe, in one line.
        is_way_back: a step of the reply.
        cause: why it fails, or why this is unknown; None otherwise.
        fix: the command or the remedy; None if the step does not fail.
    """

    name: TraceStepName
    state: Literal["passes", "fails", "unknown"]
    found: str
    is_way_back: bool = False
    cause: str | None = None
    fix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceReport:
    """The document of `flannelctl trace`.

    Attributes:
        ok: no step fails.
        steps: the steps in the order of the packet, up to the first that fails.
        stops: name of the step that fails; None if none fails.
    """

    source: IPv4Address
    destination: IPv4Address
    ok: bool
    steps: tuple[TraceStep, ...]
    stops: TraceStepName | None = None
    cause: str | None = None
    fix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLine:
    """The round-trip times of echoes of one size over one path, in milliseconds; None without a reply.

    Attributes:
        name: `measurement` is this host itself: the part of each time that the measurement adds.
        size: bytes of the IP packet.
        sent, received: numbers of requests and replies.
        ratio: of the median to that of the underlay with the same size; None without both.
    """

    name: Literal["measurement", "underlay", "tunnel", "container"]
    destination: IPv4Address
    size: int
    sent: int
    received: int
    min_ms: float | None = None
    median_ms: float | None = None
    p90_ms: float | None = None
    ratio: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """The document of `flannelctl bench`. `ok`: each path to the host answered.

    Attributes:
        backend_type: `udp` for udp.
        measured: the meaning of the times, one sentence each.
        not_measured: the properties that they do not show, one sentence each.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    host_name: str | None
    backend_type: str
    is_encrypted: bool
    ok: bool
    lines: tuple[BenchLine, ...]
    measured: tuple[str, ...]
    not_measured: tuple[str, ...]
