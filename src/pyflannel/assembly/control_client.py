"""The running daemon, asked over its control socket."""

from pathlib import Path

from pyflannel.errors import NotReadyError, WireError
from pyflannel.http.client import request
from pyflannel.http.message import Response
from pyflannel.model.journal_entry import JournalEntry
from pyflannel.model.lease_entry import LeaseEntry
from pyflannel.model.status import Status
from pyflannel.wire.control_json import (
    parse_config_text,
    parse_error,
    parse_events,
    parse_leases,
    parse_status,
)

DEADLINE_S = 5.0
"""For an answer from memory; the daemon's loop is never busy for that long."""

WRITE_DEADLINE_S = 40.0
"""For an answer that waits for the store: longer than the daemon gives it."""


class ControlClient:
    """Asks the daemon behind a control socket.

    Every call raises NotReadyError when no daemon answers in time, WireError when what answers is none, and
    whatever error the daemon met.
    """

    def __init__(self, socket: Path) -> None:
        """Ask over `socket`; nothing is opened before the first question."""
        self._socket = socket

    async def status(self) -> Status:
        """Return what the daemon is doing."""
        return parse_status(await self._ask("GET", "/v1/status"))

    async def leases(self) -> list[LeaseEntry]:
        """Return the leases that the daemon knows, without their expiry."""
        return parse_leases(await self._ask("GET", "/v1/leases"))

    async def events(self) -> list[JournalEntry]:
        """Return what the daemon's passes found and did, the latest last."""
        return parse_events(await self._ask("GET", "/v1/events"))

    async def config_text(self) -> str | None:
        """Return the network config that the daemon runs with, or None."""
        return parse_config_text(await self._ask("GET", "/v1/config"))

    async def set_config(self, text: str) -> None:
        """Have the daemon check the network config and write it to the store."""
        await self._ask("PUT", "/v1/config", body=text.encode(), deadline_s=WRITE_DEADLINE_S)

    async def _ask(
        self, method: str, target: str, *, body: bytes = b"", deadline_s: float = DEADLINE_S
    ) -> bytes:
        try:
            answer = await request(self._socket, method, target, body=body, deadline_s=deadline_s)
        except OSError as error:
            raise NotReadyError(
                f"flanneld does not answer at {self._socket}: {_reason(error, deadline_s)}", hint=_hint(error)
            ) from error
        if answer.status != 200:
            raise _error_of(answer, f"{method} {target}")
        return answer.body


def _error_of(answer: Response, question: str) -> Exception:
    try:
        return parse_error(answer.body)
    except WireError:
        text = answer.body.decode(errors="replace").strip()
        return WireError(
            f"{question} was answered with {answer.status}: {text}",
            hint="Check that flannelctl and flanneld are of one version.",
        )


def _reason(error: OSError, deadline_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {deadline_s:g} s"
    return (error.strerror or str(error)).lower()


def _hint(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "Run flannelctl as root, or as the user of flanneld."
    return "Start flanneld, or name its socket with --socket, or the store with --store."
