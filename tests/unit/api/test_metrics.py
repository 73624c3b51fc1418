"""The metrics of a status. Without a scrape, the metrics cost no memory."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from pyflannel.api.monitoring.metrics import FAMILIES, expose
from pyflannel.datapath.counters import Counters
from pyflannel.kernel.bpf.layout import Outcome
from pyflannel.model.status import (
    BackendStatus,
    Durations,
    FastPathStatus,
    ForwarderStatus,
    LeaseSigningStatus,
    LeaseStatus,
    ReconcileStatus,
    RefusedPeer,
    Status,
    StoreRequests,
    StoreStatus,
    StrangerStatus,
    WireguardPeerStatus,
    WireguardStatus,
)

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]

ROOT = Path(__file__).parents[3]
BOUNDS = ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf")
UTC = 1_700_000_000.0
STATUS = Status(
    version="0.1.0",
    is_ready=True,
    lease=LeaseStatus(phase="held", subnet=IPv4Network("10.100.15.0/24"), expires_in_s=3600.0, losses=2),
    backend=BackendStatus(type="udp", link="flannel0", mtu=1472),
    store=StoreStatus(
        url="etcd://10.0.0.1:2379",
        is_connected=True,
        since_s=77.0,
        requests=(
            StoreRequests(operation="list", result="ok", count=21),
            StoreRequests(operation="write", result="conflict", count=22),
        ),
        lost_watches={"compacted": 23},
    ),
    peers=5,
    leases=6,
    conflicts=1,
    refused_peers=(
        RefusedPeer(subnet=IPv4Network("10.100.9.0/24"), public_ip=IPv4Address("10.0.0.9"), reason="no"),
    ),
    forwarder=ForwarderStatus(
        pid=7,
        is_attached=True,
        counters={
            "sent_packets": 3,
            "sent_bytes": 300,
            "received_packets": 4,
            "received_bytes": 400,
            "batches_sent": 1,
            "dropped_out_no_route": 5,
            "dropped_in_not_ours": 6,
            "icmp_held_back": 8,
            "send_failed_ENETUNREACH": 9,
        },
    ),
    fast_path=FastPathStatus(
        mode="safe",
        counters={
            "encapsulated": 10,
            "decapsulated": 11,
            "cached_out": 2,
            "delivered": 12,
            "rejoined": 15,
            "left_options": 13,
            "impostor": 14,
        },
        byte_counters={"encapsulated": 1000, "decapsulated": 1100, "cached_out": 200, "cached_in": 100},
    ),
    strangers=(
        StrangerStatus(
            address=IPv4Address("10.0.0.9"),
            reason="stranger",
            packets=7,
            age_s=1.0,
            inner_source=IPv4Address("10.100.15.2"),
            inner_destination=IPv4Address("10.100.16.2"),
            cause="it holds no lease",
            hint="",
        ),
    ),
    lease_signing=LeaseSigningStatus(mode="require", allowed=4, counter=17, refusals={"unsigned": 16}),
    reconcile=ReconcileStatus(
        passes=20,
        failures=2,
        duration_s=0.25,
        pass_durations=Durations(count=20, up_to=(0, 1, 2, 3, 4, 19, 19, 19, 19, 20, 20), total_s=7.5),
        peer_durations=Durations().plus(0.02).plus(77.0),
        repairs=3,
        repairs_by_kind={"route": 2, "link": 1},
        refused=("route: no",),
        held=("link: a", "link: b"),
    ),
)


def scrape(statuses: Mapping[str, Status]) -> Samples:
    """Return the scraped samples by name and labels."""
    families = text_string_to_metric_families(expose(statuses, UTC).decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("flannel_")
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"flannel_{name}", frozenset(labels.items())


def test_every_value_of_a_status_has_a_sample() -> None:
    assert scrape({"": STATUS}) == {
        key("build_info", version="0.1.0"): 1,
        key("ready"): 1,
        key("lease_phase", phase="acquiring"): 0,
        key("lease_phase", phase="held"): 1,
        key("lease_phase", phase="lost"): 0,
        key("lease_phase", phase="taken"): 0,
        key("lease_info", subnet="10.100.15.0/24"): 1,
        key("lease_expiry_timestamp_seconds"): UTC + 3600,
        key("lease_losses_total"): 2,
        key("leases"): 6,
        key("lease_conflicts"): 1,
        key("peers", state="programmed"): 4,
        key("peers", state="refused"): 1,
        key("lease_signatures_refused_total", fault="unsigned"): 16,
        key("lease_keys_allowed"): 4,
        key("lease_keys_counter"): 17,
        key("lease_keys_stale"): 0,
        key("datastore_up"): 1,
        key("datastore_stale"): 0,
        key("datastore_staleness_seconds"): 0,
        key("backend_info", type="udp", link="flannel0"): 1,
        key("mtu_bytes"): 1472,
        key("reconcile_passes_total"): 20,
        key("reconcile_failures_total"): 2,
        key("reconcile_last_duration_seconds"): 0.25,
        **{
            key("reconcile_duration_seconds_bucket", le=bound): count
            for bound, count in zip(BOUNDS, (0, 1, 2, 3, 4, 19, 19, 19, 19, 20, 20, 20), strict=True)
        },
        **{
            key("peer_programming_duration_seconds_bucket", le=bound): count
            for bound, count in zip(BOUNDS, (0, 0, *[1] * 9, 2), strict=True)
        },
        key("peer_programming_duration_seconds_count"): 2,
        key("peer_programming_duration_seconds_sum"): 77.02,
        key("reconcile_duration_seconds_count"): 20,
        key("reconcile_duration_seconds_sum"): 7.5,
        key("datastore_requests_total", op="list", code="ok"): 21,
        key("datastore_requests_total", op="write", code="conflict"): 22,
        key("watch_restarts_total", reason="compacted"): 23,
        key("repairs_total", object="route"): 2,
        key("repairs_total", object="link"): 1,
        key("operations_refused"): 1,
        key("operations_held"): 2,
        key("fast_path_mode", mode="safe"): 1,
        key("fast_path_mode", mode="flow"): 0,
        key("fast_path_mode", mode="user-space"): 0,
        key("fast_path_mode", mode="uncached"): 0,
        key("fast_path_mode", mode="off"): 0,
        key("forwarder_attached"): 1,
        key("tunnel_transmit_packets_total", path="forwarder"): 3,
        key("tunnel_transmit_packets_total", path="programs"): 12,
        key("tunnel_transmit_bytes_total", path="forwarder"): 300,
        key("tunnel_transmit_bytes_total", path="programs"): 1200,
        key("tunnel_receive_packets_total", path="forwarder"): 4,
        key("tunnel_receive_packets_total", path="programs"): 11,
        key("tunnel_receive_bytes_total", path="forwarder"): 400,
        key("tunnel_receive_bytes_total", path="programs"): 1100,
        key("stranger_packets", reason="stranger"): 7,
        key("forwarder_dropped_packets_total", direction="out", reason="no_route"): 5,
        key("forwarder_dropped_packets_total", direction="in", reason="not_ours"): 6,
        key("forwarder_failed_packets_total", call="send", errno="ENETUNREACH"): 9,
        key("forwarder_batches_total", call="sent"): 1,
        key("forwarder_icmp_errors_total", kind="held_back"): 8,
        key("fast_path_carried_packets_total", part="encapsulated"): 10,
        key("fast_path_carried_packets_total", part="decapsulated"): 11,
        key("fast_path_carried_packets_total", part="cached_out"): 2,
        key("fast_path_carried_packets_total", part="delivered"): 12,
        key("fast_path_carried_packets_total", part="rejoined"): 15,
        key("fast_path_left_packets_total", reason="options"): 13,
        key("fast_path_dropped_packets_total", reason="impostor"): 14,
    }


def test_other_backends_count_the_bytes_of_their_device() -> None:
    """The forwarder and the eBPF programs count the bytes of the udp backend."""
    counted = {"received": 70, "sent": 80, "mtu": 1450}
    vxlan = Status(version="0.1.0", backend=BackendStatus(type="vxlan", link="flannel.1", **counted))
    udp = Status(version="0.1.0", backend=BackendStatus(type="udp", link="flannel0", **counted))

    assert scrape({"": vxlan})[key("tunnel_receive_bytes_total", path="device")] == 70
    assert scrape({"": vxlan})[key("tunnel_transmit_bytes_total", path="device")] == 80
    assert not [name for name, _ in scrape({"": udp}) if name.startswith("flannel_tunnel")]


def test_wireguard_peers_are_counted_by_their_handshake() -> None:
    ages = (None, 5.0, 180.0, 181.0, 4000.0, None)
    peers = tuple(
        WireguardPeerStatus(subnet=IPv4Network("10.100.9.0/24"), public_key="k", handshake_age_s=age)
        for age in ages
    )
    status = Status(
        version="0.1.0", wireguard=WireguardStatus(public_key="k", is_in_kernel=True, peers=peers)
    )

    scraped = scrape({"": status})

    assert [scraped[key("wireguard_peers", handshake=one)] for one in ("never", "recent", "old")] == [2, 2, 2]
    assert scraped[key("wireguard_last_handshake_timestamp_seconds")] == UTC - 5


def test_a_missing_value_has_no_sample() -> None:
    assert scrape({"": Status(version="0.1.0")}) == {
        key("build_info", version="0.1.0"): 1,
        key("ready"): 0,
        key("leases"): 0,
        key("lease_conflicts"): 0,
        key("peers", state="programmed"): 0,
        key("peers", state="refused"): 0,
    }
    assert scrape({}) == {}


def test_the_staleness_of_a_store_counts_from_its_loss() -> None:
    store = StoreStatus(url="etcd://10.0.0.1:2379", is_connected=False, is_stale=True, since_s=77.0)

    scraped = scrape({"": replace(STATUS, store=store)})

    assert scraped[key("datastore_up")] == 0
    assert scraped[key("datastore_stale")] == 1
    assert scraped[key("datastore_staleness_seconds")] == 77


def test_with_several_networks_each_sample_names_its_network() -> None:
    scraped = scrape({"blue": STATUS, "red": replace(STATUS, is_ready=False)})

    assert scraped[key("ready", network="blue")] == 1
    assert scraped[key("ready", network="red")] == 0
    assert scraped[key("peers", network="red", state="refused")] == 1
    assert all("network" in dict(labels) for _, labels in scraped)


def test_every_counter_of_packets_becomes_a_metric() -> None:
    """Monitoring cannot read a counter of the forwarder or of the programs that has no metric."""
    forwarder = dict.fromkeys(Counters().by_name(), 1) | {"write_failed_EIO": 1}
    programs = dict.fromkeys((outcome.value for outcome in Outcome), 1)
    status = replace(
        STATUS,
        forwarder=ForwarderStatus(counters=forwarder),
        fast_path=FastPathStatus(mode="safe", counters=programs),
    )

    scraped = scrape({"": status})

    of_the_forwarder = [
        labels
        for name, labels in scraped
        if (name.startswith("flannel_forwarder_") and name.endswith("_total"))
        or ("path", "forwarder") in labels
    ]
    of_the_programs = [
        labels
        for name, labels in scraped
        if name.startswith("flannel_fast_path_") and name.endswith("_total")
    ]
    assert len(of_the_forwarder) == len(forwarder)
    assert len(of_the_programs) == len(programs)


def test_names_follow_the_conventions() -> None:
    """The names of counters, and no others, end in `_total`. The units of metrics are base units, such as
    seconds and bytes.
    """
    for family in FAMILIES:
        assert family.name.startswith("flannel_")
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert not {"ms", "octets", "minutes"} & set(family.name.split("_")), family.name


@pytest.mark.parametrize(
    "path",
    [
        "docs/guides/monitoring.md",
        "deploy/prometheus/flannel.rules.yml",
        "deploy/prometheus/flannel.rules.test.yml",
        "deploy/prometheus/flannel.dashboard.json",
    ],
)
def test_expressions_use_only_existing_metrics(path: str) -> None:
    common = {"instance", "job", "alertname", "severity"}
    labels = {family.name: {*family.labels, *common} for family in FAMILIES}
    labels["flannel_reconcile_duration_seconds_bucket"] = {"le", *common}
    text = (ROOT / path).read_text().replace('\\"', '"')

    used = re.findall(r"\b(flannel_\w+)(?:\{([^}]*)\})?", text)

    assert len(used) > 5
    for name, selector in used:
        assert set(re.findall(r"(\w+)(?:=~?|!=)\"", selector)) <= labels[name], name


def test_each_alert_has_a_test() -> None:
    """The level `page` of scripts/test runs the tests of the alerts."""
    folder = ROOT / "deploy/prometheus"
    alerts = re.findall(r"alert: (\w+)", (folder / "flannel.rules.yml").read_text())
    tested = (folder / "flannel.rules.test.yml").read_text()

    assert [name for name in alerts if name not in tested] == []


def test_the_dashboard_is_complete() -> None:
    board = json.loads((ROOT / "deploy/prometheus/flannel.dashboard.json").read_text())
    numbers = [panel["id"] for panel in board["panels"]]
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]

    assert len(set(numbers)) == len(numbers) == len(set(places))
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert all('instance=~"$instance"' in target["expr"] for target in panel["targets"]), panel["title"]
        if panel["type"] == "stat":  # without thresholds, Grafana shows each value above 80 in red
            assert panel["fieldConfig"]["defaults"]["thresholds"], panel["title"]
        if panel["type"] == "table":  # a range query would return one row for each moment
            assert all(target["instant"] for target in panel["targets"]), panel["title"]


def test_the_reference_names_every_metric_with_its_labels() -> None:
    text = (ROOT / "docs/reference/metrics.md").read_text()

    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        assert f"| `{family.name}` | {labels} | " in text


def test_the_process_itself_is_measured() -> None:
    text = expose({"": STATUS}, UTC).decode()

    assert "process_resident_memory_bytes" in text
    assert "process_cpu_seconds_total" in text


def test_without_a_scrape_the_library_is_not_loaded() -> None:
    """The library takes some megabytes. The test creates the routes and answers a health check."""
    script = """
import asyncio, sys
import pyflannel.programs.flanneld_run as flanneld
from pyflannel.assembly.options import parse_flanneld
from pyflannel.http.server import Request

class Daemon:
    waiting_for = None
    async def statuses(self):
        return {}
    def utc(self):
        return 0.0

((_, routes),) = flanneld._endpoints(parse_flanneld(["--http=127.0.0.1:8471"], {}), Daemon())
def ask(path):
    assert asyncio.run(routes["GET", path](Request(method="GET", path=path))).status == 200
    return "prometheus_client" in sys.modules
print(ask("/healthz"), ask("/readyz"), ask("/metrics"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False", "True"]
