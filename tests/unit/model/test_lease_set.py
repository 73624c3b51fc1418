"""The known leases: the key with precedence, unreadable keys, and the revision of a published VTEP."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pyflannel.model import lease_set
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep
from pyflannel.model.lease_protocol import LeaseChange, LeaseGone, LeaseSeen, Unreadable
from pyflannel.model.lease_set import LeaseSet

SUBNET, OTHER = IPv4Network("10.100.1.0/24"), IPv4Network("10.100.2.0/24")
LOW, HIGH = IPv6Network("fd00:0:0:1::/64"), IPv6Network("fd00:0:0:2::/64")


def lease(ipv6_subnet: IPv6Network | None, revision: int, subnet: IPv4Network = SUBNET) -> Lease:
    attributes = LeaseAttributes(public_ip=IPv4Address("192.168.50.1"))
    return Lease(subnet=subnet, ipv6_subnet=ipv6_subnet, attributes=attributes, revision=revision)


def test_a_lease_of_both_families_does_not_affect_that_of_ipv4_only() -> None:
    alone, both = lease(None, 5), lease(LOW, 7)

    known = LeaseSet.of([alone, lease(None, 6, OTHER)], 6).after([LeaseSeen(both)])

    assert (known.by_subnet[SUBNET], len(known)) == (alone, 2)
    assert known.after([LeaseGone(SUBNET, 8, LOW)]).by_subnet[SUBNET] is alone
    assert known.after([LeaseGone(SUBNET, 8)]).by_subnet[SUBNET] is both
    assert SUBNET not in known.after([LeaseGone(SUBNET, 8), LeaseGone(SUBNET, 9, LOW)]).by_subnet


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([SUBNET, OTHER]), st.sampled_from([None, LOW, HIGH])),
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_the_set_depends_only_on_the_present_keys(
    history: list[tuple[bool, IPv4Network, IPv6Network | None]], cut: int
) -> None:
    """After single changes, one batch or a listing, the same leases are valid and ignored."""
    standing: dict[tuple[IPv4Network, IPv6Network | None], Lease] = {}
    changes: list[LeaseChange] = []
    for revision, (is_put, subnet, ipv6_subnet) in enumerate(history, start=1):
        if is_put:
            standing[subnet, ipv6_subnet] = lease(ipv6_subnet, revision, subnet)
            changes.append(LeaseSeen(standing[subnet, ipv6_subnet]))
        else:
            standing.pop((subnet, ipv6_subnet), None)
            changes.append(LeaseGone(subnet, revision, ipv6_subnet))

    listed = LeaseSet.of(standing.values())

    assert LeaseSet().after(changes) == LeaseSet().after(changes[:cut]).after(changes[cut:]) == listed
    assert len(listed) == len({subnet for subnet, _ in standing})
    for (subnet, ipv6_subnet), one in standing.items():
        counts = ipv6_subnet is None or (
            (subnet, None) not in standing and (ipv6_subnet == LOW or (subnet, LOW) not in standing)
        )
        assert (listed.by_subnet[subnet] is one) == counts
        assert (one in listed.outranked.get(subnet, ())) != counts


KEYS = st.tuples(st.sampled_from([SUBNET, OTHER]), st.sampled_from([None, LOW, HIGH]))


@given(st.lists(st.tuples(st.sampled_from(["put", "spoil", "delete"]), KEYS), max_size=12), st.data())
def test_a_listing_of_known_leases_changes_nothing(
    history: list[tuple[str, tuple[IPv4Network, IPv6Network | None]]], data: st.DataObject
) -> None:
    """With or without listings between the changes of a watch, leases and unreadable keys are the same."""
    at_key: dict[tuple[IPv4Network, IPv6Network | None], Lease | Unreadable] = {}
    watched = relisted = LeaseSet()
    for revision, (what, (subnet, ipv6_subnet)) in enumerate(history, start=1):
        change: LeaseChange
        match what:
            case "put":
                change = LeaseSeen(lease(ipv6_subnet, revision, subnet))
                at_key[subnet, ipv6_subnet] = change.lease
            case "spoil":
                change = at_key[subnet, ipv6_subnet] = Unreadable(subnet, revision, ipv6_subnet)
            case _:
                change = LeaseGone(subnet, revision, ipv6_subnet)
                at_key.pop((subnet, ipv6_subnet), None)
        watched, relisted = watched.after([change]), relisted.after([change])
        if data.draw(st.booleans(), label=f"listed at {revision}"):
            relisted = relisted.listed(
                [value for value in at_key.values() if isinstance(value, Lease)],
                [value for value in at_key.values() if isinstance(value, Unreadable)],
                revision,
            )

        assert (relisted.by_subnet, relisted.outranked) == (watched.by_subnet, watched.outranked)


def test_an_unreadable_key_keeps_its_last_valid_lease_until_it_is_deleted() -> None:
    good = lease(None, 5)
    known = LeaseSet.of([good], 5)
    spoilt = Unreadable(SUBNET, 6)

    assert known.after([spoilt]).by_subnet[SUBNET] is good
    assert known.listed([], [spoilt], 7).by_subnet[SUBNET] is good
    assert SUBNET not in known.listed([], [spoilt], 7).after([LeaseGone(SUBNET, 8)]).by_subnet
    assert SUBNET not in known.listed([], [], 7).by_subnet
    assert SUBNET not in LeaseSet().listed([], [spoilt], 7).by_subnet  # a new host does not know the value


def published(mac: str, revision: int, created: int) -> Lease:
    """A lease from a record of this revision."""
    attributes = LeaseAttributes(public_ip=IPv4Address("192.168.50.1"), vtep=Vtep(mac=mac))
    return Lease(subnet=SUBNET, attributes=attributes, revision=revision, since=created)


def test_a_renewal_keeps_the_revision_of_the_published_vtep() -> None:
    known = LeaseSet.of([published("0e:00:00:00:00:01", 9, 4)], 9)

    for later in (
        known.after(
            [LeaseSeen(published("0e:00:00:00:00:01", 12, 12))]
        ),  # from a store that does not record the revision of the creation
        known.listed([published("0e:00:00:00:00:01", 12, 12)], [], 12),
    ):
        assert later.by_subnet[SUBNET].since == 4


def test_a_new_vtep_is_published_since_the_write_of_the_lease() -> None:
    """An old key gives no precedence to a host that writes another host's MAC address to it."""
    known = LeaseSet.of([published("0e:00:00:00:00:01", 9, 4)], 9)

    for later in (
        known.after([LeaseSeen(published("0e:00:00:00:00:02", 12, 4))]),
        known.listed([published("0e:00:00:00:00:02", 12, 4)], [], 12),
    ):
        assert later.by_subnet[SUBNET].since == 12


