"""From the peers to the device: datagrams are received many at a time, TCP segments written in runs."""

import struct
from socket import socket

from pyflannel.datapath.counters import Counters
from pyflannel.datapath.device_writer import DeviceWriter
from pyflannel.datapath.forwarding import Drop, inbound
from pyflannel.datapath.icmp_errors import IcmpErrors
from pyflannel.datapath.offload import Offload, Offloads
from pyflannel.datapath.peer_table import PeerTable
from pyflannel.datapath.strangers import GUARDED
from pyflannel.datapath.tcp_run import TcpRun
from pyflannel.datapath.underlay_sender import UnderlaySender
from pyflannel.wire.forwarder_control import Settings
from pyflannel.wire.packet import HEADER, ROUTED

_SOL_UDP = 17
_UDP_GRO = 104
"""linux/udp.h."""

_SIZE = struct.Struct("=i")
_ANCILLARY_OCTETS = 64

_CALLS = 64
"""Calls of a round, before the other direction and the control socket have their turn."""

_LONGEST_OCTETS = 65535
"""Of a datagram, or of several that the kernel joined: one longer than the MTU is seen as such, not cut."""

_BUFFER_OCTETS = 4 * _LONGEST_OCTETS
"""A run lies in it until it is written: more would leave the processor's cache."""


class InboundPath:
    """Every datagram is proven, whatever call brought it; a run ends with the round at the latest."""

    def __init__(
        self,
        settings: Settings,
        udp: socket,
        peers: PeerTable,
        sender: UnderlaySender,
        writer: DeviceWriter,
        errors: IcmpErrors,
        counters: Counters,
        offloads: Offloads,
    ) -> None:
        self._settings = settings
        self._udp = udp
        self._peers = peers
        self._sender = sender
        self._writer = writer
        self._errors = errors
        self._counters = counters
        self._buffer = bytearray(_BUFFER_OCTETS)
        self._view = memoryview(self._buffer)
        self._run = TcpRun(self._buffer)
        self._run_sender = ""
        try:
            udp.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError as error:
            offloads.lack(Offload.JOINED_RECEIVE, error)
        else:
            offloads.use(Offload.JOINED_RECEIVE)

    def relay(self) -> None:
        """Write to the device what peers sent, a round at most."""
        view, receive, counters = self._view, self._udp.recvmsg_into, self._counters
        at = 0
        for _ in range(_CALLS):
            try:
                octets, ancillary, _, sender = receive([view[at:]], _ANCILLARY_OCTETS)
            except BlockingIOError:
                break
            except OSError as error:
                counters.count_failure("receive", error)
                continue
            size = octets
            for level, kind, value in ancillary:
                if level == _SOL_UDP and kind == _UDP_GRO:
                    size = _SIZE.unpack_from(value)[0]
                    counters.batches_received += 1
            self._take(at, at + octets, size, sender[0])
            at += octets
            if at > _BUFFER_OCTETS - _LONGEST_OCTETS:
                break
        self._write_run()

    def _take(self, start: int, end: int, size: int, sender: str) -> None:
        """Write or drop packets of `size` octets each, the last perhaps shorter, that one peer sent."""
        run = self._run
        if sender != self._run_sender:
            self._write_run()
            self._run_sender = sender
        at, is_run_likely = start, True
        while True:
            octets = min(size, end - at)  # 0 for an empty datagram
            if not run.starts:
                self._begin(at, octets, sender)
            elif is_run_likely and octets and (taken := run.extend_all(at, size, (end - at) // size)):
                octets = taken * size
                is_run_likely = False
            elif run.extend(at, octets):
                is_run_likely = len(run.starts) == 2
            else:
                self._write_run()
                self._begin(at, octets, sender)
            at += octets
            if at >= end:
                return

    def _begin(self, at: int, size: int, sender: str) -> None:
        """Judge a packet that continues nothing, and begin a run with it or write it."""
        drop = inbound(self._buffer, at, size, sender, self._peers, self._settings)
        if drop is not None:
            self._drop(drop, at, size, sender)
        elif not self._run.start(at, size):
            self._writer.write(self._view[at : at + size])

    def _write_run(self) -> None:
        if self._run.starts:
            self._writer.write_run(self._run, self._view)
            self._run.clear()

    def _drop(self, drop: Drop, at: int, size: int, sender: str) -> None:
        self._counters.count_dropped_in(drop)
        if drop in GUARDED:
            source, destination = ROUTED.unpack_from(self._buffer, at)[-2:]
            self._counters.strangers.note(sender, drop, source, destination)
        if drop is not Drop.EXPIRED:
            return
        error = self._errors.time_exceeded(self._buffer[at : at + size], size)
        endpoint = self._peers.find(HEADER.unpack_from(self._buffer, at)[8])
        if error is not None and endpoint is not None:
            self._sender.send(error, endpoint)
