"""A network that overlaps the underlay is reported, and never takes the underlay's own route away."""

import json
import os
from collections.abc import Iterator

import pytest

from pyflannel.lab.host import Host
from pyflannel.lab.lab import PREFIX

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

UNDERLAY = "10.10.10.0/24"
"""The prefix of the host's eth0, which leads to its gateway and to etcd."""

LEASES = {
    "vxlan": '{"PublicIP":"10.10.10.102","BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"1a:71:ad:7e:3b:3f"}}',
    "host-gw": '{"PublicIP":"10.10.10.102","BackendType":"host-gw"}',
}


@pytest.fixture
def host(overlay) -> Iterator[Host]:
    """A host of the lab; nothing of flannel is on it afterwards, in the store neither."""
    host = overlay.hosts["docker1"]
    yield host
    host.flannelctl("--store", overlay.etcd.url, "cleanup")
    overlay.delete_leases()


def connected(host: Host) -> list[tuple[str, str]]:
    """Return device and protocol of the host's routes to the prefix of its underlay."""
    return [(route["dev"], route["protocol"]) for route in host.routes() if route["dst"] == UNDERLAY]


def reaches_gateway(host: Host) -> bool:
    return host.run(["ping", "-c", "1", "-W", "5", "10.10.10.1"], check=False).returncode == 0


def overlap(host: Host) -> dict[str, str]:
    """Return what doctor finds of the network and the underlay."""
    found = json.loads(host.flannelctl("--json", "doctor", check=False))["findings"]
    return next(one for one in found if one["code"] == "network-overlaps-underlay")


def test_a_network_that_is_the_prefix_of_the_underlay_leaves_its_route(overlay, host: Host) -> None:
    """With udp the route of the network is to the whole of it. Log, status and doctor name the conflict."""
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", json.dumps({"Network": UNDERLAY, "SubnetLen": 28}))

    overlay.join(host)

    text = f"Network {UNDERLAY} is the prefix of eth0 itself"
    assert connected(host) == [("eth0", "kernel")]
    assert reaches_gateway(host)
    assert any(text in note for note in overlay.status(host).backend.notes)
    assert overlay.log(host).count(text) == 1
    assert overlap(host)["cause"].startswith(text)


@pytest.mark.parametrize("kind", ["vxlan", "host-gw"])
def test_a_lease_that_is_the_prefix_of_the_underlay_leaves_its_route(overlay, host: Host, kind: str) -> None:
    """The peer that has it is refused, and the network draws a warning before there is any such lease."""
    config = {"Network": "10.10.0.0/16", "SubnetMin": "10.10.100.0", "Backend": {"Type": kind}}
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", json.dumps(config))
    overlay.join(host)
    assert overlap(host)["severity"] == "warning"

    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/{UNDERLAY.replace('/', '-')}", LEASES[kind])
    status = overlay.wait_status(host, lambda status: bool(status.refused_peers), "refuses the lease")

    assert connected(host) == [("eth0", "kernel")]
    assert reaches_gateway(host)
    assert f"{UNDERLAY} is the prefix of eth0 itself" in status.refused_peers[0].reason
