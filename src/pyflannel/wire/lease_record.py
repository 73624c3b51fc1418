"""Converts records of the store to leases and claims, and back; reads and writes last-known.json.

The key of a record contains the subnet, and its value contains the holder. last-known.json contains the
leases with which a host starts if its store is unreachable:

    {"Config":"{…}","Own":"subnets/10.100.15.0-24","Leases":{"subnets/10.100.15.0-24":"{…}",…}}

The file has the same keys and values as the store, so that the parsers of the store can read it.
"""

import re
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from itertools import islice, starmap
from typing import NamedTuple

import msgspec

from pyflannel.errors import WireError
from pyflannel.model.lease import Claim, LastKnown, Lease
from pyflannel.model.lease_set import LARGEST
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.store_record import Record
from pyflannel.wire.json_values import LONGEST as LONGEST_CONFIG
from pyflannel.wire.json_values import parse_dotted
from pyflannel.wire.lease_json import (
    LONGEST_LEASE,
    format_claim,
    format_lease_attributes,
    parse_claim,
    parse_lease_attributes,
)

# The last part of a lease's key: `10.5.52.0-24`, or `10.5.52.0-24&fd00:5:0:34::-64` with both families.
#
# Source: flannel 0.28.9. There is no form for IPv6 alone.

# The regular expression of the original may match in the middle of a key: the original reads 10.5.52.0.1-24
# as 5.52.0.1/24.
_LENGTH = "(0|[1-9][0-9]{0,2})"
_KEY = re.compile(f"([0-9.]+)-{_LENGTH}(?:&([0-9a-f:]+)-{_LENGTH})?")

_IPV6_KEY = re.compile(f"&([0-9a-f:]+)-{_LENGTH}")
"""The key of a lease with IPv6 alone, only in last-known.json."""

_LONGEST_KEY = len("255.255.255.255-31&ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff-127")
"""Maximum length in characters. A store may contain keys of a megabyte."""

# The original stores an IPv4 length in 5 bits and an IPv6 length in 7, so a single address has no key.
_LONGEST_IPV4 = 31
_LONGEST_IPV6 = 127


def parse_subnet_key(text: str) -> tuple[IPv4Network, IPv6Network | None]:
    """Return the subnets of a key.

    A subnet has exactly one key, which `format_subnet_key` writes. The original also reads addresses with
    host bits and lengths with leading zeros. Keys of these two forms are refused, because a lease would
    otherwise have several keys. IPv4-mapped IPv6 is refused, because the original writes such a subnet as
    IPv4 and cannot read the key.

    Raises:
        WireError: the text is not the key of a subnet.
    """
    found = _KEY.fullmatch(text) if len(text) <= _LONGEST_KEY else None
    if found is None:
        raise _not_a_key(text, "the form is invalid")
    address, length, ipv6_address, ipv6_length = found.groups()
    try:
        subnet = _ipv4_subnet(address, length)
        ipv6_subnet = _ipv6_subnet(ipv6_address, ipv6_length) if ipv6_address else None
    except ValueError as error:
        raise _not_a_key(text, str(error)) from error
    return subnet, ipv6_subnet


def format_subnet_key(subnet: IpNetwork, ipv6_subnet: IPv6Network | None = None) -> str:
    """Return the key of a lease on these subnets."""
    key = "" if subnet == ipv6_subnet else f"{subnet.network_address}-{subnet.prefixlen}"
    if ipv6_subnet is not None:
        key += f"&{ipv6_subnet.network_address}-{ipv6_subnet.prefixlen}"
    return key


def _ipv4_subnet(address: str, length: str) -> IPv4Network:
    subnet = IPv4Network((int(parse_dotted(address)), int(length)))
    if subnet.prefixlen > _LONGEST_IPV4:
        raise ValueError(f"{subnet} is a single address")
    return subnet


def _ipv6_subnet(address: str, length: str) -> IPv6Network:
    subnet = IPv6Network(f"{address}/{length}")
    if subnet.prefixlen > _LONGEST_IPV6:
        raise ValueError(f"{subnet} is a single address")
    if subnet.network_address.ipv4_mapped is not None:
        raise ValueError(f"{subnet} is IPv4-mapped")
    if str(subnet.network_address) != address:
        raise ValueError(f"{address} must be written as {subnet.network_address}")
    return subnet


