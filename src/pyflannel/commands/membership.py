"""The network, subnet, leases and status of this host, from the daemon or from its files."""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.commands.host_links import interfaces_of_host, routes_of_network
from pyflannel.commands.local_daemon import last_known, last_known_leases, may_ask, offline_status
from pyflannel.commands.network_client import ControlClient
from pyflannel.errors import FlannelError, NotReadyError, WireError
from pyflannel.kernel.host.files import read_end
from pyflannel.model.host import RouteScope
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.status import Membership, RefusedPeer, Status
from pyflannel.plan.doctor.families import families_of, leases_in, network_of, status_in
from pyflannel.plan.underlay import UnderlayOptions, choose
from pyflannel.wire.lease_record import kept_lease
from pyflannel.wire.subnet_env import parse_subnet_env

DAEMON_S = 1.5
"""Deadline in seconds for the answer of the daemon, so that a command takes at most 5 s."""


async def status_of_host(places: Places) -> Status:
    """Return the status of the daemon, or a status from its files if it does not respond."""
    try:
        return await ControlClient(places.control_socket, DAEMON_S).status()
    except (NotReadyError, WireError) as error:
        return await offline_status(places, str(error))


async def leases_of_host(places: Places) -> list[LeaseEntry]:
    """Return the leases that the daemon knows, or the leases in its files if it does not respond."""
    with contextlib.suppress(NotReadyError, WireError):
        return await ControlClient(places.control_socket, DAEMON_S).leases()
    known = last_known(places.last_known)
    leases = () if known is None else (known.own, *filter(None, map(kept_lease, known.records)))
    return list({lease.subnet: LeaseEntry.of(lease) for lease in leases}.values())


async def memberships_of(places: Places, status: Status) -> tuple[Membership, ...]:
    """Return the network, subnet and underlay of the host in each family of its network; None for each
    unknown value.
    """
    leases = await leases_of_host(places)
    return tuple(
        [
            await membership_in(family, places, status_in(status, family, leases))
            for family in families_of(status)
        ]
    )


async def membership_in(family: Family, places: Places, status: Status) -> Membership:
    """Return the network, subnet and underlay of the host in a family.

    `status`: the status as in a network with this family alone.
    """
    leases = leases_in(last_known_leases(places), family)
    return Membership(
        network=network_of(status, family),
        subnet=status.lease.subnet if status.lease else None,
        underlay=(
            status.underlay.link
            if status.underlay
            else await _underlay(places, family, routes_of_network(status))
        ),
        peers={
            **{lease.subnet: lease.public_ip for lease in leases},
            **addresses_of(status.refused_peers, family),
        },
    )


def addresses_of(peers: Iterable[LeaseEntry | RefusedPeer], family: Family) -> dict[IpNetwork, IpAddress]:
    """Return the public address of each peer with an address in this family, by its subnet."""
    return {peer.subnet: peer.public_ip for peer in peers if peer.public_ip.version == family}


def known_networks(places: Places, *memberships: Membership) -> frozenset[IPv4Network | IPv6Network]:
    """Return the current and former networks of this host, from the store and each subnet.env."""
    files = [places.subnet_file, *places.run_dir.glob("networks/*.env")]
    named = {network for path in files for network in _named_in(path)}
    return frozenset(named.union(one.network for one in memberships if one.network is not None))


def _named_in(path: Path) -> Iterator[IPv4Network | IPv6Network]:
    with contextlib.suppress(OSError, WireError):
        env = parse_subnet_env(read_end(path, follows_links=True).decode(errors="replace"))
        for name in ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"):
            for word in env.get(name, "").split(","):
                with contextlib.suppress(ValueError):
                    yield ip_network(word.strip())


async def _underlay(places: Places, family: Family, scope: RouteScope) -> str | None:
    """Return the interface with the address of the last lease, or otherwise the interface of the default
    route.
    """
    with contextlib.suppress(FlannelError):
        interfaces, known = await interfaces_of_host(scope), last_known(places.last_known)
        part = None if known is None else known.own.part(family)
        own = None if part is None else interfaces.holder(part.address)
        if own is not None:
            return own.name
        return choose(UnderlayOptions(), interfaces, families=(family,)).link
    return None


async def known_host(places: Places, socket: Path | None) -> tuple[Places, Status, list[LeaseEntry]]:
    """Return the paths of the daemon, its status and its leases.

    Raises:
        NotReadyError: flanneld does not respond, and its files contain no leases.
    """
    if socket is not None:
        places = replace(places, run_dir=socket.parent)
    status, leases = await asyncio.gather(status_of_host(places), leases_of_host(places))
    if not leases:
        raise without_leases(places)
    return places, status, leases


def without_leases(places: Places) -> NotReadyError:
    """Return the error that this process knows no leases."""
    if not may_ask(places.control_socket):
        return NotReadyError(
            "this user has no permission to ask flanneld, and to read its files",
            hint="Run flannelctl as root, or as the user of flanneld.",
        )
    return NotReadyError(
        "no lease is known on this host: flanneld does not respond, or has no lease",
        hint="Run flannelctl doctor.",
    )
