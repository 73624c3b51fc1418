"""The claim on a device's name: two daemons that start together do not both make flannel1."""

import errno
import socket
from collections.abc import Iterable

from pyflannel.errors import BusyError, TargetError

_TRIES = 256


class DeviceClaim:
    """A name of a device, held for as long as this process lives, in its network namespace.

    The claim is a bound name in the abstract namespace of Unix sockets, which each network namespace has of
    its own, as it has its devices; the kernel lets go of it however the process ends. Nothing listens there.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Claim the first of `names` that nobody holds.

        Raises:
            BusyError: somebody holds each of the first few hundred.
        """
        for _, name in zip(range(_TRIES), names, strict=False):
            if (held := _bind(name)) is not None:
                self.name = name
                self._held = held
                return
        raise BusyError(
            "every name for a tunnel device is taken by another daemon",
            hint="Stop the daemons that are too many; each holds a name @pyflannel/device/….",
        )

    def close(self) -> None:
        """Let go of the name."""
        self._held.close()


def _bind(name: str) -> socket.socket | None:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        claim.bind(f"\0pyflannel/device/{name}")
    except OSError as error:
        claim.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise TargetError(
            f"the device name {name} cannot be claimed: {error.strerror}",
            hint="Give flanneld the right to make Unix sockets.",
        ) from error
    return claim
