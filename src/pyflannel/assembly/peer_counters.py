"""The bytes from each peer to this host, from the counters of the tunnel guard and of the eBPF programs."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing, suppress

from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.layout import Sender
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.lease import PeerEntry
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.status import (
    BY_PROGRAMS,
    Status,
)
from pyflannel.model.tunnel_guard import GuardTable
from pyflannel.wire.netlink.guard_rules import SETS, name_of, source_of
from pyflannel.wire.netlink.nftables import PROTOCOL, dump_elements, parse_element_bytes

TUNNELS = frozenset({"vxlan", "udp"})
"""The types of backends whose tunnel packets the receiver counts."""

_Source = tuple[IpAddress, IpAddress]
"""The outer source and the first inner source of the packets of a peer."""


async def bytes_from_peers(
    device: str,
    status: Status,
    peers: Sequence[PeerEntry],
    of_programs: Callable[[str], Awaitable[Mapping[Sender, int]]],
) -> dict[IpNetwork, int]:
    """Return the bytes of the tunnel packets from each peer, by the subnet of the peer.

    A peer is missing if its bytes are unknown, for example if the guard checks only the outer source, and
    peers share an address. The result is empty without root and on kernels before Linux 5.7.

    Args:
        device: name that the daemon claims.
        status: status of the daemon.
        peers: all peers of the network.
        of_programs: function that returns the bytes that the programs of a tunnel decapsulated.
    """
    backend, own = status.backend, status.lease
    if backend is None or backend.type not in TUNNELS or own is None or own.subnet is None:
        return {}
    with suppress(TargetError, OSError):
        by_guard = _by_peer(peers, await _by_source(device))
        if status.fast_path is None or status.fast_path.mode not in BY_PROGRAMS:
            return by_guard
        return _with_programs(by_guard, await of_programs(device), own.subnet.prefixlen, peers)
    return {}


def _with_programs(
    by_guard: Mapping[IpNetwork, int],
    by_programs: Mapping[_Source, int],
    prefix_length: int,
    peers: Sequence[PeerEntry],
) -> dict[IpNetwork, int]:
    """Return the sums of both counters. The programs cannot distinguish a peer whose subnet has another
    prefix length than the subnet of this host.
    """
    return {
        peer.subnet: by_guard[peer.subnet] + by_programs.get((peer.public_ip, peer.subnet.network_address), 0)
        for peer in peers
        if peer.subnet in by_guard and peer.subnet.prefixlen == prefix_length
    }


async def _by_source(device: str) -> dict[_Source, int]:
    """Return the counted bytes of all elements.

    Raises:
        TargetError: the sets cannot be read.
    """
    found: dict[_Source, int] = {}
    with closing(RequestSocket(PROTOCOL)) as requests:
        for family, sets in SETS.items():
            table = name_of(GuardTable(device=device, family=family))
            for spec in sets.of_sources:
                with suppress(TargetError):  # without this family, the table does not exist
                    for counted in await requests.dump(dump_elements(table, spec.name), parse_element_bytes):
                        found |= {source_of(key): size for key, size in counted.items()}
    return found


def _by_peer(peers: Sequence[PeerEntry], counted: Mapping[_Source, int]) -> dict[IpNetwork, int]:
    parts = {
        (peer.subnet, outer, subnet)
        for peer in peers
        for outer, subnet in ((peer.public_ip, peer.subnet), (peer.public_ipv6, peer.ipv6_subnet))
        if outer is not None and subnet is not None and outer.version == subnet.version
    }
    sharing = Counter(outer for _, outer, _ in parts)
    found: dict[IpNetwork, int] = {}
    for peer, outer, subnet in parts:
        size = counted.get((outer, subnet.network_address))
        if size is None and sharing[outer] == 1:
            size = counted.get((outer, type(outer)(0)))
        if size is not None:
            found[peer] = found.get(peer, 0) + size
    return found
