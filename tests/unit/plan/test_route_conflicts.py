"""Routes of the overlay that would take packets from the underlay are found before they are planned."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.model.host import Underlay
from pyflannel.plan.routes import (
    HostPrefix,
    conflicts,
    network_notes,
    on_link_prefixes,
    route_objection,
)

PREFIX = IPv4Network("192.168.50.0/24")
UNDERLAY = Underlay(
    link="eth0",
    address=IPv4Address("192.168.50.102"),
    mtu=1500,
    public_ip=IPv4Address("192.168.50.102"),
    on_link=(IPv4Network("172.16.0.0/12"), PREFIX),
)


@pytest.mark.parametrize(
    ("destination", "effect"),
    [
        ("192.168.50.0/24", "replaces"),
        ("192.168.50.128/25", "captures"),
        ("192.168.50.1/32", "captures"),
        ("192.168.0.0/16", "contains"),
        ("128.0.0.0/1", "contains"),
        ("0.0.0.0/1", None),
        ("192.168.51.0/24", None),
        ("10.100.0.0/16", None),
    ],
)
def test_what_a_route_does_to_a_prefix_of_the_host(destination: str, effect: str | None) -> None:
    """A longer prefix wins, an equal one takes its place, a shorter one loses."""
    other = HostPrefix(PREFIX, "the prefix of eth0")

    found = conflicts([IPv4Network(destination)], [other])

    assert [(one.other, one.effect) for one in found] == ([(other, effect)] if effect else [])


def test_each_conflict_with_each_prefix_is_found() -> None:
    found = conflicts([IPv4Network("0.0.0.0/0")], on_link_prefixes("eth0", UNDERLAY.on_link))

    assert [(str(one.other.prefix), one.effect) for one in found] == [
        ("172.16.0.0/12", "contains"),
        ("192.168.50.0/24", "contains"),
    ]


@pytest.mark.parametrize(
    ("destination", "is_refused"),
    [("192.168.50.0/24", True), ("172.16.0.0/12", True), ("172.16.7.0/24", False), ("10.100.3.0/24", False)],
)
def test_a_route_that_would_replace_one_of_the_underlay_is_refused(
    destination: str, is_refused: bool
) -> None:
    """A longer prefix takes a part of the underlay: the network draws a note, and it is routed."""
    found = route_objection(IPv4Network(destination), UNDERLAY)

    assert found == (
        f"{destination} is the prefix of eth0 itself: it is not routed to the overlay, as this host would"
        " lose the underlay"
        if is_refused
        else None
    )


@pytest.mark.parametrize(
    ("network", "word"),
    [
        ("192.168.50.0/24", "is the prefix of eth0 itself"),
        ("192.168.50.0/25", "is a part of 192.168.50.0/24, the prefix of eth0"),
        ("192.168.0.0/16", "contains 192.168.50.0/24, the prefix of eth0"),
    ],
)
def test_a_network_that_overlaps_the_underlay_draws_a_note(network: str, word: str) -> None:
    (note,) = network_notes(IPv4Network(network), UNDERLAY)

    assert note.startswith(f"Network {network} ")
    assert word in note


def test_a_network_apart_from_the_underlay_draws_none() -> None:
    assert network_notes(IPv4Network("10.100.0.0/16"), UNDERLAY) == ()
    assert network_notes(None, UNDERLAY) == ()
