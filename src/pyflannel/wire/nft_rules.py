"""Tables and rules as nft reads and prints them in JSON. Source: libnftables-json(5)."""

import json
from collections.abc import Iterator, Mapping
from ipaddress import ip_network

from pyflannel.errors import WireError
from pyflannel.model.filter_name import device_of
from pyflannel.model.filter_rule import (
    Accept,
    FilterRule,
    ForeignRule,
    Mark,
    Masquerade,
    Prefix,
    Return,
    Rules,
    Verdict,
)
from pyflannel.model.iptables_chain import Family
from pyflannel.model.nft_table import POSTROUTING, STEMS, NftChain, NftTable

FAMILIES: Mapping[Family, str] = {4: "ip", 6: "ip6"}
"""What nftables calls the families."""

_FULL_MASK = 0xFFFFFFFF
_KNOWN_OBJECTS = frozenset({"metainfo", "table", "chain", "rule"})


def format_table(table: NftTable) -> str:
    """Return the transaction that makes the table as it is planned, whatever of it is there."""
    name = {"family": FAMILIES[table.family], "name": table.name}
    inside = {"family": FAMILIES[table.family], "table": table.name}
    commands: list[object] = [
        {"add": {"table": name}},  # so that it can be deleted
        {"delete": {"table": name}},
        {"add": {"table": name}},
    ]
    for chain in table.chains:
        base = {"type": chain.kind, "hook": chain.hook, "prio": chain.priority, "policy": "accept"}
        commands.append({"add": {"chain": {**inside, "name": chain.name, **base}}})
        for rule in chain.rules:
            if isinstance(rule, FilterRule):
                expressions = list(_expressions(rule, table.family))
                commands.append({"add": {"rule": {**inside, "chain": chain.name, "expr": expressions}}})
    return json.dumps({"nftables": commands})


def format_removal(table: NftTable) -> str:
    """Return the transaction that takes the table away, if it is there."""
    name = {"family": FAMILIES[table.family], "name": table.name}
    return json.dumps({"nftables": [{"add": {"table": name}}, {"delete": {"table": name}}]})


def format_check(family: Family) -> str:
    """Return a transaction that nft takes, with --check, where masqueraded packets can get random ports."""
    rules = (FilterRule(verdict=Masquerade()),)
    chain = NftChain(name=POSTROUTING, kind="nat", hook="postrouting", priority=100, rules=rules)
    return format_table(NftTable(family=family, device="probe", chains=(chain,)))


def parse_names(text: str) -> list[tuple[Family, str]]:
    """Return the tables with our names that `nft -j list tables` printed, each with its family and device.

    Raises:
        WireError: it is not what nft prints.
    """
    found: list[tuple[Family, str]] = []
    for kind, value in _objects(text):
        for family, stem in STEMS.items():
            if kind == "table" and value.get("family") == FAMILIES[family]:
                device = device_of(str(value.get("name")), stem)
                if device is not None:
                    found.append((family, device))
    return found


def parse_table(text: str, family: Family, device: str) -> NftTable:
    """Return the table that `nft -j list table` printed.

    Raises:
        WireError: it is not what nft prints.
    """
    rules: dict[str, list[FilterRule | ForeignRule]] = {}
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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireError(
            f"nft printed what is no listing: {text[:80]!r}", hint="Report the version of nft on this host."
        ) from error


def _chain(base: Mapping[str, object], rules: Rules) -> NftChain:
    priority = base.get("prio")
    return NftChain(
        name=str(base.get("name")),
        kind=str(base.get("type")),
        hook=str(base.get("hook")),
        priority=priority if isinstance(priority, int) else -1,
        rules=rules,
    )


def _expressions(rule: FilterRule, family: Family) -> Iterator[object]:
    if rule.mark is not None:
        yield _match(rule.mark.value, _mark_field(rule.mark), is_negated=False)
    for field, prefix in (("saddr", rule.source), ("daddr", rule.destination)):
        if prefix is not None:
            payload = {"payload": {"protocol": FAMILIES[family], "field": field}}
            yield _match(_network(prefix), payload, is_negated=prefix.is_negated)
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


def _parse_rule(expressions: object, family: Family) -> FilterRule | ForeignRule:
    """Return the rule that prints so: what we would not print the same way is foreign."""
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
