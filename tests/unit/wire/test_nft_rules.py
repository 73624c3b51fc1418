"""Tables of nftables: written and read as JSON."""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Any

import pytest
from msgspec.structs import replace

from pyflannel.errors import WireError
from pyflannel.model.docker import PublishedPort
from pyflannel.model.packet_filter import (
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
    Return,
    Rules,
    TranslatedRule,
)
from pyflannel.plan.packet_filter import forward_rules, masquerade_rules
from pyflannel.wire.nftables import format_removal, format_table, parse_names, parse_table

NETWORK = ip_network("10.100.0.0/16")
TABLE = NftTable(
    family=4,
    device="flannel0",
    chains=(
        NftChain(name="forward", kind="filter", hook="forward", priority=0, rules=forward_rules(NETWORK)),
        NftChain(
            name="postrtg",
            kind="nat",
            hook="postrouting",
            priority=100,
            rules=masquerade_rules(NETWORK, ip_network("10.100.1.0/24"), is_fully_random=True),
        ),
    ),
)


def listing(table: NftTable, *more: dict[str, Any]) -> str:
    """Return the listing of nft after it has read the table."""
    commands = json.loads(format_table(table))["nftables"][2:]
    return json.dumps({"nftables": [{"metainfo": {}}, *(command["add"] for command in commands), *more]})


def rule(*expressions: object) -> dict[str, Any]:
    return {"rule": {"chain": "forward", "expr": list(expressions)}}


def parsed_rule(*expressions: object) -> FilterRule | ForeignRule:
    empty = replace(TABLE, chains=(replace(TABLE.chains[0], rules=()),))
    table = parse_table(listing(empty, rule(*expressions)), 4, "flannel0")
    return table.chains[0].rules[0]


def test_a_table_is_replaced_in_one_transaction() -> None:
    """The table is added first, so that its deletion cannot fail. One input is one transaction."""
    commands = json.loads(format_table(TABLE))["nftables"]

    name = {"table": {"family": "ip", "name": "flannel-ipv4"}}
    assert commands[:3] == [{"add": name}, {"delete": name}, {"add": name}]
    assert commands[3]["add"]["chain"] == {
        "family": "ip",
        "table": "flannel-ipv4",
        "name": "forward",
        "type": "filter",
        "hook": "forward",
        "prio": 0,
        "policy": "accept",
    }
    assert sum("rule" in command.get("add", {}) for command in commands) == 8


@pytest.mark.parametrize("family", [4, 6])
def test_written_values_are_read_back(family: int) -> None:
    table = TABLE if family == 4 else ipv6_table()

    assert parse_table(listing(table), table.family, "flannel0") == table


PUBLISHED = PublishedPort(protocol="tcp", host_port=8080, address=IPv4Address("10.100.1.66"), port=80)
DOCKER_RULES = (
    PortRule(PUBLISHED),
    PortRule(replace(PUBLISHED, protocol="udp", host_address=IPv4Address("192.0.2.1"))),
    TranslatedRule(IPv4Network("127.0.0.0/8"), IPv4Network("10.100.1.64/27")),
    LoopbackRule(is_source=False),
    LoopbackRule(is_source=True),
    IsolationRule(IPv4Network("10.100.0.0/16"), IPv4Network("10.101.0.0/16")),
    IsolationRule("flbr-4444444444", IPv4Network("10.101.0.0/16")),
)
IPV6_RULES = (
    IsolationRule(IPv6Network("fd00:5::/48"), IPv6Network("fd00:6::/48")),
    IsolationRule("flbr-4444444444", IPv6Network("fd00:6::/48")),
)


@pytest.mark.parametrize("planned", DOCKER_RULES)
def test_rules_for_networks_of_docker_are_read_back(planned: Rules) -> None:
    chain = NftChain(name="docker", kind="nat", hook="prerouting", priority=-100, rules=(planned,))
    table = NftTable(family=4, device="flannel0", chains=(chain,))

    assert parse_table(listing(table), 4, "flannel0") == table


