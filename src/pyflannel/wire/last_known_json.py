"""last-known.json: the leases that a host starts with while its store is away.

    {"Config":"{…}","Own":"subnets/10.100.15.0-24","Leases":{"subnets/10.100.15.0-24":"{…}",…}}

Keys and values are those of the store, so that whoever reads the store reads this.
"""

from collections.abc import Iterator
from itertools import islice

import msgspec

from pyflannel.errors import WireError
from pyflannel.model.lease import LastKnown, Lease
from pyflannel.model.store_record import Record
from pyflannel.wire.lease_record import lease_key, lease_of, lease_value

_PART = 100
"""Leases that are written at once."""


class _File(msgspec.Struct, rename="pascal"):
    config: str
    own: str
    leases: dict[str, str]


def parse_last_known(octets: bytes) -> LastKnown:
    """Return what the file holds; revisions are 0, and every lease counts as one with a TTL.

    Raises:
        WireError: it is not such a file, or lacks our own lease; a bad lease of a peer is left out.
    """
    try:
        file = msgspec.json.decode(octets, type=_File)
        own = lease_of(_record(file.own, file.leases[file.own]))
    except (msgspec.MsgspecError, RecursionError, KeyError, WireError) as error:
        raise WireError(
            f"last-known.json cannot be read: {error}", hint="Delete it; it is written anew."
        ) from error
    leases = []
    for key, value in file.leases.items():
        try:
            leases.append(lease_of(_record(key, value)))
        except WireError:
            continue
    return LastKnown(config=file.config, own=own, leases=tuple(leases))


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
