"""The store's keys in etcd's flat key space: everything under one prefix."""

from pyflannel.model.store_record import Record
from pyflannel.stores.etcd.rpc_pb2 import KeyValue


class KeySpace:
    """Joins and parts prefix and key by one slash, whether the prefix ends in one or not."""

    def __init__(self, prefix: str) -> None:
        self._root = prefix.rstrip("/").encode() + b"/"

    def full(self, key: str) -> bytes:
        """Return the key as etcd has it."""
        return self._root + key.encode()

    def shown(self, key: str) -> str:
        """Return the key as etcd has it, as text for people."""
        return self._root.decode() + key

    def relative(self, full: bytes) -> str:
        """Return the key as the store's users name it; octets that are no UTF-8 are shown by escapes."""
        return full.removeprefix(self._root).decode(errors="backslashreplace")

    def range_of(self, prefix: str) -> tuple[bytes, bytes]:
        """Return first key and end of the range of all keys that start with `prefix`.

        The end is the first key that comes after them all: the prefix with its last octet raised by one.
        No octet of UTF-8 is 0xff, so there always is one.
        """
        start = self.full(prefix)
        return start, start[:-1] + bytes([start[-1] + 1])

    def record(self, found: KeyValue) -> Record:
        """Return what etcd holds as a record."""
        return Record(
            key=self.relative(found.key), value=found.value, revision=found.mod_revision, lease_id=found.lease
        )