def test_leases_known_before_the_start_yield_to_those_of_the_store() -> None:
    known = LeaseSet.of([published("0e:00:00:00:00:01", 0, 0)])

    assert known.listed([published("0e:00:00:00:00:01", 12, 4)], [], 12).by_subnet[SUBNET].since == 4


def numbered(number: int, ipv6_subnet: IPv6Network | None = None) -> Lease:
    attributes = LeaseAttributes(public_ip=IPv4Address("192.168.50.1"))
    subnet = IPv4Network(f"10.100.{number}.0/24")
    return Lease(subnet=subnet, ipv6_subnet=ipv6_subnet, attributes=attributes, revision=number, since=number)


def test_above_the_limit_the_first_leases_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of further leases replaces no lease of a running host, and needs no memory."""
    monkeypatch.setattr(lease_set, "LARGEST", 3)
    six = [numbered(number) for number in (4, 1, 5, 2, 6, 3)]

    listed = LeaseSet.of(six, 6)
    told = LeaseSet().after([LeaseSeen(numbered(number)) for number in range(1, 7)])

    for known in (listed, told):
        assert {lease.revision for lease in known} == {1, 2, 3}
        assert known.left_out == 3
    renewed = replace(numbered(2), revision=7)
    assert told.after([LeaseSeen(renewed)]).by_subnet[renewed.subnet] is not told.by_subnet[renewed.subnet]
    freed = told.after([LeaseGone(numbered(1).subnet, 8), LeaseSeen(replace(numbered(9), revision=9))])
    assert {str(lease.subnet) for lease in freed} == {"10.100.2.0/24", "10.100.3.0/24", "10.100.9.0/24"}
    assert freed.listed([numbered(number) for number in range(2, 5)], [], 10).left_out == 0


def test_keys_with_an_ipv6_subnet_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of keys with an IPv6 subnet may contain the same IPv4 subnet."""
    monkeypatch.setattr(lease_set, "LARGEST", 3)

    known = LeaseSet().after(
        [LeaseSeen(numbered(1, IPv6Network((number << 64, 64)))) for number in range(1, 9)]
    )
    later = known.after([LeaseSeen(numbered(1, IPv6Network((number << 64, 64)))) for number in range(9, 12)])

    assert later.left_out == 8
    assert sum(map(len, later.outranked.values())) == 2
