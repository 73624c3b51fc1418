"""Forged tunnel packets are dropped, regardless of the sender; those of members pass."""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from pyflannel.model.status import Status
from testlab.forged_packets import datagram, vxlan_payload

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
PORT = 7000
COUNT = 20
OF_NOBODY = "10.100.99.9"

LISTENER = """
    import socket, sys
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", int(sys.argv[1])))
    print("ready", flush=True)
    while True:
        print("forged" if b"forged" in sock.recv(2000) else "right", flush=True)
"""
SENDER = """
    import os, socket, sys
    to, port, count, payload, uid = sys.argv[1:]
    os.setuid(int(uid))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(int(count)):
        try:
            sock.sendto(bytes.fromhex(payload), (to, int(port)))
        except PermissionError:
            pass  # so the kernel tells a local sender that a rule drops its packet
"""
RAW_SENDER = """
    import socket, sys
    count, packet = sys.argv[1:]
    data = bytes.fromhex(packet)
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for _ in range(int(count)):
        sock.sendto(data, (socket.inet_ntoa(data[16:20]), 0))
"""


def python(script: str, *words: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(script), *map(str, words)]


@dataclass
class Network:
    """Three hosts of one network, a container on each, and the packets of its tunnel.

    Attributes:
        port: port of the tunnel.
        other: a second container of the first host.
    """

    overlay: Any
    kind: str
    port: int
    hosts: tuple[Host, ...]
    containers: tuple[NamespaceContainer, ...]
    other: NamespaceContainer

    def frame(self, source: object, receiver: int, payload: bytes = b"forged") -> bytes:
        """Return the payload of a tunnel datagram with a packet for a host's container."""
        packet = datagram(source, self.containers[receiver].address, PORT, payload)
        if self.kind == "udp":
            return packet
        links = {link["ifname"]: link.get("address") for link in self.hosts[receiver].links()}
        return vxlan_payload(packet, links["flannel.1"])

    def received(self, receiver: int, attack: Callable[[], object]) -> int:
        """Return how many forged packets reach a host's container."""
        container = self.containers[receiver]
        right = python(SENDER, container.address, PORT, 1, b"right".hex(), 0)
        return received(
            self.hosts[receiver],
            ["nsenter", f"--net=/run/netns/{container.name}", "--"],
            PORT,
            attack,
            lambda: self.containers[(receiver + 2) % 3].run(right),
        )


def received(
    host: Host, into: Sequence[str], port: int, attack: Callable[[], object], right: Callable[[], object]
) -> int:
    """Return how many forged packets a listener behind `into` receives between two valid ones."""
    log = host.directory / "log/listener.log"
    before = len(log.read_text()) if log.exists() else 0
    listener = host.start([*into, *python(LISTENER, port)], name="listener")

    def lines() -> list[str]:
        return log.read_text()[before:].splitlines() if log.exists() else []

    def receives_valid() -> bool:
        count = lines().count("right")
        right()
        return lines().count("right") > count

    try:
        wait_until(lambda: "ready" in lines(), what="the listener", deadline_s=DEADLINE_S)
        wait_until(receives_valid, what="a right packet", deadline_s=DEADLINE_S)
        attack()
        wait_until(receives_valid, what="another right packet", deadline_s=DEADLINE_S)
        return lines().count("forged")
    finally:
        listener.kill()


Behind = Callable[[Sequence[str]], object]


@pytest.fixture(scope="module")
def joined(overlay) -> tuple[tuple[Host, ...], tuple[NamespaceContainer, ...], NamespaceContainer]:
    """Three hosts without a reverse path filter, a container on each, and a second one on the first."""
    overlay.set_backend("vxlan")
    hosts = tuple(overlay.hosts[name] for name in ("docker1", "docker2", "docker3"))
    for host in hosts:
        host.run(["sh", "-c", "for each in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$each; done"])
        overlay.daemons[host.name] = host.start_flanneld(f"--store={overlay.etcd.url}", "--ip-masq")
    overlay.settle(*hosts)
    other = hosts[0].container("other", gateway=hosts[0].gateway(), number=3, mtu=1400)
    containers = tuple(host.container(f"c-{host.name}", gateway=host.gateway(), mtu=1400) for host in hosts)
    return hosts, containers, other


