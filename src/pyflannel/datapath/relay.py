"""Moves packets between the device and the UDP socket."""

import errno
import os
from collections.abc import Callable
from socket import socket

from pyflannel.datapath.counters import Counters
from pyflannel.datapath.forwarding import Drop, inbound, outbound
from pyflannel.datapath.icmp_errors import IcmpErrors
from pyflannel.datapath.peer_table import Endpoint, PeerTable
from pyflannel.datapath.poller import BROKEN, READABLE, Poller
from pyflannel.datapath.tun import Tun
from pyflannel.wire.forwarder_control import Settings
from pyflannel.wire.packet import HEADER

_BUDGET = 64
"""Packets of one side before the other side and the control socket have their turn."""

_BUFFER_OCTETS = 65535
"""The longest datagram: one that is longer than the MTU is then seen as such, and not cut."""


class Relay:
    """The data path: one packet, one read, one write.

    Nothing that a packet does, or the underlay, ends it: what is lost is counted by its reason. When the
    device goes away `on_detached` is called, once, and packets from peers are dropped until `attach`.
    """

    def __init__(
        self, settings: Settings, udp: socket, poller: Poller, on_detached: Callable[[], None]
    ) -> None:
        self.peers = PeerTable()
        self.counters = Counters()
        self._settings = settings
        self._udp = udp
        self._tun: Tun | None = None
        self._poller = poller
        self._on_detached = on_detached
        self._errors = IcmpErrors(settings.tunnel_address, self.counters)
        self._packet = bytearray(_BUFFER_OCTETS)
        self._view = memoryview(self._packet)
        poller.add(udp.fileno(), READABLE, self._on_udp)

    @property
    def is_attached(self) -> bool:
        """Whether packets come from, and go to, the device that has the link's name now."""
        return self._tun is not None and self._tun.is_current

    def attach(self) -> None:
        """Attach to the device, unless we are.

        Raises:
            OSError: as Tun does; no device is attached then.
        """
        if self.is_attached:
            return
        self._detach()
        self._tun = Tun(self._settings.link)
        self._poller.add(self._tun.descriptor, READABLE, self._on_tun)

    def close(self) -> None:
        """Let go of device and socket."""
        self._detach()
        self._poller.remove(self._udp.fileno())
        self._udp.close()

    def _detach(self) -> None:
        if self._tun is not None:
            self._poller.remove(self._tun.descriptor)
            self._tun.close()
            self._tun = None

    def _lose_device(self) -> None:
        self._detach()
        self._on_detached()

    def _on_tun(self, events: int) -> None:
        """Send on what the device has, up to the budget."""
        if self._tun is None:
            return
        descriptor, packet, buffers, view = self._tun.descriptor, self._packet, [self._packet], self._view
        peers, mtu, counters = self.peers, self._settings.mtu, self.counters
        for _ in range(_BUDGET):
            try:
                size = os.readv(descriptor, buffers)
            except BlockingIOError:
                break
            except OSError:
                events |= BROKEN
                break
            verdict = outbound(packet, size, peers, mtu)
            if isinstance(verdict, Drop):
                self._drop_outbound(verdict, size)
            elif self._send(view[:size], verdict):
                counters.sent_packets += 1
                counters.sent_octets += size
        # A deleted device reports an error until its descriptor is closed.
        if events & BROKEN:
            self._lose_device()

    def _on_udp(self, events: int) -> None:
        """Write what peers sent to the device, up to the budget."""
        packet, view, receive = self._packet, self._view, self._udp.recvfrom_into
        peers, settings, counters = self.peers, self._settings, self.counters
        for _ in range(_BUDGET):
            try:
                size, sender = receive(packet)
            except BlockingIOError:
                break
            except OSError as error:
                counters.count_failure("receive", error)
                continue
            drop = inbound(packet, size, sender[0], peers, settings)
            if drop is not None:
                self._drop_inbound(drop, size)
            elif self._write(view[:size]):
                counters.received_packets += 1
                counters.received_octets += size

    def _send(self, packet: bytes | memoryview, endpoint: Endpoint) -> bool:
        """Send a packet to a peer; return whether it left."""
        try:
            self._udp.sendto(packet, endpoint)
        except OSError as error:
            self.counters.count_failure("send", error)
            return False
        return True

    def _write(self, packet: bytes | memoryview) -> bool:
        """Give a packet to the device; return whether it took it."""
        if self._tun is None:
            self.counters.count_dropped_in(Drop.DETACHED)
            return False
        try:
            os.write(self._tun.descriptor, packet)
        except OSError as error:
            self.counters.count_failure("write", error)
            if error.errno == errno.EBADFD:
                self._lose_device()
            return False
        return True

    def _drop_outbound(self, drop: Drop, size: int) -> None:
        self.counters.count_dropped_out(drop)
        error = None
        if drop is Drop.NO_ROUTE:
            error = self._errors.unreachable(self._packet, size)
        elif drop is Drop.EXPIRED:
            error = self._errors.time_exceeded(self._packet, size)
        if error is not None:
            self._write(error)

    def _drop_inbound(self, drop: Drop, size: int) -> None:
        self.counters.count_dropped_in(drop)
        if drop is Drop.EXPIRED and (error := self._errors.time_exceeded(self._packet, size)) is not None:
            source = HEADER.unpack_from(self._packet)[8]
            if (endpoint := self.peers.find(source)) is not None:
                self._send(error, endpoint)
