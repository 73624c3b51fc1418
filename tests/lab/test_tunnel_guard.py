"""Forged tunnel packets are dropped, regardless of the sender; valid packets of members pass."""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, IPv6Network
from typing import Any

import pytest

from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from pyflannel.model.network_config import Family, IpAddress
from pyflannel.model.status import Status
from testlab.forged_packets import datagram, fragments, vxlan_payload, with_options
from testlab.ipv6_cluster import NAMES, Cluster, Ipv6Container, cluster_in, wait_reached
from testlab.overlay import ipv6_underlay, overlay_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
PORT = 7000
COUNT = 20
IPV6_NETWORK = "fd00:5::/48"
OF_NOBODY = {4: "10.100.99.9", 6: "fd00:5:0:99::9"}
TRANSLATED = {4: "192.0.2.53", 6: "2001:db8::53"}
BEHIND = {4: IPv4Interface("172.30.0.1/24"), 6: IPv6Interface("fd07:30::1/64")}
OF_BEHIND = {4: "10.100.200.5", 6: "fd00:5:0:c800::5"}
KEY_OF_BEHIND = {4: "10.100.200.0-28", 6: "10.100.200.0-28&fd00:5:0:c800::-64"}
IPTABLES = {4: "iptables", 6: "ip6tables"}

LISTENER = """
    import socket, sys
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)  # of both families
    sock.bind(("", int(sys.argv[1])))
    print("ready", flush=True)
    while True:
        print("forged" if b"forged" in sock.recv(2000) else "right", flush=True)
"""
SENDER = """
    import os, socket, sys
    to, port, count, payload, uid = sys.argv[1:]
    os.setuid(int(uid))
    sock = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM)
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
    family, ends = (socket.AF_INET, data[16:20]) if data[0] >> 4 == 4 else (socket.AF_INET6, data[24:40])
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for _ in range(int(count)):
        sock.sendto(data, (socket.inet_ntop(family, ends), 0))
"""


def python(script: str, *words: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(script), *map(str, words)]


@dataclass
class Network:
    """Three hosts of one network, a container on each, and the packets of its tunnel.

    Attributes:
        family: the address family of the tunnel and of its packets.
        port: port of the tunnel.
        other: a second container of the first host.
        cluster: the cluster of a network with IPv6 alone.
    """

    overlay: Any
    kind: str
    family: Family
    port: int
    hosts: tuple[Host, ...]
    containers: tuple[NamespaceContainer | Ipv6Container, ...]
    other: NamespaceContainer | Ipv6Container
    cluster: Cluster | None = None

    def underlay(self, host: Host) -> IpAddress:
        """Return the address of a host on the underlay."""
        return host.address if self.family == 4 else ipv6_underlay(host).ip

    def gateway(self, number: int) -> IpAddress:
        """Return the address of a host on its bridge."""
        host = self.hosts[number]
        return host.gateway().ip if self.family == 4 else ipv6_gateway(host).ip

    def inside(self, number: int) -> IpAddress:
        """Return the address of a host's container."""
        return (
            self.containers[number].address
            if self.family == 4
            else ipv6_gateway(self.hosts[number]).network[2]
        )

    def frame(self, source: object, receiver: int, payload: bytes = b"forged") -> bytes:
        """Return the payload of a tunnel datagram with a packet for a host's container."""
        packet = datagram(source, self.inside(receiver), PORT, payload)
        if self.kind == "udp":
            return packet
        links = {link["ifname"]: link.get("address") for link in self.hosts[receiver].links()}
        return vxlan_payload(packet, links["flannel.1" if self.family == 4 else "flannel-v6.1"])

    def to_tunnel(self, receiver: int, frame: bytes, uid: int) -> list[str]:
        """Return the command of a user that sends a frame to the tunnel port of a host."""
        return python(SENDER, self.underlay(self.hosts[receiver]), self.port, COUNT, frame.hex(), uid)

    def translation(self, act: str, *match: object, to: object, port: int) -> list[str]:
        """Return the command that adds (`-A`) or deletes (`-D`) a translation of destinations."""
        end = f"{to}:{port}" if self.family == 4 else f"[{to}]:{port}"
        words = ["-t", "nat", act, "PREROUTING", *map(str, match), "-j", "DNAT", "--to-destination", end]
        return [IPTABLES[self.family], *words]

    def received(self, receiver: int, attack: Callable[[], object]) -> int:
        """Return the number of forged packets that reach a host's container."""
        container = self.containers[receiver]
        right = python(SENDER, self.inside(receiver), PORT, 1, b"right".hex(), 0)
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
    """Return the number of forged packets that a listener behind `into` receives between two valid
    packets.
    """
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
        wait_until(receives_valid, what="a valid packet", deadline_s=DEADLINE_S)
        attack()
        wait_until(receives_valid, what="another valid packet", deadline_s=DEADLINE_S)
        return lines().count("forged")
    finally:
        listener.kill()


