"""Signatures of leases and of allow-lists: the bytes that are signed, and the algorithm Ed25519.

A signature covers the prefix of the store, the key of the lease and its value without the signature: subnet,
owner, addresses, backend, port, counter and public key. The value is signed in a separate form with sorted
keys, so that spelling and order in the store have no effect. This form also contains keys of later versions.

The library is imported by the first call, because it takes 9 MiB of memory.
"""

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from pyflannel.errors import WireError
from pyflannel.model.lease import KEY_BYTES, LARGEST_COUNTER, SIGNATURE_BYTES, Lease, LeaseKey
from pyflannel.model.network_config import IpNetwork
from pyflannel.wire.lease_json import signed_form
from pyflannel.wire.lease_record import (
    LONGEST_ALLOW_LIST,
    format_subnet_key,
    lease_key,
    lease_value,
    parse_subnet_key,
)

_PURPOSE = b"pyflannel lease 1"
"""This text distinguishes signatures of leases from all other signatures with the same key."""


def _signed_data(prefix: str, lease: Lease, value: bytes) -> bytes:
    """Return the signed bytes of a lease with this value: the parts as netstrings, in which each part
    follows its length.
    """
    return _netstrings(_PURPOSE, prefix.encode(), lease_key(lease).encode(), signed_form(value))


def _netstrings(*parts: bytes) -> bytes:
    return b"".join(b"%d:%s," % (len(part), part) for part in parts)


def sign(prefix: str, lease: Lease, counter: int, key: LeaseKey) -> Lease:
    """Return the lease with this counter, signed with a key pair."""
    attributes = replace(lease.attributes, signing_key=key.public, counter=counter, signature=None)
    lease = replace(lease, attributes=attributes)
    signature = _signature(_signed_data(prefix, lease, lease_value(lease)), key)
    return replace(lease, attributes=replace(attributes, signature=signature))


def _signature(data: bytes, key: LeaseKey) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key.private.reveal())).sign(data)


def sign_text(purpose: bytes, parts: Iterable[bytes], key: LeaseKey) -> bytes:
    """Return the signature of a statement for a purpose, which distinguishes the statement from other
    statements with the same key.
    """
    return _signature(_netstrings(purpose, *parts), key)


def is_signed_text(purpose: bytes, parts: Iterable[bytes], key: bytes, signature: bytes) -> bool:
    """Return whether a statement for a purpose is signed with a public key."""
    return _is_signed(_netstrings(purpose, *parts), key, signature)


def is_authentic(prefix: str, lease: Lease, value: bytes) -> bool:
    """Return whether the lease has a counter and a valid signature by the key in the lease, for this store.

    `value`: value of the record in the store that contains the lease.
    """
    attributes = lease.attributes
    if attributes.signing_key is None or attributes.signature is None or attributes.counter is None:
        return False
    try:
        data = _signed_data(prefix, lease, value)
    except WireError:
        return False
    return _is_signed(data, attributes.signing_key, attributes.signature)