def _not_a_key(text: str, why: str) -> WireError:
    return WireError(
        f"not the key of a subnet: {text!r}: {why}",
        hint="Delete the key. The key of a lease consists of base address, dash and prefix length, for "
        "example 10.5.52.0-24.",
    )


# Converts records of the store to leases and claims, and back. Two kinds of keys:
#
# - `subnets/10.5.52.0-24`: a lease, or a reservation if the record has no TTL
# - `claims/10.5.52.0-24`: a claim, which asks the holder of that lease to show that it is running

CONFIG = "config"
"""The key of the network config, below the store's prefix."""

ALLOW_LIST = "allow-list"
"""The key of the signed allow-list, below the prefix of the store."""

LONGEST_ALLOW_LIST = 1 << 20
"""Maximum length of the allow-list in bytes, which is enough for 15,000 hosts. etcd refuses values of more
than 1.5 MB."""

SUBNETS = "subnets/"
"""The keys of leases begin with this text."""

CLAIMS = "claims/"
"""The keys of claims begin with this text."""

RESERVED = frozenset({"subnets", "claims"})
"""No network can have these names, because the default network has keys below these names."""


def longest_value(key: str) -> int:
    """Return how many bytes of a value to keep: one more than the maximum, so that the parser later
    refuses the value.
    """
    name = key.rpartition("/")[2]  # the config of the only network, or of one of several networks
    longest = {CONFIG: 4 * LONGEST_CONFIG, ALLOW_LIST: LONGEST_ALLOW_LIST}
    return longest.get(name, LONGEST_LEASE) + 1


def lease_of(record: Record) -> Lease:
    """Return the lease of a record.

    Raises:
        WireError: key or value does not have the form of a lease; the message contains the key.
    """
    subnet, ipv6_subnet = leased_subnets(record.key)
    try:
        attributes = parse_lease_attributes(record.value)
    except WireError as error:
        raise _at(record.key, error) from error
    is_new = record.created in (0, record.revision)
    return Lease(
        subnet=subnet,
        ipv6_subnet=ipv6_subnet,
        attributes=attributes,
        revision=record.revision,
        has_ttl=record.lease_id != 0,
        since=record.revision if is_new else record.created,  # the same object saves 32 bytes
    )


def claim_of(record: Record) -> Claim:
    """Return the claim of a record.

    Raises:
        WireError: key or value does not have the form of a claim; the message contains the key.
    """
    subnet = claimed_subnet(record.key)
    try:
        return parse_claim(record.value, subnet, record.revision)
    except WireError as error:
        raise _at(record.key, error) from error


def leased_subnets(key: str) -> tuple[IPv4Network, IPv6Network | None]:
    """Return the subnets of the lease at `key`. A deletion contains only the key.

    Raises:
        WireError: `key` is not the key of a lease.
    """
    try:
        return parse_subnet_key(_below(SUBNETS, key))
    except WireError as error:
        raise _at(key, error) from error


def claimed_subnet(key: str) -> IPv4Network:
    """Return the subnet of the claim at `key`.

    Raises:
        WireError: `key` is not the key of a claim.
    """
    try:
        subnet, ipv6_subnet = parse_subnet_key(_below(CLAIMS, key))
    except WireError as error:
        raise _at(key, error) from error
    if ipv6_subnet is not None:
        raise _at(key, WireError("the key of a claim contains only an IPv4 subnet", hint="Delete the key."))
    return subnet


def lease_key(lease: Lease | IPv4Network) -> str:
    """Return the key of a lease, or of a lease with only this subnet: `subnets/10.5.52.0-24`."""
    if isinstance(lease, IPv4Network):
        return SUBNETS + format_subnet_key(lease)
    return SUBNETS + format_subnet_key(lease.subnet, lease.ipv6_subnet)


def lease_value(lease: Lease) -> bytes:
    """Return the value for the key of a lease."""
    return format_lease_attributes(lease.attributes)


