"""Properties of the embedded store: its file, reboots, and the limited history."""

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from doubles.fake_clock import FakeClock
from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.store_record import Delete, DeleteSeen, Put, Record, StoreChanges, Written
from pyflannel.stores.embedded.database import Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "leases.db"


def opened(
    path: Path, clock: FakeClock | None = None, *, boot_id: str = "first", history: int = 100
) -> Database:
    return Database(path, clock or FakeClock(), boot_id, history=history, busy_s=0.2)


def put(database: Database, key: str, *, ttl_s: int | None = None) -> Record:
    written = database.write(Put(key=key, value=b"{}", ttl_s=ttl_s, expected=None))
    assert isinstance(written, Written)
    record = database.get(key)
    assert record is not None
    return record


def advance(clock: FakeClock, seconds: float) -> None:
    asyncio.run(clock.advance(seconds))


def test_the_file_and_its_directory_are_for_their_owner_only(path: Path) -> None:
    database = opened(path)
    put(database, "config")

    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()} == {0o600}
    database.close()  # the garbage collector could close it earlier, and remove files during the loop


def test_written_records_exist_after_reopening_the_file(path: Path) -> None:
    database = opened(path)
    record = put(database, "config")
    database.close()

    assert opened(path).get("config") == record


def test_several_processes_create_the_file_at_once(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from pyflannel.stores.embedded.database import Database\n"
        "from pyflannel.kernel.host.machine import BoottimeClock\n"
        "from pyflannel.model.store_record import Put\n"
        "database = Database(Path(sys.argv[1]), BoottimeClock(), 'first')\n"
        "sys.stdin.read()\n"
        "print(database.write(Put(key='subnets/a', value=b'', ttl_s=None, expected=0)))\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]

    answers = [process.communicate(timeout=60)[0].split("(")[0] for process in processes]

    assert sorted(answers) == ["Conflict", "Conflict", "Conflict", "Written"]


def test_a_step_of_the_wall_clock_changes_no_ttl(path: Path) -> None:
    clock = FakeClock()
    database = opened(path, clock)
    record = put(database, "subnets/a", ttl_s=100)

    clock.step_utc(86_400)

    assert database.time_to_live(record) == 100
    assert database.seconds_to_expiry() == 100


@pytest.mark.parametrize(
    ("utc_step", "left"),
    [
        pytest.param(-40.0, 60.0, id="the host was off for some of the TTL"),
        pytest.param(-1000.0, 0.0, id="the host was off for longer"),
        pytest.param(+5000.0, 100.0, id="the wall clock is not set yet"),
    ],
)
def test_a_ttl_continues_after_a_reboot(path: Path, utc_step: float, left: float) -> None:
    database = opened(path, FakeClock(now=500_000, utc=1_000_000))
    record = put(database, "subnets/a", ttl_s=100)
    database.close()

    after_reboot = opened(path, FakeClock(now=3, utc=1_000_000 - utc_step), boot_id="second")

    assert after_reboot.time_to_live(record) == left
    assert (after_reboot.get("subnets/a") is None) == (left == 0)


def test_the_next_reader_sees_an_expiry(path: Path) -> None:
    clock = FakeClock()
    writer, reader = opened(path, clock), opened(path, clock)
    record = put(writer, "claims/a", ttl_s=10)
    put(writer, "claims/b", ttl_s=5)

    advance(clock, 10)

    assert reader.changes("claims/a", record.revision) == StoreChanges(
        (DeleteSeen("claims/a", record.revision + 3),), record.revision + 3
    )
    assert writer.list("").records == ()


def test_the_history_is_limited(path: Path) -> None:
    database = opened(path, history=50)
    for _ in range(200):
        record = put(database, "config")

    assert len(database.changes("", record.revision - 50).changes) == 50
    with pytest.raises(CompactedError) as error:
        database.changes("", 10)
    assert record.revision - 60 < error.value.oldest <= record.revision - 49


def test_a_long_history_is_returned_in_complete_batches(path: Path) -> None:
    database = opened(path, history=3000)
    revisions = [put(database, "config").revision for _ in range(1500)]

    first = database.changes("", revisions[0] - 1)
    second = database.changes("", first.revision)

    assert first.revision == revisions[999]
    assert len(first.changes) + len(second.changes) == len(revisions)
    assert second.revision == revisions[-1]


@pytest.mark.parametrize(
    ("content", "hint"),
    [(b"this is no database " * 100, "not a SQLite database"), (b"SQLite format 3\0" + b"\xff" * 4096, "")],
)
def test_a_corrupt_file_is_an_error_that_names_it(path: Path, content: bytes, hint: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)

    with pytest.raises(StoreError, match=str(path)) as error:
        opened(path).list("")

    assert hint in error.value.hint


def test_an_unwritable_path_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for path in (tmp_path / "file" / "leases.db", tmp_path):
        with pytest.raises(StoreError, match=str(path)):
            opened(path).list("")


def test_a_file_of_another_format_is_refused(path: Path) -> None:
    put(opened(path), "config")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(StoreError, match="has format 99"):
        opened(path).list("")


def test_a_database_of_another_program_is_not_changed(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()

    with pytest.raises(StoreError, match="needs format"):
        opened(path).list("")


def test_a_locked_store_is_an_error_and_continues_after_the_release(path: Path) -> None:
    database = opened(path)
    put(database, "config")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreError, match="locked"):
        database.write(Delete(key="config", expected=None))
    assert database.get("config") is not None  # readers are not blocked

    other.execute("ROLLBACK")
    other.close()
    put(database, "config")


def test_a_removed_file_is_created_again(path: Path) -> None:
    database = opened(path)
    record = put(database, "config")
    for entry in path.parent.iterdir():
        entry.unlink()

    assert database.list("").records == ()
    with pytest.raises(CompactedError):
        database.changes("", record.revision)
    put(database, "config")
    assert opened(path).get("config") is not None
