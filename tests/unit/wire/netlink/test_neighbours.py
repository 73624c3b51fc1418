"""Neighbours and FDB entries: pyflannel's codec and pyroute2's read each other's messages."""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from pyflannel.wire.netlink.message import HEADER, attribute, pack
from pyflannel.wire.netlink.neighbours import (
    FdbRecord,
    NeighbourRecord,
    entry_index,
    lasting_part,
    parse_fdb_entry,
    parse_neighbour,
    put_fdb_entry,
    put_neighbour,
    remove_fdb_entry,
    remove_neighbour,
)

indexes = st.integers(1, 2**31 - 1)
addresses = st.integers(1, 2**32 - 1).map(IPv4Address) | st.integers(1, 2**128 - 1).map(IPv6Address)
macs = st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":"))
ages = st.binary(min_size=16, max_size=16).map(lambda data: attribute(3, data))


@given(indexes, addresses, macs)
def test_a_neighbour_is_read_back_as_sent(index, address, mac) -> None:
    body = put_neighbour(index, address, mac).body

    assert parse_neighbour(body) == NeighbourRecord(index=index, address=address, mac=mac)
    assert parse_fdb_entry(body) is None
    assert entry_index(body) == index


@given(indexes, macs, addresses)
def test_an_fdb_entry_is_read_back_as_sent(index, mac, destination) -> None:
    body = put_fdb_entry(index, mac, destination).body

    assert parse_fdb_entry(body) == FdbRecord(index=index, mac=mac, destination=destination)
    assert parse_neighbour(body) is None
    assert entry_index(body) == index


@given(indexes, addresses, macs)
def test_pyroute2_reads_written_neighbours(index, address, mac) -> None:
    for request, is_put in (
        (put_neighbour(index, address, mac), True),
        (remove_neighbour(index, address), False),
    ):
        theirs = ndmsg(pack(request, 1))

        theirs.decode()

        assert (theirs["family"], theirs["ifindex"]) == (2 if address.version == 4 else 10, index)
        assert ip_address(theirs.get_attr("NDA_DST")) == address
        assert theirs.get_attr("NDA_LLADDR") == (mac if is_put else None)
        assert theirs["state"] == (0x80 if is_put else 0)


@given(indexes, macs, st.none() | addresses)
def test_pyroute2_reads_written_fdb_entries(index, mac, destination) -> None:
    requests = [remove_fdb_entry(index, mac, destination)]
    if destination is not None:
        requests.append(put_fdb_entry(index, mac, destination))
    for request in requests:
        theirs = ndmsg(pack(request, 1))

        theirs.decode()

        assert (theirs["family"], theirs["ifindex"], theirs["flags"]) == (7, index, 2)
        assert theirs.get_attr("NDA_LLADDR") == mac
        shown = theirs.get_attr("NDA_DST")
        assert (None if shown is None else ip_address(shown)) == destination


def by_pyroute2(**fields) -> bytes:
    theirs = ndmsg()
    for name, value in fields.items():
        theirs[name] = value
    theirs.encode()
    return bytes(theirs.data)[HEADER.size :]


@pytest.mark.parametrize(("state", "is_permanent"), [(0x80, True), (0x02, False), (0x40, False)])
def test_neighbours_of_pyroute2_are_read(state: int, is_permanent: bool) -> None:
    body = by_pyroute2(
        family=2,
        ifindex=5,
        state=state,
        attrs=[("NDA_DST", "10.100.2.0"), ("NDA_LLADDR", "0e:00:00:00:00:02")],
    )

    assert parse_neighbour(body) == NeighbourRecord(
        index=5,
        address=IPv4Address("10.100.2.0"),
        mac="0e:00:00:00:00:02",
        is_permanent=is_permanent,
        is_unasked=state == 0x40,
    )


@pytest.mark.parametrize("state", [0x01, 0x20])
def test_a_neighbour_without_an_answer_has_no_mac(state: int) -> None:
    body = by_pyroute2(family=2, ifindex=5, state=state, attrs=[("NDA_DST", "10.100.2.0")])

    assert parse_neighbour(body) == NeighbourRecord(
        index=5, address=IPv4Address("10.100.2.0"), mac="", is_permanent=False, is_unresolved=True
    )


@pytest.mark.parametrize("extra", [("NDA_PORT", 99), ("NDA_VNI", 99), ("NDA_IFINDEX", 9)])
def test_an_entry_with_another_port_or_vni_is_not_read_as_a_plain_entry(extra: tuple[str, int]) -> None:
    body = by_pyroute2(
        family=7,
        ifindex=5,
        state=0x80,
        flags=2,
        attrs=[("NDA_LLADDR", "0e:00:00:00:00:02"), ("NDA_DST", "10.7.0.2"), extra],
    )

    entry = parse_fdb_entry(body)

    assert entry is not None
    assert not entry.is_plain


def test_the_fdb_of_a_bridge_is_distinguished() -> None:
    body = by_pyroute2(family=7, ifindex=5, state=0x80, flags=4, attrs=[("NDA_LLADDR", "0e:00:00:00:00:02")])

    assert parse_fdb_entry(body) is None


@given(indexes, addresses, macs, addresses, ages, ages)
def test_the_compared_part_of_a_message_distinguishes_entries_but_not_their_ages(
    index, address, mac, other, first, second
):
    for body, another in (
        (put_neighbour(index, address, mac).body, put_neighbour(index, other, mac).body),
        (put_fdb_entry(index, mac, address).body, put_fdb_entry(index, mac, other).body),
    ):
        if address.version == 4:
            assert lasting_part(body + first) == lasting_part(body + second) == body
        assert (lasting_part(body + first) == lasting_part(another + first)) == (address == other)


def test_the_counter_of_probes_does_not_belong_to_the_compared_part() -> None:
    """In a message about a neighbour, the kernel reports the counter before the ages."""
    body = put_neighbour(5, IPv4Address("10.7.0.2"), "0e:00:00:00:00:02").body

    assert lasting_part(body + attribute(4, bytes(4)) + attribute(3, bytes(16))) == body


def test_attributes_before_the_ages_belong_to_the_compared_part() -> None:
    body = put_fdb_entry(5, "0e:00:00:00:00:02", IPv4Address("10.7.0.2")).body
    port = attribute(6, struct.pack("!H", 99))

    assert lasting_part(body + port + attribute(3, bytes(16))) != body
