"""The store in an SQLite file, with revisions, conditional writes, expiry and a limited history. Calls are
synchronous.
"""

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.store_record import (
    Change,
    Conflict,
    Delete,
    DeleteSeen,
    Listing,
    Put,
    PutSeen,
    Record,
    StoreChanges,
    Unchanged,
    Written,
)
from pyflannel.ports import Clock

HISTORY_REVISIONS = 10_000
"""Minimum number of past revisions that the file keeps. A watch can begin at each of these revisions."""

BUSY_S = 5.0
"""Time in seconds that a call waits for the transaction of another process."""

BATCH_CHANGES = 1000
"""Maximum number of changes that a watch reads at once."""

_FORMAT = 1
"""Version of the tables below, in PRAGMA user_version."""

# One revision changes one key, so the revision identifies the change. Deadlines are CLOCK_BOOTTIME seconds of
# the boot named in `store`, which steps of the wall clock do not affect. After a reboot, the new deadlines
# are computed from `expires_utc`.
_SCHEMA = (
    """CREATE TABLE store (revision INTEGER NOT NULL, compacted INTEGER NOT NULL, boot_id TEXT NOT NULL)""",
    """CREATE TABLE record (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease_id INTEGER NOT NULL,
        ttl_s INTEGER, deadline REAL, expires_utc REAL) WITHOUT ROWID""",
    """CREATE INDEX record_by_deadline ON record (deadline) WHERE deadline IS NOT NULL""",
    """CREATE TABLE change (
        revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB, lease_id INTEGER NOT NULL)""",
    f"PRAGMA user_version = {_FORMAT}",
)

_HINTS = {
    "SQLITE_BUSY": "Another process locks the file: find it with fuser.",
    "SQLITE_CANTOPEN": "Use the path of a file in a writable directory.",
    "SQLITE_CORRUPT": "Move the file, its -wal and its -shm elsewhere. Hosts write their leases again.",
    "SQLITE_FULL": "Free space on the file system of the file.",
    "SQLITE_IOERR": "Read the kernel's log about the file system of the file.",
    "SQLITE_NOTADB": "The file is not a SQLite database: use another path, or move the file.",
    "SQLITE_PERM": "Run as a user with write access to the file.",
    "SQLITE_READONLY": "Make the file and its directory writable, or run as a user with write access.",
}
"""Remedies for errors of SQLite, keyed by the beginning of their names."""

_SQLITE_NAMES = {
    errno.EACCES: "SQLITE_READONLY",
    errno.EDQUOT: "SQLITE_FULL",
    errno.EIO: "SQLITE_IOERR",
    errno.ENOSPC: "SQLITE_FULL",
    errno.EPERM: "SQLITE_READONLY",
    errno.EROFS: "SQLITE_READONLY",
}
"""SQLite's names for system errors before SQLite opens the file."""

_EXAMINE = "Stop the daemons that use the file, then check it: sqlite3 FILE 'PRAGMA integrity_check'."


