"""The relay, which moves packets from the device to the peers and back, in batches, when a socket is
ready.
"""

import select
import struct
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from socket import socket
from struct import Struct

from pyflannel.datapath.counters import Counters, IcmpErrors
from pyflannel.datapath.forwarding import GUARDED, Drop, Endpoint, PeerTable, inbound, outbound
from pyflannel.datapath.tcp_run import TcpRun
from pyflannel.datapath.tun import DeviceWriter, Offload, Offloads, Tun
from pyflannel.datapath.underlay import LONGEST_RUN_BYTES, LONGEST_RUN_PACKETS, UnderlaySender
from pyflannel.wire.forwarder_control import Settings
from pyflannel.wire.packet import HEADER, ROUTED, TTL_AND_CHECKSUM, TTL_AT, checksum_one_hop_on

_ROUTE = Struct("!I4xBBH4xI")
"""The struct format of an IPv4 header: first word (version, header length, TOS, total length), TTL,
protocol, checksum, destination."""

_ROUND = 132
"""Maximum packets before the other direction and the control socket are served: the packets of three full
calls."""


class OutboundPath:
    """Moves packets from the device to the peers. The buffer has a slot for each packet and its header."""

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
        # The buffer is one byte larger than the MTU, so that a packet that is too long is detected, not
        # truncated.
        stride = Tun.HEADER_BYTES + mtu + 1
        self._buffer = bytearray(_ROUND * stride)
        self._view = memoryview(self._buffer)
        self._slots = [(at, self._view[at : at + stride]) for at in range(0, _ROUND * stride, stride)]

    def relay(self, tun: Tun) -> bool:
        """Send packets from the device to peers, for at most one round. Return False if the device was
        removed.
        """
        read, header_bytes = FileIO(tun.descriptor, closefd=False).readinto, tun.header_bytes
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
            if size is None:  # no further packets
                break
            at, size = slot + header_bytes, size - header_bytes
            if size == run_size and room:
                # A packet with the same first word, destination and size has the same verdict, unless the TTL
                # expired or the destination is the address of a peer, where the port decides.
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
                # A run ends with its first shorter packet, because UDP_SEGMENT allows only the last segment
                # to be shorter.
                room = room - 1 if size == run_size else 0
            else:
                self._send(run, run_size, endpoint)
                run, run_size, endpoint = [view[at : at + size]], size, verdict
                room = min(LONGEST_RUN_PACKETS, LONGEST_RUN_BYTES // size) - 1
                usual, _, _, _, usual_destination = unpack(buffer, at)
                if peers.ports_at(usual_destination):
                    usual = 0
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


_SOL_UDP = 17
_UDP_GRO = 104
"""linux/udp.h."""

_SIZE = struct.Struct("=i")
_ANCILLARY_BYTES = 64

_CALLS = 64
"""Maximum number of system calls before the other direction and the control socket are served."""

_LONGEST_BYTES = 65535
"""Maximum length of one datagram, or of several datagrams that the kernel coalesced.

A datagram that is longer than the MTU is detected, not truncated.
"""

_BUFFER_BYTES = 4 * _LONGEST_BYTES
"""Size of the buffer, which contains a run of segments until it is written. A larger buffer would not fit
into the processor cache."""


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
        try:
            udp.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError as error:
            offloads.lack(Offload.JOINED_RECEIVE, error)
        else:
            offloads.use(Offload.JOINED_RECEIVE)

    def relay(self) -> None:
        """Write the packets of peers to the device, for at most one round."""
        view, receive, counters = self._view, self._udp.recvmsg_into, self._counters
        at = 0
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
            if at > _BUFFER_BYTES - _LONGEST_BYTES:
                break
        self._write_run()

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


class Relay:
    """The data path, which handles both directions alternately, in batches.

    No packet and no failure of the underlay stops it. Lost packets are counted by reason. If the device is
    removed, `on_detached` is called once, and packets from peers are dropped until `attach`. The function
    `say` is called once for each offload that the kernel lacks. `device` is the attachment that the previous
    forwarder passed on.
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
        self._inbound.relay()
