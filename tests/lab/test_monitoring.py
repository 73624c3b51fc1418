"""Monitoring of a host: metrics, and strangers by address, on the real kernel."""

import json
import os
import struct
import sys
import time
from ipaddress import IPv4Address

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyflannel.lab.traffic import ping, wait_reached
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
ENDPOINT = "127.0.0.1:8471"
NOBODY_S = "10.100.250.2"
"""An address of the network that no host uses."""

_SEND = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "for _ in range(int(sys.argv[3])): s.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 8285))"
)


def send(sender, receiver, source: str, destination: str, packets: int) -> None:
    """Let a host send inner packets in tunnel datagrams, with or without a lease."""
    ends = IPv4Address(source).packed + IPv4Address(destination).packed
    inner = struct.pack("!BBHHHBBH", 0x45, 0, 20, 0, 0, 64, 17, 0) + ends
    sender.run([sys.executable, "-c", _SEND, str(receiver.address), inner.hex(), str(packets)])


_SCRAPE = (
    "import sys, urllib.request as r; a = r.urlopen(sys.argv[1], timeout=30)\n"
    "print(a.headers['Content-Type'], a.read().decode(), sep='\\n')"
)


def scrape(host) -> dict[str, float]:
    """Return the metrics of a host as Prometheus reads them, by name and values of labels."""
    said = host.run([sys.executable, "-c", _SCRAPE, f"http://{ENDPOINT}/metrics"]).stdout
    content_type, text = said.split("\n", 1)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def ends(overlay):
    """docker1 and docker4 in one network, with a container each."""
    ends = [overlay.hosts["docker1"], overlay.hosts["docker4"]]
    for host in ends:
        overlay.daemons[host.name] = host.start_flanneld(f"--store={overlay.etcd.url}", f"--http={ENDPOINT}")
    overlay.settle(*ends)
    containers = [host.container("box", gateway=host.gateway(), mtu=1472) for host in ends]
    wait_reached(containers, deadline_s=DEADLINE_S)
    box, far = containers
    wait_until(
        lambda: all(carries(host, lambda: ping(box, far.address, count=1)) for host in ends),
        what="the kernel carries their packets",
        deadline_s=DEADLINE_S,
    )
    return ends, containers


def carries(host, send) -> bool:
    """Return whether the programs of a host process packets in both directions."""
    names = [f"flannel_tunnel_{way}_packets_total programs" for way in ("transmit", "receive")]
    before = scrape(host)
    send()
    now = scrape(host)
    return all(now.get(name, 0) > before.get(name, 0) for name in names)


def test_metrics_and_status_have_the_same_values(overlay, ends):
    (one, _), _ = ends

    metrics, status = scrape(one), overlay.status(one)

    assert metrics["flannel_ready"] == 1
    assert metrics[f"flannel_build_info {status.version}"] == 1
    assert metrics["flannel_peers programmed"] == status.peers == 1
    assert metrics["flannel_leases"] == status.leases == 2
    assert metrics["flannel_lease_conflicts"] == 0
    assert metrics[f"flannel_lease_info {one.lease()}"] == metrics["flannel_lease_phase held"] == 1
    ends_in_s = metrics["flannel_lease_expiry_timestamp_seconds"] - time.time()
    assert 0 < ends_in_s <= 24 * 3600 + DEADLINE_S
    assert metrics["flannel_datastore_up"] == 1
    assert metrics["flannel_datastore_staleness_seconds"] == 0
    assert metrics["flannel_backend_info flannel0 udp"] == 1
    assert metrics["flannel_fast_path_mode safe"] == metrics["flannel_forwarder_attached"] == 1
    assert 0 < metrics["flannel_reconcile_passes_total"] <= status.reconcile.passes
    assert metrics["flannel_reconcile_last_duration_seconds"] > 0
    assert metrics["process_resident_memory_bytes"] > 0


def test_counters_count_packets(ends):
    """Counters of the programs count packets in the kernel, and counters of the forwarder count fragments."""
    (one, _), (box, far) = ends
    before = scrape(one)

    for size in ("56", "4000"):
        box.run_in_network(["ping", "-c", "5", "-i", "0.1", "-W", "30", "-s", size, str(far.address)])

    now = scrape(one)
    grown = {name: now[name] - before.get(name, 0) for name in now}
    for name in ("flannel_tunnel_transmit", "flannel_tunnel_receive"):
        assert grown[f"{name}_packets_total programs"] >= 5
        assert grown[f"{name}_bytes_total programs"] >= 5 * 84
        assert grown[f"{name}_packets_total forwarder"] >= 15
        assert grown[f"{name}_bytes_total forwarder"] >= 5 * 4000
    assert grown["flannel_fast_path_left_packets_total fragment"] >= 15


def test_repairs_are_counted_by_kind(overlay, ends):
    (one, _), _ = ends
    before = scrape(one)["flannel_repairs_total link"]

    one.run(["ip", "link", "set", "flannel0", "mtu", "1400"])

    wait_until(
        lambda: scrape(one)["flannel_repairs_total link"] > before,
        what="a repair of the link is counted",
        deadline_s=DEADLINE_S,
    )


def test_a_stranger_is_reported_by_log_status_and_doctor(overlay, ends):
    """docker2 has no lease. Drops of the programs and of the guard are reported in the same way."""
    (one, other), (box, far) = ends
    docker2 = overlay.hosts["docker2"]
    before, after = scrape(one), len(overlay.log(one))

    send(docker2, one, str(far.address), str(box.address), 3)
    send(docker2, one, NOBODY_S, str(box.address), 2)

    status = overlay.wait_status(
        one,
        lambda status: strangers(status, docker2) == [("impostor", 3), ("stranger", 2)],
        "counts the packets of docker2",
    )
    now = scrape(one)
    by_programs, by_guard = (
        "flannel_fast_path_dropped_packets_total impostor",
        "flannel_stranger_packets stranger",
    )
    assert now[by_programs] == status.fast_path.counters["impostor"] == before[by_programs] + 3
    assert now[by_guard] == before.get(by_guard, 0) + 2
    said = f"Rejected tunnel packets from={docker2.address} reason="
    log = overlay.wait_logged(one, f"{said}impostor packets=", f"{said}stranger packets=", after=after)
    assert (
        f": it holds no lease, and the inner source {far.address} is in {other.lease()}"
        f" of {other.name} ({other.address})."
        f" If the sender is that host, set this address there" in log
    )
    assert f": it holds no lease, and no host has the inner source {NOBODY_S}. If the sender is a host" in log
    assert f"stranger   {docker2.address}, impostor, 3 packets, the latest " in one.flannelctl("status")
    found = json.loads(one.flannelctl("doctor", "--json"))["findings"]
    warnings = [
        finding
        for finding in found
        if finding["code"] == "stranger" and str(docker2.address) in finding["cause"]
    ]
    assert [(finding["severity"], finding["evidence"][0][:9]) for finding in warnings] == [
        ("warning", "3 packets"),
        ("warning", "2 packets"),
    ]
    assert f"ip neigh show to {docker2.address}" in warnings[0]["fix"]


def strangers(status, host) -> list[tuple[str, int]]:
    return [(one.reason, one.packets) for one in status.strangers if one.address == host.address]
