"""The evaluation of rules of iptables and of nftables. tests/lab compares the evaluation with the kernel."""

import json
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from pyflannel.errors import WireError
from pyflannel.kernel.filters.ruleset import without_readers
from pyflannel.model.netfilter import ICMPV6, UDP, Hook, Packet, Ruleset
from pyflannel.plan.netfilter import IN, OUT, THROUGH, judge, why
from pyflannel.wire.iptables import parse_save
from pyflannel.wire.iptables_ruleset import ruleset_of
from pyflannel.wire.nftables_ruleset import parse_ruleset

TUNNEL = Packet(
    source=IPv4Address("10.0.0.2"),
    destination=IPv4Address("10.0.0.1"),
    protocol=UDP,
    source_port=40000,
    destination_port=8472,
    iif="eth0",
)


def iptables(*rules: str, table: str = "filter", policy: str = "ACCEPT", chain: str = "INPUT") -> Ruleset:
    text = "\n".join([f"*{table}", f":{chain} {policy} [0:0]", ":sub - [0:0]", *rules, "COMMIT", ""])
    return ruleset_of(parse_save(text), "iptables")


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("-A INPUT -p udp -m udp --dport 8472 -j DROP", "drop"),
        ("-A INPUT -p udp -m udp --dport 8472 -j REJECT --reject-with icmp-host-prohibited", "reject"),
        ("-A INPUT -p udp -m udp --dport 8000:9000 -j DROP", "drop"),
        ("-A INPUT -p udp -m udp ! --dport 8472 -j DROP", "accept"),
        ("-A INPUT -p tcp -m tcp --dport 8472 -j DROP", "accept"),
        ("-A INPUT -p udp -m multiport --dports 53,8472 -j DROP", "drop"),
        ("-A INPUT -s 10.0.0.0/24 -i eth+ -j DROP", "drop"),
        ("-A INPUT ! -s 10.0.0.0/24 -j DROP", "accept"),
        ("-A INPUT ! -i eth0 -j DROP", "accept"),
        ("-A INPUT -m conntrack --ctstate INVALID,NEW -j DROP", "drop"),
        ("-A INPUT -m state --state RELATED,ESTABLISHED -j DROP", "accept"),
        ("-A INPUT -m addrtype --dst-type LOCAL -j DROP", "drop"),
        ("-A INPUT -m mark --mark 0x1/0x1 -j DROP", "accept"),
        ('-A INPUT -m comment --comment "-j ACCEPT" -j DROP', "drop"),
        ('-A INPUT -m comment --comment "a \\" -j ACCEPT" -j DROP', "drop"),
        ("-A INPUT -m comment --comment one -j DROP", "drop"),
        ('-A INPUT -j LOG --log-prefix "-m comment --comment x -j DROP "', "accept"),
        ("-A INPUT -m set --match-set bad src -j DROP", "unknown"),
        ("-A INPUT -m set --match-set good src -j ACCEPT", "accept"),
        ("-A INPUT -j NFQUEUE --queue-num 1", "unknown"),
        ("-A INPUT -j LOG", "accept"),
        ("-A INPUT -g sub\n-A INPUT -j DROP", "accept"),
        ("-A INPUT -j sub\n-A INPUT -j DROP", "drop"),
        ("-A sub -j RETURN\n-A INPUT -j sub\n-A INPUT -j DROP", "drop"),
        ("-A sub -j ACCEPT\n-A INPUT -j sub\n-A INPUT -j DROP", "accept"),
        ("-A sub -j sub\n-A INPUT -j sub", "unknown"),
        ("-A INPUT -m set --match-set a src -j RETURN\n-A INPUT -j DROP", "unknown"),
        (
            "-A INPUT -m statistic --mode nth --every 2 --packet 0 -j NFQUEUE --queue-num 1\n"
            "-A INPUT -j DROP",
            "unknown",
        ),
        (
            "-A sub -m limit --limit 1/s -j RETURN\n-A sub -j ACCEPT\n-A INPUT -j sub\n-A INPUT -j DROP",
            "sample",
        ),
        ("-A INPUT -m set --match-set a src -g sub\n-A INPUT -j DROP", "unknown"),
    ],
)
def test_rules_of_iptables_are_evaluated(rule: str, kind: str) -> None:
    assert judge(TUNNEL, iptables(*rule.splitlines()), IN).kind == kind


