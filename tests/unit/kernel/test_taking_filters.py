"""Filters of traffic control that took packets, in the output of tc."""

import json
from typing import Any

import pytest

from pyflannel.kernel.host.packet_path import taking_in

LINKS = {"eth0": "", "sink": "veth", "ifb0": "ifb"}


def listed(action: dict[str, Any]) -> str:
    """Return the output of tc -json -statistics filter show for a filter with one action."""
    head: dict[str, Any] = {"protocol": "ip", "pref": 5, "kind": "u32", "chain": 0}
    return json.dumps([head, {**head, "options": {"fh": "800::800", "actions": [action]}}])


def redirection(there: str, packets: int) -> dict[str, Any]:
    return {
        "kind": "mirred",
        "mirred_action": "redirect",
        "to_dev": there,
        "control_action": {"type": "stolen"},
        "stats": {"packets": packets, "drops": 0},
    }


def drop(kind: str, packets: int, drops: int) -> dict[str, Any]:
    stats = {"packets": packets, "drops": drops}
    return {"kind": kind, "control_action": {"type": "drop"}, "stats": stats}


@pytest.mark.parametrize(
    ("action", "text", "packets"),
    [
        (redirection("sink", 7), "u32 redirects to sink", 7),
        (drop("gact", 3, 3), "u32 drops", 3),
        (drop("police", 100, 4), "u32 drops", 4),
    ],
)
def test_a_filter_that_took_packets_is_found(action: dict[str, Any], text: str, packets: int) -> None:
    (one,) = taking_in(listed(action), "eth0", "ingress", LINKS)

    assert (one.link, one.direction, one.priority) == ("eth0", "ingress", 5)
    assert (one.text, one.packets) == (text, packets)


@pytest.mark.parametrize(
    "action",
    [
        redirection("sink", 0),
        redirection("ifb0", 9),  # the device returns the packets
        drop("police", 100, 0),
        {"kind": "gact", "control_action": {"type": "pass"}, "stats": {"packets": 9}},
        {**redirection("sink", 9), "mirred_action": "mirror", "control_action": {"type": "pipe"}},
    ],
)
def test_a_filter_that_took_no_packets_is_not_found(action: dict[str, Any]) -> None:
    assert [*taking_in(listed(action), "eth0", "ingress", LINKS)] == []


@pytest.mark.parametrize("output", ["", "[]"])
def test_a_link_without_filters_has_no_finding(output: str) -> None:
    assert [*taking_in(output, "eth0", "egress", LINKS)] == []
