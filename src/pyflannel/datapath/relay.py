"""Moves packets between the device and the UDP socket."""

from collections.abc import Callable
from socket import socket

from pyflannel.datapath.counters import Counters
from pyflannel.datapath.device_writer import DeviceWriter
from pyflannel.datapath.icmp_errors import IcmpErrors
from pyflannel.datapath.inbound_path import InboundPath
from pyflannel.datapath.offload import Offload, Offloads
from pyflannel.datapath.outbound_path import OutboundPath
from pyflannel.datapath.peer_table import PeerTable
from pyflannel.datapath.poller import BROKEN, READABLE, Poller
from pyflannel.datapath.tun import Tun
from pyflannel.datapath.underlay_sender import UnderlaySender
from pyflannel.wire.forwarder_control import Settings


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
