"""Tables, chains and rules in the JSON of nft. Source: libnftables-json(5)."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

from pyflannel.errors import WireError
from pyflannel.model.docker import PublishedPort
from pyflannel.model.network_config import Family
from pyflannel.model.packet_filter import (
    NFT_STEMS,
    POSTROUTING,
    Accept,
    FilterRule,
    ForeignRule,
    IsolationRule,
    LoopbackRule,
    Mark,
    Masquerade,
    NftChain,
    NftTable,
    PortRule,
    Prefix,
    Return,
    Rules,
    TranslatedRule,
    Verdict,
    device_of,
)

FAMILIES: Mapping[Family, str] = {4: "ip", 6: "ip6"}
"""The families' names in nftables."""

_FULL_MASK = 0xFFFFFFFF
_LOOPBACK = IPv4Network("127.0.0.0/8")
_KNOWN_OBJECTS = frozenset({"metainfo", "table", "chain", "rule"})


def format_table(table: NftTable) -> str:
    """Return the transaction that creates the planned table, and replaces an existing table."""
    name = {"family": FAMILIES[table.family], "name": table.name}
    inside = {"family": FAMILIES[table.family], "table": table.name}
    commands: list[object] = [
        {"add": {"table": name}},  # without this command, the deletion of a missing table would fail
        {"delete": {"table": name}},
        {"add": {"table": name}},
    ]
    for chain in table.chains:
        base = {"type": chain.kind, "hook": chain.hook, "prio": chain.priority, "policy": "accept"}
        commands.append({"add": {"chain": {**inside, "name": chain.name, **base}}})
        for rule in chain.rules:
            if not isinstance(rule, ForeignRule):
                expressions = _expressions(rule, table.family)
                commands.append({"add": {"rule": {**inside, "chain": chain.name, "expr": expressions}}})
    return json.dumps({"nftables": commands})


def format_removal(table: NftTable) -> str:
    """Return the transaction that removes the table if it exists."""
    name = {"family": FAMILIES[table.family], "name": table.name}
    return json.dumps({"nftables": [{"add": {"table": name}}, {"delete": {"table": name}}]})


def format_check(family: Family) -> str:
    """Return a transaction that nft --check accepts if masquerading can choose random ports."""
    rules = (FilterRule(verdict=Masquerade()),)
    chain = NftChain(name=POSTROUTING, kind="nat", hook="postrouting", priority=100, rules=rules)
    return format_table(NftTable(family=family, device="probe", chains=(chain,)))


_HINT = "Report the version of nft on this host."


_OWN = re.compile(r"(flannel-(ipv4|ipv6|guard)(-\d+)?|pyflannel-device-.*)")


def is_own_table(name: str) -> bool:
    """Return whether a table belongs to a pyflannel daemon: the table of its rules, of its guard, or of
    its claim.
    """
    return _OWN.fullmatch(name) is not None


def parse_names(text: str) -> list[tuple[Family, str]]:
    """Return pyflannel's tables in the output of `nft list tables`, each with its family and device.

    The output is not JSON: nft 1.0.6 crashes when it prints a table with the owner flag as JSON. The claim of
    a device name is a table with the owner flag.

    Raises:
        WireError: the text is not an output of this command.
    """
    found: list[tuple[Family, str]] = []
    for line in text.removesuffix("\n").split("\n") if text else ():
        match line.split():
            case ["table", family_name, name, *_]:
                pass
            case _:
                raise WireError(
                    f"nft printed an unknown line in the list of tables: {line[:80]!r}", hint=_HINT
                )
        for family, stem in NFT_STEMS.items():
            if family_name == FAMILIES[family] and (device := device_of(name, stem)) is not None:
                found.append((family, device))
    return found


def parse_table(text: str, family: Family, device: str) -> NftTable:
    """Return the table in the output of `nft -j list table`.

    Raises:
        WireError: the text is not an output of this command.
    """
    rules: dict[str, list[_Rule]] = {}
    bases: list[Mapping[str, object]] = []
    others: list[str] = []
    for kind, value in _objects(text):
        if kind == "rule":
            rules.setdefault(str(value.get("chain")), []).append(_parse_rule(value.get("expr"), family))
        elif kind == "chain" and value.get("policy") == "accept":
            bases.append(value)
        elif kind == "chain":
            others.append(f"chain {value.get('name')} with policy {value.get('policy', 'none')}")
        elif kind not in _KNOWN_OBJECTS:
            others.append(f"{kind} {value.get('name')}")
    chains = tuple(_chain(base, tuple(rules.get(str(base.get("name")), ()))) for base in bases)
    return NftTable(family=family, device=device, chains=chains, others=tuple(others))


