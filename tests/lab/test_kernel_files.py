"""Files on real file systems: complete at every moment, and written again after damage."""

import asyncio
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from pyflannel.errors import TargetError
from pyflannel.kernel.host import files
from pyflannel.kernel.host.files import FileTarget
from pyflannel.kernel.host.inotify import Inotify, InotifyFileWatch
from pyflannel.model.host import HostFile
from pyflannel.model.state import Add, Refusal, Remove, Replace, State
from pyflannel.plan.diff import diff

TEXT = "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.15.1/24\n"


@pytest.fixture
def file(tmp_path: Path) -> HostFile:
    return HostFile(path=str(tmp_path / "run" / "flannel" / "subnet.env"), text=TEXT)


def with_target(work: Callable[[FileTarget], Awaitable[None]]) -> None:
    async def run() -> None:
        async with FileTarget() as target, asyncio.timeout(100):
            await work(target)

    asyncio.run(run())


async def heal(target: FileTarget, desired: State) -> list[Refusal]:
    return list(await target.apply(list(diff(desired, await target.snapshot(desired)))))


def apply(*operations) -> list[Refusal]:
    refused: list[Refusal] = []

    async def work(target: FileTarget) -> None:
        refused.extend(await target.apply(operations))

    with_target(work)
    return refused


def test_a_file_is_written_with_its_directories_with_any_umask(file: HostFile) -> None:
    old = os.umask(0o077)
    try:
        assert apply(Add(file)) == []
    finally:
        os.umask(old)

    path = Path(file.path)
    assert path.read_text() == TEXT
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["subnet.env"]


def test_a_reader_sees_the_old_text_or_the_new(file: HostFile) -> None:
    """A reader that has opened the old file keeps its content: the file is replaced, not overwritten."""
    apply(Add(file))
    with open(file.path, encoding="utf-8") as reader:
        apply(Replace(file, HostFile(path=file.path, text="new\n")))

        assert reader.read() == TEXT
    assert Path(file.path).read_text() == "new\n"


def test_the_temporary_file_of_a_killed_writer_has_no_effect(file: HostFile) -> None:
    apply(Add(file))
    left = Path(file.path).with_name(".subnet.env.new")
    left.write_text("half of")

    apply(Replace(file, HostFile(path=file.path, text="new\n")))

    assert Path(file.path).read_text() == "new\n"
    assert not left.exists()


SPOILT: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_text(""),
    "changed": lambda path: path.write_text(TEXT + "FLANNEL_MTU=1\n"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "mode": lambda path: path.chmod(0o600),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "a symbolic link": lambda path: path.symlink_to(path.rename(path.with_name("same.env"))),
    "directory deleted": lambda path: (path.unlink(), path.parent.rmdir()),
    "both directories deleted": lambda path: (
        path.unlink(),
        path.parent.rmdir(),
        path.parent.parent.rmdir(),
    ),
    "directory moved away": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_repeated_damage_is_announced_and_repaired(file: HostFile, spoil: Callable[[Path], object]) -> None:
    desired = State.of(file)

    async def work(target: FileTarget) -> None:
        async with target.changes() as changes:
            await target.snapshot(desired)
            for _ in range(3):
                assert await heal(target, desired) == []
                await changes.next()  # flanneld's own writing is announced, too
                assert await target.snapshot(desired) == desired
                spoil(Path(file.path))
                await changes.next()
                assert await target.snapshot(desired) != desired
                shutil.rmtree(Path(file.path).parent.with_name("elsewhere"), ignore_errors=True)

    with_target(work)


def test_unwatchable_files_are_polled_and_watched_later(
    file: HostFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Other programs of the user may use all inotify instances that the kernel allows."""
    desired = State.of(file)

    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def work(target: FileTarget) -> None:
        async with target.changes() as changes:
            assert await heal(target, desired) == []
            Path(file.path).unlink()
            assert await heal(target, desired) == []
            assert await target.snapshot(desired) == desired

            monkeypatch.undo()
            await target.snapshot(desired)
            Path(file.path).unlink()
            await changes.next()

    monkeypatch.setattr(files, "Inotify", none_left)
    with_target(work)
    (said,) = caplog.messages
    assert "Too many open files" in said
    assert "fs.inotify.max_user_instances" in said


def test_a_directory_without_permission_to_watch_is_reported_once(
    file: HostFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Writing the file requires only search permission of the directory. Watching the directory also requires
    read permission.
    """
    desired = State.of(file)
    directory = str(Path(file.path).parent)

    def refuse(self: Inotify, watched: str) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), watched)

    async def work(target: FileTarget) -> None:
        await heal(target, desired)
        assert await target.snapshot(desired) == desired

    monkeypatch.setattr(Inotify, "add", refuse)
    with_target(work)
    (line,) = caplog.messages
    assert f"EACCES: Permission denied ({directory})" in line
    assert "the daemon may read the directory" in line


