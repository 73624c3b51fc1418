"""Masquerading: packets that leave the network get the host's address; those inside it keep theirs.

Source: flannel 0.28.9, its iptables rules and their order. Its nftables rules differ, and let packets from
the host to containers elsewhere go unmasked; we have one set of rules for both.
"""

from ipaddress import IPv4Network, IPv6Network

from pyflannel.model.filter_rule import FilterRule, Mark, Masquerade, Prefix, Return

MASQUERADED = Mark(0x4000, 0x4000)
"""kube-proxy marks what it masquerades itself; twice would lose the port."""

_MULTICAST_IPV4 = IPv4Network("224.0.0.0/4")
_MULTICAST_IPV6 = IPv6Network("ff00::/8")


def masquerade_rules(
    network: IPv4Network | IPv6Network, subnet: IPv4Network | IPv6Network, *, is_fully_random: bool
) -> tuple[FilterRule, ...]:
    """Return the rules for what a host with `subnet` sends, in their order."""
    inside, outside = Prefix(network), Prefix(network, is_negated=True)
    own = Prefix(subnet)
    unicast = Prefix(_MULTICAST_IPV4 if network.version == 4 else _MULTICAST_IPV6, is_negated=True)
    masquerade = Masquerade(is_fully_random)
    return (
        FilterRule(mark=MASQUERADED, verdict=Return()),
        FilterRule(source=own, destination=inside, verdict=Return()),
        FilterRule(source=inside, destination=own, verdict=Return()),
        # A client outside the overlay sees our containers, and they see its true address.
        FilterRule(source=outside, destination=own, verdict=Return()),
        FilterRule(source=inside, destination=unicast, verdict=masquerade),
        # The host itself: a peer could not send the answer to an address of the underlay by the overlay.
        FilterRule(source=outside, destination=inside, verdict=masquerade),
    )
