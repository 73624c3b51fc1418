"""The layout of the maps that programs and daemon share: packed values are read back, as in maps.h."""

import re
import struct
from importlib.resources import files
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.kernel.bpf.features import HELPERS
from pyflannel.kernel.bpf.layout import (
    BUILD_BYTES,
    SHARED,
    Outcome,
    Settings,
    pack_mac,
    pack_peer,
    pack_port,
    pack_sender,
    pack_settings,
    pack_subnet,
    unpack_bytes,
    unpack_counts,
    unpack_mac,
    unpack_peer,
    unpack_port,
    unpack_sender,
    unpack_settings,
    unpack_stranger,
)
from pyflannel.kernel.bpf.objects import read_object
from pyflannel.model.fast_path import BpfPeer
from pyflannel.model.forwarder import Stranger

addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
subnets = st.builds(
    lambda base, length: IPv4Network((base, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)
ports = st.integers(1, 65535)
indexes = st.integers(1, 2**31 - 1)
peers = st.builds(
    BpfPeer,
    device=st.just("flannel0"),
    subnet=subnets,
    address=addresses,
    port=ports,
    is_direct=st.booleans(),
)
settings = st.builds(
    Settings,
    build=st.binary(min_size=BUILD_BYTES, max_size=BUILD_BYTES),
    device=st.text("abcdefghijkl0123456789.-_", min_size=1, max_size=15),
    device_index=indexes,
    underlay_index=indexes,
    address=addresses,
    subnet=subnets,
    port=ports,
    mtu=st.integers(0, 65535),
    gro_index=indexes,
    caches_flows=st.booleans(),
    vni=st.none() | st.integers(0, 2**24 - 1),
)


@given(settings)
def test_settings_are_read_back(given_settings):
    assert unpack_settings(pack_settings(given_settings)) == given_settings


@given(settings, st.binary(max_size=100))
def test_settings_of_a_longer_version_identify_their_owner(given_settings, more):
    read = unpack_settings(pack_settings(given_settings) + more)

    assert (read.build, read.device) == (given_settings.build, given_settings.device)


@given(settings, st.integers(0, 60))
def test_settings_of_a_shorter_version_identify_their_owner(given_settings, size):
    read = unpack_settings(pack_settings(given_settings)[:size])

    assert (read is None) is (size < BUILD_BYTES + 16)
    assert read is None or (read.build, read.device) == (given_settings.build, given_settings.device)


@given(st.binary(min_size=24, max_size=60))
def test_no_bytes_make_reading_settings_fail(data):
    assert unpack_settings(data) is not None


@given(peers)
def test_peers_are_read_back(peer):
    assert unpack_peer("flannel0", pack_subnet(peer.subnet), pack_peer(peer)) == peer


def test_host_bits_of_the_address_in_an_entry_are_ignored():
    """Another program can write an entry whose address has host bits, and the kernel ignores the host
    bits.
    """
    key = pack_subnet(IPv4Network("10.3.1.7/32"))[4:]

    read = unpack_peer("flannel0", pack_subnet(IPv4Network("10.3.1.0/24"))[:4] + key, bytes(8))

    assert read.subnet == IPv4Network("10.3.1.0/24")


@given(st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":")))
def test_mac_addresses_are_read_back(mac):
    assert unpack_mac(pack_mac(mac)) == mac


@given(indexes)
def test_links_are_read_back(index):
    assert unpack_port(pack_port(index)) == index


def test_counters_of_all_processors_are_added():
    """Of two processors, the second has counted three more packets of the second outcome."""
    first = [(1, 10), (0, 0)]
    second = [(2, 20), (5, 50)]
    entries = {
        number.to_bytes(4, "little"): b"".join(
            value.to_bytes(8, "little") for pair in values for value in pair
        )
        for number, values in enumerate((first, second))
    }

    counts = unpack_counts(entries)

    assert counts[Outcome.ENCAPSULATED] == (1, 10)
    assert counts[Outcome.DECAPSULATED] == (7, 70)
    assert counts[Outcome.DELIVERED] == (0, 0)


@given(addresses, addresses)
def test_senders_are_read_back(address, subnet):
    assert unpack_sender(pack_sender((address, subnet))) == (address, subnet)


@given(st.lists(st.integers(0, 2**58), max_size=8))
def test_bytes_of_all_processors_are_added(sizes):
    assert unpack_bytes(struct.pack(f"={len(sizes)}Q", *sizes)) == sum(sizes)


def test_the_header_of_the_programs_has_the_same_layout():
    header = files("pyflannel.kernel.bpf").joinpath("maps.h").read_text()
    outcomes = re.search(r"enum outcome \{(.*?)\};", header, re.DOTALL)[1]
    names = re.findall(r"\b([A-Z][A-Z0-9_]+)\b", re.sub(r"/\*.*?\*/", "", outcomes))

    assert names[-1] == "OUTCOMES"
    assert [name.removeprefix("DROPPED_") for name in names[:-1]] == [outcome.name for outcome in Outcome]
    assert set(re.findall(r"\} (\w+) SEC\(\"\.maps\"\)", header)) == {layout.name for layout in SHARED}


def test_each_helper_that_the_programs_call_has_a_name():
    assert read_object().helpers == {"tc": frozenset(HELPERS)}


def test_a_map_can_be_found_by_its_name():
    kept_by_the_kernel = 15  # bytes, BPF_OBJ_NAME_LEN without the NUL

    assert [layout.name for layout in SHARED] == [layout.name[:kept_by_the_kernel] for layout in SHARED]


@given(addresses, st.integers(1, 2**64 - 1), addresses, addresses)
def test_a_rejected_sender_is_read_as_the_programs_write_it(address, packets, source, destination):
    key = address.packed + list(Outcome).index(Outcome.IMPOSTOR).to_bytes(4, "little")
    value = packets.to_bytes(8, "little") + bytes(8) + source.packed + destination.packed

    assert unpack_stranger(key, value, 2_500_000_000) == Stranger(
        address=address,
        reason="impostor",
        packets=packets,
        age_s=2.5,
        inner_source=source,
        inner_destination=destination,
    )


def test_a_rejected_sender_with_an_unknown_reason_is_omitted():
    assert unpack_stranger(bytes(4) + (99).to_bytes(4, "little"), bytes(24), 0) is None