def test_a_directory_in_its_place_is_reported_and_the_file_is_written_afterwards(file: HostFile) -> None:
    desired = State.of(file)

    async def work(target: FileTarget) -> None:
        Path(file.path).mkdir(parents=True)

        (refusal,) = await heal(target, desired)
        Path(file.path).rmdir()

        assert refusal.cause.startswith("EISDIR")
        assert await heal(target, desired) == []
        assert await target.snapshot(desired) == desired

    with_target(work)


def test_changes_of_other_files_in_the_directory_are_not_announced(file: HostFile, listen) -> None:
    desired = State.of(file)

    async def work(target: FileTarget) -> None:
        await target.snapshot(desired)
        await heal(target, desired)
        await target.snapshot(desired)
        async with listen(target.changes()) as wakes:
            await wakes.silence()
            Path(file.path).with_name("other.env").write_text("foreign")
            assert await wakes.silence() == 0

    with_target(work)


def test_a_directory_that_is_created_later_is_announced(file: HostFile) -> None:
    desired = State.of(file)

    async def work(target: FileTarget) -> None:
        await target.snapshot(desired)
        async with target.changes() as changes:
            Path(file.path).parent.mkdir(parents=True)
            await changes.next()

    with_target(work)


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root: mount")
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=100", "pyflannel-small", mounted], check=True
    )
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_full_disk_does_not_damage_the_old_file(small_file_system: Path) -> None:
    file = HostFile(path=str(small_file_system / "subnet.env"), text=TEXT)
    apply(Add(file))
    with pytest.raises(OSError, match="No space left"):
        (small_file_system / "filler").write_bytes(bytes(1 << 20))

    (refused,) = apply(Replace(file, HostFile(path=file.path, text="x" * 8000)))

    assert refused.cause == "ENOSPC: No space left on device"
    assert refused.hint.startswith("Free space")
    assert Path(file.path).read_text() == TEXT
    assert sorted(os.listdir(small_file_system)) == ["filler", "subnet.env"]


def test_a_directory_in_place_of_the_file_is_reported(file: HostFile) -> None:
    Path(file.path).mkdir(parents=True)

    (refused,) = apply(Add(file))

    assert refused.cause.startswith("EISDIR")
    assert file.path in refused.hint


def test_a_removal_of_a_missing_object_succeeds(file: HostFile) -> None:
    assert apply(Remove(file)) == []
    apply(Add(file))
    assert apply(Remove(file)) == []
    assert not Path(file.path).exists()


def test_each_change_of_the_target_of_a_watched_link_is_announced(tmp_path: Path) -> None:
    """Kubernetes replaces the directory behind the links to the files of a ConfigMap."""
    (tmp_path / "lease-keys").symlink_to("..data/lease-keys")

    async def run() -> None:
        async with InotifyFileWatch().changes(tmp_path / "lease-keys") as changes, asyncio.timeout(100):
            (tmp_path / "..data").symlink_to("..new")
            await changes.next()

    asyncio.run(run())


def test_a_watch_fails_if_the_directory_is_deleted_or_moved(tmp_path: Path) -> None:
    """The caller then opens another watch."""

    async def run(change: Callable[[Path], object]) -> None:
        directory = tmp_path / "keys"
        directory.mkdir()
        async with InotifyFileWatch().changes(directory / "lease-keys") as changes, asyncio.timeout(100):
            change(directory)
            with pytest.raises(TargetError, match="No such file or directory"):
                await changes.next()

    asyncio.run(run(Path.rmdir))
    asyncio.run(run(lambda directory: directory.rename(tmp_path / "moved")))


def test_each_write_of_a_watched_file_is_announced(tmp_path: Path) -> None:
    path = tmp_path / "leases.db-wal"

    async def run() -> None:
        async with InotifyFileWatch().changes(path) as changes, asyncio.timeout(100):
            for text in ("one", "two"):
                (tmp_path / "neighbour").write_text("x")
                path.write_text(text)
                await changes.next()

    asyncio.run(run())
