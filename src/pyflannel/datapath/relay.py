"""The relay, which moves packets from the device to the peers and back, in batches, when a socket is
ready.
"""

import select
import struct
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from itertools import groupby
from socket import socket
from struct import Struct

from pyflannel.datapath.counters import Counters, IcmpErrors
from pyflannel.datapath.forwarding import GUARDED, Drop, Endpoint, PeerTable, inbound, outbound
from pyflannel.datapath.tcp_run import TcpRun
from pyflannel.datapath.tun import DeviceWriter, Offload, Offloads, Tun
from pyflannel.datapath.underlay import LONGEST_RUN_BYTES, LONGEST_RUN_PACKETS, UnderlaySender
from pyflannel.wire.forwarder_control import Settings
from pyflannel.wire.packet import HEADER, HEADER_BYTES, ROUTED, TTL_AT, checksum_one_hop_on

_FEWEST_SLOTS = 16
_BATCHES = 3
"""Maximum number of batches before the other direction and the control socket are served."""

_FEWEST_AT_ONCE = 4

_VERDICT_AT = (19, 18, 17, 16, TTL_AT, 3, 2, 0)
"""Offsets of destination, TTL, total length, version and header length in the header. Packets of one size
that agree in these bytes have the same verdict, unless the destination is the address of a peer, where the
port decides."""

_SUM_AT = 10
_SUM = Struct("!H")
_CARRYING = 0xFF
_NEXT = bytes((value + 1) & 0xFF for value in range(256))
"""Table from the upper byte of a header's checksum to this byte after the TTL was decremented. If the old
byte is _CARRYING, the lower byte of the checksum changes, too."""