Behind = Callable[[Sequence[str]], object]


@pytest.fixture(scope="module")
def joined(overlay) -> tuple[tuple[Host, ...], tuple[NamespaceContainer, ...], NamespaceContainer]:
    """Three hosts without a reverse path filter, a container on each, and a second container on the first
    host.
    """
    overlay.set_backend("vxlan")
    hosts = tuple(overlay.hosts[name] for name in ("docker1", "docker2", "docker3"))
    overlay.give_ipv6(*hosts, overlay.hosts["docker4"])
    for host in hosts:
        host.run(["sh", "-c", "for each in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$each; done"])
        overlay.daemons[host.name] = host.start_flanneld(f"--store={overlay.etcd.url}", "--ip-masq")
    overlay.settle(*hosts)
    other = hosts[0].container("other", gateway=hosts[0].gateway(), number=3, mtu=1400)
    containers = tuple(host.container(f"c-{host.name}", gateway=host.gateway(), mtu=1400) for host in hosts)
    return hosts, containers, other


def ipv6_gateway(host: Host) -> IPv6Interface:
    return IPv6Interface(host.subnet_env()["FLANNEL_IPV6_SUBNET"])


def add_ipv6_addresses(hosts: tuple[Host, ...], containers: tuple[NamespaceContainer, ...]) -> None:
    """Give the bridges and the containers addresses of the IPv6 subnets."""
    for host in hosts:
        host.run(["ip", "address", "replace", str(ipv6_gateway(host)), "dev", "br0", "nodad"])
    *first, other = containers
    for host, container, number in (
        *((host, one, 2) for host, one in zip(hosts, first, strict=True)),
        (hosts[0], other, 3),
    ):
        gateway = ipv6_gateway(host)
        address = f"{gateway.network[number]}/{gateway.network.prefixlen}"
        inside = f"address replace {address} dev eth0 nodad\nroute replace default via {gateway.ip}\n"
        host.run(["ip", "-netns", container.name, "-batch", "-"], text=inside)


NETWORKS = {
    "vxlan": ("vxlan", 4, 8472),
    "udp": ("udp", 4, 8285),
    "vxlan over IPv6": ("vxlan", 6, 8472),
}
IPV6_ALONE = "vxlan with IPv6 alone"


@pytest.fixture(scope="module", params=[*NETWORKS.values(), "vxlan"], ids=[*NETWORKS, IPV6_ALONE])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """The parameter is the kind, the family and the port, or only the kind in a network with IPv6 alone."""
    if isinstance(request.param, str):
        with network_with_ipv6_alone(request.param) as made:
            yield made
    else:
        overlay, joined = (request.getfixturevalue(name) for name in ("overlay", "joined"))
        yield network_of(overlay, joined, *request.param)


@contextmanager
def network_with_ipv6_alone(kind: str) -> Iterator[Network]:
    """Create the network of a Kubernetes cluster, whose hosts have no IPv4 address."""
    with overlay_in("guardsix") as overlay, cluster_in(overlay) as cluster:
        hosts = tuple(overlay.hosts[name] for name in NAMES)
        port = 8472 if kind == "vxlan" else 0
        overlay.give_ipv6(overlay.hosts["docker4"])
        cluster.configure(kind)
        cluster.join(*hosts)
        overlay.settle(*hosts)
        wait_reached(*(hosts if kind == "vxlan" else hosts[:2]))  # the third host is behind the router
        for host in hosts if port else ():
            wait_guarded(host, 6, port)
        other = Ipv6Container(hosts[0], "other", number=3)
        containers = tuple(Ipv6Container(host, f"c-{host.name}") for host in hosts)
        yield Network(overlay, kind, 6, port, hosts, containers, other, cluster)


