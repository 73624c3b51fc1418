"""last-known.json, written and read."""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from pyflannel.errors import WireError
from pyflannel.model.lease import NO_ADDRESS, LastKnown, Lease, LeaseAttributes
from pyflannel.model.store_record import Record
from pyflannel.wire import lease_record
from pyflannel.wire.lease_record import (
    KeptChange,
    format_last_known,
    kept_lease,
    leased_subnets,
    parse_change,
    parse_last_known,
)

OWN = "subnets/10.100.1.0-24"
LEASE = '{"PublicIP":"192.0.2.1"}'
NESTED = "[" * 100_000 + "]" * 100_000


def test_leases_with_ipv6_alone_are_read_back() -> None:
    """No store has a key for IPv6 alone, so no other reader reads this form."""
    leases = tuple(
        Lease.of_ipv6(
            IPv6Network(f"fd00:5:0:{number}::/64"),
            LeaseAttributes(
                public_ip=NO_ADDRESS, public_ipv6=IPv6Address(f"fd07::{number}"), owner=f"n{number}"
            ),
        )
        for number in (1, 2)
    )

    data = b"".join(format_last_known(LastKnown(config="{}", own=leases[0], leases=leases)))

    file = json.loads(data)
    assert file["Own"] == "subnets/&fd00:5:0:1::-64"
    assert json.loads(file["Leases"][file["Own"]])["PublicIP"] == "0.0.0.0"
    kept = parse_last_known(data)
    assert (kept.own, tuple(map(kept_lease, kept.records))) == (leases[0], leases)
    with pytest.raises(WireError):
        leased_subnets(file["Own"])
    for key in ("subnets/&fd00::1-64", "subnets/&fd00::-128", "subnets/&10.1.0.0-24", "subnets/&fd00::-064"):
        assert kept_lease(Record(key=key, value=LEASE.encode(), revision=0)) is None


def test_deep_nesting_in_the_file_is_an_error_of_the_file() -> None:
    """The start continues without the file, as with any unreadable file."""
    text = json.dumps({"Config": "{}", "Own": OWN, "Leases": {OWN: LEASE}})
    data = f'{text.removesuffix("}")},"Other":{NESTED}}}'.encode()

    with pytest.raises(WireError, match=r"last-known\.json cannot be read"):
        parse_last_known(data)


def test_deep_nesting_in_the_lease_of_a_peer_affects_only_that_peer() -> None:
    peer = "subnets/10.100.2.0-24"
    deep = f'{{"PublicIP":"192.0.2.2","BackendData":{NESTED}}}'
    data = json.dumps({"Config": "{}", "Own": OWN, "Leases": {OWN: LEASE, peer: deep}}).encode()

    kept = parse_last_known(data)

    leases = [kept_lease(record) for record in kept.records]
    assert [lease and str(lease.subnet) for lease in leases] == ["10.100.1.0/24", None]


def test_the_number_of_read_leases_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_record, "LARGEST", 3)
    leases = {f"subnets/10.100.{number}.0-24": LEASE for number in range(1, 9)}

    kept = parse_last_known(json.dumps({"Config": "{}", "Own": OWN, "Leases": leases}).encode())

    assert len(list(kept.records)) == 3


@pytest.mark.parametrize("is_prepared", [True, False])
def test_a_change_of_the_backend_is_kept(is_prepared: bool) -> None:
    lease = Lease(
        subnet=IPv4Network("10.100.1.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("192.0.2.1"))
    )
    previous = ('{"Network":"10.100.0.0/16"}',)
    known = LastKnown(config="{}", own=lease, leases=(lease,), previous=previous, is_prepared=is_prepared)

    data = b"".join(format_last_known(known))

    assert parse_change(data)[1:] == (previous, is_prepared)
    kept = parse_last_known(data)
    assert (kept.previous, kept.is_prepared, len(list(kept.records))) == (previous, is_prepared, 1)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"Previous":7}', b'{"Config":"{}","Own":"x","Leases":{}}'])
def test_a_file_without_a_change_has_none(data: bytes) -> None:
    assert parse_change(data)[1:] == KeptChange()[1:]
