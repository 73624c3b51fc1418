"""Two flannelds on each host with different prefixes in etcd and subnet files, as with flannel."""

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from pyflannel.model.link import split_alias

PREFIXES = {"green": "/coreos.com/network", "blue": "/coreos.com/blue"}
CONFIGS = {
    "green": {"Network": "10.100.0.0/16"},
    "blue": {"Network": "10.101.0.0/16", "Backend": {"Type": "udp", "Port": 8286}},
}
FILES = {"green": "/run/flannel/subnet.env", "blue": "/run/flannel/blue.env"}
SOON_S = 60.0


def flannelctl(host: Host, name: str, *arguments: str, endpoints: str = "") -> str:
    """Run flannelctl for the flanneld of a prefix, which a variable selects."""
    variables = [f"FLANNELD_ETCD_PREFIX={PREFIXES[name]}", f"FLANNELD_ETCD_ENDPOINTS={endpoints}"]
    return host.run(["env", *variables, "flannelctl", *arguments]).stdout


def owner_of(host: Host, name: str) -> str:
    status = json.loads(flannelctl(host, name, "status", "--json"))
    assert status["is_ready"]
    return str(status["owner"])


def device_address(host: Host, name: str) -> str:
    """Return the address of the host's device in a network, from the subnet file."""
    text = host.run(["cat", FILES[name]]).stdout
    line = next(line for line in text.splitlines() if line.startswith("FLANNEL_SUBNET="))
    return line.removeprefix("FLANNEL_SUBNET=").rpartition(".")[0] + ".0"


def devices(host: Host) -> dict[str, str]:
    """Return the mark of each TUN device by its address."""
    links = json.loads(host.run(["ip", "-j", "-d", "addr"]).stdout)
    return {
        link["addr_info"][0]["local"]: split_alias(link.get("ifalias", ""))[0]
        for link in links
        if link.get("linkinfo", {}).get("info_kind") == "tun"
    }


def wait_reached(host: Host, address: str) -> None:
    """Wait until the address answers, because a host may be ready before its peers have read its lease."""
    wait_until(
        lambda: host.run(["ping", "-c1", "-W1", address], check=False).returncode == 0,
        what=f"{host.name} reaches {address}",
        deadline_s=SOON_S,
    )


def test_two_prefixes_on_one_host_have_separate_directories_and_devices(
    new_network: Callable[..., Any],
) -> None:
    """After a restart or a cleanup of one flanneld, the other flanneld keeps its lease, device and peers."""
    network = new_network("docker1", "docker4", config=None)
    network.etcd.start()
    for name, prefix in PREFIXES.items():
        network.etcdctl("put", f"{prefix}/config", json.dumps(CONFIGS[name]))
    endpoints = network.etcd.endpoint

    def start(host: Host, name: str) -> Any:
        flags = [f"--etcd-endpoints={endpoints}", f"--subnet-file={FILES[name]}"]
        if name == "blue":
            flags.append(f"--etcd-prefix={PREFIXES[name]}")
        return host.start_service(["flanneld", *flags], name=name)

    hosts = list(network.hosts.values())
    _, blue, *_ = together([partial(start, host, name) for host, name in product(hosts, PREFIXES)])
    addresses = {(host.name, name): device_address(host, name) for host in hosts for name in PREFIXES}

    first, second = hosts
    before = devices(first)
    assert before == {
        addresses["docker1", "green"]: "pyflannel",
        addresses["docker1", "blue"]: "pyflannel /run/flannel/@coreos.com@blue",
    }
    for name in PREFIXES:
        wait_reached(first, addresses[second.name, name])
    owner = owner_of(first, "blue")
    assert owner != owner_of(first, "green")

    blue.kill()
    start(first, "blue")
    assert owner_of(first, "blue") == owner
    assert devices(first) == before

    removed = flannelctl(first, "blue", "cleanup", f"--subnet-file={FILES['blue']}", endpoints=endpoints)
    assert "removed lease 10.101." in removed
    assert list(devices(first).values()) == ["pyflannel"]
    assert not network.etcdctl("get", "--prefix", f"/coreos.com/blue/subnets/{addresses['docker1', 'blue']}")
    wait_reached(first, addresses[second.name, "green"])
    assert owner_of(first, "green")
    first.run(["test", "-e", FILES["green"]])
