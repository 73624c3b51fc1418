"""The known leases if a listing and changes of the watch arrive in either order."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from msgspec.structs import replace

from pyflannel.model import lease_set
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.lease_protocol import LeaseSeen, Listed, Seen, Wanted
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import NetworkConfig
from pyflannel.plan.lease.state import LeaseState, apply_key_precedence, known_leases

FIRST, SECOND = IPv4Network("10.100.1.0/24"), IPv4Network("10.100.2.0/24")


def state(*, revision: int, is_watching: bool, is_unsure: bool = False) -> LeaseState:
    attributes = LeaseAttributes(public_ip=IPv4Address("192.168.50.102"), owner="me")
    wanted = Wanted(network=NetworkConfig(), attributes=attributes)
    return LeaseState(wanted=wanted, revision=revision, is_watching=is_watching, is_unsure=is_unsure)


def lease(subnet: IPv4Network, revision: int) -> Lease:
    attributes = LeaseAttributes(public_ip=IPv4Address("192.168.50.1"))
    return Lease(subnet=subnet, attributes=attributes, revision=revision)


def test_a_late_listing_does_not_remove_leases_from_the_watch() -> None:
    """A host that lost a race lists again while its watch delivers the leases of the winners."""
    before = LeaseSet.of([lease(FIRST, 5)], 5)
    seen = known_leases(before, Seen((LeaseSeen(lease(SECOND, 7)),), 7), state(revision=5, is_watching=True))

    after = known_leases(
        seen, Listed(leases=(lease(FIRST, 5),), revision=6), state(revision=7, is_watching=True)
    )

    assert {known.subnet for known in after} == {FIRST, SECOND}


def test_a_listing_without_a_watch_replaces_everything() -> None:
    """A store that lost its data starts with revision 1 again, so a lower revision is not older."""
    before = LeaseSet.of([lease(FIRST, 50)], 50)

    after = known_leases(
        before, Listed(leases=(lease(SECOND, 2),), revision=2), state(revision=50, is_watching=False)
    )

    assert list(after) == [lease(SECOND, 2)]


def test_a_listing_replaces_everything_while_the_store_may_have_lost_its_data() -> None:
    """The watch then continues from the listing."""
    before = LeaseSet.of([lease(FIRST, 50)], 50)
    reopened = state(revision=50, is_watching=True, is_unsure=True)

    after = known_leases(before, Listed(leases=(lease(SECOND, 2),), revision=2), reopened)

    assert list(after) == [lease(SECOND, 2)]


def test_a_list_response_beyond_the_limit_of_a_host_is_accepted_in_both_families(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease_set, "LARGEST", 1)
    alone = lease(FIRST, 1)
    dual = replace(lease(FIRST, 2), ipv6_subnet=IPv6Network("fd00:5:0:1::/64"))
    other = replace(lease(SECOND, 3), ipv6_subnet=IPv6Network("fd00:5:0:2::/64"))
    listed = Listed(leases=(alone, dual, other), revision=3)

    counting = apply_key_precedence(listed, LeaseSet(), LeaseSet.of(listed.leases, 3))

    assert counting == replace(listed, leases=(alone,))
