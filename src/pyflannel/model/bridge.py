"""Bridges of this host and the containers behind them, as they were observed."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgedContainer:
    """A neighbour of the host behind a port of a bridge.

    Attributes:
        mac: six octets in lower-case hexadecimal, with colons.
        port: the link of the bridge that leads to it: the host's end of its veth.
    """

    address: IPv4Address
    mac: str
    port: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A bridge with IPv4 addresses of the host.

    Attributes:
        obstacles: what a frame would miss that goes to a port past the bridge, in words; empty for most.
        containers: who was heard behind its forwarding ports, in the order of addresses.
    """

    name: str
    addresses: tuple[IPv4Interface, ...]
    obstacles: tuple[str, ...] = ()
    containers: tuple[BridgedContainer, ...] = ()
