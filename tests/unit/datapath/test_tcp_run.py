"""Runs of TCP segments: if the kernel cuts a joined packet again, the packets are the same."""

from itertools import takewhile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from pyflannel.datapath.tcp_run import TcpRun
from pyflannel.wire.packet import HEADER, decrement_ttl

ACK, PSH = 0x10, 0x08
TIMESTAMPS = bytes.fromhex("0101080a0000000100000002")


class Segment(Struct, frozen=True, kw_only=True):
    """A TCP segment in an IPv4 packet. Each field can be set. The checksums are correct unless changed."""

    payload: bytes
    sequence: int = 1000
    identity: int = 7
    tos: int = 0
    fragment: int = 0x4000
    ttl: int = 63
    protocol: int = 6
    source: int = 0x0A640209
    destination: int = 0x0A640109
    ip_options: bytes = b""
    ports: bytes = bytes.fromhex("1f901f91")
    acknowledgement: int = 5
    flags: int = ACK
    window: int = 500
    urgent: int = 0
    options: bytes = TIMESTAMPS
    changed: tuple[tuple[int, int], ...] = ()

    def packet(self) -> bytes:
        offset_and_flags = (5 + len(self.options) // 4) << 12 | self.flags
        tcp = bytearray(
            self.ports
            + self.sequence.to_bytes(4, "big")
            + self.acknowledgement.to_bytes(4, "big")
            + offset_and_flags.to_bytes(2, "big")
            + self.window.to_bytes(2, "big")
            + bytes(2)
            + self.urgent.to_bytes(2, "big")
            + self.options
            + self.payload
        )
        pseudo = self.source.to_bytes(4, "big") + self.destination.to_bytes(4, "big")
        pseudo += bytes([0, self.protocol]) + len(tcp).to_bytes(2, "big")
        tcp[16:18] = internet_checksum(pseudo + tcp)
        words = 5 + len(self.ip_options) // 4
        ip = bytearray(
            HEADER.pack(
                *(0x40 | words, self.tos, words * 4 + len(tcp), self.identity, self.fragment),
                *(self.ttl, self.protocol, 0, self.source, self.destination),
            )
            + self.ip_options
        )
        ip[10:12] = internet_checksum(ip)
        data = ip + tcp
        for at, value in self.changed:
            data[at % len(data)] = value
        return bytes(data)


def internet_checksum(data: bytes) -> bytes:
    """Return the checksum of RFC 1071, added up word by word."""
    data = bytes(data) + b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def kernel_segments(packet: bytes, payload_bytes: int) -> list[bytes]:
    """Cut a merged packet as tcp_gso_segment and inet_gso_segment do (Linux 6.1, net/ipv4)."""
    header_bytes = 20 + (packet[32] >> 4) * 4
    header, payload = packet[:header_bytes], packet[header_bytes:]
    pieces = [payload[at : at + payload_bytes] for at in range(0, len(payload), payload_bytes)]
    segments = []
    for number, piece in enumerate(pieces):
        cut = bytearray(header + piece)
        cut[2:4] = len(cut).to_bytes(2, "big")
        cut[4:6] = ((int.from_bytes(header[4:6], "big") + number) & 0xFFFF).to_bytes(2, "big")
        sequence = int.from_bytes(header[24:28], "big") + number * payload_bytes
        cut[24:28] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
        if number < len(pieces) - 1:
            cut[33] &= ~0x09  # FIN and PSH
        if number > 0:
            cut[33] &= ~0x80  # CWR
        cut[10:12] = cut[36:38] = bytes(2)
        cut[10:12] = internet_checksum(cut[:20])
        pseudo = bytes(cut[12:20]) + b"\0\x06" + (len(cut) - 20).to_bytes(2, "big")
        cut[36:38] = internet_checksum(pseudo + cut[20:])
        segments.append(bytes(cut))
    return segments


def through(packets: list[bytes], *, at_once: bool = True) -> tuple[list[bytes], int]:
    """Return the packets as the device's kernel sees them after it cut the runs, and the number of writes."""
    buffer = bytearray(b"".join(packets))
    run, written, writes, at = TcpRun(buffer), [], 0, 0

    def flush() -> None:
        nonlocal writes
        if len(run.starts) > 1 and run.has_true_checksums():
            header, payloads, payload_bytes = run.merged()
            written.extend(kernel_segments(bytes(header) + b"".join(payloads), payload_bytes))
            writes += 1
        else:
            written.extend(bytes(buffer[start : start + size]) for start, size in run.packets())
            writes += len(run.starts)
        run.clear()

    skipped = 0
    for number, packet in enumerate(packets):
        size = len(packet)
        if skipped:
            skipped -= 1
            at += size
            continue
        if run.starts:
            alike = len(list(takewhile(lambda other, size=size: len(other) == size, packets[number:])))
            if at_once and (taken := run.extend_all(at, size, alike)):
                skipped = taken - 1
                at += size
                continue
            if run.extend(at, size):
                at += size
                continue
            flush()
        decrement_ttl(buffer, at)
        if not run.start(at, size):
            written.append(bytes(buffer[at : at + size]))
            writes += 1
        at += size
    if run.starts:
        flush()
    return written, writes


def one_by_one(packets: list[bytes]) -> list[bytes]:
    """Return the bytes that a loop without joining writes."""
    written = [bytearray(packet) for packet in packets]
    for packet in written:
        decrement_ttl(packet)
    return [bytes(packet) for packet in written]


def burst(count: int, size: int = 100, last: int | None = None, **fields) -> list[Segment]:
    """Return segments of one flow, as the kernel of a sender creates them."""
    first = Segment(payload=(bytes(range(251)) * 6)[:size], **fields)
    made = [
        replace(
            first,
            sequence=(first.sequence + number * size) & 0xFFFFFFFF,
            identity=(first.identity + number) & 0xFFFF,
        )
        for number in range(count)
    ]
    if last is not None:
        made[-1] = replace(made[-1], payload=bytes(last), flags=ACK | PSH)
    return made


DEVIATIONS = {
    "gap": {"sequence": 1},
    "identity": {"identity": 1},
    "TOS": {"tos": 4},
    "may be fragmented": {"fragment": 0},
    "first fragment": {"fragment": 0x2000},
    "later fragment": {"fragment": 0x0010},
    "reserved bit": {"fragment": 0xC000},
    "TTL": {"ttl": 62},
    "source": {"source": 0x0A640208},
    "destination": {"destination": 0x0A640108},
    "addresses exchanged": {"source": 0x0A640109, "destination": 0x0A640209},
    "PSH": {"flags": ACK | PSH},
    "IP options": {"ip_options": b"\x01\x01\x01\x01"},
    "ports": {"ports": b"\1\2\3\4"},
    "UDP": {"protocol": 17},
    "acknowledgement": {"acknowledgement": 6},
    "SYN": {"flags": 0x12},
    "FIN": {"flags": 0x11},
    "RST": {"flags": 0x14},
    "URG": {"flags": 0x30},
    "ECE": {"flags": 0x50},
    "CWR": {"flags": 0x90},
    "AE": {"flags": 0x110},
    "no ACK": {"flags": 0x00},
    "window": {"window": 501},
    "urgent pointer": {"urgent": 1},
    "options": {"options": b"\1\1\1\1"},
    "other timestamp": {"options": bytes.fromhex("0101080a0000000100000003")},
    "longer": {"payload": bytes(102)},
    "empty": {"payload": b""},
}


@pytest.mark.parametrize("fields", DEVIATIONS.values(), ids=DEVIATIONS)
@pytest.mark.parametrize("place", [0, 2, 5, 9, 19])
def test_a_segment_that_differs_is_not_joined(fields, place):
    """The segment may be at any position of a burst. The bytes of the segment stay, and the other segments
    are joined.
    """
    segments = burst(20)
    segments[place] = replace(segments[place], **fields)
    packets = [segment.packet() for segment in segments]

    written, writes = through(packets)

    assert written == one_by_one(packets)
    assert through(packets, at_once=False) == (written, writes)
    assert writes >= 2 or fields == DEVIATIONS["PSH"]  # a packet with PSH may end a run


@pytest.mark.parametrize(
    ("segments", "writes"),
    [
        (burst(1), 1),
        (burst(44, 1420), 1),
        (burst(44, 1420, last=3), 1),
        (burst(7, 101, last=1), 1),
        (burst(7, 101), 1),
        (burst(5, sequence=0xFFFFFFFF - 150), 1),
        (burst(5, identity=0xFFFE), 1),
        (burst(3, options=b""), 1),
        (burst(3, flags=ACK | PSH), 3),
        (burst(3, last=1) + burst(3, sequence=1201, identity=10), 2),
        (burst(50, 1420), 2),
    ],
)
def test_a_burst_of_one_flow_is_one_write(segments, writes):
    """A run has up to 64 KiB, ends with PSH or a shorter segment, and its sequence numbers may wrap."""
    packets = [segment.packet() for segment in segments]

    assert through(packets) == (one_by_one(packets), writes)
    assert through(packets, at_once=False) == (one_by_one(packets), writes)


@pytest.mark.parametrize(
    "name",
    [
        "first fragment",
        "later fragment",
        "reserved bit",
        "IP options",
        "UDP",
        "SYN",
        "FIN",
        "RST",
        "CWR",
        "PSH",
    ],
)
def test_packets_that_are_never_joined_stay_single(name):
    """Packets that cannot be joined stay single even if all packets of the burst are equal."""
    packets = [replace(segment, **DEVIATIONS[name]).packet() for segment in burst(3)]

    assert through(packets) == (one_by_one(packets), 3)


def test_a_shorter_segment_is_the_last():
    """The next segment of the flow begins another run."""
    sizes, sequence, packets = [100, 100, 50, 100, 100], 1000, []
    for number, size in enumerate(sizes):
        packets.append(Segment(payload=bytes(size), sequence=sequence, identity=number).packet())
        sequence += size

    assert through(packets) == (one_by_one(packets), 2)


@pytest.mark.parametrize("at", [4, 8, 10, 11, 36, 37, 45, 60, -1])
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("size", [100, 101])
def test_a_wrong_checksum_is_never_corrected(at, place, size):
    """Only the receiver checks a damaged segment, as without joining."""
    segments = burst(4, size)
    value = segments[place].packet()[at]
    segments[place] = replace(segments[place], changed=((at, value ^ 0x55),))
    packets = [segment.packet() for segment in segments]

    written, _ = through(packets)

    assert written == one_by_one(packets)


def test_both_forms_of_a_zero_checksum_are_kept():
    """0xffff means the same as 0, but the kernel writes 0. A packet with 0xffff is sent alone."""
    segments = burst(3)
    for filler in range(0x10000):
        candidate = replace(segments[1], payload=filler.to_bytes(2, "big") + bytes(98))
        if candidate.packet()[36:38] == b"\0\0":
            segments[1] = replace(candidate, changed=((36, 0xFF), (37, 0xFF)))
            break
    packets = [segment.packet() for segment in segments]

    written, writes = through(packets)

    assert packets[1][36:38] == b"\xff\xff"
    assert (written, writes) == (one_by_one(packets), 3)


@st.composite
def streams(draw: st.DrawFn) -> list[Segment]:
    """Return bursts of one or two flows, with any deviations, in slightly changed order."""
    made: list[Segment] = []
    for _ in range(draw(st.integers(1, 4))):
        flow = {"ports": draw(st.sampled_from([b"\1\2\3\4", b"\1\2\3\5"]))}
        made += burst(
            draw(st.integers(1, 12)),
            draw(st.sampled_from([1, 2, 99, 100])),
            draw(st.sampled_from([None, 1, 98])),
            sequence=draw(st.sampled_from([1000, 0xFFFFFFF0])),
            **flow,
        )
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(made) - 1))
        fields = draw(st.sampled_from(list(DEVIATIONS.values())))
        made[place] = replace(made[place], **fields)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(made) - 1))
        changed = draw(st.tuples(st.integers(0, 150).filter(lambda at: at != 8), st.integers(0, 255)))
        made[place] = replace(made[place], changed=(changed,))
    return made


@given(streams())
@example(burst(2, 1) + burst(2, 1))
def test_cutting_undoes_joining(segments):
    """For any packets, the stack receives the same bytes as without joining."""
    packets = [segment.packet() for segment in segments]

    assert through(packets)[0] == one_by_one(packets)
    assert through(packets) == through(packets, at_once=False)
