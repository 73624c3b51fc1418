"""The network plugin for Docker with real engines and the udp backend: commands of its guide, and faults."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.containers import DockerContainer, fetch, serving, write_image
from pyflannel.lab.program import Program
from pyflannel.lab.topology import LEFT, Host
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import together, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("dockerd") is None, reason="no dockerd: Debian's docker.io has it"
)

GUIDE = (Path(__file__).parents[2] / "docs/guides/docker-plugin.md").read_text()
DAEMON, CREATE, RUN = re.findall(r"^```\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)[0].splitlines()
"""The three commands of the guide."""

DOCKER_OPTIONS = Path("/etc/default/docker")
STATE = "var/lib/flannel/docker-networks.json"
SOON_S = 60.0
PUBLISH = "--publish=8080:80"


def words(command: str, **instead: str) -> list[str]:
    return [instead.get(word, word) for word in command.split()]


@pytest.fixture(scope="module")
def daemons() -> dict[str, Program]:
    return {}


@pytest.fixture(scope="module")
def network(network_of: Callable[..., Any], daemons: dict[str, Program]) -> Iterator[Any]:
    """Two hosts with the udp backend. On docker1, Docker has the options of mk-docker-opts.

    On docker4, Docker has no options, and runs before flanneld.
    """
    with network_of("docker1", "docker4", store="sqlite") as network:
        write_image(network.lab.directory / "busybox.tar")
        together([partial(start_host, network, name, daemons) for name in network.hosts])
        yield network


def start_host(network: Any, name: str, daemons: dict[str, Program]) -> None:
    host = network.hosts[name]
    if name == "docker4":
        host.engine.start("dockerd")
    daemons[name] = network.start(name, *words(DAEMON)[2:])
    if name == "docker1":
        host.run(["mk-docker-opts", "-c", "-d", DOCKER_OPTIONS])
        host.engine.start("dockerd --live-restore $DOCKER_OPTS", environment_file=DOCKER_OPTIONS)
    host.engine.import_image(network.lab.directory / "busybox.tar")
    host.run(words(CREATE))
    image = {"IMAGE": "busybox", "--detach": f"-d {PUBLISH}"}
    run = " ".join(words(RUN, **image)).split()
    host.run([*run, *serving(f"page of {name}", name="web")])


def container(host: Host, name: str = "web1", network: str = "web") -> DockerContainer:
    return DockerContainer(host, host.engine, name, network=network)


def get(host: Host, url: str) -> str:
    """Fetch a page from the host, and return it; "" without an answer."""
    command = ["busybox", "timeout", "5", "busybox", "wget", "-q", "-O", "-", url]
    return host.run(command, check=False).stdout


def names_of_links(host: Host) -> list[str]:
    return sorted(link["ifname"] for link in host.links())


def refused(host: Host, *argv: str) -> str:
    done = host.engine.docker(*argv, check=False)
    assert done.returncode != 0
    return done.stderr


def test_containers_of_two_hosts_reach_each_other_by_the_commands_of_the_guide(network: Any) -> None:
    here, there = map(container, network.hosts.values())

    pings = [ping(here, there.address), ping(there, here.address)]

    assert [result.is_reached for result in pings] == [True, True]
    assert fetch(here, there.address) == "page of docker4"
    assert ping(here, LEFT.gateway.ip).is_reached  # masqueraded: the router has no route back
    (shown,) = json.loads(network.hosts["docker1"].engine.docker("network", "inspect", "web").stdout)
    (prefix,) = shown["IPAM"]["Config"]
    (attached,) = shown["Containers"].values()
    assert IPv4Network(prefix["Subnet"]).subnet_of(network.hosts["docker1"].lease())
    assert IPv4Interface(attached["IPv4Address"]) == IPv4Interface(f"{here.address}/27")


def test_a_published_port_is_reached_from_everywhere(network: Any) -> None:
    here, there = network.hosts.values()

    assert fetch(container(there), here.address, port=8080) == "page of docker1"
    assert get(there, f"http://{here.address}:8080/") == "page of docker1"
    assert get(here, f"http://{here.address}:8080/") == "page of docker1"
    assert f"0.0.0.0:8080/tcp to {container(here).address}:80" in here.flannelctl("status")
    assert get(here, "http://127.0.0.1:8080/") == "page of docker1"
    assert fetch(container(here), here.address, port=8080) == "page of docker1"


def test_a_container_does_not_reach_services_of_the_host_at_loopback(network: Any) -> None:
    """A container that may change its routes sends packets for 127.0.0.1 to the bridge."""
    host = network.hosts["docker1"]
    service = host.start(["busybox", "httpd", "-f", "-p", "127.0.0.1:7777", "-h", "/run"], name="loopback")
    connect = ["timeout", "1", "bash", "-c", "</dev/tcp/127.0.0.1/7777"]
    wait_until(lambda: host.run(connect, check=False).returncode == 0, what="an answer", deadline_s=SOON_S)
    inside = container(host).run_in_network
    gateway = inside(["ip", "-j", "route", "show", "default"]).stdout
    inside(["sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1"])
    rules = [
        f"route add table 7 127.0.0.1 via {json.loads(gateway)[0]['gateway']}",
        "rule add pref 5 to 127.0.0.1 table 7",
        "rule add pref 9 lookup local",
        "rule delete pref 0",
    ]
    for rule in rules:
        inside(["ip", *rule.split()])

    asked = inside(connect, check=False)

    service.stop()
    assert asked.returncode != 0


def test_a_wrong_request_is_refused_with_the_remedy_and_leaves_nothing(network: Any) -> None:
    host = network.hosts["docker1"]
    before = (host.directory / STATE).read_text(), names_of_links(host)
    create = words(CREATE)[1:-1]
    run = ("run", "--rm", "--network=web")

    bare = refused(host, "network", "create", "-d", "flannel", "wrong")
    assert f"Run: {CREATE.removesuffix('web')}NAME" in bare
    assert "not a part of the subnet" in refused(host, *create, "--subnet=10.99.0.0/24", "wrong")
    own = str(container(host).address).rpartition(".")[0]
    assert "part of docker0" in refused(host, *create, f"--subnet={own}.0/26", "wrong")
    assert "which this host uses" in refused(host, *create, f"--subnet={own}.64/26", "wrong")
    assert "color is not an option of the network" in refused(host, *create, "-o", "color=red", "wrong")
    assert "color is not an option of the IPAM" in refused(host, *create, "--ipam-opt", "color=red", "wrong")
    assert "one network, without" in refused(host, *create, "--ipam-opt", "flannel.network=blue", "wrong")
    assert "port 0.0.0.0:8080/tcp of this host is in use" in refused(host, *run, PUBLISH, "busybox", "true")
    assert "Name the port of the host: -p 8080:80" in refused(host, *run, "--publish=80", "busybox", "true")

    assert ((host.directory / STATE).read_text(), names_of_links(host)) == before


def test_a_route_of_the_whole_subnet_is_named_and_not_requested_again(network: Any) -> None:
    """Docker repeats a request without end if it refuses the answer."""
    host, log = network.hosts["docker1"], network.hosts["docker1"].directory / "log/flanneld.log"
    own = f"{host.lease()[9]}/24"
    for argv in ("link add whole type bridge", f"address add {own} dev whole", "link set whole up"):
        host.run(["ip", *argv.split()])
    before = log.read_text().count("IpamDriver.RequestPool")

    said = refused(host, *words(CREATE)[1:-1], "wrong")

    host.run(["ip", "link", "delete", "whole"])
    assert f"a route of this host contains {host.lease()}" in said
    assert log.read_text().count("IpamDriver.RequestPool") == before + 1


def test_a_deleted_bridge_returns_with_its_containers(network: Any) -> None:
    host = network.hosts["docker1"]
    bridge = next(name for name in names_of_links(host) if name.startswith("flbr-"))
    far = container(network.hosts["docker4"])

    host.run(["ip", "link", "delete", bridge])

    wait_until(
        lambda: ping(far, container(host).address, count=1).is_reached,
        what="the container is reached again",
        deadline_s=SOON_S,
    )
    assert get(host, "http://127.0.0.1:8080/") == "page of docker1"


def test_the_end_of_the_last_network_leaves_nothing(network: Any) -> None:
    host = network.hosts["docker1"]

    host.engine.docker("rm", "--force", "web1")
    host.engine.docker("network", "prune", "--force")

    state = json.loads((host.directory / STATE).read_text())
    assert not any(state.values())
    assert [name for name in names_of_links(host) if name.startswith("fl")] == ["flannel0"]
    assert "flannel-ipv4" not in host.run(["nft", "list", "tables"]).stdout
