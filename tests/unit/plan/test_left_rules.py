"""Filter rules that are certainly from the original, and rules that may belong to any program."""

import json
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import pytest

from pyflannel.model.packet_filter import LeftRules, SavedRules
from pyflannel.plan.leftovers import rules_left

GOLDEN = Path(__file__).parents[2] / "golden"
FIRST_RELEASE = json.loads((GOLDEN / "iptables-0.6.json").read_text())["cases"]
LATER_RELEASE = json.loads((GOLDEN / "iptables.json").read_text())["cases"]
NETWORK = IPv4Network("10.100.0.0/16")
KNOWN = frozenset({NETWORK})

SEED = (
    "-s 10.100.0.0/16 -d 10.100.0.0/16 -j RETURN",
    "-s 10.100.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
    "! -s 10.100.0.0/16 -d 10.100.0.0/16 -j MASQUERADE",
)
"""The rules that release 0.6 writes to POSTROUTING."""

LATER = (
    "-s 10.100.0.0/16 -d 10.100.0.0/16 -j RETURN",
    "-s 10.100.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
    "! -s 10.100.0.0/16 -d 10.100.15.0/24 -j RETURN",
    "! -s 10.100.0.0/16 -d 10.100.0.0/16 -j MASQUERADE --random-fully",
)
"""The rules that later releases write."""

COMMENTED = (
    '-s 10.99.0.0/16 -d 10.99.0.0/16 -m comment --comment "flanneld masq" -j RETURN',
    '-s 10.99.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully',
    '! -s 10.99.0.0/16 -d 10.99.15.0/24 -m comment --comment "flanneld masq" -j RETURN',
    '-m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN',
)
"""Rules of later releases, for an unknown network."""

FIRST = ("-d 10.100.0.0/16 -j ACCEPT", "! -d 224.0.0.0/4 -j MASQUERADE")
FIRST_JUMP = "-s 10.100.0.0/16 -j FLANNEL"

DOCKERS = (
    "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    "-s 10.100.15.0/24 ! -o docker0 -j MASQUERADE",
)


def nat(*rules: str, **chains: tuple[str, ...]) -> SavedRules:
    return SavedRules(program="iptables", family=4, chains={"nat": {"POSTROUTING": rules, **chains}})


def removals(left: tuple[LeftRules, ...]) -> list[str]:
    return [line for one in left for line in one.removal]


@pytest.mark.parametrize("rules", [SEED, LATER, tuple(rule.replace(" --random-fully", "") for rule in LATER)])
def test_a_whole_set_for_a_known_network_is_from_the_original(rules: tuple[str, ...]) -> None:
    """The set is between rules of other programs, which remain."""
    (left,) = rules_left([nat(DOCKERS[0], *rules, DOCKERS[1])], KNOWN)

    assert left.is_sure
    assert left.removal == tuple(f"-D POSTROUTING {rule}" for rule in rules)
    assert left.commands[0] == f"iptables -t nat -D POSTROUTING {rules[0]}"
    assert left.shown[0] == f"iptables rule in nat POSTROUTING: {rules[0]}"


@pytest.mark.parametrize("case", FIRST_RELEASE + LATER_RELEASE, ids=lambda case: case["id"])
def test_only_rules_of_the_original_are_found_in_other_chains(case: dict[str, Any]) -> None:
    """Of the tested releases, only the first release writes to chains of other programs. The other releases
    have their own chains.
    """
    networks = frozenset(
        ip_network(line.partition("=")[2])
        for line in case["subnet_env"].splitlines()
        if line.startswith(("FLANNEL_NETWORK=", "FLANNEL_IPV6_NETWORK="))
    )
    for title, lines in case["rules"].items():
        family, table = title.split()
        chains: dict[str, tuple[str, ...]] = {}
        for line in lines:
            if line.startswith("-A"):
                _, chain, rule = line.split(" ", 2)
                chains[chain] = (*chains.get(chain, ()), rule)
        is_v6 = family == "ipv6"
        saved = SavedRules(
            program="ip6tables" if is_v6 else "iptables", family=6 if is_v6 else 4, chains={table: chains}
        )

        left = rules_left([saved], networks)

        rules = chains.get("POSTROUTING", ()) if case in FIRST_RELEASE else ()
        written = [f"-D POSTROUTING {rule}" for rule in rules]
        assert removals(left) == written
        assert all(one.is_sure for one in left)


