"""All errors that pyflannel raises deliberately, and the preparation of texts for people.

FlannelError
├── UsageError       invalid flags or environment                   exit 2
├── ConfigError      the network config allows no plan              not ready, retry on its next change
│   └── UnknownBackendError  no flanneld of this version runs it
├── NoUnderlayError  no interface can carry the tunnel yet          not ready, retry when interfaces change
├── WireError        bytes or text do not follow their format       drop, count
├── StoreError       the lease store refused or is unreachable      retry
│   ├── CompactedError   the store deleted the revision             list again, then watch
│   └── StoreTimeoutError  the store did not answer in time         retry; of flannelctl: exit 3
├── TargetError      the kernel refused; errno and extended ack     retry
├── BusyError        another program uses an exclusive resource     exit 1
├── NotReadyError    the requested object does not exist yet, or
│   │                no answer in time                              exit 3
│   └── NoStoreError     the file of the store does not exist
├── CniError         the CNI plugin cannot perform the operation    error object, exit 1
├── DockerPluginError  Docker requests an operation that is impossible  Docker prints it
└── LabError         a part of the lab failed                       exit 1
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

# Texts for people. Parts of log lines and messages come from the store. A writer of the store must not be
# able to forge a line of the log, control a terminal, or fill a disk.

LONGEST_TEXT = 4000
"""Maximum number of characters of a line of the log or of flannelctl, before characters are escaped."""

_LONGEST_MESSAGE = 1000
"""Maximum number of characters of the message of an error."""

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that end a line, control a terminal or change the text direction, and surrogates."""

_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return a text on one line that is safe to print. Long texts are cut, and control characters are
    escaped.
    """
    return printable(cut(text, longest))


def printable(text: str, *, keep: str = "") -> str:
    """Return a text with its control characters escaped as in JSON, except those in `keep`.

    A JSON document remains the same document if its line feeds are kept.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return _SHORT_ESCAPES.get(character) or f"\\u{ord(character):04x}"


def cut(text: str, longest: int) -> str:
    """Return a text of about `longest` characters. If the text is longer, its beginning and its end are kept.

    A message often quotes a value before the reason, so the end is as important as the beginning.
    """
    left_out = len(text) - longest
    if left_out <= 0:
        return text
    half = longest // 2
    return f"{text[: longest - half]}… {left_out} characters …{text[len(text) - half :]}"


_MARKS = (".", "?", "!", "…")


def sentences(message: str, hint: str) -> str:
    """Return a message and its hint as one text of complete sentences. Punctuation at the end of the
    message is kept.
    """
    message = message.rstrip()
    if not hint:
        return message
    return f"{message} {hint}" if message.endswith(_MARKS) else f"{message}. {hint}"


