"""Preparation of the host, as root, for a flanneld that runs as another user. The unit runs this code
before each start.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from pyflannel.assembly.directories import Places
from pyflannel.errors import FlannelError, TargetError, UsageError, in_words
from pyflannel.kernel.bpf.pins import pin_directory, pin_standing
from pyflannel.processes.forwarder_launch import move_forwarder
from pyflannel.wire.forwarder_control import SOCKET_NAME

XTABLES_LOCK = Path("/run/xtables.lock")
"""Lock file of iptables. The programs of iptables create this file with mode 0600."""

_PROTECTED_HARDLINKS = Path("/proc/sys/fs/protected_hardlinks")


class User(Struct, frozen=True):
    """A user of this host."""

    name: str
    uid: int
    gid: int


def user_named(name: str) -> User:
    """Return a user.

    Raises:
        UsageError: the user does not exist on this host.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UsageError(
            f"the user {name} does not exist on this host",
            hint="Run systemd-sysusers, or install the package again.",
        ) from None
    return User(name, entry.pw_uid, entry.pw_gid)


async def prepare(
    places: Places, user: User, lock: Path = XTABLES_LOCK
) -> tuple[list[str], list[FlannelError]]:
    """Give the user access to the files that flanneld needs; return lines that report the changes, and the
    failures.

    A failure of one part does not prevent the others. The process needs root and the mount namespace of the
    host.
    """
    done: list[str] = []
    failures: list[FlannelError] = []
    for directory in (places.shared.run_dir, places.shared.state_dir):
        if count := give_files(directory, user):
            done.append(f"gave {count} files of root in {directory} to {user.name}")
    try:
        _share_lock(lock, user)
    except OSError as error:
        hint = "Legacy iptables needs this file. Set EnableNFTables in the network config to use nftables."
        failures.append(TargetError.of(f"{user.name} cannot use {lock}", error, hint=hint))
    for part in (create_pins(places, user), _move_forwarders(places.shared.run_dir, user)):
        try:
            done += await part
        except FlannelError as error:
            failures.append(error)
    return done, failures


def give_files(directory: Path, user: User) -> int:
    """Make the user the owner of root's files below a directory that this user owns. Return the number of
    these files.

    These files are from a flanneld that ran as root. When systemd changes the owner of the directory, it also
    changes the files in it, but not files that root creates later. The user may put links into the directory,
    so symbolic links and files with several hard links are skipped. If the kernel does not protect hard
    links, the user could create hard links to files of root, so this function then changes nothing.
    """
    count = 0
    with suppress(OSError):
        device, owner = os.stat(directory).st_dev, os.stat(directory).st_uid
        if owner != user.uid or _PROTECTED_HARDLINKS.read_text().strip() != "1":
            return 0
        for _, directories, files, descriptor in os.fwalk(directory, follow_symlinks=False):
            for name in (*directories, *files):
                count += _give(name, descriptor, device, user)
            directories[:] = [name for name in directories if _is_on(device, name, descriptor)]
    return count


def _give(name: str, directory: int, device: int, user: User) -> bool:
    with suppress(OSError), _opened(name, directory) as descriptor:
        found = os.fstat(descriptor)
        is_single = stat.S_ISDIR(found.st_mode) or found.st_nlink == 1
        if found.st_uid == 0 and found.st_dev == device and is_single and not stat.S_ISLNK(found.st_mode):
            os.chown(f"/proc/self/fd/{descriptor}", user.uid, user.gid)
            return True
    return False


def _is_on(device: int, name: str, directory: int) -> bool:
    with suppress(OSError):
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_dev == device
    return False


@contextmanager
def _opened(name: str, directory: int) -> Iterator[int]:
    """Open a file without reading it or following a link, so that a check and a later change affect the same
    file.
    """
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _share_lock(path: Path, user: User) -> None:
    """Let the group of the user open the lock file of iptables. iptables opens the file for reading, which
    is enough to lock it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(descriptor, -1, user.gid)
        os.fchmod(descriptor, 0o640)
    finally:
        os.close(descriptor)


async def create_pins(places: Places, user: User | None = None) -> list[str]:
    """Mount the directory of pins and pin the attached programs; return lines that report the performed
    changes.

    Args:
        places: the paths of the daemon.
        user: owner of the directory and the pins; None for root.

    Raises:
        TargetError: this host or user cannot pin programs in the directory.
    """
    try:
        with pin_directory(str(places.bpf)) as directory:
            count = await pin_standing(directory)
            if user is not None:
                os.chown(directory, user.uid, user.gid)
                for name in os.listdir(directory):
                    os.chown(f"{directory}/{name}", user.uid, user.gid, follow_symlinks=False)
    except NotADirectoryError as error:
        raise TargetError(
            f"{places.bpf} is not a directory",
            hint="Remove the file, and find the program that created it. flanneld only creates a "
            "directory at this path.",
        ) from error
    except OSError as error:
        raise TargetError(
            f"eBPF programs cannot be pinned in {places.bpf}: {in_words(error)}",
            hint="Run the command as root, on a kernel with eBPF. Without pins, packets pass through user "
            "space.",
        ) from error
    return [f"pinned {count} eBPF programs of this host in {places.bpf}"]


async def _move_forwarders(run_dir: Path, user: User) -> list[str]:
    """Replace each forwarder that flanneld started when it ran as root, because such a forwarder refuses this
    user.
    """
    sockets = [path for depth in ("", "*/", "*/*/") for path in run_dir.glob(f"{depth}{SOCKET_NAME}")]
    return [
        f"restarted the forwarder of {path.parent} as user {user.name}"
        for path in sockets
        if await move_forwarder(path.parent, user.uid, user.gid)
    ]
