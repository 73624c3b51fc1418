"""Chains of other programs that drop forwarded packets."""

from dataclasses import dataclass
from ipaddress import IPv4Network


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardChain:
    """A base chain of nftables at the forward hook whose policy is drop; or FORWARD of legacy iptables.

    Attributes:
        family: `ip` or `inet`: those that see IPv4.
        program: of legacy iptables, that shows it; "" where nft does.
        passes: what it accepts by source or destination, whatever else a packet is.
    """

    family: str
    table: str
    name: str
    passes: frozenset[IPv4Network]
    program: str = ""

    def lets_pass(self, network: IPv4Network) -> bool:
        """Return whether every packet from or to the network gets through."""
        return any(network.subnet_of(passed) for passed in self.passes)
