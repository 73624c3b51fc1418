"""vxlan and host-gw on real hosts: their published data and reachable peers, and invalid leases."""

import json
import re
from collections.abc import Callable
from typing import Any

from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.topology import Host
from pyflannel.lab.traffic import wait_reached
from pyflannel.lab.waiting import wait_until
from pyflannel.model.lease import Vtep
from pyflannel.wire.lease_json import parse_vtep
from testlab.documents import read_document

SOON_S = 60.0
HOSTS = ("docker1", "docker2", "docker4")
"""Two hosts on one segment, one behind the router."""

NewNetwork = Callable[..., Any]


def config(**backend: object) -> str:
    """Return a config in which hosts do not choose the subnets of the invalid leases."""
    return json.dumps({"Network": "10.100.0.0/16", "SubnetMax": "10.100.249.0", "Backend": backend})


def containers(network: Any, mtu: int, *names: str) -> list[NamespaceContainer]:
    hosts = [network.hosts[name] for name in names]
    return [host.container(f"on-{host.name}", gateway=host.gateway(), mtu=mtu) for host in hosts]


def mac(host: Host, device: str) -> str | None:
    return next((link["address"] for link in host.links() if link["ifname"] == device), None)


def published(network: Any, name: str) -> Vtep | None:
    value = json.loads(network.record(network.lease_key(name))["value"])
    assert value["BackendType"] == "vxlan"
    return parse_vtep(json.dumps(value["BackendData"]))


def refused(network: Any, name: str) -> dict[str, str]:
    return {peer["subnet"]: peer["reason"] for peer in network.status(name)["refused_peers"]}


def lease(address: str, data: object, backend_type: str = "vxlan") -> str:
    return json.dumps({"PublicIP": address, "BackendType": backend_type, "BackendData": data})


BAD_LEASES = {
    "10.100.250.0-24": (lease("10.99.10.250", {"VNI": 7, "VtepMAC": "00:00:00:00:00:00"}), "00:00"),
    "10.100.251.0-24": (lease("10.99.10.251", {"VNI": 7, "VtepMAC": 7}), "decoding subnet lease JSON"),
    "10.100.252.0-24": (lease("10.99.10.252", {"VNI": 8, "VtepMAC": "0e:2a:00:00:00:01"}), "its VNI is 8"),
    "10.100.253.0-24": (lease("10.99.10.253", None, "ipip"), "Ignoring non-vxlan subnet: type=ipip"),
    "10.100.254.0-24": (
        lease("127.0.0.1", {"VNI": 7, "VtepMAC": "0e:2a:00:00:00:01"}),
        "not the address of a host",
    ),
}
"""Keys, values, and the messages that must report them."""


def test_vxlan_reaches_all_hosts_except_those_with_invalid_leases(new_network: NewNetwork) -> None:
    network = new_network(*HOSTS, config=config(Type="vxlan", VNI=7, DirectRouting=True, Name="tunnel"))
    network.start_all("--ip-blackhole-route")
    for name in HOSTS:
        network.wait_ready(name)

    docker1 = network.hosts["docker1"]
    stations = containers(network, 1450, *HOSTS)
    wait_reached(stations, deadline_s=SOON_S)

    log, status = network.log("docker1"), network.status("docker1")
    assert "VXLAN config: VNI=7 Port=0 GBP=false Learning=false DirectRouting=true" in log
    assert log.count("Backend.Name has no effect") == 1
    assert status["backend"]["link"] == "flannel.7"
    assert re.search(r"^note +Backend\.Name has no effect", docker1.flannelctl("status"), re.MULTILINE)
    assert status["backend"]["mtu"] == int(docker1.subnet_env()["FLANNEL_MTU"]) == 1450
    assert published(network, "docker1") == Vtep(mac=str(mac(docker1, "flannel.7")), vni=7)
    near, far = (str(network.hosts[name].lease()) for name in ("docker2", "docker4"))
    devices = {route["dst"]: route["dev"] for route in docker1.routes() if route["dst"] in (near, far)}
    assert devices == {near: "eth0", far: "flannel.7"}
    (hole,) = docker1.routes("type", "blackhole")
    assert (hole["dst"], hole["metric"]) == (str(docker1.lease()), 2**32 - 1)

    for key, (value, _) in BAD_LEASES.items():
        network.put(f"subnets/{key}", value)
    wait_until(
        lambda: len(refused(network, "docker1")) == len(BAD_LEASES),
        what="every invalid lease is refused",
        deadline_s=SOON_S,
    )

    said = refused(network, "docker1")
    for key, (_, reason) in BAD_LEASES.items():
        subnet = key.replace("-", "/")
        assert reason in said[subnet]
        assert f"{said[subnet]} lease={subnet}" in network.log("docker1")
    peers = read_document(["peers"], docker1.flannelctl("peers", "--json"))["peers"]
    assert {peer["subnet"]: peer["refused"] for peer in peers} == {**said, near: None, far: None}
    assert len(re.findall("refused: ", docker1.flannelctl("peers"))) == len(BAD_LEASES)
    assert network.status("docker1")["is_ready"]
    wait_reached(stations, deadline_s=SOON_S)

    docker1.flannelctl("cleanup")
    assert docker1.routes("type", "blackhole") == []
    assert mac(docker1, "flannel.7") is None