@pytest.fixture(scope="module", params=[("vxlan", 8472), ("udp", 8285)], ids=["vxlan", "udp"])
def network(overlay, joined, request) -> Network:
    kind, port = request.param
    overlay.set_backend(kind)

    def has_switched(status: Status) -> bool:
        return status.is_ready and status.backend is not None and status.backend.type == kind

    for host in joined[0]:
        overlay.wait_status(host, has_switched, f"has the backend {kind}")
        overlay.wait_status(host, lambda status: status.peers >= 2, "knows the others")
        if kind != "host-gw":
            rule, shown = f"udp dport {port} ", ["nft", "list", "table", "ip", "flannel-guard"]
            wait_until(
                lambda host=host, rule=rule, shown=shown: rule in host.run(shown).stdout,
                what=f"{host.name} has the guard of {kind}",
                deadline_s=DEADLINE_S,
            )
    return Network(overlay, kind, port, *joined)


def test_a_container_without_capabilities(network: Network) -> None:
    """With the host's masquerading, its datagrams would have a member's address."""
    source = network.containers[0].address
    attack = python(
        SENDER, network.hosts[1].address, network.port, COUNT, network.frame(source, 1).hex(), 65534
    )

    assert network.received(1, lambda: network.containers[0].run(attack)) == 0


def test_a_container_without_capabilities_to_its_own_host(network: Network) -> None:
    gateway = network.hosts[0].gateway().ip

    def attack() -> None:
        for address in (network.hosts[0].address, gateway):
            words = python(SENDER, address, network.port, COUNT, network.frame(OF_NOBODY, 0).hex(), 65534)
            network.other.run(words)

    assert network.received(0, attack) == 0


def test_a_container_through_a_translated_address(network: Network) -> None:
    host = network.hosts[0]
    to = f"{network.hosts[1].address}:{network.port}"
    rule = ["-d", "192.0.2.53", "-p", "udp", "--dport", "53", "-j", "DNAT", "--to-destination", to]
    host.run(["iptables", "-t", "nat", "-A", "PREROUTING", *rule])
    source = network.containers[0].address
    attack = python(SENDER, "192.0.2.53", 53, COUNT, network.frame(source, 1).hex(), 65534)

    received = network.received(1, lambda: network.containers[0].run(attack))
    host.run(["iptables", "-t", "nat", "-D", "PREROUTING", *rule])
    assert received == 0


def test_a_container_that_forges_a_members_address(network: Network) -> None:
    member, victim = network.hosts[2], network.hosts[1]
    frame = network.frame(network.containers[2].address, 1)
    packet = datagram(member.address, victim.address, network.port, frame)

    received = network.received(1, lambda: network.containers[0].run(python(RAW_SENDER, COUNT, packet.hex())))
    assert received == 0


def test_a_container_that_forges_another_hosts_containers_address(network: Network) -> None:
    packet = datagram(network.containers[2].address, network.containers[1].address, PORT, b"forged")

    received = network.received(1, lambda: network.containers[0].run(python(RAW_SENDER, COUNT, packet.hex())))
    assert received == 0


def test_a_local_user_without_rights(network: Network) -> None:
    source = network.containers[0].address
    attack = python(
        SENDER, network.hosts[1].address, network.port, COUNT, network.frame(source, 1).hex(), 65534
    )

    assert network.received(1, lambda: network.hosts[0].run(attack)) == 0


def test_a_local_user_without_rights_may_use_the_overlay(network: Network) -> None:
    attack = python(SENDER, network.containers[1].address, PORT, COUNT, b"forged".hex(), 65534)

    assert network.received(1, lambda: network.hosts[0].run(attack)) == COUNT


def test_a_host_of_the_underlay_without_a_lease(network: Network) -> None:
    stranger = network.overlay.hosts["docker4"]
    attack = python(
        SENDER, network.hosts[1].address, network.port, COUNT, network.frame(OF_NOBODY, 1).hex(), 0
    )

    assert network.received(1, lambda: stranger.run(attack)) == 0
    if network.kind == "udp":  # the kernel drops them, so a flood costs the forwarder nothing
        forwarder = network.overlay.status(network.hosts[1]).forwarder
        assert forwarder.counters["dropped_in_stranger"] == 0


