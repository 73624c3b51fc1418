"""flannelctl status tells people all that keeps a host from being ready, and of many the first."""

from dataclasses import replace

from pyflannel.doors.ctl.status import facts
from pyflannel.model.status import ReconcileStatus, Status

QUIET = ReconcileStatus(
    passes=7, failures=0, duration_s=0.01, repairs=6, repairs_by_kind={"route": 6}, last_repair=None
)


def told(reconcile: ReconcileStatus, name: str) -> list[str]:
    return [text for each, text in facts(Status(version="1", reconcile=reconcile)) if each == name]


def test_a_repair_that_waits_is_named() -> None:
    fought = replace(QUIET, held=("route 10.100.0.0/16: missing",))

    assert told(fought, "held back") == ["route 10.100.0.0/16: missing"]
    assert told(QUIET, "held back") == []


def test_of_many_refusals_the_rest_is_counted() -> None:
    many = replace(QUIET, refused=tuple(f"peer {number}" for number in range(1000)))

    assert told(many, "refused")[-2:] == ["peer 7", "992 more: see flannelctl status --json"]