@pytest.mark.parametrize(
    "rules",
    [
        SEED[:2],
        SEED[1:],
        (SEED[1], SEED[0], SEED[2]),
        (*SEED, SEED[1]),
        (SEED[0], SEED[1] + " --random-fully", SEED[2]),
        (SEED[2],),
    ],
)
def test_a_part_of_a_set_may_belong_to_any_program(rules: tuple[str, ...]) -> None:
    """Rules in another order, or in a combination that no release writes, may also belong to any program."""
    assert [one.is_sure for one in rules_left([nat(*rules)], KNOWN)] == [False]
    assert rules_left([nat(*rules)], frozenset()) == ()


def test_a_whole_set_for_an_unknown_network_is_only_reported() -> None:
    (left,) = rules_left([nat(*SEED)], frozenset({IPv4Network("10.101.0.0/16")}))

    assert not left.is_sure
    assert len(left.shown) == 3


@pytest.mark.parametrize(
    "rule",
    [
        *DOCKERS,
        "-s 10.100.0.0/16 -d 10.100.1.0/24 -j RETURN",
        "-s 10.100.0.0/16 ! -d 224.0.0.0/3 -j MASQUERADE",
        "-s 10.100.0.0/16 ! -d 224.0.0.0/4 -o eth0 -j MASQUERADE",
        "-s 10.100.0.0/16 ! -d 224.0.0.0/4 -j SNAT --to-source 10.10.10.101",
        "-s 10.100.0.0/16 ! -d 10.100.0.0/16 -j MASQUERADE",
        "! -s 10.100.0.0/16 -d 10.101.5.0/24 -j RETURN",
        "-s 10.100.0.0/16 -d 10.100.0.0/16 -m comment --comment mine -j RETURN",
        '-s 10.99.0.0/16 -d 10.99.0.0/16 -m comment --comment "flanneld masq" -j DROP',
        '-s 10.99.0.0/16 -m comment --comment "flanneld masq" -j RETURN',
        '-s 10.99.0.0/16 -d 10.99.0.0/16 -m comment --comment "flanneld masq too" -j RETURN',
        "-j MASQUERADE",
    ],
)
def test_a_similar_rule_is_not_reported(rule: str) -> None:
    assert rules_left([nat(rule)], KNOWN) == ()
    assert removals(rules_left([nat(*SEED, rule)], KNOWN)) == [f"-D POSTROUTING {each}" for each in SEED]


def test_a_comment_identifies_the_owner_of_a_rule() -> None:
    """The comment is sufficient for any network, and for any number of rules."""
    for rules in (COMMENTED, COMMENTED[1:2]):
        (left,) = rules_left([nat(DOCKERS[0], *rules)], frozenset())
        assert left.is_sure
        assert left.removal == tuple(f"-D POSTROUTING {rule}" for rule in rules)

    forward = '-s 10.99.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT'
    saved = SavedRules(program="iptables", family=4, chains={"filter": {"FORWARD": (forward,)}})
    assert removals(rules_left([saved], frozenset())) == [f"-D FORWARD {forward}"]


def test_accept_rules_without_a_comment_may_be_from_an_operator() -> None:
    rules = ("-s 10.100.0.0/16 -j ACCEPT", "-d 10.100.0.0/16 -j ACCEPT")
    saved = SavedRules(program="iptables", family=4, chains={"filter": {"FORWARD": rules}})
    half = SavedRules(program="iptables", family=4, chains={"filter": {"FORWARD": rules[:1]}})

    assert [one.is_sure for one in rules_left([saved], KNOWN)] == [False]
    assert rules_left([half], KNOWN) == ()
    assert rules_left([saved], frozenset()) == ()