@pytest.mark.parametrize("planned", DOCKER_RULES)
def test_a_changed_rule_for_networks_of_docker_is_foreign(planned: Rules) -> None:
    chain = NftChain(name="forward", kind="nat", hook="prerouting", priority=-100, rules=(planned,))
    text = listing(NftTable(family=4, device="flannel0", chains=(chain,)))
    expressions = json.loads(text)["nftables"][-1]["rule"]["expr"]

    for missing in range(len(expressions) - 1):
        changed = [one for place, one in enumerate(expressions) if place != missing]
        assert parsed_rule(*changed) != planned


@pytest.mark.parametrize("planned", IPV6_RULES)
def test_isolation_rules_of_ipv6_are_read_back(planned: IsolationRule) -> None:
    chain = NftChain(name="isolation", kind="filter", hook="prerouting", priority=-300, rules=(planned,))
    table = NftTable(family=6, device="flannel0", chains=(chain,))

    assert parse_table(listing(table), 6, "flannel0") == table


def ipv6_table() -> NftTable:
    rules = masquerade_rules(ip_network("fd00::/16"), ip_network("fd00:1::1/128"), is_fully_random=False)
    chain = NftChain(name="postrtg", kind="nat", hook="postrouting", priority=100, rules=rules)
    return NftTable(family=6, device="flannel0", chains=(chain,))


@pytest.mark.parametrize(
    "expressions",
    [
        (),
        ({"drop": None},),
        ({"counter": {"packets": 0, "bytes": 0}}, {"accept": None}),
        ({"masquerade": {"flags": "random"}},),
        (
            {"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 1}},
            {"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 2}},
            {"accept": None},
        ),
        ({"accept": None}, {"accept": None}),
        ({"match": {"op": "<", "left": {"meta": {"key": "mark"}}, "right": 7}}, {"accept": None}),
        (
            {
                "match": {
                    "op": "==",
                    "left": {"payload": {"protocol": "ip6", "field": "saddr"}},
                    "right": "fd00::1",
                }
            },
            {"accept": None},
        ),
        (
            {
                "match": {
                    "op": "==",
                    "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                    "right": {"set": ["1.2.3.4", "1.2.3.5"]},
                }
            },
            {"accept": None},
        ),
    ],
)
def test_unknown_rules_are_foreign(expressions: tuple[object, ...]) -> None:
    assert isinstance(parsed_rule(*expressions), ForeignRule)


def test_several_forms_of_one_rule_are_equal() -> None:
    mark = {"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 0x4000}}

    assert parsed_rule({"masquerade": {"flags": ["fully-random"]}}) == FilterRule(verdict=Masquerade())
    assert parsed_rule(mark, {"return": None}) == FilterRule(mark=Mark(0x4000), verdict=Return())
    assert parsed_rule({"accept": None}) == FilterRule(verdict=Accept())


@pytest.mark.parametrize(
    ("stranger", "words"),
    [
        ({"set": {"name": "bad"}}, "set bad"),
        ({"chain": {"name": "more"}}, "chain more with policy none"),
        ({"chain": {"name": "end", "type": "filter", "policy": "drop"}}, "chain end with policy drop"),
    ],
)
def test_foreign_objects_in_the_table_are_read(stranger: dict[str, Any], words: str) -> None:
    assert parse_table(listing(TABLE, stranger), 4, "flannel0").others == (words,)


def test_tables_are_identified_by_family_and_device() -> None:
    names = [
        ("ip", "flannel-ipv4"),
        ("ip6", "flannel-ipv6"),
        ("ip", "flannel-ipv4-1"),
        ("ip", "flannel-ipv6"),
        ("inet", "flannel-ipv4"),
        ("ip", "nat"),
    ]
    found = parse_names("".join(f"table {family} {name}\n" for family, name in names))

    assert found == [(4, "flannel0"), (6, "flannel0"), (4, "flannel1")]


def test_a_table_is_deleted_by_name_even_if_it_no_longer_exists() -> None:
    table = replace(TABLE, device="flannel3")

    name = {"family": "ip", "name": "flannel-ipv4-3"}
    assert json.loads(format_removal(table)) == {
        "nftables": [{"add": {"table": name}}, {"delete": {"table": name}}]
    }


@pytest.mark.parametrize("text", ["{}", "table ip", "chain ip flannel-ipv4", "Error: no", "\n"])
def test_other_text_is_refused_as_a_list_of_tables(text: str) -> None:
    with pytest.raises(WireError, match="unknown line in the list of tables"):
        parse_names(text)
