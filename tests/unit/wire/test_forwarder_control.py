"""The control protocol: values are read back, and other bytes are refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import WireError
from pyflannel.wire.forwarder_control import (
    LONGEST_PAYLOAD_BYTES,
    ForwarderState,
    FrameReader,
    Kind,
    Peer,
    Restriction,
    Settings,
    Stranger,
    Summary,
    decode_change,
    decode_counters,
    decode_handed,
    decode_peers,
    decode_refusal,
    decode_state,
    decode_strangers,
    decode_summary,
    encode_change,
    encode_counters,
    encode_frame,
    encode_handed,
    encode_peers,
    encode_refusal,
    encode_state,
    encode_strangers,
    encode_summary,
)

addresses = st.integers(0, 2**32 - 1)
ports = st.integers(0, 65535)
prefixes = st.integers(0, 32).flatmap(
    lambda length: st.tuples(
        addresses.map(lambda address: address >> (32 - length) << (32 - length)), st.just(length)
    )
)
peers = st.builds(lambda prefix, address, port: Peer(*prefix, address, port), prefixes, addresses, ports)
link_names = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-_", min_size=1, max_size=15)
settings = st.builds(
    lambda link, prefix, tunnel, listen, port, mtu: Settings(link, tunnel, *prefix, listen, port, mtu),
    *(link_names, prefixes, addresses, addresses, ports, st.integers(68, 65535)),
)
states = st.builds(
    ForwarderState,
    *(st.text(max_size=20), st.integers(0, 2**32 - 1), st.booleans(), settings, st.lists(peers).map(tuple)),
)
frames = st.tuples(st.sampled_from(Kind), st.binary(max_size=300))


@given(sent=st.lists(frames, max_size=6), cuts=st.lists(st.integers(1, 50)))
def test_frames_survive_any_cutting_of_the_stream(sent, cuts):
    """The frames are the same and in order for any split of the bytes."""
    stream = b"".join(encode_frame(*frame) for frame in sent)
    reader = FrameReader()
    received = []
    for cut in cuts:
        received += reader.feed(stream[:cut])
        stream = stream[cut:]
    received += reader.feed(stream)

    assert received == sent


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"pf\x02\x01\0\0\0\0",
        b"pf\x01\x63\0\0\0\0",
        b"pf\x01\x02" + (LONGEST_PAYLOAD_BYTES + 1).to_bytes(4, "big"),
    ],
    ids=["another protocol", "another version", "an unknown kind", "too long"],
)
def test_a_foreign_stream_is_refused_at_its_header(data):
    """No bytes are buffered for a frame that is refused."""
    with pytest.raises(WireError):
        list(FrameReader().feed(data))


@given(st.lists(peers))
def test_peers_are_read_back_as_sent(items):
    assert decode_peers(encode_peers(items)) == items


@given(st.lists(prefixes), st.lists(peers))
def test_a_change_is_read_back_as_sent(removals, items):
    assert decode_change(encode_change(removals, items)) == (removals, items)


@given(states)
def test_a_state_is_read_back_as_sent(state):
    assert decode_state(encode_state(state)) == state


@given(st.integers(0, 3), states)
def test_a_handed_over_state_is_read_back_as_sent(descriptors, state):
    assert decode_handed(encode_handed(descriptors, state)) == (descriptors, state)


summaries = st.builds(
    Summary,
    *(st.integers(0, 2**64 - 1), st.booleans(), st.integers(0, 255)),
    st.integers(0, 255).map(Restriction),
)


@given(summaries, st.binary(max_size=5))
def test_a_summary_is_read_back_as_sent(summary, later):
    """A later version may send more fields."""
    assert decode_summary(encode_summary(summary) + later) == summary


@given(summaries)
def test_a_version_without_restrictions_has_none(summary):
    assert decode_summary(encode_summary(summary)[:-1]) == summary._replace(restrictions=Restriction(0))


@given(st.dictionaries(st.text("abcdefghij_E", min_size=1), st.integers(0, 2**64 - 1)))
def test_counters_are_read_back_as_sent(counters):
    assert decode_counters(encode_counters(counters)) == counters


@given(
    st.lists(
        st.builds(
            Stranger,
            *(addresses, st.text("abc_", max_size=20), st.integers(0, 2**64 - 1)),
            *(st.integers(0, 2**32 - 1), addresses, addresses),
        )
    )
)
def test_strangers_are_read_back_as_sent(strangers):
    assert decode_strangers(encode_strangers(strangers)) == strangers


@given(st.integers(0, 65535), st.text())
def test_a_refusal_is_read_back_as_sent(errno, text):
    assert decode_refusal(encode_refusal(errno, text)) == (errno, text)


@given(
    st.sampled_from(
        [
            *(decode_peers, decode_change, decode_state, decode_counters, decode_refusal),
            *(decode_handed, decode_summary, decode_strangers),
        ]
    ),
    st.binary(max_size=200),
)
def test_any_payload_is_decoded_or_refused(decode, payload):
    """Invalid bytes cause a WireError, never another error."""
    with suppress(WireError):
        decode(payload)


@given(prefixes.filter(lambda prefix: prefix[1] < 32))
def test_a_subnet_with_host_bits_is_refused(prefix):
    """The forwarder could neither find nor remove an entry with host bits."""
    subnet, length = prefix
    crooked = encode_peers([Peer(subnet | 1, length, 1, 1)])

    with pytest.raises(WireError, match="bits beyond"):
        decode_peers(crooked)
    with pytest.raises(WireError, match="bits beyond"):
        decode_change(encode_change([(subnet | 1, length)], []))
