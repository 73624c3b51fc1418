"""From the device to the peers: packets are read one by one and sent in runs."""

from io import FileIO
from struct import Struct

from pyflannel.datapath.counters import Counters
from pyflannel.datapath.device_writer import DeviceWriter
from pyflannel.datapath.forwarding import Drop, outbound
from pyflannel.datapath.icmp_errors import IcmpErrors
from pyflannel.datapath.peer_table import Endpoint, PeerTable
from pyflannel.datapath.tun import Tun
from pyflannel.datapath.underlay_sender import LONGEST_RUN_OCTETS, LONGEST_RUN_PACKETS, UnderlaySender
from pyflannel.wire.packet import TTL_AND_CHECKSUM, TTL_AT, checksum_one_hop_on

_ROUTE = Struct("!I4xBBH4xI")
"""First word (version, header length, TOS, total length), TTL, protocol, checksum, destination."""

_ROUND = 132
"""Packets of a round, before the other direction and the control socket have their turn: three full calls."""


class OutboundPath:
    """A slot for each packet of a round, behind whatever the device puts before it."""

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
        # An octet more than the MTU, so that a longer packet is seen as such, and not cut.
        stride = Tun.HEADER_OCTETS + mtu + 1
        self._buffer = bytearray(_ROUND * stride)
        self._view = memoryview(self._buffer)
        self._slots = [(at, self._view[at : at + stride]) for at in range(0, _ROUND * stride, stride)]

    def relay(self, tun: Tun) -> bool:
        """Send on what the device has, a round at most; return False when the device is gone."""
        read, header_octets = FileIO(tun.descriptor, closefd=False).readinto, tun.header_octets
        buffer, view, mtu, peers = self._buffer, self._view, self._mtu, self._peers
        unpack, patch = _ROUTE.unpack_from, TTL_AND_CHECKSUM.pack_into
        run: list[memoryview] = []
        run_size = room = usual = usual_destination = 0
        endpoint: Endpoint = ("", 0)
        for slot, slot_view in self._slots:
            try:
                size = read(slot_view)
            except OSError:
                self._send(run, run_size, endpoint)
                return False
            if size is None:  # no more for now
                break
            at, size = slot + header_octets, size - header_octets
            if size == run_size and room:
                # The same first word, destination and size get the same verdict, if the TTL allows.
                first, ttl, protocol, old, destination = unpack(buffer, at)
                if first == usual and destination == usual_destination and ttl > 1:
                    patch(buffer, at + TTL_AT, ttl - 1, protocol, checksum_one_hop_on(old))
                    run.append(view[at : at + size])
                    room -= 1
                    continue
            verdict = outbound(buffer, at, size, peers, mtu)
            if isinstance(verdict, Drop):
                self._drop(verdict, at, size)
            elif verdict is endpoint and size <= run_size and room:
                run.append(view[at : at + size])
                # A run ends with its first shorter packet, as UDP_SEGMENT cuts it.
                room = room - 1 if size == run_size else 0
            else:
                self._send(run, run_size, endpoint)
                run, run_size, endpoint = [view[at : at + size]], size, verdict
                room = min(LONGEST_RUN_PACKETS, LONGEST_RUN_OCTETS // size) - 1
                usual, _, _, _, usual_destination = unpack(buffer, at)
        self._send(run, run_size, endpoint)
        return True

    def _send(self, run: list[memoryview], size: int, endpoint: Endpoint) -> None:
        if run:
            self._sender.send_run(run, size, endpoint)

    def _drop(self, drop: Drop, at: int, size: int) -> None:
        self._counters.count_dropped_out(drop)
        error = None
        if drop is Drop.NO_ROUTE:
            error = self._errors.unreachable(self._buffer[at : at + size], size)
        elif drop is Drop.EXPIRED:
            error = self._errors.time_exceeded(self._buffer[at : at + size], size)
        if error is not None:
            self._writer.write_own(error)
