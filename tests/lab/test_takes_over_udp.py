"""The packets of the udp backend while flanneld replaces an original flannel, or an original replaces it.

The original is imitated by a process with the port of the tunnel and a TUN device that is removed when the
process ends.
"""

import os
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab import imitated_original

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
SUBNET = "10.100.110.0/24"
BASE = IPv4Address("10.100.110.0")
INTERVAL_S = 0.001

PINGS_MEANWHILE = 5000
"""Time in seconds until the pause between two attempts has its maximum."""


@pytest.fixture
def peer(overlay) -> Host:
    """A host that runs flanneld."""
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", overlay.config())
    peer = overlay.hosts["docker2"]
    overlay.join(peer)
    return peer


@pytest.fixture
def host(overlay) -> Iterator[Host]:
    """The host on which the original and flanneld run in turn. After a test, neither program runs, and the
    host has no lease.
    """
    host = overlay.hosts["docker1"]
    yield host
    for each in (host, overlay.hosts["docker2"]):
        each.flannelctl("--store", overlay.etcd.url, "cleanup")
    overlay.delete_leases()


def start_original(overlay, host: Host, peer: Host) -> Program:
    """Start the imitation, with the lease of an original in the store."""
    lease = f'{{"PublicIP":"{host.address}","BackendType":"udp"}}'
    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/{SUBNET.replace('/', '-')}", lease)
    words = [str(host.address), f"{BASE}/16", str(peer.lease()), str(peer.address)]
    return host.start(
        ["python3", "-c", imitated_original.UDP, *words], name=f"original-{time.monotonic_ns()}"
    )


def wait_running(original: Program) -> None:
    wait_until(lambda: "running" in original.last_words(), what="the original runs", deadline_s=DEADLINE_S)


def test_flanneld_may_start_while_the_original_runs_and_takes_over_when_it_stops(
    overlay, host: Host, peer: Host, ping_stream, figures
) -> None:
    """The original carries the packets until its end. Log and status report the original, and the subnet
    remains.
    """
    original = start_original(overlay, host, peer)
    wait_running(original)
    with ping_stream(peer, BASE, interval_s=INTERVAL_S) as stream:
        stream.wait_answered()

        overlay.daemons[host.name] = host.launch_flanneld(f"--store={overlay.etcd.url}")
        overlay.wait_logged(host, "UDP port 8285 of 10.10.10.101 is in use by python3")
        answered = len(stream.answers())
        wait_until(
            lambda: len(stream.answers()) >= answered + PINGS_MEANWHILE,
            what="the original carries packets while flanneld tries",
            deadline_s=DEADLINE_S,
        )
        lost_while_both_run = stream.lost()
        stopped_at = time.time()
        original.stop()
        overlay.wait_ready(host)
        stream.wait_answered()

    gap_s = stream.longest_gap_s(stopped_at - 1)
    figures(f"the original stopped, flanneld ran already: no packets for {gap_s:.2f} s")
    assert lost_while_both_run == []
    assert str(host.lease()) == SUBNET


def test_flanneld_may_start_after_the_original_has_stopped(
    overlay, host: Host, peer: Host, ping_stream, figures
) -> None:
    """Packets are lost until flanneld is ready."""
    original = start_original(overlay, host, peer)
    wait_running(original)
    with ping_stream(peer, BASE, interval_s=INTERVAL_S) as stream:
        stream.wait_answered()

        stopped_at = time.time()
        original.stop()
        overlay.join(host)
        stream.wait_answered()

    gap_s = stream.longest_gap_s(stopped_at - 1)
    figures(f"the original stopped, then flanneld started: no packets for {gap_s:.2f} s")
    assert str(host.lease()) == SUBNET


def test_the_original_starts_again_after_a_cleanup_that_keeps_the_lease(
    overlay, host: Host, peer: Host, ping_stream, figures
) -> None:
    """Before the cleanup, the original cannot start, because the forwarder still uses its port."""
    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/{SUBNET.replace('/', '-')}", '{"PublicIP":"10.10.10.101"}')
    overlay.join(host)
    with ping_stream(peer, BASE, interval_s=INTERVAL_S) as stream:
        stream.wait_answered()
        overlay.daemons[host.name].stop()
        stream.wait_answered()
        refused = start_original(overlay, host, peer)
        exit_code = refused.wait(DEADLINE_S)

        began_at = time.time()
        host.flannelctl("--store", overlay.etcd.url, "cleanup", "--keep-lease")
        original = start_original(overlay, host, peer)
        wait_running(original)  # an answer from before the cleanup may still be read
        stream.wait_answered()

    gap_s = stream.longest_gap_s(began_at - 1)
    figures(f"flannelctl cleanup --keep-lease, then the original started: no packets for {gap_s:.2f} s")
    assert exit_code != 0
    assert "device flannel1" in refused.log.read_text()
    assert "Address already in use" in refused.log.read_text()
    assert "device flannel0" in original.last_words()
    original.stop()
