"""The senders whose packets are accepted from the underlay, on the real kernel."""

import json
import socket
import struct
import time
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from pyflannel.errors import LabError
from pyflannel.kernel.bpf.layout import Outcome
from pyflannel.lab.waiting import wait_until
from pyflannel.model.forwarder import Stranger
from pyflannel.wire.packet import checksum

DEADLINE_S = 60.0
PORT = 7000
SO_NO_CHECK = 11  # asm-generic/socket.h


@pytest.fixture
def send_from_one(open_socket):
    """Return a function that sends inner packets from host one, and returns the packets that a container of
    host two receives.
    """

    def send(hosts, *packets: bytes) -> bytes:
        one, two = hosts
        with (
            open_socket(one.namespace, socket.SOCK_DGRAM) as sender,
            open_socket(two.container.namespace, socket.SOCK_DGRAM) as listener,
        ):
            sender.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)  # else user space would read the datagram
            listener.bind((two.container.address, PORT))
            for packet in packets:
                sender.sendto(packet, (two.address, 8285))
            return listener.recv(2000)

    return send


def inner(source: str, destination: str, payload: bytes, fragment: int = 0) -> bytes:
    """Return an inner UDP packet; `fragment` is flags and offset."""
    datagram = struct.pack("!HHHH", PORT, PORT, 8 + len(payload), 0) + payload
    ends = IPv4Address(source).packed + IPv4Address(destination).packed
    header = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, fragment, 64, 17, 0) + ends)
    header[10:12] = struct.pack("!H", checksum(header))
    return bytes(header) + datagram


def outer(source: str, destination: str, packet: bytes, fragment: int = 0) -> bytes:
    """Return a tunnel datagram with its IPv4 header, to which a raw socket adds the checksum."""
    datagram = struct.pack("!HHHH", 8285, 8285, 8 + len(packet), 0) + packet
    ends = IPv4Address(source).packed + IPv4Address(destination).packed
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, fragment, 64, 17, 0) + ends + datagram


def wait_counted(host, expected: dict[Outcome, int]) -> None:
    """Wait for this number of packets by outcome. The last packet may be counted before an earlier packet."""
    with suppress(LabError):
        wait_until(lambda: host.counts() == expected, what="the packets", deadline_s=DEADLINE_S)
    assert host.counts() == expected


@pytest.mark.parametrize(
    ("source", "destination", "outcome"),
    [
        ("10.100.77.2", "10.100.20.2", Outcome.LEFT_STRANGER),
        ("192.0.2.1", "10.100.20.2", Outcome.LEFT_STRANGER),
        ("10.100.30.2", "10.100.20.2", Outcome.IMPOSTOR),
        ("10.100.15.2", "10.100.99.2", Outcome.NOT_OURS),
        ("10.100.15.2", "224.0.0.1", Outcome.NOT_OURS),
    ],
)
def test_a_packet_with_a_wrong_address_is_not_accepted(linked, send_from_one, source, destination, outcome):
    one, two = linked
    third = replace(one.peer(), subnet=IPv4Network("10.100.30.0/24"), address=IPv4Address("10.9.0.30"))
    two.heal(two.plan(one.peer(), third))

    heard = send_from_one(
        linked, inner(source, destination, b"wrong"), inner("10.100.15.2", "10.100.20.2", b"right")
    )

    assert heard == b"right"
    wait_counted(two, {outcome: 1, Outcome.DECAPSULATED: 1, Outcome.DELIVERED: 1})


def test_a_refused_sender_is_remembered_with_its_latest_packet(linked, send_from_one):
    one, two = linked
    third = replace(one.peer(), subnet=IPv4Network("10.100.30.0/24"), address=IPv4Address("10.9.0.30"))
    two.heal(two.plan(one.peer(), third))

    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    send_from_one(
        linked,
        inner("10.100.30.2", "10.100.20.2", b"another's"),
        inner("10.100.30.9", "10.100.20.3", b"another's"),
        inner("10.100.15.2", "10.100.99.2", b"foreign"),
        inner("10.100.15.2", "10.100.20.2", b"right"),
    )

    wait_counted(
        two,
        {Outcome.IMPOSTOR: 2, Outcome.NOT_OURS: 1, Outcome.DECAPSULATED: 1, Outcome.DELIVERED: 1},
    )
    found = two.strangers()
    assert all(0 < one.age_s <= time.clock_gettime(time.CLOCK_BOOTTIME) - before for one in found)
    assert [replace(one, age_s=0) for one in found] == [
        Stranger(
            address=IPv4Address(one.address),
            reason="impostor",
            packets=2,
            age_s=0,
            inner_source=IPv4Address("10.100.30.9"),
            inner_destination=IPv4Address("10.100.20.3"),
        ),
        Stranger(
            address=IPv4Address(one.address),
            reason="not_ours",
            packets=1,
            age_s=0,
            inner_source=IPv4Address("10.100.15.2"),
            inner_destination=IPv4Address("10.100.99.2"),
        ),
    ]


