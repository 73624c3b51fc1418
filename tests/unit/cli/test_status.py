"""flannelctl status tells people all that keeps a host from being ready, and of many the first."""

from dataclasses import replace

from pyflannel.cli.status import facts
from pyflannel.model.status import ReconcileStatus, Status, StoreStatus

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


def test_an_error_of_the_store_that_is_over_is_told_with_its_time() -> None:
    store = StoreStatus(url="etcd://a", is_connected=True, since_s=60.0, last_error="no route")

    def line(store: StoreStatus) -> str:
        return dict(facts(Status(version="1", store=store)))["store"]

    over = replace(store, last_error_age_s=61.0)
    assert line(over) == "etcd://a, connected for 1 min, last error 1 min 1 s ago: no route"
    assert line(store) == "etcd://a, connected for 1 min, last error: no route"  # of an older daemon
    assert line(replace(store, last_error=None)) == "etcd://a, connected for 1 min"
