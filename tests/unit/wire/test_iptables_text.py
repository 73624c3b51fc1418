"""Rules of iptables: read from iptables-save, written for iptables-restore."""

import json
from ipaddress import IPv4Address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from pyflannel.errors import WireError
from pyflannel.model.network_config import Family
from pyflannel.model.packet_filter import (
    FilterRule,
    ForeignRule,
    IptablesChain,
    IptablesHook,
    Jump,
    Masquerade,
    Prefix,
    TunnelRule,
)
from pyflannel.plan.packet_filter import forward_rules, masquerade_rules
from pyflannel.wire.iptables import (
    chains_of,
    drops_by_default,
    format_chain,
    format_removal,
    format_rule,
    parse_rule,
    parse_save,
)
from pyflannel.wire.subnet_env import parse_subnet_env

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/iptables.json").read_text())["cases"]

FORWARD = IptablesChain(
    family=4, hook="FORWARD", device="flannel0", rules=forward_rules(ip_network("10.100.0.0/16"))
)
JUMP = '-m comment --comment "flanneld forward" -j FLANNEL-FWD'


def saved(*forward: str, policy: str = "ACCEPT", own: tuple[str, ...] = ()) -> str:
    lines = [f":FORWARD {policy} [12:345]", ":FLANNEL-FWD - [0:0]"]
    lines += [f"-A FORWARD {rule}" for rule in forward] + [f"-A FLANNEL-FWD {rule}" for rule in own]
    return "\n".join(["# written manually", "*filter", *lines, "COMMIT", "# done", ""])


def jump_in(text: str) -> Jump:
    (chain,) = chains_of(parse_save(text), 4)
    return chain.jump


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_forward_rules_are_those_of_the_original(case: dict[str, Any]) -> None:
    """The original inserts or appends the jump, depending on its release. The rules are the same."""
    for family, key in ((4, "NETWORK"), (6, "IPV6_NETWORK")):
        lines = case["rules"].get(f"ipv{family} filter")
        if lines is None:
            continue
        network = ip_network(parse_subnet_env(case["subnet_env"])[f"FLANNEL_{key}"])

        ours = [f"-A FLANNEL-FWD {format_rule(rule, 'FORWARD')}" for rule in forward_rules(network)]

        assert [":FLANNEL-FWD -", f"-A FORWARD {JUMP}", *ours] == lines


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_masquerade_rules_of_the_original_are_understood(case: dict[str, Any]) -> None:
    """Release 0.20 has one return rule for the network. Later releases and pyflannel have two such rules."""
    for family, part in ((4, ""), (6, "IPV6_")):
        lines = case["rules"].get(f"ipv{family} nat")
        if lines is None:
            continue
        values = parse_subnet_env(case["subnet_env"])
        network = ip_network(values[f"FLANNEL_{part}NETWORK"])
        subnet = ip_interface(values[f"FLANNEL_{part}SUBNET"]).network
        ours = masquerade_rules(network, subnet, is_fully_random=True)
        inside = FilterRule(source=Prefix(network), destination=Prefix(network), verdict=ours[0].verdict)
        mark, *_, client, outgoing, host = ours

        (chain,) = chains_of(parse_save("\n".join(["*nat", ":POSTROUTING ACCEPT", *lines, "COMMIT"])), family)

        assert chain.rules == (mark, inside, outgoing, client, host)
        assert chain.jump is Jump.IN_PLACE


