"""The wireguard backend over IPv6 on three hosts, in a network with both families and with IPv6 alone: every
packet crosses the underlay encrypted, in any situation.
"""

import functools
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.ipv6_cluster import (
    NAMES,
    NETWORK,
    Cluster,
    bridge,
    cluster_in,
    create_bridge,
    give_bridge,
    wait_reached,
)
from testlab.overlay import Overlay, PingStream, ipv6_underlay, overlay_in
from testlab.sniffing import SniffedHosts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 60.0
DEVICE = "flannel-wg-v6"
BOTH, IPV6_ALONE = "both families", "IPv6 alone"

_SNIFFER = """
import signal, socket, sys
sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # sent ones too: ETH_P_ALL
sniffer.bind(("eth0", 3))
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
print("sniffing", flush=True)
overlay = bytes.fromhex("fd0000050000")
encrypted_sources = set()
while True:
    packet, origin = sniffer.recvfrom(65536)
    if origin[1] != 0x86dd:
        continue
    source, destination = (socket.inet_ntop(socket.AF_INET6, packet[i : i + 16]) for i in (8, 24))
    if packet[24:30] == overlay:
        print("clear", source, destination, flush=True)
    elif packet[6] == 17 and packet[42:44] == (51821).to_bytes(2, "big") and source not in encrypted_sources:
        encrypted_sources.add(source)
        print("encrypted", source, flush=True)
"""
"""Prints packets on eth0 with an outer destination in the overlay, and the sources of WireGuard's datagrams.

A packet from the overlay to the underlay is no packet between containers: while a host has no other address,
the kernel sends its own packets from the address of the bridge.
"""


class Network(SniffedHosts):
    """Three hosts with a bridge of containers each, and a sniffer on each underlay since before they joined.

    Attributes:
        cluster: the cluster of a network with IPv6 alone; None in a network with both families.
    """

    def __init__(self, overlay: Overlay, cluster: Cluster | None) -> None:
        super().__init__([overlay.hosts[name] for name in NAMES], _SNIFFER)
        self.overlay = overlay
        self.cluster = cluster
        together([functools.partial(self.join, host) for host in self.hosts])
        wait_reached(*self.hosts)

    def join(self, host: Host) -> None:
        """Start flanneld, and give the bridge its address."""
        if self.cluster is not None:
            self.cluster.join(host)
        else:
            self.overlay.join(host)
            give_bridge(host)

    @contextmanager
    def pings(self, host: Host, interval_s: float = 0.01) -> Iterator[tuple[PingStream, PingStream]]:
        """Ping between a host and its neighbour, in both directions, with addresses of containers."""
        ends = [bridge(one).ip for one in (host, self.neighbour(host))]
        with (
            PingStream(host, ends[1], interval_s=interval_s, options=["-I", str(ends[0])]) as there,
            PingStream(
                self.neighbour(host), ends[0], interval_s=interval_s, options=["-I", str(ends[1])]
            ) as back,
        ):
            there.wait_answered()
            back.wait_answered()
            yield there, back

    def key(self, host: Host) -> str:
        return host.run(["wg", "show", DEVICE, "public-key"]).stdout.strip()

    def state(self, host: Host) -> list[str]:
        """Return the addresses and the routes of the device, its port, and the subnets of its peers."""
        shown = (
            f"ip -6 -o address show dev {DEVICE} scope global | sed 's/^[0-9]*: //';"
            f" ip -6 route show proto 80; wg show {DEVICE} listen-port; wg show {DEVICE} allowed-ips"
        )
        return sorted(host.run(["sh", "-c", shown], check=False).stdout.splitlines())


@pytest.fixture(scope="module", params=[BOTH, IPV6_ALONE])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    with overlay_in("wg-six") as overlay:
        if request.param == IPV6_ALONE:
            with cluster_in(overlay) as cluster:
                cluster.configure("wireguard")
                yield Network(overlay, cluster)
            return
        hosts = [overlay.hosts[name] for name in NAMES]
        overlay.give_ipv6(*hosts)
        for host in hosts:
            create_bridge(host)
        backend = {"Type": "wireguard"}
        config = Overlay.config(EnableIPv6=True, IPv6Network=str(NETWORK), Backend=backend)
        overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)
        yield Network(overlay, None)


