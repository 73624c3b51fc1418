"""The forwarder's table of peers: where packets to a subnet go, and where packets from it come from."""

from collections.abc import Iterable
from socket import inet_ntoa

from pyflannel.wire.forwarder_control import Peer

Endpoint = tuple[str, int]
"""Where a peer is: its address as text, its UDP port; a socket's own form."""


class PeerTable:
    """Peers by subnet, found by longest prefix.

    A look-up costs one dictionary access for each prefix length in use, whatever the number of peers.
    """

    def __init__(self) -> None:
        self._peers: dict[tuple[int, int], Peer] = {}
        self._levels: list[tuple[int, dict[int, Endpoint]]] = []

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All peers, in no order."""
        return tuple(self._peers.values())

    def find(self, address: int) -> Endpoint | None:
        """Return the endpoint of the longest subnet that holds the address, or None."""
        for mask, endpoints in self._levels:
            if (endpoint := endpoints.get(address & mask)) is not None:
                return endpoint
        return None

    def replace(self, peers: Iterable[Peer]) -> None:
        """Let these be all peers."""
        self._peers.clear()
        self._levels.clear()
        self.change((), peers)

    def change(self, removals: Iterable[tuple[int, int]], peers: Iterable[Peer]) -> None:
        """Take out the (subnet, prefix length) pairs, those that are not there apart, then set the peers."""
        by_mask = dict(self._levels)
        for subnet, length in removals:
            if self._peers.pop((subnet, length), None):
                by_mask[_mask(length)].pop(subnet)
        for peer in peers:
            self._peers[peer.subnet, peer.prefix_length] = peer
            endpoint = inet_ntoa(peer.address.to_bytes(4, "big")), peer.port
            by_mask.setdefault(_mask(peer.prefix_length), {})[peer.subnet] = endpoint
        self._levels = sorted(((m, e) for m, e in by_mask.items() if e), key=lambda level: -level[0])


def _mask(prefix_length: int) -> int:
    return 0xFFFFFFFF << (32 - prefix_length) & 0xFFFFFFFF
