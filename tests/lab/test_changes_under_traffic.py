"""Running hosts apply a new network config while packets flow between all of them."""

import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import LEFT, Host, HostPlace, Topology
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 60.0
INTERVAL_S = 0.01
FULL_SIZE = 1420 - 28
"""Payload of the largest ping that every backend carries in one piece."""

THREE = Topology(
    (LEFT,),
    tuple(HostPlace(f"docker{n}", LEFT, IPv4Interface(f"10.10.10.{100 + n}/24")) for n in (1, 2, 3)),
)

_RECEIVER = """
import socket, sys, time
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
stream, _ = server.accept()
last = time.time()
while stream.recv(65536):
    now = time.time()
    if now - last > 0.1:
        print("stall", last, now - last, flush=True)
    last = now
"""
_SENDER = """
import socket, sys, time
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])), source_address=(sys.argv[3], 0))
stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while True:
    stream.sendall(bytes(4000))
    time.sleep(0.01)
"""


class Traffic:
    """Pings of two sizes between all pairs of hosts, and a TCP stream for each pair.

    A second stream for each pair uses the underlay, which no change concerns. It shows how long a busy
    machine stalls a stream.
    """

    def __init__(self, hosts: list[Host], ping_stream: Callable[..., Any]) -> None:
        self._pairs = list(itertools.permutations(hosts, 2))
        self._ping_stream = ping_stream
        self._pings: dict[tuple[str, str, str], Any] = {}
        self._streams: list[tuple[Program, Program]] = []
        self._controls: list[tuple[Program, Program]] = []

    def __enter__(self) -> "Traffic":
        for source, destination in self._pairs:
            for name, size in (("small", 56), ("full size", FULL_SIZE)):
                options = ["-M", "do", "-s", str(size), "-I", str(source.gateway().ip)]
                self._pings[source.name, destination.name, name] = self._ping_stream(
                    source, destination.gateway().ip, interval_s=INTERVAL_S, options=options
                )
        for source, destination in self._pairs:
            if source.name < destination.name:
                ends = source.gateway().ip, destination.gateway().ip
                self._streams.append(self._stream(source, destination, *ends))
                underlay = source.address, destination.address
                self._controls.append(self._stream(source, destination, *underlay))
        self.wait_answered()
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._pings.values():
            stream.stop()
        for receiver, sender in (*self._streams, *self._controls):
            sender.kill()
            receiver.kill()

    def _stream(
        self, source: Host, destination: Host, here: IPv4Address, there: IPv4Address
    ) -> tuple[Program, Program]:
        port = str(5001 + len(self._streams) + len(self._controls))
        name = f"tcp-{port}"
        receiver = destination.start([sys.executable, "-c", _RECEIVER, str(there), port], name=name)
        assert receiver.log is not None
        log = receiver.log
        wait_until(lambda: "listening" in log.read_text(), what="the receiver", deadline_s=SOON_S)
        return receiver, source.start([sys.executable, "-c", _SENDER, str(there), port, str(here)], name=name)

    def wait_answered(self) -> None:
        for stream in self._pings.values():
            stream.wait_answered()

    def lost(self, since: float) -> dict[str, int]:
        """Return the number of lost pings by path, for pings since a time of the clock."""
        found = {}
        for (source, destination, size), stream in self._pings.items():
            answers = stream.answers()
            first = min((one.number for one in answers if one.sent_at >= since), default=0)
            if count := sum(number >= first for number in stream.lost()):
                found[f"{source} to {destination}, {size}"] = count
        return found

    def longest_stalls_s(self, since: float) -> tuple[float, float]:
        """Return the longest pause since a time of the clock: of a stream, and of one on the underlay."""
        return _longest_stall_s(self._streams, since), _longest_stall_s(self._controls, since)


