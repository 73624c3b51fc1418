"""The backend host-gw over IPv6 on three hosts of one segment, in a network with both families and with IPv6
alone.
"""

import os
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Interface

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import LEFT, Host, HostPlace
from pyflannel.lab.waiting import together, wait_until
from testlab.ipv6_cluster import (
    NETWORK,
    Cluster,
    bridge,
    cluster_in,
    create_bridge,
    give_bridge,
    wait_reached,
)
from testlab.overlay import Overlay, PingStream, ipv6_underlay, overlay_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 30.0
FOLLOWED_S = 5.0
BOTH, IPV6_ALONE = "both families", "IPv6 alone"
THIRD = HostPlace("docker5", LEFT, IPv4Interface("10.10.10.105/24"))


class Network:
    """Three hosts of one segment, each with a bridge of containers.

    Attributes:
        cluster: the cluster of a network with IPv6 alone; None in a network with both families.
    """

    def __init__(self, overlay: Overlay, hosts: list[Host], cluster: Cluster | None) -> None:
        self.overlay = overlay
        self.hosts = hosts
        self.cluster = cluster
        together([partial(self.join, host) for host in hosts])
        wait_reached(*hosts)

    def join(self, host: Host) -> None:
        """Start flanneld, and give the bridge its address."""
        if self.cluster is not None:
            self.cluster.join(host)
        else:
            self.overlay.join(host)
            give_bridge(host)


@pytest.fixture(scope="module", params=[BOTH, IPV6_ALONE])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    with overlay_in("gw-six") as overlay:
        (third,) = overlay.lab.add_hosts(THIRD)
        hosts = [overlay.hosts["docker1"], overlay.hosts["docker2"], third]
        if request.param == IPV6_ALONE:
            with cluster_in(overlay) as cluster:
                give_underlay(overlay, third)
                third.run(["ip", "address", "flush", "dev", "eth0", "scope", "global", "to", "0.0.0.0/0"])
                cluster.api.do(cluster.api.server.put(third.name, "fd00:5:0:5::/64"))
                cluster.configure("host-gw")
                yield Network(overlay, hosts, cluster)
            return
        for host in hosts[:2]:
            give_underlay(overlay, host)
        give_underlay(overlay, third)
        config = Overlay.config(EnableIPv6=True, IPv6Network=str(NETWORK), Backend={"Type": "host-gw"})
        overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)
        yield Network(overlay, hosts, None)


def give_underlay(overlay: Overlay, host: Host) -> None:
    """Give a host an IPv6 address, and a bridge without address."""
    overlay.give_ipv6(host)
    create_bridge(host)


def routes(host: Host) -> dict[str, str]:
    """Return the gateway of each route of flanneld, by destination."""
    lines = host.run(["ip", "-6", "route", "show", "proto", "80"]).stdout.splitlines()
    return {line.split()[0]: line.split()[2] for line in lines if " via " in line}


def test_each_host_has_a_route_to_each_other_host(network: Network) -> None:
    for host in network.hosts:
        assert routes(host) == {
            str(bridge(other).network): str(ipv6_underlay(other).ip)
            for other in network.hosts
            if other is not host
        }
        assert host.subnet_env()["FLANNEL_MTU"] == "1500"
    wait_reached(*network.hosts)


@pytest.mark.parametrize(
    "damage",
    [
        "ip -6 route flush proto 80",
        "ip -6 route replace $(ip -6 route show proto 80 | head -1 | cut -d' ' -f1) via fd07:1::fe proto 80",
        "ip link set eth0 down; ip link set eth0 up; ip address replace $OWN dev eth0 nodad;"
        " ip -6 route replace default via fd07:1::fe; ip route replace default via 10.10.10.1 || true",
    ],
    ids=["routes flushed", "another gateway", "underlay down and up"],
)
def test_damage_is_repaired(network: Network, damage: str) -> None:
    host = network.hosts[0]
    wanted = routes(host)

    host.run(["sh", "-ec", f"OWN={ipv6_underlay(host)}; {damage}"])

    wait_until(lambda: routes(host) == wanted, what=f"repair of: {damage}", deadline_s=SOON_S)
    wait_reached(*network.hosts)


def test_a_restart_loses_no_packet(network: Network) -> None:
    first, second, third = network.hosts
    with (
        PingStream(second, bridge(first).ip, interval_s=0.01) as there,
        PingStream(third, bridge(first).ip, interval_s=0.01) as of_third,
    ):
        for stream in (there, of_third):
            stream.wait_answered()
        network.overlay.daemons[first.name].kill()
        network.join(first)
        for stream in (there, of_third):
            stream.wait_answered()

    assert (there.lost(), of_third.lost()) == ([], [])


def test_peers_follow_the_ipv6_address_of_a_host(network: Network) -> None:
    """The address changes, and changes back. The subnet stays."""
    host, second, third = network.hosts
    subnet, old, new = bridge(host), str(ipv6_underlay(host)), "fd07:1::d4/64"
    for before, after in ((old, new), (new, old)):
        batch = f"address delete {before} dev eth0\naddress add {after} dev eth0 nodad\n"
        host.run(["ip", "-batch", "-"], text=f"{batch}route replace default via fd07:1::fe\n")
        for other in (second, third):
            wait_until(
                lambda other=other, after=after: (
                    routes(other)[str(subnet.network)] == after.partition("/")[0]
                ),
                what=f"{other.name} sends to {after}",
                deadline_s=FOLLOWED_S,
            )
        wait_reached(*network.hosts)

    assert bridge(host) == subnet


def test_packets_of_strangers_are_not_delivered(network: Network) -> None:
    """The router is no member. The host would answer an echo that it receives."""
    host, router = network.hosts[0], network.overlay.lab.router
    route = [str(bridge(host).network), "via", str(ipv6_underlay(host).ip)]
    forged = str(bridge(network.hosts[1]).ip)
    router.run(["ip", "route", "add", *route])
    router.run(["ip", "address", "add", f"{forged}/128", "dev", "lo", "nodad"])
    try:
        ping = ["ping", "-n", "-c20", "-i0.01", "-W1", "-I", forged, str(bridge(host).ip)]
        found = router.run(ping, check=False).stdout
    finally:
        router.run(["ip", "address", "delete", f"{forged}/128", "dev", "lo"])
        router.run(["ip", "route", "delete", *route])

    assert "20 packets transmitted, 0 received" in found
    wait_reached(*network.hosts)
