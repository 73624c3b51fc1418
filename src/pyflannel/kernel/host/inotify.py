"""Notifications of changes in directories by inotify(7), which the standard library does not support."""

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pyflannel.errors import target_errors
from pyflannel.ports import Announce, ChangeChannel, Changes

MODIFIED = 0x2
ATTRIBUTES = 0x4
WRITTEN = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATED = 0x100
DELETED = 0x200
SELF_DELETED = 0x400
SELF_MOVED = 0x800
OVERFLOWED = 0x4000
FORGOTTEN = 0x8000
"""Event masks (linux/inotify.h)."""

ENTRIES = MODIFIED | ATTRIBUTES | WRITTEN | MOVED_FROM | MOVED_TO | CREATED | DELETED
WHOLE = SELF_DELETED | SELF_MOVED

_ONLY_DIRECTORY = 0x01000000
_EVENT = struct.Struct("=iIII")
_BUFFER = 1 << 16

UNWATCHED_HINT = (
    "Check that the daemon may read the directory. If a limit is reached (EMFILE, ENOSPC), raise"
    " fs.inotify.max_user_instances and fs.inotify.max_user_watches with sysctl."
)


class Event(NamedTuple):
    """A change of the entry `name` of a watched directory; the name "" means the directory itself."""

    watch: int
    mask: int
    name: str


class Inotify:
    """Watches on directories.

    Raises:
        OSError: the user has reached the limit of instances (fs.inotify.max_user_instances).
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._checked(self._library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify")

    def close(self) -> None:
        """Close the descriptor, which also ends all watches."""
        os.close(self._descriptor)

    def add(self, directory: str) -> int:
        """Watch a directory and return the number of the watch; an existing watch keeps its number.

        Raises:
            OSError: the directory does not exist, is not a directory, or there is no permission to read it.
        """
        mask = ENTRIES | WHOLE | _ONLY_DIRECTORY
        answer = self._library.inotify_add_watch(self._descriptor, os.fsencode(directory), mask)
        return self._checked(answer, directory)

    def remove(self, watch: int) -> None:
        """End a watch. A watch that the kernel has already ended is ignored."""
        self._library.inotify_rm_watch(self._descriptor, watch)

    async def read(self) -> list[Event]:
        """Wait for at least one event, and return all events that have arrived."""
        while not (events := self.take()):
            await _readable(self._descriptor)
        return events

    def take(self) -> list[Event]:
        """Return the events that have arrived, possibly none."""
        try:
            data = os.read(self._descriptor, _BUFFER)
        except BlockingIOError:
            return []
        events, offset = [], 0
        while offset < len(data):
            watch, mask, _, size = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            name = data[offset : offset + size].split(b"\0", 1)[0]
            events.append(Event(watch, mask, os.fsdecode(name)))
            offset += size
        return events

    def _checked(self, answer: int, subject: str) -> int:
        if answer < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), subject)
        return answer


class InotifyFileWatch:
    """A FileWatch by inotify on the directory. If the file is a symbolic link, each change in the
    directory counts.
    """

    @asynccontextmanager
    async def changes(self, path: Path) -> AsyncIterator[Changes]:
        """Open a channel that announces writes to `path`, and its creation, replacement and deletion."""
        with ExitStack() as opened:
            with target_errors(f"{path.parent} cannot be watched", hint=UNWATCHED_HINT):
                inotify = opened.enter_context(closing(Inotify()))
                inotify.add(str(path.parent))
            async with ChangeChannel(partial(_read_changes, inotify, path)) as changes:
                yield changes


async def _read_changes(inotify: Inotify, path: Path, announce: Announce) -> None:
    while True:
        events = await inotify.read()
        if any(event.mask & (FORGOTTEN | SELF_MOVED) for event in events):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
        if any(event.name in (path.name, "") for event in events) or path.is_symlink():
            announce()


async def _readable(descriptor: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
