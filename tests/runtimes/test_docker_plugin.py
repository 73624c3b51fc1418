"""The network plugin for Docker on real engines, with each backend: addresses, names, Compose, faults."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.containers import DockerContainer, serving
from pyflannel.lab.lab import EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import LEFT, Host
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import together, wait_until
from testlab.cni_runtime import Runtime
from testlab.container_ways import ComposeWay, segment_lab
from testlab.docker_requests import NAMES, requests_for_names

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="no dockerd: Debian's docker.io has it"),
]

CREATE = ["network", "create", "-d", "flannel", "--ipam-driver", "flannel"]
SLEEP = ["sleep", "100000"]
OPTIONS = Path("/etc/default/docker")
STATE = "var/lib/flannel/docker-networks.json"
SOON_S = 60.0
KILL = """\
containers=$(docker inspect --format "{{.State.Pid}}" $(docker ps --quiet --filter status=running))
kill -9 $(pidof dockerd)
for process in /proc/[0-9]*; do
    ! grep -qs ^containerd $process/comm || kill -9 ${process#/proc/}
done
kill -9 $containers
"""
"""Ends the engine of a host and its containers, so that the engine cannot release anything."""

GUIDE = (Path(__file__).parents[2] / "docs/guides/docker-plugin.md").read_text()
_BLOCKS = re.findall(r"^```(?:yaml)?\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
COMPOSE_NETWORK = next(block for block in _BLOCKS if block.startswith("networks:"))
CREATE_PLAIN = next(block for block in _BLOCKS if " -d bridge " in block)
NAME_SOCKET = next(block for block in _BLOCKS if "flannel.spec" in block)
NAMED = "".join(block for block in _BLOCKS if "--name db " in block or "--add-host" in block)
"""Blocks of the guide."""

NAME_SERVER = """\
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 53))
while True:
    query, client = server.recvfrom(512)
    question = query[12 : query.index(b"\\0", 12) + 5]
    is_ipv4 = question[-4:-2] == b"\\0\\1"
    counts = b"\\0\\1" + (b"\\0\\1" if is_ipv4 else b"\\0\\0") + bytes(4)
    record = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + socket.inet_aton(sys.argv[1])
    answer = query[:2] + b"\\x81\\x80" + counts + question + (record if is_ipv4 else b"")
    server.sendto(answer, client)
