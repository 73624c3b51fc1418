"""Laws of the packet filter: rules of both engines are read back, among any other rules."""

import json
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.strategies import filter_rules
from pyflannel.errors import WireError
from pyflannel.model.packet_filter import (
    TABLES,
    ForeignRule,
    IptablesChain,
    IptablesHook,
    Jump,
    NftChain,
    NftTable,
    TunnelRule,
)
from pyflannel.wire.iptables import (
    SavedChain,
    SavedTables,
    chains_of,
    format_chain,
    format_removal,
    format_rule,
    parse_rule,
    parse_save,
)
from pyflannel.wire.nftables import format_table, parse_names, parse_table

hooks: st.SearchStrategy[IptablesHook] = st.sampled_from(sorted(TABLES))
tunnel_rules = st.builds(TunnelRule, st.ip_addresses(v=4), st.integers(1, 65535))
iptables_rules = filter_rules | tunnel_rules
chains = st.builds(
    IptablesChain,
    family=st.just(4),
    hook=hooks,
    device=st.sampled_from(["flannel0", "flannel1"]),
    rules=st.lists(iptables_rules, max_size=5).map(tuple),
)
OTHERS = (
    *("-j DROP", "-i eth0 -j DROP", "-j DOCKER-USER", "-j FLANNEL-FWD", "-o eth0 -g FLANNEL-FWD"),
    *("-j FLANNEL-INPUT", '-m comment --comment "flanneld tunnel" -j FLANNEL-INPUT'),
)


@st.composite
def saved_tables(draw: st.DrawFn) -> SavedTables:
    """Return tables with rules of other programs, and jumps to pyflannel's chains from anywhere."""
    rules = st.lists(st.sampled_from(OTHERS), max_size=4).map(tuple)
    own = draw(rules)
    return {
        "filter": {
            "FORWARD": SavedChain(draw(st.sampled_from(["ACCEPT", "DROP"])), draw(rules)),
            "INPUT": SavedChain(draw(st.sampled_from(["ACCEPT", "DROP"])), draw(rules)),
            "DOCKER-USER": SavedChain("-", draw(rules)),
            "FLANNEL-FWD": SavedChain("-", own),
            "FLANNEL-INPUT": SavedChain("-", own),
        }
    }


def restored(text: str, saved: SavedTables) -> SavedTables:
    """Return the tables after iptables-restore --noflush with the written lines."""
    after = {table: dict(chains) for table, chains in saved.items()}
    chains = after.setdefault("", {})
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        name, _, rule = rest.partition(" ")
        rules = list(chains[name].rules) if name in chains else []
        if line.startswith("*"):
            chains = after.setdefault(line[1:], {"FORWARD": SavedChain("ACCEPT")})
        elif line.startswith(":"):
            chains[word[1:]] = SavedChain("-")
        elif word == "-D":
            rules.remove(rule)
        elif word == "-A":
            rules.append(rule)
        elif word == "-I":
            number, _, rule = rule.partition(" ")
            rules.insert(int(number) - 1, rule)
        elif word == "-X":
            del chains[name]
        if word in ("-D", "-A", "-I"):
            chains[name] = SavedChain(chains.get(name, SavedChain("ACCEPT")).policy, tuple(rules))
    return after


@given(rule=iptables_rules, hook=hooks)
def test_a_rule_of_iptables_is_read_back(rule: object, hook: IptablesHook) -> None:
    assert parse_rule(format_rule(rule, hook), hook) == rule  # type: ignore[arg-type]


@given(saved=saved_tables(), chain=chains.filter(lambda chain: chain.table == "filter"))
def test_a_chain_and_its_jump_are_as_planned_after_any_state(
    saved: SavedTables, chain: IptablesChain
) -> None:
    chain = replace(chain, device="flannel0")

    after = restored(format_chain(chain, saved), saved)

    assert chain in list(chains_of(after, 4))
    assert chain.jump is Jump.IN_PLACE


@given(saved=saved_tables())
def test_a_removed_chain_leaves_the_rules_of_other_programs(saved: SavedTables) -> None:
    chain = IptablesChain(family=4, hook="FORWARD", device="flannel0", rules=())

    after = restored(format_removal(chain, saved), saved)

    for name in ("FORWARD", "DOCKER-USER"):
        others = tuple(rule for rule in saved["filter"][name].rules if not rule.endswith("FLANNEL-FWD"))
        assert after["filter"][name] == replace(saved["filter"][name], rules=others)
    assert "FLANNEL-FWD" not in after["filter"]


@given(text=st.text())
def test_any_text_is_a_listing_or_refused(text: str) -> None:
    for read in (parse_save, parse_names):
        with suppress(WireError):
            read(text)
    assert isinstance(parse_rule(text, "POSTROUTING"), ForeignRule)


@given(rules=st.lists(filter_rules, max_size=5).map(tuple))
def test_a_table_of_nftables_is_read_back(rules: tuple[object, ...]) -> None:
    chain = NftChain(name="x", kind="nat", hook="postrouting", priority=100, rules=rules)  # type: ignore[arg-type]
    table = NftTable(family=4, device="flannel0", chains=(chain,))
    commands = json.loads(format_table(table))["nftables"][2:]
    listing = json.dumps({"nftables": [command["add"] for command in commands]})

    assert parse_table(listing, 4, "flannel0") == table
