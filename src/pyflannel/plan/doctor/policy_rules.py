"""Policy rules, by which packets of containers do not use the routes of the main table."""

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from itertools import pairwise
from typing import NamedTuple, Self

from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.route import Route, RouteAnswer
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.observed import Observed, main_route, some
from pyflannel.plan.doctor.packets import destination_of

REFUSING = frozenset({"blackhole", "prohibit", "unreachable"})
"""The types of routes, and the actions of policy rules, by which the kernel refuses packets."""

_USUAL_TABLES = frozenset({"main", "local", "default"})

_PROGRAM_TABLES = frozenset({"52", "220", "2004", "2005", "51820"})
"""The tables of Tailscale, strongSwan, Cilium and wg-quick, which add their rules again."""

_OF_KINDS = frozenset({"ipproto", "sport", "dport", "tos"})
"""Selectors of kinds of packets, which `ip route get` accepts."""

_WITH_VALUE = frozenset({"from", "to", "iif", "oif", "fwmark", "lookup", "proto", *_OF_KINDS})

_OF_SOCKETS = frozenset({"uidrange", "dsfield", "dscp", "l3mdev"})
"""Selectors that do not match the packets about which doctor asks the kernel."""

_PROTOCOLS = frozenset({"tcp", "udp", "icmp", "ipv6-icmp"})
"""The protocols about which the kernel can be asked (rtm_getroute_parse_ip_proto in net/ipv4/route.c)."""


