"""A network that overlaps the underlay is reported, and no packet of the underlay enters the tunnel."""

import json
import os
from collections.abc import Iterator

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.model.status import Status

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

UNDERLAY = "10.10.10.0/24"
"""The prefix of the host's eth0, which contains its gateway and etcd."""

CONFIG_KEY = f"{PREFIX}/config"

LEASES = {
    "vxlan": '{"PublicIP":"10.10.10.102","BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"1a:71:ad:7e:3b:3f"}}',
    "host-gw": '{"PublicIP":"10.10.10.102","BackendType":"host-gw"}',
}


@pytest.fixture
def host(overlay) -> Iterator[Host]:
    """A host of the lab. Afterwards no object of flannel remains, neither on the host nor in the store."""
    host = overlay.hosts["docker1"]
    yield host
    host.flannelctl("--store", overlay.etcd.url, "cleanup")
    overlay.delete_leases()


def reaches_gateway(host: Host) -> bool:
    return host.run(["ping", "-c", "1", "-W", "5", "10.10.10.1"], check=False).returncode == 0


def overlap(host: Host) -> dict[str, str]:
    """Return doctor's findings about the network and the underlay."""
    found = json.loads(host.flannelctl("--json", "doctor", check=False))["findings"]
    return next(one for one in found if one["code"] == "network-overlaps-underlay")


def put_config(overlay, **config) -> None:
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", json.dumps(config))


def put_lease(overlay, subnet: str, lease: str) -> None:
    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/{subnet.replace('/', '-')}", lease)


def wait_refused(overlay, host: Host, text: str) -> Status:
    """Wait until the network config in the store is refused for this reason. Return the status."""
    return overlay.wait_status(
        host,
        lambda status: status.network.trouble is not None and text in status.network.trouble.text,
        f"refuses the config: {text}",
    )


def routed(host: Host, destination: str) -> list[tuple[str, str]]:
    """Return device and protocol of the host's routes to a prefix."""
    found = [route for route in host.routes() if route["dst"] == destination]
    return [(route["dev"], route.get("protocol", "boot")) for route in found]


def sent_by_tunnel(host: Host) -> int:
    return int(host.run(["cat", "/sys/class/net/flannel0/statistics/tx_packets"]).stdout)


def test_a_network_that_contains_the_store_is_refused_and_the_last_valid_one_remains(overlay) -> None:
    """At a first start, the plan is empty. A running host continues, and reads the corrected config."""
    host, text = overlay.hosts["docker3"], "0.0.0.0/1 contains 10.10.10.1, an address of the store"
    routes = host.routes()
    put_config(overlay, Network="0.0.0.0/1", SubnetLen=24)
    host.launch_flanneld(f"--store={overlay.etcd.url}")

    status = wait_refused(overlay, host, text)
    assert not status.is_ready
    assert text in (status.waiting_for or "")
    assert host.routes() == routes
    found = json.loads(host.flannelctl("--json", "doctor", check=False))["findings"]
    (error,) = [one for one in found if one["severity"] == "error"]
    assert error["code"] == "bad-config"
    assert text in error["cause"]
    assert overlay.log(host).count(text) == 1

    put_config(overlay, Network="10.100.0.0/16")
    overlay.wait_ready(host)
    routes = host.routes()
    put_config(overlay, Network="0.0.0.0/1", SubnetLen=24)
    assert wait_refused(overlay, host, text).is_ready
    assert host.routes() == routes

    put_config(overlay, Network="10.100.0.0/16", SubnetMin="10.100.1.0")
    overlay.wait_status(host, lambda status: status.network.trouble is None, "takes the good config")
    host.flannelctl("--store", overlay.etcd.url, "cleanup")
    overlay.delete_leases()


BRIDGE = "ip link add br9 type bridge && ip link set br9 up && ip address add 10.78.0.1/16 dev br9"


@pytest.mark.parametrize(("network", "command"), [(UNDERLAY, "true"), ("10.78.0.0/16", BRIDGE)])
def test_a_network_that_a_link_of_the_host_has_is_refused(
    overlay, host: Host, network: str, command: str
) -> None:
    """The route of the link remains, also after a cleanup."""
    host.run(["sh", "-c", command])
    routes = routed(host, network)
    put_config(overlay, Network=network, SubnetLen=28)
    host.launch_flanneld(f"--store={overlay.etcd.url}")

    wait_refused(overlay, host, network)
    assert routed(host, network) == routes
    assert reaches_gateway(host)
    host.flannelctl("--store", overlay.etcd.url, "cleanup")

    assert routed(host, network) == routes
    host.run(["ip", "link", "delete", "br9"], check=False)


def test_a_network_with_a_static_route_is_refused_until_the_route_is_removed(overlay, host: Host) -> None:
    network = "10.77.0.0/16"
    host.run(["ip", "route", "add", network, "via", "10.10.10.1"])
    put_config(overlay, Network=network, SubnetLen=28)
    host.launch_flanneld(f"--store={overlay.etcd.url}")

    wait_refused(overlay, host, f"route {network} via 10.10.10.1 dev eth0")
    assert routed(host, network) == [("eth0", "boot")]
    host.run(["ip", "route", "delete", network])

    overlay.wait_ready(host)
    assert routed(host, network) == [("flannel0", "kernel")]