"""
"""A name server that answers each question for an IPv4 address with its argument."""


@dataclass
class Pair:
    """Two hosts on one segment. The faults occur on the first host."""

    lab: Lab
    etcd: EtcdServer
    daemons: dict[str, Program] = field(default_factory=dict)

    @property
    def host(self) -> Host:
        return self.lab.hosts["docker1"]

    @property
    def far(self) -> DockerContainer:
        host = self.lab.hosts["docker2"]
        return DockerContainer(host, host.engine, "web", network="web")

    @property
    def web(self) -> DockerContainer:
        return DockerContainer(self.host, self.host.engine, "web", network="web")

    def start_flanneld(self, host: Host) -> None:
        self.daemons[host.name] = host.start_flanneld(f"--store={self.etcd.url}", "--docker-plugin")

    def start_docker(self, host: Host) -> None:
        host.engine.start("dockerd --live-restore $DOCKER_OPTS", environment_file=OPTIONS)

    def prepare(self, host: Host) -> None:
        self.start_flanneld(host)
        host.run(["mk-docker-opts", "-c", "-d", OPTIONS])
        self.start_docker(host)
        host.engine.import_image(self.lab.directory / "busybox.tar")
        host.engine.docker(*CREATE, "web")
        options = ["--publish=8080:80", "--restart=always", "--stop-timeout=1"]
        host.engine.run_container("web", serving("page", name="web"), network="web", options=options)

    def state(self) -> dict[str, dict[str, Any]]:
        document: dict[str, dict[str, Any]] = json.loads((self.host.directory / STATE).read_text())
        return document

    def wait_reached(self, address: object) -> None:
        wait_until(
            lambda: ping(self.far, str(address), count=1).is_reached,
            what=f"{address} answers",
            deadline_s=SOON_S,
        )


@pytest.fixture(scope="module", params=["udp", "vxlan", "host-gw"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    config = {"Network": "10.100.0.0/16", "Backend": {"Type": request.param}}
    with segment_lab(f"plugin-{request.param}", {"config": config}) as (lab, etcd, _):
        pair = Pair(lab, etcd)
        together([lambda host=host: pair.prepare(host) for host in lab.hosts.values()])
        yield pair


def end_flanneld(pair: Pair) -> None:
    pair.daemons["docker1"].stop()


def kill_flanneld(pair: Pair) -> None:
    pair.daemons["docker1"].kill()


def start_flanneld(pair: Pair) -> None:
    pair.start_flanneld(pair.host)


def end_docker(pair: Pair) -> None:
    pair.host.engine.stop()


def start_docker(pair: Pair) -> None:
    pair.start_docker(pair.host)


def test_a_published_port_works_after_restarts(pair: Pair) -> None:
    """test_restarts.py tests restarts in every order, with containers of each kind."""
    end_docker(pair)
    kill_flanneld(pair)
    start_flanneld(pair)
    start_docker(pair)
    url = f"http://{pair.host.address}:8080/"

    page = pair.far.run(["busybox", "timeout", "5", "busybox", "wget", "-q", "-O", "-", url])

    assert page.stdout == "page"


def test_docker0_networks_of_docker_and_cni_assign_no_address_twice(pair: Pair) -> None:
    host, runtime = pair.host, Runtime(pair.host)
    attached = runtime.container("c1")
    runtime.add(attached)
    by_docker0 = host.engine.run_container("plain", SLEEP)
    host.run(["bash", "-ec", CREATE_PLAIN])
    bridged = host.engine.run_container("bridged", SLEEP, network="plain")
    addresses = [str(one.address) for one in (pair.web, by_docker0, bridged)] + [attached.address]

    try:
        assert len(set(addresses)) == 4
        prefix = str(host.lease().network_address)[:-1]
        assert all(address.startswith(prefix) for address in addresses)
        for address in addresses:
            pair.wait_reached(address)
        assert all(ping(pair.web, address).is_reached for address in addresses)
    finally:
        runtime.end(attached)
        host.engine.docker("rm", "--force", "plain", "bridged")
        host.engine.docker("network", "rm", "plain")


def test_names_aliases_and_a_second_network_work(pair: Pair) -> None:
    host = pair.host
    host.engine.docker(*CREATE, "second")
    alias = ["--network-alias=friend", "--stop-timeout=1"]
    client = host.engine.run_container("client", SLEEP, network="web", options=alias)
    host.engine.docker("network", "connect", "--alias", "other", "second", "client")

    for name in ("client", "friend"):
        assert str(client.address) in pair.web.run(["ping", "-c1", "-W5", name]).stdout
    second = DockerContainer(host, host.engine, "client", network="second")
    pair.wait_reached(client.address)
    pair.wait_reached(second.address)

    host.engine.docker("network", "disconnect", "web", "client")
    pair.wait_reached(second.address)
    host.engine.docker("rm", "--force", "client")
    host.engine.docker("network", "rm", "second")
    assert len(pair.state()["networks"]) == 1


def test_a_network_with_a_given_subnet_assigns_the_requested_address(pair: Pair) -> None:
    host = pair.host
    base = str(host.lease().network_address)[:-1]
    host.engine.docker(*CREATE, f"--subnet={base}128/25", f"--ip-range={base}192/26", "large")

    wanted = host.engine.run_container("wanted", SLEEP, network="large", options=[f"--ip={base}200"])
    chosen = host.engine.run_container("chosen", SLEEP, network="large")
    again = host.engine.docker(
        "run", "--rm", "--network=large", f"--ip={base}200", "busybox", "true", check=False
    )

    assert (str(wanted.address), str(chosen.address)) == (f"{base}200", f"{base}194")
    assert f"{base}200 is in use" in again.stderr
    pair.wait_reached(wanted.address)
    host.engine.docker("rm", "--force", "wanted", "chosen")
    host.engine.docker("network", "rm", "large")


def test_docker_passes_no_name_to_a_plugin_except_in_an_option(pair: Pair) -> None:
    """Names across hosts depend on this property of Docker:
    docs/decisions/0070-no-names-of-containers-across-hosts.md.
    """
    requests = requests_for_names(pair.host)

    assert "/NetworkDriver.CreateEndpoint" in requests
    assert [name for name in NAMES if name in requests] == ["of-option"]


def test_a_container_of_another_host_has_a_name_that_the_user_gives(pair: Pair) -> None:
    """The user gives the name by a fixed address and --add-host, or by a name server."""
    here, there = pair.host, pair.lab.hosts["docker2"]
    base = str(here.lease().network_address)[:-1]
    create, database, caller = (
        line.replace("10.100.15.", base).replace("IMAGE", f"busybox {' '.join(SLEEP)}")
        for line in NAMED.splitlines()
    )
    here.run(create.split())
    here.run(database.split())
    there.run(caller.split())
    by_host = there.engine.docker("exec", "shop", "ping", "-c1", "-W5", "db", check=False).stdout
    server = DockerContainer(here, here.engine, "db", network="database")
    answering = server.start_in_network(["python3", "-c", NAME_SERVER, str(server.address)])
    dns = ["run", "--rm", "--network=web", f"--dns={server.address}", "busybox"]
    by_server = there.engine.docker(*dns, "ping", "-c1", "-W5", "db.example", check=False).stdout
    answering.stop()
    there.engine.docker("rm", "--force", "shop")
    here.engine.docker("rm", "--force", "db")
    here.engine.docker("network", "rm", "database")

    assert f"from {server.address}:" in by_host
    assert f"from {server.address}:" in by_server


def test_an_internal_network_reaches_the_flannel_network_and_nothing_else(pair: Pair) -> None:
    host = pair.host
    host.engine.docker(*CREATE, "--internal", "inner")
    inner = host.engine.run_container("inner", SLEEP, network="inner", options=["--stop-timeout=1"])
    reached = [ping(inner, address, count=1).is_reached for address in (pair.far.address, LEFT.gateway.ip)]
    host.engine.docker("rm", "--force", "inner")
    host.engine.docker("network", "rm", "inner")

    assert reached == [True, False]
    assert ping(pair.web, LEFT.gateway.ip, count=1).is_reached


@pytest.mark.parametrize("version", [1, 2])
def test_a_compose_project_runs(pair: Pair, version: int, request: pytest.FixtureRequest) -> None:
    """The services reach each other by name. Version 2 is the Compose plugin, `docker compose`."""
    program: str | Path = "docker-compose"
    if version == 2:
        program = request.getfixturevalue("go_programs") / "docker-compose"
    project = ComposeWay(pair.host, program, "project", COMPOSE_NETWORK, ["one", "two"])

    project.run("up", "--detach")
    reached = project.run("exec", "-T", "one", "ping", "-c1", "-W5", "two", check=False)
    project.run("down")

    assert reached.returncode == 0
    assert len(pair.state()["networks"]) == 1


def test_a_container_does_not_start_while_flanneld_does_not_run(pair: Pair) -> None:
    before = pair.state()
    kill_flanneld(pair)

    refused = pair.host.engine.docker("run", "--rm", "--network=web", "busybox", "true", check=False)
    start_flanneld(pair)

    assert "flannel.sock" in refused.stderr
    assert pair.state() == before
    pair.host.engine.docker("run", "--rm", "--network=web", "busybox", "true")
    assert pair.state() == before


def test_docker_finds_a_socket_that_is_named_in_its_directory(pair: Pair) -> None:
    """A flanneld that cannot create the usual socket needs this directory."""
    host = pair.host
    end_flanneld(pair)
    end_docker(pair)
    host.run(["bash", "-ec", NAME_SOCKET])
    variables = dict(line.split("=", 1) for line in host.run(["cat", "/etc/default/flanneld"]).stdout.split())
    store = f"--store={pair.etcd.url}"

    pair.daemons[host.name] = host.start_flanneld(store, "--docker-plugin", environment=variables)
    start_docker(pair)
    host.engine.docker("run", "--rm", "--network=web", "busybox", "true")

    assert (host.directory / "run/flannel/docker.sock").exists()
    host.run(["rm", "/etc/docker/plugins/flannel.spec", "/etc/default/flanneld"])
    end_flanneld(pair)
    end_docker(pair)
    start_flanneld(pair)
    start_docker(pair)


def test_a_host_that_boots_again_has_its_containers_with_their_ports(pair: Pair) -> None:
    """Docker starts the containers again. Docker's crash released no address."""
    host, before = pair.host, pair.state()
    host.engine.docker(*CREATE, "other")
    host.engine.run_container("sleeper", SLEEP, network="other", options=["--restart=always"])
    crash(pair)

    start_flanneld(pair)
    start_docker(pair)

    for name in ("web", "sleeper"):
        wait_running(host, name)
    pair.wait_reached(pair.web.address)
    pair.wait_reached(DockerContainer(host, host.engine, "sleeper", network="other").address)
    assert [len(pool["used"]) for pool in pair.state()["pools"].values()] == [2, 2]
    host.engine.docker("rm", "--force", "sleeper")
    host.engine.docker("network", "rm", "other")
    assert {kind: len(entries) for kind, entries in pair.state().items()} == {
        kind: len(entries) for kind, entries in before.items()
    }