def network_of(overlay: Any, joined: Any, kind: str, family: Family, port: int) -> Network:
    """Return the network of the hosts with a store in etcd, after they have switched to a backend."""
    hosts, containers, other = joined
    ipv6 = {"EnableIPv6": True, "IPv6Network": IPV6_NETWORK} if family == 6 else {}
    config = overlay.config(SubnetLen=28, Backend={"Type": kind}, **ipv6)
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)

    def has_switched(status: Status) -> bool:
        return status.is_ready and status.backend is not None and status.backend.type == kind

    for host in hosts:
        overlay.wait_status(host, has_switched, f"has the backend {kind}")
        overlay.wait_status(host, lambda status: status.peers >= 2, "knows the others")
        if kind != "host-gw":
            wait_guarded(host, family, port)
        if family == 6:
            wait_until(
                lambda host=host: "FLANNEL_IPV6_SUBNET" in host.subnet_env(),
                what=f"{host.name} has an IPv6 subnet",
                deadline_s=DEADLINE_S,
            )
    if family == 6:
        add_ipv6_addresses(hosts, (*containers, other))
    return Network(overlay, kind, family, port, *joined)


def wait_guarded(host: Host, family: Family, port: int) -> None:
    """Wait until the host has the guard of the tunnel."""
    rule, shown = (
        f"th dport {port} ",
        ["nft", "list", "table", "ip" if family == 4 else "ip6", "flannel-guard"],
    )
    wait_until(
        lambda: rule in host.run(shown, check=False).stdout,
        what=f"{host.name} has the guard of the port {port}",
        deadline_s=DEADLINE_S,
    )


def test_the_guard_drops_datagrams_of_a_container_without_capabilities(network: Network) -> None:
    """The host may masquerade its datagrams, which then have the address of a member."""
    attack = network.to_tunnel(1, network.frame(network.inside(0), 1), 65534)

    assert network.received(1, lambda: network.containers[0].run(attack)) == 0


def test_the_guard_drops_datagrams_of_a_container_to_its_own_host(network: Network) -> None:
    frame = network.frame(OF_NOBODY[network.family], 0)

    def attack() -> None:
        for address in (network.underlay(network.hosts[0]), network.gateway(0)):
            network.other.run(python(SENDER, address, network.port, COUNT, frame.hex(), 65534))

    assert network.received(0, attack) == 0


def test_the_guard_drops_datagrams_of_a_container_to_a_translated_address(network: Network) -> None:
    host, translated = network.hosts[0], TRANSLATED[network.family]
    match = ["-d", translated, "-p", "udp", "--dport", "53"]
    to = network.underlay(network.hosts[1])
    host.run(network.translation("-A", *match, to=to, port=network.port))
    frame = network.frame(network.inside(0), 1)
    attack = python(SENDER, translated, 53, COUNT, frame.hex(), 65534)

    received = network.received(1, lambda: network.containers[0].run(attack))
    host.run(network.translation("-D", *match, to=to, port=network.port))
    assert received == 0


def test_the_guard_drops_datagrams_of_a_container_with_the_forged_address_of_a_member(
    network: Network,
) -> None:
    member, victim = (network.underlay(network.hosts[number]) for number in (2, 1))
    packet = datagram(member, victim, network.port, network.frame(network.inside(2), 1))

    received = network.received(1, lambda: network.containers[0].run(python(RAW_SENDER, COUNT, packet.hex())))
    assert received == 0


def test_packets_of_a_container_with_the_forged_address_of_a_remote_container_are_dropped(
    network: Network,
) -> None:
    packet = datagram(network.inside(2), network.inside(1), PORT, b"forged")

    received = network.received(1, lambda: network.containers[0].run(python(RAW_SENDER, COUNT, packet.hex())))
    assert received == 0


def test_the_guard_drops_datagrams_of_a_local_user_without_rights(network: Network) -> None:
    attack = network.to_tunnel(1, network.frame(network.inside(0), 1), 65534)

    assert network.received(1, lambda: network.hosts[0].run(attack)) == 0


def test_a_local_user_without_rights_may_use_the_overlay(network: Network) -> None:
    attack = python(SENDER, network.inside(1), PORT, COUNT, b"forged".hex(), 65534)

    assert network.received(1, lambda: network.hosts[0].run(attack)) == COUNT


