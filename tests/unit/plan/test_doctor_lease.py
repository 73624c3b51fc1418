"""The findings about the key of this host's lease."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from pyflannel.model.lease import LeaseEntry
from pyflannel.model.status import Finding, LeaseStatus, Status, StoreStatus
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.lease import LeaseReading, is_disputed, lease_findings
from testlab.healthy_host import HEALTHY, OWN

STATUS = Status(version="1", store=StoreStatus(url="etcd://10.0.0.1:2379/net"), lease=LeaseStatus(subnet=OWN))
TAKEN = LeaseStatus(subnet=OWN, phase="taken", holder="10.0.0.9 (an original flannel)", losses=1)


def reading(lease: LeaseStatus, revision: int | None = 40) -> LeaseReading:
    entry = LeaseEntry(subnet=IPv4Network(OWN), public_ip=IPv4Address("10.0.0.9"), revision=revision or 0)
    return LeaseReading(replace(STATUS, lease=lease), None if revision is None else entry)


def between(first: LeaseReading, last: LeaseReading) -> list[Finding]:
    return list(lease_findings(first, last, 2.0))


def test_a_lease_that_is_overwritten_again_and_again_is_named_with_its_revisions() -> None:
    (one,) = between(reading(TAKEN, 40), reading(TAKEN, 50))

    assert (one.code, one.severity) == ("lease-taken", "error")
    assert "again and again: the store assigns 10.100.15.0/24 to 10.0.0.9 (an original flannel)" in one.cause
    assert one.evidence == (
        "etcd://10.0.0.1:2379/net: 10.100.15.0/24 has PublicIP 10.0.0.9, mod revision 50",
        "2.0 s before: its revision was lower by 10, so the store got at most 5.0 writes per second",
    )
    assert one.fix.startswith("flannelctl leases history 10.100.15.0/24 --renewals  # shows each write")
    assert "flannelctl leases release 10.100.15.0/24 --force" in one.fix


@pytest.mark.parametrize("first", [50, None])
def test_a_lease_that_was_overwritten_once_is_named_with_the_holder(first: int | None) -> None:
    (one,) = between(reading(TAKEN, first), reading(TAKEN, 50))

    assert (one.code, len(one.evidence)) == ("lease-taken", 1)
    assert one.fix.startswith(
        "flannelctl leases release 10.100.15.0/24 --force  # if that host does not exist"
    )


def test_a_lease_that_is_deleted_again_and_again_is_named_with_the_number() -> None:
    before, after = (LeaseStatus(subnet=OWN, phase="held", losses=number) for number in (3, 9))

    (one,) = between(reading(before), reading(after))

    assert (one.code, one.severity) == ("lease-deleted", "error")
    assert ": 10.100.15.0/24 was deleted 6 times in 2.0 s" in one.evidence[0]
    assert between(reading(after), reading(after, 70)) == []


@pytest.mark.parametrize(
    ("lease", "expected"),
    [
        (TAKEN, True),
        (LeaseStatus(subnet=OWN, phase="lost"), True),
        (LeaseStatus(subnet=OWN, phase="held", losses=1), True),
        (LeaseStatus(subnet=OWN, phase="held"), False),
        (None, False),
    ],
)
def test_a_lease_is_read_again_only_after_a_loss(lease: LeaseStatus | None, expected: bool) -> None:
    assert is_disputed(replace(STATUS, lease=lease)) is expected
    assert not is_disputed(replace(STATUS, lease=lease, is_live=False))


def test_a_host_that_waits_for_its_subnet_has_no_other_finding() -> None:
    status = replace(HEALTHY.status, is_ready=False, waiting_for="this host's subnet", lease=TAKEN)

    assert findings(replace(HEALTHY, status=status)) == ()
