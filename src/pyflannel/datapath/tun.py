"""Reads and writes the TUN device in batches, with the kernel's offloads."""

import errno
import os
from collections.abc import Callable, Sequence
from enum import IntFlag
from fcntl import ioctl
from struct import Struct

from pyflannel.datapath.counters import Counters
from pyflannel.datapath.forwarding import Drop
from pyflannel.datapath.tcp_run import TcpRun


class Offload(IntFlag):
    """Offloads of the kernel. Each offload is used if the kernel supports it."""

    RUN_WRITE = 1  # the device accepts a run of TCP segments in one write (IFF_VNET_HDR)
    SEGMENTED_SEND = 2  # one call sends many datagrams (UDP_SEGMENT)
    JOINED_RECEIVE = 4  # one call receives many datagrams (UDP_GRO)


class Offloads:
    """The offloads that are in use. Each missing offload is logged only once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._logged: set[Offload] = set()
        self.used = Offload(0)

    def use(self, offload: Offload) -> None:
        """Record that an offload works."""
        self.used |= offload

    def lack(self, offload: Offload, reason: OSError | str) -> None:
        """Record that an offload does not work, and the reason."""
        self.used &= ~offload
        if offload not in self._logged:
            self._logged.add(offload)
            self._say(f"{offload.name} is unavailable, packets are handled one by one: {reason}")


TUNGETIFF = 0x800454D2
_IFF_VNET_HDR = 0x4000
"""linux/if_tun.h: each packet that is read or written follows a header with its segmentation."""

_IFREQ = Struct("16sH22x")

_HEADER = Struct("=BBHHHH")
"""Flags, kind of segmentation, length of the headers, length of a segment's payload, start of the part with a
checksum, offset of the checksum in this part (linux/virtio_net.h, struct virtio_net_hdr)."""

_NEEDS_CHECKSUM = 1
_TCP_OVER_IPV4 = 1
_TCP_CHECKSUM_AT = 16
_IP_HEADER_BYTES = 20
_NO_SEGMENTATION = bytes(_HEADER.size)


class Tun:
    """An attachment to a TUN device. The daemon created the attachment, because only the daemon has the right
    to do so.

    The kernel segments and checksums all packets from the device, because no offload is requested.

    Attributes:
        header_bytes: length in bytes of the header before each packet; 0 if the kernel does not support this
            header.
        takes_runs: True if `write_run` may be used.

    Raises:
        OSError: `descriptor`, which is closed in this case, is not attached to the device with the name:
            ENODEV if the device has another name, EBADFD if it was removed.
    """

    HEADER_BYTES = _HEADER.size

    def __init__(self, link: str, descriptor: int, offloads: Offloads) -> None:
        try:
            name, flags = _interface(descriptor)
            if name != link:
                raise OSError(errno.ENODEV, f"{link} was renamed")
        except OSError:
            os.close(descriptor)
            raise
        self.descriptor = descriptor
        self.takes_runs = bool(flags & _IFF_VNET_HDR)
        self.header_bytes = self.HEADER_BYTES if self.takes_runs else 0
        self._link = link
        if self.takes_runs:
            offloads.use(Offload.RUN_WRITE)
        else:
            offloads.lack(Offload.RUN_WRITE, "the device was attached without IFF_VNET_HDR")

    @property
    def is_current(self) -> bool:
        """True if the attached device exists and still has its name."""
        try:
            return _interface(self.descriptor)[0] == self._link
        except OSError:
            return False

    def write(self, packet: bytes | bytearray | memoryview) -> None:
        """Write one packet to the device."""
        if self.header_bytes:
            os.writev(self.descriptor, (_NO_SEGMENTATION, packet))
        else:
            os.write(self.descriptor, packet)

    def write_run(self, header: bytearray, payloads: Sequence[memoryview], payload_bytes: int) -> None:
        """Write a run of TCP segments to the device, as one header with a partial checksum and all
        payloads.
        """
        segmentation = _HEADER.pack(
            _NEEDS_CHECKSUM, _TCP_OVER_IPV4, len(header), payload_bytes, _IP_HEADER_BYTES, _TCP_CHECKSUM_AT
        )
        os.writev(self.descriptor, [segmentation, header, *payloads])

    def close(self) -> None:
        """Close the attachment. The persistent device is not removed."""
        os.close(self.descriptor)


def _interface(descriptor: int) -> tuple[str, int]:
    """Return name and flags of the device to which a descriptor is attached.

    Raises:
        OSError: EBADFD if the descriptor is not attached.
    """
    name, flags = _IFREQ.unpack(ioctl(descriptor, TUNGETIFF, bytes(_IFREQ.size)))
    return name.rstrip(b"\0").decode(errors="surrogateescape"), flags


class DeviceWriter:
    """Writes packets to the device. Refused packets are counted and lost. Never raises.

    If the device was removed, this object calls `on_lost`. `tun` is None while no device is attached.
    """

    def __init__(self, counters: Counters, offloads: Offloads, on_lost: Callable[[], None]) -> None:
        self.tun: Tun | None = None
        self._counters = counters
        self._offloads = offloads
        self._on_lost = on_lost

    def write(self, packet: bytes | memoryview) -> None:
        """Write a packet of a peer."""
        if self._write(packet):
            self._counters.received_packets += 1
            self._counters.received_bytes += len(packet)

    def write_own(self, packet: bytes) -> None:
        """Write a packet that the forwarder created, which is an ICMP error to the host."""
        self._write(packet)

    def write_run(self, run: TcpRun, view: memoryview) -> None:
        """Write the segments of a run in `view`, in one call if this call does not change the packets."""
        tun, count = self.tun, len(run.starts)
        if count > 1 and tun is not None and tun.takes_runs and run.has_true_checksums():
            try:
                tun.write_run(*run.merged())
            except OSError as error:
                if error.errno != errno.EINVAL:
                    self._fail(error, count)
                    return
                tun.takes_runs = False
                self._offloads.lack(Offload.RUN_WRITE, error)
            else:
                self._counters.batches_written += 1
                self._counters.received_packets += count
                self._counters.received_bytes += run.size_bytes
                return
        for start, size in run.packets():
            self.write(view[start : start + size])

    def _write(self, packet: bytes | memoryview) -> bool:
        if self.tun is None:
            self._counters.count_dropped_in(Drop.DETACHED)
            return False
        try:
            self.tun.write(packet)
        except OSError as error:
            self._fail(error, 1)
            return False
        return True

    def _fail(self, error: OSError, packets: int) -> None:
        self._counters.count_failure("write", error, packets)
        if error.errno == errno.EBADFD:
            self._on_lost()