def test_ipv6_has_its_own_multicast_addresses() -> None:
    network = IPv6Network("fd00:5::/48")
    rules = (
        "-s fd00:5::/48 -d fd00:5::/48 -j RETURN",
        "-s fd00:5::/48 ! -d ff00::/8 -j MASQUERADE",
        "! -s fd00:5::/48 -d fd00:5:0:34::/64 -j RETURN",
        "! -s fd00:5::/48 -d fd00:5::/48 -j MASQUERADE",
    )
    saved = SavedRules(program="ip6tables", family=6, chains={"nat": {"POSTROUTING": rules}})

    (left,) = rules_left([saved], frozenset({network}))

    assert left.is_sure
    assert len(left.removal) == 4


@pytest.mark.parametrize(
    ("rules", "jump"),
    [
        (FIRST, FIRST_JUMP),
        (
            (
                "-d 10.100.0.0/16 -j ACCEPT",
                "-d 224.0.0.0/4 -j ACCEPT",
                "! -o flannel0 -j MASQUERADE",
            ),
            FIRST_JUMP,
        ),
        (
            ("-s 10.100.15.0/24 -o lo -j ACCEPT", "-s 10.100.15.0/24 ! -d 10.100.0.0/16 -j MASQUERADE"),
            "-s 10.100.15.0/24 -j FLANNEL",
        ),
    ],
)
def test_the_chain_of_the_first_releases_is_removed_with_its_jump(rules: tuple[str, ...], jump: str) -> None:
    (left,) = rules_left([nat(DOCKERS[0], jump, FLANNEL=rules)], KNOWN)

    assert left.is_sure
    assert left.removal == (f"-D POSTROUTING {jump}", "-F FLANNEL", "-X FLANNEL")


@pytest.mark.parametrize(
    ("rules", "jumps", "is_named"),
    [
        (FIRST, (), True),
        (FIRST, (FIRST_JUMP, "-j FLANNEL"), True),
        (("-d 10.99.0.0/16 -j ACCEPT", FIRST[1]), ("-s 10.99.0.0/16 -j FLANNEL",), True),
        ((*FIRST, "-j LOG"), (FIRST_JUMP,), False),
        ((), (), False),
    ],
)
def test_a_different_chain_of_that_name_is_not_certainly_from_the_original(
    rules: tuple[str, ...], jumps: tuple[str, ...], is_named: bool
) -> None:
    left = rules_left([nat(*jumps, FLANNEL=rules)], KNOWN)

    assert [one.is_sure for one in left] == ([False] if is_named else [])


def test_chains_of_the_other_variant_of_iptables_are_unused() -> None:
    """In the variant that the host uses, pyflannel's chains have the same names and replace them."""
    chains = {
        "nat": {
            "POSTROUTING": ('-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',),
            "FLANNEL-POSTRTG": COMMENTED,
        },
        "filter": {"FORWARD": ("-j FLANNEL-FWD", "-j FLANNEL-FWD-1"), "FLANNEL-FWD": ("-j ACCEPT",)},
    }
    other = SavedRules(program="iptables-legacy", family=4, is_other=True, chains=chains)
    used = SavedRules(program="iptables", family=4, chains=chains)

    masq, forward = rules_left([other], frozenset())

    assert (masq.is_sure, forward.is_sure) == (True, True)
    assert masq.commands == (
        'iptables-legacy -t nat -D POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
        "iptables-legacy -t nat -F FLANNEL-POSTRTG",
        "iptables-legacy -t nat -X FLANNEL-POSTRTG",
    )
    assert forward.removal == ("-D FORWARD -j FLANNEL-FWD", "-F FLANNEL-FWD", "-X FLANNEL-FWD")
    assert rules_left([used], frozenset()) == ()
