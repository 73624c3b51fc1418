"""The packet filter: which rules a host has, in the words of the engine that the network config names."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from pyflannel.model.filter_rule import FilterRule
from pyflannel.model.host import Host
from pyflannel.model.iptables_chain import Family, IptablesChain
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.nft_table import FORWARD, POSTROUTING, NftChain, NftTable
from pyflannel.model.state import Item, State
from pyflannel.plan.forward import forward_rules
from pyflannel.plan.masquerade import masquerade_rules

_SRCNAT = 100
"""Priority of NAT on the way out (linux/netfilter_ipv4.h, NF_IP_PRI_NAT_SRC); 0 is the filter's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions:
    """What the operator asks of this host's packet filter.

    Attributes:
        is_fully_random: ports of masqueraded packets are drawn, where the host can do so.
    """

    masquerades: bool = False
    is_fully_random: bool = True
    accepts_forwarded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _FamilyRules:
    """The rules of one family; empty where nothing is asked."""

    family: Family
    masquerade: tuple[FilterRule, ...]
    forward: tuple[FilterRule, ...]


def plan_filter(config: NetworkConfig, host: Host, options: FilterOptions) -> State:
    """Return the rules of every family that is on, as items of the engine that the config names."""
    families = [_rules(*family, options) for family in _families(config, host.lease)]
    items = _nftables if config.enable_nftables else _iptables
    return State.collect(item for rules in families for item in items(rules, host.device))


def _families(
    config: NetworkConfig, lease: Lease
) -> Iterator[tuple[Family, IPv4Network | IPv6Network, IPv4Network | IPv6Network]]:
    if config.enable_ipv4 and config.network is not None:
        yield 4, config.network, lease.subnet
    if config.enable_ipv6 and config.ipv6_network is not None and lease.ipv6_subnet is not None:
        yield 6, config.ipv6_network, lease.ipv6_subnet


def _rules(
    family: Family,
    network: IPv4Network | IPv6Network,
    subnet: IPv4Network | IPv6Network,
    options: FilterOptions,
) -> _FamilyRules:
    masquerade = masquerade_rules(network, subnet, is_fully_random=options.is_fully_random)
    return _FamilyRules(
        family=family,
        masquerade=masquerade if options.masquerades else (),
        forward=forward_rules(network) if options.accepts_forwarded else (),
    )


def _iptables(rules: _FamilyRules, device: str) -> Iterator[Item]:
    if rules.masquerade:
        yield IptablesChain(family=rules.family, table="nat", device=device, rules=rules.masquerade)
    if rules.forward:
        yield IptablesChain(family=rules.family, table="filter", device=device, rules=rules.forward)


def _nftables(rules: _FamilyRules, device: str) -> Iterator[Item]:
    forward = NftChain(name=FORWARD, kind="filter", hook="forward", priority=0, rules=rules.forward)
    masquerade = NftChain(
        name=POSTROUTING, kind="nat", hook="postrouting", priority=_SRCNAT, rules=rules.masquerade
    )
    chains = tuple(chain for chain in (forward, masquerade) if chain.rules)
    if chains:
        yield NftTable(family=rules.family, device=device, chains=chains)
    if rules.forward:
        # An accept in our table does not undo the drop of another: where Docker has set the policy of
        # iptables' FORWARD to DROP, the packet must be accepted there.
        yield IptablesChain(
            family=rules.family, table="filter", device=device, rules=rules.forward, is_for_dropping=True
        )
