"""flanneld repairs any damage to backends that use the kernel's own paths, while packets flow.

Three hosts on one segment, with a bridge like Docker's on each, and constant pings to each bridge.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.topology import LEFT, Host, HostPlace, Topology, plug_in
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

HEALED_S = 60.0
"""Deadline of a repair. The requirement is one second, but other programs may load the machine."""

PING_INTERVAL_S = 0.01

THREE = Topology(
    (LEFT,),
    tuple(HostPlace(f"docker{n}", LEFT, IPv4Interface(f"10.10.10.{100 + n}/24")) for n in (1, 2, 3)),
)

FOREIGN = """
link add decoy0 type veth peer name decoy1
link set decoy0 up
link set decoy1 up
address add 10.7.0.1/24 dev decoy0
route add 10.8.0.0/16 via 10.7.0.2
route add 10.99.0.0/16 dev decoy0 proto static
route add 10.100.250.0/24 via 10.7.0.2
route add 10.100.0.0/16 dev decoy0 table 77
rule add from 10.7.0.0/24 lookup 77
neighbour add 10.7.0.9 lladdr 02:00:00:00:00:09 dev decoy0 nud permanent
link add decoy.9 type vxlan id 9 dstport 9999 local 10.7.0.1
link set decoy.9 up
address add 10.9.0.1/24 dev decoy.9
neighbour add 10.9.0.9 lladdr 02:00:00:00:00:99 dev decoy.9 nud permanent
"""
"""Objects of other programs, also in the network of flannel."""


@dataclass(frozen=True)
class Damage:
    """Damage by another program, and the log lines that must report it.

    `{subnet}`, `{base}`, `{mac}` and `{address}` belong to a peer; `{own}` is the victim's own MAC address.

    Attributes:
        words: a shell command on the host.
        found: texts that the log must contain.
    """

    words: str
    found: tuple[str, ...]


ROUTES = {
    "one route": Damage("ip route delete {subnet}", ("route {subnet}: missing",)),
    "all routes": Damage("ip route flush proto 80", ("route {subnet}: missing",)),
    "a foreign route in its place": Damage(
        "ip route replace {subnet} via 10.7.0.2", ("route {subnet}: link decoy0, wanted ",)
    ),
    "a blackhole in its place": Damage(
        "ip route replace blackhole {subnet}", ("route {subnet}: ", "blackhole")
    ),
    "a stale route": Damage(
        "ip route add 10.100.77.0/24 via 10.10.10.77 proto 80", ("10.100.77.0/24: not wanted",)
    ),
    "rules flushed": Damage("iptables -F", ("iptables chain FLANNEL-FWD in filter: ",)),
    "everything of nftables flushed": Damage(
        "nft flush ruleset", ("iptables chain FLANNEL-FWD in filter: ",)
    ),
}

DEVICE = {
    "device deleted": Damage("ip link delete flannel.1", ("link flannel.1: missing",)),
    "device down": Damage("ip link set flannel.1 down", ("link flannel.1: not up",)),
    "device down and up": Damage(
        "ip link set flannel.1 down; ip link set flannel.1 up", ("route {subnet}: missing",)
    ),
    "MAC address": Damage(
        "ip link set flannel.1 address 0e:00:00:00:00:01",
        ("link flannel.1: mac 0e:00:00:00:00:01, wanted {own}",),
    ),
    "MTU": Damage("ip link set flannel.1 mtu 1300", ("link flannel.1: mtu 1300, wanted 1450",)),
    "learning": Damage("ip link set flannel.1 type vxlan learning", ("link flannel.1: learns",)),
    "another device of that name": Damage(
        "ip link delete flannel.1; ip link add flannel.1 type vxlan id 7 dstport 9998 local 10.7.0.1",
        ("link flannel.1: ",),
    ),
    "address removed": Damage("ip address flush dev flannel.1", ("on flannel.1: missing",)),
    "address added": Damage(
        "ip address add 10.6.0.1/24 dev flannel.1", ("address 10.6.0.1/24 on flannel.1: not wanted",)
    ),
    "one neighbour": Damage("ip neighbour delete {base} dev flannel.1", ("neighbour {base} on flannel.1: ",)),
    "a neighbour that is another": Damage(
        "ip neighbour replace {base} lladdr 02:00:00:00:00:07 dev flannel.1 nud permanent",
        ("neighbour {base} on flannel.1: mac 02:00:00:00:00:07, wanted {mac}",),
    ),
    "all neighbours": Damage(
        "ip neighbour flush dev flannel.1 nud permanent", ("neighbour {base} on flannel.1: ",)
    ),
    "a stale neighbour": Damage(
        "ip neighbour add 10.100.77.0 lladdr 02:00:00:00:00:07 dev flannel.1 nud permanent",
        ("neighbour 10.100.77.0 on flannel.1: not wanted",),
    ),
    "one FDB entry": Damage(
        "bridge fdb delete {mac} dev flannel.1", ("FDB entry {mac} on flannel.1: missing",)
    ),
    "an FDB entry that leads elsewhere": Damage(
        "bridge fdb replace {mac} dev flannel.1 dst 10.10.10.77 self permanent",
        ("FDB entry {mac} on flannel.1: destination 10.10.10.77, wanted {address}",),
    ),
    "all FDB entries": Damage("bridge fdb flush dev flannel.1", ("FDB entry {mac} on flannel.1: missing",)),
    "a stale FDB entry": Damage(
        "bridge fdb append 02:00:00:00:00:07 dev flannel.1 dst 10.10.10.77 self permanent",
        ("FDB entry 02:00:00:00:00:07 on flannel.1: not wanted",),
    ),
}

CASES = [
    *(("vxlan", name, damage) for name, damage in {**ROUTES, **DEVICE}.items()),
    *(("host-gw", name, damage) for name, damage in ROUTES.items()),
]


class Network:
    """Three hosts that run one backend."""

    def __init__(self, overlay: Any, backend: str, ping_stream: Callable[..., Any]) -> None:
        self.overlay = overlay
        self.backend = backend
        self.hosts: list[Host] = list(overlay.hosts.values())
        overlay.lab.each(self._join)
        overlay.settle(*self.hosts)
        self.streams = {
            host.name: ping_stream(self.neighbour(host), host.gateway().ip, interval_s=PING_INTERVAL_S)
            for host in self.hosts
        }
        self._victims = itertools.cycle(self.hosts)

    def _join(self, host: Host) -> None:
        host.run(["ip", "-batch", "-"], text=FOREIGN)
        self.overlay.join_without_audits(host)
        bridge = (
            f"link add docker0 type bridge\naddress add {host.gateway()} dev docker0\nlink set docker0 up\n"
        )
        host.run(["ip", "-batch", "-"], text=bridge)

    def neighbour(self, host: Host) -> Host:
        return self.hosts[(self.hosts.index(host) + 1) % len(self.hosts)]

    def next_victim(self) -> Host:
        """The hosts in turn, because flanneld treats many repairs on one host as a fight."""
        return next(self._victims)

    def words(self, host: Host) -> dict[str, str]:
        """The replacement fields for a peer in a damage."""
        peer = self.neighbour(host)
        subnet = peer.lease()
        macs = [link["address"] for link in (*peer.links(), *host.links()) if link["ifname"] == "flannel.1"]
        return {
            "subnet": str(subnet),
            "base": str(subnet.network_address),
            "address": str(peer.address),
            "mac": macs[0] if macs else "",
            "own": macs[-1] if macs else "",
        }

    def state(self, host: Host) -> dict[str, Any]:
        """All network objects of the host, including neighbours and FDB, but without entries of ARP."""
        shown = host.run(["sh", "-c", "ip -json neighbour show nud permanent; bridge -json fdb show"]).stdout
        neighbours, fdb = (json.loads(line or "[]") for line in shown.splitlines())
        state = self.overlay.state(host)
        state["links"]["docker0"]["linkinfo"].pop("info_data", None)  # without the timers of a bridge
        return {
            **state,
            "neighbours": sorted(json.dumps(one) for one in neighbours),
            "fdb": sorted(json.dumps(one) for one in fdb if one.get("ifname") in ("flannel.1", "decoy.9")),
        }

    def wait_as_before(self, host: Host, before: dict[str, Any]) -> None:
        try:
            wait_until(lambda: self.state(host) == before, what=f"{host.name} heals", deadline_s=HEALED_S)
        except LabError:
            assert self.state(host) == before, self.overlay.log(host)[-2000:]

    def stop(self) -> None:
        for stream in self.streams.values():
            stream.stop()


@pytest.fixture(scope="module")
def network_of(make_overlay, ping_stream) -> Iterator[Callable[[str], Network]]:
    """Return the function that returns the network of a backend. The lab of the network exists until its
    tests end.
    """
    made: dict[str, tuple[Network, Lab]] = {}

    def network(backend: str) -> Network:
        if backend not in made:
            lab = Lab(f"heal-{backend}-{os.getpid()}", THREE)
            lab.__enter__()
            try:
                etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
                program = etcd.start()
                etcd.etcdctl("put", f"{PREFIX}/config", make_overlay.config(Backend={"Type": backend}))
                made[backend] = Network(make_overlay(lab, etcd, program), backend, ping_stream), lab
            except BaseException:
                lab.remove()
                raise
        return made[backend][0]

    yield network
    for each, lab in made.values():
        each.stop()
        lab.remove()


@pytest.mark.parametrize(
    ("backend", "damage"),
    [(backend, damage) for backend, _, damage in CASES],
    ids=[f"{backend}: {name}" for backend, name, _ in CASES],
)
def test_damage_is_repaired_logged_and_counted(
    network_of, figures, request, backend: str, damage: Damage
) -> None:
    """Afterwards the whole host is as before, including foreign objects, and packets flow."""
    network = network_of(backend)
    host, overlay = network.next_victim(), network.overlay
    stream, words = network.streams[host.name], network.words(host)
    stream.wait_answered()
    before, said = network.state(host), len(overlay.log(host))
    repairs = overlay.status(host).reconcile.repairs

    began, begun_at = time.monotonic(), time.time()
    host.run(["sh", "-c", damage.words.format(**words)], check=False)
    damaged_s = time.monotonic() - began
    network.wait_as_before(host, before)
    healed_s = time.monotonic() - began

    overlay.wait_logged(host, "Repaired", *(part.format(**words) for part in damage.found), after=said)
    stream.wait_answered()
    assert overlay.wait_ready(host).reconcile.repairs > repairs
    journal = json.loads(host.flannelctl("--json", "events"))["events"]
    repaired = [
        entry["found"] for entry in journal if entry["event"] == "repaired" and entry["at"] > begun_at
    ]
    assert any(damage.found[0].format(**words) in found for found in repaired)
    figures(
        f"{request.node.callspec.id}: as before {healed_s * 1e3:.0f} ms after the command began"
        f" (it took {damaged_s * 1e3:.0f} ms), longest time without an answer"
        f" {stream.longest_gap_s(begun_at - 0.05) * 1e3:.0f} ms"
    )


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_the_underlay_is_set_down_and_up(network_of, backend: str) -> None:
    """The kernel removes the objects on the underlay. The manager of the interface and flanneld each restore
    their own objects.
    """
    network = network_of(backend)
    host = network.next_victim()
    stream = network.streams[host.name]
    before = network.state(host)

    host.run(["ip", "link", "set", "eth0", "down"])
    wait_until(lambda: stream.is_silent_for(0.3), what="no answer", deadline_s=HEALED_S)
    host.run(["ip", "link", "set", "eth0", "up"])
    host.run(["ip", "route", "add", "default", "via", str(LEFT.gateway.ip)])

    network.wait_as_before(host, before)
    stream.wait_answered()
    network.overlay.wait_ready(host)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_the_underlay_is_replaced_by_an_interface_with_its_name(network_of, backend: str) -> None:
    """When a driver is loaded again, the kernel removes all objects on the interface. The index of the link
    changes.
    """
    network = network_of(backend)
    host = network.next_victim()
    before = network.state(host)

    host.run(["ip", "link", "delete", "eth0"])
    plug_in(network.overlay.lab.router, host, host.place)

    def but_for_its_mac(state: dict[str, Any]) -> dict[str, Any]:
        links = {name: link for name, link in state["links"].items() if name != "eth0"}
        routes = [route for route in state["routes"] if "fe80::" not in route]
        addresses = {**state["addresses"], "eth0": None}
        return {**state, "links": links, "addresses": addresses, "routes": routes}

    try:
        wait_until(
            lambda: but_for_its_mac(network.state(host)) == but_for_its_mac(before),
            what=f"{host.name} heals",
            deadline_s=HEALED_S,
        )
    except LabError:
        assert but_for_its_mac(network.state(host)) == but_for_its_mac(before)
    network.streams[host.name].wait_answered()
    network.overlay.wait_ready(host)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_the_default_route_is_moved_and_moved_back(network_of, backend: str) -> None:
    """The underlay in the lease follows the route, and the subnet remains."""
    network = network_of(backend)
    host, overlay = network.next_victim(), network.overlay
    lease, before, said = host.lease(), network.state(host), len(overlay.log(host))

    host.run(["ip", "route", "replace", "default", "via", "10.7.0.2", "dev", "decoy0"])
    overlay.wait_logged(host, "Underlay changed from eth0", after=said)
    host.run(["ip", "route", "replace", "default", "via", str(LEFT.gateway.ip), "dev", "eth0"])

    network.wait_as_before(host, before)
    network.streams[host.name].wait_answered()
    assert host.lease() == lease
