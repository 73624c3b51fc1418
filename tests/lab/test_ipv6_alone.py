"""A Kubernetes cluster with IPv6 alone: the hosts have no IPv4 address, and no IPv4 range."""

import asyncio
import json
import os
import threading
from collections.abc import Coroutine, Iterator
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any, Self

import pytest

from doubles.fake_api_server import FakeApiServer
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.cni_runtime import Runtime
from testlab.inside import enter_network
from testlab.overlay import Overlay, PingStream, ipv6_underlay
from testlab.pinging import wait_each_reaches

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 30.0
NETWORK = IPv6Network("fd00:5::/48")
NAMES = ("docker1", "docker2", "docker3")


class ApiServer:
    """A FakeApiServer in the network of a host, on a thread of its own."""

    def __init__(self, place: Host, address: IPv6Address) -> None:
        self.server = FakeApiServer(str(address))
        self._place = place
        self._loop = asyncio.new_event_loop()
        self._is_up, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_up.wait(SOON_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(SOON_S)

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Perform a call of the server."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(SOON_S)

    def _run(self) -> None:
        enter_network(f"/proc/{self._place.init_pid}/ns/net")
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with self.server.serving():
            self._is_up.set()
            await self._end.wait()


class Cluster:
    """The API server on the router, and the flanneld of each host."""

    def __init__(self, overlay: Overlay, api: ApiServer, directory: Path) -> None:
        self.overlay = overlay
        self.api = api
        self.config = directory / "net-conf.json"
        self.kubeconfig = directory / "kubeconfig"
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                    "clusters": [{"name": "k", "cluster": {"server": api.server.url}}],
                    "users": [{"name": "u", "user": {"token": "good"}}],
                }
            )
        )

    def configure(self, kind: str, *, nftables: bool = False, **options: object) -> None:
        self.config.write_text(
            json.dumps(
                {
                    "EnableIPv4": False,
                    "EnableIPv6": True,
                    "IPv6Network": str(NETWORK),
                    "EnableNFTables": nftables,
                    "Backend": {"Type": kind, **options},
                }
            )
        )

    def join(self, *hosts: Host) -> None:
        """Start flanneld on the hosts, and give each a bridge with the address of subnet.env."""

        def start(host: Host) -> None:
            flags = [f"--kubeconfig-file={self.kubeconfig}", f"--net-config-path={self.config}", "--ip-masq"]
            self.overlay.daemons[host.name] = host.start_flanneld(
                "--kube-subnet-mgr", *flags, environment={"NODE_NAME": host.name}
            )
            give_bridge(host)

        together([lambda host=host: start(host) for host in hosts])

    def stop(self, host: Host) -> None:
        """Stop flanneld on a host, whose next start does not continue with the present backend."""
        self.overlay.daemons[host.name].kill()
        host.run(["rm", "/var/lib/flannel/last-known.json"])


def bridge(host: Host) -> IPv6Interface:
    """Return the address for the bridge of the containers, from subnet.env."""
    return IPv6Interface(host.subnet_env()["FLANNEL_IPV6_SUBNET"])


def give_bridge(host: Host) -> None:
    """Give br7 the address of subnet.env."""
    batch = f"address flush dev br7 scope global\naddress add {bridge(host)} dev br7 nodad\n"
    host.run(["ip", "-batch", "-"], text=batch)


def reaches(host: Host, other: Host) -> bool:
    command = ["ping", "-n", "-c1", "-W1", "-I", str(bridge(host).ip), str(bridge(other).ip)]
    return host.run(command, check=False).returncode == 0


def wait_reached(*hosts: Host) -> None:
    wait_each_reaches(hosts, reaches, SOON_S)


@pytest.fixture(scope="module")
def cluster(overlay: Overlay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two hosts on one segment and one behind the router, with IPv6 addresses alone."""
    hosts = [overlay.hosts[name] for name in NAMES]
    overlay.give_ipv6(*hosts)
    for host in hosts:
        batch = "-4 address flush dev eth0\nlink add br7 type bridge\nlink set br7 up\n"
        host.run(["ip", "address", "flush", "dev", "eth0", "scope", "global", "to", "0.0.0.0/0"])
        host.run(["ip", "-batch", "-"], text=batch.partition("\n")[2])
    with ApiServer(overlay.lab.router, ipv6_underlay(hosts[0]).network[0xFE]) as api:
        for number, name in enumerate(NAMES, start=1):
            api.do(api.server.put(name, f"fd00:5:0:{number}::/64"))
        yield Cluster(overlay, api, overlay.lab.directory)


@pytest.fixture(scope="module")
def hosts(cluster: Cluster) -> list[Host]:
    return [cluster.overlay.hosts[name] for name in NAMES]


def test_hosts_join_and_reach_each_other(cluster: Cluster, hosts: list[Host]) -> None:
    """subnet.env and the annotations are those of the original."""
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
    assert first.run(["flannelctl", "trace", "fd00:5:0:2::1"], check=False).returncode != 0


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
    """The router has no route to the overlay, so it answers the host only."""
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


def test_udp_is_refused_with_the_remedy(cluster: Cluster, hosts: list[Host]) -> None:
    """The hosts keep the config in force."""
    first, second, _ = hosts
    cluster.configure("udp")

    cluster.overlay.wait_logged(first, "the udp backend carries IPv4 only. Set Backend.Type to vxlan")
    assert reaches(first, second)


def test_a_cleanup_removes_the_objects(cluster: Cluster, hosts: list[Host]) -> None:
    """Without flanneld, the status shows the last lease."""
    host = hosts[0]
    subnet = bridge(host).network
    cluster.overlay.daemons[host.name].kill()
    status = json.loads(host.run(["flannelctl", "status", "--json"], check=False).stdout)
    assert (status["is_live"], status["lease"]["subnet"], status["peers"]) == (False, str(subnet), 2)
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
