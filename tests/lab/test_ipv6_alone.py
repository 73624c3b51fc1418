"""A Kubernetes cluster with IPv6 alone: the hosts have no IPv4 address, and no IPv4 range."""

import json
import os
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.cni_runtime import Runtime
from testlab.ipv6_cluster import (
    NAMES,
    NETWORK,
    SOON_S,
    Cluster,
    bridge,
    cluster_in,
    give_bridge,
    reaches,
    wait_reached,
)
from testlab.overlay import Overlay, PingStream, ipv6_underlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture(scope="module")
def cluster(overlay: Overlay) -> Iterator[Cluster]:
    with cluster_in(overlay) as made:
        yield made


@pytest.fixture(scope="module")
def hosts(cluster: Cluster) -> list[Host]:
    return [cluster.overlay.hosts[name] for name in NAMES]


def test_hosts_join_and_reach_each_other(cluster: Cluster, hosts: list[Host]) -> None:
    """subnet.env and the annotations have the form of the original."""
    cluster.configure("vxlan")
    cluster.join(*hosts)

    wait_reached(*hosts)
    first, second, _ = hosts
    assert (first.directory / "run/flannel/subnet.env").read_text() == (
        f"FLANNEL_IPV6_NETWORK={NETWORK}\n"
        "FLANNEL_IPV6_SUBNET=fd00:5:0:1::1/64\n"
        "FLANNEL_MTU=1430\n"
        "FLANNEL_IPMASQ=true\n"
    )
    notes = cluster.api.server.annotations(first.name)
    vtep = json.loads(notes.pop("backend-v6-data"))
    assert vtep == {"VNI": 1, "VtepMAC": vtep["VtepMAC"]}
    assert notes == {
        "backend-type": "vxlan",
        "kube-subnet-manager": "true",
        "public-ipv6": str(ipv6_underlay(first).ip),
    }
    assert [link["ifname"] for link in first.links() if "flannel" in link["ifname"]] == ["flannel-v6.1"]
    routes = first.run(["ip", "-6", "route", "show", "proto", "80"]).stdout
    assert f"{bridge(second).network} via {bridge(second).network[0]} dev flannel-v6.1" in routes
    assert not first.run(["ip", "-4", "route", "show"]).stdout


def test_commands_show_the_hosts(cluster: Cluster, hosts: list[Host]) -> None:
    first, second, third = hosts
    status = json.loads(first.flannelctl("status", "--json"))
    assert status["is_ready"], status["waiting_for"]
    assert (status["lease"]["subnet"], status["peers"]) == ("fd00:5:0:1::/64", 2)
    assert status["underlay"]["public_ip"] == str(ipv6_underlay(first).ip)
    assert "fd00:5:0:1::/64" in first.flannelctl("status")
    peers = json.loads(first.flannelctl("peers", "--probe", "--json"))["peers"]
    assert [(one["subnet"], one["public_ip"], one["is_reached"]) for one in peers] == [
        (str(bridge(host).network), str(ipv6_underlay(host).ip), True) for host in (second, third)
    ]
    report = json.loads(first.flannelctl("ping", "--json", str(bridge(third).ip)))
    assert (report["ok"], [step["state"] for step in report["steps"]]) == (True, ["reached"] * 3)
    assert second.name in first.flannelctl("ping", second.name)
    assert json.loads(first.flannelctl("doctor", "--json"))["findings"] == []
    traced = json.loads(first.flannelctl("trace", "--json", str(bridge(second).ip)))
    assert (traced["ok"], traced["steps"][-1]["name"]) == (True, "peer")
    holder = json.loads(first.flannelctl("whois", "--json", str(bridge(second).ip)))
    assert (holder["host_name"], holder["kind"], holder["subnet"]) == (
        second.name,
        "container",
        str(bridge(second).network),
    )


def test_the_cni_plugin_gives_containers_addresses(cluster: Cluster, hosts: list[Host]) -> None:
    """The delegate gets the IPv6 subnet alone. Containers on two hosts reach each other."""
    pair = hosts[:2]
    for host in pair:
        host.run(["ip", "address", "flush", "dev", "br7", "scope", "global"])
    runtimes = [Runtime(host) for host in pair]
    containers = [runtime.container("c1") for runtime in runtimes]
    for runtime, container in zip(runtimes, containers, strict=True):
        runtime.add(container)

    one, other = containers

    assert [IPv6Address(one.address), IPv6Address(other.address)] == [bridge(host).ip + 1 for host in pair]
    wait_until(lambda: one.reaches(other.address), what="an answer", deadline_s=SOON_S)
    for runtime, container in zip(runtimes, containers, strict=True):
        runtime.end(container)
        runtime.host.run(["ip", "link", "delete", "cni0"])
        give_bridge(runtime.host)


