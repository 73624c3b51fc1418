"""Unix sockets that only their owner may use."""

import os
import socket
import stat
import struct
from pathlib import Path

from pyflannel.errors import BusyError

_BACKLOG = 64
_UCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


def listen_unix(path: Path) -> socket.socket:
    """Return a non-blocking listening socket at `path`, mode 0600.

    A socket that nobody serves any more is replaced. There is no moment without a socket at `path`,
    and none at which another user could connect.

    Raises:
        BusyError: another program serves it, or it is something else than a socket.
        OSError: it could not be made; a path of more than 107 octets is refused by the kernel.
    """
    _check_free(path)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    born = path.with_name(f".{path.name}.{os.getpid()}")
    born.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(str(born))
        born.chmod(0o600)
        listener.listen(_BACKLOG)
        born.replace(path)
    except OSError:
        listener.close()
        born.unlink(missing_ok=True)
        raise
    return listener


def peer_uid(connection: socket.socket) -> int:
    """Return the user that connected, as the kernel noted it (SO_PEERCRED)."""
    return _peer(connection)[1]


def server_pid(path: Path) -> int | None:
    """Return the process that serves the socket at `path`, 0 for one that is not seen here; None for none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except OSError:
            return None
        return _peer(probe)[0]


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def _check_free(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise BusyError(f"{path} is not a socket", hint="Move it away, or choose another run directory.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:
            pass  # its queue is full: somebody listens
    raise BusyError(
        f"another program serves {path}", hint="Stop it first, or choose another run directory for this one."
    )
