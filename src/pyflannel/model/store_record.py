"""Values of a store: records under a prefix with etcd's revisions, writes and changes; and the password of a
store.

Keys are relative to the store's prefix: `config`, `subnets/10.5.52.0-24`, `claims/10.5.52.0-24`.
"""

from msgspec import Struct


class PartlyCompared(Struct, frozen=True, eq=False, gc=False):
    """A value of which a comparison reads only `_compared`. A struct compares all its fields.

    The garbage collector ignores such a value, because it refers only to values that cannot refer to it.
    """

    @property
    def _compared(self) -> object:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._compared == other._compared

    def __ne__(self, other: object) -> bool:
        return not self == other  # a struct does not derive __ne__ from __eq__

    def __hash__(self) -> int:
        return hash(self._compared)


class Record(PartlyCompared, frozen=True, kw_only=True, eq=False):
    """One key of the store. A comparison ignores `created`.

    Attributes:
        revision: revision of the last write to this key (etcd: mod_revision).
        lease_id: handle by which the store identifies the expiry; 0 for a key without TTL.
        created: revision at which the key was created (etcd: create_revision); 0 if the store does not
            record it.
    """

    key: str
    value: bytes
    revision: int
    lease_id: int = 0
    created: int = 0

    @property
    def _compared(self) -> object:
        return self.key, self.value, self.revision, self.lease_id


class Listing(Struct, frozen=True):
    """Every record under a key prefix at one revision, in the order of their keys."""

    records: tuple[Record, ...]
    revision: int


class Unchanged(Struct, frozen=True):
    """The condition that a key must have this revision. Revision 0 means that the key does not exist."""

    key: str
    revision: int


class Put(Struct, frozen=True, kw_only=True):
    """Write a key on condition of its revision.

    Attributes:
        ttl_s: seconds until the store deletes the key; None if the store never deletes it.
        expected: the revision that the key must have; 0 if it must be absent, None for any revision.
        given: an additional condition on another key.
    """

    key: str
    value: bytes
    ttl_s: int | None
    expected: int | None
    given: Unchanged | None = None


class Delete(Struct, frozen=True, kw_only=True):
    """Delete a key if it has the expected revision. None means any revision, or no key."""

    key: str
    expected: int | None


class Written(Struct, frozen=True):
    """The write took effect at `revision`."""

    revision: int


class Conflict(Struct, frozen=True):
    """The key had another revision, or the additional condition was false; nothing was written.

    `current` is the record at the key, None if it is absent.
    """

    current: Record | None


class PutSeen(Struct, frozen=True):
    """A key was written."""

    record: Record

    @property
    def key(self) -> str:
        """The written key."""
        return self.record.key

    @property
    def revision(self) -> int:
        """The revision of the write."""
        return self.record.revision


class DeleteSeen(Struct, frozen=True):
    """A key was deleted, or expired, at `revision`."""

    key: str
    revision: int


Change = PutSeen | DeleteSeen


class StoreChanges(Struct, frozen=True):
    """All changes from a watch up to and including `revision`, in the store's order.

    If `changes` is empty, there were no changes up to `revision`.
    """

    changes: tuple[Change, ...]
    revision: int


class Secret(Struct, frozen=True):
    """A password. Only `reveal` returns the text of the password. An empty password is false in a
    condition.
    """

    _text: str

    def reveal(self) -> str:
        """Return the text of the password."""
        return self._text

    def __str__(self) -> str:
        return "***"

    __repr__ = __str__

    def __bool__(self) -> bool:
        return bool(self._text)
