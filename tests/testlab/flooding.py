"""Sends the same tunnel packet at the maximum rate, from the host's address and from forged addresses.

    PYTHONPATH=tests python -m testlab.flooding ADDRESS PORT PAYLOAD_IN_HEX SECONDS

One process sends from the host's own address, another process alternately from ten thousand forged addresses.
Both processes use sendmmsg(2).
"""

import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from testlab.forged_packets import datagram

_AT_ONCE = 1000
_FORGED = 10_000
_FIRST_FORGED: Mapping[int, IPv4Address | IPv6Address] = {
    4: IPv4Address("11.0.0.1"),
    6: IPv6Address("fd0b::1"),
}
_APART = 7919
_SOURCE_PORT = 4000


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr. The first seven fields are struct msghdr, which ends at a multiple of eight bytes."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("_padding", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


def send(sock: socket.socket, packets: Sequence[bytes], seconds: float) -> None:
    """Send the packets on a connected socket repeatedly."""
    vectors = (_Vector * len(packets))(*(_Vector(packet, len(packet)) for packet in packets))
    messages = (_Message * len(packets))()
    for message, vector in zip(messages, vectors, strict=True):
        message.vectors, message.vector_count = ctypes.pointer(vector), 1
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.sizeof(_Message)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for first in range(0, len(packets), _AT_ONCE):
            libc.sendmmsg(sock.fileno(), ctypes.byref(messages, first * size), _AT_ONCE, 0)


def forged(address: str, port: int, payload: bytes) -> list[bytes]:
    """Return packets with a datagram; the kernel adds the checksum of an IPv4 header."""
    version = ip_address(address).version
    sources = [_FIRST_FORGED[version] + _APART * number for number in range(_FORGED)]
    if version == 6:
        return [datagram(source, address, port, payload) for source in sources]
    udp = struct.pack("!HHHH", _SOURCE_PORT, port, 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
    return [header + source.packed + IPv4Address(address).packed + udp for source in sources]


def main(address: str, port: int, payload: bytes, seconds: float) -> None:
    """Flood the port of an address for this number of seconds."""
    family = socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
    if os.fork():
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.connect((address, port))
        packets = [payload] * _AT_ONCE
    else:
        sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sock.connect((address, 0))
        packets = forged(address, port, payload)
    send(sock, packets, seconds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3]), float(sys.argv[4]))
