"""A signature of a lease covers all that it says, and where."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pyflannel.model.lease import Lease, LeaseAttributes, LeaseKey
from pyflannel.model.store_record import Record, Secret
from pyflannel.wire.lease_record import lease_key, lease_of, lease_value
from pyflannel.wire.lease_signature import is_authentic, sign

PREFIX = "/coreos.com/network"
PAIR = Ed25519PrivateKey.generate()
KEY = LeaseKey(PAIR.public_key().public_bytes_raw(), Secret(PAIR.private_bytes_raw().hex()))
LEASE = Lease(
    subnet=IPv4Network("10.3.1.0/24"),
    attributes=LeaseAttributes(
        public_ip=IPv4Address("192.0.2.1"),
        backend_type="wireguard",
        backend_data='{"a":1}',
        owner="a",
        port=8285,
    ),
)
SIGNED = sign(PREFIX, LEASE, 7, KEY)


def test_a_signed_lease_is_authentic_after_the_store() -> None:
    record = Record(key=lease_key(SIGNED), value=lease_value(SIGNED), revision=9, lease_id=1)

    read = lease_of(record)

    assert (read.attributes.signing_key, read.attributes.counter) == (KEY.public, 7)
    assert is_authentic(PREFIX, read)


def test_spelling_and_order_in_the_store_do_not_matter() -> None:
    members = json.loads(lease_value(SIGNED))
    value = json.dumps({name.swapcase(): members[name] for name in reversed(members) if name != "Pyflannel"})
    value = value[:-1] + ', "Pyflannel": ' + json.dumps(members["Pyflannel"], indent=1) + "}"

    read = lease_of(Record(key=lease_key(SIGNED), value=value.encode(), revision=9, lease_id=1))

    assert is_authentic(PREFIX, read)


def test_a_reservation_of_the_same_lease_is_authentic() -> None:
    """An operator writes the value again, without a TTL."""
    assert is_authentic(PREFIX, replace(SIGNED, has_ttl=False, revision=12))


@pytest.mark.parametrize(
    "change",
    [
        {"public_ip": IPv4Address("192.0.2.2")},
        {"public_ipv6": IPv6Address("2001:db8::1")},
        {"backend_type": "host-gw"},
        {"backend_data": '{"a":2}'},
        {"backend_v6_data": "{}"},
        {"owner": "b"},
        {"host_name": "other"},
        {"port": 8286},
        {"reads": ("partial-checksum",)},
        {"counter": 8},
        {"signing_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw()},
        {"signing_key": bytes(32)},
        {"signature": bytes(64)},
        {"signature": None},
        {"counter": None},
        {"signing_key": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_lease_is_not_authentic(change: dict[str, object]) -> None:
    changed = replace(SIGNED, attributes=replace(SIGNED.attributes, **change))

    assert not is_authentic(PREFIX, changed)


def test_a_lease_is_not_authentic_elsewhere() -> None:
    assert not is_authentic("/coreos.com/other", SIGNED)
    assert not is_authentic(PREFIX, replace(SIGNED, subnet=IPv4Network("10.3.2.0/24")))
    assert not is_authentic(PREFIX, replace(SIGNED, ipv6_subnet=IPv6Network("fd00::/64")))