def test_a_host_of_the_underlay_with_bare_packets(network: Network) -> None:
    """They have a container's source. The stranger uses the victim as its gateway."""
    stranger, victim = network.overlay.hosts["docker4"], network.containers[2]
    packet = datagram(network.containers[0].address, victim.address, PORT, b"forged")
    stranger.run(["ip", "route", "add", str(victim.address), "via", str(network.hosts[2].address)])

    received = network.received(2, lambda: stranger.run(python(RAW_SENDER, COUNT, packet.hex())))
    stranger.run(["ip", "route", "delete", str(victim.address)])
    assert received == 0


def test_a_member_with_anothers_inner_source(network: Network) -> None:
    frame = network.frame(network.containers[0].address, 1)
    attack = python(SENDER, network.hosts[1].address, network.port, COUNT, frame.hex(), 0)

    assert network.received(1, lambda: network.hosts[2].run(attack)) == 0


# A similar, but valid packet passes.


@pytest.fixture(scope="module")
def behind(network: Network) -> Iterator[Behind]:
    """A machine behind the first host, on a separate link: a nested host, a guest, a routed member."""
    host, name = network.hosts[0], "behind"
    host.run(["ip", "netns", "add", name])
    lines = [
        "link add b-behind type bridge",
        "link set b-behind up",
        "address add 172.30.0.1/24 dev b-behind",
        f"link add v-behind type veth peer name eth0 netns {name}",
        "link set v-behind master b-behind up",
    ]
    host.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")
    inside = ["address add 172.30.0.2/24 dev eth0", "link set eth0 up", "route add default via 172.30.0.1"]
    host.run(["ip", "-netns", name, "-batch", "-"], text="\n".join(inside) + "\n")
    key = f"{PREFIX}/subnets/10.100.200.0-28"
    lease = {"PublicIP": "172.30.0.2"}
    if network.kind == "vxlan":
        data = {"VNI": 1, "VtepMAC": "0e:00:00:00:00:99"}
        lease |= {"BackendType": "vxlan", "BackendData": data}
    network.overlay.etcd.etcdctl("put", key, json.dumps(lease))
    for each in network.hosts:
        network.overlay.wait_status(each, lambda status: status.peers == 3, "knows the machine behind")
        network.overlay.settle(each)
    yield lambda argv: host.run(["nsenter", "--net=/run/netns/behind", "--", *argv])
    network.overlay.etcd.etcdctl("del", key)
    host.run(["ip", "link", "delete", "b-behind"])
    host.run(["ip", "netns", "delete", name])


def test_a_member_behind_another_member(network: Network, behind: Behind) -> None:
    """The host's route to it uses the interface that receives its datagrams."""
    frame = network.frame("10.100.200.5", 1)
    right = python(SENDER, network.hosts[1].address, network.port, COUNT, frame.hex(), 0)

    assert network.received(1, lambda: behind(right)) == COUNT


def test_a_member_behind_another_member_that_forges_a_members_address(
    network: Network, behind: Behind
) -> None:
    member, victim = network.hosts[2], network.hosts[1]
    frame = network.frame(network.containers[2].address, 1)
    packet = datagram(member.address, victim.address, network.port, frame)

    assert network.received(1, lambda: behind(python(RAW_SENDER, COUNT, packet.hex()))) == 0


def test_datagrams_to_a_member_behind_another_member(network: Network, behind: Behind) -> None:
    """They pass through the first host, which drops those of strangers."""
    first, second = network.hosts[0], network.hosts[1]
    into = ["nsenter", "--net=/run/netns/behind", "--"]
    stranger = network.overlay.hosts["docker4"]
    for host, via in ((second, first.address), (stranger, "192.168.50.1")):
        host.run(["ip", "route", "replace", "172.30.0.0/24", "via", str(via)])
    network.overlay.lab.router.run(["ip", "route", "replace", "172.30.0.0/24", "via", str(first.address)])
    words = "172.30.0.2", network.port
    right = network.frame(network.containers[1].address, 1, b"right")
    forged = network.frame(OF_NOBODY, 1)

    count = received(
        first,
        into,
        network.port,
        lambda: stranger.run(python(SENDER, *words, COUNT, forged.hex(), 0)),
        lambda: second.run(python(SENDER, *words, 1, right.hex(), 0)),
    )
    assert count == 0


