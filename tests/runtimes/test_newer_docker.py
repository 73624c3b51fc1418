"""Docker 29 with each of its firewall backends: the network plugin, and the packets that Docker drops."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyflannel.lab.containers import DockerContainer, fetch, serving
from pyflannel.lab.lab import Lab
from pyflannel.lab.topology import LEFT, Host
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import together
from testlab.container_ways import segment_lab
from testlab.docker_requests import NAMES, requests_for_names

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    pytest.mark.skipif(shutil.which("docker") is None, reason="no client: Debian's docker.io has it"),
]

SLEEP = ["sleep", "100000"]
PLUGIN = ["-d", "flannel", "--ipam-driver", "flannel"]
BRIDGE = ["-d", "bridge", "--ipam-driver", "flannel", "-o", "com.docker.network.driver.mtu=1450"]
UNPROTECTED = "com.docker.network.bridge.gateway_mode_ipv4=nat-unprotected"
"""The option that the finding of doctor names."""


@dataclass
class Pair:
    """Two hosts with Docker 29. Each host has a container `web` in a network of the plugin."""

    lab: Lab

    @property
    def hosts(self) -> list[Host]:
        return list(self.lab.hosts.values())

    def web(self, host: Host) -> DockerContainer:
        return DockerContainer(host, host.engine, "web", network="web")


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def pair(request: pytest.FixtureRequest, go_programs: Path) -> Iterator[Pair]:
    # By default, this engine accepts neither the client nor the runc of Debian 12.
    dockerd = f"env DOCKER_MIN_API_VERSION=1.24 {go_programs}/dockerd --feature=time-namespaces=false"
    command = f"{dockerd} --userland-proxy=false --storage-driver=overlay2 --firewall-backend={request.param}"
    config = {
        "Network": "10.100.0.0/16",
        "Backend": {"Type": "vxlan"},
        "EnableNFTables": request.param == "nftables",  # flannel and Docker use the same firewall engine
    }
    with segment_lab(f"newer-{request.param}", {"config": config}) as (lab, etcd, _):

        def prepare(host: Host) -> None:
            host.start_flanneld(f"--store={etcd.url}", "--docker-plugin")
            host.engine.start(command)
            host.engine.import_image(lab.directory / "busybox.tar")
            host.engine.docker("network", "create", *PLUGIN, "web")
            page = serving(f"page of {host.name}", name="web")
            host.engine.run_container("web", page, network="web", options=["--publish=8080:80"])

        together([lambda host=host: prepare(host) for host in lab.hosts.values()])
        yield Pair(lab)


def test_networks_of_the_plugin_are_not_affected(pair: Pair) -> None:
    here, there = pair.hosts

    assert fetch(pair.web(here), pair.web(there).address) == f"page of {there.name}"
    assert fetch(pair.web(here), there.address, port=8080) == f"page of {there.name}"
    assert ping(pair.web(here), LEFT.gateway.ip).is_reached  # masqueraded: the router has no route back
    assert "docker-drops" not in here.flannelctl("doctor", check=False)


def test_doctor_names_the_option_for_a_bridge_network(pair: Pair) -> None:
    here, there = pair.hosts
    for name, options in (("closed", []), ("open", ["-o", UNPROTECTED])):
        here.engine.docker("network", "create", *BRIDGE, *options, name)
        container = here.engine.run_container(name, SLEEP, network=name)
        reached = ping(pair.web(there), container.address, count=1).is_reached
        findings = json.loads(here.flannelctl("doctor", "--json", check=False))["findings"]
        named = [one["fix"] for one in findings if one["code"] == "docker-drops"]
        here.engine.docker("rm", "--force", name)
        here.engine.docker("network", "rm", name)

        assert reached == (name == "open")
        assert len(named) == (0 if name == "open" else 1)
        assert all(UNPROTECTED in fix for fix in named)


def test_docker_passes_no_name_to_a_plugin_except_in_an_option(pair: Pair) -> None:
    """Names across hosts depend on this property of Docker:
    docs/decisions/0070-no-names-of-containers-across-hosts.md.
    """
    requests = requests_for_names(pair.hosts[0])

    assert "/NetworkDriver.CreateEndpoint" in requests
    assert [name for name in NAMES if name in requests] == ["of-option"]


def test_containers_and_networks_end(pair: Pair) -> None:
    host = pair.hosts[0]
    host.engine.docker("rm", "--force", "web")
    host.engine.docker("network", "rm", "web")

    assert not [one["ifname"] for one in host.links() if one["ifname"].startswith(("flbr", "flv"))]
