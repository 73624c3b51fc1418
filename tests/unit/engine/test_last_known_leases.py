"""The last known leases of a host are on the disk when its daemon ends."""

import asyncio
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from pyflannel.engine import kept_leases
from pyflannel.engine.kept_leases import RETRY_S, SAVE_PAUSE_S, SAVED_PER_S, LastKnownLeases
from pyflannel.engine.pacing import READ_AT_ONCE
from pyflannel.model.lease import LastKnown, Lease, LeaseAttributes
from pyflannel.model.store_record import Record
from pyflannel.wire.lease_record import kept_lease


def lease(number: int) -> Lease:
    return Lease(
        subnet=IPv4Network((int(IPv4Address("10.100.0.0")) + 256 * number, 24)),
        attributes=LeaseAttributes(public_ip=IPv4Address("192.0.2.0") + number),
        revision=0,  # not saved
    )


class Disk:
    """A Memory in memory; `writes` contains every saved text."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.attempts = 0
        self.is_full = False

    async def load(self) -> bytes | None:
        return self.writes[-1] if self.writes else None

    async def save(self, parts: Iterable[bytes]) -> bool:
        self.attempts += 1
        if not self.is_full:
            self.writes.append(b"".join(parts))
        return not self.is_full


class Story:
    """A host that has saved its only lease."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.disk = Disk()
        self.known = LastKnown(config="{}", own=lease(1), leases=(lease(1),))
        self.kept = LastKnownLeases(memory=self.disk, clock=self.clock, current=lambda: self.known)

    def know(self, *numbers: int) -> None:
        self.known = LastKnown(config="{}", own=lease(1), leases=tuple(map(lease, numbers)))
        self.kept.changed()

    async def begin(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.kept.run())
        self.kept.changed()
        await self.clock.settle()
        return task


def test_several_changes_cause_one_write_after_a_pause() -> None:
    story = Story()

    async def run() -> None:
        task = await story.begin()
        for last in range(2, 50):
            story.know(1, last)
            await story.clock.settle()
        assert len(story.disk.writes) == 1

        await story.clock.advance(SAVE_PAUSE_S)

        assert len(story.disk.writes) == 2
        assert await story.kept.load() == story.known
        task.cancel()

    asyncio.run(run())


def test_a_change_of_the_backend_is_saved_without_a_pause() -> None:
    """If flanneld is killed within a second after the change, the next flanneld uses both backends again."""
    story = Story()

    async def run() -> None:
        task = await story.begin()
        story.know(1, 2)
        await story.clock.settle()
        assert len(story.disk.writes) == 1

        story.kept.backend_changed()
        await story.clock.settle()

        assert len(story.disk.writes) == 2
        assert await story.kept.load() == story.known
        task.cancel()

    asyncio.run(run())


def test_a_change_just_before_the_end_is_saved() -> None:
    """A restart during an outage of the store must not remove the latest peers."""
    story = Story()

    async def run() -> None:
        task = await story.begin()
        story.know(1, 2)
        await story.clock.settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert await story.kept.load() == story.known
        assert len(story.disk.writes) == 2

    asyncio.run(run())


def test_a_renewal_writes_nothing() -> None:
    """A saved lease contains neither its revision nor its expiry."""
    story = Story()

    async def run() -> None:
        task = await story.begin()
        renewed = replace(lease(1), revision=7)
        story.known = LastKnown(config="{}", own=renewed, leases=(renewed,))
        story.kept.changed()
        await story.clock.advance(2 * SAVE_PAUSE_S)

        assert len(story.disk.writes) == 1

        readdressed = replace(renewed, attributes=replace(renewed.attributes, port=1))
        story.known = LastKnown(config="{}", own=renewed, leases=(readdressed,))
        story.kept.changed()
        await story.clock.advance(2 * SAVE_PAUSE_S)

        assert len(story.disk.writes) == 2
        task.cancel()

    asyncio.run(run())


def test_stopping_without_a_change_writes_nothing() -> None:
    story = Story()

    async def run() -> None:
        task = await story.begin()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert len(story.disk.writes) == 1

    asyncio.run(run())


def test_the_save_delay_grows_with_the_size_of_the_network() -> None:
    """Writing ten thousand leases each second would need a tenth of a core. At its end, the daemon saves all
    changes.
    """
    story = Story()

    async def run() -> None:
        task = await story.begin()
        await story.clock.advance(SAVE_PAUSE_S)
        story.know(*range(1, 3 * SAVED_PER_S + 1))
        await story.clock.advance(2.9)
        assert len(story.disk.writes) == 1

        await story.clock.advance(0.2)

        assert len(story.disk.writes) == 2
        assert await story.kept.load() == story.known
        story.know(1)
        await story.clock.settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await story.kept.load() == story.known

    asyncio.run(run())


def test_a_large_file_is_read_a_few_leases_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of a host without its store delays no other task, even with many leases."""
    story = Story()
    story.known = replace(story.known, leases=tuple(map(lease, range(1, 3000))))
    reads, most, turns = 0, 0, 0

    def read(record: Record) -> Lease | None:
        nonlocal reads
        reads += 1
        return kept_lease(record)

    monkeypatch.setattr(kept_leases, "kept_lease", read)

    async def run() -> None:
        nonlocal reads, most, turns
        await story.kept._save()
        loading = asyncio.ensure_future(story.kept.load())
        while not loading.done():
            reads = 0
            await asyncio.sleep(0)
            most, turns = max(most, reads), turns + 1
        assert loading.result() == story.known

    asyncio.run(run())
    assert most == READ_AT_ONCE
    assert turns > 2999 // READ_AT_ONCE


def test_a_failed_write_is_tried_again_until_it_succeeds() -> None:
    """After a disk was full for a while, the file must contain the present leases."""
    story = Story()
    story.disk.is_full = True

    async def run() -> None:
        task = await story.begin()
        await story.clock.advance(RETRY_S)
        assert story.disk.attempts == 2
        assert story.disk.writes == []

        story.disk.is_full = False
        await story.clock.advance(RETRY_S)

        assert len(story.disk.writes) == 1
        await story.clock.advance(10 * RETRY_S)
        assert story.disk.attempts == 3
        task.cancel()

    asyncio.run(run())


def test_a_change_during_the_wait_for_a_disk_is_written_after_the_wait() -> None:
    story = Story()
    story.disk.is_full = True

    async def run() -> None:
        task = await story.begin()
        story.know(1, 2)
        story.disk.is_full = False

        await story.clock.advance(RETRY_S)

        assert await story.kept.load() == story.known
        task.cancel()

    asyncio.run(run())
