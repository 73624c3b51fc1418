"""Probes whether the underlay carries packets with addresses of containers to peers without a tunnel."""

import asyncio
import contextlib
from collections.abc import Sequence
from itertools import islice

from pyflannel.commands.reach import bridge_address, ends_of, peers_of
from pyflannel.errors import TargetError
from pyflannel.kernel.host.packet_path import ask_route
from pyflannel.kernel.network.echo import send_echoes
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.probe import Echo
from pyflannel.model.status import Finding, Status
from pyflannel.plan.doctor.bare_packets import BareProbe, bare_findings

_PROBED, _ASKED = 16, 4
"""Maximum number of peers that are probed, and of peers with a tunnel for which the kernel is asked whether
the packets bypass the tunnel."""

_NEXT_HOP = 1
"""The TTL of packets that the peer answers instead of forwarding them."""


async def losses_of_bare_packets(status: Status, leases: Sequence[LeaseEntry]) -> tuple[Finding, ...]:
    """Return the finding that packets with addresses of containers are lost; empty if this host has no
    address of its subnet, is not ready, or sends all packets through a tunnel.
    """
    underlay = status.underlay
    own = status.lease.subnet if status.lease is not None else None
    if underlay is None or own is None or not status.is_ready:
        return ()
    with contextlib.suppress(TargetError):
        source = await bridge_address(own)
        if source is None:
            return ()
        public_ip, peers = underlay.address, await _direct_peers(status, leases)
        # The last addresses of a subnet are the last that an engine gives to containers.
        echoes = [
            Echo(destination=one.subnet[-2], source=sender, ttl=_NEXT_HOP)
            for one in peers
            for sender in (public_ip, source)
        ]
        results = await send_echoes(echoes)
        pairs = zip(peers, results[::2], results[1::2], strict=True)
        probes = [BareProbe(*one) for one in pairs]
        return tuple(bare_findings(probes, own, source, public_ip, underlay.link))
    return ()


async def _direct_peers(status: Status, leases: Sequence[LeaseEntry]) -> list[LeaseEntry]:
    """Return some peers to which this host sends the packets of containers without a tunnel."""
    backend = status.backend.type if status.backend is not None else None
    peers = (one for one in peers_of(status, leases) if not one.public_ip.is_unspecified)
    if backend == "host-gw":
        return list(islice((one for one in peers if ends_of(one)[1] is None), _PROBED))
    if backend != "vxlan":
        return []
    some = list(islice(peers, _ASKED))
    answers = await asyncio.gather(*(ask_route("host out", one.subnet[-2]) for one in some))
    pairs = zip(some, answers, strict=True)
    return [one for one, answer in pairs if answer is not None and answer.gateway == one.public_ip]
