"""Records of the store to leases and claims, and back: a key says which subnet, its value whose.

- `subnets/10.5.52.0-24`: a lease; without TTL, a reservation
- `claims/10.5.52.0-24`: a claim: is the holder of that lease alive?
"""

from ipaddress import IPv4Network, IPv6Network

from pyflannel.errors import WireError
from pyflannel.model.lease import Claim, Lease
from pyflannel.model.store_record import Record
from pyflannel.wire.lease_json import (
    format_claim,
    format_lease_attributes,
    parse_claim,
    parse_lease_attributes,
)
from pyflannel.wire.subnet_key import format_subnet_key, parse_subnet_key

CONFIG = "config"
"""The key of the network config, below the store's prefix."""

SUBNETS = "subnets/"
"""What the keys of leases begin with."""

CLAIMS = "claims/"
"""What the keys of claims begin with."""


def lease_of(record: Record) -> Lease:
    """Return the lease that a record holds.

    Raises:
        WireError: key or value is no lease's; the message names the key.
    """
    subnet, ipv6_subnet = leased_subnets(record.key)
    try:
        attributes = parse_lease_attributes(record.value)
    except WireError as error:
        raise _at(record.key, error) from error
    return Lease(
        subnet=subnet,
        ipv6_subnet=ipv6_subnet,
        attributes=attributes,
        revision=record.revision,
        has_ttl=record.lease_id != 0,
    )


def claim_of(record: Record) -> Claim:
    """Return the claim that a record holds.

    Raises:
        WireError: key or value is no claim's; the message names the key.
    """
    subnet = claimed_subnet(record.key)
    try:
        return parse_claim(record.value, subnet, record.revision)
    except WireError as error:
        raise _at(record.key, error) from error


def leased_subnets(key: str) -> tuple[IPv4Network, IPv6Network | None]:
    """Return the subnets of the lease at `key`, which is all that its deletion says.

    Raises:
        WireError: it is no lease's key.
    """
    try:
        return parse_subnet_key(_below(SUBNETS, key))
    except WireError as error:
        raise _at(key, error) from error


def claimed_subnet(key: str) -> IPv4Network:
    """Return the subnet that the claim at `key` is about.

    Raises:
        WireError: it is no claim's key.
    """
    try:
        subnet, ipv6_subnet = parse_subnet_key(_below(CLAIMS, key))
    except WireError as error:
        raise _at(key, error) from error
    if ipv6_subnet is not None:
        raise _at(key, WireError("a claim names an IPv4 subnet alone", hint="Delete the key."))
    return subnet


def lease_key(lease: Lease | IPv4Network) -> str:
    """Return the key of a lease, or of one on this subnet alone: `subnets/10.5.52.0-24`."""
    if isinstance(lease, IPv4Network):
        return SUBNETS + format_subnet_key(lease)
    return SUBNETS + format_subnet_key(lease.subnet, lease.ipv6_subnet)


def lease_value(lease: Lease) -> bytes:
    """Return what is written at the key of a lease."""
    return format_lease_attributes(lease.attributes)


def claim_key(subnet: IPv4Network) -> str:
    """Return the key of a claim on `subnet`: `claims/10.5.52.0-24`."""
    return CLAIMS + format_subnet_key(subnet)


def claim_value(claim: Claim) -> bytes:
    """Return what is written at the key of a claim."""
    return format_claim(claim)


def _below(prefix: str, key: str) -> str:
    if not key.startswith(prefix):
        raise WireError(f"not below {prefix}", hint=f"Only keys below {prefix} are read here.")
    return key.removeprefix(prefix)


def _at(key: str, error: WireError) -> WireError:
    return WireError(f"{key}: {error}", hint=error.hint)