class FlannelError(Exception):
    """Root of the error tree. `hint` is the remedy, in one sentence.

    A long message is shortened, because it may quote a value of the store, and may be kept for a long time.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(cut(message, _LONGEST_MESSAGE))
        self.hint = hint

    @property
    def in_full(self) -> str:
        """The message and the hint in one line."""
        return sentences(str(self), self.hint)


class UsageError(FlannelError):
    """Flags, environment or arguments are invalid. The hint of the error contains the correct form."""


class ConfigError(FlannelError):
    """The network config allows no plan. The message of the error names the key and the value."""


class UnknownBackendError(ConfigError):
    """The network config names a backend type that does not exist."""


class NoUnderlayError(FlannelError):
    """No interface can carry the tunnel yet. The message of the error names the missing condition."""


class WireError(FlannelError):
    """Bytes or text do not follow their format."""


class StoreError(FlannelError):
    """The store refused a request, or is unreachable. A retry may succeed later."""


class StoreTimeoutError(StoreError):
    """The store did not answer in time. A write may have taken effect."""


class CompactedError(StoreError):
    """The history of the store no longer contains the revision, so the caller must list again and then
    watch.
    """

    def __init__(self, revision: int, oldest: int) -> None:
        super().__init__(
            f"revision {revision} was compacted, the oldest is {oldest}",
            hint="List the leases again and watch from the revision of that list.",
        )
        self.oldest = oldest


class TargetError(FlannelError):
    """The kernel, or the forwarder in its place, refused an operation.

    Attributes:
        is_permanent: True if a retry fails until something else changes; False if a retry may succeed.
    """

    def __init__(self, message: str, *, hint: str, is_permanent: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_permanent = is_permanent

    @classmethod
    def of(cls, what: str, error: OSError, *, hint: str) -> "TargetError":
        """Return the error of a failed system call; `what` describes the failed operation."""
        return cls(f"{what}: {in_words(error)}", hint=hint, is_permanent=is_permanent(error.errno))


@contextmanager
def target_errors(what: str, *, hint: str) -> Iterator[None]:
    """Raise an OSError in the block as a TargetError. This function is the error boundary of an adapter."""
    try:
        yield
    except OSError as error:
        raise TargetError.of(what, error, hint=hint) from error


def in_words(error: OSError) -> str:
    """Return name, text and file of a system error: `ENOSPC: No space left on device (/run)`. For a rename,
    the file is the new name.
    """
    words = error.strerror or str(error)
    if error.errno is not None:
        words = f"{errno.errorcode.get(error.errno, f'errno {error.errno}')}: {words}"
    file = error.filename if error.filename2 is None else error.filename2
    return words if file is None else f"{words} ({file})"


_REMEDIES = {
    errno.EMFILE: "Raise the limit of open files of this process: LimitNOFILE= in its unit, or ulimit -n.",
    errno.ENFILE: "Raise fs.file-max with sysctl, or end programs that hold many files.",
    errno.ENOSPC: "Free space and inodes on this file system.",
    errno.EDQUOT: "Raise the quota of this user, or free space.",
    errno.EROFS: "Mount this file system writable.",
}


def remedy(error: OSError, otherwise: str) -> str:
    """Return the remedy for an exhausted resource if the exhaustion caused the error; `otherwise` for any
    other cause.
    """
    return _REMEDIES.get(error.errno or 0, otherwise)


def is_permanent(code: int | None) -> bool:
    """Return whether an operation with this errno fails until something else changes.

    Errors that may disappear without an action are temporary: a lack of resources (EMFILE, ENFILE, ENOMEM,
    ENOBUFS, ENOSPC, EDQUOT), a short-lived condition (EAGAIN, EBUSY, EINTR, ETIMEDOUT), a fault (EIO),
    another user of the resource (EADDRINUSE), and the state of the network (ENODEV, ENETDOWN, ENETUNREACH,
    EADDRNOTAVAIL). The kernel does not announce every change of this state. An unknown errno is temporary
    too, because a needless retry costs little.
    """
    return code in _PERMANENT


_PERMANENT = frozenset(
    {
        # A right is missing. To grant the right, the operator restarts the daemon or changes the file.
        errno.EPERM,
        errno.EACCES,
        errno.EROFS,
        # This kernel does not support the operation.
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EAFNOSUPPORT,
        errno.EPROTONOSUPPORT,
        524,  # ENOTSUPP, which exists only in the kernel
        # The kernel rejects the request as invalid, and a retry would send the same request.
        errno.EINVAL,
        errno.ERANGE,
        errno.E2BIG,
        errno.ENAMETOOLONG,
        # Another object conflicts, or a required object is missing.
        errno.EEXIST,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ENOENT,
        errno.ELOOP,
        errno.ENOEXEC,
    }
)


class BusyError(FlannelError):
    """Another program uses an exclusive resource: a lock, a port, a device."""


class CniError(FlannelError):
    """The CNI plugin cannot perform the operation that the runtime requested.

    Attributes:
        code: error code of the CNI specification 1.1.0, section 5.
    """

    def __init__(self, message: str, *, hint: str, code: int) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class DockerPluginError(FlannelError):
    """Docker requests an operation that the network plugin cannot perform. Docker prints the text of the
    error.
    """


class LabError(FlannelError):
    """A part of the lab did not start or respond in time, or a command failed."""


class NotReadyError(FlannelError):
    """The requested object does not exist yet, or there was no answer in time."""


class NoStoreError(NotReadyError):
    """The file of an embedded store does not exist. Reading does not create the file."""
