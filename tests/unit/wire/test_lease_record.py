"""Key and value of a record determine a lease or claim. An invalid record is reported by its key."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from msgspec.structs import replace

from pyflannel.errors import WireError
from pyflannel.model.lease import Claim, Lease, LeaseAttributes
from pyflannel.model.store_record import Record
from pyflannel.wire.lease_record import (
    claim_key,
    claim_of,
    claim_value,
    claimed_subnet,
    lease_key,
    lease_of,
    lease_value,
    leased_subnets,
)

LEASE = Lease(
    subnet=IPv4Network("10.5.52.0/24"),
    attributes=LeaseAttributes(public_ip=IPv4Address("192.168.50.102"), owner="f00d"),
    revision=9,
)
DUAL = replace(LEASE, ipv6_subnet=IPv6Network("fd00:5:0:34::/64"))
CLAIM = Claim(subnet=LEASE.subnet, owner="beef", public_ip=IPv4Address("192.168.50.103"), revision=10)


def record_of(lease: Lease) -> Record:
    return Record(
        key=lease_key(lease),
        value=lease_value(lease),
        revision=lease.revision,
        lease_id=77 if lease.has_ttl else 0,
    )


@pytest.mark.parametrize("lease", [LEASE, DUAL, replace(LEASE, has_ttl=False)])
def test_a_lease_is_read_back_from_its_record(lease: Lease) -> None:
    assert lease_of(record_of(lease)) == lease


def test_a_vtep_is_published_since_the_creation_of_the_key_if_the_store_records_the_creation() -> None:
    record = replace(record_of(LEASE), created=4)

    assert lease_of(record).since == 4
    assert lease_of(record_of(LEASE)).since == LEASE.revision


def test_a_claim_is_read_back_from_its_record() -> None:
    record = Record(key=claim_key(CLAIM.subnet), value=claim_value(CLAIM), revision=10, lease_id=3)

    assert claim_of(record) == CLAIM


def test_keys_are_below_their_prefix() -> None:
    assert lease_key(LEASE) == "subnets/10.5.52.0-24"
    assert lease_key(LEASE.subnet) == "subnets/10.5.52.0-24"
    assert lease_key(DUAL) == "subnets/10.5.52.0-24&fd00:5:0:34::-64"
    assert claim_key(LEASE.subnet) == "claims/10.5.52.0-24"
    assert leased_subnets(lease_key(DUAL)) == (DUAL.subnet, DUAL.ipv6_subnet)
    assert claimed_subnet(claim_key(LEASE.subnet)) == LEASE.subnet


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("subnets/10.5.52.0-24", b"no json"),
        ("subnets/10.5.52.7-24", lease_value(LEASE)),
        ("subnets/10.5.52.0-24/extra", lease_value(LEASE)),
        ("subnets-old/10.5.52.0-24", lease_value(LEASE)),
        ("10.5.52.0-24", lease_value(LEASE)),
        ("claims/10.5.52.0-24", lease_value(LEASE)),
    ],
)
def test_an_invalid_lease_is_reported_by_its_key(key: str, value: bytes) -> None:
    with pytest.raises(WireError) as caught:
        lease_of(Record(key=key, value=value, revision=1))

    assert str(caught.value).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("claims/10.5.52.0-24", b"no json"),
        ("claims/10.5.52.7-24", claim_value(CLAIM)),
        ("claims/10.5.52.0-24&fd00:5:0:34::-64", claim_value(CLAIM)),
        ("subnets/10.5.52.0-24", claim_value(CLAIM)),
    ],
)
def test_an_invalid_claim_is_reported_by_its_key(key: str, value: bytes) -> None:
    with pytest.raises(WireError) as caught:
        claim_of(Record(key=key, value=value, revision=1))

    assert str(caught.value).startswith(f"{key}: ")
