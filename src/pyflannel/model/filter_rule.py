"""Filter rules: one model of what iptables and nftables both can say, and both are asked for."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network


@dataclass(frozen=True, slots=True)
class Prefix:
    """The addresses of a network or, negated, all the others."""

    network: IPv4Network | IPv6Network
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """Packets whose mark has `value` in the bits of `mask`."""

    value: int
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Accept:
    """The packet passes; no later rule of the same hook and table is asked."""


@dataclass(frozen=True, slots=True)
class Return:
    """The packet leaves our rules as it came."""


@dataclass(frozen=True, slots=True)
class Masquerade:
    """The packet gets the address of the interface that it leaves by, and a port of that host.

    Attributes:
        is_fully_random: the port is drawn, so that two packets in the same moment do not draw one port.
    """

    is_fully_random: bool = True


Verdict = Accept | Return | Masquerade


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRule:
    """What becomes of packets that match everything said here."""

    source: Prefix | None = None
    destination: Prefix | None = None
    mark: Mark | None = None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ForeignRule:
    """A rule that we never plan, as the program that reads it prints it."""

    text: str


Rules = tuple[FilterRule | ForeignRule, ...]
"""In the order in which the kernel asks them; the first that matches decides."""
