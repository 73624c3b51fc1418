"""Keys of the store in etcd's flat key space, and conditional writes as etcd transactions."""

from pyflannel.model.store_record import Conflict, Delete, Put, Record, Written
from pyflannel.stores.etcd.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    KeyValue,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from pyflannel.wire.lease_record import longest_value


class KeySpace:
    """Joins and splits prefix and key at one slash, even if the prefix ends in a slash."""

    def __init__(self, prefix: str) -> None:
        self._root = prefix.rstrip("/").encode() + b"/"

    def full(self, key: str) -> bytes:
        """Return the full key in etcd, as bytes."""
        return self._root + key.encode()

    def shown(self, key: str) -> str:
        """Return the full key in etcd, as text for people."""
        return self._root.decode() + key

    def relative(self, full: bytes) -> str:
        """Return the key relative to the prefix. Bytes that are not UTF-8 become escapes."""
        return full.removeprefix(self._root).decode(errors="backslashreplace")

    def range_of(self, prefix: str) -> tuple[bytes, bytes]:
        """Return first key and end of the range of all keys that start with `prefix`.

        The end is the first key after all these keys: the prefix with its last byte incremented. The last
        byte can always be incremented, because no byte of UTF-8 is 0xff.
        """
        start = self.full(prefix)
        return start, start[:-1] + bytes([start[-1] + 1])

    def record(self, found: KeyValue) -> Record:
        """Return a key and value of etcd as a record.

        A value above the limit is cut to one byte more than the limit.
        """
        key = self.relative(found.key)
        return Record(
            key=key,
            value=found.value[: longest_value(key)],
            revision=found.mod_revision,
            lease_id=found.lease,
            created=found.create_revision,
        )


def transaction(keys: KeySpace, operation: Put | Delete, lease_id: int) -> TxnRequest:
    """Return the request for one write. A put attaches its key to the etcd lease `lease_id`; 0 for no etcd
    lease.
    """
    key = keys.full(operation.key)
    if isinstance(operation, Put):
        put = PutRequest(key=key, value=operation.value, lease=lease_id, prev_kv=True)
        write = RequestOp(request_put=put)
    else:
        write = RequestOp(request_delete_range=DeleteRangeRequest(key=key, prev_kv=True))
    conditions = [] if operation.expected is None else [_has_revision(key, operation.expected)]
    if isinstance(operation, Put) and operation.given is not None:
        conditions.append(_has_revision(keys.full(operation.given.key), operation.given.revision))
    return TxnRequest(
        compare=conditions, success=[write], failure=[RequestOp(request_range=RangeRequest(key=key))]
    )


def _has_revision(key: bytes, revision: int) -> Compare:
    # An absent key has the revision 0, so the same comparison checks absence and every revision.
    return Compare(target=Compare.MOD, result=Compare.EQUAL, key=key, mod_revision=revision)


def outcome(keys: KeySpace, answer: TxnResponse) -> Written | Conflict:
    """Return the outcome of the write."""
    if answer.succeeded:
        return Written(answer.header.revision)
    found = answer.responses[0].response_range.kvs
    return Conflict(keys.record(found[0]) if found else None)


def lease_left_behind(answer: TxnResponse) -> int:
    """Return the etcd lease to which the key was attached before this write; 0 if there was no etcd lease."""
    response = answer.responses[0]
    if response.HasField("response_put"):
        return int(response.response_put.prev_kv.lease)
    return max((int(previous.lease) for previous in response.response_delete_range.prev_kvs), default=0)