def test_containers_are_masqueraded(cluster: Cluster, hosts: list[Host]) -> None:
    """The router has no route to the overlay, so the router answers only the host."""
    first = hosts[0]
    router = str(ipv6_underlay(first).network[0xFE])

    first.run(["ping", "-n", "-c1", "-W5", "-I", str(bridge(first).ip), router])

    assert f"-A FLANNEL-POSTRTG -s {NETWORK} ! -d ff00::/8" in first.run(["ip6tables-save"]).stdout


@pytest.mark.parametrize(
    "damage",
    [
        "ip link delete flannel-v6.1",
        "ip -6 route flush dev flannel-v6.1 proto 80",
        "ip -6 neigh flush dev flannel-v6.1 nud permanent",
        "nft delete table ip6 flannel-guard",
    ],
)
def test_each_object_is_repaired(cluster: Cluster, hosts: list[Host], damage: str) -> None:
    first, _, third = hosts

    first.run(["sh", "-c", damage])

    wait_until(lambda: reaches(third, first), what=f"repair of: {damage}", deadline_s=SOON_S)
    wait_until(
        lambda: "flannel-guard" in first.run(["nft", "list", "tables"]).stdout,
        what="the guard",
        deadline_s=SOON_S,
    )


MANY = 1000


def test_a_host_among_a_thousand(cluster: Cluster, hosts: list[Host]) -> None:
    """The host has the objects of all peers after they joined, after damage, and after they left."""
    first, server = hosts[0], cluster.api.server

    async def join() -> None:
        for number in range(MANY):
            vtep = {"VNI": 1, "VtepMAC": f"0e:00:00:00:{number >> 8:02x}:{number & 255:02x}"}
            await server.put(
                f"node{number}",
                f"fd00:5:0:{0x1000 + number:x}::/64",
                backend_type="vxlan",
                backend_v6_data=json.dumps(vtep),
                kube_subnet_manager="true",
                public_ipv6=f"fd07:1::1:{number:x}",
            )

    async def leave() -> None:
        for number in range(MANY):
            await server.delete(f"node{number}")

    def counts() -> list[str]:
        shown = (
            "ip -6 route show dev flannel-v6.1 proto 80 | wc -l;"
            " ip -6 neigh show dev flannel-v6.1 nud permanent | wc -l;"
            " bridge fdb show dev flannel-v6.1 | grep -c 'dst fd07'"
        )
        return first.run(["sh", "-c", shown], check=False).stdout.split()

    def wait_peers(count: int) -> None:
        wait_until(lambda: counts() == [str(count)] * 3, what=f"{count} peers", deadline_s=SOON_S)

    cluster.api.do(join())
    wait_peers(MANY + 2)
    first.run(["ip", "link", "delete", "flannel-v6.1"])
    wait_peers(MANY + 2)
    wait_reached(*hosts)
    cluster.api.do(leave())
    wait_peers(2)


def test_a_restart_without_the_cluster_loses_no_packet(cluster: Cluster, hosts: list[Host]) -> None:
    """The restarted flanneld uses the last known leases, and a peer that joins later is reached."""
    first, second, _ = hosts
    server = cluster.api.server
    wait_until(
        lambda: (first.directory / "var/lib/flannel/last-known.json").exists(),
        what="the last known leases",
        deadline_s=SOON_S,
    )
    with PingStream(second, bridge(first).ip, interval_s=0.01) as stream:
        stream.wait_answered()
        server.failure = 503, "the cluster is off"
        cluster.api.do(server.end_watches())
        cluster.overlay.daemons[first.name].kill()
        log = len(cluster.overlay.log(first))
        cluster.overlay.daemons[first.name] = first.launch_flanneld(
            "--kube-subnet-mgr",
            f"--kubeconfig-file={cluster.kubeconfig}",
            f"--net-config-path={cluster.config}",
            "--ip-masq",
            environment={"NODE_NAME": first.name},
        )
        cluster.overlay.wait_logged(first, "starting with the last known leases", after=log)
        stream.wait_answered()
        server.failure = None
        cluster.overlay.wait_ready(first)
        stream.wait_answered()

    assert stream.lost() == []


