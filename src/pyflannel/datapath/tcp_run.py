"""Runs of TCP segments that the kernel takes in one write, and cuts again into the very same octets.

The kernel cuts a run by copying its headers (tcp_gso_segment, inet_gso_segment): sequence number and IP
identification count up, lengths and checksums are computed, PSH stays on the last segment alone. So only
segments that differ in nothing else may be one run, and only true checksums, which the kernel would otherwise
mend.
"""

from itertools import repeat
from struct import Struct

from pyflannel.wire.packet import HEADER_OCTETS, PROTOCOL_TCP, checksum, decrement_ttl

_HEADERS = Struct("!IHIHQIIQHH")
"""First word (version, TOS, total length), identification, the four octets after it (flags and fragment
offset, TTL, protocol), checksum, both addresses; ports, sequence number, state (acknowledgement, header
length, flags, window), checksum, urgent pointer (RFC 791 section 3.1, RFC 9293 section 3.1)."""

_LENGTH = Struct("!H")

_UNDIVIDED = 0xBFFF << 16
"""All bits of the IP flags and fragment offset but "don't fragment"."""

_ONE_HOP = 1 << 8
"""The TTL's unit in the word that holds it."""

_CONTROL = 0x0FFF << 16
_ACK = 0x0010 << 16
_PSH = 0x0008 << 16
"""In the word of the TCP state: all that is not header length, and its bits."""

_HEADER_LENGTH_SHIFT = 28
_NEVER_COMPUTED = 0xFFFF
"""A checksum that means the same as 0; the kernel writes 0."""

_LONGEST_OCTETS = 65535
_CHUNK_OCTETS = 4096
"""Even; numbers of this length are the quickest to add up."""