def test_the_guard_drops_datagrams_of_a_host_without_a_lease(network: Network) -> None:
    stranger = network.overlay.hosts["docker4"]
    attack = network.to_tunnel(1, network.frame(OF_NOBODY[network.family], 1), 0)

    assert network.received(1, lambda: stranger.run(attack)) == 0
    if network.kind == "udp":  # the kernel drops the packets, so that the forwarder does not read a flood
        forwarder = network.overlay.status(network.hosts[1]).forwarder
        assert forwarder.counters["dropped_in_stranger"] == 0


def test_packets_of_a_host_without_a_lease_from_outside_the_tunnel_are_dropped(network: Network) -> None:
    """The packets have the source of a container. The stranger uses the victim as its gateway."""
    stranger, victim = network.overlay.hosts["docker4"], network.inside(2)
    packet = datagram(network.inside(0), victim, PORT, b"forged")
    stranger.run(["ip", "route", "add", str(victim), "via", str(network.underlay(network.hosts[2]))])

    received = network.received(2, lambda: stranger.run(python(RAW_SENDER, COUNT, packet.hex())))
    stranger.run(["ip", "route", "delete", str(victim)])
    assert received == 0


def test_the_guard_drops_datagrams_of_a_member_with_the_inner_source_of_another_member(
    network: Network,
) -> None:
    attack = network.to_tunnel(1, network.frame(network.inside(0), 1), 0)

    assert network.received(1, lambda: network.hosts[2].run(attack)) == 0


# A similar, but valid packet passes.


def nodad(network: Network) -> str:
    """Return the option of `ip address` with which an address can be used immediately."""
    return "" if network.family == 4 else " nodad"


@pytest.fixture(scope="module")
def behind(network: Network) -> Iterator[Behind]:
    """A machine behind the first host, on a separate link: a nested host, a guest, a routed member."""
    host, name, gateway = network.hosts[0], "behind", BEHIND[network.family]
    host.run(["ip", "netns", "add", name])
    lines = [
        "link add b-behind type bridge",
        "link set b-behind up",
        f"address add {gateway} dev b-behind{nodad(network)}",
        f"link add v-behind type veth peer name eth0 netns {name}",
        "link set v-behind master b-behind up",
    ]
    host.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")
    inside = [
        f"address add {gateway.ip + 1}/{gateway.network.prefixlen} dev eth0{nodad(network)}",
        "link set eth0 up",
        f"route add default via {gateway.ip}",
    ]
    host.run(["ip", "-netns", name, "-batch", "-"], text="\n".join(inside) + "\n")
    join_behind(network, gateway.ip + 1)
    for each in network.hosts:
        network.overlay.wait_status(each, lambda status: status.peers == 3, "knows the machine behind")
        network.overlay.settle(each)
    yield lambda argv: host.run(["nsenter", "--net=/run/netns/behind", "--", *argv])
    leave_behind(network)
    host.run(["ip", "link", "delete", "b-behind"])
    host.run(["ip", "netns", "delete", name])


def join_behind(network: Network, address: IpAddress) -> None:
    """Write the lease of the machine behind the first host."""
    data = {"VNI": 1, "VtepMAC": "0e:00:00:00:00:99"}
    if network.cluster is not None:
        api = network.cluster.api
        notes = {"kube_subnet_manager": "true", "backend_type": "vxlan", "public_ipv6": str(address)}
        subnet = str(IPv6Network((OF_BEHIND[6], 64), strict=False))
        api.do(api.server.put("behind", subnet, **notes, backend_v6_data=json.dumps(data)))
        return
    lease: dict[str, object] = {"PublicIP": "172.30.0.2"}
    if network.kind == "vxlan":
        lease |= {"BackendType": "vxlan", "BackendData": data}
        if network.family == 6:
            lease |= {"PublicIPv6": str(address), "BackendV6Data": data}
    network.overlay.etcd.etcdctl("put", key_of_behind(network), json.dumps(lease))


def leave_behind(network: Network) -> None:
    if network.cluster is not None:
        network.cluster.api.do(network.cluster.api.server.delete("behind"))
    else:
        network.overlay.etcd.etcdctl("del", key_of_behind(network))


def key_of_behind(network: Network) -> str:
    return f"{PREFIX}/subnets/{KEY_OF_BEHIND[network.family]}"


