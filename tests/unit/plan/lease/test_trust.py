"""The authentic leases that a host accepts."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.plan.lease.trust import Trust

FIRST, SECOND = IPv4Network("10.3.1.0/24"), IPv4Network("10.3.2.0/24")
A, B, EVE = (bytes([number]) * 32 for number in (1, 2, 3))


def lease(key: bytes, counter: int, subnet: IPv4Network = FIRST, owner: str = "") -> Lease:
    attributes = LeaseAttributes(
        public_ip=IPv4Address("192.0.2.1"),
        owner=owner or f"owner {key[0]}",
        signing_key=key,
        counter=counter,
        signature=bytes(64),
    )
    return Lease(subnet=subnet, attributes=attributes)


def accepts(trust: Trust, one: Lease) -> bool:
    """Return whether a lease is accepted. An accepted lease is remembered."""
    if trust.objection(one, is_authentic=True) is not None:
        return False
    trust.accept(one)
    return True


def test_only_authentic_leases_are_accepted() -> None:
    unsigned = Lease(subnet=FIRST, attributes=LeaseAttributes(public_ip=IPv4Address("192.0.2.1")))

    assert Trust().objection(unsigned, is_authentic=False) == "unsigned"
    assert Trust().objection(lease(A, 1), is_authentic=False) == "invalid"


def test_with_an_allow_list_only_its_keys_are_accepted() -> None:
    trust = Trust(allowed=frozenset({A}))

    assert accepts(trust, lease(A, 1))
    assert trust.objection(lease(EVE, 1), is_authentic=True) == "not_allowed"


def test_an_older_signed_lease_of_a_key_is_refused_on_any_subnet() -> None:
    trust = Trust(allowed=frozenset({A}))

    assert accepts(trust, lease(A, 5))
    assert accepts(trust, lease(A, 5))  # delivered again
    assert accepts(trust, lease(A, 9, SECOND))
    assert not accepts(trust, lease(A, 5))


def test_a_signed_lease_that_another_key_replaced_is_refused() -> None:
    """The former holder of a subnet left the network. No host can restore its lease."""
    trust = Trust(allowed=frozenset({A, B}))
    assert accepts(trust, lease(A, 5))
    trust.delete(FIRST)
    assert accepts(trust, lease(B, 1))

    assert not accepts(trust, lease(A, 5))
    assert accepts(trust, lease(A, 6))  # from A again


def test_without_an_allow_list_an_owner_keeps_its_first_key() -> None:
    trust = Trust()
    assert accepts(trust, lease(A, 1, owner="a"))

    assert trust.objection(lease(EVE, 1, SECOND, owner="a"), True) == "changed_key"
    assert accepts(trust, lease(EVE, 1, SECOND, owner="eve"))


def test_the_holders_of_free_subnets_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyflannel.plan.lease.trust.LARGEST", 2)
    trust = Trust()
    for number in range(4):
        subnet = IPv4Network(f"10.3.{number}.0/24")
        assert accepts(trust, lease(A, 1 + number, subnet))
        trust.delete(subnet)

    assert [str(subnet) for subnet in trust.holders] == ["10.3.2.0/24", "10.3.3.0/24"]
    assert trust.holders.keys() == trust.free.keys()


def test_without_an_allow_list_a_subnet_keeps_its_key_until_its_lease_is_deleted() -> None:
    trust = Trust()
    assert accepts(trust, lease(A, 1))

    assert not accepts(trust, lease(EVE, 1, owner="eve"))
    trust.delete(FIRST)
    assert accepts(trust, lease(EVE, 1, owner="eve"))
