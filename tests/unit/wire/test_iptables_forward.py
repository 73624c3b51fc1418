"""Whether legacy iptables drops what is forwarded, from what iptables-save prints."""

from ipaddress import IPv4Network

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
        (("FORWARD -j OURS", "OURS -s 10.100.0.0/16 -j ACCEPT"), True),
        (('FORWARD -m comment --comment "a b" -j OURS', "OURS -g OTHER", "OTHER -j ACCEPT"), True),
        (("FORWARD -i eth0 -j OURS", "OURS -j ACCEPT"), False),
        (("FORWARD -j OURS", "OURS -j OTHER", "OTHER -j OURS"), False),
    ],
)
def test_what_forward_lets_pass_although_its_policy_is_to_drop(rules: tuple[str, ...], passes: bool) -> None:
    tables = parse_save(filter_table("DROP", *rules, chains="OURS OTHER"))

    chain = dropping_forward(tables, "iptables-legacy")

    assert chain is not None
    assert (chain.name, chain.program) == ("FORWARD", "iptables-legacy")
    assert chain.lets_pass(NETWORK) == passes


@pytest.mark.parametrize("text", ["", filter_table("ACCEPT", "FORWARD -j DROP"), "*nat\nCOMMIT\n"])
def test_another_policy_drops_nothing(text: str) -> None:
    """What a rule drops is the operator's wish."""
    assert dropping_forward(parse_save(text), "iptables") is None
