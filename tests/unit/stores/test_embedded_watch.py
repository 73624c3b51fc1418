"""Changes of the embedded store are heard, not waited for."""

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import pytest

from pyflannel.kernel.host.inotify import InotifyFileWatch
from pyflannel.kernel.host.machine import BoottimeClock
from pyflannel.model.store_record import Put, Written
from pyflannel.stores.embedded import store as embedded
from pyflannel.stores.embedded.database import Database
from pyflannel.stores.embedded.store import EmbeddedStore


def keep_disk_busy(path: Path, ended: threading.Event) -> None:
    """Make syncs slow, as they are on most disks."""
    with path.open("wb", buffering=0) as file:
        while not ended.is_set():
            file.seek(0)
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())


def opened(path: Path) -> EmbeddedStore:
    return EmbeddedStore(path, Database(path, BoottimeClock(), "boot"), InotifyFileWatch())


def test_every_write_wakes_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look that would come a minute later: the log is written before its commit can be read."""
    monkeypatch.setattr(embedded, "LOOK_S", 60.0)

    async def check() -> None:
        busy = threading.Event()
        threading.Thread(target=keep_disk_busy, args=(tmp_path / "noise", busy)).start()
        writer, reader = opened(tmp_path / "leases.db"), opened(tmp_path / "leases.db")
        try:
            start = (await reader.list("")).revision
            async with contextlib.aclosing(reader.watch("", start)) as watch:
                await anext(watch)
                for number in range(100):
                    key = f"subnets/{number}"
                    waiting = asyncio.ensure_future(anext(watch))
                    written = await writer.write(Put(key=key, value=b"", ttl_s=None, expected=0))
                    assert isinstance(written, Written)
                    async with asyncio.timeout(30):
                        assert (await waiting).revision == written.revision
        finally:
            busy.set()
            await writer.close()
            await reader.close()

    asyncio.run(check())
