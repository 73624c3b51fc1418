"""flannelctl trace on real hosts: each step of a packet's path is broken in turn, and trace names the
step.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pyflannel.lab.containers import Container
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together
from testlab.documents import read_document
from testlab.overlay import Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


class Way(NamedTuple):
    """Two hosts on one link, each with a container. No flanneld runs, because it would repair the faults."""

    one: Host
    other: Host
    near: Container
    far: Container

    def trace(self, *addresses: object, exit_code: int = 0) -> dict[str, Any]:
        words = ["flannelctl", "trace", "--json", *map(str, addresses)]
        ran = self.one.run(words, check=False)
        assert ran.returncode == exit_code, ran.stdout + ran.stderr
        return read_document(["trace"], ran.stdout)


class Fault(NamedTuple):
    """A fault, its reversal, and the step that must fail.

    Attributes:
        is_far: True if the fault is on the other host.
        is_in: True if the packet is from the other host.
        is_way_back: True if trace names a step of the reply.
    """

    do: str
    undo: str
    step: str
    is_far: bool = False
    is_in: bool = False
    is_way_back: bool = False


def rule(chain: str, match: str, *, is_far: bool = False, is_way_back: bool = False) -> Fault:
    do, undo = (f"iptables {option} {chain} {match} -j DROP" for option in ("-I", "-D"))
    return Fault(do, undo, "peer" if is_far else "rule", is_far, False, is_way_back)


def moved(way: Way, show: str, delete: str, add: str, step: str) -> Fault:
    """Return a fault that removes an object. `ip` or `bridge` prints it in a form that it also accepts."""
    shown = way.one.run(["sh", "-c", show]).stdout.split("\n")[0]
    return Fault(delete, f"{add} {shown}", step)


def common_faults(way: Way) -> list[Fault]:
    """Return the faults that every backend may have."""
    port = "c-c"
    return [
        Fault("ip link set br0 down", "ip link set br0 up", "bridge"),
        Fault(f"ip link set {port} nomaster", f"ip link set {port} master br0", "bridge"),
        Fault(f"ip link set {port} nomaster", f"ip link set {port} master br0", "bridge", is_in=True),
        Fault(
            "ip -n c address flush dev eth0; ip neighbour flush dev br0",
            f"ip -n c address add {way.near.address}/28 dev eth0;"
            f" ip -n c route add default via {way.one.gateway().ip}",
            "container",
        ),
        Fault("sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1", "route"),
        Fault(
            "sysctl -qw net/ipv4/conf/br0/forwarding=0", "sysctl -qw net/ipv4/conf/br0/forwarding=1", "route"
        ),
        no_route_in_container(way),
        rule("FORWARD", f"-s {way.near.address}"),
        Fault(
            f"nft 'table inet fw {{ chain f {{ type filter hook forward priority 1;"
            f" ip saddr {way.far.address} ip daddr {way.near.address} drop; }}; }}'",
            "nft delete table inet fw",
            "rule",
            is_in=True,
        ),
        Fault(
            f"iptables -I FORWARD -s {way.far.address} -j DROP",
            f"iptables -D FORWARD -s {way.far.address} -j DROP",
            "peer",
            is_far=True,
        ),
        Fault(
            "ip -n c link set eth0 down",
            f"ip -n c link set eth0 up; ip -n c route add default via {way.other.gateway().ip}",
            "peer",
            is_far=True,
        ),
        underlay_lost(way),
    ]


def no_route_in_container(way: Way) -> Fault:
    """Remove the default route of the container. A process runs in the container, because flannelctl finds a
    network namespace only by its processes.
    """
    gateway = way.one.gateway().ip
    do = "ip netns exec c sleep 99 >/dev/null 2>&1 & echo $! >/run/sleep; ip -n c route del default"
    undo = f"kill $(cat /run/sleep); ip -n c route add default via {gateway}"
    return Fault(do, undo, "container")


def route_lost(way: Way, network: str = "") -> Fault:
    subnet = network or way.other.lease()
    return moved(way, f"ip route show {subnet}", f"ip route del {subnet}", "ip route add", "route")


def underlay_lost(way: Way) -> Fault:
    """The other host has lost its address."""
    address = way.other.address
    return Fault(
        f"ip address del {address}/24 dev eth0",
        f"ip address add {address}/24 dev eth0; ip route add default via 10.10.10.1",
        "underlay",
        is_far=True,
    )


def vxlan_faults(way: Way) -> list[Fault]:
    subnet, to = way.other.lease(), "ip neighbour replace"
    gateway = subnet.network_address
    mac = way.other.run(["cat", "/sys/class/net/flannel.1/address"]).stdout.strip()
    entry = f"{mac} dev flannel.1 dst"
    return [
        Fault(
            f"ip neighbour del {gateway} dev flannel.1",
            f"{to} {gateway} lladdr {mac} dev flannel.1 nud permanent",
            "neighbour",
        ),
        rule("INPUT", "-p udp --dport 8472", is_way_back=True),
        Fault(
            f"bridge fdb del {entry} {way.other.address}",
            f"bridge fdb replace {entry} {way.other.address}",
            "fdb",
        ),
        Fault(
            f"bridge fdb replace {entry} 10.10.10.77",
            f"bridge fdb replace {entry} {way.other.address}",
            "fdb",
        ),
        rule("OUTPUT", "-p udp --dport 8472"),
        rule("INPUT", "-p udp --dport 8472", is_far=True),
        route_lost(way),
    ]


_WRONG_ENTRY = """
import asyncio
from msgspec.structs import replace
from ipaddress import IPv4Address
from pyflannel.assembly.directories import Places
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.commands.observations import programs_of

