"""Hosts with a sniffer on each underlay, which shows whether packets of containers cross it unencrypted."""

import functools
import itertools
import sys
from collections.abc import Sequence

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until

_SOON_S = 60.0


class SniffedHosts:
    """Hosts whose underlay has had a sniffer since before they joined.

    Attributes:
        ignored: number of the first lines of a host's sniffer that do not count, by the name of the host.

    Args:
        program: Python program that prints `sniffing`, then a line that begins with `clear` for each
            unencrypted packet of the overlay.
    """

    def __init__(self, hosts: Sequence[Host], program: str) -> None:
        self.hosts = hosts
        self.ignored: dict[str, int] = {}
        self._victims = itertools.cycle(hosts)
        for host in hosts:
            host.start([sys.executable, "-c", program], name="sniffer")
            wait_until(functools.partial(self._has_begun, host), what="a sniffer", deadline_s=_SOON_S)

    def _has_begun(self, host: Host) -> bool:
        return bool(self.sniffed(host))

    def sniffed(self, host: Host) -> list[str]:
        """Return the lines that the sniffer of a host has printed."""
        return (host.directory / "log/sniffer.log").read_text().splitlines()

    def unencrypted(self) -> list[str]:
        """Return the packets of the overlay that crossed any underlay unencrypted."""
        return [
            line
            for host in self.hosts
            for line in self.sniffed(host)[self.ignored.get(host.name, 0) :]
            if line.startswith("clear")
        ]

    def neighbour(self, host: Host) -> Host:
        """Return the next host."""
        return self.hosts[(self.hosts.index(host) + 1) % len(self.hosts)]

    def next_victim(self) -> Host:
        """Return the hosts in turn, because flanneld treats many repairs on one host as a fight with another
        program.
        """
        return next(self._victims)
