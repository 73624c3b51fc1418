"""Gives packets to the device, wherever they come from."""

import errno
from collections.abc import Callable

from pyflannel.datapath.counters import Counters
from pyflannel.datapath.forwarding import Drop
from pyflannel.datapath.offload import Offload, Offloads
from pyflannel.datapath.tcp_run import TcpRun
from pyflannel.datapath.tun import Tun


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
