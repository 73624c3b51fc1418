"""A whole system with systemd as its first process, booted in the network of a sandbox."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pyflannel
from pyflannel.errors import LabError
from pyflannel.lab.program import Program, cgroup_of
from pyflannel.lab.sandbox import Sandbox
from pyflannel.lab.waiting import wait_until

_BOOT_DEADLINE_S = 120.0
_OFF_DEADLINE_S = 120.0
_INSTALLATION = (Path(sys.prefix), Path(pyflannel.__file__).resolve().parents[1])
_UP = ("running", "degraded")
_STARTED = ("starting", *_UP)
_PROGRAMS = ("flanneld", "flannelctl", "flannel-forwarder", "mk-docker-opts")

_LAY = """
mkdir -p "$1/layer" "$1/work" "$2"
mount -t overlay -o "lowerdir=$3,upperdir=$1/layer,workdir=$1/work" system "$2" || exit
rm -rf "$2"/etc/systemd/system/*.wants
tr -d - </proc/sys/kernel/random/uuid >"$2/etc/machine-id"
"""

# systemd treats its own control group as the root of each hierarchy. A group of version 1 for processors
# accepts no process before its processors are set.
_BOOT = """
roots=/sys/fs/cgroup
[ -e $roots/cgroup.procs ] || roots="$roots/*"
for group in $roots; do
    [ -e "$group/cgroup.procs" ] || continue
    for part in $(echo "$0" | tr / " "); do
        parent=$group group=$group/$part
        mkdir -p "$group" || exit
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$parent/$file" ] || cat "$parent/$file" >"$group/$file"
        done
    done
    echo $$ >"$group/cgroup.procs" || exit
done
exec systemd-nspawn "$@"
"""

# A container may write only to systemd's own hierarchy of version 1. Docker must write to all hierarchies.
_UNLOCK = (
    'for group in /sys/fs/cgroup/*; do ! mountpoint -q "$group" || mount -o remount,bind,rw "$group"; done'
)


class BootedSystem(Sandbox):
    """The programs of a real host: units, drop-ins, a journal, order at boot.

    The root of the system is a writable layer over `base`: the machine's own root, as far as it is on one
    file system, or a directory with another Debian. Over the machine's own root, the programs of this
    installation are in /usr/local/bin. The network of the system is the network of the sandbox. `run` and
    `start` work inside after it has booted.
    """

    def __init__(self, host: Sandbox, base: Path = Path("/")) -> None:
        super().__init__(host.name, host.directory)
        self._host = host
        self._base = base
        self._root = host.directory / "system/root"
        self._console: Program | None = None

    @staticmethod
    def missing() -> str | None:
        """Return a missing requirement of the machine, if any."""
        return None if shutil.which("systemd-nspawn") else "systemd-nspawn: Debian's systemd-container has it"

    def install(self) -> None:
        """Write the files, which remain after a boot, unlike /run. No unit of the machine is enabled.

        Raises:
            LabError: the machine's root cannot be the lower layer of another root.
        """
        self._host.run(["sh", "-c", _LAY, "sh", self._root.parent, self._root, self._base])
        # The device file is separate, with udev's mode, because the device file of the machine may have
        # another mode.
        self.write("/etc/tmpfiles.d/tun.conf", "d /dev/net\nc /dev/net/tun 0666 - - - 10:200\n")
        if self._base != Path("/"):
            return
        for name in _PROGRAMS:
            self._host.run(["ln", "-sf", Path(sys.executable).parent / name, self._root / "usr/local/bin"])
        # The units have other users, and the installation may be in a directory that only root may enter.
        parents = {self._root / parent.relative_to("/") for path in _INSTALLATION for parent in path.parents}
        self._host.run(
            ["sh", "-c", 'for each; do [ ! -d "$each" ] || chmod go+x "$each"; done', "sh", *parents]
        )
        if any(path.is_relative_to("/tmp") or path.is_relative_to("/var/tmp") for path in _INSTALLATION):
            # Units with a private /tmp would not see this installation.
            self.write("/etc/systemd/system/service.d/installation.conf", "[Service]\nPrivateTmp=no\n")

    def write(self, path: str, text: str) -> None:
        """Write a file before the boot."""
        to = self._root / path.lstrip("/")
        self._host.run(["mkdir", "-p", to.parent])
        self._host.run(["tee", to], text=text)

    def enable(self, *units: str) -> None:
        """Let systemd start units at boot."""
        self._host.run(["systemctl", f"--root={self._root}", "--quiet", "enable", *units])

    def boot(self) -> None:
        """Boot, and wait until systemd has begun to start units.

        Raises:
            LabError: systemd did not begin.
        """
        docker = self._host.directory / "docker"  # Docker's overlays cannot be on an overlay
        binds = (
            f"--bind={docker}:/var/lib/docker",
            *(f"--bind-ro={self._for_all_users(path)}:{path}" for path in _INSTALLATION),
        )
        self._console = self._host.start(
            [
                *("sh", "-c", _BOOT, cgroup_of(self.directory)),
                *("--quiet", "--register=no", "--keep-unit", "--boot", "--console=pipe"),
                f"--directory={self._root}",
                "--network-namespace-path=/proc/1/ns/net",
                "--capability=all",
                "--system-call-filter=@keyring bpf",  # required by Docker
                *(binds if self._base == Path("/") else ()),
                "systemd.unit=multi-user.target",
                "systemd.mask=systemd-modules-load.service",  # the system uses the kernel of the machine
            ],
            name="console",
            environment={"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
        )
        wait_until(self._has_begun, what=f"{self.name} boots", deadline_s=_BOOT_DEADLINE_S)
        self.run(["sh", "-c", _UNLOCK])

    def _for_all_users(self, path: Path) -> Path:
        """Return a part of the installation, as a copy if only root may read it, for users of units."""
        if path.stat().st_mode & 0o005 == 0o005:
            return path
        copy = self.directory / "installation" / path.name
        if not copy.exists():
            self._host.run(["mkdir", "-p", copy.parent])
            self._host.run(["cp", "--archive", path, copy])
            self._host.run(["chmod", "--recursive", "go+rX", copy])
        return copy

    def wait_up(self) -> None:
        """Wait until systemd has started all units.

        Raises:
            LabError: systemd did not finish; the message names the jobs that are waiting.
        """
        try:
            wait_until(self._is_up, what=f"systemd on {self.name} is up", deadline_s=_BOOT_DEADLINE_S)
        except LabError as error:
            error.add_note(self.systemctl("list-jobs", "--no-pager", check=False))
            raise

    def power_off(self) -> None:
        """Shut the system down. The files of the system remain."""
        if self._console is not None:
            self.run(["systemctl", "--no-block", "poweroff"])
            self._console.wait(_OFF_DEADLINE_S)
            self._console = None

    def systemctl(self, *argv: str, check: bool = True) -> str:
        """Run systemctl inside and return its output."""
        return self.run(["systemctl", *argv], check=check).stdout

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", f"--property={name}", "--value", unit).strip()

    def journal(self, unit: str) -> str:
        """Return the log of a unit."""
        return self.run(["journalctl", "--no-pager", "--output=cat", f"--unit={unit}"]).stdout

    def entering(self, argv: Sequence[str | Path]) -> list[str]:
        """Return the command that runs `argv` inside."""
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        return ["nsenter", f"--target={self.init_pid}", *spaces, "--", *map(str, argv)]

    def _has_begun(self) -> bool:
        """Find the first process of the system: the process of nspawn that is the first of its namespace."""
        assert self._console is not None
        if self._console.exit_code is not None:
            raise LabError(f"{self.name} does not boot", hint=self._console.last_words())
        found = _descendant_that_is_first(self._console.pid)
        if found is None:
            return False
        self.adopt(found)
        return self.run(["systemctl", "is-system-running"], check=False).stdout.strip() in _STARTED

    def _is_up(self) -> bool:
        return self.run(["systemctl", "is-system-running"], check=False).stdout.strip() in _UP


def _descendant_that_is_first(pid: int) -> int | None:
    """Return the process below `pid` with number 1 in its namespace."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in map(int, children):
            status = Path(f"/proc/{child}/status").read_text()
            ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if ids[-1] == "1" and os.readlink(f"/proc/{child}/exe").endswith("/systemd"):
                return child
            if (found := _descendant_that_is_first(child)) is not None:
                return found
    except OSError:
        pass
    return None
