"""Conditional writes as etcd transactions: if the key is at the revision expected, write; else read."""

from pyflannel.model.store_record import Conflict, Delete, Put, Written
from pyflannel.stores.etcd.key_space import KeySpace
from pyflannel.stores.etcd.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)


def transaction(keys: KeySpace, operation: Put | Delete, lease_id: int) -> TxnRequest:
    """Return the request for one write; a put hangs its key on the etcd lease `lease_id`, 0 for none."""
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
    # An absent key has the revision 0: one comparison serves absence and every revision.
    return Compare(target=Compare.MOD, result=Compare.EQUAL, key=key, mod_revision=revision)


def outcome(keys: KeySpace, answer: TxnResponse) -> Written | Conflict:
    """Return what became of the write."""
    if answer.succeeded:
        return Written(answer.header.revision)
    found = answer.responses[0].response_range.kvs
    return Conflict(keys.record(found[0]) if found else None)


def lease_left_behind(answer: TxnResponse) -> int:
    """Return the etcd lease that the key hung on until this write succeeded; 0 for none."""
    response = answer.responses[0]
    if response.HasField("response_put"):
        return int(response.response_put.prev_kv.lease)
    return max((int(previous.lease) for previous in response.response_delete_range.prev_kvs), default=0)
