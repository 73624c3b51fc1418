"""The daemon of this host: the process that holds its lock, and a status from its files if it does not
run.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from pyflannel.assembly.directories import Places
from pyflannel.errors import BusyError, ConfigError, NotReadyError, TargetError, UsageError, WireError
from pyflannel.http.sockets import server_pid
from pyflannel.kernel.host.files import read_end
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import IpNetwork, NetworkConfig
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.status import BackendStatus, LeaseStatus, NetworkStatus, Status
from pyflannel.plan.backend.udp import UdpBackend
from pyflannel.plan.backend.vxlan import VxlanBackend
from pyflannel.plan.backend.wireguard import WireguardBackend
from pyflannel.plan.backends import backend_of
from pyflannel.plan.doctor.observed import DaemonProcess, OpenFiles
from pyflannel.processes.forwarder_client import forwarder_link, forwarder_status
from pyflannel.processes.found import STOPPED, name_and_state
from pyflannel.processes.systemd import service_of, stop_service
from pyflannel.wire.lease_record import Kept, kept_lease, parse_last_known
from pyflannel.wire.network_config_json import parse_network_config
from pyflannel.wire.subnet_env import parse_subnet_env, previous_ipv6_subnet, previous_subnet

STOP_S = 20.0
"""Seconds in which a daemon must exit; longer than the daemon's own deadlines for its exit."""

_REPORT_S = 2.0
"""Seconds after which flannelctl reports that it is waiting."""

log = logging.getLogger(__name__)


def running_daemon(lock: Path) -> int | None:
    """Return the process ID of the daemon that holds `lock`; None without a daemon.

    The lock file contains, for example, `1234 flanneld`, possibly from a daemon that was killed. The process
    with that ID is the daemon only if it has the lock file open.
    """
    try:
        number, program = read_end(lock).decode().split(maxsplit=1)
        if program.strip() != "flanneld":
            return None  # another cleanup holds the lock
        pid = int(number)
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except (OSError, ValueError):
        return None
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if descriptor.samefile(lock):
                return pid
    return None


def daemon_process(lock: Path) -> DaemonProcess | None:
    """Return the daemon that holds `lock`, and whether it is stopped; None without a daemon."""
    pid = running_daemon(lock)
    if pid is None:
        return None
    return DaemonProcess(pid=pid, is_stopped=name_and_state(pid)[1] in STOPPED, files=open_files(pid))


def open_files(pid: int) -> OpenFiles | None:
    """Return the open files of a process, and its limit; None if they are unreadable."""
    with contextlib.suppress(OSError, ValueError):
        process = Path(f"/proc/{pid}")
        lines = (process / "limits").read_text(encoding="ascii").split("\n")
        line = next(line for line in lines if line.startswith(_OPEN_FILES))
        limit, most, *_ = line.removeprefix(_OPEN_FILES).split()
        return OpenFiles(len(os.listdir(process / "fd")), int(limit), int(most))
    return None


_OPEN_FILES = "Max open files"
"""The line of the limit in /proc/PID/limits: proc_pid_limits(5)."""


def may_ask(socket: Path) -> bool:
    """Return False if this process has no permission to use a control socket."""
    try:
        socket.stat()
    except PermissionError:
        return False
    except OSError:
        return True
    return os.access(socket, os.W_OK)


async def stop_daemon(lock: Path) -> int | None:
    """Stop the daemon that holds `lock` and return its process ID, or None without a daemon.

    A service is stopped by systemd, which would otherwise restart it.

    Raises:
        BusyError: the daemon did not exit in time; or its lock was deleted and only its socket shows that it
            runs; or the daemon runs several networks, and `lock` is the path for only one of them.
        TargetError: the user has no permission to stop the daemon.
        UsageError: the daemon runs in another network namespace, so its objects cannot be removed from here.
    """
    pid = running_daemon(lock)
    if pid is None:
        _check_unserved(Places(run_dir=lock.parent))
        return None
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        if running_daemon(lock) != pid:
            return None  # the process exited before the pidfd was open
        _check_namespace(pid)
        unit = service_of(pid)
        signal.pidfd_send_signal(process, 0)  # the process still runs, so its ID was not reused
        if unit is not None:
            await stop_service(unit, STOP_S)
        else:
            signal.pidfd_send_signal(process, signal.SIGTERM)
            signal.pidfd_send_signal(process, signal.SIGCONT)  # a stopped process handles no other signal
        await _end_of(process, pid)
    except ProcessLookupError:
        return pid
    except PermissionError as error:
        raise TargetError(
            f"no permission to stop flanneld (pid {pid})", hint="Run flannelctl as root."
        ) from error
    except TimeoutError as error:
        raise BusyError(
            f"flanneld (pid {pid}) did not exit within {STOP_S:g} s",
            hint=f"Read the log of flanneld, terminate flanneld with 'kill -9 {pid}', then run cleanup"
            " again.",
        ) from error
    finally:
        os.close(process)
    return pid


