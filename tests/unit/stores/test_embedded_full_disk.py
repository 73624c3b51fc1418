"""The embedded store on a full disk: its error, and its continuation."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from doubles.fake_clock import FakeClock
from pyflannel.errors import StoreError
from pyflannel.model.store_record import Put
from pyflannel.stores.embedded.database import Database

DISK = "size=1m"
SMALL, LARGE = 3000, 4_000_000
"""Sizes in bytes of a value that SQLite writes at the commit, and of a value so large that SQLite writes
before the commit."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system with space for a few pages."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(tmp_path)], check=False)
    if mount.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def fill(disk: Path) -> Path:
    """Fill the file system."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def put(database: Database, key: str, size: int = SMALL) -> None:
    database.write(Put(key=key, value=b"x" * size, ttl_s=None, expected=None))


def fill_up(database: Database, size: int) -> None:
    """Write until a write fails."""
    for number in range(1000):
        put(database, f"subnets/{number}", size)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_full_disk_is_reported_and_the_store_continues_when_there_is_space(disk: Path, size: int) -> None:
    """SQLite may have rolled the transaction back already, so that no transaction remains to roll back."""
    database = Database(disk / "leases.db", FakeClock(), "a boot")
    put(database, "subnets/a")
    filler = fill(disk)

    with pytest.raises(StoreError) as raised:
        fill_up(database, size)
    assert str(raised.value) == f"{disk / 'leases.db'}: database or disk is full"
    assert raised.value.hint == "Free space on the file system of the file."

    filler.unlink()
    put(database, "subnets/b")
    assert {"subnets/a", "subnets/b"} <= {record.key for record in database.list("").records}
    database.close()


def test_a_new_store_on_a_full_disk_reports_the_full_disk(disk: Path) -> None:
    filler = fill(disk)
    database = Database(disk / "leases.db", FakeClock(), "a boot")

    with pytest.raises(StoreError) as raised:
        put(database, "subnets/a")
    assert raised.value.hint == "Free space on the file system of the file."

    filler.unlink()
    put(database, "subnets/a")
    database.close()