def test_a_static_route_with_the_prefix_of_a_lease_remains_also_after_cleanup(overlay, host: Host) -> None:
    """The route has the form of a route of the original, but its gateway is not the host of the lease."""
    subnet = "10.100.251.0/24"
    host.run(["ip", "route", "add", subnet, "via", "10.10.10.77"])
    overlay.set_backend("host-gw")
    overlay.join(host)
    put_lease(overlay, subnet, LEASES["host-gw"])
    overlay.wait_status(host, lambda status: bool(status.refused_peers), "refuses the lease")

    host.flannelctl("--store", overlay.etcd.url, "cleanup")

    assert host.routes(subnet)[0]["gateway"] == "10.10.10.77"
    host.run(["ip", "route", "delete", subnet])


@pytest.mark.parametrize("kind", ["vxlan", "host-gw"])
def test_the_route_of_a_bridge_with_the_prefix_of_a_lease_remains(overlay, host: Host, kind: str) -> None:
    """The peer is refused by name until the bridge is removed."""
    subnet = "10.100.250.0/24"
    host.run(["sh", "-c", "ip link add br9 type bridge && ip link set br9 up"])
    host.run(["ip", "address", "add", "10.100.250.1/24", "dev", "br9"])
    overlay.set_backend(kind)
    overlay.join(host)

    put_lease(overlay, subnet, LEASES[kind])
    status = overlay.wait_status(host, lambda status: bool(status.refused_peers), "refuses the lease")

    assert routed(host, subnet) == [("br9", "kernel")]
    assert f"{subnet} has a route of another program" in status.refused_peers[0].reason
    assert any(f"contains {subnet}, routed by another program" in note for note in status.backend.notes)
    host.run(["ip", "link", "delete", "br9"])
    overlay.wait_status(host, lambda status: not status.refused_peers, "sends to the peer")


def test_no_packet_loops_when_a_peer_has_an_address_in_the_overlay(overlay, host: Host) -> None:
    """A short and a fragmented ping cause only a few packets of the tunnel."""
    put_config(overlay, Network="10.100.0.0/16", SubnetMax="10.100.127.0")
    overlay.join(host)
    put_lease(overlay, "10.100.200.0/24", '{"PublicIP":"10.100.200.9"}')
    overlay.wait_status(host, lambda status: status.peers == 1, "knows the peer")
    before = sent_by_tunnel(host)

    for size in ("56", "3000"):
        host.run(["ping", "-c", "1", "-W", "1", "-s", size, "10.100.200.5"], check=False)

    assert sent_by_tunnel(host) - before < 10
    refused = overlay.status(host).refused_peers
    assert ["10.100.200.9 is in 10.100.0.0/16" in peer.reason for peer in refused] == [True]


@pytest.mark.parametrize("kind", ["vxlan", "host-gw"])
def test_the_route_of_the_underlay_with_the_prefix_of_a_lease_remains(overlay, host: Host, kind: str) -> None:
    """The peer with this lease is refused. Before this lease exists, the network causes a warning."""
    put_config(overlay, Network="10.10.0.0/16", SubnetMin="10.10.100.0", Backend={"Type": kind})
    overlay.join(host)
    assert overlap(host)["severity"] == "warning"

    put_lease(overlay, UNDERLAY, LEASES[kind])
    status = overlay.wait_status(host, lambda status: bool(status.refused_peers), "refuses the lease")

    assert routed(host, UNDERLAY) == [("eth0", "kernel")]
    assert reaches_gateway(host)
    assert f"{UNDERLAY} is the prefix of eth0 itself" in status.refused_peers[0].reason


DANGEROUS = {
    "the store": ('{"Network":"0.0.0.0/1","SubnetLen":24}', "contains 10.10.10.1, an address of the store"),
    "the underlay": ('{"Network":"192.168.50.0/24","SubnetLen":28}', "is the prefix of eth0 itself"),
    "the gateway": ('{"Network":"172.31.0.0/16"}', "contains 172.31.0.1, the default gateway"),
    "another network": ('{"Network":"10.200.0.0/16"}', "that admits this host's subnet"),
    "another backend": ('{"Network":"10.100.0.0/16","Backend":{"Type":"vxlam"}}', "vxlam"),
    "rubbish": ("rubbish", "a valid network config"),
    "nothing": ("", "flannel config not found"),
}


def test_a_running_network_survives_each_dangerous_config(overlay, ping_stream) -> None:
    """Each dangerous config is refused with reason and remedy, and no packet is lost. A DNS server causes a
    warning.
    """
    host, other = overlay.hosts["docker3"], overlay.hosts["docker4"]
    put_config(overlay, Network="10.100.0.0/16", SubnetLen=24)
    overlay.lab.router.run(["ip", "address", "add", "172.31.0.1/32", "dev", "gw-right"])
    host.run(["ip", "route", "replace", "default", "via", "172.31.0.1", "dev", "eth0", "onlink"])
    host.run(["sh", "-c", "echo nameserver 10.97.0.53 >/etc/resolv.conf"])
    for each in (host, other):
        overlay.join(each)
    overlay.settle(host, other)

    with ping_stream(host, other.lease().network_address, interval_s=0.01) as stream:
        stream.wait_answered()
        for text, reason in DANGEROUS.values():
            overlay.etcd.etcdctl(*(("put", CONFIG_KEY, text) if text else ("del", CONFIG_KEY)))
            status = wait_refused(overlay, host, reason)
            assert status.is_ready
            assert status.network.trouble is not None
            assert status.network.trouble.hint
        put_config(overlay, Network="10.96.0.0/12", SubnetLen=24)
        status = overlay.wait_status(host, lambda one: one.network.trouble is None, "takes a larger network")
        stream.wait_answered()

    assert stream.lost() == []
    assert any("10.97.0.53, a DNS server of this host" in note for note in status.backend.notes)
    for each in (host, other):
        each.flannelctl("--store", overlay.etcd.url, "cleanup")