def _longest_stall_s(streams: list[tuple[Program, Program]], since: float) -> float:
    stalls = [0.0]
    for receiver, _ in streams:
        assert receiver.log is not None
        for line in receiver.log.read_text().splitlines():
            if line.startswith("stall") and float(line.split()[1]) + float(line.split()[2]) >= since:
                stalls.append(float(line.split()[2]))
    return max(stalls)


@pytest.fixture(scope="module")
def overlay(make_overlay) -> Iterator[Any]:
    """Three hosts, each with the bridge of its containers."""
    with Lab(f"changes-{os.getpid()}", THREE) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        overlay = make_overlay(lab, etcd, etcd.start())
        overlay.set_backend("udp")

        def join(host: Host) -> None:
            overlay.join(host)
            bridge = f"link add docker0 type bridge\naddress add {host.gateway()} dev docker0\n"
            host.run(["ip", "-batch", "-"], text=bridge + "link set docker0 up\n")

        lab.each(join)
        overlay.settle(*lab.hosts.values())
        yield overlay


def lease_of(overlay: Any, host: Host) -> dict[str, Any]:
    """Return the lease of a host, from the store."""
    key = f"{PREFIX}/subnets/{str(host.lease()).replace('/', '-')}"
    return dict(json.loads(overlay.etcd.etcdctl("get", "--print-value-only", key)))


def devices(host: Host) -> dict[str, int]:
    """Return the MTU of each device of flannel, by name."""
    return {link["ifname"]: link["mtu"] for link in host.links() if link["ifname"].startswith("flannel")}


def has_changed(overlay: Any, kind: str, wanted: dict[str, int], reads: list[str]) -> bool:
    """Return whether all hosts have these devices, and publish one backend."""
    for host in overlay.hosts.values():
        lease = lease_of(overlay, host)
        ours = lease["Pyflannel"]
        is_published = lease.get("BackendType", "udp") == kind and ours.get("Reads", reads) == reads
        if not is_published or "Also" in ours or devices(host) != wanted:
            return False
    return True


Step = tuple[str, dict[str, Any], dict[str, int], list[str]]

DIRECT = {"VNI": 2, "DirectRouting": True, "MTU": 1490}
CHANGES: dict[str, Step] = {
    "udp to vxlan": ("vxlan", {}, {"flannel.1": 1450}, []),
    "another VNI": ("vxlan", {"VNI": 2}, {"flannel.2": 1450}, []),
    "another MTU": ("vxlan", {"VNI": 2, "MTU": 1490}, {"flannel.2": 1440}, []),
    "direct routing": ("vxlan", DIRECT, {"flannel.2": 1440}, ["direct"]),
    "vxlan to host-gw": ("host-gw", {}, {}, []),
    "host-gw to wireguard": ("wireguard", {}, {"flannel-wg": 1420}, []),
    "wireguard to vxlan": ("vxlan", {}, {"flannel.1": 1450}, []),
}
"""Each change with the backend, its options, the devices after it, and the formats in the leases."""


def test_a_change_of_the_backend_loses_no_packet(overlay, ping_stream, figures) -> None:
    hosts = list(overlay.hosts.values())
    subnets = [host.lease() for host in hosts]
    results: dict[str, tuple[dict[str, int], float]] = {}
    with Traffic(hosts, ping_stream) as traffic:
        for change, (kind, options, wanted, reads) in CHANGES.items():
            began = time.time()
            overlay.set_backend(kind, **options)
            wait_until(
                functools.partial(has_changed, overlay, kind, wanted, reads), what=change, deadline_s=SOON_S
            )
            took_s = time.time() - began
            traffic.wait_answered()
            lost, (stall_s, control_s) = traffic.lost(began), traffic.longest_stalls_s(began)
            results[change] = lost, stall_s - control_s
            figures(
                f"{change}: {sum(lost.values())} lost, TCP stalled {stall_s:.2f} s,"
                f" on the underlay {control_s:.2f} s, took {took_s:.1f} s"
            )

    assert [host.lease() for host in hosts] == subnets
    assert {change: result for change, result in results.items() if result[0] or result[1] > 0.2} == {}
