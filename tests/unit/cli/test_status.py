"""flannelctl status lists the reasons why a host is not ready, and limits long lists."""

from dataclasses import replace

from pyflannel.cli.status import facts
from pyflannel.model.status import ReconcileStatus, Status, StoreStatus

QUIET = ReconcileStatus(
    passes=7, failures=0, duration_s=0.01, repairs=6, repairs_by_kind={"route": 6}, last_repair=None
)


def told(reconcile: ReconcileStatus, name: str) -> list[str]:
    return [text for each, text in facts(Status(version="1", reconcile=reconcile)) if each == name]


def test_a_delayed_repair_is_listed() -> None:
    fought = replace(QUIET, held=("route 10.100.0.0/16: missing",))

    assert told(fought, "held back") == ["route 10.100.0.0/16: missing"]
    assert told(QUIET, "held back") == []


def test_many_refusals_are_partly_counted() -> None:
    many = replace(QUIET, refused=tuple(f"peer {number}" for number in range(1000)))

    assert told(many, "refused")[-2:] == ["peer 7", "992 more: see flannelctl status --json"]


def test_a_past_error_of_the_store_is_shown_with_its_age() -> None:
    store = StoreStatus(url="etcd://a", is_connected=True, since_s=60.0, last_error="no route")

    def line(store: StoreStatus) -> str:
        return dict(facts(Status(version="1", store=store)))["store"]

    over = replace(store, last_error_age_s=61.0)
    assert line(over) == "etcd://a, connected for 1 min, last error 1 min 1 s ago: no route"
    assert line(store) == "etcd://a, connected for 1 min, last error: no route"  # of an older daemon
    assert line(replace(store, last_error=None)) == "etcd://a, connected for 1 min"
