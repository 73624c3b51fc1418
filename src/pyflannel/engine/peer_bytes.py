"""The bytes that this host sent to its peers, as the peers counted them.

With vxlan and udp, only the receiver of a tunnel packet counts it. To learn the bytes to its peers, a host
asks the peers, and each peer reads its counter of the requesting host. No host counts further packets, and no
host sends probes.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from pyflannel.engine.host_requests import LeasedHost, Requests, Signatures
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.reach_matrix import ByteCount, RowRequest, most_hosts
from pyflannel.model.store_record import Record
from pyflannel.ports import Clock, Store
from pyflannel.wire.reach_record import BYTES

COUNTS_S = 1.0
"""Seconds after which the counter of a host is unknown, so that flannelctl answers within 5 s. A counter
that arrives is therefore at most this old."""

INTERVAL_S = 0.2
"""Shortest interval in seconds between two records of this host."""

_WAITING = 4
"""Number of requests that can wait. Further requests have no effect."""


class CountingNetwork(LeasedHost, Protocol):
    """The host, its leases and its counters."""

    async def received(self, peer: Lease) -> int | None:
        """Return the bytes of the tunnel packets from a peer; None if they are not counted.

        Raises:
            TargetError: the kernel does not return the counter.
        """


class PeerBytes:
    """Asks peers how many bytes they received from this host, and answers the same requests of peers."""

    def __init__(
        self, *, store: Store | None, clock: Clock, network: CountingNetwork, signatures: Signatures | None
    ) -> None:
        """`store` and `signatures`: see Requests."""
        self._network = network
        self._requests = Requests(
            BYTES,
            store=store,
            clock=clock,
            host=network,
            signatures=signatures,
            answer=self._answer,
            interval_s=INTERVAL_S,
            waiting=_WAITING,
        )

    def see(self, record: Record) -> None:
        """Handle a record that another host, or this host, has just written."""
        self._requests.see(record)

    async def run(self) -> None:
        """Answer requests of other hosts until cancelled."""
        await self._requests.run()

    async def _answer(self, own: Lease, request: RowRequest) -> ByteCount | None:
        asker = self._network.leases.by_subnet.get(request.asker)
        if asker is None:
            return None
        received = await self._network.received(asker)
        return ByteCount(id=request.id, host=own.subnet, received=received)

    async def ask(self, hosts: Sequence[IpNetwork]) -> Mapping[IpNetwork, int]:
        """Return the bytes that each of these hosts received from this host, as counted within the last
        COUNTS_S.

        A host is missing if it does not count these bytes, does not answer in time, or is one of too many
        hosts. The original flannel publishes no owner and is not asked.
        """
        own, known = self._network.own, self._network.leases
        if own is None:
            return {}
        others = [
            host
            for host in dict.fromkeys(hosts)
            if host != own.subnet
            and (lease := known.by_subnet.get(host)) is not None
            and lease.attributes.owner is not None
        ][: most_hosts(len(known)) - 1]
        if not others:
            return {}
        replies = await self._requests.ask(own, (own.subnet, *others), COUNTS_S)
        return {host: count.received for host, count in replies.answers.items() if count.received is not None}
