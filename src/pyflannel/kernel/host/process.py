"""Notifications of this process to the service manager."""

import os
import socket


def notify(text: str) -> bool:
    """Send assignments such as `READY=1` to NOTIFY_SOCKET; return whether somebody was told.

    Without a service manager, or when it does not listen, nothing happens: a daemon runs all the same.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.connect(address)
            manager.sendall(text.encode())
    except OSError:
        return False
    return True


def watchdog_s() -> float | None:
    """Return the seconds after which the service manager takes a silent process for dead; None for never.

    Source: sd_watchdog_enabled(3).
    """
    limit = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID") not in (None, str(os.getpid())):
        return None  # meant for the process that started us
    return int(limit) / 1e6 if limit.isdecimal() and int(limit) else None
