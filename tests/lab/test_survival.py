"""Packets flow when the daemon exits, is killed or starts at any moment, and the next daemon continues."""

import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
STREAM_INTERVAL_S = 0.001

FRESH_HOST, PEER_DOWN = "docker3", "docker2"


@pytest.fixture(scope="module", autouse=True)
def joined(overlay) -> None:
    """docker1, docker2 and docker4 in one network. docker3 has never run a daemon."""
    joining = [host for host in overlay.hosts.values() if host.name != FRESH_HOST]
    together([lambda host=host: overlay.join(host) for host in joining])
    overlay.settle(*joining)


def terminate(daemon: Program) -> None:
    assert daemon.stop() == 0


def kill(daemon: Program) -> None:
    daemon.kill()


def peers_of(overlay, host: Host) -> set[IPv4Network]:
    """Return the subnets in the forwarder's table."""
    return {IPv4Network((peer.subnet, peer.prefix_length)) for peer in overlay.peers(host)}


def lease_key(subnet: IPv4Network) -> str:
    return f"{PREFIX}/subnets/{subnet.network_address}-{subnet.prefixlen}"


def test_no_packet_is_lost_while_the_daemon_ends_and_starts(
    overlay, ping_stream, figures, long_run: bool
) -> None:
    """SIGTERM and SIGKILL in turn end the daemon at both ends of a stream. No repair is necessary."""
    ends = [overlay.hosts["docker1"], overlay.hosts["docker4"]]
    subnets = {host.name: host.lease() for host in ends}
    forwarders = {host.name: overlay.forwarder(host).pid for host in ends}
    states = {host.name: overlay.state(host) for host in ends}
    stream = ping_stream(ends[0], subnets["docker4"].network_address, interval_s=STREAM_INTERVAL_S)
    stream.wait_answered()
    began = time.monotonic()

    for end, host in itertools.product([terminate, kill] * (10 if long_run else 3), ends):
        end(overlay.daemons[host.name])
        stream.wait_answered()
        assert not (host.directory / "run/flannel/flanneld.sock").exists() or end is kill
        said = len(overlay.log(host))
        overlay.join(host)
        assert_taken_over(overlay, host, overlay.log(host)[said:], subnets[host.name])
        stream.wait_answered()

    seconds = time.monotonic() - began
    stream.stop()
    assert stream.lost() == []
    assert {host.name: overlay.forwarder(host).pid for host in ends} == forwarders
    assert {host.name: overlay.state(host) for host in ends} == states
    count = len(stream.answers())
    figures(
        f"{count} pings in {seconds:.1f} s, none lost,"
        f" longest time without an answer {stream.longest_gap_s() * 1e3:.0f} ms"
    )


def assert_taken_over(overlay, host: Host, said: str, subnet: IPv4Network) -> None:
    """The daemon that just started acquired the same subnet and found all objects in place."""
    assert f"Found lease ({subnet}) for current IP" in said
    assert "Applied the plan" not in said
    assert "Repaired" not in said
    status = overlay.status(host)
    assert status.reconcile.repairs == 0
    assert status.lease.subnet == subnet
    assert host.lease() == subnet


def test_the_next_daemon_applies_changes_of_peers_while_no_daemon_ran(overlay) -> None:
    """The next start updates the table from the store: one lease was deleted, and another was written."""
    host, leaving = overlay.hosts["docker1"], overlay.hosts[PEER_DOWN]
    gone, come = leaving.lease(), IPv4Network("10.100.254.0/24")
    assert peers_of(overlay, host) >= {gone}
    terminate(overlay.daemons[host.name])
    kill(overlay.daemons[leaving.name])

    overlay.etcd.etcdctl("del", lease_key(gone))
    value = json.dumps({"PublicIP": "192.168.50.199"})
    overlay.etcd.etcdctl("put", lease_key(come), value)
    assert peers_of(overlay, host) >= {gone}
    overlay.join(host)
    wait_until(
        lambda: come in peers_of(overlay, host) and gone not in peers_of(overlay, host),
        what="the updated table",
        deadline_s=DEADLINE_S,
    )

    assert overlay.hosts["docker4"].lease() in peers_of(overlay, host)
    overlay.join(leaving)
    assert leaving.lease() == gone
    overlay.etcd.etcdctl("del", lease_key(come))
    wait_until(
        lambda: gone in peers_of(overlay, host) and come not in peers_of(overlay, host),
        what="the same objects as before",
        deadline_s=DEADLINE_S,
    )


