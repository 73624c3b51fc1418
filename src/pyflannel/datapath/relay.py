"""The relay: waits for packets at the device and the UDP socket, and moves them."""

import select
from collections.abc import Callable
from socket import socket

from pyflannel.datapath.counters import Counters, IcmpErrors
from pyflannel.datapath.forwarding import PeerTable
from pyflannel.datapath.paths import InboundPath, OutboundPath
from pyflannel.datapath.tun import DeviceWriter, Offload, Offloads, Tun
from pyflannel.datapath.underlay import UnderlaySender
from pyflannel.wire.forwarder_control import Settings

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP
"""Reported always, whether asked for or not."""

Handler = Callable[[int], None]
"""Called with the events of its descriptor, which are reported again until they are dealt with."""


class Poller:
    """Level-triggered: what a handler leaves comes again in the next round, after the others' turn."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def add(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call the handler whenever one of the events is there."""
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def change(self, descriptor: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Forget a descriptor, which must still be open."""
        self._epoll.unregister(descriptor)
        del self._handlers[descriptor]

    def run_round(self) -> None:
        """Wait until something is ready, then call each handler once."""
        for descriptor, events in self._epoll.poll():
            # An earlier handler of this round may have removed it.
            if (handler := self._handlers.get(descriptor)) is not None:
                handler(events)


class Relay:
    """The data path: both directions in turn, each in batches.

    Nothing that a packet does, or the underlay, ends it: what is lost is counted by its reason. When the
    device goes away `on_detached` is called, once, and packets from peers are dropped until `attach`. `say`
    hears, once, of each help of the kernel that is missing. `device` is an attachment that a predecessor had.
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
            self._hold(Tun.adopt(settings.link, device, self._offloads))

    @property
    def is_attached(self) -> bool:
        """Whether packets come from, and go to, the device that has the link's name now."""
        return self._tun is not None and self._tun.is_current

    @property
    def offloads(self) -> Offload:
        """The help of the kernel that is in use."""
        return self._offloads.used

    def attach(self) -> None:
        """Attach to the device, unless we are.

        Raises:
            OSError: as Tun does; no device is attached then.
        """
        if self.is_attached:
            return
        self._detach()
        self._hold(Tun.attach(self._settings.link, self._offloads))

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The socket's, and the device's if we are attached."""
        return (self._udp.fileno(), *((self._tun.descriptor,) if self._tun is not None else ()))

    def close(self) -> None:
        """Let go of device and socket."""
        self._detach()
        self._poller.remove(self._udp.fileno())
        self._udp.close()

    def _hold(self, tun: Tun | None) -> None:
        self._tun = self._writer.tun = tun
        if tun is not None:
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
