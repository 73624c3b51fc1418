"""The chains that drop forwarded packets, from the output of nft."""

import json
from ipaddress import IPv4Network
from itertools import pairwise
from typing import Any

import pytest

from pyflannel.errors import WireError
from pyflannel.wire.nftables import parse_forward_chains

NETWORK = IPv4Network("10.100.0.0/16")
COUNTER = {"counter": {"packets": 0, "bytes": 0}}
COMMENT = {"xt": {"type": "match", "name": "comment"}}


def chain(name: str, *, table: str = "filter", family: str = "ip", **base: object) -> dict[str, Any]:
    return {"chain": {"family": family, "table": table, "name": name, "handle": 1, **base}}


def dropping(name: str = "FORWARD", **place: Any) -> dict[str, Any]:
    return chain(name, type="filter", hook="forward", prio=0, policy="drop", **place)


def rule(*expressions: dict[str, Any], of: str = "FORWARD") -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": "filter", "chain": of, "handle": 9, "expr": list(expressions)}}


def source(right: object, field: str = "saddr") -> dict[str, Any]:
    left = {"payload": {"protocol": "ip", "field": field}}
    return {"match": {"op": "==", "left": left, "right": right}}


def prefix(address: str, length: int) -> dict[str, Any]:
    return {"prefix": {"addr": address, "len": length}}


def text(*entries: dict[str, Any]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *entries]})


ACCEPT = {"accept": None}
OURS = prefix("10.100.0.0", 16)


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        ([], False),
        ([rule(ACCEPT)], True),
        ([rule(COMMENT, COUNTER, ACCEPT)], True),
        ([rule(source(OURS), COUNTER, ACCEPT)], True),
        ([rule(source(OURS, "daddr"), ACCEPT)], True),
        ([rule(source(prefix("10.0.0.0", 8)), ACCEPT)], True),
        ([rule(source({"set": [prefix("192.168.0.0", 16), OURS]}), ACCEPT)], True),
        ([rule(source(prefix("10.100.5.0", 24)), ACCEPT)], False),
        ([rule(source("10.100.0.1"), ACCEPT)], False),
        ([rule(source("@some"), ACCEPT)], False),
        ([rule(source(OURS), {"drop": None})], False),
        ([rule(source(OURS), source("10.7.0.1", "daddr"), ACCEPT)], False),
        ([rule({"xt": {"type": "match", "name": "conntrack"}}, ACCEPT)], False),
        ([rule()], False),
        ([rule(COUNTER, {"jump": {"target": "A"}}), rule(source(OURS), ACCEPT, of="A")], True),
        ([rule(source("10.7.0.1"), {"jump": {"target": "A"}}), rule(source(OURS), ACCEPT, of="A")], False),
        ([rule({"jump": {"target": "FORWARD"}})], False),
    ],
)
def test_a_chain_lists_the_accepted_networks(rules: list[dict[str, Any]], passes: bool) -> None:
    """Independent of other properties of a packet: a rule with another condition does not count."""
    (found,) = parse_forward_chains(text(dropping(), chain("A"), *rules))

    assert found.lets_pass(NETWORK) == passes


def test_only_chains_that_drop_forwarded_ipv4_are_returned() -> None:
    entries = [
        dropping("one", table="fw", family="inet"),
        dropping("FORWARD", family="ip6"),
        dropping("bridged", family="bridge"),
        chain("INPUT", type="filter", hook="input", prio=0, policy="drop"),
        chain("forward", table="flannel-ipv4", type="filter", hook="forward", prio=0, policy="accept"),
        chain("FLANNEL-FWD"),
    ]

    found = parse_forward_chains(text(*entries))

    assert [(one.family, one.table, one.name) for one in found] == [("inet", "fw", "one")]


@pytest.mark.parametrize("spoilt", ["", "[]", "{}", '{"nftables": [{"rule": {}}]}', '{"nftables": 7}'])
def test_invalid_output_of_nft_is_reported(spoilt: str) -> None:
    with pytest.raises(WireError):
        parse_forward_chains(spoilt)


@pytest.mark.timeout(20)
def test_chains_with_many_jumps_to_each_other_are_read_once() -> None:
    """Twelve chains with ten jumps each to the next are 10^12 paths."""
    names = ["FORWARD", *(f"c{number}" for number in range(12))]
    jumps = [
        rule({"jump": {"target": target}}, of=name) for name, target in pairwise(names) for _ in range(10)
    ]

    (found,) = parse_forward_chains(text(dropping(), *jumps, rule(ACCEPT, of=names[-1])))

    assert found.lets_pass(NETWORK)
