"""The records of the store by which hosts report which other hosts they reach, and the bytes from a host.

- `reach-request`: the latest request of a host to some hosts to probe each other
- `reach-row-10.5.52.0-24`: the results of the host with this subnet for the latest request to it
- `bytes-request`: the latest request of a host to some hosts to report the bytes that they received from it
- `bytes-row-10.5.52.0-24`: the answer of the host with this subnet to the latest such request

All have a TTL. Their names contain no slash, so no network of `--networks` can have such a key. With
signatures of leases, the value is signed with the key in the lease of its writer. The original flannel and
versions without a request ignore its keys.
"""

from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from ipaddress import ip_network
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec.structs import replace

from pyflannel.errors import WireError
from pyflannel.model.lease import LeaseKey
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.probe import ProbeState
from pyflannel.model.reach_matrix import MOST_HOSTS, Answer, ByteCount, Row, RowRequest
from pyflannel.wire.lease_json import LONGEST_LEASE
from pyflannel.wire.lease_record import format_subnet_key
from pyflannel.wire.lease_signature import is_signed_text, sign_text

REQUEST = "reach-request"
"""The key of the latest request, below the prefix of the store."""

ROWS = "reach-row-"
"""The keys of the results begin with this text."""

COUNT_REQUEST = "bytes-request"
"""The key of the latest request for bytes, below the prefix of the store."""

COUNTS = "bytes-row-"
"""The keys of the answers begin with this text."""

TTL_S = 30
"""Time in seconds after which the store deletes the records."""

_PURPOSE = b"pyflannel reach 1"
"""This text distinguishes signatures of these records from all other signatures with the same key."""

_LONGEST_ID = 64
_HINT = "No action is needed. The record expires after 30 s."


class _Request(msgspec.Struct, rename="pascal", kw_only=True):
    id: str
    asker: str
    hosts: list[str]
    signature: str = ""


class _Row(msgspec.Struct, rename="pascal", kw_only=True):
    id: str
    host: str
    answers: list[float | ProbeState]
    signature: str = ""


class _Count(msgspec.Struct, rename="pascal", kw_only=True):
    id: str
    host: str
    received: Annotated[int, msgspec.Meta(ge=0)] | None
    signature: str = ""


_Signed = TypeVar("_Signed", _Request, _Row, _Count)


def row_key(subnet: IpNetwork) -> str:
    """Return the key for the results of the host with this subnet."""
    return ROWS + format_subnet_key(subnet)


def count_key(subnet: IpNetwork) -> str:
    """Return the key for the answer of the host with this subnet to a request for bytes."""
    return COUNTS + format_subnet_key(subnet)


def format_request(request: RowRequest, prefix: str, key: LeaseKey | None, name: str = REQUEST) -> bytes:
    """Return the value of a request, signed with the key of its host; unsigned without a key. `name`: the
    key of the record, which the signature covers.
    """
    value = _Request(id=request.id, asker=str(request.asker), hosts=list(map(str, request.hosts)))
    return _signed(value, prefix, name, key)


def parse_request(value: bytes) -> RowRequest:
    """Return the request in a value. The signature of the request is not checked.

    Raises:
        WireError: the value is not a request.
    """
    found = _decoded(value, _Request)
    if not 1 < len(found.hosts) <= MOST_HOSTS or not 0 < len(found.id) <= _LONGEST_ID:
        raise WireError("the request has a wrong number of hosts, or no identifier", hint=_HINT)
    hosts = tuple(map(_subnet, found.hosts))
    return RowRequest(id=found.id, asker=_subnet(found.asker), hosts=hosts)


def format_row(row: Row, prefix: str, key: LeaseKey | None) -> bytes:
    """Return the value of the results of a host, signed with its key; unsigned without a key."""
    answers = [one.state if one.rtt_ms is None else one.rtt_ms for one in row.answers]
    value = _Row(id=row.id, host=str(row.host), answers=answers)
    return _signed(value, prefix, row_key(row.host), key)


def parse_row(value: bytes) -> Row:
    """Return the results in a value. The signature of the results is not checked.

    Raises:
        WireError: the value does not contain results.
    """
    found = _decoded(value, _Row)
    answers = (Answer("reached", one) if isinstance(one, float) else Answer(one) for one in found.answers)
    return Row(id=found.id, host=_subnet(found.host), answers=tuple(answers))


