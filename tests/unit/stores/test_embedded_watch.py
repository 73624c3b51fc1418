"""A watch of the embedded store is notified of changes."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pyflannel.errors import CompactedError, TargetError
from pyflannel.kernel.host.inotify import InotifyFileWatch
from pyflannel.kernel.host.machine import BoottimeClock
from pyflannel.model.store_record import Put, Written
from pyflannel.ports import Announce, ChangeChannel, Changes, FileWatch
from pyflannel.stores.embedded import store as embedded
from pyflannel.stores.embedded.database import Database
from pyflannel.stores.embedded.store import EmbeddedStore


def keep_disk_busy(path: Path, ended: threading.Event) -> None:
    """Make syncs slow, as on most disks."""
    with path.open("wb", buffering=0) as file:
        while not ended.is_set():
            file.seek(0)
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())


def opened(path: Path) -> EmbeddedStore:
    return EmbeddedStore(path, Database(path, BoottimeClock(), "boot"), InotifyFileWatch())


def test_every_write_wakes_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch does not wait for its next poll. The log is written before a reader sees the commit."""
    monkeypatch.setattr(embedded, "LOOK_S", 60.0)

    async def check() -> None:
        busy = threading.Event()
        threading.Thread(target=keep_disk_busy, args=(tmp_path / "noise", busy)).start()
        writer, reader = opened(tmp_path / "leases.db"), opened(tmp_path / "leases.db")
        try:
            start = (await reader.list("")).revision
            async with reader.watch("", start) as watch:
                await watch.next()
                for number in range(100):
                    key = f"subnets/{number}"
                    waiting = asyncio.ensure_future(watch.next())
                    written = await writer.write(Put(key=key, value=b"", ttl_s=None, expected=0))
                    assert isinstance(written, Written)
                    async with asyncio.timeout(30):
                        assert (await waiting).revision == written.revision
        finally:
            busy.set()
            await writer.close()
            await reader.close()

    asyncio.run(check())


FAILED = TargetError("too many open files", hint="Close some.")


class UnopenedFileWatch:
    """inotify without a free instance in the kernel."""

    @asynccontextmanager
    async def changes(self, path: Path) -> AsyncIterator[Changes]:
        raise FAILED
        yield


class BrokenFileWatch:
    """inotify with a failing reader."""

    @asynccontextmanager
    async def changes(self, path: Path) -> AsyncIterator[Changes]:
        async def read(announce: Announce) -> None:
            raise FAILED

        async with ChangeChannel(read) as changes:
            yield changes


@pytest.mark.parametrize("file_watch", [UnopenedFileWatch(), BrokenFileWatch()])
def test_without_inotify_the_watch_polls_the_file(
    file_watch: FileWatch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(embedded, "LOOK_S", 0.05)

    async def check() -> None:
        path = tmp_path / "leases.db"
        store = EmbeddedStore(path, Database(path, BoottimeClock(), "boot"), file_watch)
        async with asyncio.timeout(30), store.watch("", (await store.list("")).revision) as watch:
            await watch.next()
            waiting = asyncio.ensure_future(watch.next())
            while "Could not watch the file of the store" not in caplog.text:
                await asyncio.sleep(0.01)
            written = await store.write(Put(key="config", value=b"", ttl_s=None, expected=0))
            assert isinstance(written, Written)
            assert (await waiting).revision == written.revision
        await store.close()

    asyncio.run(check())
    assert caplog.text.count("Could not watch the file of the store") == 1


def test_a_closed_watch_leaves_no_task_and_no_descriptor(tmp_path: Path) -> None:
    """The same is true for a watch that could not be opened."""

    async def check() -> None:
        store = opened(tmp_path / "leases.db")
        revision = (await store.list("")).revision
        tasks, descriptors = asyncio.all_tasks(), os.listdir("/proc/self/fd")
        for _ in range(20):
            async with store.watch("", revision) as watch:
                await watch.next()
            with pytest.raises(CompactedError):
                await store.watch("", 1_000_000).__aenter__()
        assert asyncio.all_tasks() == tasks
        assert set(os.listdir("/proc/self/fd")) <= set(descriptors)
        await store.close()

    asyncio.run(check())
