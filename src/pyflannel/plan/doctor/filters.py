"""Filter rules that drop or change packets of the overlay. To find these rules, all rules are evaluated for
packets of the overlay.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Literal

from msgspec.structs import replace

from pyflannel.model.netfilter import BaseChain, Judgement, Match, Rule, Ruleset
from pyflannel.model.network_config import IpAddress
from pyflannel.model.status import Finding, Severity
from pyflannel.plan.doctor.flows import (
    ALL_NEW,
    NEIGHBOUR_CODE,
    OF_PROBES,
    ONLY_PINGS,
    TUNNEL_PACKETS,
    Flow,
    container_flows,
    every_neighbour_flow,
    kinds_of,
    probe_flows,
    store_flows,
    tunnel_flows,
)
from pyflannel.plan.doctor.observed import NAMED, Observed, main_route, some
from pyflannel.plan.doctor.selected_packets import SINGLE_CODE, single_flows
from pyflannel.plan.netfilter import judge, why

_DROPS = 4
"""Maximum number of chains that are named for one flow."""


def _judgements(seen: Observed) -> Iterator[tuple[Flow, Judgement]]:
    """Yield the judgement of the rules on each flow. If a chain drops the flow, also yield the judgement of
    the rules without this chain.
    """
    if not seen.ruleset:
        return
    backend, underlay = seen.status.backend, seen.status.underlay
    tunnelled, between = (_with_routes(one(seen), seen) for one in (tunnel_flows, container_flows))
    yield from _of_kinds(tunnelled, seen.ruleset, None if underlay is None else underlay.mtu)
    yield from _of_kinds(between, seen.ruleset, None if backend is None else backend.mtu)
    for flow in (*every_neighbour_flow(seen), *probe_flows(seen), *store_flows(seen), *single_flows(seen)):
        yield from _judged(flow, seen.ruleset)


def _with_routes(flows: Iterable[Flow], seen: Observed) -> Iterator[Flow]:
    """Yield the flows with the links of the routes to the sources of packets that arrive."""
    links: dict[IpAddress, str | None] = {}
    for flow in flows:
        packet, source = flow.packet, flow.packet.source
        if packet.iif:
            if source not in links:
                route = main_route(seen, source)
                is_multipath = route is not None and route.kind == "multipath"
                links[source] = None if is_multipath else "" if route is None else route.link or ""
            packet = replace(packet, back_link=links[source])
        yield flow._replace(packet=packet)


_WITH_KINDS = 2
"""Number of flows for whose kinds the rules are always evaluated: one in each direction."""


def _of_kinds(flows: Iterable[Flow], ruleset: Ruleset, mtu: int | None) -> Iterator[tuple[Flow, Judgement]]:
    """Yield the judgements on flows. For the first flows, and for the first flow that a rule drops, also
    yield the judgements on their kinds of packets.
    """
    explained: set[tuple[str, Rule | None]] = set()
    for number, flow in enumerate(flows):
        found = list(_judged(flow, ruleset))
        dropped = {(one.chain.place, one.rule) for _, one in found if one.chain is not None}
        yield from found
        if flow.hooks and (number < _WITH_KINDS or dropped - explained):
            for kind in kinds_of(flow, mtu):
                yield from _judged(kind, ruleset)
        explained |= dropped


def _judged(flow: Flow, ruleset: Ruleset) -> Iterator[tuple[Flow, Judgement]]:
    left = ruleset
    for _ in range(_DROPS):
        judgement = judge(flow.packet, left, flow.hooks)
        yield flow, judgement
        if judgement.kind not in ("drop", "reject", "expire", "sample"):
            break
        left = tuple(chain for chain in left if chain is not judgement.chain)


_Rules = dict[str, tuple[BaseChain, Rule]]
"""Rules with their chains, by their texts."""


def _filters(seen: Observed) -> Iterator[Finding]:
    """Yield the chains that drop packets of the overlay, and rules whose effect is unknown."""
    found = _Collection(seen)
    for flow, judgement in _judgements(seen):
        found.add_change(flow, judgement)
        if judgement.chain is not None and not _is_of_docker(judgement.rule, seen):
            found.add_drop(flow, judgement.chain, judgement.rule, judgement.kind)
    yield from found.drops()
    yield from found.changes()
    yield from found.others()


class _Collection:
    """The rules that drop or change packets, collected from the judgements on all flows."""

    def __init__(self, seen: Observed) -> None:
        self._seen = seen
        self._dropped: dict[tuple[str, str], _Dropped] = {}
        self._named: dict[tuple[str, Rule | None], str] = {}
        self._unknown: dict[str, tuple[BaseChain, Rule | None, str]] = {}
        self._singles: _Rules = {}
        self._sources: _Rules = {}
        self._spoofs: _Rules = {}
        self._diversions: _Rules = {}
        self._redirected: dict[str, Finding] = {}

    def add_change(self, flow: Flow, judgement: Judgement) -> None:
        """Add the rules that change the addresses of a packet."""
        if (translation := judgement.translation) is not None:
            if flow.code == "forward-dropped":
                self._sources[listed(*translation)] = translation
            elif is_of_tunnel(flow) and _new_source(translation[1]) not in (None, flow.packet.source):
                self._spoofs[listed(*translation)] = translation
        if (redirection := judgement.redirection) is not None:
            text = listed(*redirection)
            if is_of_tunnel(flow):
                self._redirected[text] = redirected_by(*redirection, flow)
            elif flow.code in ("forward-dropped", SINGLE_CODE):
                self._diversions[text] = redirection

    def add_drop(self, flow: Flow, chain: BaseChain, rule: Rule | None, kind: str) -> None:
        """Add the rule or the policy that drops, or may drop, a packet. A rule that drops other packets is
        not named again for a kind of packets, a single packet, a probe, or ARP.
        """
        text, place, is_unknown = listed(chain, rule, flow), (chain.place, rule), kind == "unknown"
        by_other = self._named.get(place, flow.code) != flow.code
        if flow.code == SINGLE_CODE:
            if not is_unknown and rule is not None and not by_other:
                self._singles[text] = chain, rule
        elif is_unknown:
            # A port without a protocol is unknown for a ping.
            if flow.code not in OF_PROBES and flow.kind not in ONLY_PINGS:
                self._unknown[text] = chain, rule, "" if rule is None else why(rule, flow.packet)
        elif not (by_other and (flow.kind or flow.code in OF_PROBES or flow.code == NEIGHBOUR_CODE)):
            found = self._dropped.setdefault((flow.code, text), _Dropped(chain, rule, flow, kind))
            found.kinds.setdefault(flow.kind)
            if flow.kind not in ONLY_PINGS:
                self._named.setdefault(place, flow.code)

    def drops(self) -> Iterator[Finding]:
        """Yield the rules and policies that drop packets, each as one finding."""
        of_probes = {text for code, text in self._dropped if code in OF_PROBES}
        for (_, text), one in self._dropped.items():
            if not (text in of_probes and one.is_about_pings):
                yield dropped_by(one.chain, one.rule, one.flow(), one.kind)

    def changes(self) -> Iterator[Finding]:
        """Yield the rules that change addresses."""
        yield from self._redirected.values()
        if self._spoofs:
            yield _translated(
                "source",
                self._spoofs,
                f"of {TUNNEL_PACKETS}, and peers then drop them",
                "if the rules are also for other packets, exclude these",
                "error",
            )
        if self._sources:
            sources = (_new_source(rule) for _, rule in self._sources.values())
            is_lost = any(one is not None and self._seen.interfaces.holder(one) is None for one in sources)
            yield _translated(
                "source",
                self._sources,
                _BETWEEN + (", and replies do not return" if is_lost else ""),
                "Docker also needs --ip-masq=false, see mk-docker-opts",
                "error" if is_lost else "warning",
            )
        diversions = {text: place for text, place in self._diversions.items() if text not in self._redirected}
        if diversions:
            yield _translated(
                "destination", diversions, _BETWEEN, "if no program needs the rules, for example a proxy"
            )

    def others(self) -> Iterator[Finding]:
        """Yield the rules that drop single packets, and those that cannot be evaluated."""
        if self._singles:
            commands = [removal_of(chain, rule) for chain, rule in self._singles.values()]
            yield Finding(
                code=SINGLE_CODE,
                severity="warning",
                cause=f"these rules drop single packets {_BETWEEN.removeprefix('of packets ')}",
                evidence=some(list(self._singles)),
                fix=f"{'; '.join([*dict.fromkeys(commands)][:NAMED])}  # if nothing needs the rules",
            )
        if self._unknown:
            yield _unknown(self._unknown, self._seen)


class _Dropped:
    """A rule or a policy that drops packets; the first flow for which it was found, and the kinds of packets
    that it drops.
    """

    def __init__(self, chain: BaseChain, rule: Rule | None, flow: Flow, kind: str) -> None:
        self.chain, self.rule, self.kind = chain, rule, kind
        self.kinds: dict[str, None] = {}
        self._flow = flow

    @property
    def is_about_pings(self) -> bool:
        """True if other packets between containers pass."""
        return bool(self.kinds) and self.kinds.keys() <= ONLY_PINGS

    def flow(self) -> Flow:
        """Return the flow, with the noun of the kinds that are dropped."""
        flow, kinds = self._flow, [one for one in self.kinds if one]
        if flow.code != "forward-dropped" or not kinds or {*kinds} >= ALL_NEW:
            return flow
        severity: Severity = "warning" if self.is_about_pings else flow.severity
        noun = f"{', '.join(kinds[:-1])} and {kinds[-1]}" if kinds[1:] else kinds[0]
        return flow._replace(noun=f"{noun} of {flow.accepted}", severity=severity)


def _unknown(rules: Mapping[str, tuple[BaseChain, Rule | None, str]], seen: Observed) -> Finding:
    """Return the finding about rules whose effect is unknown.

    `rules`: chain, rule and the condition that cannot be evaluated, by the text of the rule.
    """
    removals = [
        removal_of(chain, rule)
        for chain, rule, _ in rules.values()
        if rule is not None and rule.action.kind in ("drop", "reject")
    ]
    host = next(iter(seen.membership.peers.values()), "another host")
    ping = f"flannelctl ping {_example(seen)}"
    fix = f"{ping}  # run it on {host}: shows whether packets arrive"
    if removals:
        commands = "; ".join([*dict.fromkeys(removals)][:NAMED])
        fix = f"{commands}  # if nothing needs the rules; '{ping}' on {host} shows whether packets arrive"
    is_about_overlay = any(_names_overlay(rule, seen) for _, rule, _ in rules.values())
    return Finding(
        code="rules-unknown",
        severity="warning" if is_about_overlay else "info",
        cause="doctor cannot evaluate these filter rules, which may drop packets of the overlay",
        evidence=some([f"{text} ({reason})" if reason else text for text, (_, _, reason) in rules.items()]),
        fix=fix,
    )


def _names_overlay(rule: Rule | None, seen: Observed) -> bool:
    """Return whether a rule drops packets that it selects by addresses of the network."""
    network = seen.membership.network
    return (
        rule is not None
        and network is not None
        and rule.action.kind in ("drop", "reject")
        and any(
            isinstance(value, tuple) and int(network[0]) <= value[0] and value[1] <= int(network[-1])
            for match in rule.matches
            if isinstance(match, Match) and match.field in ("saddr", "daddr") and not match.is_negated
            for value in match.values
        )
    )


_BETWEEN = "of packets between containers of different hosts"

_NEW_SOURCE = re.compile(
    r"(?:--to-source|snat(?: ip6?)? to) \[?(?P<address>\d+(?:\.\d+){3}|[\da-f]*:[\da-f:]+)", re.IGNORECASE
)


def _new_source(rule: Rule) -> IpAddress | None:
    """Return the address to which a rule changes the source; None if the kernel chooses it, as for
    MASQUERADE, or if the rule names several.
    """
    found = _NEW_SOURCE.search(rule.text)
    with contextlib.suppress(ValueError):
        return None if found is None else ip_address(found["address"])
    return None


def _example(seen: Observed) -> str:
    """Return the address of a container of this host, for a command of another host."""
    own = seen.membership.subnet
    held = (
        address
        for one in seen.containers
        for address in sorted(one.addresses, key=str)
        if own is not None and address in own
    )
    return str(next(held, "CONTAINER-ADDRESS"))


def _is_of_docker(rule: Rule | None, seen: Observed) -> bool:
    """Return whether another finding names this rule of Docker."""
    lines = (line for lines in seen.docker_drops.values() for line in lines)
    return rule is not None and any(line.endswith(rule.text) for line in lines)


def dropped_by(chain: BaseChain, rule: Rule | None, flow: Flow, kind: str) -> Finding:
    """Return the finding about a rule, or the policy of a chain, that drops or rejects packets."""
    other = ", even if another chain accepts them" if flow.code == "forward-dropped" else ""
    effect = f"{'rejects' if kind == 'reject' else 'drops'} {flow.noun}{other}"
    if kind == "expire":
        effect = f"sets the TTL of {flow.noun} so low that the next router drops them"
    elif kind == "sample":
        effect = f"drops a part of {flow.noun}"
    return Finding(
        code=flow.code,
        severity=flow.severity,
        cause=f"{chain.place} {effect}",
        evidence=(listed(chain, rule, flow),),
        fix=_repair(flow, chain),
    )


def listed(chain: BaseChain, rule: Rule | None, flow: Flow | None = None) -> str:
    """Return the rule as its program lists it, or the policy."""
    if rule is None:
        accepted = "it" if flow is None else flow.accepted
        command = (
            f"nft list chain {chain.family} {chain.table} {chain.name}"
            if chain.program == "nft"
            else f"{chain.program} -S {chain.name}"
        )
        return f"{command}: policy {chain.policy}, and no rule that accepts {accepted}"
    name = next((name for name, rules in chain.chains.items() if rule in rules), chain.name)
    if chain.program == "nft":
        return f"nft rule in {chain.family} {chain.table} {name}: {rule.text}"
    return f"{chain.program} rule in {chain.table} {name}: {rule.text}"


def _repair(flow: Flow, chain: BaseChain) -> str:
    """Return the command that makes the chain accept the packets, in the form for the program that owns
    the chain.
    """
    if chain.program == "nft":
        if chain.table == "firewalld":
            return flow.firewalld
        place = f"{chain.family} {chain.table} {chain.name}"
        return "; ".join(f"nft insert rule {place} {condition} accept" for _, condition in flow.accepts)
    if any(name.startswith("ufw-") for name in chain.chains):
        return flow.ufw
    table = "" if chain.table == "filter" else f" -t {chain.table}"
    return "; ".join(
        f"{chain.program}{table} -I {chain.name} {condition} -j ACCEPT" for condition, _ in flow.accepts
    )


def is_of_tunnel(flow: Flow) -> bool:
    """Return whether the packets of a flow are tunnel packets."""
    return flow.code in ("tunnel-dropped", "tunnel-not-sent")


def redirected_by(chain: BaseChain, rule: Rule, flow: Flow) -> Finding:
    """Return the finding that a rule changes the destination of tunnel packets."""
    return Finding(
        code="tunnel-redirected",
        severity=flow.severity,
        cause=f"{chain.place} changes the destination of {flow.noun}",
        evidence=(listed(chain, rule),),
        fix=f"{removal_of(chain, rule)}  # known flows keep the changed destination until the command"
        f" 'conntrack -D -p udp --orig-port-dst {flow.packet.destination_port}' removes them",
    )


def removal_of(chain: BaseChain, rule: Rule | None) -> str:
    """Return the command that deletes a rule of a base chain, or of a chain to which it jumps. Without a
    rule, it changes the policy of the base chain.
    """
    if rule is None and chain.program == "nft":
        return f"nft 'chain {chain.family} {chain.table} {chain.name} {{ policy accept; }}'"
    if rule is None:
        return f"{chain.program} -t {chain.table} -P {chain.name} ACCEPT"
    name = next((name for name, rules in chain.chains.items() if rule in rules), chain.name)
    if chain.program == "nft":
        return f"nft delete rule {chain.family} {chain.table} {name} handle {rule.number}"
    return f"{chain.program} -t {chain.table} -D {name} {rule.text}"


def _translated(
    end: Literal["source", "destination"],
    found: _Rules,
    packets: str,
    advice: str,
    severity: Severity = "warning",
) -> Finding:
    """Return the finding that rules change the source or the destination of packets."""
    commands = [removal_of(chain, rule) for chain, rule in found.values()]
    return Finding(
        code=f"{end}-changed",
        severity=severity,
        cause=f"these rules change the {end} address {packets}",
        evidence=some(list(found)),
        fix=f"{'; '.join(commands[:NAMED])}  # {advice}",
    )


CHECKS = (_filters,)
