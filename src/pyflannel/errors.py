"""Every error pyflannel raises on purpose.

FlannelError
├── UsageError       flags or environment make no sense             exit 2
├── ConfigError      the network config admits no plan              not ready, again on its next change
│   └── UnknownBackendError  no flanneld of this version runs it
├── NoUnderlayError  no interface can carry the tunnel yet          not ready, again when interfaces change
├── WireError        octets or text do not follow their format      drop, count
├── StoreError       the lease store refused or is unreachable      retry
│   └── CompactedError   the store forgot the revision asked for    list again, then watch
├── TargetError      the kernel refused; errno and extended ack     retry
├── BusyError        another program holds what is ours alone       exit 1
├── NotReadyError    the requested object does not exist yet, or
│   │                no answer in time                              exit 3
│   └── NoStoreError     the file of the store does not exist
└── LabError         a part of the lab did not do what was asked    exit 1
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

# Texts for people. Parts of them come from the store: whoever may write there must not forge a line of the
# log, steer a terminal, or fill a disk.

LONGEST_TEXT = 4000
"""Characters of a line of the log or of flannelctl, before characters are escaped."""

_LONGEST_MESSAGE = 1000
"""Characters of the message of an error."""

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that end a line, steer a terminal or turn the direction of text, and halves of characters."""

_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return a text on one line that is safe to print: cut, then its control characters escaped."""
    return printable(cut(text, longest))


def printable(text: str, *, keep: str = "") -> str:
    """Return a text with its control characters escaped as in JSON, but those to `keep`.

    A JSON document stays the same document when its line feeds are kept.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return _SHORT_ESCAPES.get(character) or f"\\u{ord(character):04x}"


def cut(text: str, longest: int) -> str:
    """Return a text that is not much longer than `longest`: of a longer one, both ends.

    What is wrong with a value often stands behind it, so the end is worth as much as the beginning.
    """
    left_out = len(text) - longest
    if left_out <= 0:
        return text
    half = longest // 2
    return f"{text[: longest - half]}… {left_out} characters …{text[len(text) - half :]}"


_MARKS = (".", "?", "!", "…")


def sentences(message: str, hint: str) -> str:
    """Return a message and its hint as sentences; a message that ends in a mark of its own keeps it."""
    message = message.rstrip()
    if not hint:
        return message
    return f"{message} {hint}" if message.endswith(_MARKS) else f"{message}. {hint}"


class FlannelError(Exception):
    """Root of the tree. `hint` tells the operator what to do, in one sentence.

    A long message is cut: it may repeat a value of the store, and is kept as long as it holds.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(cut(message, _LONGEST_MESSAGE))
        self.hint = hint

    @property
    def in_full(self) -> str:
        """The message and the hint, for one line."""
        return sentences(str(self), self.hint)


class UsageError(FlannelError):
    """Flags, environment or arguments make no sense; the hint says what to write instead."""


class ConfigError(FlannelError):
    """The network config admits no plan; the message names the key and the value."""


class UnknownBackendError(ConfigError):
    """The network config names a backend type that does not exist."""


class NoUnderlayError(FlannelError):
    """No interface can carry the tunnel yet; the message says what is waited for."""


class WireError(FlannelError):
    """Octets or text do not follow their format."""


class StoreError(FlannelError):
    """The lease store refused or is unreachable; a later try may succeed."""


class CompactedError(StoreError):
    """The revision asked for is no longer in the store's history: list again, then watch."""

    def __init__(self, revision: int, oldest: int) -> None:
        super().__init__(
            f"revision {revision} was compacted, the oldest is {oldest}",
            hint="List the leases again and watch from that listing's revision.",
        )
        self.oldest = oldest


class TargetError(FlannelError):
    """The kernel, or the forwarder in its place, refused an operation.

    Attributes:
        is_permanent: the same is refused until something else changes; otherwise a later try may succeed.
    """

    def __init__(self, message: str, *, hint: str, is_permanent: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_permanent = is_permanent

    @classmethod
    def of(cls, what: str, error: OSError, *, hint: str) -> "TargetError":
        """Return the error of a failed system call; `what` names the operation that cannot be done."""
        return cls(f"{what}: {in_words(error)}", hint=hint, is_permanent=is_permanent(error.errno))


@contextmanager
def target_errors(what: str, *, hint: str) -> Iterator[None]:
    """Raise what the system refuses in the block as a TargetError: the boundary of an adapter."""
    try:
        yield
    except OSError as error:
        raise TargetError.of(what, error, hint=hint) from error


def in_words(error: OSError) -> str:
    """Return name, text and file of an error of the system: `ENOSPC: No space left on device (/run)`."""
    words = error.strerror or str(error)
    if error.errno is not None:
        words = f"{errno.errorcode.get(error.errno, f'errno {error.errno}')}: {words}"
    return words if error.filename is None else f"{words} ({error.filename})"


def is_permanent(code: int | None) -> bool:
    """Return whether what fails with this errno fails until something else changes.

    What may end by itself is temporary: a lack (EMFILE, ENFILE, ENOMEM, ENOBUFS, ENOSPC, EDQUOT), a moment
    (EAGAIN, EBUSY, EINTR, ETIMEDOUT), a fault (EIO), a holder who may leave (EADDRINUSE), and what the
    network is like just now (ENODEV, ENETDOWN, ENETUNREACH, EADDRNOTAVAIL), of which not every change is
    announced. So is an errno that is not known here: a needless try costs little.
    """
    return code in _PERMANENT


_PERMANENT = frozenset(
    {
        # A right is missing. To give it, one restarts the daemon or changes the file.
        errno.EPERM,
        errno.EACCES,
        errno.EROFS,
        # This kernel has no such thing.
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EAFNOSUPPORT,
        errno.EPROTONOSUPPORT,
        524,  # ENOTSUPP, which is the kernel's own
        # The request makes no sense to it, and will make none the next time.
        errno.EINVAL,
        errno.ERANGE,
        errno.E2BIG,
        errno.ENAMETOOLONG,
        # Another object is in the way, or an object that must be there is missing.
        errno.EEXIST,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ENOENT,
        errno.ELOOP,
        errno.ENOEXEC,
    }
)


class BusyError(FlannelError):
    """Another program holds what only one may hold: a lock, a port, a device."""


class LabError(FlannelError):
    """A part of the lab did not start, did not answer in time, or failed a command."""


class NotReadyError(FlannelError):
    """The requested object does not exist yet, or there was no answer in time."""


class NoStoreError(NotReadyError):
    """The file of an embedded store does not exist. A read does not create it."""