def test_a_published_tunnel_port(network: Network) -> None:
    """A service of a container that uses the port of the tunnel: the datagrams are for no host."""
    host, container = network.hosts[0], network.containers[0]
    client = network.overlay.hosts["docker4"]
    rule = ["-d", str(host.address), "-s", str(client.address), "-p", "udp", "--dport", str(network.port)]
    rule += ["-j", "DNAT", "--to-destination", f"{container.address}:{network.port}"]
    host.run(["iptables", "-t", "nat", "-A", "PREROUTING", *rule])
    ask = [python(SENDER, host.address, network.port, 1, word.hex(), 0) for word in (b"forged", b"right")]

    count = received(
        host,
        ["nsenter", f"--net=/run/netns/{container.name}", "--"],
        network.port,
        lambda: client.run(ask[0]),
        lambda: client.run(ask[1]),
    )
    host.run(["iptables", "-t", "nat", "-D", "PREROUTING", *rule])
    assert count == 1


def test_senders_of_dropped_packets_are_reported(network: Network) -> None:
    stranger, victim = network.overlay.hosts["docker4"], network.hosts[1]
    attack = python(SENDER, victim.address, network.port, COUNT, network.frame(OF_NOBODY, 1).hex(), 0)

    network.received(1, lambda: stranger.run(attack))

    def is_named(status: Status) -> bool:
        return any(one.address == stranger.address and one.reason == "stranger" for one in status.strangers)

    network.overlay.wait_status(victim, is_named, "names the stranger")


@pytest.mark.parametrize("network", [("host-gw", 0)], indirect=True)
def test_packets_of_other_hosts_containers_with_host_gw(network: Network) -> None:
    packet = datagram(network.containers[2].address, network.containers[1].address, PORT, b"forged")

    assert (
        network.received(1, lambda: network.containers[0].run(python(RAW_SENDER, COUNT, packet.hex()))) == 0
    )


def test_both_tunnels_are_guarded_during_a_change_of_the_backend(overlay, joined) -> None:
    """A host that does not follow keeps the previous tunnel open, with the same checks, over a crash too."""
    data = {"VNI": 1, "VtepMAC": "0e:00:00:00:00:66"}
    lease = json.dumps({"PublicIP": "10.10.10.66", "BackendType": "vxlan", "BackendData": data})
    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/10.100.200.0-28", lease)
    hosts, containers, other = joined
    for kind in ("vxlan", "udp"):
        overlay.set_backend(kind)
        for host in hosts:
            key = f"{PREFIX}/subnets/{str(host.lease()).replace('/', '-')}"
            wait_until(
                lambda key=key, kind=kind: (
                    json.loads(overlay.etcd.etcdctl("get", "--print-value-only", key)).get(
                        "BackendType", "udp"
                    )
                    == kind
                ),
                what=f"{host.name} publishes {kind}",
                deadline_s=DEADLINE_S,
            )

    for kind, port in (("udp", 8285), ("vxlan", 8472)):
        network = Network(overlay, kind, port, hosts, containers, other)
        source = containers[0].address
        attack = python(SENDER, hosts[1].address, port, COUNT, network.frame(source, 1).hex(), 65534)
        assert network.received(1, lambda attack=attack: containers[0].run(attack)) == 0
        packet = datagram("10.10.10.77", hosts[1].address, port, network.frame(containers[2].address, 1))
        stranger = python(RAW_SENDER, COUNT, packet.hex())
        assert network.received(1, lambda stranger=stranger: overlay.lab.router.run(stranger)) == 0
    status = overlay.status(hosts[0])
    assert status.backend is not None
    assert any("also receives packets by vxlan with VNI 1" in note for note in status.backend.notes)
    assert "These hosts have not changed the backend yet: 10.10.10.66" in status.backend.notes
    overlay.daemons[hosts[0].name].kill()
    overlay.daemons[hosts[0].name] = hosts[0].start_flanneld(f"--store={overlay.etcd.url}", "--ip-masq")
    resumed = overlay.wait_ready(hosts[0])
    assert resumed.backend is not None
    assert any("also receives packets by vxlan with VNI 1" in note for note in resumed.backend.notes)
    assert "These hosts have not changed the backend yet: 10.10.10.66" in resumed.backend.notes
    overlay.etcd.etcdctl("del", f"{PREFIX}/subnets/10.100.200.0-28")