class Database:
    """The file of a store, which is opened at the first call, and again after an error.

    Only one thread may use the object.

    Raises:
        StoreError: raised by every call if the file is unusable. The next call may succeed.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        boot_id: str,
        *,
        history: int = HISTORY_REVISIONS,
        busy_s: float = BUSY_S,
    ) -> None:
        self._path = path
        self._clock = clock
        self._boot_id = boot_id
        self._history = history
        self._busy_s = busy_s
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None

    def get(self, key: str) -> Record | None:
        """Return the record at this key."""
        with self._transaction("DEFERRED") as connection:
            return _record(connection, key)

    def list(self, prefix: str) -> Listing:
        """Return all records whose key starts with `prefix`."""
        with self._transaction("DEFERRED") as connection:
            rows = connection.execute(
                "SELECT key, value, revision, lease_id FROM record"
                " WHERE key >= ?1 AND substr(key, 1, ?2) = ?1 ORDER BY key",
                (prefix, len(prefix)),
            )
            records = tuple(_to_record(row) for row in rows)
            return Listing(records, _revision(connection))

    def write(self, operation: Put | Delete) -> Written | Conflict:
        """Perform one conditional write."""
        with self._transaction("IMMEDIATE") as connection:
            current = _record(connection, operation.key)
            if operation.expected is not None and operation.expected != (current.revision if current else 0):
                return Conflict(current)
            if isinstance(operation, Put) and not _is_so(connection, operation.given):
                return Conflict(current)
            if isinstance(operation, Put):
                revision = self._put(connection, operation)
            elif current is not None:
                revision = _delete(connection, operation.key)
            else:
                return Written(_revision(connection))
            self._forget_history(connection, revision)
            return Written(revision)

    def changes(self, prefix: str, after: int) -> StoreChanges:
        """Return the next changes under `prefix` after revision `after`, possibly none.

        Raises:
            CompactedError: the history does not contain `after`, or has not reached this revision yet.
        """
        with self._transaction("DEFERRED") as connection:
            ((revision, compacted),) = connection.execute("SELECT revision, compacted FROM store")
            if not compacted <= after <= revision:
                raise CompactedError(after + 1, compacted + 1)
            rows = connection.execute(
                "SELECT revision, key, value, lease_id FROM change"
                " WHERE revision > ?1 AND substr(key, 1, ?3) = ?2 ORDER BY revision LIMIT ?4",
                (after, prefix, len(prefix), BATCH_CHANGES),
            )
            changes = tuple(_to_change(row) for row in rows)
            return StoreChanges(changes, changes[-1].revision if len(changes) == BATCH_CHANGES else revision)

    def time_to_live(self, record: Record) -> float | None:
        """Return the seconds until the record expires, 0 if it has expired, None if it never expires."""
        if not record.lease_id:
            return None
        with self._transaction("DEFERRED") as connection:
            found = connection.execute(
                "SELECT deadline FROM record WHERE key = ? AND lease_id = ?", (record.key, record.lease_id)
            ).fetchone()
            return max(0.0, found[0] - self._clock.now()) if found else 0.0

    def age(self, record: Record) -> float | None:
        """Return the seconds since the record was written; None if it has no TTL or has expired."""
        if not record.lease_id:
            return None
        with self._transaction("DEFERRED") as connection:
            found = connection.execute(
                "SELECT ttl_s - (deadline - ?) FROM record WHERE key = ? AND lease_id = ?",
                (self._clock.now(), record.key, record.lease_id),
            ).fetchone()
            return max(0.0, found[0]) if found else None

    def seconds_to_expiry(self) -> float | None:
        """Return the seconds until the next record expires, or None if no record expires."""
        with self._transaction("DEFERRED") as connection:
            (deadline,) = connection.execute("SELECT min(deadline) FROM record").fetchone()
            return None if deadline is None else max(0.0, deadline - self._clock.now())

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        """Run the block in one transaction, in which expired records are deleted first."""
        try:
            connection = self._opened()
            if kind == "DEFERRED" and self._is_any_due(connection):
                kind = "IMMEDIATE"
            connection.execute(f"BEGIN {kind}")
            changes = connection.total_changes
            try:
                if kind == "IMMEDIATE":
                    self._expire(connection)
                yield connection
            except BaseException:
                _roll_back(connection)
                raise
            connection.execute("COMMIT")
            if connection.total_changes != changes:
                self._announce()
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise _store_error(self._path, error) from error

    def _announce(self) -> None:
        """Wake the watchers of the log. SQLite writes to this log before the commit is readable."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(f"{self._path}-wal")

    def _opened(self) -> sqlite3.Connection:
        """Return the connection, or a new connection if the file was moved or replaced."""
        if self._connection is not None and self._inode == _inode(self._path):
            return self._connection
        self.close()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode=0o600))
        self._inode = _inode(self._path)
        connection = sqlite3.connect(
            self._path, timeout=self._busy_s, isolation_level=None, check_same_thread=False
        )
        try:
            self._enter_wal_mode(connection)
            connection.execute("PRAGMA synchronous = FULL")  # acknowledged writes survive a power failure
            if not self._is_prepared(connection):
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _enter_wal_mode(self, connection: sqlite3.Connection) -> None:
        # SQLite does not wait for other processes that open the new file at the same time.
        deadline = time.monotonic() + self._busy_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return

    def _is_prepared(self, connection: sqlite3.Connection) -> bool:
        if _format(connection) != _FORMAT:
            return False
        ((boot_id,),) = connection.execute("SELECT boot_id FROM store")
        return bool(boot_id == self._boot_id)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Create the tables in a new file, or convert the deadlines of an earlier boot."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _format(connection)
            if version == 0 and _is_empty(connection):
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO store VALUES (1, 0, ?)", (self._boot_id,))
            elif version != _FORMAT:
                raise StoreError(
                    f"{self._path} has format {version}, and this pyflannel needs format {_FORMAT}",
                    hint="Use the version of pyflannel that created the file, or another path.",
                )
            elif not self._is_prepared(connection):
                self._carry_over_reboot(connection)
        except BaseException:
            _roll_back(connection)
            raise
        connection.execute("COMMIT")

    def _carry_over_reboot(self, connection: sqlite3.Connection) -> None:
        """Compute new deadlines of records from the wall clock.

        The clock may have been changed while the host was off, or may not be set yet. No record gets more
        than its TTL.
        """
        connection.execute(
            "UPDATE record SET deadline = ?1 + max(0, min(expires_utc - ?2, ttl_s))"
            " WHERE deadline IS NOT NULL",
            (self._clock.now(), self._clock.utc()),
        )
        connection.execute("UPDATE store SET boot_id = ?", (self._boot_id,))

    def _is_any_due(self, connection: sqlite3.Connection) -> bool:
        return bool(
            connection.execute(
                "SELECT 1 FROM record WHERE deadline <= ? LIMIT 1", (self._clock.now(),)
            ).fetchone()
        )

    def _expire(self, connection: sqlite3.Connection) -> None:
        due = connection.execute(
            "SELECT key FROM record WHERE deadline <= ? ORDER BY deadline, revision", (self._clock.now(),)
        ).fetchall()
        for (key,) in due:
            _delete(connection, key)

    def _put(self, connection: sqlite3.Connection, put: Put) -> int:
        revision = _next_revision(connection)
        lease_id, deadline, expires_utc = 0, None, None
        if put.ttl_s is not None:
            lease_id = revision
            deadline, expires_utc = self._clock.now() + put.ttl_s, self._clock.utc() + put.ttl_s
        connection.execute(
            "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, ?)",
            (put.key, put.value, revision, lease_id, put.ttl_s, deadline, expires_utc),
        )
        connection.execute("INSERT INTO change VALUES (?, ?, ?, ?)", (revision, put.key, put.value, lease_id))
        return revision

    def _forget_history(self, connection: sqlite3.Connection, revision: int) -> None:
        """Keep the last `history` revisions. Delete older revisions only when a tenth more have
        accumulated.
        """
        ((compacted,),) = connection.execute("SELECT compacted FROM store")
        if revision - compacted > self._history + self._history // 10:
            oldest = revision - self._history
            connection.execute("DELETE FROM change WHERE revision <= ?", (oldest,))
            connection.execute("UPDATE store SET compacted = ?", (oldest,))


