"""The daemon's log: klog's format for people, JSON for collectors. flanneld writes nothing else to stderr."""

import json
import logging
import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

from pyflannel.assembly.options import LogForm
from pyflannel.errors import LONGEST_TEXT, cut, one_line, printable

# Log lines in klog's form: `I1012 08:50:54.409928   25161 daemon.py:126] message`.
#
# Source: flannel 0.28.9, whose lines have klog's format: letter, month and day, time, process id in 7
# columns.

Letter = Literal["I", "W", "E", "F"]
"""Info, warning, error, fatal: the severities that klog knows."""


def format_klog(letter: Letter, when: datetime, process: int, file: str, line: int, message: str) -> str:
    """Return one log line, without a newline at its end; `when` is in local time, as in klog."""
    return f"{letter}{when:%m%d %H:%M:%S.%f} {process:7d} {file}:{line}] {message}"


NETWORK: ContextVar[str] = ContextVar("NETWORK", default="")
"""The network that the current task works for, if one daemon runs several networks. The name of this network
is at the end of each log line."""

_LONGEST_TRACEBACK = 16_000
"""Characters."""

_INDENT = "    "
"""Prefix of each line of a traceback, so that no line of a traceback looks like the start of a log line."""

_OURS = "pyflannel"
_LIBRARY_LINES = 10
_SEVERITIES: tuple[tuple[int, Letter, str], ...] = (
    (logging.CRITICAL, "F", "fatal"),
    (logging.ERROR, "E", "error"),
    (logging.WARNING, "W", "warning"),
    (logging.INFO, "I", "info"),
    (logging.NOTSET, "I", "debug"),  # klog has no letter for debug, so it prints debug lines as info
)


def configure_logging(form: LogForm, verbosity: int, stream: TextIO) -> None:
    """Send the log of the process to `stream`, one event per line. Debug lines of pyflannel are logged from
    verbosity 1.

    Only warnings and errors of libraries are logged, at most a limited number per minute. A second call
    replaces the first.
    """
    handler = _LogStream(stream)
    handler.addFilter(LibraryLimit())
    handler.setFormatter(JsonFormatter() if form == "json" else KlogFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    logging.getLogger(_OURS).setLevel(logging.DEBUG if verbosity >= 1 else logging.INFO)


class _LogStream(logging.StreamHandler[TextIO]):
    """The handler of the log stream. The handler drops a line that cannot be written, because a traceback
    about the failure would go to the same stream.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the log line that could not be written."""


class LibraryLimit(logging.Filter):
    """A filter that passes all log lines of pyflannel, and at most ten log lines of libraries per minute.

    Without this limit, asyncio logs 32 lines per second while the process has no free file descriptor for a
    waiting client. If memory is short, asyncio logs one line for each connection.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._until = -math.inf
        self._lines = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged; and add the number of lines that were omitted in the
        previous minute.
        """
        if record.name.partition(".")[0] == _OURS:
            return True
        if (now := self._now()) >= self._until:
            if (left_out := self._lines - _LIBRARY_LINES) > 0:
                record.msg = f"{record.getMessage()} (omitted {left_out} earlier lines of libraries)"
                record.args = None
            self._until, self._lines = now + 60.0, 0
        self._lines += 1
        return self._lines <= _LIBRARY_LINES


class KlogFormatter(logging.Formatter):
    """`I1012 08:50:54.409928   25161 daemon.py:126] message`, in local time; an indented traceback may
    follow.

    Control characters are escaped and long messages are cut, so that one event is one line of bounded length.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the log line of a record."""
        _, letter, _ = _severity(record)
        when = _utc(record).astimezone()
        message = one_line(_message(record))
        line = format_klog(letter, when, record.process or 0, record.filename, record.lineno, message)
        return "\n".join([line, *(_INDENT + printable(part) for part in _traceback(record, self))])


class JsonFormatter(logging.Formatter):
    """Formats each record as one line with a JSON object in ASCII: time (RFC 3339, UTC, microseconds), level,
    file, line, message.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the log line of a record."""
        _, _, level = _severity(record)
        return json.dumps(
            {
                "time": f"{_utc(record):%Y-%m-%dT%H:%M:%S.%fZ}",
                "level": level,
                "file": record.filename,
                "line": record.lineno,
                "message": "\n".join([cut(_message(record), LONGEST_TEXT), *_traceback(record, self)]),
            }
        )


def _severity(record: logging.LogRecord) -> tuple[int, Letter, str]:
    return next(severity for severity in _SEVERITIES if record.levelno >= severity[0])


def _utc(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    return f"{message} network={name}" if (name := NETWORK.get()) else message


def _traceback(record: logging.LogRecord, formatter: logging.Formatter) -> list[str]:
    """Return the lines of the traceback of a log record, if it has one."""
    if not record.exc_info:
        return []
    return cut(formatter.formatException(record.exc_info), _LONGEST_TRACEBACK).split("\n")
