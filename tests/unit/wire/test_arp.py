"""ARP probes, and the senders of ARP packets."""

from ipaddress import IPv4Address

import pytest

from pyflannel.wire.arp import format_probe, parse_sender

ADDRESS = IPv4Address("10.10.10.101")

ANSWER = bytes.fromhex("020000000001020000000002080600010800060400020200000000020a0a0a6502000000000100000000")
"""The answer of the host 02:00:00:00:00:02 to an ARP probe for 10.10.10.101."""


def test_a_probe_asks_every_host_and_names_no_address_of_its_sender() -> None:
    assert format_probe(bytes.fromhex("020000000001"), ADDRESS) == bytes.fromhex(
        "ffffffffffff02000000000108060001080006040001020000000001000000000000000000000a0a0a65"
    )


def test_the_sender_of_an_answer_is_read() -> None:
    assert parse_sender(ANSWER + bytes(18)) == (bytes.fromhex("020000000002"), ADDRESS)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        ANSWER[:-1],
        ANSWER[:12] + b"\x08\x00" + ANSWER[14:],
        ANSWER[:16] + b"\x86\xdd" + ANSWER[18:],
        format_probe(bytes(6), ADDRESS),
    ],
    ids=["empty", "cut", "another type", "another protocol", "probe"],
)
def test_other_frames_have_no_sender(frame: bytes) -> None:
    assert parse_sender(frame) is None