def test_a_vtep_keeps_its_mac_address_after_loss_of_device_and_daemon(new_network: NewNetwork) -> None:
    network = new_network("docker1", "docker4", config=config(Type="vxlan"))
    daemon = network.start_all()[0]
    docker1 = network.hosts["docker1"]
    before = mac(docker1, "flannel.1")
    value = network.record(network.lease_key("docker1"))["value"]

    docker1.run(["ip", "link", "delete", "flannel.1"])
    wait_until(lambda: mac(docker1, "flannel.1") == before, what="the device", deadline_s=SOON_S)
    daemon.kill()
    docker1.run(["ip", "link", "delete", "flannel.1"])
    network.start("docker1")

    network.wait_ready("docker1")
    assert mac(docker1, "flannel.1") == before
    assert network.record(network.lease_key("docker1"))["value"] == value
    wait_reached(containers(network, 1450, "docker1", "docker4"), deadline_s=SOON_S)


def test_host_gw_reports_peers_that_are_not_on_its_link(new_network: NewNetwork) -> None:
    network = new_network(*HOSTS, config=config(Type="host-gw"))
    network.start_all()
    for name in HOSTS:
        network.wait_ready(name)

    docker1, far = network.hosts["docker1"], network.hosts["docker4"]
    wait_reached(containers(network, 1500, "docker1", "docker2"), deadline_s=SOON_S)
    wait_until(lambda: refused(network, "docker1"), what="docker4 is refused", deadline_s=SOON_S)

    assert refused(network, "docker1").keys() == {str(far.lease())}
    reason = refused(network, "docker1")[str(far.lease())]
    assert reason.startswith(f"{far.address} is not on the link of this host, which host-gw needs: ")
    assert network.status("docker1")["backend"] == {
        "type": "host-gw",
        "link": None,
        "mtu": 1500,
        "notes": [],
        "is_encrypted": False,
        "port": None,
        "ipv6_link": None,
        "ipv6_port": None,
        "received": None,
        "sent": None,
    }
    assert f"refused peer  {far.lease()} at docker4 ({far.address}): " in docker1.flannelctl("status")
    assert [route["dev"] for route in docker1.routes("proto", "80")] == ["eth0"]


def test_host_gw_behind_a_nat_waits_without_a_lease(new_network: NewNetwork) -> None:
    """The peers of a host behind a NAT could not send to the host."""
    network = new_network("docker1", config=config(Type="host-gw"))
    daemon = network.launch("docker1", "--public-ip=203.0.113.9")

    network.wait_logged("docker1", "Waiting for another backend: your PublicIP differs from interface IP")
    status = network.wait_status(
        "docker1", lambda status: "on a NAT" in (status["waiting_for"] or ""), "reports the cause of its wait"
    )
    network.put("config", config(Type="vxlan"))
    network.wait_ready("docker1")

    assert not status["is_ready"]
    assert status["lease"]["subnet"] is None
    assert daemon.exit_code is None
    assert network.log("docker1").count("your PublicIP differs") == 1


def test_a_copy_of_a_host_gets_another_vtep(new_network: NewNetwork) -> None:
    """The copy starts with the identity of a running host, and detects that it is another host."""
    network = new_network("docker1", "docker4", config=config(Type="vxlan"))
    network.start("docker1", "--node-id=twin")
    before = network.record(network.lease_key("docker1"))["value"]

    network.start("docker4", "--node-id=twin")

    wait_reached(containers(network, 1450, "docker1", "docker4"), deadline_s=SOON_S)
    macs = {name: mac(network.hosts[name], "flannel.1") for name in ("docker1", "docker4")}
    for name in macs:
        assert published(network, name) == Vtep(mac=str(macs[name]), vni=1)
    assert macs["docker1"] != macs["docker4"]
    assert network.record(network.lease_key("docker1"))["value"] == before


def test_alloc_only_acquires_a_subnet(new_network: NewNetwork) -> None:
    network = new_network("docker1", config=config(Type="alloc"))
    network.start("docker1")

    status = network.wait_ready("docker1")

    docker1 = network.hosts["docker1"]
    assert status["backend"] == {
        "type": "alloc",
        "link": None,
        "mtu": 1500,
        "notes": [],
        "is_encrypted": False,
        "port": None,
        "ipv6_link": None,
        "ipv6_port": None,
        "received": None,
        "sent": None,
    }
    assert docker1.subnet_env()["FLANNEL_MTU"] == "1500"
    assert network.record(network.lease_key("docker1"))["value"].startswith('{"PublicIP":"10.10.10.101",')
    assert {link["ifname"] for link in docker1.links()} == {"lo", "eth0"}
    assert [route["dst"] for route in docker1.routes()] == ["default", "10.10.10.0/24"]
