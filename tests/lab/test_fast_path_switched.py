"""The path of packets while the network config or the rights of the daemon change."""

import json
import os

import pytest

from pyflannel.lab.kernel_path import measure_throughput
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.traffic import ping, wait_reached
from pyflannel.lab.waiting import wait_until
from pyflannel.model.status import FastPathStatus

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-bpf,-sys_admin"]


def put_config(overlay, **more: str) -> None:
    config = json.dumps({"Network": "10.100.0.0/16", **more})
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)


def wait_mode(overlay, host, mode: str) -> FastPathStatus:
    """Return the status of the fast path when it has this mode and the programs of this mode."""

    def has_mode(status) -> bool:
        path = status.fast_path
        return path is not None and path.mode == mode and bool(path.counters) is (mode == "safe")

    return overlay.wait_status(host, has_mode, f"has the fast path {mode}", deadline_s=DEADLINE_S).fast_path


def counter(overlay, host, outcome: str) -> int:
    return overlay.status(host).fast_path.counters[outcome]


@pytest.fixture(scope="module")
def ends(overlay):
    """docker1 and docker4 in one network, with a container each. The kernel carries the packets of these
    hosts.
    """
    ends = [overlay.hosts["docker1"], overlay.hosts["docker4"]]
    for host in ends:
        overlay.join(host)
    overlay.settle(*ends)
    containers = [host.container("box", gateway=host.gateway(), mtu=1472) for host in ends]
    wait_reached(containers, deadline_s=DEADLINE_S)
    for host in ends:
        wait_mode(overlay, host, "safe")
    return ends, containers


def test_the_network_config_switches_the_path_without_a_lost_ping(overlay, ends, ping_stream):
    hosts, (box, far) = ends
    with ping_stream(hosts[0], far.address, interval_s=0.001) as stream:
        stream.wait_answered()
        put_config(overlay, FastPath="off")
        for host in hosts:
            assert wait_mode(overlay, host, "off").reason == "FastPath of the network config"
        stream.wait_answered()
        put_config(overlay)
        for host in hosts:
            wait_mode(overlay, host, "safe")
        stream.wait_answered()

    assert stream.lost() == []
    before = counter(overlay, hosts[0], "encapsulated")
    wait_until(  # the programs of a host carry packets only if the lease of the peer states this format
        lambda: ping(box, far.address).is_reached and counter(overlay, hosts[0], "encapsulated") > before,
        what="the kernel carries the packets again",
        deadline_s=DEADLINE_S,
    )


@pytest.fixture
def poor(overlay, ends):
    """docker2, whose daemon may not use eBPF, and a container there."""
    host = overlay.hosts["docker2"]
    command = [*WITHOUT_RIGHTS, "flanneld", f"--store={overlay.etcd.url}"]
    overlay.daemons[host.name] = host.start_service(command, name="flanneld")
    container = host.container("box", gateway=host.gateway(), mtu=1472)
    wait_reached([ends[1][0], container], deadline_s=DEADLINE_S)
    return host, container


def test_a_host_without_the_right_uses_user_space_and_its_peers_adapt(overlay, ends, poor):
    """No host sends packets that this host cannot read, for example TCP without a complete checksum."""
    (one, _), (box, _) = ends
    host, container = poor

    path = wait_mode(overlay, host, "user-space")

    assert "CAP_BPF: absent" in (path.reason or "")
    assert "CAP_BPF" in (path.hint or "")
    assert {"CAP_BPF": "absent", "programs SCHED_CLS": "unknown"}.items() <= {
        feature.name: feature.answer for feature in path.lacking
    }.items()
    assert "programs SCHED_CLS: could not be probed, EPERM" in host.flannelctl("status", check=False)
    assert "; refused:" not in overlay.log(host)
    said = json.loads(host.flannelctl("--json", "doctor", check=False))
    assert "no-fast-path" in [finding["code"] for finding in said["findings"]]
    wait_until(
        lambda: ping(box, container.address).is_reached and counter(overlay, one, "left_unready_peer") > 0,
        what="a lease without support for incomplete packets",
        deadline_s=DEADLINE_S,
    )
    assert measure_throughput(box, container, seconds=1).received_bytes > 0
    assert measure_throughput(container, box, seconds=1).received_bytes > 0

    overlay.daemons[host.name].stop()
    overlay.join(host)

    wait_mode(overlay, host, "safe")
    assert measure_throughput(box, container, seconds=1).received_bytes > 0


def test_a_daemon_with_fewer_rights_takes_over_the_programs(overlay, ends, ping_stream):
    """A daemon with all rights attached the programs without pins. root creates the pins afterwards."""
    (one, other), (_, far) = ends

    def pinned() -> set[str]:
        return {name for name in other.run(["ls", "/run/flannel/.bpf"]).stdout.split() if "program" in name}

    with ping_stream(one, far.address, interval_s=0.01) as stream:
        wait_until(
            lambda: counter(overlay, other, "delivered") > 0, what="the last hop", deadline_s=DEADLINE_S
        )
        overlay.daemons[other.name].stop()
        other.flannelctl("pins")
        programs = pinned()
        command = ["setpriv", "--bounding-set=-sys_admin", "flanneld", f"--store={overlay.etcd.url}"]
        overlay.daemons[other.name] = other.start_service(command, name="flanneld")
        wait_mode(overlay, other, "safe")
        overlay.settle(other)
        stream.wait_answered()

    assert stream.lost() == []
    assert len(programs) == 4
    assert pinned() == programs

    overlay.daemons[other.name].stop()
    said = other.flannelctl("--store", overlay.etcd.url, "cleanup")
    assert "removed directory /run/flannel/.bpf" in said
    assert "/run/flannel" not in other.run(["cat", "/proc/self/mounts"]).stdout
