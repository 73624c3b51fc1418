"""The bytes from each peer to this host, and the bytes to each peer, which the peers count."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyflannel.assembly.directories import Places
from pyflannel.assembly.peer_counters import TUNNELS, bytes_from_peers
from pyflannel.commands.network_client import ControlClient
from pyflannel.errors import FlannelError
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.model.lease import PeerEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.status import Status


async def received_bytes(
    places: Places, status: Status, peers: Sequence[PeerEntry]
) -> Mapping[IpNetwork, int]:
    """Return the bytes of the tunnel packets from each peer, by the subnet of the peer.

    A peer is missing if its bytes are unknown. The result is empty without root.
    """
    device = places.device()
    if device is None or not status.is_live:
        return {}
    with contextlib.closing(FastPath(str(places.bpf))) as programs:
        return await bytes_from_peers(device, status, peers, programs.received)


async def sent_bytes(
    socket: Path, deadline_s: float, status: Status, peers: Sequence[PeerEntry]
) -> Mapping[IpNetwork, int]:
    """Return the bytes of the tunnel packets to each of these peers, as the peers count them at this time.

    A peer is missing if its count is unknown. The result is empty if flanneld cannot ask the peers.
    """
    backend = status.backend
    if backend is None or backend.type not in TUNNELS or not status.is_live or not peers:
        return {}
    with contextlib.suppress(FlannelError):  # also if flanneld is of an earlier version
        return await ControlClient(socket, deadline_s).peer_bytes([peer.subnet for peer in peers])
    return {}