def test_no_unencrypted_packet_is_on_the_underlay_while_hosts_join(network: Network) -> None:
    wait_reached(*network.hosts)

    for host in network.hosts:
        assert f"encrypted {ipv6_underlay(host).ip}" in network.sniffed(host)
    assert network.unencrypted() == []


DAMAGE = {
    "peer removed": f"wg set {DEVICE} peer {{peer}} remove",
    "subnet taken from a peer": f"wg set {DEVICE} peer {{peer}} allowed-ips fd00:7::/64",
    "port": f"wg set {DEVICE} listen-port 5555",
    "route": f"ip -6 route delete {NETWORK} dev {DEVICE}",
    "address": f"ip -6 address flush dev {DEVICE} scope global",
    "device down": f"ip link set {DEVICE} down",
    "device deleted": f"ip link delete {DEVICE}",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_repaired_and_no_packet_crosses_unencrypted(network: Network, name: str) -> None:
    host = network.next_victim()
    peer = network.key(network.neighbour(host))
    before, said = network.state(host), len(network.overlay.log(host))

    with network.pings(host) as (there, back):
        host.run(["sh", "-c", DAMAGE[name].format(peer=peer)])
        wait_until(lambda: network.state(host) == before, what=f"{host.name} heals", deadline_s=SOON_S)
        network.overlay.wait_logged(host, "Repaired", after=said)
        there.wait_answered()
        back.wait_answered()

    assert network.unencrypted() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_restart_of_flanneld_adopts_the_device_and_loses_no_packet(network: Network, number: int) -> None:
    host, overlay = network.next_victim(), network.overlay
    key, before, said = network.key(host), network.state(host), len(overlay.log(host))

    with network.pings(host) as (there, back):
        overlay.daemons[host.name].send(number)
        overlay.daemons[host.name].wait()
        there.wait_answered()
        network.join(host)
        there.wait_answered()
        back.wait_answered()

    assert (there.lost(), back.lost()) == ([], [])
    assert (network.key(host), network.state(host)) == (key, before)
    assert "Repaired" not in overlay.log(host)[said:]
    assert network.unencrypted() == []


def test_a_rotation_of_the_key_loses_no_packet(network: Network) -> None:
    host = network.next_victim()
    old = network.key(host)

    with network.pings(host, interval_s=0.05) as (there, back):
        new = host.flannelctl("rotate-key").strip()
        there.wait_answered()
        back.wait_answered()

    assert (there.lost(), back.lost()) == ([], [])
    assert network.key(host) == new != old
    for other in network.hosts:
        if other is not host:
            wait_until(
                lambda other=other: (
                    new in (keys := other.run(["wg", "show", DEVICE, "peers"]).stdout) and old not in keys
                ),
                what=f"the new key on {other.name}",
                deadline_s=SOON_S,
            )
    assert network.unencrypted() == []


def test_without_its_store_a_host_continues_to_encrypt_and_keeps_its_key(network: Network) -> None:
    """Flanneld is killed, and starts again while the store is unreachable."""
    host, overlay, cluster = network.next_victim(), network.overlay, network.cluster
    key, said = network.key(host), len(overlay.log(host))
    known = host.directory / "var/lib/flannel/last-known.json"
    wait_until(known.exists, what="the last known leases", deadline_s=SOON_S)

    with network.pings(host) as (there, back):
        overlay.daemons[host.name].kill()
        if cluster is None:
            overlay.etcd_program.kill()
            overlay.daemons[host.name] = host.launch_flanneld(f"--store={overlay.etcd.url}")
        else:
            cluster.api.server.failure = 503, "the cluster is off"
            cluster.api.do(cluster.api.server.end_watches())
            overlay.daemons[host.name] = host.launch_flanneld(
                "--kube-subnet-mgr",
                f"--kubeconfig-file={cluster.kubeconfig}",
                f"--net-config-path={cluster.config}",
                environment={"NODE_NAME": host.name},
            )
        overlay.wait_logged(host, "starting with the last known", after=said)
        there.wait_answered()
        back.wait_answered()
    if cluster is None:
        overlay.etcd_program = overlay.etcd.start()
    else:
        cluster.api.server.failure = None
    overlay.wait_ready(host)

    assert (there.lost(), back.lost()) == ([], [])
    assert network.key(host) == key
    assert network.unencrypted() == []


def test_the_tunnel_follows_the_ipv6_address_of_a_host(network: Network) -> None:
    """The address changes, and changes back. The subnet stays."""
    host = network.next_victim()
    subnet, old, new = bridge(host), str(ipv6_underlay(host)), "fd07:1::d4/64"
    if host.name == NAMES[2]:
        new = "fd07:2::d4/64"

    with network.pings(host, interval_s=0.05) as (there, back):
        for before, after in ((old, new), (new, old)):
            gateway = ipv6_underlay(host).network[0xFE]
            batch = f"address delete {before} dev eth0\naddress add {after} dev eth0 nodad\n"
            host.run(["ip", "-batch", "-"], text=f"{batch}route replace default via {gateway}\n")
            endpoint = f"[{after.partition('/')[0]}]:51821"
            for other in network.hosts:
                if other is not host:
                    wait_until(
                        lambda other=other, endpoint=endpoint: (
                            endpoint in other.run(["wg", "show", DEVICE, "endpoints"]).stdout
                        ),
                        what=f"{other.name} sends to {after}",
                        deadline_s=SOON_S,
                    )
            there.wait_answered()
            back.wait_answered()

    assert bridge(host) == subnet
    assert network.unencrypted() == []


def test_peers_learn_no_endpoint_in_the_overlay(network: Network) -> None:
    """The only address of a host is missing, and it sends its encrypted packets from the address of the
    bridge. A peer that answers such a packet would send to its own device.
    """
    host = network.next_victim()
    other, address = network.neighbour(host), str(ipv6_underlay(host))

    with network.pings(host, interval_s=0.05) as (there, back):
        host.run(["ip", "address", "delete", address, "dev", "eth0"])
        wait_until(
            lambda: f"encrypted {bridge(host).ip}" in network.sniffed(other),
            what=f"a packet to {other.name} from the bridge of {host.name}",
            deadline_s=SOON_S,
        )
        wait_until(lambda: back.is_silent_for(0.5), what="no answer", deadline_s=SOON_S)
        endpoints = other.run(["wg", "show", DEVICE, "endpoints"]).stdout
        gateway = ipv6_underlay(host).network[0xFE]
        batch = f"address add {address} dev eth0 nodad\nroute replace default via {gateway}\n"
        host.run(["ip", "-batch", "-"], text=batch)
        there.wait_answered()
        back.wait_answered()

    assert "[fd07:" in endpoints
    assert "[fd00:5:" not in endpoints
    assert network.unencrypted() == []


def test_unencrypted_packets_from_outside_are_not_delivered(network: Network) -> None:
    """The host would answer an echo that it receives."""
    host, router = network.hosts[0], network.overlay.lab.router
    route = [str(bridge(host).network), "via", str(ipv6_underlay(host).ip)]
    router.run(["ip", "route", "add", *route])
    try:
        found = router.run(["ping", "-n", "-c20", "-i0.01", "-W1", str(bridge(host).ip)], check=False).stdout
    finally:
        router.run(["ip", "route", "delete", *route])

    assert "20 packets transmitted, 0 received" in found
    for each in network.hosts:  # the sniffers captured these pings
        network.ignored[each.name] = len(network.sniffed(each))


def test_a_cleanup_drops_later_packets_of_containers(network: Network) -> None:
    host = network.hosts[0]
    command = ["flannelctl", "cleanup", "--yes", "--json"]
    if (cluster := network.cluster) is not None:
        variables = [
            "FLANNELD_KUBE_SUBNET_MGR=true",
            f"FLANNELD_KUBECONFIG_FILE={cluster.kubeconfig}",
            f"FLANNELD_NET_CONFIG_PATH={cluster.config}",
            f"NODE_NAME={host.name}",
        ]
        command = ["env", *variables, *command]

    with network.pings(host) as (there, _):
        report: dict[str, Any] = json.loads(host.run(command).stdout)
        wait_until(lambda: there.is_silent_for(0.3), what="no answer", deadline_s=SOON_S)

    assert report["problems"] == []
    assert any("would otherwise send unencrypted packets" in line for line in report["kept"])
    assert network.unencrypted() == []
    assert f"blackhole {NETWORK}" in host.run(["ip", "-6", "route", "show"]).stdout
    assert DEVICE not in {link["ifname"] for link in host.links()}

    host.run(["ip", "link", "delete", "br7"])
    host.run(command)
    assert "blackhole" not in host.run(["ip", "-6", "route", "show"]).stdout
