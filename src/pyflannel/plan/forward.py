"""Forwarding: packets from and to the network pass, whatever the policy for others.

Not bound to an interface, as in the original: with host-gw, and for clients that a router sends here, the
packets come by the underlay.
"""

from ipaddress import IPv4Network, IPv6Network

from pyflannel.model.filter_rule import Accept, FilterRule, Prefix


def forward_rules(network: IPv4Network | IPv6Network) -> tuple[FilterRule, ...]:
    """Return the rules for what a host forwards, in their order (flannel 0.28.9)."""
    return (
        FilterRule(source=Prefix(network), verdict=Accept()),
        FilterRule(destination=Prefix(network), verdict=Accept()),
    )