class TcpRun:
    """Consecutive segments of one flow, left where they lie in the receive buffer.

    Attributes:
        starts: where each segment starts; empty between two runs.
        octets: sum of the segments' lengths, as packets.
    """

    def __init__(self, buffer: bytearray) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)
        self.starts: list[int] = []
        self.octets = 0
        self._size = self._last_size = self._header_octets = self._identity = self._sequence = 0
        self._first = self._middle = self._addresses = self._ports = self._state = self._urgent = 0
        self._options = b""
        self._room = 0

    def start(self, at: int, size: int) -> bool:
        """Begin with a packet, whose TTL was decremented; return False when no other may follow it.

        The packet has a header of 20 octets or more, and is as long as `size` says.
        """
        buffer = self._buffer
        if buffer[at] != 0x45 or buffer[at + 9] != PROTOCOL_TCP or size <= _HEADERS.size:
            return False
        first, identity, middle, ip_sum, addresses, ports, sequence, state, tcp_sum, urgent = (
            _HEADERS.unpack_from(buffer, at)
        )
        header_octets = HEADER_OCTETS + (state >> _HEADER_LENGTH_SHIFT & 0xF) * 4
        if (
            first & 0xFFFF != size
            or middle & _UNDIVIDED
            or state & _CONTROL != _ACK
            or not _HEADERS.size <= header_octets < size
            or ip_sum == _NEVER_COMPUTED
            or tcp_sum == _NEVER_COMPUTED
        ):
            return False
        self.starts.append(at)
        self.octets = self._size = self._last_size = size
        self._header_octets = header_octets
        self._identity = (identity + 1) & 0xFFFF
        self._sequence = (sequence + size - header_octets) & 0xFFFFFFFF
        self._first, self._middle = first - size, middle + _ONE_HOP
        self._addresses, self._ports, self._state, self._urgent = addresses, ports, state, urgent
        self._options = bytes(buffer[at + _HEADERS.size : at + header_octets])
        self._room = _LONGEST_OCTETS - size
        return True

    def extend(self, at: int, size: int) -> bool:
        """Take the packet as the next one, as it came, or return False.

        What is taken has the verdict of the run's first packet: it has the same addresses and TTL, is not
        longer, and agrees with itself about its length.
        """
        payload = size - self._header_octets
        if not 0 < payload <= self._room or size > self._size:
            return False
        first, identity, middle, ip_sum, addresses, ports, sequence, state, tcp_sum, urgent = (
            _HEADERS.unpack_from(self._buffer, at)
        )
        if (
            sequence != self._sequence
            or ports != self._ports
            or state & ~_PSH != self._state
            or addresses != self._addresses
            or first != self._first + size
            or identity != self._identity
            or middle != self._middle
            or urgent != self._urgent
            or ip_sum == _NEVER_COMPUTED
            or tcp_sum == _NEVER_COMPUTED
            or self._buffer[at + _HEADERS.size : at + self._header_octets] != self._options
        ):
            return False
        self.starts.append(at)
        self.octets += size
        self._last_size = size
        self._identity = (identity + 1) & 0xFFFF
        self._sequence = (sequence + payload) & 0xFFFFFFFF
        # The last one: shorter than the others, or with PSH.
        self._room = 0 if size < self._size or state & _PSH else self._room - payload
        return True

    def clear(self) -> None:
        """Make room for another run."""
        self.starts.clear()
        self._room = 0

    def packets(self) -> list[tuple[int, int]]:
        """Return start and size of each segment, all with the TTL decremented: to write them one by one."""
        for at in self.starts[1:]:
            decrement_ttl(self._buffer, at)
        sizes = [self._size] * (len(self.starts) - 1) + [self._last_size]
        return list(zip(self.starts, sizes, strict=True))

    def has_true_checksums(self) -> bool:
        """Return whether the checksums of all headers and payloads hold.

        They are added up over the whole run, which finds a fault as surely as each of them does: modulo 65535
        the sum of an IP header is 0, and that of a segment is its pseudo header's, negated.
        """
        total = sum(int.from_bytes(self._view[start:end], "little") for start, end in self._chunks())
        count = len(self.starts)
        pseudo = self._addresses % 65535 * count + PROTOCOL_TCP * count + self.octets - HEADER_OCTETS * count
        # 256 swaps the octets of a word, modulo 65535: numbers in our own order are made quicker.
        return (total * 256 + pseudo) % 65535 == 0

    def merged(self) -> tuple[bytearray, list[memoryview], int]:
        """Return headers, payloads and payload octets of a segment, for one write of the whole run.

        The TCP checksum is that of the pseudo header alone: the kernel adds the rest.
        """
        at, length, view = self.starts[0], self._header_octets, self._view
        header = self._buffer[at : at + length]
        total = self.octets - length * (len(self.starts) - 1)
        _LENGTH.pack_into(header, 2, total)
        _LENGTH.pack_into(header, 10, 0)
        _LENGTH.pack_into(header, 10, checksum(header[:HEADER_OCTETS]))
        tcp_octets = total - HEADER_OCTETS
        _LENGTH.pack_into(header, 36, (self._addresses + PROTOCOL_TCP + tcp_octets) % 65535)
        last = self.starts[-1]
        header[33] = self._buffer[last + 33]
        end = self._size
        payloads = [view[start + length : start + end] for start in self.starts[:-1]]
        payloads.append(view[last + length : last + self._last_size])
        return header, payloads, self._size - length

    def _chunks(self) -> list[tuple[int, int]]:
        """Return pieces of the buffer that hold the run, whose words start where a packet's words start."""
        spans: list[tuple[int, int]] = []
        start = end = self.starts[0]
        for at, size in zip(self.starts, repeat(self._size), strict=False):
            if at != end or (end - start) % 2:
                spans.append((start, end))
                start = at
            end = at + size
        spans.append((start, end - self._size + self._last_size))
        return [
            (piece, min(piece + _CHUNK_OCTETS, end))
            for start, end in spans
            for piece in range(start, end, _CHUNK_OCTETS)
        ]
