"""Readiness, as a service manager hears it: the protocol of sd_notify(3)."""

import socket
import time
from pathlib import Path
from types import TracebackType

from pyflannel.errors import LabError
from pyflannel.lab.sandboxes.program import Program

_LOOK_S = 0.05


class NotifySocket:
    """A datagram socket where a service says READY=1; closed when the wait is over.

    It does not stay: nobody would read it then, and a full queue would block the service.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(path))
        self._socket.settimeout(_LOOK_S)

    def __enter__(self) -> "NotifySocket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def wait_ready(self, program: Program, deadline_s: float) -> None:
        """Return when `program` is ready.

        Raises:
            LabError: it ended, or said nothing for `deadline_s` seconds; the hint is the end of its log.
        """
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            try:
                message = self._socket.recv(4096)
            except TimeoutError:
                if (code := program.exit_code) is not None:
                    raise _not_ready(program, f"ended with status {code} before it was ready") from None
                continue
            if b"READY=1" in message.split(b"\n"):
                return
        raise _not_ready(program, f"was not ready within {deadline_s:g} s")


def _not_ready(program: Program, what: str) -> LabError:
    return LabError(
        f"{program.name} {what}; its log ends:\n{program.last_words()}",
        hint=f"Read the rest in {program.log}.",
    )
