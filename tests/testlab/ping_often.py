"""Pings an address at a short interval, with the output of `ping -n -D`.

If its interval is shorter than 10 ms, the program ping polls without a pause, so that each stream needs a
whole processor. This program sleeps between its packets.
"""

import argparse
import contextlib
import itertools
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address

_ECHO = {4: (8, 0), 6: (128, 129)}  # types of a request and of an answer, by family
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h
_SO_RCVBUFFORCE = 33
_RECEIVED_AT_ONCE = 1 << 22  # bytes: room for the answers that a paused path releases at once
_PAYLOAD = bytes(40)


def _opened(family: int, source: str | None) -> socket.socket:
    """Return a socket that receives each answer with the time of its arrival."""
    kinds = {4: (socket.AF_INET, socket.IPPROTO_ICMP), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6)}
    opened = socket.socket(kinds[family][0], socket.SOCK_RAW, kinds[family][1])
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVED_AT_ONCE)
    opened.setblocking(False)
    if source is not None:
        opened.bind((source, 0))
    return opened


def _request(family: int, identity: int, number: int) -> bytes:
    """Return a request with the time at which it is sent. The kernel computes the checksum of ICMPv6."""
    body = struct.pack("!HHd", identity, number, time.time()) + _PAYLOAD
    kind = _ECHO[family][0]
    total = (kind << 8) + sum(struct.unpack(f"!{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBH", kind, 0, ~(total + (total >> 16)) & 0xFFFF) + body


def _answers(opened: socket.socket, family: int, identity: int) -> Iterator[tuple[int, float, float]]:
    """Yield number, time of arrival and time of sending of the answers so far."""
    while True:
        try:
            packet, ancillary, _, _ = opened.recvmsg(2048, 64)
        except BlockingIOError:
            return
        if family == 4:
            packet = packet[(packet[0] & 15) * 4 :]
        if len(packet) >= 16 and packet[0] == _ECHO[family][1]:
            found, number, sent_at = struct.unpack("!HHd", packet[4:16])
            if found == identity:
                seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
                yield number, seconds + nanoseconds / 1e9, sent_at


class Stream:
    """Requests to one address, and the answers to them."""

    def __init__(self, destination: str, source: str | None) -> None:
        self._destination = destination
        self._family, self._identity = ip_address(destination).version, os.getpid() & 0xFFFF
        self._socket = _opened(self._family, source)
        self.answered: set[int] = set()

    def send(self, number: int) -> None:
        """Send a request as soon as the queue of the kernel has room. The request is lost if, for example,
        there is no route.
        """
        request = _request(self._family, self._identity, number & 0xFFFF)
        with contextlib.suppress(OSError):
            while not self._is_sent(request):
                select.select([], [self._socket], [])

    def _is_sent(self, request: bytes) -> bool:
        try:
            self._socket.sendto(request, (self._destination, 0))
        except BlockingIOError:
            return False
        return True

    def receive(self, end: float, most: float = math.inf) -> None:
        """Print the answers until this time, or until this number of requests was answered."""
        while len(self.answered) < most and (left_s := end - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left_s)[0]:
                continue
            for number, at, sent_at in _answers(self._socket, self._family, self._identity):
                self.answered.add(number)
                took_ms = max(0.0, at - sent_at) * 1e3
                said = f"64 bytes from {self._destination}: icmp_seq={number} ttl=64 time={took_ms:.3f} ms"
                os.write(1, f"[{at:.6f}] {said}\n".encode())


def _ping(destination: str, interval_s: float, source: str | None, count: int | None, wait_s: float) -> None:
    """Send requests until the end, or this number of requests; then wait for the answers to all of them."""
    stream = Stream(destination, source)
    next_at = time.monotonic()
    for number in itertools.count(1) if count is None else range(1, count + 1):
        stream.receive(next_at)
        stream.send(number)
        next_at = max(next_at + interval_s, time.monotonic())
    if count is not None:
        stream.receive(next_at + wait_s, most=count)
        print(f"{count} packets transmitted, {len(stream.answered)} received")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: sys.exit())
    parser = argparse.ArgumentParser()
    parser.add_argument("destination")
    parser.add_argument("-i", dest="interval_s", type=float, required=True)
    parser.add_argument("-I", dest="source")
    parser.add_argument("-c", dest="count", type=int)
    parser.add_argument("-W", dest="wait_s", type=float, default=10.0)
    _ping(**vars(parser.parse_args()))
