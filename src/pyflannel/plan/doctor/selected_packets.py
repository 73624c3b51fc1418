"""The packets between containers that single rules select, for example those to one port or one address."""

import re
from collections.abc import Iterator
from itertools import islice

from msgspec.structs import replace

from pyflannel.model.netfilter import Match, Packet, Rule, Unknown
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.plan.doctor.flows import Flow, container_flows, evaluated_peers, kinds_of
from pyflannel.plan.doctor.observed import Observed
from pyflannel.plan.netfilter import THROUGH

SINGLE_CODE = "single-dropped"

_MOST_SINGLE = 64
"""Maximum number of rules for which the packet that they select is evaluated."""

_OF_PROGRAMS = re.compile(
    r"cali-|KUBE-|CILIUM_|DOCKER|calico$|kindnet-network-policies$|kube-network-policies$"
)
"""The beginnings of names of chains and tables whose rules for single packets belong to a program: network
policies of Kubernetes, services, published ports."""


def single_flows(seen: Observed) -> Iterator[Flow]:
    """Yield packets between containers that single rules select by address, port or protocol, if the rules
    drop these packets or change their destination.
    """
    mtu = None if seen.status.backend is None else seen.status.backend.mtu
    usual = {
        flow: [kind.packet for kind in kinds_of(flow, mtu)]
        for flow in islice(container_flows(seen), 2)
        if flow.hooks
    }
    most = min(_MOST_SINGLE, evaluated_peers(seen))
    found: dict[Packet, Flow] = {}
    for rule in _selective_rules(seen):
        for flow, packets in usual.items():
            ends = _ends(rule, flow.packet, seen)
            if ends is None:
                continue
            selected = (_selected(rule, replace(packet, **ends)) for packet in packets)
            packet = next((one for one in selected if one is not None and one not in packets), None)
            if packet is not None:
                found.setdefault(packet, flow._replace(code=SINGLE_CODE, packet=packet))
        if len(found) >= most:
            break
    yield from found.values()


_AT_PORT = frozenset({"iif", "oif", "in_bridge", "out_bridge"})


def _selective_rules(seen: Observed) -> Iterator[Rule]:
    """Yield the rules that drop packets or change their destination, except those of known programs.

    Without the conditions on interfaces where these are ports of a bridge; the evaluation of the packet uses
    all conditions.
    """
    for chain in seen.ruleset:
        if not chain.is_nat and chain.hook not in THROUGH:
            continue
        is_at_port = chain.family in ("bridge", "netdev")
        for name, rules in chain.chains.items():
            if _OF_PROGRAMS.match(name) or _OF_PROGRAMS.match(chain.table):
                continue
            for rule in rules:
                action = rule.action
                if action.kind in ("drop", "reject") or action.translates == "destination":
                    yield _without_ports(rule) if is_at_port else rule


def _without_ports(rule: Rule) -> Rule:
    matches = (one for one in rule.matches if isinstance(one, Unknown) or one.field not in _AT_PORT)
    return replace(rule, matches=tuple(matches))


_SELECTABLE = frozenset({"sport", "dport", "length"})
"""Fields for which any value is possible between containers."""

_OF_KIND = frozenset({"protocol", "icmp_type", "tcp_flags", "state", "direction", *_SELECTABLE})
"""Fields in which the kinds of packets of a flow differ."""


def _ends(rule: Rule, usual: Packet, seen: Observed) -> dict[str, IpAddress] | None:
    """Return the addresses that a rule selects for packets between containers like the usual one, if they
    differ; None if the rule applies to no packet of the flow.
    """
    own, network = seen.membership.subnet, seen.membership.network
    ends: dict[str, IpAddress] = {}
    for match in rule.matches:
        if not isinstance(match, Match) or match.field in _OF_KIND or match.holds(usual) is not False:
            continue
        if match.field not in ("saddr", "daddr") or match.is_negated or own is None or network is None:
            return None
        name = "source" if match.field == "saddr" else "destination"
        is_own = (usual.source if match.field == "saddr" else usual.destination) in own
        addresses = (_address_in(one, is_own, own, network) for one in match.values if isinstance(one, tuple))
        address = next((one for one in addresses if one is not None), None)
        if address is None:
            return None
        ends[name] = address
    return ends


def _selected(rule: Rule, packet: Packet) -> Packet | None:
    """Return a packet of the same kind that meets all known conditions of a rule; None if there is none."""
    values: dict[str, int] = {}
    for match in rule.matches:
        if isinstance(match, Unknown) or match.holds(packet) is not False:
            continue
        value = next((one for one in match.values if isinstance(one, tuple)), None)
        if match.field not in _SELECTABLE or match.is_negated or value is None:
            return None
        values[_NAMES.get(match.field, match.field)] = value[0]
    return replace(packet, **values)


_NAMES = {"sport": "source_port", "dport": "destination_port"}


def _address_in(
    values: tuple[int, int], is_own: bool, own: IpNetwork, network: IpNetwork
) -> IpAddress | None:
    """Return an address in a range of addresses that belongs to a container of this host, or of another
    host.
    """
    low, high = max(values[0], int(network[0]) + 1), min(values[1], int(network[-1]) - 1)
    if is_own:
        low, high = max(low, int(own[0]) + 1), min(high, int(own[-1]) - 1)
    elif int(own[0]) <= low <= int(own[-1]):
        low = int(own[-1]) + 1
    return network[low - int(network[0])] if low <= high else None