def format_count(count: ByteCount, prefix: str, key: LeaseKey | None) -> bytes:
    """Return the value of an answer with bytes, signed with the key of its host; unsigned without a key."""
    value = _Count(id=count.id, host=str(count.host), received=count.received)
    return _signed(value, prefix, count_key(count.host), key)


def parse_count(value: bytes) -> ByteCount:
    """Return the answer with bytes in a value. The signature of the answer is not checked.

    Raises:
        WireError: the value does not contain an answer.
    """
    found = _decoded(value, _Count)
    return ByteCount(id=found.id, host=_subnet(found.host), received=found.received)


def is_authentic_request(value: bytes, prefix: str, public_key: bytes, name: str = REQUEST) -> bool:
    """Return whether a request is signed with this key, for this prefix of the store and this record."""
    return _is_authentic(_decoded(value, _Request), prefix, name, public_key)


def is_authentic_row(value: bytes, prefix: str, public_key: bytes) -> bool:
    """Return whether results are signed with this key, for this prefix of the store and this host."""
    found = _decoded(value, _Row)
    return _is_authentic(found, prefix, row_key(_subnet(found.host)), public_key)


def is_authentic_count(value: bytes, prefix: str, public_key: bytes) -> bool:
    """Return whether an answer with bytes is signed with this key, for this prefix and this host."""
    found = _decoded(value, _Count)
    return _is_authentic(found, prefix, count_key(_subnet(found.host)), public_key)


_Answer = TypeVar("_Answer", Row, ByteCount)


class RecordKind(msgspec.Struct, Generic[_Answer], frozen=True, kw_only=True):
    """One kind of requests, and the answers to them.

    Attributes:
        request: the key of the latest request, below the prefix of the store.
        answers: the keys of the answers begin with this text.
        answer_key: function that returns the key for the answer of the host with a subnet.
        format: function that returns the value of an answer. Its other arguments are the prefix of the store,
            and the key that signs the value, or None.
        parse: function that returns the answer in a value. It may raise WireError.
        is_authentic: function that returns whether a value is signed. Its other arguments are the prefix of
            the store and the public key.
    """

    request: str
    answers: str
    answer_key: Callable[[IpNetwork], str]
    format: Callable[[_Answer, str, LeaseKey | None], bytes]
    parse: Callable[[bytes], _Answer]
    is_authentic: Callable[[bytes, str, bytes], bool]


REACH = RecordKind(
    request=REQUEST,
    answers=ROWS,
    answer_key=row_key,
    format=format_row,
    parse=parse_row,
    is_authentic=is_authentic_row,
)
BYTES = RecordKind(
    request=COUNT_REQUEST,
    answers=COUNTS,
    answer_key=count_key,
    format=format_count,
    parse=parse_count,
    is_authentic=is_authentic_count,
)


def _signed(value: _Signed, prefix: str, name: str, key: LeaseKey | None) -> bytes:
    if key is not None:
        signature = sign_text(_PURPOSE, (prefix.encode(), name.encode(), msgspec.json.encode(value)), key)
        value = replace(value, signature=b2a_base64(signature, newline=False).decode())
    return msgspec.json.encode(value)


def _is_authentic(value: _Signed, prefix: str, name: str, public_key: bytes) -> bool:
    try:
        signature = a2b_base64(value.signature, strict_mode=True)
    except ValueError:
        return False
    text = msgspec.json.encode(replace(value, signature=""))
    return is_signed_text(_PURPOSE, (prefix.encode(), name.encode(), text), public_key, signature)


def _decoded(value: bytes, kind: type[_Signed]) -> _Signed:
    if len(value) > LONGEST_LEASE:
        raise WireError(f"the record has more than {LONGEST_LEASE} bytes", hint=_HINT)
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"the record cannot be read: {error}", hint=_HINT) from error


def _subnet(text: str) -> IpNetwork:
    try:
        return ip_network(text)
    except ValueError as error:
        raise WireError(f"{text!r} is not a subnet", hint=_HINT) from error
