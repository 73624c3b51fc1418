"""The TUN device: read and written in batches, with the kernel's offloads."""

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
    """What the kernel does for us; each is used where it is there."""

    RUN_WRITE = 1  # the device takes a run of TCP segments in one write (IFF_VNET_HDR)
    SEGMENTED_SEND = 2  # one call sends many datagrams (UDP_SEGMENT)
    JOINED_RECEIVE = 4  # one call receives many datagrams (UDP_GRO)


class Offloads:
    """Which of them are in use; each that is missing is said, once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._logged: set[Offload] = set()
        self.used = Offload(0)

    def use(self, offload: Offload) -> None:
        """Note that it works."""
        self.used |= offload

    def lack(self, offload: Offload, reason: OSError | str) -> None:
        """Note that it does not, and why."""
        self.used &= ~offload
        if offload not in self._logged:
            self._logged.add(offload)
            self._say(f"{offload.name} is not to be had, packets go one by one: {reason}")


TUNGETIFF = 0x800454D2
_IFF_VNET_HDR = 0x4000
"""linux/if_tun.h: reads and writes of the device are behind a header that tells of segmentation."""

_IFREQ = Struct("16sH22x")

_HEADER = Struct("=BBHHHH")
"""Flags, kind of segmentation, octets of the headers, octets of a segment's payload, where the part starts
that is checksummed and where in it the checksum is (linux/virtio_net.h, struct virtio_net_hdr)."""

_NEEDS_CHECKSUM = 1
_TCP_OVER_IPV4 = 1
_TCP_CHECKSUM_AT = 16
_IP_HEADER_OCTETS = 20
_NO_SEGMENTATION = bytes(_HEADER.size)


class Tun:
    """An attachment to a TUN device, which the daemon made: it alone has the right to.

    The kernel segments and checksums all packets from the device, because no offload is requested.

    Attributes:
        header_octets: what precedes each packet that is read; 0 where the kernel knows no such header.
        takes_runs: whether `write_run` may be used.

    Raises:
        OSError: `descriptor` is not attached to the device that has the name; it is closed. ENODEV when the
            device has another name, EBADFD when it is gone.
    """

    HEADER_OCTETS = _HEADER.size

    def __init__(self, link: str, descriptor: int, offloads: Offloads) -> None:
        try:
            name, flags = _interface(descriptor)
            if name != link:
                raise OSError(errno.ENODEV, f"{link} has another name now")
        except OSError:
            os.close(descriptor)
            raise
        self.descriptor = descriptor
        self.takes_runs = bool(flags & _IFF_VNET_HDR)
        self.header_octets = self.HEADER_OCTETS if self.takes_runs else 0
        self._link = link
        if self.takes_runs:
            offloads.use(Offload.RUN_WRITE)
        else:
            offloads.lack(Offload.RUN_WRITE, "the device was attached to without")

    @property
    def is_current(self) -> bool:
        """Whether the device that we are attached to is there, and has the name."""
        try:
            return _interface(self.descriptor)[0] == self._link
        except OSError:
            return False

    def write(self, packet: bytes | bytearray | memoryview) -> None:
        """Give one packet to the device."""
        if self.header_octets:
            os.writev(self.descriptor, (_NO_SEGMENTATION, packet))
        else:
            os.write(self.descriptor, packet)

    def write_run(self, header: bytearray, payloads: Sequence[memoryview], payload_octets: int) -> None:
        """Give a run of TCP segments to the device: the headers of one, whose checksum is to be completed."""
        segmentation = _HEADER.pack(
            _NEEDS_CHECKSUM, _TCP_OVER_IPV4, len(header), payload_octets, _IP_HEADER_OCTETS, _TCP_CHECKSUM_AT
        )
        os.writev(self.descriptor, [segmentation, header, *payloads])

    def close(self) -> None:
        """Let go of the device, which stays if it is persistent."""
        os.close(self.descriptor)


def _interface(descriptor: int) -> tuple[str, int]:
    """Return the name and the flags of the device that a descriptor is attached to.

    Raises:
        OSError: EBADFD when it is attached to none.
    """
    name, flags = _IFREQ.unpack(ioctl(descriptor, TUNGETIFF, bytes(_IFREQ.size)))
    return name.rstrip(b"\0").decode(errors="surrogateescape"), flags


class DeviceWriter:
    """The device's writing side. What is refused is counted and lost; nothing is ever raised.

    `on_lost` is called when the device turns out to be gone; `tun` is None until there is another.
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
            self._counters.received_octets += len(packet)

    def write_own(self, packet: bytes) -> None:
        """Write a packet of our own: an ICMP error to the host."""
        self._write(packet)

    def write_run(self, run: TcpRun, view: memoryview) -> None:
        """Write the segments of a run that lies in `view`, in one call if that changes no octet."""
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
                self._counters.received_octets += run.octets
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