@pytest.mark.parametrize(
    ("text", "hook"),
    [
        ("-s 1.2.3.4/32 -j DROP", "FORWARD"),
        ("-j ACCEPT", "FORWARD"),
        ('-m comment --comment "flanneld masq" -j ACCEPT', "FORWARD"),
        ('-s 10.0.0.0/8 -p tcp -m comment --comment "flanneld forward" -j ACCEPT', "FORWARD"),
        ('-i eth0 -m comment --comment "flanneld forward" -j ACCEPT', "FORWARD"),
        ('-m comment --comment "flanneld masq" -j MASQUERADE --to-ports 1-2', "POSTROUTING"),
        ('-m comment --comment "flanneld masq" -j RETURN -j RETURN', "POSTROUTING"),
        ('-m comment --comment "no end', "POSTROUTING"),
        ("-s nonsense", "POSTROUTING"),
        ("!", "POSTROUTING"),
        ("", "POSTROUTING"),
        ('-d 10.0.0.1/32 -p udp -m udp --dport 8285 -m comment --comment "no" -j ACCEPT', "INPUT"),
        ('-d 10.0.0.1/32 -p udp -m udp --dport 8285 -m comment --comment "flanneld tunnel" -j DROP', "INPUT"),
        ('-d 10.0.0/32 -p udp -m udp --dport 8285 -m comment --comment "flanneld tunnel" -j ACCEPT', "INPUT"),
    ],
)
def test_unknown_rules_are_foreign(text: str, hook: IptablesHook) -> None:
    assert parse_rule(text, hook) == ForeignRule(text)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        ((JUMP,), Jump.IN_PLACE),
        (("-j DOCKER-USER", "-i docker0 -j ACCEPT", JUMP), Jump.IN_PLACE),
        ((JUMP, "-j DROP"), Jump.IN_PLACE),
        ((JUMP, "-i eth0 -j DROP", "-j REJECT --reject-with icmp-host-prohibited"), Jump.IN_PLACE),
        ((), Jump.MISSING),
        (("-j FLANNEL-FWD-1",), Jump.MISSING),
        (("-j DROP", JUMP), Jump.LATE),
        (('-m comment --comment "all of it" -j ACCEPT', JUMP), Jump.LATE),
        ((JUMP, JUMP), Jump.SEVERAL),
        (("-j FLANNEL-FWD",), Jump.SEVERAL),
        (("-i eth0 -j FLANNEL-FWD", JUMP), Jump.SEVERAL),
        (("-g FLANNEL-FWD",), Jump.SEVERAL),
    ],
)
def test_the_jump_is_before_the_policy(forward: tuple[str, ...], expected: Jump) -> None:
    assert jump_in(saved(*forward)) is expected


def test_a_jump_from_another_chain_is_detected() -> None:
    text = saved(JUMP).replace("COMMIT", ":OTHER - [0:0]\n-A OTHER -j FLANNEL-FWD\nCOMMIT")

    assert jump_in(text) is Jump.SEVERAL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        (saved(policy="ACCEPT"), False),
        (saved(policy="DROP"), True),
        (saved("-i eth0 -j DROP"), False),
        (saved("-j DROP"), True),
        (saved("-j REJECT"), True),
        (saved("-j ACCEPT", policy="DROP"), False),
    ],
)
def test_a_dropping_forward_chain_is_recognized(text: str, expected: bool) -> None:
    assert drops_by_default(parse_save(text), "FORWARD") is expected


@pytest.mark.parametrize("rules", [(), ("-j DROP",), ("-j ufw-before-input", "-j ufw-reject-input")])
def test_the_jump_from_input_is_before_the_rules_of_other_programs(rules: tuple[str, ...]) -> None:
    chain = IptablesChain(
        family=4, hook="INPUT", device="flannel0", rules=(TunnelRule(IPv4Address("10.0.0.1"), 8285),)
    )
    lines = [":INPUT DROP [0:0]", *(f"-A INPUT {rule}" for rule in rules)]

    text = format_chain(chain, parse_save("\n".join(["*filter", *lines, "COMMIT"])))

    assert '-I INPUT 1 -m comment --comment "flanneld tunnel" -j FLANNEL-INPUT' in text.splitlines()


def test_chains_are_identified_by_table_and_device() -> None:
    text = (
        "*nat\n:POSTROUTING ACCEPT\n:FLANNEL-POSTRTG -\n:FLANNEL-POSTRTG-1 -\n:FLANNEL-FWD -\nCOMMIT\n"
        "*filter\n:FORWARD ACCEPT\n:FLANNEL-FWD-12 -\n:FLANNEL-FWDX -\n:MY-FLANNEL-FWD -\nCOMMIT\n"
    )

    found = {(chain.table, chain.device) for chain in chains_of(parse_save(text), 4)}

    assert found == {("nat", "flannel0"), ("nat", "flannel1"), ("filter", "flannel12")}