def test_many_jumps_between_chains_are_evaluated_once() -> None:
    """Each chain jumps twice to the next, so that a packet has 32,768 paths through the chains."""
    names = [f"c{number}" for number in range(15)]
    declared = [f":{name} - [0:0]" for name in names]
    jumps = [f"-A {one} -j {other}" for one, other in pairwise(["INPUT", *names]) for _ in range(2)]
    text = "\n".join(["*filter", ":INPUT ACCEPT [0:0]", *declared, *jumps, "-A INPUT -j DROP", "COMMIT"])
    counted = CountedPacket(**{name: getattr(TUNNEL, name) for name in Packet.__struct_fields__})

    assert judge(counted, ruleset_of(parse_save(text + "\n"), "iptables"), IN).kind == "drop"
    assert CountedPacket.compared < 1000


class CountedPacket(Packet):
    """A packet that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedPacket.compared += 1
        return Packet.__eq__(self, other)

    __hash__ = Packet.__hash__


def test_a_policy_drops_without_a_rule() -> None:
    judgement = judge(TUNNEL, iptables(policy="DROP"), IN)

    assert judgement.chain is not None
    assert (judgement.kind, judgement.rule, judgement.chain.place) == (
        "drop",
        None,
        "iptables chain INPUT in filter",
    )


def test_the_first_chain_that_drops_is_reported_in_the_order_of_hooks() -> None:
    early = iptables("-A PREROUTING -p udp -j DROP", table="raw", chain="PREROUTING")
    late = iptables("-A INPUT -p udp -j DROP")

    judgement = judge(TUNNEL, (*late, *early), IN)

    assert judgement.chain is not None
    assert judgement.chain.table == "raw"


def test_marks_are_followed_through_the_hooks() -> None:
    mark = iptables("-A INPUT -j MARK --set-xmark 0x5/0xff", table="mangle")
    drop = iptables("-A INPUT -m mark --mark 0x5 -j DROP")
    unknown = iptables("-A INPUT -j CONNMARK --restore-mark", table="mangle")

    assert judge(TUNNEL, (*drop, *mark), IN).kind == "drop"
    assert judge(TUNNEL, drop, IN).kind == "accept"
    assert judge(TUNNEL, (*drop, *unknown), IN).kind == "unknown"
    (chain,) = drop
    assert why(chain.chains["INPUT"][0], replace(TUNNEL, mark=None)) == "mark"


def test_a_packet_without_tracking_is_untracked() -> None:
    notrack = iptables("-A PREROUTING -j CT --notrack", table="raw", chain="PREROUTING")
    drop = iptables("-A INPUT -m conntrack --ctstate UNTRACKED -j DROP")

    assert judge(TUNNEL, (*notrack, *drop), IN).kind == "drop"


def test_before_connection_tracking_the_state_is_invalid() -> None:
    early = iptables("-A PREROUTING -m conntrack --ctstate NEW -j DROP", table="raw", chain="PREROUTING")
    late = iptables("-A PREROUTING -m conntrack --ctstate NEW -j DROP", table="mangle", chain="PREROUTING")

    assert judge(TUNNEL, early, IN).kind == "accept"
    assert judge(TUNNEL, (*early, *late), IN).kind == "drop"
    translated = "-A PREROUTING -m conntrack --ctstatus DNAT -j DROP"
    assert judge(TUNNEL, iptables(translated, table="raw", chain="PREROUTING"), IN).kind == "accept"


def test_a_translation_of_the_source_is_reported() -> None:
    packet = replace(TUNNEL, iif="docker0", oif="flannel.1")
    docker = "-A POSTROUTING -s 10.0.0.0/24 ! -o docker0 -j MASQUERADE"
    ruleset = iptables(docker, table="nat", chain="POSTROUTING")

    translation = judge(packet, ruleset, THROUGH).translation

    assert translation is not None
    assert translation[1].text == docker.removeprefix("-A POSTROUTING ")
    before = iptables("-A POSTROUTING -j RETURN", docker, table="nat", chain="POSTROUTING")
    assert judge(packet, before, THROUGH).translation is None
    assert judge(replace(packet, state="established"), ruleset, THROUGH).translation is None


def nft(*rules: list[dict[str, Any]], hook: str = "input", **more: Any) -> Ruleset:
    place = {"family": "inet", "table": "fw"}
    entries: list[dict[str, Any]] = [{"metainfo": {}}, {"table": {"family": "inet", "name": "fw"}}]
    base = {**place, "name": "base", "type": "filter", "hook": hook, "prio": 0, "policy": "accept", **more}
    entries += [{"chain": {**place, "name": "sub"}}, {"chain": base}]
    entries += [
        {"rule": {**place, "chain": "base", "handle": number, "expr": expr}}
        for number, expr in enumerate(rules)
    ]
    entries.append({"set": {**place, "name": "bad", "elem": [{"prefix": {"addr": "10.0.0.0", "len": 8}}]}})
    return parse_ruleset(json.dumps({"nftables": entries}), "\t\tudp dport 8472 drop # handle 0")


def condition(left: Any, right: Any, operator: str = "==") -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}


DPORT = {"payload": {"protocol": "udp", "field": "dport"}}
SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
STATE = {"ct": {"key": "state"}}
DROP, ACCEPT = {"drop": None}, {"accept": None}
REMARK = {"xt": {"type": "match", "name": "comment"}}


@pytest.mark.parametrize(
    ("expressions", "kind"),
    [
        ([condition(DPORT, 8472), {"counter": {}}, DROP], "drop"),
        ([condition(DPORT, {"range": [8000, 9000]}), DROP], "drop"),
        ([condition(DPORT, 8472, ">"), DROP], "accept"),
        ([condition(DPORT, {"set": [53, 8472]}), {"reject": {}}], "reject"),
        ([condition({"payload": {"protocol": "tcp", "field": "dport"}}, 8472), DROP], "accept"),
        ([condition(SADDR, "@bad"), DROP], "drop"),
        ([condition({"payload": {"base": "nh", "offset": 96, "len": 32}}, 0x0A000002), DROP], "drop"),
        ([condition({"payload": {"base": "nh", "offset": 96, "len": 32}}, 0x0A000002, "!="), DROP], "accept"),
        ([condition({"payload": {"base": "th", "offset": 16, "len": 16}}, 8472), DROP], "drop"),
        ([condition({"payload": {"base": "th", "offset": 32, "len": 16}}, 8472), DROP], "unknown"),
        ([condition(SADDR, "@bad", "!="), DROP], "accept"),
        ([condition({"concat": [SADDR, DPORT]}, {"set": [{"concat": ["10.0.0.2", 8472]}]}), DROP], "drop"),
        ([condition(STATE, ["established", "related"], "in"), DROP], "accept"),
        ([condition({"meta": {"key": "iifname"}}, "et*"), DROP], "drop"),
        ([condition({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), DROP], "drop"),
        ([condition({"payload": {"protocol": "ip6", "field": "saddr"}}, "::1"), DROP], "accept"),
        ([condition({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), DROP], "drop"),
        ([condition({"meta": {"key": "skuid"}}, 1000), DROP], "unknown"),
        ([{"limit": {"rate": 5}}, DROP], "sample"),
        ([{"limit": {"rate": 5}}, ACCEPT], "accept"),
        (
            [{"xt": {"type": "match", "name": "comment"}}, {"xt": {"type": "target", "name": "REJECT"}}],
            "reject",
        ),
        ([{"xt": {"type": "match", "name": "set"}}, DROP], "unknown"),
        ([{"vmap": {"key": DPORT, "data": {"set": [[53, ACCEPT], [8472, DROP]]}}}], "drop"),
        ([{"vmap": {"key": STATE, "data": {"set": [["established", ACCEPT]]}}}], "accept"),
        ([{"queue": {"num": 1}}], "unknown"),
        ([{"jump": {"target": "sub"}}], "accept"),
    ],
)
def test_rules_of_nftables_are_evaluated(expressions: list[dict[str, Any]], kind: str) -> None:
    assert judge(TUNNEL, nft(expressions), IN).kind == kind


IPV6_TUNNEL = replace(
    TUNNEL, source=IPv6Address("fd07:1::2"), destination=IPv6Address("fd07:1::1"), hop_limit=64
)
SOLICITATION = replace(IPV6_TUNNEL, protocol=ICMPV6, icmp_type=135, hop_limit=255, state="untracked")
IPV6_SADDR = {"payload": {"protocol": "ip6", "field": "saddr"}}
ICMPV6_TYPE = {"payload": {"protocol": "icmpv6", "field": "type"}}
RAW_SADDR = {"payload": {"base": "nh", "offset": 64, "len": 128}}


@pytest.mark.parametrize(
    ("expressions", "tunnel", "solicitation"),
    [
        ([condition(DPORT, 8472), DROP], "drop", "accept"),
        ([condition(IPV6_SADDR, "fd07:1::2"), DROP], "drop", "drop"),
        ([condition(IPV6_SADDR, {"prefix": {"addr": "fd07:1::", "len": 64}}), DROP], "drop", "drop"),
        ([condition(IPV6_SADDR, "::1", "!="), DROP], "drop", "drop"),
        ([condition(SADDR, "10.0.0.2", "!="), DROP], "accept", "accept"),
        ([condition(RAW_SADDR, "0xfd070001000000000000000000000002"), DROP], "drop", "drop"),
        ([condition({"payload": {"base": "nh", "offset": 48, "len": 8}}, 17), DROP], "drop", "accept"),
        ([condition(ICMPV6_TYPE, "nd-neighbor-solicit"), DROP], "accept", "drop"),
        ([condition(ICMPV6_TYPE, {"set": ["echo-request", "nd-redirect"]}), DROP], "accept", "accept"),
        ([condition({"payload": {"protocol": "ip6", "field": "hoplimit"}}, 255), DROP], "accept", "drop"),
        ([condition({"payload": {"protocol": "ip6", "field": "flowlabel"}}, 1), DROP], "unknown", "unknown"),
        (
            [condition({"payload": {"protocol": "ip6", "field": "saddr"}}, {"x": 1}), DROP],
            "unknown",
            "unknown",
        ),
        ([condition({"meta": {"key": "nfproto"}}, "ipv4"), DROP], "accept", "accept"),
        ([condition({"meta": {"key": "protocol"}}, "ip6"), DROP], "drop", "drop"),
    ],
)
def test_rules_of_nftables_for_ipv6_are_evaluated(
    expressions: list[dict[str, Any]], tunnel: str, solicitation: str
) -> None:
    rules = nft(expressions)

    assert judge(IPV6_TUNNEL, rules, IN).kind == tunnel
    assert judge(SOLICITATION, rules, IN).kind == solicitation


def test_a_dropping_rule_of_nftables_has_the_text_of_its_listing() -> None:
    judgement = judge(TUNNEL, nft([condition(DPORT, 8472), DROP]), IN)

    assert judgement.rule is not None
    assert judgement.chain is not None
    assert (judgement.rule.text, judgement.chain.place) == ("udp dport 8472 drop", "nft chain inet fw base")


def test_a_chain_of_a_device_judges_only_its_packets() -> None:
    chain = nft([DROP], hook="ingress", dev="eth1")

    assert judge(TUNNEL, chain, IN).kind == "accept"
    assert judge(replace(TUNNEL, iif="eth1"), chain, IN).kind == "drop"
    assert judge(replace(TUNNEL, iif="eth1"), chain, OUT).kind == "accept"


AT_BRIDGE = replace(TUNNEL, iif="br7", in_port="veth1")
FROM_BRIDGE = replace(TUNNEL, iif="flannel.1", oif="br7", out_port="veth1")
BETWEEN_PORTS = replace(TUNNEL, iif="br7", oif="br7", in_port="veth1", out_port="veth2")


def bridge(*expressions: dict[str, Any], hook: str, **more: Any) -> Ruleset:
    """Return a rule at a hook of the family bridge."""
    return tuple(replace(chain, family="bridge") for chain in nft([*expressions], hook=hook, **more))


@pytest.mark.parametrize(
    ("packet", "hooks", "passed"),
    [
        (TUNNEL, IN, set()),
        (AT_BRIDGE, IN, {"prerouting", "input"}),
        (replace(AT_BRIDGE, oif="eth0"), THROUGH, {"prerouting", "input"}),
        (FROM_BRIDGE, THROUGH, {"output", "postrouting"}),
        (BETWEEN_PORTS, (), {"prerouting", "forward", "postrouting"}),
    ],
)
def test_a_packet_passes_the_hooks_of_its_bridge(
    packet: Packet, hooks: tuple[Hook, ...], passed: set[str]
) -> None:
    every = ("prerouting", "input", "forward", "output", "postrouting")

    dropped = {hook for hook in every if judge(packet, bridge(DROP, hook=hook), hooks).kind == "drop"}

    assert dropped == passed


def meta(key: str, text: str) -> dict[str, Any]:
    return condition({"meta": {"key": key}}, text)


ETHER_TYPE = {"payload": {"protocol": "ether", "field": "type"}}


@pytest.mark.parametrize(
    ("packet", "hook", "expressions", "kind"),
    [
        (AT_BRIDGE, "input", [meta("iifname", "veth*"), DROP], "drop"),
        (AT_BRIDGE, "input", [meta("iifname", "br7"), DROP], "accept"),
        (AT_BRIDGE, "prerouting", [meta("ibrname", "br7"), DROP], "drop"),
        (AT_BRIDGE, "prerouting", [meta("ibrname", "br8"), DROP], "accept"),
        (AT_BRIDGE, "input", [meta("oifname", "eth0"), DROP], "accept"),
        (FROM_BRIDGE, "output", [meta("oifname", "veth1"), DROP], "drop"),
        (FROM_BRIDGE, "postrouting", [meta("obrname", "br7"), DROP], "drop"),
        (FROM_BRIDGE, "output", [meta("iifname", "flannel.1"), DROP], "accept"),
        (AT_BRIDGE, "input", [condition(ETHER_TYPE, "ip"), DROP], "drop"),
        (AT_BRIDGE, "input", [condition(ETHER_TYPE, 2048), DROP], "drop"),
        (AT_BRIDGE, "input", [condition(ETHER_TYPE, {"set": ["arp", "ip"]}), DROP], "drop"),
        (AT_BRIDGE, "input", [condition(ETHER_TYPE, "arp"), DROP], "accept"),
        (
            AT_BRIDGE,
            "input",
            [condition({"payload": {"protocol": "vlan", "field": "id"}}, 5), DROP],
            "accept",
        ),
        (
            AT_BRIDGE,
            "input",
            [condition({"payload": {"protocol": "arp", "field": "operation"}}, "request"), DROP],
            "accept",
        ),
        (
            AT_BRIDGE,
            "input",
            [condition({"payload": {"protocol": "ether", "field": "saddr"}}, "02::"), DROP],
            "unknown",
        ),
    ],
)
def test_rules_of_the_family_bridge_are_evaluated(
    packet: Packet, hook: str, expressions: list[dict[str, Any]], kind: str
) -> None:
    assert judge(packet, bridge(*expressions, hook=hook), THROUGH).kind == kind


def test_a_mark_of_the_bridge_is_seen_by_later_hooks() -> None:
    mark = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 7}}
    rules = bridge(mark, hook="prerouting")
    drop = nft([condition({"meta": {"key": "mark"}}, 7), meta("iifname", "br7"), DROP])

    assert judge(AT_BRIDGE, (*rules, *drop), IN).kind == "drop"
    assert judge(TUNNEL, (*rules, *drop), IN).kind == "accept"


def test_a_chain_of_the_port_of_a_bridge_judges_its_packets() -> None:
    chain = nft([DROP], hook="ingress", dev="veth1")

    assert judge(AT_BRIDGE, chain, IN).kind == "drop"
    assert judge(FROM_BRIDGE, nft([DROP], hook="egress", dev="veth1"), THROUGH).kind == "drop"
    assert judge(TUNNEL, chain, IN).kind == "accept"


@pytest.mark.parametrize("text", ["", "{}", '{"nftables": [{"rule": {}}]}', '{"nftables": 5}'])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(WireError, match="unknown form"):
        parse_ruleset(text, "")


@pytest.mark.parametrize(
    "wrong", [{"prio": "accept"}, {"prio": None}, {"family": []}, {"name": 7}, {"type": {}}]
)
def test_a_base_chain_of_another_form_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="unknown form"):
        judge(TUNNEL, nft([DROP], **wrong), IN)


@pytest.mark.parametrize("kind", ["jump", "goto"])
def test_a_jump_to_no_name_is_refused(kind: str) -> None:
    with pytest.raises(WireError, match="unknown form"):
        judge(TUNNEL, nft([{kind: {"target": []}}]), IN)


@pytest.mark.parametrize(
    ("queues", "verdict"), [(frozenset({2}), "drop"), (frozenset({1, 2}), "unknown"), (None, "unknown")]
)
def test_a_queue_that_no_program_reads_drops_packets(queues: frozenset[int] | None, verdict: str) -> None:
    rules = without_readers(iptables("-A INPUT -j NFQUEUE --queue-num 1"), queues)

    assert judge(TUNNEL, rules, IN).kind == verdict
    for options in ("--queue-num 1 --queue-bypass", "--queue-balance 1:2"):
        other = without_readers(iptables(f"-A INPUT -j NFQUEUE {options}"), queues)
        assert judge(TUNNEL, other, IN).kind == "unknown"


@pytest.mark.parametrize(
    ("used", "is_over", "verdict"), [(2000, True, "drop"), (1999, True, "accept"), (2000, False, "accept")]
)
def test_a_quota_is_a_condition_that_is_known(used: int, is_over: bool, verdict: str) -> None:
    quota = {"val": 2000, "val_unit": "bytes", "used": used, "used_unit": "bytes", "inv": is_over}

    assert judge(TUNNEL, nft([{"quota": quota}, {"drop": None}]), IN).kind == verdict
