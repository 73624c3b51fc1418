"""The directories and files of a daemon, and the names of its networks."""

import contextlib
import json
import os.path
import re
from dataclasses import dataclass
from pathlib import Path

from pyflannel.engine.network_follower import RESERVED
from pyflannel.model.link import MARK
from pyflannel.model.route import DEVICES
from pyflannel.processes.forwarder_launch import LOG_NAME
from pyflannel.wire.forwarder_control import SOCKET_NAME

_RUN_DIR = Path("/run/flannel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The directories of one daemon: what its options of these names say.

    Attributes:
        run_dir: sockets and the lock; gone after a boot.
        state_dir: identity and last known leases; stays.
        subnet_file: what Docker and others read.
        daemon_dir: the run directory of the daemon, where this is one of its several networks.
    """

    run_dir: Path = _RUN_DIR
    state_dir: Path = Path("/var/lib/flannel")
    subnet_file: Path = Path("/run/flannel/subnet.env")
    daemon_dir: Path | None = None

    @property
    def control_socket(self) -> Path:
        """The socket on which the daemon answers."""
        return self.run_dir / "flanneld.sock"

    @property
    def lock(self) -> Path:
        """The lock that a running daemon holds; its process id is in it."""
        return self.run_dir / "flanneld.lock"

    @property
    def identity(self) -> Path:
        """Who this host is."""
        return self.state_dir / "identity.json"

    @property
    def run_identity(self) -> Path:
        """Who this host is in this boot and network namespace, for a daemon without a state directory."""
        return (self.daemon_dir or self.run_dir) / self.identity.name

    @property
    def spoilt_identity(self) -> Path:
        """The stored identity that could not be read."""
        return self.identity.with_name(f"{self.identity.name}.corrupt")

    @property
    def last_known(self) -> Path:
        """The leases as of the store's last answer."""
        return self.state_dir / "last-known.json"

    @property
    def device_file(self) -> Path:
        """The name that the daemon claims: with a backend that has no such device, nothing else tells it."""
        return self.run_dir / "device"

    @property
    def bpf(self) -> Path:
        """Where a bpffs may be, for a daemon that may not open programs by their identifiers.

        Several networks share it: the programs of each are known by their device. No network's name begins
        with a dot.
        """
        return (self.daemon_dir or self.run_dir) / ".bpf"

    @property
    def mark(self) -> str:
        """The alias of our links: with the run directory, where it is not the usual one."""
        return MARK if self.run_dir == _RUN_DIR else f"{MARK} {self.run_dir}"

    def of_network(self, name: str, subnet_dir: Path) -> "Places":
        """Return the places of one of several networks; the identity is the host's."""
        return Places(
            run_dir=self.run_dir / name,
            state_dir=self.state_dir / name,
            subnet_file=subnet_dir / f"{name}.env",
            daemon_dir=self.run_dir,
        )

    @property
    def network(self) -> str | None:
        """The network of several that has these places; None for those of a daemon.

        Their names are those of `of_network`, and each daemon has an identity of its own.
        """
        name = self.state_dir.name
        is_one = self.run_dir.name == name and self.subnet_file.name == f"{name}.env"
        return name if is_one and not self.identity.exists() else None

    def device(self) -> str | None:
        """Return the name that the daemon of this run directory claimed last; None when that is not known."""
        with contextlib.suppress(OSError, ValueError):
            if (name := self.device_file.read_text(encoding="ascii").strip()) in DEVICES:
                return name
        return None

    def owner(self) -> str | None:
        """Return who this host is; None when no identity is kept, or it cannot be read."""
        for path in (self.identity, self.run_identity):
            with contextlib.suppress(OSError, ValueError, RecursionError):
                match json.loads(path.read_bytes()):
                    case {"Owner": str(owner)} if owner:
                        return owner
        return None


# The names of networks, where one daemon runs several: each is a key in the store, and directories here.
#
# Source: flannel 0.6.2, where a name is one segment of a path.

_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

_USUAL = Places()
_FILES = frozenset(
    {
        *(path.name for path in (_USUAL.control_socket, _USUAL.lock, _USUAL.device_file, _USUAL.subnet_file)),
        *(path.name for path in (_USUAL.identity, _USUAL.spoilt_identity, _USUAL.last_known)),
        SOCKET_NAME,
        LOG_NAME,
    }
)
"""What a daemon keeps where the directories of its networks are, in its run or its state directory."""


def objection(name: str) -> str | None:
    """Return why no network can have this name, in words; None if one can."""
    if name in RESERVED:
        return "flannel's own keys have it in the store"
    if name in _FILES:
        return "a file of flanneld's has it"
    if not _FORM.fullmatch(name):
        return "a name has letters, digits, '.', '-' and '_', the first a letter or a digit"
    return None


def file_in_the_way(name: str, places: Places) -> Path | None:
    """Return what stands where a directory of this network of the daemon is to be; None if nothing does."""
    own = places.of_network(name, places.run_dir)
    directories = (own.run_dir, own.state_dir)
    return next((path for path in directories if os.path.exists(path) and not os.path.isdir(path)), None)