def _is_signed(data: bytes, key: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


# lease-counters.json: counters and keys that remain on a host after a restart.


class KnownKeys(NamedTuple):
    """The counter of this host's latest lease, and the keys and counters of other hosts.

    Attributes:
        floors: lowest accepted counter, by key.
        owners: key by owner.
        holders: key and counter of the latest lease, by subnet.
    """

    counter: int
    floors: Mapping[bytes, int]
    owners: Mapping[str, bytes]
    holders: Mapping[IpNetwork, tuple[bytes, int]]


class _File(msgspec.Struct, rename="pascal"):
    counter: int
    floors: dict[str, int]
    owners: dict[str, str]
    holders: dict[str, tuple[str, int]] = {}


def format_known_keys(known: KnownKeys) -> bytes:
    """Return the content of the file for these values."""
    floors = {key.hex(): floor for key, floor in known.floors.items()}
    owners = {owner: key.hex() for owner, key in known.owners.items()}
    holders = {
        format_subnet_key(subnet): (key.hex(), counter) for subnet, (key, counter) in known.holders.items()
    }
    return msgspec.json.encode(_File(known.counter, floors, owners, holders))


def parse_known_keys(data: bytes) -> KnownKeys:
    """Return the content of the file.

    Raises:
        WireError: the content is invalid.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
        floors = {bytes.fromhex(key): floor for key, floor in file.floors.items()}
        owners = {owner: bytes.fromhex(key) for owner, key in file.owners.items()}
        holders: dict[IpNetwork, tuple[bytes, int]] = {
            parse_subnet_key(subnet)[0]: (bytes.fromhex(key), counter)
            for subnet, (key, counter) in file.holders.items()
        }
    except (ValueError, RecursionError, WireError) as error:
        raise WireError(
            f"lease-counters.json cannot be read: {error}", hint="Delete the file: flanneld writes it again."
        ) from error
    return KnownKeys(file.counter, floors, owners, holders)


# The allow-list: one key for each line, in base64 or hexadecimal digits, followed by an optional remark.

_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


def parse_allowed_keys(text: str) -> frozenset[bytes]:
    """Return the keys of an allow-list. Empty lines, and lines that begin with #, are ignored.

    Raises:
        WireError: the list contains no key, or a line does not begin with a key; the message contains the
            number of the line.
    """
    keys = frozenset(_allowed(text))
    if not keys:
        raise WireError("the file contains no key", hint="Write a file with one key per line.")
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
        if len(key) != KEY_BYTES:
            raise WireError(
                f"line {number} does not begin with a key of {KEY_BYTES} bytes",
                hint="Write the value of Key from the host's lease, or of Public from its lease-key.json.",
            )
        yield key


# The allow-list in the store: the text of an allow-list, a counter and the signature of an operator.

_LIST_PURPOSE = b"pyflannel allow-list 1"
"""This text distinguishes signatures of allow-lists from signatures of leases."""


class SignedList(NamedTuple):
    """An allow-list that an operator signed. Of two lists, the list with the higher counter is later."""

    text: str
    counter: int
    operator: bytes
    signature: bytes


class _SignedList(msgspec.Struct, rename="pascal"):
    counter: int
    operator: str
    signature: str
    keys: str


def sign_list(prefix: str, text: str, counter: int, key: LeaseKey) -> SignedList:
    """Return an allow-list, signed with the key of an operator for the hosts with this prefix of the
    store.
    """
    return SignedList(text, counter, key.public, _signature(_list_data(prefix, text, counter), key))


def is_authentic_list(prefix: str, signed: SignedList) -> bool:
    """Return whether the list is signed with the key in it, for this prefix of the store."""
    return _is_signed(_list_data(prefix, signed.text, signed.counter), signed.operator, signed.signature)


def _list_data(prefix: str, text: str, counter: int) -> bytes:
    return _netstrings(_LIST_PURPOSE, prefix.encode(), b"%d" % counter, text.encode())


def format_signed_list(signed: SignedList) -> bytes:
    """Return the value of the list in the store.

    Raises:
        WireError: the list is too large.
    """
    operator, signature = (
        b2a_base64(data, newline=False).decode() for data in (signed.operator, signed.signature)
    )
    data = msgspec.json.encode(_SignedList(signed.counter, operator, signature, signed.text))
    if len(data) > LONGEST_ALLOW_LIST:
        raise _too_large()
    return data


def parse_signed_list(data: bytes) -> SignedList:
    """Return the list in a value of the store. The signature of the list is not checked.

    Raises:
        WireError: the value is not a signed allow-list.
    """
    if len(data) > LONGEST_ALLOW_LIST:
        raise _too_large()
    try:
        found = msgspec.json.decode(data, type=_SignedList)
        operator, signature = (
            a2b_base64(text, strict_mode=True) for text in (found.operator, found.signature)
        )
        text = found.keys.encode().decode()  # raises an error for a lone surrogate
    except (ValueError, RecursionError) as error:
        raise WireError(f"it is not a signed allow-list: {error}", hint=_PUBLISH) from error
    if len(operator) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise WireError("the key or the signature has a wrong length", hint=_PUBLISH)
    if not 0 < found.counter <= LARGEST_COUNTER:
        raise WireError(f"the counter {found.counter} is out of range", hint=_PUBLISH)
    return SignedList(text, found.counter, operator, signature)


_PUBLISH = "Write the list with flannelctl allow-list publish."


def _too_large() -> WireError:
    return WireError(
        f"the list has more than {LONGEST_ALLOW_LIST} bytes",
        hint="Shorten the remarks after the keys, or use --lease-keys.",
    )


# allow-list.json: the last verified list, and the counters of the operators.


class KeptList(NamedTuple):
    """The text of the list in force, its operator, and the counter of the last list of each operator."""

    text: str
    operator: bytes
    counters: Mapping[bytes, int]


class _KeptList(msgspec.Struct, rename="pascal"):
    counters: dict[str, int]
    operator: str
    keys: str


def format_kept_list(kept: KeptList) -> bytes:
    """Return the content of the file for these values."""
    counters = {key.hex(): counter for key, counter in kept.counters.items()}
    return msgspec.json.encode(_KeptList(counters, kept.operator.hex(), kept.text))


def parse_kept_list(data: bytes) -> KeptList:
    """Return the content of the file.

    Raises:
        WireError: the text is not the content of allow-list.json.
    """
    try:
        file = msgspec.json.decode(data, type=_KeptList)
        counters = {bytes.fromhex(key): counter for key, counter in file.counters.items()}
        operator = bytes.fromhex(file.operator)
        if operator not in counters:
            raise ValueError("the operator of the list has no counter")
    except (ValueError, RecursionError) as error:
        raise WireError(
            f"allow-list.json cannot be read: {error}", hint="Delete the file: flanneld writes it again."
        ) from error
    return KeptList(file.keys, operator, counters)
