"""Runs of TCP segments that are written in one call, and that the kernel splits into identical segments.

The kernel splits a run by copying its headers (tcp_gso_segment, inet_gso_segment). The kernel increments
sequence number and IP identification, computes lengths and checksums, and sets PSH only in the last segment.
Therefore a run contains only segments without other differences. All checksums in a run must be correct,
because the kernel would replace wrong checksums.
"""

from functools import lru_cache
from struct import Struct
from typing import Any

from pyflannel.wire.packet import HEADER_BYTES, PROTOCOL_TCP, checksum, decrement_ttl

_FIELDS = "IHIH12sIQH"
_HEADERS = Struct("!" + _FIELDS)
"""First word (version, TOS, total length), identification, the four bytes after it (flags and fragment
offset, TTL, protocol), checksum, flow (addresses and ports), sequence number, state (acknowledgement, header
length, flags, window), checksum (RFC 791 section 3.1, RFC 9293 section 3.1)."""

_SHORTEST_BYTES = 40
"""Length in bytes of the IP and TCP headers without options: the fields of _HEADERS, and the urgent
pointer."""

_LENGTH = Struct("!H")

_UNDIVIDED = 0xBFFF << 16
"""All bits of the IP flags and fragment offset except "don't fragment"."""

_ONE_HOP = 1 << 8
"""The value that a TTL of 1 has in the word that contains it."""

_CONTROL = 0x0FFF << 16
_ACK = 0x0010 << 16
_PSH = 0x0008 << 16
"""Bits in the word of the TCP state: all bits except header length and window; the flag ACK; the flag PSH."""

_HEADER_LENGTH_SHIFT = 28
_NEVER_COMPUTED = 0xFFFF
"""A checksum of 0xFFFF, which is equivalent to 0. The kernel writes 0 instead of 0xFFFF."""

_LONGEST_BYTES = 65535
_FEWEST_AT_ONCE = 4
_CHUNK_BYTES = 4096
"""Length in bytes of the parts of a run that are added as large numbers for a checksum. The length is even,
and was the fastest in measurements."""