def test_only_the_latest_of_many_strangers_are_remembered(linked, send_from_one, open_socket):
    one, two = linked
    addresses = [f"10.9.{second}.{last}" for second in range(1, 9) for last in range(1, 251)]
    wrong = inner("10.100.15.2", "10.100.20.2", b"wrong")

    with open_socket(one.namespace, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number, address in enumerate(addresses, start=1):
            raw.sendto(outer(address, two.address, wrong), (two.address, 0))
            if number % 500 == 0:  # the kernel queues no more than a thousand
                wait_counted(two, {Outcome.IMPOSTOR: number})
    send_from_one(linked, inner("10.100.15.2", "10.100.20.2", b"right"))

    wait_counted(two, {Outcome.IMPOSTOR: len(addresses), Outcome.DECAPSULATED: 1, Outcome.DELIVERED: 1})
    remembered = {str(stranger.address) for stranger in two.strangers()}
    assert addresses[-1] in remembered
    assert 0 < len(remembered) <= 1024


def test_a_datagram_longer_than_its_packet_is_left_to_user_space(relayed, send_from_one):
    """The original never sends datagrams that are longer than the packet, but accepts them: bytes after the
    packet are padding.
    """
    two = relayed[1]
    before = two.forwarder_counters()["received_packets"]

    heard = send_from_one(relayed, inner("10.100.15.2", "10.100.20.2", b"padded") + bytes(3))

    assert heard == b"padded"
    assert two.counts()[Outcome.LEFT_INCONSISTENT] == 1
    wait_until(
        lambda: two.forwarder_counters()["received_packets"] > before,
        what="the forwarder counts it",
        deadline_s=DEADLINE_S,
    )


def test_a_datagram_shorter_than_its_packet_is_dropped(relayed, send_from_one):
    two = relayed[1]
    whole = inner("10.100.15.2", "10.100.20.2", b"whole")

    heard = send_from_one(relayed, inner("10.100.15.2", "10.100.20.2", b"cut off")[:-3], whole)

    assert heard == b"whole"
    wait_until(
        lambda: two.forwarder_counters()["dropped_in_inconsistent"] == 1,
        what="the forwarder counts it",
        deadline_s=DEADLINE_S,
    )
    assert two.counts()[Outcome.LEFT_INCONSISTENT] == 1


@pytest.mark.parametrize("fragment", [0x2000, 0x0001])
def test_a_fragment_is_left_to_user_space(linked, send_from_one, fragment):
    two = linked[1]

    heard = send_from_one(
        linked,
        inner("10.100.15.2", "10.100.20.2", b"a part", fragment),
        inner("10.100.15.2", "10.100.20.2", b"whole"),
    )

    assert heard == b"whole"
    wait_counted(two, {Outcome.LEFT_FRAGMENT: 1, Outcome.DECAPSULATED: 1, Outcome.DELIVERED: 1})


@pytest.mark.parametrize("fragment", [0x2000, 0x0001])
def test_a_fragment_of_a_datagram_is_left_to_the_kernel(linked, send_from_one, open_socket, fragment):
    """Only the kernel reassembles fragments. A later fragment contains data at the place of a header."""
    one, two = linked
    part = outer(one.address, two.address, inner("10.100.15.2", "10.100.20.2", b"a part"), fragment)

    with open_socket(one.namespace, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(part, (two.address, 0))
    heard = send_from_one(linked, inner("10.100.15.2", "10.100.20.2", b"whole"))

    assert heard == b"whole"
    wait_counted(two, {Outcome.DECAPSULATED: 1, Outcome.DELIVERED: 1})


@pytest.mark.parametrize(("address", "port"), [("10.9.0.20", PORT), ("10.9.0.21", 8285)])
def test_other_datagrams_of_the_underlay_are_not_touched(linked, open_socket, address, port):
    """These datagrams have another port, or another address of the host, which may belong to another
    tunnel.
    """
    one, two = linked
    two.namespace.ip("address add 10.9.0.21/24 dev eth0")
    with (
        open_socket(one.namespace, socket.SOCK_DGRAM) as sender,
        open_socket(two.namespace, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind((address, port))
        sender.sendto(inner("10.100.15.2", "10.100.20.2", b"not this tunnel's"), (address, port))

        assert listener.recv(2000).endswith(b"not this tunnel's")

    assert two.counts() == {}


@pytest.mark.parametrize(
    ("mac", "tag"),
    [("02:00:00:00:00:99", b""), ("ff:ff:ff:ff:ff:ff", b""), (None, b"\x81\x00\x00\x05")],
    ids=["another host", "all hosts", "another VLAN"],
)
def test_a_frame_that_is_not_for_this_host_is_left_to_the_kernel(linked, send_from_one, mac, tag):
    """A promiscuous network card, for example because of a sniffer, receives all frames."""
    one, two = linked
    own = json.loads(two.namespace.ip("-json link show eth0"))[0]["address"]
    packet = outer(one.address, two.address, inner("10.100.15.2", "10.100.20.2", b"foreign"))
    ends = bytes.fromhex((mac or own).replace(":", "")) + bytes.fromhex("020000000001")

    async def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            wire.send(ends + tag + b"\x08\x00" + packet)

    one.namespace.run(send)
    heard = send_from_one(linked, inner("10.100.15.2", "10.100.20.2", b"right"))

    assert heard == b"right"
    wait_counted(two, {Outcome.DECAPSULATED: 1, Outcome.DELIVERED: 1})
