"""From the device to the peers: packets are read one by one and sent in runs."""

import os
from typing import TypeAlias

from pyflannel.datapath.counters import Counters
from pyflannel.datapath.device_writer import DeviceWriter
from pyflannel.datapath.forwarding import Drop, outbound
from pyflannel.datapath.icmp_errors import IcmpErrors
from pyflannel.datapath.peer_table import Endpoint, PeerTable
from pyflannel.datapath.tun import Tun
from pyflannel.datapath.underlay_sender import LONGEST_RUN_OCTETS, LONGEST_RUN_PACKETS, UnderlaySender

Buffer: TypeAlias = bytearray | memoryview

_ROUND = 64
"""Packets of a round, before the other direction and the control socket have their turn."""


class OutboundPath:
    """Slots as long as the MTU, side by side: a run of the longest packets lies in one piece."""

    def __init__(
        self,
        mtu: int,
        peers: PeerTable,
        sender: UnderlaySender,
        writer: DeviceWriter,
        errors: IcmpErrors,
        counters: Counters,
    ) -> None:
        self._mtu = mtu
        self._peers = peers
        self._sender = sender
        self._writer = writer
        self._errors = errors
        self._counters = counters
        self._buffer = bytearray(_ROUND * mtu)
        self._view = memoryview(self._buffer)
        # An octet more than a slot, so that a packet longer than the MTU is seen as such, and not cut.
        too_long = bytearray(1)
        slots = [self._view[at : at + mtu] for at in range(0, _ROUND * mtu, mtu)]
        header = bytearray(Tun.HEADER_OCTETS)
        self._bare_slots: list[list[Buffer]] = [[slot, too_long] for slot in slots]
        self._slots: list[list[Buffer]] = [[header, slot, too_long] for slot in slots]

    def relay(self, tun: Tun) -> bool:
        """Send on what the device has, a round at most; return False when the device is gone."""
        descriptor, header_octets, read = tun.descriptor, tun.header_octets, os.readv
        buffer, mtu, peers = self._buffer, self._mtu, self._peers
        run: list[int] = []
        run_size = last_size = most = 0
        endpoint: Endpoint = ("", 0)
        is_there = True
        at = 0
        for slot in self._slots if header_octets else self._bare_slots:
            try:
                size = read(descriptor, slot) - header_octets
            except BlockingIOError:
                break
            except OSError:
                is_there = False
                break
            verdict = outbound(buffer, at, size, peers, mtu)
            # A run ends with its first shorter packet, as UDP_SEGMENT cuts it.
            if verdict is endpoint and last_size == run_size >= size and len(run) < most:
                run.append(at)
                last_size = size
            elif isinstance(verdict, Drop):
                self._drop(verdict, at, size)
            else:
                if run:
                    self._send(run, run_size, last_size, endpoint)
                run, endpoint = [at], verdict
                run_size = last_size = size
                most = min(LONGEST_RUN_PACKETS, LONGEST_RUN_OCTETS // size)
            at += mtu
        if run:
            self._send(run, run_size, last_size, endpoint)
        return is_there

    def _send(self, run: list[int], size: int, last_size: int, endpoint: Endpoint) -> None:
        view, first, last = self._view, run[0], run[-1]
        if size == self._mtu and last - first == (len(run) - 1) * size:
            buffers = [view[first : last + last_size]]
        else:
            buffers = [view[at : at + size] for at in run[:-1]]
            buffers.append(view[last : last + last_size])
        self._sender.send_run(buffers, size, endpoint)

    def _drop(self, drop: Drop, at: int, size: int) -> None:
        self._counters.count_dropped_out(drop)
        error = None
        if drop is Drop.NO_ROUTE:
            error = self._errors.unreachable(self._buffer[at : at + size], size)
        elif drop is Drop.EXPIRED:
            error = self._errors.time_exceeded(self._buffer[at : at + size], size)
        if error is not None:
            self._writer.write_own(error)
