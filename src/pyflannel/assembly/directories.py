"""The directories and files of a daemon, and the names of its networks."""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.assembly.stores import DEFAULT_PREFIX
from pyflannel.kernel.host.files import next_path, read_end, replace_file
from pyflannel.kernel.host.locks import is_locked
from pyflannel.model.link import MARK
from pyflannel.model.route import DEVICES
from pyflannel.model.wireguard import LOG_NAME as WIREGUARD_LOG_NAME
from pyflannel.wire.forwarder_control import LOG_NAME, SOCKET_NAME
from pyflannel.wire.lease_record import RESERVED

_RUN_DIR = Path("/run/flannel")

DOCKER_SOCKET = Path("/run/docker/plugins/flannel.sock")
"""The default socket of the network plugin for Docker. Docker searches this directory for the sockets of
plugins."""


class Places(Struct, frozen=True, kw_only=True):
    """The directories and files of one daemon. The options of flanneld with the names of the attributes
    select the paths.

    Attributes:
        run_dir: directory of the sockets and the lock; empty after a boot.
        state_dir: directory of the identity and the last known leases; it must remain after a boot.
        subnet_file: file that Docker and other programs read.
        daemon: paths of the whole daemon, if this object contains the paths of one of several networks; None
            otherwise.
    """

    run_dir: Path = _RUN_DIR
    state_dir: Path = Path("/var/lib/flannel")
    subnet_file: Path = Path("/run/flannel/subnet.env")
    daemon: "Places | None" = None

    @property
    def shared(self) -> "Places":
        """The paths that all networks of the daemon share."""
        return self.daemon or self

    @property
    def control_socket(self) -> Path:
        """The control socket of the daemon."""
        return self.run_dir / "flanneld.sock"

    @property
    def lock(self) -> Path:
        """The lock file that a running daemon holds; it contains the process ID."""
        return self.run_dir / "flanneld.lock"

    @property
    def identity(self) -> Path:
        """The file of the identity of this host."""
        return self.state_dir / "identity.json"

    @property
    def run_identity(self) -> Path:
        """The identity for this boot and network namespace, for a daemon without a state directory."""
        return self.shared.run_dir / self.identity.name

    @property
    def spoilt_identity(self) -> Path:
        """The unreadable identity file that flanneld renamed."""
        return self.identity.with_name(f"{self.identity.name}.corrupt")

    @property
    def lease_key(self) -> Path:
        """The file of the key by which the host signs its lease."""
        return self.shared.state_dir / "lease-key.json"

    @property
    def lease_counters(self) -> Path:
        """The file of the counters of signed leases."""
        return self.state_dir / "lease-counters.json"

    @property
    def allow_list(self) -> Path:
        """The file of the last verified allow-list from the store."""
        return self.state_dir / "allow-list.json"

    @property
    def last_known(self) -> Path:
        """The file of the last known leases: the leases that flanneld last read from the store."""
        return self.state_dir / "last-known.json"

    @property
    def docker(self) -> Path:
        """The file of the networks of Docker that the network plugin serves."""
        return self.state_dir / "docker-networks.json"

    @property
    def wireguard_key(self) -> Path:
        """The file of the WireGuard key, unless WIREGUARD_KEY_FILE names another file."""
        return self.state_dir / "wgkey"

    @property
    def next_wireguard_key(self) -> Path:
        """The file of the next WireGuard key during a rotation."""
        return next_path(self.wireguard_key)

    @property
    def original_wireguard_key(self) -> Path | None:
        """The key file of the original flannel, which the default daemon takes over."""
        return _RUN_DIR / "wgkey" if self.mark == MARK else None

    @property
    def prefix_file(self) -> Path:
        """The file that contains the store's prefix. The file name begins with a dot, because no name of a
        network begins with a dot.
        """
        return self.state_dir / ".prefix"

    @property
    def device_file(self) -> Path:
        """The file with the device name that the daemon claimed. Backends without a device record this name
        only in this file.
        """
        return self.run_dir / "device"

    @property
    def bpf(self) -> Path:
        """Mount point of a bpffs, for a daemon without the right to open programs by their identifiers.

        Several networks share this bpffs. Each network finds its eBPF programs by their device. The name of
        the directory begins with a dot, because no name of a network begins with a dot.
        """
        return self.shared.run_dir / ".bpf"

    @property
    def mark(self) -> str:
        """The alias of the links that this daemon owns. The alias contains the run directory, unless the run
        directory is the default directory.
        """
        return MARK if self.run_dir == _RUN_DIR else f"{MARK} {self.run_dir}"

    def of_network(self, name: str, subnet_dir: Path) -> "Places":
        """Return the paths of one of several networks. All networks share the identity of the host."""
        return Places(
            run_dir=self.run_dir / name,
            state_dir=self.state_dir / name,
            subnet_file=subnet_dir / f"{name}.env",
            daemon=self,
        )

    @property
    def network(self) -> str | None:
        """The name of the network if this object contains the paths of one of several networks; None
        otherwise.

        The property recognizes the paths that `of_network` returns. These paths contain no identity.
        """
        name = self.state_dir.name
        is_one = self.run_dir.name == name and self.subnet_file.name == f"{name}.env"
        return name if is_one and not self.identity.exists() else None

    def device(self) -> str | None:
        """Return the device name that the daemon of this run directory claimed last; None if unknown."""
        with contextlib.suppress(OSError, ValueError):
            if (name := read_end(self.device_file).decode("ascii").strip()) in DEVICES:
                return name
        return None

    def of_prefix(self, prefix: str | None) -> "Places":
        """Return the paths of the daemon with this prefix in the store, if this object contains the default
        paths.

        The default prefix, and a store without a prefix (None), use the default paths. Another prefix uses
        directories inside the default directories. Earlier versions used the default paths for every prefix.
        If a daemon with this prefix already used the default paths, the daemon keeps them. No network can
        have the name of a directory of a prefix.
        """
        if prefix in (None, DEFAULT_PREFIX):
            return self
        name = _directory_of(str(prefix))
        own = replace(self, run_dir=self.run_dir / name, state_dir=self.state_dir / name)
        return self if not os.path.exists(own.identity) and self._belong_to(str(prefix)) else own

    def _belong_to(self, prefix: str) -> bool:
        try:
            return self.prefix_file.read_bytes() == os.fsencode(prefix)
        except FileNotFoundError:
            return self.identity.exists() and not is_locked(str(self.lock))
        except OSError:
            return False

    def keep_prefix(self, prefix: str | None) -> None:
        """Record the prefix of the daemon that uses these paths, unless the directory is read-only."""
        with contextlib.suppress(OSError):
            replace_file(str(self.prefix_file), os.fsencode(prefix or ""))

    def owner(self) -> str | None:
        """Return the identity of this host; None if no identity is stored or readable."""
        for path in (self.identity, self.run_identity):
            with contextlib.suppress(OSError, ValueError, RecursionError):
                match json.loads(read_end(path)):
                    case {"Owner": str(owner)} if owner:
                        return owner
        return None