def test_docker_without_live_restore_starts_its_containers_again(pair: Pair) -> None:
    """Each container gets a new address of its network, as in Docker's own networks."""
    host, before = pair.host, pair.state()
    host.engine.run_container(
        "sleeper", SLEEP, network="web", options=["--restart=always", "--stop-timeout=1"]
    )
    for _ in range(2):  # the first start ends the running containers
        end_docker(pair)
        host.engine.start("dockerd $DOCKER_OPTS", environment_file=OPTIONS)
        for name in ("web", "sleeper"):
            wait_running(host, name)

    addresses = [
        DockerContainer(host, host.engine, name, network="web").address for name in ("web", "sleeper")
    ]
    for address in addresses:
        pair.wait_reached(address)
    assert len(set(addresses)) == 2
    host.engine.docker("rm", "--force", "sleeper")
    end_docker(pair)
    start_docker(pair)
    wait_running(host, "web")
    assert used(pair.state()) == used(before)


def used(state: dict[str, dict[str, Any]]) -> list[int]:
    """Return the number of addresses in use in each network, and the numbers of networks and containers."""
    pools = [len(pool["used"]) for pool in state["pools"].values()]
    return [*pools, len(state["networks"]), len(state["endpoints"])]


def crash(pair: Pair) -> None:
    """Kill flanneld, Docker and all containers, and remove all files and objects that a boot removes."""
    host = pair.host
    kill_flanneld(pair)
    host.run(["bash", "-c", KILL])
    host.engine.stop()
    for link in host.links():
        if link["ifname"] not in ("lo", "eth0"):
            host.run(["ip", "link", "delete", link["ifname"]], check=False)
    host.run(["nft", "flush", "ruleset"])
    host.run(
        ["bash", "-c", "umount -l /run/docker/netns/*; rm -rf /run/docker* /run/flannel /run/containerd"]
    )


def wait_running(host: Host, name: str) -> None:
    wait_until(
        lambda: "true" in host.engine.docker("inspect", "-f", "{{.State.Running}}", name, check=False).stdout,
        what=f"{name} runs",
        deadline_s=SOON_S,
    )


def test_cleanup_removes_all_objects_of_the_plugin(pair: Pair) -> None:
    host = pair.host

    said = host.flannelctl("cleanup", "--yes", check=False)

    assert [link["ifname"] for link in host.links() if link["ifname"].startswith("fl")] == []
    assert not (host.directory / STATE).exists()
    assert "networks with the driver flannel, which no container can use" in said
