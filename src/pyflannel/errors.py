"""Every error pyflannel raises on purpose.

FlannelError
├── UsageError       flags or environment make no sense             exit 2
├── ConfigError      the network config admits no plan              not ready, again on its next change
├── NoUnderlayError  no interface can carry the tunnel yet          not ready, again when interfaces change
├── WireError        octets or text do not follow their format      drop, count
├── StoreError       the lease store refused or is unreachable      retry
│   └── CompactedError   the store forgot the revision asked for    list again, then watch
├── TargetError      the kernel refused; errno and extended ack     retry
├── BusyError        another program holds what is ours alone       exit 1
├── NotReadyError    what was asked is not there yet, or in time    exit 3
└── LabError         a part of the lab did not do what was asked    exit 1
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_MARKS = (".", "?", "!", "…")


def sentences(message: str, hint: str) -> str:
    """Return a message and its hint as sentences; a message that ends in a mark of its own keeps it."""
    message = message.rstrip()
    if not hint:
        return message
    return f"{message} {hint}" if message.endswith(_MARKS) else f"{message}. {hint}"


class FlannelError(Exception):
    """Root of the tree. `hint` tells the operator what to do, in one sentence."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def in_full(self) -> str:
        """The message and the hint, for one line."""
        return sentences(str(self), self.hint)


class UsageError(FlannelError):
    """Flags, environment or arguments make no sense; the hint says what to write instead."""


class ConfigError(FlannelError):
    """The network config admits no plan; the message names the key and the value."""


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
    """What was asked for is not there yet, or did not answer in time."""
