"""The finding that no rule masquerades the packets of containers to addresses outside the network."""

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address

from pyflannel.model.netfilter import Match
from pyflannel.model.network_config import IpAddress
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.probe import EchoResult
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.flows import container_packet
from pyflannel.plan.doctor.observed import Observed

_OUTSIDE = IPv4Address("198.51.100.1")
"""An address outside every network (RFC 5737)."""


def gateway_without_masquerading(seen: Observed) -> IpAddress | None:
    """Return the default gateway if no rule masquerades the packets of Docker's containers that leave the
    network; None if a rule may masquerade them, or Docker has no containers in this host's subnet.

    Without Docker, an operator may intend that no rule masquerades, for example in a network of pods.
    """
    own, docker = seen.membership.subnet, seen.docker
    gateways = (one for one in seen.interfaces.default_routes if one.gateway is not None)
    route = next(gateways, None)
    bridge = next((name for name, ports in seen.ports.items() if ports), None)
    if own is None or own.version != 4 or route is None or bridge is None:
        return None
    if docker is None or docker.is_stopped or docker.hangs_s is not None or _is_masqueraded_by_flannel(seen):
        return None
    packet = container_packet(own[2], _OUTSIDE, iif=bridge, oif=route.link)
    for chain in seen.ruleset:
        if not chain.is_nat or chain.hook != "postrouting" or chain.family not in ("ip", "inet"):
            continue
        for rule in (rule for rules in chain.chains.values() for rule in rules):
            is_other = any(isinstance(one, Match) and one.holds(packet) is False for one in rule.matches)
            if not is_other and (rule.action.translates == "source" or rule.action.kind == "unknown"):
                return None
    return route.gateway


def _is_masqueraded_by_flannel(seen: Observed) -> bool:
    """Return whether a flannel has rules that masquerade packets."""
    return any(
        (isinstance(item, IptablesChain) and item.hook == "POSTROUTING")
        or (isinstance(item, NftTable) and any(chain.hook == "postrouting" for chain in item.chains))
        for item in seen.items
    )


def _unmasqueraded(seen: Observed) -> Iterator[Finding]:
    """Yield the finding, if the gateway answers the public address of this host, but not its address at the
    bridge. A gateway with a route to the subnet of this host answers both.
    """
    gateway = gateway_without_masquerading(seen)
    own, network = seen.membership.subnet, seen.membership.network
    usual, bare = seen.gateway_answers or (None, None)
    if gateway is None or usual is None or bare is None or not _is_lost(usual, bare):
        return
    yield Finding(
        code="not-masqueraded",
        severity="warning",
        cause="containers of this host reach no address outside the network: flanneld runs without --ip-masq,"
        " no rule of Docker or another program masquerades their packets, and the gateway has no route back",
        evidence=(
            f"iptables -t nat -S POSTROUTING; nft list ruleset: no rule masquerades packets from {own}",
            f"the gateway {gateway} answers the public address of this host, and no address in {own}",
        ),
        fix=f"iptables -t nat -A POSTROUTING -s {own} ! -d {network} -j MASQUERADE  # until you start"
        " flanneld with --ip-masq, or add a route to the gateway",
    )


def _is_lost(usual: EchoResult, bare: EchoResult) -> bool:
    return usual.state == "reached" and bare.state == "silent"


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (_unmasqueraded,)