_LONGEST_DIRECTORY = 64
"""Maximum number of characters of the directory name of a prefix, because the path of a Unix socket in
this directory has at most 107 bytes."""


def _directory_of(prefix: str) -> str:
    """Return the name of the directories of a prefix: `@coreos.com@blue` for `/coreos.com/blue`."""
    name = quote(os.fsencode(prefix), safe="/").replace("/", "@")
    if len(name) < _LONGEST_DIRECTORY:
        return name
    digest = hashlib.sha256(os.fsencode(prefix)).hexdigest()[:16]
    return f"{name[: _LONGEST_DIRECTORY - len(digest) - 1]}~{digest}"


# The names of several networks in one daemon. Each name is a key in the store and the name of a directory on
# this host.
#
# Source: flannel 0.6.2, where the name of a network is one segment of a path.

_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

_USUAL = Places()
_FILES = frozenset(
    {
        *(path.name for path in (_USUAL.control_socket, _USUAL.lock, _USUAL.device_file, _USUAL.subnet_file)),
        *(path.name for path in (_USUAL.identity, _USUAL.spoilt_identity, _USUAL.last_known)),
        *(path.name for path in (_USUAL.lease_key, _USUAL.lease_counters, _USUAL.allow_list, _USUAL.docker)),
        *(path.name for path in (_USUAL.wireguard_key, _USUAL.next_wireguard_key)),
        SOCKET_NAME,
        LOG_NAME,
        WIREGUARD_LOG_NAME,
    }
)
"""Names of the daemon's own files in its run and state directories, which also contain directories of its
networks."""


def objection(name: str) -> str | None:
    """Return the reason why this name is not allowed for a network; None if it is allowed."""
    if name in RESERVED:
        return "flannel uses this key in the store"
    if name in _FILES:
        return "a file of flanneld has this name"
    if not _FORM.fullmatch(name):
        return "a name consists of letters, digits, '.', '-' and '_', and begins with a letter or a digit"
    return None


def file_in_the_way(name: str, places: Places) -> Path | None:
    """Return the file that occupies the path of a directory of this network; None if there is none."""
    own = places.of_network(name, places.run_dir)
    directories = (own.run_dir, own.state_dir)
    return next((path for path in directories if os.path.exists(path) and not os.path.isdir(path)), None)