def test_the_guard_accepts_datagrams_of_a_member_behind_another_member(
    network: Network, behind: Behind
) -> None:
    """The host's route to this member uses the interface that receives the member's datagrams."""
    right = network.to_tunnel(1, network.frame(OF_BEHIND[network.family], 1), 0)

    assert network.received(1, lambda: behind(right)) == COUNT


def test_the_guard_drops_forged_datagrams_of_a_member_behind_another_member(
    network: Network, behind: Behind
) -> None:
    member, victim = (network.underlay(network.hosts[number]) for number in (2, 1))
    packet = datagram(member, victim, network.port, network.frame(network.inside(2), 1))

    assert network.received(1, lambda: behind(python(RAW_SENDER, COUNT, packet.hex()))) == 0


def test_the_guard_drops_datagrams_of_a_stranger_to_a_member_behind_another_member(
    network: Network, behind: Behind
) -> None:
    """The datagrams pass through the first host, which drops the datagrams of strangers."""
    first, second = network.hosts[0], network.hosts[1]
    into = ["nsenter", "--net=/run/netns/behind", "--"]
    stranger = network.overlay.hosts["docker4"]
    gateway, router = BEHIND[network.family], network.overlay.lab.router
    by_router = "192.168.50.1" if network.family == 4 else ipv6_underlay(stranger).network[0xFE]
    by_first = network.underlay(first)
    for host, via in ((second, by_first), (stranger, by_router), (router, by_first)):
        host.run(["ip", "route", "replace", str(gateway.network), "via", str(via)])
    words = gateway.ip + 1, network.port
    right = network.frame(network.inside(1), 1, b"right")
    forged = network.frame(OF_NOBODY[network.family], 1)

    count = received(
        first,
        into,
        network.port,
        lambda: stranger.run(python(SENDER, *words, COUNT, forged.hex(), 0)),
        lambda: second.run(python(SENDER, *words, 1, right.hex(), 0)),
    )
    assert count == 0


def test_the_guard_leaves_datagrams_to_a_published_port_of_a_container(network: Network) -> None:
    """A service of a container uses the port of the tunnel, and the datagrams are for no host."""
    host, container = network.hosts[0], network.containers[0]
    client = network.overlay.hosts["docker4"]
    address, port = network.underlay(host), network.port
    match = ["-d", address, "-s", network.underlay(client), "-p", "udp", "--dport", port]
    host.run(network.translation("-A", *match, to=network.inside(0), port=port))
    ask = [python(SENDER, address, port, 1, word.hex(), 0) for word in (b"forged", b"right")]

    count = received(
        host,
        ["nsenter", f"--net=/run/netns/{container.name}", "--"],
        port,
        lambda: client.run(ask[0]),
        lambda: client.run(ask[1]),
    )
    host.run(network.translation("-D", *match, to=network.inside(0), port=port))
    assert count == 1


@pytest.mark.parametrize("network", [NETWORKS["udp"]], ids=["udp"], indirect=True)
def test_the_guard_drops_forged_datagrams_to_a_peer_with_another_tunnel_port(network: Network) -> None:
    """With udp, the lease of a host may contain another port than the port of the network config."""
    overlay, member, port = network.overlay, network.overlay.hosts["docker4"], 9285
    extra = {"Owner": "a" * 32, "Port": port}
    lease = json.dumps({"PublicIP": str(member.address), "BackendType": "udp", "Pyflannel": extra})
    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/{KEY_OF_BEHIND[4]}", lease)
    for host in network.hosts:
        overlay.wait_status(host, lambda status: status.peers >= 3, "knows the member")
    forged, right = (
        python(SENDER, member.address, port, count, word.hex(), 65534)
        for count, word in ((COUNT, b"forged"), (1, b"right"))
    )

    count = received(
        member,
        [],
        port,
        lambda: network.containers[0].run(forged),
        lambda: overlay.lab.router.run(right),
    )
    overlay.etcd.etcdctl("del", f"{PREFIX}/subnets/{KEY_OF_BEHIND[4]}")
    assert count == 0


