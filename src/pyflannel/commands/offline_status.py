"""status without a daemon, from the files of the last daemon and the running forwarder."""

import contextlib
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network
from pathlib import Path

from pyflannel.assembly.directories import Places
from pyflannel.commands.daemon_process import running_daemon
from pyflannel.errors import ConfigError, WireError
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.status import BackendStatus, LeaseStatus, NetworkStatus, Status
from pyflannel.processes.forwarder_client import forwarder_link, forwarder_status
from pyflannel.wire.last_known_json import Kept, kept_lease, parse_last_known
from pyflannel.wire.network_config_json import parse_network_config
from pyflannel.wire.subnet_env import parse_subnet_env, previous_subnet


async def offline_status(places: Places, cause: str) -> Status:
    """Return a status from the files of a daemon and its forwarder; `cause` is why the daemon gave none."""
    env_text = _read(places.subnet_file)
    env = _subnet_env(env_text)
    known = _last_known(places.last_known)
    config = _config(known)
    forwarder = await forwarder_status(places.run_dir)
    link = await forwarder_link(places.run_dir)
    return Status(
        version=None,
        is_live=False,
        owner=places.owner() or _owner(known),
        waiting_for=cause,
        network=NetworkStatus(
            text=known.config if known else None, network=config.network if config else _network(env)
        ),
        lease=LeaseStatus(subnet=known.own.subnet if known else _previous_subnet(env_text)),
        backend=_backend(config, link, env),
        peers=_peers(known) if known else 0,
        forwarder=forwarder,
    )


def what_to_do(places: Places, status: Status) -> str:
    """Return the remedy for a host whose daemon does not respond."""
    pid = running_daemon(places.lock)
    inside = {path.parent for path in places.run_dir.glob(f"*/{places.control_socket.name}")}
    others = sorted(path for path in inside if running_daemon(Places(run_dir=path).lock) is not None)
    networks = sorted(inside.difference(others))
    if pid is not None and networks:
        return f"flanneld (pid {pid}) runs several networks: select one with {_options(networks)}."
    if pid is None and others:
        return f"Start flanneld, or select the one of another prefix with {_options(others)}."
    if pid is not None:
        return f"flanneld (pid {pid}) runs: read its log, and restart it if it hangs."
    if status.forwarder is not None:
        return "Start flanneld. Until then, packets reach only the peers that it knew last."
    return "Start flanneld. If it uses another run directory, select that with --run-dir."


def _options(run_dirs: Iterable[Path]) -> str:
    return " or ".join(f"--run-dir={path}" for path in run_dirs)


def _backend(config: NetworkConfig | None, link: str | None, env: Mapping[str, str]) -> BackendStatus | None:
    if config is None and link is None:
        return None
    mtu = env.get("FLANNEL_MTU", "")
    return BackendStatus(
        type=config.backend_type if config else "udp",  # no other backend has a forwarder
        link=link,
        mtu=int(mtu) if mtu.isdecimal() else None,
    )


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def _subnet_env(text: str) -> Mapping[str, str]:
    with contextlib.suppress(WireError):
        return parse_subnet_env(text)
    return {}


def _previous_subnet(text: str) -> IPv4Network | None:
    with contextlib.suppress(WireError):
        return previous_subnet(text)
    return None


def _network(env: Mapping[str, str]) -> IPv4Network | None:
    with contextlib.suppress(ValueError):
        return IPv4Network(env.get("FLANNEL_NETWORK", ""))
    return None


def _last_known(path: Path) -> Kept | None:
    with contextlib.suppress(OSError, WireError):
        return parse_last_known(path.read_bytes())
    return None


def _owner(known: Kept | None) -> str | None:
    """Return the owner of the last lease, because one of several networks has no identity file."""
    return known.own.attributes.owner if known else None


def _peers(known: Kept) -> int:
    leases = map(kept_lease, known.records)
    return len({lease.subnet for lease in leases if lease is not None} - {known.own.subnet})


def _config(known: Kept | None) -> NetworkConfig | None:
    with contextlib.suppress(ConfigError):
        return parse_network_config(known.config) if known else None
    return None
