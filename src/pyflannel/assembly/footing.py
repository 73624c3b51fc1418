"""Where this host stands in its network, from the daemon if it answers, else from what it left."""

import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from pyflannel.assembly.control_client import ControlClient
from pyflannel.assembly.offline_status import offline_status
from pyflannel.assembly.places import Places
from pyflannel.errors import FlannelError, NotReadyError, WireError
from pyflannel.kernel.network.interfaces import KernelInterfaces
from pyflannel.model.footing import Footing
from pyflannel.model.status import Status
from pyflannel.plan.underlay import UnderlayOptions, choose
from pyflannel.wire.last_known_json import parse_last_known
from pyflannel.wire.subnet_env import parse_subnet_env


async def status_of_host(places: Places) -> Status:
    """Return what the daemon says, or what its files say when it does not answer."""
    try:
        return await ControlClient(places.control_socket).status()
    except (NotReadyError, WireError) as error:
        return await offline_status(places, str(error))


async def footing_of(places: Places, status: Status) -> Footing:
    """Return where the host stands; what cannot be known stays open."""
    return Footing(
        network=status.network.network if status.network else None,
        subnet=status.lease.subnet if status.lease else None,
        underlay=status.underlay.link if status.underlay else await _underlay(places),
    )


def known_networks(places: Places, footing: Footing) -> frozenset[IPv4Network | IPv6Network]:
    """Return the networks that this host is, or was, in: as the store and each subnet.env here name them."""
    files = [places.subnet_file, *places.run_dir.glob("networks/*.env")]
    named = {network for path in files for network in _named_in(path)}
    return frozenset(named if footing.network is None else {footing.network, *named})


def _named_in(path: Path) -> Iterator[IPv4Network | IPv6Network]:
    with contextlib.suppress(OSError, WireError):
        env = parse_subnet_env(path.read_text(errors="replace"))
        for name in ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"):
            for word in env.get(name, "").split(","):
                with contextlib.suppress(ValueError):
                    yield ip_network(word.strip())


async def _underlay(places: Places) -> str | None:
    """Return the interface that has the address of our last lease, or else that of the default route."""
    with contextlib.suppress(FlannelError):
        observer = KernelInterfaces()
        try:
            interfaces = await observer.observe()
        finally:
            observer.close()
        with contextlib.suppress(OSError, WireError):
            own = parse_last_known(places.last_known.read_bytes()).own
            if (holder := interfaces.holder(own.attributes.public_ip)) is not None:
                return holder.name
        return choose(UnderlayOptions(), interfaces).link
    return None