class PolicyRule(NamedTuple):
    """A policy rule, as `ip rule` lists it.

    Attributes:
        values: the values of its selectors and its action, by their names.
        words: all words except the priority.
    """

    priority: str
    values: Mapping[str, str]
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the rule of a line of `ip rule`."""
        priority, _, rest = text.partition(":")
        words = tuple(word for word in rest.split() if word != "[detached]")
        following = {name: value for name, value in pairwise(words) if name in _WITH_VALUE}
        return cls(priority, following, words)

    @property
    def table(self) -> str | None:
        """Name of a table of an operator or a program; None for a rule without such a table."""
        found = self.values.get("lookup")
        return None if found in _USUAL_TABLES else found

    @property
    def refuses(self) -> bool:
        """True if the rule itself refuses packets."""
        return not REFUSING.isdisjoint(self.words)

    @property
    def is_known(self) -> bool:
        """True if a known program adds the rule, and would add it again."""
        return self.table in _PROGRAM_TABLES or self.values.get("proto", "static") not in ("static", "boot")

    @property
    def kind(self) -> tuple[str, ...]:
        """The selectors of the kind of packets that the rule selects, as words of `ip route get`; empty if it
        selects all kinds, all except one kind, or kinds about which the kernel cannot be asked.
        """
        found = {name: value for name, value in self.values.items() if name in _OF_KINDS}
        if "not" in self.words or found.get("ipproto", "tcp") not in _PROTOCOLS:
            return ()
        return tuple(
            word
            for name, value in found.items()
            for word in (name, value if name == "ipproto" else value.partition("-")[0])
        )

    def selects(
        self, source: IpAddress | None, destination: IpAddress, link: str, *, is_of_kind: bool = False
    ) -> bool:
        """Return whether the rule matches a forwarded packet without a mark, which arrived at a link.

        `is_of_kind`: True for a packet of the kind that the rule selects.
        """
        if _OF_SOCKETS.intersection(self.words) or (not is_of_kind and _OF_KINDS.intersection(self.words)):
            return False
        mark, _, mask = self.values.get("fwmark", "0").partition("/")
        matches = (
            _contains(self.values.get("from"), source)
            and _contains(self.values.get("to"), destination)
            and self.values.get("iif", link) == link
            and "oif" not in self.values
            and int(mark, 0) & int(mask or "0xffffffff", 0) == 0
        )
        return matches != ("not" in self.words)

    def deletion(self, family: Family) -> str:
        """Return the command that deletes exactly this rule."""
        return f"{_IP_RULE[family]} delete priority {self.priority} {' '.join(self.words)}"


def _contains(prefix: str | None, address: IpAddress | None) -> bool:
    if prefix in (None, "all"):
        return True
    return address is not None and address in _network(prefix)


def _network(prefix: str) -> IpNetwork:
    return ip_network(prefix, strict=False)


class Forwarded(NamedTuple):
    """A packet of a container that this host forwards, to another host or from it."""

    source: IpAddress | None
    destination: IpAddress
    link: str


def forwarded_packets(seen: Observed) -> Iterator[Forwarded]:
    """Yield the packets about whose routes the kernel was asked, and the packets in the other direction. The
    kernel also searches the route to the source of a packet.
    """
    own, backend = seen.membership.subnet, seen.status.backend
    if own is None:
        return
    bridge, here = next(iter(seen.ports), ""), own.network_address + 2
    tunnel = (backend.link if backend is not None else None) or seen.membership.underlay or ""
    for there in dict.fromkeys(one.destination for one in seen.answers if one.way == "container out"):
        yield Forwarded(here if bridge else None, there, bridge)
        yield Forwarded(there, here, tunnel)


def _diverted(seen: Observed) -> Iterator[Finding]:
    """Yield findings for packets between containers of this host and of other hosts for which the kernel does
    not use the route of the main table.
    """
    wrong = [
        one
        for one in seen.answers
        if one.way in ("container out", "container in") and not _is_right(one, seen)
    ]
    found = _deciding(seen) if wrong else {}
    if found:
        own = seen.membership.subnet
        is_in = [own is not None and one in own for destinations in found.values() for one in destinations]
        lines = [line for rule in found for line in _lines(seen, rule)]
        rules = [PolicyRule.parse(rule) for rule in found]
        yield Finding(
            code="policy-rule",
            severity="error",
            cause=f"a policy rule diverts packets of containers {_whither(is_in)}",
            evidence=some([*lines, *dict.fromkeys(one.text for one in wrong)]),
            fix=_fix(seen, rules),
        )
        return
    wrong = [one for one in wrong if one.way == "container out"]
    every = list(dict.fromkeys(rule for one in wrong for rule in one.rules))
    if every:
        yield Finding(
            code="policy-rule",
            severity="error",
            cause=f"a policy rule diverts packets of containers {_whither([False])}",
            evidence=some(
                [*(f"{_IP_RULE[seen.family]}: {rule}" for rule in every), *(one.text for one in wrong)]
            ),
            fix=_precedence(seen),
        )


def _whither(is_in: list[bool]) -> str:
    if all(is_in):
        return "of other hosts to containers of this host"
    return "of this host and of other hosts" if any(is_in) else "to other hosts"


def _deciding(seen: Observed) -> dict[str, list[IpAddress]]:
    """Return the policy rules that decide about packets of containers, each with the destinations of these
    packets. A rule decides if it refuses packets, or its table has a route to a destination.
    """
    rules = list(dict.fromkeys(rule for one in seen.answers for rule in one.rules))
    found: dict[str, list[IpAddress]] = {}
    for packet in forwarded_packets(seen):
        for rule in rules:
            parsed = PolicyRule.parse(rule)
            if not parsed.selects(*packet) or "suppress_prefixlength" in parsed.words:
                continue
            if parsed.values.get("lookup") == "main":
                break
            if parsed.refuses or seen.rule_routes.get(rule):
                found.setdefault(rule, []).append(packet.destination)
                break
    return found


def _lines(seen: Observed, rule: str) -> list[str]:
    table = PolicyRule.parse(rule).table
    routes = seen.rule_routes.get(rule, ())
    return [
        f"{_IP_RULE[seen.family]}: {rule}",
        *(f"ip -{seen.family} route show table {table}: {route}" for route in routes),
    ]


def _fix(seen: Observed, rules: list[PolicyRule]) -> str:
    if any(one.is_known for one in rules):
        return _precedence(seen)
    return "; ".join(dict.fromkeys(one.deletion(seen.family) for one in rules))


def _precedence(seen: Observed) -> str:
    """Return the command for a rule before all rules of other programs."""
    return f"{_IP_RULE[seen.family]} add to {seen.membership.network} lookup main priority 1"


def _diverted_by_mark(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that policy rules divert marked packets, and that filter rules set the mark.

    The conditions of these filter rules are not evaluated.
    """
    lines = []
    for one in seen.marked_answers:
        (rule,) = one.rules
        setters = _setters(seen, mark_of(rule))
        if setters and not _follows(one, main_route(seen, one.destination)):
            lines += [f"{_IP_RULE[seen.family]}: {rule}", *setters, one.text]
    if lines:
        yield Finding(
            code="policy-rule",
            severity="warning",
            cause="a policy rule diverts marked packets, and filter rules mark packets, perhaps those of"
            " containers to other hosts",
            evidence=some(lines),
            fix=_precedence(seen),
        )