STAGES: dict[str, Callable[[Host], bool]] = {
    "its lock": lambda host: (host.directory / "run/flannel/flanneld.lock").exists(),
    "its identity": lambda host: (host.directory / "var/lib/flannel/identity.json").exists(),
    "its control socket": lambda host: (host.directory / "run/flannel/flanneld.sock").exists(),
    "its lease": lambda host: "Lease acquired" in (host.directory / "log/flanneld.log").read_text(),
    "the device": lambda host: "flannel0" in Path(f"/proc/{host.init_pid}/net/dev").read_text(),
    "the forwarder's process": lambda host: (host.directory / "run/flannel/forwarder.log").exists(),
    "the forwarder's socket": lambda host: (host.directory / "run/flannel/forwarder.sock").exists(),
    "subnet.env": lambda host: (host.directory / "run/flannel/subnet.env").exists(),
}
"""The progress of a first start: the objects that it has created, as seen from outside."""


@pytest.fixture(scope="module")
def fresh_host(overlay) -> tuple[Host, str]:
    """A host without any earlier daemon, and all its objects after a start."""
    host = overlay.hosts[FRESH_HOST]
    overlay.join(host)
    overlay.settle(*overlay.hosts.values())
    wait_until(lambda: len(overlay.peers(host)) == 3, what="all peers", deadline_s=DEADLINE_S)
    clean = shape(overlay, host)
    clean_up(overlay, host)
    return host, clean


@pytest.mark.parametrize("stage", STAGES)
def test_the_next_daemon_continues_after_a_kill_at_any_moment_of_the_start(
    overlay, fresh_host, ping_stream, long_run: bool, stage: str
) -> None:
    """The next start adopts or removes all remains, and exactly one forwarder runs."""
    host, clean = fresh_host
    peer = overlay.hosts["docker4"]
    for later_s in (0.0, 0.005, 0.01, 0.02, 0.04) if long_run else (0.0,):
        (host.directory / "log/flanneld.log").unlink()
        daemon = host.launch_flanneld(f"--store={overlay.etcd.url}")
        kill_after(daemon, lambda: STAGES[stage](host), later_s)

        overlay.join(host)
        wait_until(lambda: shape(overlay, host) == clean, what="all objects", deadline_s=DEADLINE_S)

        overlay.wait_one_forwarder(host)
        overlay.wait_ready(host)
        with ping_stream(peer, host.lease().network_address, interval_s=0.01) as stream:
            stream.wait_answered()
        clean_up(overlay, host)


def kill_after(daemon: Program, condition: Callable[[], bool], later_s: float) -> None:
    """Kill the daemon when it has reached this progress, immediately or a moment later."""
    pid, end = daemon.pid, time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, daemon.last_words()
    time.sleep(later_s)  # not a wait for an event: this moment is tested
    os.kill(pid, signal.SIGKILL)
    daemon.wait()


def shape(overlay, host: Host) -> str:
    """Return all objects of the host, without its subnet and its identity."""
    state = overlay.state(host)
    forwarder = state.pop("forwarder")
    told = forwarder and {"attached": forwarder.is_attached, "peers": len(forwarder.peers)}
    own = str(host.lease().network_address).removesuffix("0")
    identity = json.loads((host.directory / "var/lib/flannel/identity.json").read_text())["Owner"]
    return json.dumps({**state, "forwarder": told}).replace(own, "OWN.").replace(identity, "IDENTITY")


def clean_up(overlay, host: Host) -> None:
    """Restore the host to a state without any earlier daemon."""
    terminate(overlay.daemons[host.name])
    host.flannelctl("--store", overlay.etcd.url, "cleanup")
