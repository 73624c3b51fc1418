"""Runs code of the test in the network of a sandbox, to access etcd and the kernel there."""

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from pyflannel.errors import LabError
from pyflannel.lab.sandbox import Sandbox

_CLONE_NEWNET = 0x40000000
"""linux/sched.h; os.setns exists since Python 3.12."""

_CLONE_NEWNS, _PRIVATE_AND_RECURSIVE = 0x00020000, 0x44000
"""linux/sched.h and linux/mount.h."""

Result = TypeVar("Result")


def run_inside(sandbox: Sandbox, act: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine in a thread whose sockets belong to the sandbox's network. Return the result of the
    coroutine.

    Raises:
        LabError: the kernel refuses access.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def enter_and_run() -> None:
        try:
            enter_network(Path(f"/proc/{sandbox.init_pid}/ns/net"))
            results.append(asyncio.run(act()))
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=enter_and_run, name=f"inside {sandbox.name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def enter_network(namespace: str | Path) -> None:
    """Bind the calling thread to a network namespace until the thread ends.

    Args:
        namespace: the file of the namespace, such as /run/netns/NAME or /proc/PID/ns/net.

    Raises:
        LabError: the kernel refuses access.
    """
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
            cause = os.strerror(ctypes.get_errno())
            raise LabError(f"no way into {namespace}: {cause}", hint="The lab needs root.")
    finally:
        os.close(descriptor)


def hide_directory(path: str) -> None:
    """Move the calling thread to a new mount namespace, with an empty directory at `path`."""
    library = ctypes.CDLL(None, use_errno=True)
    for answer in (
        library.unshare(_CLONE_NEWNS),
        library.mount(b"none", b"/", None, _PRIVATE_AND_RECURSIVE, None),
        library.mount(b"none", os.fsencode(path), b"tmpfs", 0, None),
    ):
        if answer:
            raise OSError(ctypes.get_errno(), "unshare or mount")