@pytest.mark.parametrize(("kind", "nftables"), [("host-gw", True), ("wireguard", False)])
def test_other_backends_carry_the_packets(
    cluster: Cluster, hosts: list[Host], kind: str, nftables: bool
) -> None:
    first, second, _ = hosts
    for host in (first, second):
        cluster.stop(host)
    cluster.configure(kind, nftables=nftables)
    cluster.join(first, second)

    wait_reached(first, second)
    routes = first.run(["ip", "-6", "route", "show", "proto", "80"]).stdout
    links = [link["ifname"] for link in first.links() if "flannel" in link["ifname"]]
    if kind == "host-gw":
        assert links == []
        assert f"{bridge(second).network} via {ipv6_underlay(second).ip} dev eth0" in routes
        assert "table ip6 flannel-ipv6" in first.run(["nft", "list", "tables"]).stdout
        assert first.subnet_env()["FLANNEL_MTU"] == "1500"
    else:
        assert links == ["flannel-wg-v6"]
        assert f"{NETWORK} dev flannel-wg-v6" in routes
        endpoints = first.run(["wg", "show", "flannel-wg-v6", "endpoints"]).stdout
        assert f"[{ipv6_underlay(second).ip}]:51821" in endpoints
        before = json.loads(first.flannelctl("status", "--json"))["wireguard"]
        assert str(bridge(second).network) in [peer["subnet"] for peer in before["peers"]]
        rotated = json.loads(first.flannelctl("rotate-key", "--json"))["public_key"]
        assert rotated != before["public_key"]
        assert (
            json.loads(cluster.api.server.annotations(first.name)["backend-v6-data"])["PublicKey"] == rotated
        )
        wait_reached(first, second)


def test_unencrypted_packets_from_outside_are_not_delivered(cluster: Cluster, hosts: list[Host]) -> None:
    """The host would answer an echo that it receives. Its backend is wireguard."""
    host, router = hosts[0], cluster.overlay.lab.router
    route = [str(bridge(host).network), "via", str(ipv6_underlay(host).ip)]
    router.run(["ip", "route", "add", *route])

    found = router.run(["ping", "-n", "-c20", "-i0.01", "-W1", str(bridge(host).ip)], check=False).stdout

    router.run(["ip", "route", "delete", *route])
    assert "20 packets transmitted, 0 received" in found
    dropped = host.run(["nft", "list", "chain", "ip6", "flannel-guard", "in_clear"]).stdout
    assert "counter packets 20" in dropped
    wait_reached(*hosts[:2])


def test_udp_is_refused_with_the_remedy(cluster: Cluster, hosts: list[Host]) -> None:
    """The hosts keep the config in force."""
    first, second, _ = hosts
    cluster.configure("udp")

    cluster.overlay.wait_logged(first, "the udp backend carries IPv4 only. Set Backend.Type to vxlan")
    assert reaches(first, second)


def test_a_cleanup_removes_the_objects(cluster: Cluster, hosts: list[Host]) -> None:
    """Without flanneld, the status shows the last lease."""
    host, _, with_another_backend = hosts
    cluster.configure("wireguard")
    cluster.stop(with_another_backend)
    cluster.join(with_another_backend)
    wait_reached(*hosts)
    subnet = bridge(host).network
    cluster.overlay.daemons[host.name].kill()
    status = json.loads(host.run(["flannelctl", "status", "--json"], check=False).stdout)
    assert (status["is_live"], status["lease"]["subnet"], status["peers"]) == (False, str(subnet), 2)
    examined = json.loads(host.run(["flannelctl", "doctor", "--json"], check=False).stdout)
    assert [one["code"] for one in examined["findings"]] == ["daemon-away"]
    host.run(["ip", "link", "delete", "br7"])

    variables = [
        "FLANNELD_KUBE_SUBNET_MGR=true",
        f"FLANNELD_KUBECONFIG_FILE={cluster.kubeconfig}",
        f"FLANNELD_NET_CONFIG_PATH={cluster.config}",
        f"NODE_NAME={host.name}",
    ]
    host.run(["env", *variables, "flannelctl", "cleanup", "--yes"])

    assert cluster.api.server.annotations(host.name) == {}
    assert not [link["ifname"] for link in host.links() if link["ifname"].startswith("flannel")]
    assert not host.run(["ip", "-6", "route", "show", "proto", "80"]).stdout
    assert "flannel" not in host.run(["ip6tables-save"]).stdout.lower()
    assert "flannel" not in host.run(["nft", "list", "tables"]).stdout
    assert not (host.directory / "run/flannel/subnet.env").exists()