class TcpRun:
    """Consecutive segments of one flow in the receive buffer. The segments are not copied.

    Attributes:
        starts: offset of each segment; empty between two runs.
        size_bytes: sum of the lengths of the segments, including their headers.
    """

    def __init__(self, buffer: bytearray) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)
        self.starts: list[int] = []
        self.size_bytes = 0
        self._size = self._last_size = self._header_bytes = self._identity = self._sequence = 0
        self._first = self._middle = self._state = 0
        self._flow = self._rest = b""
        self._room = 0

    def start(self, at: int, size: int) -> bool:
        """Begin a run with a packet, whose TTL was decremented. Return False if no other packet may follow.

        The packet has a header of 20 bytes or more, and a length of `size` bytes.
        """
        buffer = self._buffer
        if buffer[at] != 0x45 or buffer[at + 9] != PROTOCOL_TCP or size <= _SHORTEST_BYTES:
            return False
        first, identity, middle, ip_sum, flow, sequence, state, tcp_sum = _HEADERS.unpack_from(buffer, at)
        header_bytes = HEADER_BYTES + (state >> _HEADER_LENGTH_SHIFT & 0xF) * 4
        if (
            first & 0xFFFF != size
            or middle & _UNDIVIDED
            or state & _CONTROL != _ACK
            or not _SHORTEST_BYTES <= header_bytes < size
            or ip_sum == _NEVER_COMPUTED
            or tcp_sum == _NEVER_COMPUTED
        ):
            return False
        self.starts.append(at)
        self.size_bytes = self._size = self._last_size = size
        self._header_bytes = header_bytes
        self._identity = (identity + 1) & 0xFFFF
        self._sequence = (sequence + size - header_bytes) & 0xFFFFFFFF
        self._first, self._middle = first - size, middle + _ONE_HOP
        self._flow, self._state = flow, state
        self._rest = bytes(buffer[at + _HEADERS.size : at + header_bytes])
        self._room = _LONGEST_BYTES - size
        return True

    def extend(self, at: int, size: int) -> bool:
        """Append the unchanged packet and return True, or return False if it does not continue the run.

        An appended packet has the same verdict as the run's first packet: it has the same addresses and TTL,
        is not longer, and its length is consistent.
        """
        payload = size - self._header_bytes
        if not 0 < payload <= self._room or size > self._size:
            return False
        first, identity, middle, ip_sum, flow, sequence, state, tcp_sum = _HEADERS.unpack_from(
            self._buffer, at
        )
        if (
            sequence != self._sequence
            or flow != self._flow
            or state & ~_PSH != self._state
            or first != self._first + size
            or identity != self._identity
            or middle != self._middle
            or ip_sum == _NEVER_COMPUTED
            or tcp_sum == _NEVER_COMPUTED
            or self._buffer[at + _HEADERS.size : at + self._header_bytes] != self._rest
        ):
            return False
        self.starts.append(at)
        self.size_bytes += size
        self._last_size = size
        self._identity = (identity + 1) & 0xFFFF
        self._sequence = (sequence + payload) & 0xFFFFFFFF
        # The last segment of a run is shorter than the others, or has PSH.
        self._room = 0 if size < self._size or state & _PSH else self._room - payload
        return True

    def extend_all(self, at: int, size: int, count: int) -> int:
        """Append some of `count` adjacent packets of `size` bytes, and return their number.

        If the number is 0, the first packet may still continue the run. This method checks all packets at
        once, field by field, which takes a quarter of the time of `extend`. If not all packets continue the
        run, the method checks fewer packets.
        """
        payload = size - self._header_bytes
        count = min(count, self._room // payload) if size == self._size else 0
        if count < _FEWEST_AT_ONCE:
            return 0
        fields = _layout(size, self._header_bytes, count).unpack_from(self._buffer, at)
        states = fields[6::9]
        if (pushed := self._state | _PSH) in states:
            count = states.index(pushed) + 1
        while count >= _FEWEST_AT_ONCE:
            if self._is_continued_by(fields[: count * 9], size, count, payload):
                break
            count //= 2
        else:
            return 0
        self.starts.extend(range(at, at + count * size, size))
        self.size_bytes += count * size
        self._last_size = size
        self._identity = (self._identity + count) & 0xFFFF
        self._sequence = (self._sequence + count * payload) & 0xFFFFFFFF
        self._room = 0 if states[count - 1] & _PSH else self._room - count * payload
        return count

    def _is_continued_by(self, fields: tuple[Any, ...], size: int, count: int, payload: int) -> bool:
        """Return whether this number of packets continues the run. The last packet may have PSH."""
        return (
            fields[0::9].count(self._first + size) == count
            and fields[1::9] == tuple(range(self._identity, self._identity + count))
            and fields[2::9].count(self._middle) == count
            and _NEVER_COMPUTED not in fields[3::9]
            and fields[4::9].count(self._flow) == count
            and fields[5::9] == tuple(range(self._sequence, self._sequence + count * payload, payload))
            and fields[6:-9:9].count(self._state) == count - 1
            and fields[-3] & ~_PSH == self._state
            and _NEVER_COMPUTED not in fields[7::9]
            and fields[8::9].count(self._rest) == count
        )

    def clear(self) -> None:
        """Remove all segments."""
        self.starts.clear()
        self._room = 0

    def packets(self) -> list[tuple[int, int]]:
        """Return offset and size of each segment, with the TTL decremented, so that the caller can write
        them singly.
        """
        for at in self.starts[1:]:
            decrement_ttl(self._buffer, at)
        sizes = [self._size] * (len(self.starts) - 1) + [self._last_size]
        return list(zip(self.starts, sizes, strict=True))

    def has_true_checksums(self) -> bool:
        """Return whether the checksums of all headers and payloads are correct.

        One sum over the whole run detects an error as reliably as single sums. Modulo 65535, the sum of an IP
        header is 0, and the sum of a segment is the negated sum of its pseudo header.
        """
        total = sum(int.from_bytes(self._view[start:end], "little") for start, end in self._chunks())
        count = len(self.starts)
        pseudo = (self._addresses + PROTOCOL_TCP - HEADER_BYTES) * count + self.size_bytes
        # Modulo 65535, a factor of 256 swaps the bytes of a word. Numbers in the byte order of the host are
        # faster.
        return (total * 256 + pseudo) % 65535 == 0

    def merged(self) -> tuple[bytearray, list[memoryview], int]:
        """Return headers, payloads and payload length of a segment, so that the caller can write the whole
        run in one call.

        The TCP checksum covers only the pseudo header. The kernel adds the sum of the payload.
        """
        at, length, view = self.starts[0], self._header_bytes, self._view
        header = self._buffer[at : at + length]
        total = self.size_bytes - length * (len(self.starts) - 1)
        _LENGTH.pack_into(header, 2, total)
        _LENGTH.pack_into(header, 10, 0)
        _LENGTH.pack_into(header, 10, checksum(header[:HEADER_BYTES]))
        tcp_bytes = total - HEADER_BYTES
        _LENGTH.pack_into(header, 36, (self._addresses + PROTOCOL_TCP + tcp_bytes) % 65535)
        last = self.starts[-1]
        header[33] = self._buffer[last + 33]
        end = self._size
        payloads = [view[start + length : start + end] for start in self.starts[:-1]]
        payloads.append(view[last + length : last + self._last_size])
        return header, payloads, self._size - length

    @property
    def _addresses(self) -> int:
        return int.from_bytes(self._flow[:8], "big")

    def _chunks(self) -> list[tuple[int, int]]:
        """Return the parts of the buffer that contain the run. The words of each part are aligned to the
        words of a packet.
        """
        first, last, size = self.starts[0], self.starts[-1], self._size
        if size % 2 == 0 and last - first == (len(self.starts) - 1) * size:
            spans = [(first, last + self._last_size)]
        else:
            spans = [(start, start + size) for start in self.starts[:-1]]
            spans.append((last, last + self._last_size))
        return [
            (piece, min(piece + _CHUNK_BYTES, end))
            for start, end in spans
            for piece in range(start, end, _CHUNK_BYTES)
        ]


@lru_cache(maxsize=256)
def _layout(size: int, header_bytes: int, count: int) -> Struct:
    """Return the layout of this number of adjacent packets: fields of _HEADERS and the rest of the header."""
    rest = header_bytes - _HEADERS.size
    return Struct("!" + f"{_FIELDS}{rest}s{size - header_bytes}x" * count)
