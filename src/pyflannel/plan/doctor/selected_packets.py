"""The packets between containers that single rules select, for example those to one port or one address."""

import re
from collections.abc import Iterator
from itertools import islice

from msgspec.structs import replace

from pyflannel.model.netfilter import Match, Packet, Rule
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
    usual = [flow for flow in islice(container_flows(seen), 2) if flow.hooks]
    most = min(_MOST_SINGLE, evaluated_peers(seen))
    found: dict[Packet, Flow] = {}
    mtu = None if seen.status.backend is None else seen.status.backend.mtu
    kinds = [(flow, kind.packet) for flow in usual for kind in kinds_of(flow, mtu)]
    for rule in _selective_rules(seen):
        for flow in usual:
            candidates = (_selected(rule, packet, seen) for one, packet in kinds if one is flow)
            packet = next((one for one in candidates if one is not None), None)
            if packet is not None:
                found.setdefault(packet, flow._replace(code=SINGLE_CODE, packet=packet))
        if len(found) >= most:
            break
    yield from found.values()


def _selective_rules(seen: Observed) -> Iterator[Rule]:
    for chain in seen.ruleset:
        if not chain.is_nat and chain.hook not in THROUGH:
            continue
        for name, rules in chain.chains.items():
            if _OF_PROGRAMS.match(name) or _OF_PROGRAMS.match(chain.table):
                continue
            for rule in rules:
                action = rule.action
                if action.kind in ("drop", "reject") or action.translates == "destination":
                    yield rule


def _selected(rule: Rule, usual: Packet, seen: Observed) -> Packet | None:
    """Return a packet like the usual one that meets all known conditions of a rule; None if there is none
    between containers of different hosts. The interfaces are not changed.
    """
    own, network = seen.membership.subnet, seen.membership.network
    packet = usual
    for match in rule.matches:
        if not isinstance(match, Match) or match.is_negated or match.holds(packet):
            continue
        value = next((one for one in match.values if isinstance(one, tuple)), None)
        if value is None or own is None or network is None:
            continue
        match match.field:
            case "saddr" | "daddr":
                end = packet.source if match.field == "saddr" else packet.destination
                address = _address_in(value, end in own, own, network)
                if address is None:
                    return None
                name = "source" if match.field == "saddr" else "destination"
                packet = replace(packet, **{name: address})
            case "sport":
                packet = replace(packet, source_port=value[0])
            case "dport":
                packet = replace(packet, destination_port=value[0])
            case "length":
                packet = replace(packet, length=value[0])
            case _:
                return None
    may_apply = all(match.holds(packet) is not False for match in rule.matches)
    return packet if may_apply and packet != usual else None


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
