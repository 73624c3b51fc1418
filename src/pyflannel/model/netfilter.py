"""The rules of netfilter on a host, of every program, and the packets to which they apply."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

from pyflannel.model.network_config import IpAddress

TCP, UDP, ICMPV6 = 6, 17, 58

TCP_FLAGS = {"fin": 0x01, "syn": 0x02, "rst": 0x04, "psh": 0x08, "ack": 0x10, "urg": 0x20}
"""Bits of the flags of a TCP segment. Source: RFC 9293, 3.1."""

ARP_OPERATIONS = {
    "request": 1,
    "reply": 2,
    "rrequest": 3,
    "rreply": 4,
    "inrequest": 8,
    "inreply": 9,
    "nak": 10,
}
"""Numbers of the operations of ARP by the names of nft(8). Source: RFC 826, RFC 903, RFC 1931, RFC 2390."""

Field = Literal[
    "family",
    "saddr",
    "daddr",
    "protocol",
    "sport",
    "dport",
    "icmp_type",
    "tcp_flags",
    "hop_limit",
    "length",
    "iif",
    "oif",
    "in_bridge",
    "out_bridge",
    "state",
    "direction",
    "status",
    "mark",
    "stype",
    "dtype",
    "back_link",
    "back_iif",
    "operation",
]
"""A property of a packet that a rule may test. Addresses are integers. `stype` and `dtype` are the types of
the addresses in the routing table of the host: `local`, `unicast` or `multicast`. `back_link` is the link of
the route to the source of the packet, and "" without a route. `back_iif` is the interface at which the packet
arrived if the route uses this interface, and "" otherwise. `operation` is the operation of an ARP packet."""

Value = int | str
"""The value of a field. A text may end with `*`, which means any further characters."""

Hook = Literal["ingress", "prerouting", "input", "forward", "output", "postrouting", "egress"]


class Packet(Struct, frozen=True, kw_only=True):
    """A packet at the hooks of a host.

    Attributes:
        operation: operation of an ARP packet, RFC 826; None for a packet of IP.
        iif: name of the interface at which it arrived; "" if the host itself sends the packet.
        oif: name of the interface by which it leaves; "" if the packet is for the host itself.
        in_port: if `iif` is a bridge: its port at which the frame arrived; "" if there is no port, or it is
            unknown.
        out_port: if `oif` is a bridge: its port by which the frame leaves; "" if there is no port, or it is
            unknown.
        in_bridge: in the family bridge, where `iif` is a port: the bridge of the port; "" elsewhere.
        out_bridge: in the family bridge, where `oif` is a port: the bridge of the port; "" elsewhere.
        tcp_flags: bits of `TCP_FLAGS`; None if the packet is no TCP segment, or its flags are unknown.
        length: length of the IP packet in bytes; None if it is unknown.
        back_link: link of the route to the source; "" without a route, None if it is unknown.
        state: state of the packet in connection tracking; `invalid` before the packet was tracked.
        is_reply: True if the packet belongs to a connection whose first packet had the other direction.
        mark: the mark; None if rules have set an unknown mark.
    """

    source: IpAddress
    destination: IpAddress
    protocol: int
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    tcp_flags: int | None = None
    hop_limit: int | None = None
    length: int | None = None
    iif: str = ""
    oif: str = ""
    in_port: str = ""
    out_port: str = ""
    in_bridge: str = ""
    out_bridge: str = ""
    back_link: str | None = None
    state: Literal["new", "established", "untracked", "invalid"] = "new"
    is_reply: bool = False
    mark: int | None = 0
    operation: int | None = None

    def value(self, field: Field) -> Value | None:
        """Return the value of a field; None if the value is unknown."""
        match field:
            case "family":
                return "arp" if self.operation is not None else f"ipv{self.source.version}"
            case "saddr":
                return int(self.source)
            case "daddr":
                return int(self.destination)
            case "protocol":
                return self.protocol
            case "sport":
                return self.source_port
            case "dport":
                return self.destination_port
            case "icmp_type":
                return self.icmp_type
            case "operation":
                return self.operation
            case "tcp_flags":
                return self.tcp_flags
            case "hop_limit":
                return self.hop_limit
            case "length":
                return self.length
            case "iif":
                return self.iif
            case "oif":
                return self.oif
            case "in_bridge":
                return self.in_bridge
            case "out_bridge":
                return self.out_bridge
            case "back_link":
                return self.back_link
            case "back_iif":
                if self.back_link is None:
                    return None
                return self.iif if self.iif == self.back_link else ""
            case "state":
                return self.state
            case "direction":
                return "reply" if self.is_reply else "original"
            case "status":
                return None if self.state == "established" else "none"
            case "mark":
                return self.mark
            case "stype":
                return "unicast" if self.iif else "local"
            case "dtype":
                if self.destination.is_multicast:
                    return "multicast"
                return "unicast" if self.oif else "local"


_OF_IP = frozenset({"protocol", "sport", "dport", "icmp_type", "tcp_flags", "hop_limit"})
"""Fields that an ARP packet does not have. A rule that tests such a field does not apply to the packet, even
if the condition is negated (NFT_BREAK in net/netfilter/nft_payload.c)."""


class Match(Struct, frozen=True):
    """A condition that a packet matches if the value is in one of the ranges, or equals one of the texts.

    Attributes:
        values: ranges of numbers, both ends included, or texts.
        mask: bits of the value that are compared; None for all bits.
    """

    field: Field
    values: tuple[tuple[int, int] | str, ...]
    is_negated: bool = False
    mask: int | None = None

    def holds(self, packet: Packet) -> bool | None:
        """Return whether the packet matches; None if this is unknown."""
        if packet.operation is not None and self.field in _OF_IP:
            return False
        value = packet.value(self.field)
        if value is None:
            return None
        if isinstance(value, int) and self.mask is not None:
            value &= self.mask
        for one in self.values:  # a loop, because a host may have ten thousand rules
            if isinstance(one, str):
                is_in = one[-1:] == "*" and isinstance(value, str) and value.startswith(one[:-1])
                if is_in or value == one:
                    return not self.is_negated
            elif isinstance(value, int) and one[0] <= value <= one[1]:
                return not self.is_negated
        return self.is_negated


class Unknown(Struct, frozen=True):
    """A condition that pyflannel does not evaluate, as written in the rule.

    Attributes:
        is_partial: True if a part of all packets meets the condition, by chance or up to a rate.
    """

    text: str = ""
    is_partial: bool = False

    def holds(self, packet: Packet) -> None:
        """Return None, because it is unknown whether the packet matches."""


ActionKind = Literal[
    "accept",
    "drop",
    "reject",
    "return",
    "jump",
    "goto",
    "continue",
    "translate",
    "notrack",
    "mark",
    "expire",
    "queue",
    "unknown",
]
"""`queue` passes the packet to a program. `expire` sets the TTL or hop limit so low that no router forwards
the packet, and other rules still apply."""


class Action(Struct, frozen=True):
    """The effect of a rule.

    Attributes:
        target: chain of a jump or a goto.
        translates: the address that an address translation changes.
        value: bits of the new mark, which is `mark & keep ^ value`; None if the new mark is unknown. For
            `queue`, the number of the queue.
        keep: bits of the mark that are kept.
    """

    kind: ActionKind
    target: str = ""
    translates: Literal["", "source", "destination"] = ""
    value: int | None = None
    keep: int = 0


class Rule(Struct, frozen=True):
    """A rule, whose action applies to packets that match all conditions.

    Attributes:
        text: the rule as its program lists it.
        number: handle of nftables, or position in the chain of iptables, starting with 1.
    """

    matches: tuple[Match | Unknown, ...]
    action: Action
    text: str = ""
    number: int = 0


class BaseChain(Struct, frozen=True, kw_only=True):
    """A chain at a hook.

    Attributes:
        program: `nft`, or the iptables program that lists it.
        family: family of nftables; `ip` for iptables, `ip6` for ip6tables.
        is_nat: True if the chain sees only the first packet of a connection.
        device: interface of the hooks `ingress` and `egress`.
        chains: all chains of its table, by name.
    """

    program: str
    family: str
    table: str
    name: str
    hook: Hook
    priority: int
    policy: Literal["accept", "drop"] = "accept"
    is_nat: bool = False
    device: str = ""
    chains: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The name of the chain in texts: `iptables chain INPUT in filter`, `nft chain inet fw input`."""
        if self.program == "nft":
            return f"nft chain {self.family} {self.table} {self.name}"
        return f"{self.program} chain {self.name} in {self.table}"


Ruleset = tuple[BaseChain, ...]
"""All base chains of a host, in any order."""


class Judgement(Struct, frozen=True, kw_only=True):
    """The verdict of the rules on a packet.

    Attributes:
        kind: `expire` if a rule lets the packet expire at the next router; `sample` if a rule drops a part of
            such packets; `unknown` if the verdict depends on a condition that pyflannel does not
            evaluate.
        chain: the base chain that drops, or may drop, the packet.
        rule: the rule that drops, or may drop, the packet; None if the policy drops it.
        translation: the rule that changes the source of the packet, with its base chain.
        redirection: the rule that changes the destination of the packet, with its base chain.
    """

    kind: Literal["accept", "drop", "reject", "expire", "sample", "unknown"]
    chain: BaseChain | None = None
    rule: Rule | None = None
    translation: tuple[BaseChain, Rule] | None = None
    redirection: tuple[BaseChain, Rule] | None = None