def _roll_back(connection: sqlite3.Connection) -> None:
    # After some errors, such as a full disk, SQLite has already rolled back and refuses another rollback.
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _format(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None


def _record(connection: sqlite3.Connection, key: str) -> Record | None:
    row = connection.execute(
        "SELECT key, value, revision, lease_id FROM record WHERE key = ?", (key,)
    ).fetchone()
    return _to_record(row) if row else None


def _is_so(connection: sqlite3.Connection, given: Unchanged | None) -> bool:
    if given is None:
        return True
    current = _record(connection, given.key)
    return given.revision == (current.revision if current else 0)


def _to_record(row: tuple[str, bytes, int, int]) -> Record:
    key, value, revision, lease_id = row
    return Record(key=key, value=value, revision=revision, lease_id=lease_id)


def _to_change(row: tuple[int, str, bytes | None, int]) -> Change:
    revision, key, value, lease_id = row
    if value is None:
        return DeleteSeen(key, revision)
    return PutSeen(Record(key=key, value=value, revision=revision, lease_id=lease_id))


def _revision(connection: sqlite3.Connection) -> int:
    ((revision,),) = connection.execute("SELECT revision FROM store")
    return int(revision)


def _next_revision(connection: sqlite3.Connection) -> int:
    ((revision,),) = connection.execute("UPDATE store SET revision = revision + 1 RETURNING revision")
    return int(revision)


def _delete(connection: sqlite3.Connection, key: str) -> int:
    revision = _next_revision(connection)
    connection.execute("DELETE FROM record WHERE key = ?", (key,))
    connection.execute("INSERT INTO change VALUES (?, ?, NULL, 0)", (revision, key))
    return revision


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _store_error(path: Path, error: sqlite3.Error | OSError) -> StoreError:
    if isinstance(error, OSError):
        name, text = _SQLITE_NAMES.get(error.errno or 0, "SQLITE_CANTOPEN"), error.strerror
    else:
        name, text = getattr(error, "sqlite_errorname", None) or "", str(error)
    # Extended names of errors begin with the primary name, for example SQLITE_READONLY_DIRECTORY.
    hint = next((hint for prefix, hint in _HINTS.items() if name.startswith(prefix)), _EXAMINE)
    return StoreError(f"{path}: {text}", hint=hint)