def claim_key(subnet: IpNetwork) -> str:
    """Return the key of a claim on `subnet`: `claims/10.5.52.0-24`."""
    return CLAIMS + format_subnet_key(subnet)


def claim_value(claim: Claim) -> bytes:
    """Return the value for the key of a claim."""
    return format_claim(claim)


def _below(prefix: str, key: str) -> str:
    if not key.startswith(prefix):
        raise WireError(f"not below {prefix}", hint=f"Only keys below {prefix} can be read.")
    return key.removeprefix(prefix)


def _at(key: str, error: WireError) -> WireError:
    return WireError(f"{key}: {error}", hint=error.hint)


_PART = 100
"""Number of leases in each part that is written."""


class _Change(msgspec.Struct, rename="pascal", kw_only=True, omit_defaults=True):
    config: str = ""
    previous: tuple[str, ...] = ()
    is_prepared: bool = True


class _File(msgspec.Struct, rename="pascal", kw_only=True, omit_defaults=True):
    """The JSON of last-known.json. The leases are at the end of the JSON, because they are written in
    parts.
    """

    config: str
    own: str
    previous: tuple[str, ...] = ()
    is_prepared: bool = True
    leases: dict[str, str]


class Kept(NamedTuple):
    """The content of last-known.json. The leases remain records, because their conversion takes longer than
    the reading of the file.

    The revisions are 0, and every record has a TTL.
    """

    config: str
    own: Lease
    records: Iterator[Record]
    previous: tuple[str, ...] = ()
    is_prepared: bool = True


class KeptChange(NamedTuple):
    """The network configs at the end of the last run, as text.

    Attributes:
        config: text of the newest config; "" if it is unknown.
        previous: during a change of the backend, the texts of the earlier configs.
        is_prepared: true if the host was able to receive packets through the backend of the newest config.
    """

    config: str = ""
    previous: tuple[str, ...] = ()
    is_prepared: bool = True


def parse_change(data: bytes) -> KeptChange:
    """Return the configs in last-known.json; an empty result for an invalid file."""
    try:
        change = msgspec.json.decode(data, type=_Change)
    except (msgspec.MsgspecError, RecursionError):
        return KeptChange()
    return KeptChange(change.config, change.previous, change.is_prepared)


def parse_last_known(data: bytes) -> Kept:
    """Return the content of last-known.json.

    Raises:
        WireError: the content is invalid, or the own lease of the host is missing.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
        own = _lease_kept_in(_record(file.own, file.leases[file.own]))
    except (msgspec.MsgspecError, RecursionError, KeyError, WireError) as error:
        raise WireError(
            f"last-known.json cannot be read: {error}", hint="Delete the file: flanneld writes it again."
        ) from error
    records = starmap(_record, islice(file.leases.items(), LARGEST))
    return Kept(file.config, own, records, file.previous, file.is_prepared)


def readable_lease(record: Record) -> Lease | None:
    """Return the lease of a record; None if the record is invalid."""
    try:
        return lease_of(record)
    except WireError:
        return None


def kept_lease(record: Record) -> Lease | None:
    """Return the lease of a record in last-known.json; None if the record is invalid.

    Unlike a store, the file also has leases with IPv6 alone, whose key is `subnets/&fd00:5:0:34::-64`.
    """
    try:
        return _lease_kept_in(record)
    except WireError:
        return None


def _lease_kept_in(record: Record) -> Lease:
    found = _IPV6_KEY.fullmatch(record.key.removeprefix(SUBNETS))
    if found is None:
        return lease_of(record)
    try:
        subnet = _ipv6_subnet(found[1], found[2])
    except ValueError as error:
        raise _not_a_key(record.key, str(error)) from error
    return Lease.of_ipv6(subnet, parse_lease_attributes(record.value))


def format_last_known(known: LastKnown) -> Iterator[bytes]:
    """Yield the content of last-known.json in parts, because a large network takes a long time."""
    file = _File(
        config=known.config,
        own=lease_key(known.own),
        leases={},
        previous=known.previous,
        is_prepared=known.is_prepared,
    )
    head = msgspec.json.encode(file)
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
