"""Classifiers in netlink: requests have the kernel's layout, and its answers are read."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.wire.netlink.message import ACK, CREATE, EXCLUSIVE, REPLACE, attribute, attributes, nest
from pyflannel.wire.netlink.tc import (
    EGRESS,
    INGRESS,
    BpfFilter,
    create_clsact,
    create_filter,
    delete_filter,
    parse_filter,
    replace_filter,
)

HEAD = struct.Struct("=B3xiIII")
filters = st.builds(
    BpfFilter,
    handle=st.integers(1, 2**32 - 1),
    information=st.integers(0, 2**32 - 1),
    program=st.integers(1, 2**32 - 1),
)


def test_the_clsact_qdisc_has_its_own_parent():
    request = create_clsact(7)

    assert request.flags == ACK | CREATE | EXCLUSIVE
    assert HEAD.unpack_from(request.body) == (0, 7, 0xFFFF0000, 0xFFFFFFF1, 0)
    assert attributes(request.body, HEAD.size) == {1: b"clsact\0"}


def test_a_program_is_given_by_descriptor_with_direct_action():
    request = create_filter(7, EGRESS, "flannel_encap", 5)

    assert HEAD.unpack_from(request.body)[1:4] == (7, 0, 0xFFFFFFF3)
    assert HEAD.unpack_from(request.body)[4] >> 16 == 0xFFFF
    found = attributes(request.body, HEAD.size)
    assert found[1] == b"bpf\0"
    assert attributes(found[2]) == {
        6: (5).to_bytes(4, "little"),
        7: b"flannel_encap\0",
        8: (1).to_bytes(4, "little"),
    }


@given(filters)
def test_a_program_replaces_another(old):
    request = replace_filter(7, INGRESS, old, "flannel_decap", 5)

    assert request.flags & (CREATE | REPLACE | EXCLUSIVE) == CREATE | REPLACE
    assert HEAD.unpack_from(request.body) == (0, 7, old.handle, 0xFFFFFFF2, old.information)
    assert HEAD.unpack_from(delete_filter(7, INGRESS, old).body) == HEAD.unpack_from(request.body)


@given(filters)
def test_the_kernels_answer_is_read(expected):
    options = nest(2, attribute(11, struct.pack("=I", expected.program)))
    head = HEAD.pack(0, 7, expected.handle, EGRESS, expected.information)

    assert parse_filter(head + attribute(1, b"bpf\0") + options) == expected
    assert parse_filter(head + attribute(1, b"u32\0") + options) is None
    assert parse_filter(head + attribute(1, b"bpf\0")) is None
