"""What the kernel refused, as the operator reads it: an error's name, the kernel's own words, what to do."""

import errno
import os
from dataclasses import replace

from pyflannel.errors import is_permanent
from pyflannel.kernel.network.device_ioctls import DEVICE_FILE
from pyflannel.model.state import Operation, Refusal

GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})
"""Errors by which the kernel says that there is nothing to remove."""

_NO_TUN = (
    "Load the driver with `modprobe tun`; where the file alone is missing, `mkdir -p /dev/net && "
    "mknod /dev/net/tun c 10 200`; in a container, start it with --device /dev/net/tun."
)
_NO_RIGHT_TO_TUN = (
    "Run it as root, or give it CAP_NET_ADMIN; in a container, start it with --device /dev/net/tun and "
    "--cap-add NET_ADMIN."
)
_HINTS = {
    errno.EPERM: "Run it as root, or give it CAP_NET_ADMIN (in a container: --cap-add NET_ADMIN).",
    errno.EACCES: "Run it as root, or give it CAP_NET_ADMIN (in a container: --cap-add NET_ADMIN).",
    errno.EROFS: "Mount /proc/sys writable (in a container: --privileged, or the setting by --sysctl).",
    errno.EBUSY: "Another program made the device in the same moment: find it, and stop it.",
    errno.ENODEV: "The link went away; it is looked at again in the next pass.",
    errno.ENETUNREACH: "The gateway is on no network of this host: look at the addresses of its interface.",
    errno.EEXIST: "Another program keeps an object of the same key: find it by `ip route` or `ip -d link`.",
    errno.ENOBUFS: "The kernel lacks memory: look at dmesg.",
    errno.ENOMEM: "The kernel lacks memory: look at dmesg.",
}


def refusal(operation: Operation, code: int, text: str = "") -> Refusal:
    """Return the refusal that an error number stands for; `text` is what the kernel said to it."""
    name = errno.errorcode.get(code, f"errno {code}")
    cause = f"{name}: {os.strerror(code)}"
    return Refusal(
        operation=operation,
        cause=f"{cause} ({text})" if text else cause,
        hint=_HINTS.get(code, "Look at the kernel's log (dmesg) for the reason."),
        is_permanent=is_permanent(code),
    )


def refusal_of(operation: Operation, error: OSError) -> Refusal:
    """Return the refusal that a failed system call stands for."""
    refused = refusal(operation, error.errno or 0, str(error.filename or ""))
    if error.filename != DEVICE_FILE:
        return refused
    hint = _NO_RIGHT_TO_TUN if error.errno in (errno.EPERM, errno.EACCES) else _NO_TUN
    return replace(refused, hint=hint)
