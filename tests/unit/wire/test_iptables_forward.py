"""Forwarded packets that legacy iptables drops, from the output of iptables-save."""

from ipaddress import IPv4Network
from itertools import pairwise

import pytest

from pyflannel.wire.iptables import dropping_forward, parse_save

NETWORK = IPv4Network("10.100.0.0/16")


def filter_table(policy: str, *rules: str, chains: str = "") -> str:
    lines = [f":FORWARD {policy} [0:0]", *(f":{name} - [0:0]" for name in chains.split())]
    return "\n".join(["*filter", *lines, *(f"-A {rule}" for rule in rules), "COMMIT", ""])


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        ((), False),
        (("FORWARD -s 10.100.0.0/16 -j ACCEPT",), True),
        (("FORWARD -d 10.0.0.0/8 -j ACCEPT",), True),
        (("FORWARD -d 10.100.0.0/24 -j ACCEPT",), False),
        (("FORWARD -j ACCEPT",), True),
        (('FORWARD -s 10.100.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT',), True),
        (("FORWARD -i docker0 -s 10.100.0.0/16 -j ACCEPT",), False),
        (("FORWARD -s 10.100.0.0/16 -j DROP",), False),
        (("FORWARD ! -s 10.100.0.0/16 -j ACCEPT",), False),
        (("FORWARD -j MINE", "MINE -s 10.100.0.0/16 -j ACCEPT"), True),
        (('FORWARD -m comment --comment "a b" -j MINE', "MINE -g OTHER", "OTHER -j ACCEPT"), True),
        (("FORWARD -i eth0 -j MINE", "MINE -j ACCEPT"), False),
        (("FORWARD -j MINE", "MINE -j OTHER", "OTHER -j MINE"), False),
        (("FORWARD -s 10.0.0.0/255.0.255.0 -j ACCEPT",), False),
    ],
)
def test_accepted_networks_of_a_dropping_forward_chain(rules: tuple[str, ...], passes: bool) -> None:
    tables = parse_save(filter_table("DROP", *rules, chains="MINE OTHER"))

    chain = dropping_forward(tables, "iptables-legacy")

    assert chain is not None
    assert (chain.name, chain.program) == ("FORWARD", "iptables-legacy")
    assert chain.lets_pass(NETWORK) == passes


@pytest.mark.parametrize("text", ["", filter_table("ACCEPT", "FORWARD -j DROP"), "*nat\nCOMMIT\n"])
def test_another_policy_drops_nothing(text: str) -> None:
    """A rule that drops packets is intended by the operator."""
    assert dropping_forward(parse_save(text), "iptables") is None


@pytest.mark.timeout(20)
def test_chains_with_many_jumps_to_each_other_are_read_once() -> None:
    """Twelve chains with ten jumps each to the next are 10^12 paths."""
    names = ["FORWARD", *(f"C{number}" for number in range(12))]
    jumps = [f"{name} -j {target}" for name, target in pairwise(names) for _ in range(10)]
    tables = parse_save(filter_table("DROP", *jumps, f"{names[-1]} -j ACCEPT", chains=" ".join(names[1:])))

    chain = dropping_forward(tables, "iptables")

    assert chain is not None
    assert chain.lets_pass(NETWORK)


@pytest.mark.timeout(20)
def test_a_long_chain_is_read_in_linear_time() -> None:
    """kube-proxy writes tens of thousands of rules."""
    rules = [f"KUBE-SERVICES -j KUBE-SVC-{number}" for number in range(100_000)]

    tables = parse_save(filter_table("DROP", *rules, chains="KUBE-SERVICES"))

    assert len(tables["filter"]["KUBE-SERVICES"].rules) == len(rules)
