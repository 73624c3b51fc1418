"""last-known.json: the leases that a host starts with while its store is away.

    {"Config":"{…}","Own":"subnets/10.100.15.0-24","Leases":{"subnets/10.100.15.0-24":"{…}",…}}

Keys and values are those of the store, so that the parsers of the store read this file.
"""

from collections.abc import Iterator
from itertools import islice, starmap
from typing import NamedTuple

import msgspec

from pyflannel.errors import WireError
from pyflannel.model.lease import LastKnown, Lease
from pyflannel.model.lease_set import LARGEST
from pyflannel.model.store_record import Record
from pyflannel.wire.lease_record import lease_key, lease_of, lease_value

_PART = 100
"""Leases that are written at once."""


class _File(msgspec.Struct, rename="pascal"):
    config: str
    own: str
    leases: dict[str, str]


class Kept(NamedTuple):
    """The file, its leases not yet read: a record costs more time than its share of the file.

    Revisions are 0, and every lease counts as one with a TTL.
    """

    config: str
    own: Lease
    records: Iterator[Record]


def parse_last_known(octets: bytes) -> Kept:
    """Return what the file holds.

    Raises:
        WireError: it is not such a file, or lacks our own lease.
    """
    try:
        file = msgspec.json.decode(octets, type=_File)
        own = lease_of(_record(file.own, file.leases[file.own]))
    except (msgspec.MsgspecError, RecursionError, KeyError, WireError) as error:
        raise WireError(
            f"last-known.json cannot be read: {error}", hint="Delete it; it is written anew."
        ) from error
    records = starmap(_record, islice(file.leases.items(), LARGEST))
    return Kept(file.config, own, records)


def kept_lease(record: Record) -> Lease | None:
    """Return the lease of a record of the file; None for a bad one, which is left out."""
    try:
        return lease_of(record)
    except WireError:
        return None


def format_last_known(known: LastKnown) -> Iterator[bytes]:
    """Yield the file's octets, part by part: all of a large network at once takes long."""
    head = msgspec.json.encode(_File(config=known.config, own=lease_key(known.own), leases={}))
    yield head.removesuffix(b"}}")
    others = (lease for lease in known.leases if lease.subnet != known.own.subnet)
    yield _member(known.own)
    while part := b"".join(b"," + _member(lease) for lease in islice(others, _PART)):
        yield part
    yield b"}}"


def _member(lease: Lease) -> bytes:
    key, value = lease_key(lease), lease_value(lease).decode()
    return msgspec.json.encode(key) + b":" + msgspec.json.encode(value)


def _record(key: str, value: str) -> Record:
    return Record(key=key, value=value.encode(), revision=0, lease_id=1)
