"""A signature of a lease covers its whole content and its key in the store."""

import json
from base64 import b64encode
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from pyflannel.errors import WireError
from pyflannel.model.lease import Lease, LeaseAttributes, LeaseKey
from pyflannel.model.store_record import Record, Secret
from pyflannel.wire.lease_record import lease_key, lease_of, lease_value
from pyflannel.wire.lease_signature import (
    KeptList,
    KnownKeys,
    format_kept_list,
    format_known_keys,
    format_signed_list,
    is_authentic,
    is_authentic_list,
    parse_kept_list,
    parse_known_keys,
    parse_signed_list,
    sign,
    sign_list,
)

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
    assert is_authentic(PREFIX, read, record.value)


def test_spelling_and_order_in_the_store_have_no_effect() -> None:
    members = json.loads(lease_value(SIGNED))
    value = json.dumps({name.swapcase(): members[name] for name in reversed(members) if name != "Pyflannel"})
    value = value[:-1] + ', "Pyflannel": ' + json.dumps(members["Pyflannel"], indent=1) + "}"

    record = Record(key=lease_key(SIGNED), value=value.encode(), revision=9, lease_id=1)
    read = lease_of(record)

    assert is_authentic(PREFIX, read, record.value)


def later(prefix: str) -> Record:
    """Return a lease that a later version signed, with keys that this version does not know."""
    members = json.loads(lease_value(replace(SIGNED, attributes=replace(SIGNED.attributes, signature=None))))
    members["Zone"] = {"b": 1, "a": [2.5, None]}
    members["Pyflannel"] = dict(sorted({**members["Pyflannel"], "Kept": "new"}.items()))
    form = dict(sorted((key.lower(), member) for key, member in members.items()))
    data = json.dumps(form, separators=(",", ":")).encode()
    parts = b"pyflannel lease 1", prefix.encode(), lease_key(SIGNED).encode(), data
    signature = PAIR.sign(b"".join(b"%d:%s," % (len(part), part) for part in parts))
    members["Pyflannel"]["Signature"] = b64encode(signature).decode()
    return Record(key=lease_key(SIGNED), value=json.dumps(members).encode(), revision=9, lease_id=1)


def test_a_lease_of_a_later_version_is_authentic_and_its_new_keys_are_covered() -> None:
    record = later(PREFIX)

    assert is_authentic(PREFIX, lease_of(record), record.value)
    assert lease_of(record).attributes == SIGNED.attributes
    for old, new in ((b'"b": 1', b'"b": 2'), (b'"Kept"', b'"kept"'), (b'"Zone"', b'"Zones"')):
        value = record.value.replace(old, new)
        assert value != record.value
        assert not is_authentic(PREFIX, lease_of(replace(record, value=value)), value)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: b'{"Zone":1,' + value[1:],
        lambda value: value[:-1] + b',"publicip":"192.0.2.9"}',
        lambda value: value[:-1] + b',"PublicIP":"192.0.2.9"}',
        lambda value: value.replace(b'"Owner"', b'"Zone":1,"Owner"'),
    ],
    ids=["a key", "another spelling", "the same key", "a key of pyflannel"],
)
def test_a_key_that_is_added_is_covered(change: Callable[[bytes], bytes]) -> None:
    value = lease_value(SIGNED)

    assert is_authentic(PREFIX, SIGNED, value)
    assert not is_authentic(PREFIX, SIGNED, change(value))


@pytest.mark.parametrize("value", [b"[]", b"{", b'{"a":' * 3000, b" " * 5000])
def test_a_value_in_another_form_is_not_authentic(value: bytes) -> None:
    assert not is_authentic(PREFIX, SIGNED, value)


def test_a_reservation_of_the_same_lease_is_authentic() -> None:
    """An operator writes the value again, without a TTL."""
    assert is_authentic(PREFIX, replace(SIGNED, has_ttl=False, revision=12), lease_value(SIGNED))


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

    assert not is_authentic(PREFIX, changed, lease_value(changed))


def test_a_lease_is_not_authentic_at_another_key() -> None:
    assert not is_authentic("/coreos.com/other", SIGNED, lease_value(SIGNED))
    assert not is_authentic(PREFIX, replace(SIGNED, subnet=IPv4Network("10.3.2.0/24")), lease_value(SIGNED))
    assert not is_authentic(
        PREFIX, replace(SIGNED, ipv6_subnet=IPv6Network("fd00::/64")), lease_value(SIGNED)
    )


LIST = sign_list(PREFIX, f"{KEY.public.hex()} a\n", 7, KEY)


def test_a_signed_list_is_authentic_after_the_store() -> None:
    assert parse_signed_list(format_signed_list(LIST)) == LIST
    assert is_authentic_list(PREFIX, LIST)


@pytest.mark.parametrize(
    "change",
    [{"text": LIST.text + " "}, {"counter": 8}, {"operator": bytes(32)}, {"signature": bytes(64)}],
    ids=lambda change: next(iter(change)),
)
def test_a_signature_covers_every_part_of_a_list(change: dict[str, Any]) -> None:
    assert not is_authentic_list(PREFIX, LIST._replace(**change))
    assert not is_authentic_list(f"{PREFIX}/blue", LIST)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 5000, "it is not a signed allow-list"),
        (format_signed_list(LIST._replace(counter=0)), "the counter 0 is out of range"),
        (format_signed_list(LIST._replace(counter=2**60)), "the counter 1152921504606846976 is out of range"),
        (format_signed_list(LIST._replace(operator=b"a")), "the key or the signature has a wrong length"),
        (b" " * (1 << 20) + b"{}", "the list has more than 1048576 bytes"),
    ],
)
def test_another_value_is_no_signed_list(data: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        parse_signed_list(data)


def test_a_list_that_every_host_would_refuse_is_not_written() -> None:
    with pytest.raises(WireError, match="the list has more than 1048576 bytes"):
        format_signed_list(LIST._replace(text="#" * (1 << 20)))


def test_the_counters_are_read_back_and_those_of_an_earlier_version_too() -> None:
    known = KnownKeys(7, {KEY.public: 5}, {"a": KEY.public}, {LEASE.subnet: (KEY.public, 5)})
    assert parse_known_keys(format_known_keys(known)) == known
    earlier = b'{"Counter":7,"Floors":{"%s":5},"Owners":{}}' % KEY.public.hex().encode()
    assert parse_known_keys(earlier) == known._replace(owners={}, holders={})


def test_the_saved_list_is_read_back() -> None:
    kept = KeptList(LIST.text, KEY.public, {KEY.public: 7, bytes(32): 9})
    assert parse_kept_list(format_kept_list(kept)) == kept
    with pytest.raises(
        WireError, match=r"allow-list.json cannot be read: the operator of the list has no counter"
    ):
        parse_kept_list(format_kept_list(kept._replace(operator=b"a" * 32)))