class OutboundPath:
    """Moves packets from the device to the peers, in batches. The buffer has a slot for each packet and its
    header.

    Packets of one size to one destination are checked and changed together: one call handles one byte of
    all their headers.
    """

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
        # The slots contain one run of the largest packets. A larger buffer would not fit into the processor
        # cache.
        slots = min(LONGEST_RUN_PACKETS, max(_FEWEST_SLOTS, LONGEST_RUN_BYTES // mtu))
        # A slot is one byte larger than the largest packet, so that a packet that is too long is detected,
        # not truncated.
        self._stride = Tun.HEADER_BYTES + mtu + 1
        self._starts = range(0, slots * self._stride, self._stride)
        self._buffer = bytearray(slots * self._stride)
        self._view = memoryview(self._buffer)
        self._slots = [self._view[at : at + self._stride] for at in self._starts]
        self._packets: list[memoryview] = []
        self._shape = 0, 0

    def relay(self, tun: Tun) -> bool:
        """Send packets from the device to peers, for at most one round. Return False if the device was
        removed.
        """
        read, header_bytes = FileIO(tun.descriptor, closefd=False).readinto, tun.header_bytes
        for _ in range(_BATCHES):
            sizes: list[int] = []
            is_empty = is_removed = False
            try:
                for slot in self._slots:
                    if (size := read(slot)) is None:
                        is_empty = True
                        break
                    sizes.append(size)
            except OSError:
                is_removed = True
            self._send(sizes, header_bytes)
            if is_empty or is_removed:
                return not is_removed
        return True

    def _send(self, sizes: list[int], header_bytes: int) -> None:
        """Send or drop the packets of a batch, whose sizes include their headers of `header_bytes`."""
        run: list[memoryview] = []
        run_size = room = place = 0
        endpoint: Endpoint = ("", 0)
        for read_bytes, group in groupby(sizes):
            size, end = read_bytes - header_bytes, place + len(list(group))
            while place < end:
                at = place * self._stride + header_bytes
                count = self._count_alike(at, size, end - place)
                verdict = outbound(self._buffer, at, size, self._peers, self._mtu)
                if isinstance(verdict, Drop):
                    for start in range(at, at + count * self._stride, self._stride):
                        self._drop(verdict, start, size)
                else:
                    if count > 1:
                        self._decrement_ttls(at + self._stride, count - 1)
                    packets = self._views(place, count, size, header_bytes)
                    while packets:
                        if verdict is not endpoint or size > run_size or not room:
                            self._send_run(run, run_size, endpoint)
                            run, run_size, endpoint = [], size, verdict
                            room = min(LONGEST_RUN_PACKETS, LONGEST_RUN_BYTES // size)
                        # A run ends with its first shorter packet, because UDP_SEGMENT allows only the last
                        # segment to be shorter.
                        taken = room if size == run_size else 1
                        run += packets[:taken]
                        room = room - len(packets[:taken]) if size == run_size else 0
                        packets = packets[taken:]
                place += count
        self._send_run(run, run_size, endpoint)

    def _count_alike(self, at: int, size: int, count: int) -> int:
        """Return how many of `count` packets of `size` bytes, from the packet at `at`, have the same verdict
        as this packet. 1 if only this packet was compared.
        """
        if count < _FEWEST_AT_ONCE or size < HEADER_BYTES:
            return 1
        if self._peers.ports_at(int.from_bytes(self._buffer[at + 16 : at + 20], "big")):
            return 1
        for offset in _VERDICT_AT:
            values = self._buffer[self._column(at + offset, count)]
            count -= len(values.lstrip(values[:1]))
            if count == 1:
                break
        return count

    def _decrement_ttls(self, at: int, count: int) -> None:
        """Decrement the equal TTLs of `count` packets, and update the checksums of their headers."""
        ttls, sums = self._column(at + TTL_AT, count), self._column(at + _SUM_AT, count)
        self._buffer[ttls] = bytes([self._buffer[at + TTL_AT] - 1]) * count
        old = self._buffer[sums]
        self._buffer[sums] = old.translate(_NEXT)
        place = old.find(_CARRYING)
        while place >= 0:
            sum_at = at + _SUM_AT + place * self._stride
            changed = checksum_one_hop_on(_CARRYING << 8 | self._buffer[sum_at + 1])
            _SUM.pack_into(self._buffer, sum_at, changed)
            place = old.find(_CARRYING, place + 1)

    def _column(self, at: int, count: int) -> slice:
        """Return the slice of the buffer with the byte at `at`, and with the same byte of the next packets:
        `count` bytes in total.
        """
        return slice(at, at + (count - 1) * self._stride + 1, self._stride)

    def _views(self, place: int, count: int, size: int, header_bytes: int) -> list[memoryview]:
        """Return the packets of `size` bytes in `count` slots. The views of all slots are kept for the next
        batch.
        """
        if self._shape == (size, header_bytes):
            return self._packets[place : place + count]
        is_kept = count >= _FEWEST_AT_ONCE
        starts = self._starts if is_kept else self._starts[place : place + count]
        packets = [self._view[at + header_bytes : at + header_bytes + size] for at in starts]
        if not is_kept:
            return packets
        self._shape, self._packets = (size, header_bytes), packets
        return packets[place : place + count]

    def _send_run(self, run: list[memoryview], size: int, endpoint: Endpoint) -> None:
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


_SOL_UDP = 17
_UDP_GRO = 104
"""linux/udp.h."""

_SIZE = struct.Struct("=i")
_ANCILLARY_BYTES = 64

_CALLS = 64
"""Maximum number of system calls before the other direction and the control socket are served."""

_BURST = 128
"""Number of packets that are written one by one before a pause.

The forwarder has precedence over the processes that receive the packets. A longer burst would fill the buffer
of their socket, which by default has room for about 270 small packets. Packets wait in the larger buffer of
the tunnel's socket instead.
"""

_PAUSE_S = 0.001

_LONGEST_BYTES = 65535
"""Maximum length of one datagram, or of several datagrams that the kernel coalesced.

A datagram that is longer than the MTU is detected, not truncated.
"""

_BUFFER_BYTES = 4 * _LONGEST_BYTES
"""Size in bytes of the buffer, which contains a run of segments until it is written. A larger buffer would
not fit into the processor cache."""


class InboundPath:
    """Moves packets from the peers to the device. Each datagram is checked. A run of segments ends at the
    end of the round.
    """

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
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._run = TcpRun(self._buffer)
        self._run_sender = ""
        self._singles = 0
        try:
            udp.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError as error:
            offloads.lack(Offload.JOINED_RECEIVE, error)
        else:
            offloads.use(Offload.JOINED_RECEIVE)

    def relay(self) -> bool:
        """Write the packets of peers to the device, for at most one round. Return True if a burst was
        written, and the processes that receive it need a pause.
        """
        view, receive, counters = self._view, self._udp.recvmsg_into, self._counters
        at = self._singles = 0
        for _ in range(_CALLS):
            try:
                length, ancillary, _, sender = receive([view[at:]], _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                counters.count_failure("receive", error)
                continue
            size = length
            for level, kind, value in ancillary:
                if level == _SOL_UDP and kind == _UDP_GRO:
                    size = _SIZE.unpack_from(value)[0]
                    counters.batches_received += 1
            self._take(at, at + length, size, sender[0])
            at += length
            if at > _BUFFER_BYTES - _LONGEST_BYTES or self._singles >= _BURST:
                break
        self._write_run()
        return self._singles >= _BURST

    def _take(self, start: int, end: int, size: int, sender: str) -> None:
        """Write or drop packets of one peer, with `size` bytes each. The last packet may be shorter."""
        run = self._run
        if sender != self._run_sender:
            self._write_run()
            self._run_sender = sender
        at, is_run_likely = start, True
        while True:
            length = min(size, end - at)  # the size is 0 for an empty datagram
            if not run.starts:
                self._begin(at, length, sender)
            elif is_run_likely and length and (taken := run.extend_all(at, size, (end - at) // size)):
                length = taken * size
                is_run_likely = False
            elif run.extend(at, length):
                is_run_likely = len(run.starts) == 2
            else:
                self._write_run()
                self._begin(at, length, sender)
            at += length
            if at >= end:
                return

    def _begin(self, at: int, size: int, sender: str) -> None:
        """Check a packet that does not continue a run of segments. Begin a run with this packet, write it,
        or drop it.
        """
        drop = inbound(self._buffer, at, size, sender, self._peers, self._settings)
        if drop is not None:
            self._drop(drop, at, size, sender)
        elif not self._run.start(at, size):
            self._writer.write(self._view[at : at + size])
            self._singles += 1

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


READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP
"""EPOLLERR and EPOLLHUP. The kernel reports these events even if they are not requested."""

Handler = Callable[[int], None]
"""A handler is called with the events of its descriptor. Unhandled events are reported again."""


class Poller:
    """Waits for events of descriptors. Unhandled events are reported again in the next round."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._nothing = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def add(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call the handler when one of the events occurs."""
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def change(self, descriptor: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Remove a descriptor, which must still be open."""
        self._epoll.unregister(descriptor)
        del self._handlers[descriptor]

    def run_round(self, deadline_s: float | None = None) -> None:
        """Wait for an event or the timeout, then call each handler with an event once."""
        for descriptor, events in self._epoll.poll(deadline_s):
            # An earlier handler of this round may have removed this descriptor.
            if (handler := self._handlers.get(descriptor)) is not None:
                handler(events)

    def pause(self, pause_s: float) -> None:
        """Wait, so that other processes run. The filter of system calls permits no other call with which a
        process can wait.
        """
        self._nothing.poll(pause_s)


class Relay:
    """The data path, which handles both directions alternately, in batches.

    No packet and no failure of the underlay stops the data path. Lost packets are counted by reason. If the
    device is removed, `on_detached` is called once, and packets from peers are dropped until `attach`. The
    function `say` is called once for each offload that the kernel lacks. `device` is the attachment that the
    previous forwarder passed on.
    """

    def __init__(
        self,
        settings: Settings,
        udp: socket,
        poller: Poller,
        on_detached: Callable[[], None],
        say: Callable[[str], None],
        device: int | None = None,
    ) -> None:
        self.peers = PeerTable()
        self.counters = Counters()
        self._settings = settings
        self._udp = udp
        self._tun: Tun | None = None
        self._poller = poller
        self._on_detached = on_detached
        self._offloads = Offloads(say)
        errors = IcmpErrors(settings.tunnel_address, self.counters)
        sender = UnderlaySender(udp, self.counters, self._offloads)
        self._writer = DeviceWriter(self.counters, self._offloads, self._lose_device)
        self._outbound = OutboundPath(settings.mtu, self.peers, sender, self._writer, errors, self.counters)
        self._inbound = InboundPath(
            settings, udp, self.peers, sender, self._writer, errors, self.counters, self._offloads
        )
        poller.add(udp.fileno(), READABLE, self._on_udp)
        if device is not None:
            with suppress(OSError):  # the device was removed or renamed
                self._hold(Tun(settings.link, device, self._offloads))

    @property
    def is_attached(self) -> bool:
        """True if the forwarder is attached to the device that currently has the link's name."""
        return self._tun is not None and self._tun.is_current

    @property
    def offloads(self) -> Offload:
        """The kernel offloads that are in use."""
        return self._offloads.used

    def attach(self, device: int) -> None:
        """Use this attachment to the device instead of the previous attachment.

        Raises:
            OSError: the same as in `Tun`; the descriptor is closed, and the previous attachment remains.
        """
        tun = Tun(self._settings.link, device, self._offloads)
        self._detach()
        self._hold(tun)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors of the socket and, if attached, of the device."""
        return (self._udp.fileno(), *((self._tun.descriptor,) if self._tun is not None else ()))

    def close(self) -> None:
        """Close device and socket."""
        self._detach()
        self._poller.remove(self._udp.fileno())
        self._udp.close()

    def _hold(self, tun: Tun) -> None:
        self._tun = self._writer.tun = tun
        self._poller.add(tun.descriptor, READABLE, self._on_tun)

    def _detach(self) -> None:
        if self._tun is not None:
            self._poller.remove(self._tun.descriptor)
            self._tun.close()
            self._tun = self._writer.tun = None

    def _lose_device(self) -> None:
        self._detach()
        self._on_detached()

    def _on_tun(self, events: int) -> None:
        # A deleted device reports an error until its descriptor is closed.
        if self._tun is not None and (not self._outbound.relay(self._tun) or events & BROKEN):
            self._lose_device()

    def _on_udp(self, events: int) -> None:
        if self._inbound.relay():
            self._poller.pause(_PAUSE_S)
