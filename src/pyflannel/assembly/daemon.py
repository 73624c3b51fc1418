"""The daemon, put together: options become adapters, adapters and engine become one host of a network."""

import asyncio
import logging
import random
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from pyflannel.assembly.forwarder_status import forwarder_status
from pyflannel.assembly.options import FlanneldOptions
from pyflannel.assembly.store import open_store
from pyflannel.engine.status_report import status_of
from pyflannel.engine.supervisor import HostOptions, Supervisor, World
from pyflannel.engine.targets import Targets
from pyflannel.kernel.atomic_file import replace_file
from pyflannel.kernel.clock import BoottimeClock
from pyflannel.kernel.files import FileTarget
from pyflannel.kernel.interfaces import KernelInterfaces
from pyflannel.kernel.linux import LinuxTarget
from pyflannel.kernel.lock import RunLock
from pyflannel.kernel.machine import new_identity, read_identity
from pyflannel.kernel.notify import notify
from pyflannel.model.address import Address
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host_file import HostFile
from pyflannel.model.lease import Lease
from pyflannel.model.link import Link
from pyflannel.model.route import Route
from pyflannel.model.status import Status
from pyflannel.plan.underlay import UnderlayOptions
from pyflannel.ports.store import Store
from pyflannel.processes.forwarder import ForwarderTarget

log = logging.getLogger(__name__)


def run_lock(options: FlanneldOptions) -> RunLock:
    """Return the lock that keeps a second daemon out of the run directory."""
    return RunLock(str(Path(options.run_dir, "flanneld.lock")))


class Daemon:
    """One flanneld; `control` and other doors ask it, `run` runs it.

    Raises:
        TargetError: the kernel or the state directory cannot be used at all.
        UsageError: the store's URL makes no sense.
    """

    def __init__(self, options: FlanneldOptions) -> None:
        self._options = options
        self._clock = BoottimeClock()
        self._store: Store = open_store(options.store_url)
        self._forwarder = ForwarderTarget(Path(options.run_dir))
        linux = LinuxTarget()
        world = World(
            store=self._store,
            target=Targets(
                {
                    Link: linux,
                    Address: linux,
                    Route: linux,
                    Forwarder: self._forwarder,
                    ForwarderPeer: self._forwarder,
                    HostFile: FileTarget(),
                }
            ),
            interfaces=KernelInterfaces(),
            clock=self._clock,
            memory=FileMemory(Path(options.state_dir, "last-known.json")),
            notify=notify,
            draw=random.SystemRandom().randrange,
            reidentify=lambda: new_identity(options.state_dir, options.machine_id_file),
        )
        self._supervisor = Supervisor(world, _host_options(options))

    async def run(self) -> None:
        """Run until cancelled; nothing that carries packets ends with it."""
        try:
            await self._supervisor.run()
        finally:
            await self._store.close()

    async def status(self) -> Status:
        """Return what the daemon is doing now; the forwarder is asked itself."""
        forwarder, _ = await forwarder_status(Path(self._options.run_dir))
        status = status_of(
            self._supervisor,
            version=version("pyflannel"),
            store_url=self._options.store_url,
            clock=self._clock,
        )
        return replace(status, forwarder=forwarder)

    def leases(self) -> list[Lease]:
        """Return every lease that the daemon knows, its own too."""
        return list(self._supervisor.leases())

    def config_text(self) -> str | None:
        """Return the network config that the host runs with; None when there is none."""
        return self._supervisor.config_text

    async def set_config(self, text: str) -> None:
        """Write the network config to the store."""
        await self._supervisor.set_config(text)


class FileMemory:
    """A Memory in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> bytes | None:
        """Return the file's octets, or None."""
        try:
            return await asyncio.to_thread(self._path.read_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("Could not read %s: %s", self._path, error.strerror)
            return None

    async def save(self, octets: bytes) -> None:
        """Replace the file."""
        try:
            await asyncio.to_thread(replace_file, str(self._path), octets.decode())
        except OSError as error:
            log.warning("Could not save the last known leases to %s: %s", self._path, error.strerror)


def _host_options(options: FlanneldOptions) -> HostOptions:
    return HostOptions(
        identity=read_identity(options.state_dir, options.machine_id_file, options.node_id),
        underlay=UnderlayOptions(
            ifaces=options.iface,
            iface_regexes=options.iface_regex,
            can_reach=options.iface_can_reach,
            public_ip=options.public_ip,
        ),
        subnet_file=options.subnet_file,
        subnet_env=_old_text(options.subnet_file),
        renew_margin_s=options.renew_margin_s,
        renumbers=options.on_subnet_lost == "renumber",
        ip_masq=options.ip_masq,
    )


def _old_text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        log.error("Couldn't fetch previous FLANNEL_SUBNET from subnet file at %s: %s", path, error.strerror)
        return None
