"""The messages of nf_tables about a traced echo become decisions about its packets."""

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from pyflannel.model.probe import PacketEvent, TracedPacket
from pyflannel.wire.netlink.message import Message, attribute, nest
from pyflannel.wire.netlink.nftables import BRIDGE, parse_chain, parse_rule
from pyflannel.wire.netlink.packet_trace import (
    INET,
    TABLE,
    TracedEcho,
    TraceMessage,
    decisions,
    parse_trace,
    tracing_table,
)

NEAR, FAR, HOST, PEER = (IPv4Address(text) for text in ("10.9.1.2", "10.9.2.2", "192.0.2.1", "192.0.2.2"))
ECHO = TracedEcho(source=NEAR, destination=FAR, identifier=0x1234)
LINKS = {1: "v1", 2: "br7", 3: "vx", 4: "u0"}
KIND = 10 << 8 | 17
FIRST_RULE, FIRST_CHAIN = 1, 3


def message(*attributes: bytes, kind: int = KIND) -> Message:
    return Message(
        kind=kind, flags=0, sequence=0, port=0, body=struct.pack(">BBH", 1, 0, 0) + b"".join(attributes)
    )


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def header(protocol: int, source: IPv4Address) -> bytes:
    return attribute(8, b"\x45" + bytes(8) + bytes([protocol]) + bytes(2) + source.packed + bytes(4))


PLACE = attribute(1, b"fw\0") + attribute(2, b"f\0") + number(6, 77)


def test_a_rule_is_read_with_its_verdict_and_its_interfaces() -> None:
    verdict = nest(5, number(1, 0))

    found = parse_trace(
        message(
            PLACE,
            number(4, 3),
            attribute(3, struct.pack(">Q", 5)),
            verdict,
            header(1, NEAR),
            number(10, 2),
            number(12, 3),
        )
    )

    assert found == TraceMessage(
        number=77,
        family="inet",
        table="fw",
        chain="f",
        handle=5,
        verdict="drop",
        iif=2,
        oif=3,
        source=NEAR,
        is_icmp=True,
    )


def test_the_sender_of_an_ipv6_packet_is_read() -> None:
    source = IPv6Address("fd00:5:0:1::2")
    packet = b"\x60" + bytes(5) + b"\x3a" + bytes(1) + source.packed + bytes(16)

    found = parse_trace(message(PLACE, number(4, 1), number(16, 1), attribute(8, packet)))
    cut = parse_trace(message(PLACE, number(4, 1), number(16, 1), attribute(8, packet[:39])))

    assert found is not None
    assert (found.source, found.is_icmp) == (source, True)
    assert cut is not None
    assert (cut.source, cut.is_icmp) == (None, False)


@pytest.mark.parametrize(
    ("attributes", "handle", "verdict"),
    [
        (number(4, 1) + number(16, 1), None, "accept"),
        (number(4, 3) + nest(5, number(1, -1 & 0xFFFFFFFF)), None, "continue"),
        (number(4, 3) + nest(5, number(1, -3 & 0xFFFFFFFF), attribute(2, b"sub\0")), None, "jump sub"),
        (number(4, 3) + nest(5, number(1, 99)), None, "99"),
    ],
)
def test_a_verdict_is_read(attributes: bytes, handle: int | None, verdict: str) -> None:
    found = parse_trace(message(PLACE, attributes))

    assert found is not None
    assert (found.handle, found.verdict, found.source) == (handle, verdict, None)


def test_another_message_is_no_trace() -> None:
    assert parse_trace(message(PLACE, number(4, 3), kind=10 << 8)) is None
    assert parse_trace(message(PLACE, number(4, 2))) is None


def seen(
    number: int,
    chain: str,
    verdict: str,
    *,
    handle: int | None = None,
    table: str = "fw",
    links: tuple[int, int] = (0, 0),
    source: IPv4Address | None = None,
    is_icmp: bool = True,
) -> TraceMessage:
    return TraceMessage(
        number=number,
        family="inet",
        table=table,
        chain=chain,
        handle=handle,
        verdict=verdict,
        iif=links[0],
        oif=links[1],
        source=source,
        is_icmp=source is not None and is_icmp,
    )


def test_the_packets_of_an_echo_and_of_its_tunnel_are_distinguished() -> None:
    """The kernel sends the end of a chain first, with the packet, then the policy."""
    messages = [
        seen(1, "request-prerouting", "continue", handle=2, table=TABLE, links=(1, 0), source=NEAR),
        seen(1, "tunnel-reply-prerouting", "continue", table=TABLE, links=(2, 0), source=NEAR),
        seen(1, "tunnel-reply-prerouting", "accept", table=TABLE),
        seen(2, "f", "accept", handle=5, links=(2, 3), source=NEAR),
        seen(
            3,
            "tunnel-request-output",
            "continue",
            handle=9,
            table=TABLE,
            links=(0, 4),
            source=HOST,
            is_icmp=False,
        ),
        seen(3, "o", "continue", links=(0, 4), source=HOST, is_icmp=False),
        seen(3, "o", "accept"),
        seen(
            4,
            "tunnel-reply-prerouting",
            "continue",
            handle=7,
            table=TABLE,
            links=(4, 0),
            source=PEER,
            is_icmp=False,
        ),
        seen(5, "i", "continue", links=(4, 0), source=PEER, is_icmp=False),
        seen(5, "i", "accept"),
        seen(6, "f", "drop", handle=6, links=(3, 2), source=FAR),
        seen(9, "f", "drop", handle=6, links=(3, 2), source=HOST, is_icmp=True),
    ]

    def event(
        packet: TracedPacket, chain: str, verdict: str, handle: int | None, iif: str | None, oif: str | None
    ) -> PacketEvent:
        return PacketEvent(
            packet=packet,
            family="inet",
            table="fw",
            chain=chain,
            handle=handle,
            verdict=verdict,
            iif=iif,
            oif=oif,
        )

    assert list(decisions(messages, ECHO, LINKS)) == [
        event("request", "f", "accept", 5, "br7", "vx"),
        event("tunnel request", "o", "accept", None, None, "u0"),
        event("tunnel reply", "i", "accept", None, "u0", None),
        event("reply", "f", "drop", 6, "vx", "br7"),
    ]


def test_the_table_marks_only_the_packets_of_the_echo() -> None:
    """Each rule compares both addresses and the identifier first. The chain of the table is before all other
    chains.
    """
    requests = tracing_table(ECHO, INET)
    chains = [parse_chain(one.body)[1] for one in requests if one.kind & 0xFF == FIRST_CHAIN]
    rules = [parse_rule(one.body)[2] for one in requests if one.kind & 0xFF == 6]

    assert {(one.hook, one.priority) for one in chains} == {(0, -450), (3, -450)}
    assert len(chains) == 8
    assert len(rules) == 12
    for steps in rules:
        names = [name for name, _ in steps]
        assert names[-2:] == ["immediate", "meta"]
        compared = [data for name, data in steps if name == "cmp"]
        assert any(b"\x12\x34" in one for one in compared)
        assert any(NEAR.packed in one and FAR.packed in one for one in compared)
    assert len([one for one in tracing_table(ECHO, BRIDGE) if one.kind & 0xFF == FIRST_CHAIN]) == 4
