"""Signatures of leases: the signed bytes, and Ed25519.

A signature covers the prefix of the store, the key of the lease and its value without the signature: subnet,
owner, addresses, backend, port, counter and public key. The value is signed in the form that this version
writes, so that spelling and order in the store have no effect.

The library is imported by the first call, because it takes 8 MiB of memory.
"""

import re
from binascii import a2b_base64
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import msgspec

from pyflannel.errors import WireError
from pyflannel.model.lease import KEY_OCTETS, Lease, LeaseKey
from pyflannel.wire.lease_record import lease_key, lease_value

_PURPOSE = b"pyflannel lease 1"
"""Distinguishes these signatures from all others of the key."""


def signed_octets(prefix: str, lease: Lease) -> bytes:
    """Return the signed bytes of the lease: netstrings, each part after its length."""
    unsigned = replace(lease, attributes=replace(lease.attributes, signature=None))
    parts = _PURPOSE, prefix.encode(), lease_key(lease).encode(), lease_value(unsigned)
    return b"".join(b"%d:%s," % (len(part), part) for part in parts)


def sign(prefix: str, lease: Lease, counter: int, key: LeaseKey) -> Lease:
    """Return the lease with this counter, signed with a key pair."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    attributes = replace(lease.attributes, signing_key=key.public, counter=counter, signature=None)
    lease = replace(lease, attributes=attributes)
    signer = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key.private.reveal()))
    return replace(lease, attributes=replace(attributes, signature=signer.sign(signed_octets(prefix, lease))))


def is_authentic(prefix: str, lease: Lease) -> bool:
    """Return whether the lease has a counter and a valid signature of the key in it, for this store."""
    attributes = lease.attributes
    if attributes.signing_key is None or attributes.signature is None or attributes.counter is None:
        return False
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        verifier = Ed25519PublicKey.from_public_bytes(attributes.signing_key)
        verifier.verify(attributes.signature, signed_octets(prefix, lease))
    except (InvalidSignature, ValueError):
        return False
    return True


# lease-counters.json: counters and keys that a host keeps across restarts.


class KnownKeys(NamedTuple):
    """The counter of this host's latest lease, the minimum accepted counter by key, and the key by owner."""

    counter: int
    floors: Mapping[bytes, int]
    owners: Mapping[str, bytes]


class _File(msgspec.Struct, rename="pascal"):
    counter: int
    floors: dict[str, int]
    owners: dict[str, str]


def format_known_keys(known: KnownKeys) -> bytes:
    """Return the content of the file."""
    floors = {key.hex(): floor for key, floor in known.floors.items()}
    owners = {owner: key.hex() for owner, key in known.owners.items()}
    return msgspec.json.encode(_File(known.counter, floors, owners))


def parse_known_keys(octets: bytes) -> KnownKeys:
    """Return the content of the file.

    Raises:
        WireError: the content is invalid.
    """
    try:
        file = msgspec.json.decode(octets, type=_File)
        floors = {bytes.fromhex(key): floor for key, floor in file.floors.items()}
        owners = {owner: bytes.fromhex(key) for owner, key in file.owners.items()}
    except (ValueError, RecursionError) as error:
        raise WireError(
            f"lease-counters.json cannot be read: {error}", hint="Delete it: flanneld writes it again."
        ) from error
    return KnownKeys(file.counter, floors, owners)


# The allow-list: one key for each line, in base64 or hexadecimal digits, followed by an optional remark.

_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


def parse_allowed_keys(text: str) -> frozenset[bytes]:
    """Return the keys of an allow-list. Empty lines, and lines that begin with #, are ignored.

    Raises:
        WireError: there is no key, or a line does not begin with one; the message contains its number.
    """
    keys = frozenset(_allowed(text))
    if not keys:
        raise WireError("it contains no key", hint="Write a file with one key per line.")
    return keys


def _allowed(text: str) -> Iterator[bytes]:
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            if _HEXADECIMAL.fullmatch(words[0]):
                key = bytes.fromhex(words[0])
            else:
                key = a2b_base64(words[0], strict_mode=True)
        except ValueError:
            key = b""
        if len(key) != KEY_OCTETS:
            raise WireError(
                f"line {number} does not begin with a key of {KEY_OCTETS} bytes",
                hint="Write the value of Key from the host's lease, or of Public from its lease-key.json.",
            )
        yield key