def selected_packet(rule: str, packets: Iterable[Forwarded]) -> Forwarded | None:
    """Return the first packet that a rule selects by the kind of the packet; None if there is none."""
    parsed = PolicyRule.parse(rule)
    if not parsed.kind:
        return None
    return next((one for one in packets if one.link and parsed.selects(*one, is_of_kind=True)), None)


def _diverted_kinds(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that policy rules divert packets of containers that they select by protocol, port or
    type of service. The severity is error if a rule diverts all packets of a protocol.
    """
    usual = {(one.way, one.destination) for one in seen.answers if not _is_right(one, seen)}
    wrong = [
        one
        for one in seen.kind_answers
        if (one.way, one.destination) not in usual
        and not _is_right(one, seen)
        and any(PolicyRule.parse(rule).refuses or seen.rule_routes.get(rule) for rule in one.rules)
    ]
    rules = [*dict.fromkeys(rule for one in wrong for rule in one.rules)]
    if rules:
        own, parsed = seen.membership.subnet, [PolicyRule.parse(rule) for rule in rules]
        is_whole = any(one.kind[::2] == ("ipproto",) for one in parsed)
        lines = [line for rule in rules for line in _lines(seen, rule)]
        is_in = [own is not None and one.destination in own for one in wrong]
        yield Finding(
            code="policy-rule",
            severity="error" if is_whole else "warning",
            cause=f"a policy rule diverts packets of containers {_whither(is_in)} that it selects by"
            " protocol, port or type of service",
            evidence=some([*lines, *dict.fromkeys(one.text for one in wrong)]),
            fix=_fix(seen, parsed),
        )


_FIREWALL_MARK = re.compile(r"^\d+:(?! not ).* fwmark (0x[\da-f]+|\d+)")
_SET_MARK = re.compile(r"(?:\bmark set|--set-x?mark) (0x[\da-f]+|\d+)")


def mark_of(rule: str) -> int:
    """Return the mark that a policy rule selects; 0 if it selects no mark."""
    found = _FIREWALL_MARK.search(rule)
    return 0 if found is None else int(found[1], 0)


def _setters(seen: Observed, mark: int) -> list[str]:
    """Return the filter rules that set a mark."""
    return [
        *dict.fromkeys(
            f"{chain.program} rule in {chain.table} {name}: {rule.text}"
            for chain in seen.ruleset
            for name, rules in chain.chains.items()
            for rule in rules
            if any(int(value, 0) == mark for value in _SET_MARK.findall(rule.text))
        )
    ]


_IP_RULE: Mapping[Family, str] = {4: "ip rule", 6: "ip -6 rule"}


def _is_right(answer: RouteAnswer, seen: Observed) -> bool:
    """Return whether no policy rule diverts a packet. A reverse path filter, or the table local, may decide
    before the rules.
    """
    return (
        answer.refused_at is not None
        or _follows(answer, main_route(seen, answer.destination))
        or _is_in_table_local(answer, seen)
    )


def _follows(answer: RouteAnswer, route: Route | None) -> bool:
    """Return whether the kernel uses the route of the main table for a packet: its link, gateway and type."""
    if route is None or route.kind == "multipath" or answer.link is None or route.link is None:
        return answer.link == _link_of(route)
    return (answer.link, answer.gateway, answer.kind) == (route.link, route.gateway, route.kind)


def _is_in_table_local(answer: RouteAnswer, seen: Observed) -> bool:
    """Return whether a route of the table local decides, which precedes the policy rules."""
    destinations = map(destination_of, seen.local_routes)
    return any(one is not None and answer.destination in one for one in destinations)


def _link_of(route: Route | None) -> str | None:
    return None if route is None else route.link


CHECKS = (_diverted, _diverted_kinds, _diverted_by_mark)