async def change():
    programs, (peer,) = await programs_of(Places())
    fast_path = FastPath(str(Places().bpf))
    await fast_path.read(programs)
    await fast_path.put_peers("flannel0", [replace(peer, address=IPv4Address("{}"))])
    fast_path.close()

asyncio.run(change())
"""


def fast_path_faults(way: Way) -> list[Fault]:
    wrong, right = (_WRONG_ENTRY.format(one) for one in ("10.10.10.77", way.other.address))
    python = shlex.quote(sys.executable)
    return [
        Fault(f"{python} -c {shlex.quote(wrong)}", f"{python} -c {shlex.quote(right)}", "program"),
        Fault(
            "ip link set eth0 down", "ip link set eth0 up; ip route add default via 10.10.10.1", "underlay"
        ),
        rule("FORWARD", f"-d {way.far.address}"),
    ]


def udp_faults(way: Way) -> list[Fault]:
    forwarder = json.loads(way.one.flannelctl("status", "--json", check=False))["forwarder"]
    return [
        rule("OUTPUT", "-p udp --dport 8285"),
        rule("INPUT", "-p udp --dport 8285", is_far=True),
        route_lost(way, "10.100.0.0/16"),
        Fault(f"kill {forwarder['pid']}", "true", "forwarder"),
    ]


def host_gw_faults(way: Way) -> list[Fault]:
    subnet = way.other.lease()
    return [
        route_lost(way),
        Fault(
            f"ip route replace {subnet} via 10.10.10.1",
            f"ip route replace {subnet} via {way.other.address}",
            "route",
        ),
    ]


QUICK = 3
"""Faults of the short form."""


def quick_faults(way: Way) -> list[Fault]:
    return [no_route_in_container(way), *vxlan_faults(way)]


BACKENDS: dict[str, Callable[[Way], list[Fault]]] = {
    "vxlan": lambda way: [*common_faults(way), *vxlan_faults(way)],
    "udp": fast_path_faults,
    "udp in user space": udp_faults,
    "host-gw": host_gw_faults,
}


def check_whois(way: Way) -> None:
    """The kernel of this host names the bridge and the port of its own container."""

    def whois(address: object, exit_code: int = 0) -> dict[str, Any]:
        ran = way.one.run(["flannelctl", "whois", "--json", str(address)], check=False)
        assert ran.returncode == exit_code, ran.stdout + ran.stderr
        return read_document(["whois"], ran.stdout)

    near, far = whois(way.near.address), whois(way.far.address)
    assert (near["kind"], near["is_here"], near["link"], near["port"]) == ("container", True, "br0", "c-c")
    assert (far["kind"], far["is_here"], far["host_name"]) == ("container", False, way.other.name)
    assert whois(way.other.address)["kind"] == "host"
    assert whois("10.100.99.1", exit_code=1)["kind"] == "unused"


def check_probe(way: Way) -> None:
    """A real packet is traced to the other host and back, and to the rule that drops the packet. No table
    remains.
    """
    way.one.run(["sh", "-c", "ip netns exec c sleep 99 >/dev/null 2>&1 & echo $! >/run/sleep"])
    way.one.run(
        [
            "nft",
            "table inet fw { chain f { type filter hook forward priority 1; accept; };"
            " chain o { type filter hook output priority 1; }; }",
        ]
    )
    try:
        passed = way.trace("--probe", way.near.address, way.far.address)["probe"]
        way.one.run(["nft", "add rule inet fw o udp dport 8472 counter drop"])
        dropped = way.trace("--probe", way.near.address, way.far.address, exit_code=1)["probe"]
    finally:
        way.one.run(["sh", "-c", "nft delete table inet fw; kill $(cat /run/sleep)"])

    chains = [(one["packet"], one["chain"], one["verdict"], one["oif"]) for one in passed["events"]]
    assert ("request", "f", "accept", "flannel.1") in chains
    assert ("tunnel request", "o", "accept", "eth0") in chains
    assert ("reply", "f", "accept", "br0") in chains
    assert passed["rtt_ms"] > 0
    last = dropped["events"][-1]
    assert (last["packet"], last["chain"], last["verdict"]) == ("tunnel request", "o", "drop")
    assert last["rule"].endswith("drop")
    assert dropped["rtt_ms"] is None
    assert "flannel-trace" not in way.one.run(["nft", "list", "tables"]).stdout


_CREATE_TABLES = """
import asyncio
import sys
from ipaddress import IPv4Address
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.wire.netlink.nftables import BRIDGE, PROTOCOL
from pyflannel.wire.netlink.packet_trace import INET, TracedEcho, tracing_table