@pytest.mark.parametrize("line", ["nonsense", "-D FORWARD 1", "iptables: Permission denied"])
def test_other_lines_are_no_listing(line: str) -> None:
    with pytest.raises(WireError, match="iptables-save printed"):
        parse_save(f"*filter\n{line}\nCOMMIT\n")


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_comment_may_contain_a_character_that_ends_a_line_for_python(character: str) -> None:
    rule = f'-m comment --comment "a{character}b" -j ACCEPT'

    found = parse_save(f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {rule}\nCOMMIT\n")

    assert found["filter"]["FORWARD"].rules == (rule,)


def test_a_chain_is_made_in_one_transaction() -> None:
    assert format_chain(FORWARD, parse_save("")).splitlines() == [
        "*filter",
        ":FLANNEL-FWD - [0:0]",
        '-A FLANNEL-FWD -s 10.100.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT',
        '-A FLANNEL-FWD -d 10.100.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT',
        f"-A FORWARD {JUMP}",
        "COMMIT",
    ]


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (("-j DOCKER-USER",), [f"-A FORWARD {JUMP}"]),
        (("-j DOCKER-USER", "-j DROP"), [f"-I FORWARD 2 {JUMP}"]),
        (("-j DOCKER-USER", "-j DROP", JUMP), [f"-D FORWARD {JUMP}", f"-I FORWARD 2 {JUMP}"]),
        ((JUMP, JUMP), [f"-D FORWARD {JUMP}"] * 2 + [f"-A FORWARD {JUMP}"]),
        (("-i eth0 -j FLANNEL-FWD",), ["-D FORWARD -i eth0 -j FLANNEL-FWD", f"-A FORWARD {JUMP}"]),
    ],
)
def test_the_jump_is_the_last_rule_before_a_rule_for_all_packets(
    forward: tuple[str, ...], expected: list[str]
) -> None:
    written = format_chain(FORWARD, parse_save(saved(*forward))).splitlines()

    assert [line for line in written if " FORWARD " in line] == expected


@pytest.mark.parametrize("forward", [(JUMP,), (JUMP, "-j DOCKER-USER"), (JUMP, "-j DROP")])
def test_a_jump_that_decides_stays_in_place(forward: tuple[str, ...]) -> None:
    written = format_chain(FORWARD, parse_save(saved(*forward, own=("-j DROP",)))).splitlines()

    assert [line for line in written if line.startswith(("-D", "-I", "-A FORWARD"))] == []


def test_rules_of_the_own_chain_are_not_deleted_one_by_one() -> None:
    written = format_chain(FORWARD, parse_save(saved(own=("-j FLANNEL-FWD",))))

    assert "-D FLANNEL-FWD" not in written


def test_a_chain_is_removed_with_every_jump_to_the_chain() -> None:
    text = saved(JUMP, "-i eth0 -j FLANNEL-FWD")

    assert format_removal(FORWARD, parse_save(text)).splitlines() == [
        "*filter",
        ":FLANNEL-FWD - [0:0]",
        f"-D FORWARD {JUMP}",
        "-D FORWARD -i eth0 -j FLANNEL-FWD",
        "-X FLANNEL-FWD",
        "COMMIT",
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_written_values_are_read_back(family: Family) -> None:
    network, subnet = ("10.0.0.0/8", "10.1.1.1/32") if family == 4 else ("fd00::/16", "fd00:1::1/128")
    rules = masquerade_rules(ip_network(network), ip_network(subnet), is_fully_random=False)

    assert tuple(parse_rule(format_rule(rule, "POSTROUTING"), "POSTROUTING") for rule in rules) == rules
    assert rules[-1].verdict == Masquerade(is_fully_random=False)