def _objects(text: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    try:
        listed = json.loads(text)["nftables"]
        for entry in listed:
            for kind, value in entry.items():
                yield kind, value if isinstance(value, dict) else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"nft printed an unknown text: {text[:80]!r}", hint=_HINT) from error


def _chain(base: Mapping[str, object], rules: Rules) -> NftChain:
    priority = base.get("prio")
    return NftChain(
        name=str(base.get("name")),
        kind=str(base.get("type")),
        hook=str(base.get("hook")),
        priority=priority if isinstance(priority, int) else -1,
        rules=rules,
    )


_PlannedRule = FilterRule | PortRule | TranslatedRule | LoopbackRule | IsolationRule
_Rule = _PlannedRule | ForeignRule

_TO_THIS_HOST = {
    "match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}
}
_TRANSLATED = {"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}


def _expressions(rule: _PlannedRule, family: Family) -> list[object]:
    match rule:
        case FilterRule():
            return list(_filter_expressions(rule, family))
        case PortRule(published):
            return list(_port_expressions(published))
        case TranslatedRule(source, destination):
            ends = FilterRule(
                source=Prefix(source), destination=Prefix(destination), verdict=Masquerade(False)
            )
            *matches, verdict = _filter_expressions(ends, family)
            return [*matches, _TRANSLATED, verdict]
        case LoopbackRule(is_source):
            return _loopback_expressions(is_source)
        case IsolationRule(origin, destination):
            return _isolation_expressions(origin, destination)


def _isolation_expressions(
    origin: IPv4Network | IPv6Network | str, destination: IPv4Network | IPv6Network
) -> list[object]:
    family: Family = 4 if destination.version == 4 else 6
    match origin:
        case str():
            first = _match(origin, {"meta": {"key": "iifname"}}, is_negated=False)
        case _:
            first = _match(_network(Prefix(origin)), _payload("saddr", family), is_negated=False)
    last = _match(_network(Prefix(destination)), _payload("daddr", family), is_negated=False)
    return [first, last, {"drop": None}]


def _payload(field: str, family: Family = 4) -> object:
    return {"payload": {"protocol": FAMILIES[family], "field": field}}


def _loopback_expressions(is_source: bool) -> list[object]:
    payload = _payload("saddr" if is_source else "daddr")
    return [
        _match("lo", {"meta": {"key": "iifname"}}, is_negated=True),
        _match(_network(Prefix(_LOOPBACK)), payload, is_negated=False),
        {"drop": None},
    ]


def _port_expressions(published: PublishedPort) -> Iterator[object]:
    if published.host_address is not None:
        yield _match(str(published.host_address), _payload("daddr"), is_negated=False)
    yield _TO_THIS_HOST
    port = {"payload": {"protocol": published.protocol, "field": "dport"}}
    yield _match(published.host_port, port, is_negated=False)
    yield {"dnat": {"addr": str(published.address), "port": published.port}}


def _filter_expressions(rule: FilterRule, family: Family) -> Iterator[object]:
    if rule.mark is not None:
        yield _match(rule.mark.value, _mark_field(rule.mark), is_negated=False)
    for field, prefix in (("saddr", rule.source), ("daddr", rule.destination)):
        if prefix is not None:
            yield _match(_network(prefix), _payload(field, family), is_negated=prefix.is_negated)
    yield _verdict(rule.verdict)


def _match(right: object, left: object, *, is_negated: bool) -> object:
    return {"match": {"op": "!=" if is_negated else "==", "left": left, "right": right}}


def _mark_field(mark: Mark) -> object:
    field = {"meta": {"key": "mark"}}
    return field if mark.mask == _FULL_MASK else {"&": [field, mark.mask]}


def _network(prefix: Prefix) -> object:
    network = prefix.network
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def _verdict(verdict: Verdict) -> object:
    match verdict:
        case Accept():
            return {"accept": None}
        case Return():
            return {"return": None}
        case Masquerade(is_fully_random):
            return {"masquerade": {"flags": "fully-random"} if is_fully_random else None}


def _parse_rule(expressions: object, family: Family) -> _Rule:
    """Return the rule in nft's JSON. The rule is foreign if it differs from every rule that pyflannel
    writes.
    """
    match expressions:
        case [*matches, {"dnat": {"addr": str(address), "port": int(port)}}]:
            return _parse_port_rule(matches, address, port) or ForeignRule(json.dumps(expressions))
        case [*matches, translated, {"masquerade": None} as last] if translated == _TRANSLATED:
            match _parse_rule([*matches, last], family):
                case FilterRule(
                    source=Prefix(IPv4Network() as source, is_negated=False),
                    destination=Prefix(IPv4Network() as destination, is_negated=False),
                ):
                    return TranslatedRule(source, destination)
                case _:
                    return ForeignRule(json.dumps(expressions))
        case [origin, destination, {"drop": None}]:
            drops: list[_PlannedRule] = [LoopbackRule(True), LoopbackRule(False)]
            drops.extend(_isolation_rules(origin, destination, family))
            found = (one for one in drops if _expressions(one, family) == expressions)
            return next(found, None) or ForeignRule(json.dumps(expressions))
        case _:
            return _parse_filter_rule(expressions, family)


def _isolation_rules(origin: object, destination: object, family: Family) -> Iterator[IsolationRule]:
    """Yield the IsolationRule to which these matches may belong."""
    match origin:
        case {"match": {"left": {"meta": {"key": "iifname"}}, "right": str(link)}}:
            source: Prefix | str | None = link
        case _:
            found = _parse_match(origin, family)[1]
            source = found if isinstance(found, Prefix) else None
    match source, _parse_match(destination, family)[1]:
        case (str() as link, Prefix(other)):
            yield IsolationRule(link, other)
        case (Prefix(own), Prefix(other)):
            yield IsolationRule(own, other)
        case _:
            pass


def _parse_port_rule(matches: Sequence[object], address: str, port: int) -> PortRule | None:
    """Return the rule that publishes a port; None if the rule does not have the planned form."""
    match matches:
        case [
            *before,
            to_this_host,
            {
                "match": {
                    "op": "==",
                    "left": {"payload": {"protocol": str(protocol), "field": "dport"}},
                    "right": int(host_port),
                }
            },
        ] if to_this_host == _TO_THIS_HOST:
            pass
        case _:
            return None
    match [_parse_match(one, 4) for one in before]:
        case []:
            host = None
        case [("daddr", Prefix(IPv4Network(prefixlen=32, network_address=host), is_negated=False))]:
            pass
        case _:
            return None
    try:
        inside = IPv4Address(address)
    except ValueError:
        return None
    return PortRule(
        PublishedPort(protocol=protocol, host_address=host, host_port=host_port, address=inside, port=port)
    )


def _parse_filter_rule(expressions: object, family: Family) -> FilterRule | ForeignRule:
    match expressions:
        case [*matches, dict(last)]:
            verdict = _parse_verdict(last)
        case _:
            return ForeignRule(json.dumps(expressions))
    known: dict[str, Prefix | Mark] = {}
    for expression in matches:
        field, value = _parse_match(expression, family)
        if value is None or field in known:
            return ForeignRule(json.dumps(expressions))
        known[field] = value
    source, destination, mark = known.get("saddr"), known.get("daddr"), known.get("mark")
    if (
        verdict is None
        or isinstance(source, Mark)
        or isinstance(destination, Mark)
        or isinstance(mark, Prefix)
    ):
        return ForeignRule(json.dumps(expressions))
    return FilterRule(source=source, destination=destination, mark=mark, verdict=verdict)


def _parse_verdict(expression: Mapping[str, object]) -> Verdict | None:
    match expression:
        case {"accept": None}:
            return Accept()
        case {"return": None}:
            return Return()
        case {"masquerade": None}:
            return Masquerade(is_fully_random=False)
        case {"masquerade": {"flags": "fully-random" | ["fully-random"]}}:
            return Masquerade(is_fully_random=True)
        case _:
            return None


def _parse_match(expression: object, family: Family) -> tuple[str, Prefix | Mark | None]:
    match expression:
        case {
            "match": {
                "op": "==" | "in",
                "left": {"&": [{"meta": {"key": "mark"}}, int(mask)]},
                "right": int(value),
            }
        }:
            return "mark", Mark(value, mask)
        case {"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": int(value)}}:
            return "mark", Mark(value)
        case {
            "match": {
                "op": "==" | "!=" as operator,
                "left": {"payload": {"protocol": protocol, "field": "saddr" | "daddr" as field}},
                "right": right,
            }
        } if protocol == FAMILIES[family]:
            return str(field), _parse_network(right, is_negated=operator == "!=")
        case _:
            return "", None


def _parse_network(right: object, *, is_negated: bool) -> Prefix | None:
    match right:
        case str(address):
            text = address
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            text = f"{address}/{length}"
        case _:
            return None
    try:
        return Prefix(ip_network(text), is_negated)
    except ValueError:
        return None