def check_own_files(places: Places, usual: Places) -> None:
    """Refuse a cleanup that would remove files of the daemon at the `usual` paths.

    Raises:
        UsageError: a path belongs to the running daemon at the default paths.
    """
    if places.run_dir == usual.run_dir:
        return
    theirs = [
        f"{option}={path}"
        for option, path, other in (
            ("--state-dir", places.state_dir, usual.state_dir),
            ("--subnet-file", places.subnet_file, usual.subnet_file),
        )
        if path == other
    ]
    if theirs and (usual.device_file.exists() or running_daemon(usual.lock) is not None):
        raise UsageError(
            f"the flanneld of {usual.run_dir} uses {' and '.join(theirs)}",
            hint=f"Also specify the state directory and the subnet file of {places.run_dir}."
            f" For one of several networks, these are {usual.state_dir}/NAME and "
            f"{usual.run_dir}/networks/NAME.env.",
        )


async def _end_of(process: int, pid: int) -> None:
    """Return after the process has exited, when its pidfd becomes readable."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(process, ended.set)
    try:
        async with asyncio.timeout(STOP_S):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_S):
                    await ended.wait()
            if not ended.is_set():
                log.warning("flanneld (pid %d) has not exited yet: waiting for at most %g s", pid, STOP_S)
                await ended.wait()
    finally:
        loop.remove_reader(process)


def _check_unserved(places: Places) -> None:
    control_socket = places.control_socket
    pid = server_pid(control_socket)
    if pid is not None and pid == running_daemon(Places(run_dir=places.run_dir.parent).lock):
        raise BusyError(
            f"flanneld (pid {pid}) runs the network {places.run_dir.name}, and perhaps others",
            hint="Remove the network from --networks and restart flanneld, or, with --watch-networks, delete"
            " its config from the store. After that, run the cleanup again.",
        )
    if pid is not None:
        unit = service_of(pid)
        raise BusyError(
            f"flanneld (pid {pid}) is running at {control_socket}, but its lock file is missing",
            hint=f"Terminate flanneld with '{f'systemctl stop {unit}' if unit else f'kill {pid}'}', then run "
            f"cleanup again.",
        )


def _check_namespace(pid: int) -> None:
    if not os.path.samefile(f"/proc/{pid}/ns/net", "/proc/self/ns/net"):
        raise UsageError(
            f"flanneld (pid {pid}) runs in another network namespace",
            hint=f"Run flannelctl in that namespace: nsenter --net=/proc/{pid}/ns/net flannelctl …",
        )


async def offline_status(places: Places, cause: str) -> Status:
    """Return a status from the files of a daemon and its forwarder. `cause` is the reason why the daemon
    does not respond.
    """
    env_text = _read(places.subnet_file)
    env = _subnet_env(env_text)
    known = last_known(places.last_known)
    config = _config(known)
    forwarder, link = await asyncio.gather(forwarder_status(places.run_dir), forwarder_link(places.run_dir))
    return Status(
        version=None,
        is_live=False,
        owner=places.owner() or _owner(known),
        host_name=known.own.attributes.host_name if known else None,
        waiting_for=cause,
        network=NetworkStatus(
            text=known.config if known else None,
            network=config.network if config else _network(env),
            ipv6_network=config.ipv6_network if config else _ipv6_network(env),
        ),
        lease=LeaseStatus(
            subnet=known.own.subnet if known else _previous_subnet(env_text),
            ipv6_subnet=known.own.ipv6_subnet if known else _previous_ipv6_subnet(env_text),
        ),
        backend=_backend(config, link, places.device() or FIRST_DEVICE, env),
        peers=_peers(known) if known else 0,
        forwarder=forwarder,
    )


def last_known_leases(places: Places) -> list[LeaseEntry]:
    """Return the leases in the last answer of the store that the daemon saved; empty if there is none."""
    known = last_known(places.last_known)
    leases = map(kept_lease, known.records if known else ())
    return [LeaseEntry.of(lease) for lease in leases if lease is not None]


def what_to_do(places: Places, status: Status, error: NotReadyError) -> str:
    """Return the remedy for a host whose daemon does not respond. `error` is the failure of the request."""
    if isinstance(error.__cause__, PermissionError):
        return error.hint
    pid = running_daemon(places.lock)
    inside = {path.parent for path in places.run_dir.glob(f"*/{places.control_socket.name}")}
    others = sorted(path for path in inside if running_daemon(Places(run_dir=path).lock) is not None)
    networks = sorted(inside.difference(others))
    if pid is not None and networks:
        return f"flanneld (pid {pid}) runs several networks: select one with {_options(networks)}."
    if pid is None and others:
        return f"Start flanneld, or select a running flanneld with {_options(others)}."
    if pid is not None:
        return f"flanneld (pid {pid}) runs: read its log, and restart it if it hangs."
    if status.forwarder is not None:
        return "Start flanneld. Until then, packets reach only the peers that flanneld last knew."
    return "Start flanneld. If flanneld uses another run directory, select this directory with --run-dir."


def _options(run_dirs: Iterable[Path]) -> str:
    return " or ".join(f"--run-dir={path}" for path in run_dirs)


def _backend(
    config: NetworkConfig | None, forwarder: str | None, device: str, env: Mapping[str, str]
) -> BackendStatus | None:
    """Return the backend of a daemon with this claimed device name. `forwarder`: device of the forwarder."""
    if config is None and forwarder is None:
        return None
    mtu = env.get("FLANNEL_MTU", "")
    link, *others = [forwarder] if config is None else _links(config, forwarder or device)
    return BackendStatus(
        type=config.backend_type if config else "udp",  # no other backend has a forwarder
        link=link,
        mtu=int(mtu) if mtu.isdecimal() else None,
        port=_port(config),
        ipv6_link=next((name for name in others if name != link), None),
    )


def _links(config: NetworkConfig, device: str) -> list[str | None]:
    """Return the tunnel device of each family of the network, the first family first; None for a backend
    without a tunnel device.

    `device`: the device name that the daemon claims.
    """
    with contextlib.suppress(ConfigError):
        match backend_of(config):
            case VxlanBackend() as vxlan:
                return [vxlan.device(family) for family in config.families]
            case WireguardBackend() as wireguard:
                return [wireguard.device(device, family) for family in config.families]
            case UdpBackend():
                return [device]
            case _:
                return [None]
    return [None]


def _port(config: NetworkConfig | None) -> int | None:
    with contextlib.suppress(ConfigError):
        return backend_of(config).tunnel_port if config is not None else None
    return None


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return read_end(path, follows_links=True).decode(errors="replace")
    return ""


def _subnet_env(text: str) -> Mapping[str, str]:
    with contextlib.suppress(WireError):
        return parse_subnet_env(text)
    return {}


def _previous_subnet(text: str) -> IpNetwork | None:
    with contextlib.suppress(WireError):
        return previous_subnet(text) or previous_ipv6_subnet(text)
    return None


def _previous_ipv6_subnet(text: str) -> IPv6Network | None:
    with contextlib.suppress(WireError):
        return previous_ipv6_subnet(text)
    return None


def _network(env: Mapping[str, str]) -> IPv4Network | None:
    with contextlib.suppress(ValueError):
        return IPv4Network(env.get("FLANNEL_NETWORK", ""))
    return None


def _ipv6_network(env: Mapping[str, str]) -> IPv6Network | None:
    with contextlib.suppress(ValueError):
        return IPv6Network(env.get("FLANNEL_IPV6_NETWORK", ""))
    return None


def last_known(path: Path) -> Kept | None:
    """Return the last known leases that the daemon saved; None if the file is missing or malformed."""
    with contextlib.suppress(OSError, WireError):
        return parse_last_known(read_end(path))
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
