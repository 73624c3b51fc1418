"""The frame of netlink messages: packed values are read back, and any input is parsed or refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import WireError
from pyflannel.wire.netlink.addresses import address_index, parse_address_message
from pyflannel.wire.netlink.links import parse_link
from pyflannel.wire.netlink.message import (
    ERROR,
    HEADER,
    REQUEST,
    Acknowledgement,
    Message,
    Request,
    attribute,
    attributes,
    nest,
    pack,
    parse_acknowledgement,
    split,
)
from pyflannel.wire.netlink.neighbours import entry_index, lasting_part, parse_fdb_entry, parse_neighbour
from pyflannel.wire.netlink.routes import glance_at_route, parse_route

requests = st.builds(Request, st.integers(16, 200), st.integers(0, 0xFFFF), st.binary(max_size=70))
kinds = st.integers(0, 0x3FFF)


@given(st.lists(requests, max_size=6), st.integers(1, 2**31))
def test_a_datagram_is_split_into_its_messages_in_order(batch: list[Request], first: int) -> None:
    datagram = b"".join(pack(request, first + number) for number, request in enumerate(batch))

    messages = list(split(datagram))

    assert messages == [
        Message(request.kind, request.flags | REQUEST, first + number, 0, request.body)
        for number, request in enumerate(batch)
    ]


@given(st.dictionaries(kinds, st.binary(max_size=40)))
def test_attributes_are_read_back_by_kind(wanted: dict[int, bytes]) -> None:
    data = b"".join(attribute(kind, payload) for kind, payload in wanted.items())

    assert attributes(data) == wanted
    assert attributes(attributes(nest(7, data))[7]) == wanted


@given(st.binary(max_size=300))
def test_any_bytes_are_messages_or_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        assert all(len(message.body) <= len(data) for message in split(data))


@pytest.mark.parametrize(
    "parse",
    [
        parse_link,
        parse_address_message,
        parse_route,
        glance_at_route,
        address_index,
        parse_neighbour,
        parse_fdb_entry,
        entry_index,
        lasting_part,
    ],
)
@given(body=st.binary(max_size=120))
def test_any_body_is_a_value_or_a_wire_error(parse, body: bytes) -> None:
    with contextlib.suppress(WireError):
        parse(body)


@given(st.binary(max_size=80), st.integers(0, 0xFFFF), st.sampled_from([2, 3]))
def test_any_acknowledgement_is_a_value_or_a_wire_error(body: bytes, flags: int, kind: int) -> None:
    with contextlib.suppress(WireError):
        parse_acknowledgement(Message(kind, flags, 1, 0, body))


@pytest.mark.parametrize("is_capped", [True, False])
def test_an_acknowledgement_contains_errno_and_the_kernels_text(is_capped: bool) -> None:
    """The text is after the header of the request, or after the whole request if the answer is not capped."""
    request = b"request!"
    echoed = HEADER.pack(HEADER.size + len(request), 24, 5, 9, 0) + (b"" if is_capped else request)
    body = (-22).to_bytes(4, "little", signed=True) + echoed + attribute(1, b"Invalid prefix\0")

    answer = parse_acknowledgement(Message(ERROR, 0x200 | (0x100 if is_capped else 0), 9, 0, body))

    assert answer == Acknowledgement(9, 22, "Invalid prefix")


def test_a_message_longer_than_its_datagram_is_refused() -> None:
    data = HEADER.pack(40, 16, 0, 1, 0) + bytes(8)

    with pytest.raises(WireError, match="has 24 bytes, but needs 40"):
        list(split(data))