echo = TracedEcho(source=IPv4Address(1), destination=IPv4Address(2), identifier=3)

async def create():
    requests = RequestSocket(PROTOCOL)
    print([await requests.transact_whole(tracing_table(echo, one)) for one in (INET, BRIDGE)], flush=True)
    sys.stdin.read()

asyncio.run(create())
"""


def test_the_tables_of_a_killed_trace_are_removed(make_namespace: Callable[[], Any]) -> None:
    """The kernel removes the tables when the socket of the process is closed."""
    host = make_namespace()
    words = ["ip", "netns", "exec", host.name, sys.executable, "-c", _CREATE_TABLES]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trace:
        assert trace.stdout is not None
        assert trace.stdout.readline() == "[None, None]\n"
        tables = host.command("nft", "list", "tables")
        trace.kill()

    assert tables.splitlines() == ["table inet flannel-trace", "table bridge flannel-trace"]
    assert host.command("nft", "list", "tables") == ""


@pytest.mark.timeout(600)
def test_each_broken_step_is_named(overlay: Overlay, long_run: bool) -> None:
    """The long form of the test breaks every step of the three backends, the short form some steps of
    vxlan.
    """
    way = None
    for backend, faults in BACKENDS.items() if long_run else [("vxlan", quick_faults)]:
        way = running(overlay, backend, way)
        if backend == "vxlan":
            check_probe(way)
        for one in faults(way)[: None if long_run else QUICK]:
            check(way, backend, one)
        if backend == "vxlan" and long_run:
            check_stolen_mac(way)


def check_stolen_mac(way: Way) -> None:
    """Name a changed MAC address of the vxlan device in doctor, whose command repairs it."""

    def named() -> list[str]:
        ran = way.one.run(["flannelctl", "doctor", "--json"], check=False)
        found = read_document(["doctor"], ran.stdout)["findings"]
        return [one["fix"] for one in found if one["code"] == "vtep-mac"]

    way.one.run(["ip", "link", "set", "flannel.1", "address", "02:00:00:00:00:77"])
    (fix,) = named()
    way.one.run(fix.split())
    assert named() == []


def running(overlay: Overlay, backend: str, before: Way | None) -> Way:
    """Run the network with a backend, check that trace names no step, and kill both flannelds."""
    kind, _, in_user_space = backend.partition(" ")
    config = overlay.config(
        SubnetLen=28, Backend={"Type": kind}, **({"FastPath": "off"} if in_user_space else {})
    )
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)
    hosts = [overlay.hosts[name] for name in ("docker1", "docker2")]
    together([lambda host=host: overlay.join(host) for host in hosts])
    overlay.settle(*hosts)
    made = before or Way(*hosts, *(host.container("c", gateway=host.gateway(), mtu=1400) for host in hosts))
    for ends in (
        (made.far.address,),
        (made.near.address, made.far.address),
        (made.far.address, made.near.address),
    ):
        assert made.trace(*ends)["ok"]
    if before is None:
        check_whois(made)
    for host in hosts:
        overlay.daemons[host.name].kill()
    return made


def check(way: Way, backend: str, fault: Fault) -> None:
    host = way.other if fault.is_far else way.one
    ends = [way.near.address, way.far.address]
    print(f"{backend}: {fault.do}")  # shown if the test fails
    host.run(["sh", "-c", fault.do])
    try:
        report = way.trace(*(reversed(ends) if fault.is_in else ends), exit_code=1)
    finally:
        host.run(["sh", "-c", fault.undo])
    last = report["steps"][-1]
    assert report["stops"] == fault.step, f"{backend}: {fault.do}: {report}"
    assert (last["state"], last["is_way_back"]) == ("fails", fault.is_way_back), report
    assert (last["cause"], last["fix"]) == (report["cause"], report["fix"])