@pytest.mark.parametrize(
    "network", [NETWORKS["vxlan over IPv6"], "vxlan"], ids=["vxlan over IPv6", IPV6_ALONE], indirect=True
)
def test_the_guard_drops_datagrams_of_a_stranger_with_extension_headers_or_fragments(
    network: Network,
) -> None:
    """The UDP header is behind options, in the first fragment without the inner packet, or in the second
    fragment.
    """
    stranger, member = network.overlay.hosts["docker4"], network.hosts[2]
    victim = network.underlay(network.hosts[1])
    frame = network.frame(network.inside(2), 1)
    forged = datagram(network.underlay(stranger), victim, network.port, frame)
    packets = [with_options(forged), *fragments(forged, 8), *fragments(with_options(forged), 8)]
    right = with_options(datagram(network.underlay(member), victim, network.port, frame))

    def attack() -> None:
        for packet in packets:
            stranger.run(python(RAW_SENDER, COUNT, packet.hex()))

    assert network.received(1, attack) == 0
    assert network.received(1, lambda: member.run(python(RAW_SENDER, COUNT, right.hex()))) == COUNT


def test_senders_of_dropped_packets_are_reported(network: Network) -> None:
    stranger, victim = network.overlay.hosts["docker4"], network.hosts[1]
    attack = network.to_tunnel(1, network.frame(OF_NOBODY[network.family], 1), 0)

    network.received(1, lambda: stranger.run(attack))

    def is_named(status: Status) -> bool:
        address = network.underlay(stranger)
        return any(one.address == address and one.reason == "stranger" for one in status.strangers)

    network.overlay.wait_status(victim, is_named, "names the stranger")


@pytest.mark.parametrize(
    "network",
    [("host-gw", 4, 0), ("host-gw", 6, 0), "host-gw"],
    ids=["IPv4", "IPv6", "IPv6 alone"],
    indirect=True,
)
def test_packets_with_the_forged_source_of_a_remote_container_are_dropped_with_host_gw(
    network: Network,
) -> None:
    packet = datagram(network.inside(2), network.inside(1), PORT, b"forged")

    assert (
        network.received(1, lambda: network.containers[0].run(python(RAW_SENDER, COUNT, packet.hex()))) == 0
    )


def test_both_tunnels_are_guarded_during_a_change_of_the_backend(overlay, joined) -> None:
    """A host that has not changed yet keeps the previous tunnel with the same checks, also after a crash."""
    data = {"VNI": 1, "VtepMAC": "0e:00:00:00:00:66"}
    lease = json.dumps({"PublicIP": "10.10.10.66", "BackendType": "vxlan", "BackendData": data})
    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/10.100.200.0-28", lease)
    hosts, containers, other = joined
    for kind in ("vxlan", "udp"):
        overlay.set_backend(kind)
        for host in hosts:
            key = f"{PREFIX}/subnets/{str(host.lease()).replace('/', '-')}"
            get = ["get", "--prefix", "--print-value-only", key]  # a lease of one family or of both
            wait_until(
                lambda get=get, kind=kind: (
                    json.loads(overlay.etcd.etcdctl(*get)).get("BackendType", "udp") == kind
                ),
                what=f"{host.name} publishes {kind}",
                deadline_s=DEADLINE_S,
            )

    for kind, port in (("udp", 8285), ("vxlan", 8472)):
        network = Network(overlay, kind, 4, port, hosts, containers, other)
        attack = network.to_tunnel(1, network.frame(containers[0].address, 1), 65534)
        assert network.received(1, lambda attack=attack: containers[0].run(attack)) == 0
        packet = datagram("10.10.10.77", hosts[1].address, port, network.frame(containers[2].address, 1))
        stranger = python(RAW_SENDER, COUNT, packet.hex())
        assert network.received(1, lambda stranger=stranger: overlay.lab.router.run(stranger)) == 0
    status = overlay.status(hosts[0])
    assert status.backend is not None
    assert any("also receives packets by vxlan with VNI 1" in note for note in status.backend.notes)
    assert "Hosts that this host still reaches by a previous backend: 10.10.10.66" in status.backend.notes
    overlay.daemons[hosts[0].name].kill()
    overlay.daemons[hosts[0].name] = hosts[0].start_flanneld(f"--store={overlay.etcd.url}", "--ip-masq")
    resumed = overlay.wait_ready(hosts[0])
    assert resumed.backend is not None
    assert any("also receives packets by vxlan with VNI 1" in note for note in resumed.backend.notes)
    assert "Hosts that this host still reaches by a previous backend: 10.10.10.66" in resumed.backend.notes
    overlay.etcd.etcdctl("del", f"{PREFIX}/subnets/10.100.200.0-28")
