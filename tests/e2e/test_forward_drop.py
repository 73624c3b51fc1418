"""Docker has set the policy of FORWARD to DROP, but containers of other hosts are reachable."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pyflannel.lab.containers import DockerContainer, write_image
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import Sandbox
from pyflannel.lab.topology import COOKBOOK, LEFT, Host, Topology
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import together, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("dockerd") is None, reason="no dockerd: Debian's docker.io has it"
)

TWO_HOSTS = Topology(COOKBOOK.segments, (COOKBOOK.hosts[0], COOKBOOK.hosts[2]))
DOCKER_OPTIONS = Path("/etc/default/docker")
SOON_S = 60.0
PORT = 7007

TELLING = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    while True:
        client, address = server.accept()
        client.sendall(address[0].encode())
        client.close()
"""
"""A server that sends each client the client's address."""

ASKING = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as server:
    print(server.recv(64).decode())
"""


@dataclass(frozen=True)
class Network:
    lab: Lab
    etcd: EtcdServer
    daemons: dict[str, Program]
    containers: dict[str, DockerContainer]


@pytest.fixture(scope="module", params=[False, True], ids=["iptables", "nftables"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    with Lab(f"t{os.getpid()}-drop", TWO_HOSTS) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        nftables = str(request.param).lower()
        etcd.etcdctl("put", f"{PREFIX}/config", f'{{"Network":"10.100.0.0/16","EnableNFTables":{nftables}}}')
        image = lab.directory / "busybox.tar"
        write_image(image)
        lab.each(lambda host: host.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward"]))
        hosts = list(lab.hosts.values())
        daemons = together(
            [partial(host.start_flanneld, f"--store={etcd.url}", "--ip-masq") for host in hosts]
        )
        containers = together([partial(start_docker, host, image=image) for host in hosts])
        yield Network(
            lab,
            etcd,
            dict(zip(lab.hosts, daemons, strict=True)),
            dict(zip(lab.hosts, containers, strict=True)),
        )


def start_docker(host: Host, *, image: Path) -> DockerContainer:
    host.run(["mk-docker-opts.sh", "-c", "-d", DOCKER_OPTIONS])
    host.engine.start("dockerd $DOCKER_OPTS", environment_file=DOCKER_OPTIONS)
    host.engine.import_image(image)
    return host.engine.run_container(f"on-{host.name}", ["busybox", "sleep", "3600"])


def start_server(place: DockerContainer | Sandbox) -> None:
    """Start the server, and wait until it accepts connections."""
    place.start_in_network([sys.executable, "-c", TELLING, str(PORT)], name="telling")
    wait_until(
        lambda: place.run_in_network(["ss", "-Hltn", f"sport = :{PORT}"]).stdout != "",
        what="the server listens",
        deadline_s=SOON_S,
    )


def seen_from(place: DockerContainer | Sandbox, address: IPv4Address) -> str:
    """Return the client's address as the server at `address` sees it."""
    asked = place.run_in_network([sys.executable, "-c", ASKING, str(address), str(PORT)], check=False)
    return asked.stdout.strip() or asked.stderr


def wait_reached(container: DockerContainer, address: IPv4Address) -> None:
    """Wait until the container reaches the address. After a change of the policy, flanneld adds its rules."""
    wait_until(
        lambda: ping(container, address, count=1).is_reached, what=f"{address} is reached", deadline_s=SOON_S
    )


def test_docker_does_not_masquerade_and_forward_drops(network: Network) -> None:
    for host in network.lab.hosts.values():
        options = host.run(["cat", DOCKER_OPTIONS]).stdout
        assert "--ip-masq=false" in options
        assert "-P FORWARD DROP" in host.run(["iptables", "-S", "FORWARD"]).stdout
        assert "MASQUERADE" not in host.run(["iptables", "-t", "nat", "-S", "POSTROUTING"]).stdout


def test_containers_of_other_hosts_are_reached_and_see_real_addresses(network: Network) -> None:
    one, other = network.containers.values()
    wait_reached(one, other.address)
    wait_reached(other, one.address)

    start_server(other)

    assert seen_from(one, other.address) == str(one.address)


def test_packets_to_outside_have_the_address_of_the_host(network: Network) -> None:
    host = network.lab.hosts["docker1"]
    container = network.containers["docker1"]
    wait_reached(container, LEFT.gateway.ip)

    start_server(network.lab.router)

    assert seen_from(container, LEFT.gateway.ip) == str(host.address)


def test_a_restart_of_docker_keeps_the_accept(network: Network) -> None:
    """Docker creates its own rules again, before those of flanneld."""
    host = network.lab.hosts["docker3"]
    before = network.containers["docker1"]
    host.engine.stop()
    host.engine.start("dockerd $DOCKER_OPTS", environment_file=DOCKER_OPTIONS)

    host.engine.docker("start", "on-docker3")
    network.containers["docker3"] = DockerContainer(host, host.engine, "on-docker3")

    wait_reached(before, network.containers["docker3"].address)


def test_without_forward_rules_no_container_is_reached(network: Network) -> None:
    """The policy takes effect, and disabled rules are removed. The test is last, because it stops packets."""
    host = network.lab.hosts["docker3"]
    one, other = network.containers.values()

    network.daemons["docker3"].stop()
    host.start_flanneld(f"--store={network.etcd.url}", "--ip-masq", "--iptables-forward-rules=false")

    assert not ping(one, other.address, count=2).is_reached
    assert "FLANNEL-FWD" not in host.run(["iptables-save"]).stdout
