"""Containers of Docker, Compose, CNI and Podman, with each backend, during restarts in every order."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.lab import Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host
from pyflannel.lab.traffic import Station, ping, wait_reached
from pyflannel.lab.waiting import together, wait_until
from testlab.container_ways import (
    PODMAN_WITH_CNI,
    CnitoolWay,
    ComposeWay,
    Containerd,
    CriWay,
    CtrWay,
    DockerWay,
    PodmanWay,
    Way,
    attachments,
    install_cni,
    segment_lab,
)
from testlab.pinging import pinging

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="no dockerd: Debian's docker.io has it"),
]

GUIDE = (Path(__file__).parents[2] / "docs/guides/docker-plugin.md").read_text()
_BLOCKS = re.findall(r"^```(?:yaml)?\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
COMPOSE_NETWORK = next(block for block in _BLOCKS if block.startswith("networks:"))
CREATE_PLAIN = next(block for block in _BLOCKS if " -d bridge " in block)
"""Blocks of the guide."""

CREATE = ["network", "create", "-d", "flannel", "--ipam-driver", "flannel"]
OPTIONS = Path("/etc/default/docker")
STATE = "var/lib/flannel/docker-networks.json"
SERVICES = ("standing", "new")
SOON_S = 60.0


@dataclass
class Pair:
    """Two hosts on one segment, each with a container `standing` for each way to start containers. The faults
    occur on the first host.

    Attributes:
        ways: for each host, the ways to start containers.
        standing: for each way, the running container of the first and of the second host.
    """

    lab: Lab
    store: Program
    flags: tuple[str, ...]
    programs: Path
    daemons: dict[str, Program] = field(default_factory=dict)
    containerds: dict[str, Containerd] = field(default_factory=dict)
    ways: dict[str, dict[str, Way]] = field(default_factory=dict)
    standing: dict[str, tuple[Station, Station]] = field(default_factory=dict)

    @property
    def host(self) -> Host:
        return self.lab.hosts["docker1"]

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.host, self.lab.hosts["docker2"]

    def start_flanneld(self, host: Host) -> None:
        self.daemons[host.name] = host.start_flanneld(*self.flags)

    def start_engines(self, host: Host) -> None:
        host.engine.start("dockerd --live-restore $DOCKER_OPTS", environment_file=OPTIONS)
        self.containerds[host.name].start()

    def prepare(self, host: Host) -> None:
        self.start_flanneld(host)
        install_cni(host)
        podman = PodmanWay(host, PODMAN_WITH_CNI)
        containerd = self.containerds[host.name] = Containerd(host)
        host.run(["mk-docker-opts", "-c", "-d", OPTIONS])
        self.start_engines(host)
        containerd.import_image()
        host.engine.import_image(self.lab.directory / "busybox.tar")
        host.engine.docker(*CREATE, "web")
        host.run(["bash", "-ec", CREATE_PLAIN])
        self.ways[host.name] = {
            "docker0": DockerWay(host, "bridge"),
            "plugin": DockerWay(host, "web"),
            "bridge-driver": DockerWay(host, "plain"),
            "compose-1": ComposeWay(host, "docker-compose", "one", COMPOSE_NETWORK, SERVICES),
            "compose-2": ComposeWay(host, self.programs / "docker-compose", "two", COMPOSE_NETWORK, SERVICES),
            "cnitool": CnitoolWay(host, self.programs),
            "podman": podman,
            "ctr": CtrWay(containerd),
            "cri": CriWay(containerd, self.programs),
        }

    def start(self, host: Host, name: str) -> dict[str, Station]:
        """Start a container in each way on a host, all at once."""
        ways = self.ways[host.name]
        started = together([partial(way.start, name) for way in ways.values()])
        return dict(zip(ways, started, strict=True))

    def state(self) -> tuple[dict[str, Any], list[str]]:
        """Return the state of the Docker plugin, and the saved files of the CNI plugin and of host-local."""
        return json.loads((self.host.directory / STATE).read_text()), attachments(self.host)


@pytest.fixture(scope="module", params=["udp", "vxlan", "host-gw"])
def pair(request: pytest.FixtureRequest, go_programs: Path) -> Iterator[Pair]:
    config = {"Network": "10.100.0.0/16", "Backend": {"Type": request.param}}
    with segment_lab(f"ways-{request.param}-{os.getpid()}", {"config": config}) as (lab, etcd, store):
        pair = Pair(lab, store, (f"--store={etcd.url}", "--docker-plugin", "--ip-masq"), go_programs)
        together([lambda host=host: pair.prepare(host) for host in pair.hosts])
        near, far = together([lambda host=host: pair.start(host, "standing") for host in pair.hosts])
        pair.standing = {kind: (near[kind], far[kind]) for kind in near}
        yield pair


def end_flanneld(pair: Pair) -> None:
    pair.daemons["docker1"].stop()


def kill_flanneld(pair: Pair) -> None:
    pair.daemons["docker1"].kill()


def start_flanneld(pair: Pair) -> None:
    pair.start_flanneld(pair.host)


def end_engines(pair: Pair) -> None:
    pair.host.engine.stop()
    pair.containerds["docker1"].stop()


def kill_engines(pair: Pair) -> None:
    pair.host.run(["bash", "-c", "kill -9 $(pidof dockerd)"])
    pair.host.engine.stop()
    pair.containerds["docker1"].kill()


def start_engines(pair: Pair) -> None:
    pair.start_engines(pair.host)


def start_engines_before_flanneld(pair: Pair) -> None:
    """Start flanneld after dockerd missed it. dockerd waits for each of its networks in turn."""
    log = pair.host.directory / "log/dockerd.log"
    missed = "retrying in"
    before = log.read_text().count(missed)

    def start_late() -> None:
        wait_until(lambda: log.read_text().count(missed) > before, what="dockerd waits", deadline_s=SOON_S)
        start_flanneld(pair)

    together([partial(start_engines, pair), start_late])


RESTARTS: dict[str, tuple[Callable[[Pair], None], ...]] = {
    "flanneld": (end_flanneld, start_flanneld),
    "flanneld-killed": (kill_flanneld, start_flanneld),
    "engines": (end_engines, start_engines),
    "engines-killed": (kill_engines, start_engines),
    "flanneld-is-first": (end_flanneld, end_engines, start_flanneld, start_engines),
    "flanneld-is-outside": (end_flanneld, end_engines, start_engines_before_flanneld),
    "flanneld-is-inside": (end_engines, end_flanneld, start_flanneld, start_engines),
    "flanneld-is-last": (end_engines, kill_flanneld, start_engines_before_flanneld),
}


def test_containers_of_two_hosts_reach_each_other(pair: Pair) -> None:
    for near, far in pair.standing.values():
        wait_reached([near, far], deadline_s=SOON_S)

    addresses = [one.address for both in pair.standing.values() for one in both]
    assert len(set(addresses)) == len(addresses)
    for number, host in enumerate(pair.hosts):
        assert all(both[number].address in host.lease() for both in pair.standing.values())
    mtu = int(pair.host.subnet_env()["FLANNEL_MTU"])
    assert {kind: mtu_of(near) for kind, (near, _) in pair.standing.items()} == dict.fromkeys(
        pair.standing, mtu
    )


def mtu_of(container: Station) -> int:
    shown = container.run_in_network(["ip", "-j", "link", "show", "dev", "eth0"]).stdout
    return int(json.loads(shown)[0]["mtu"])


@pytest.mark.parametrize("steps", RESTARTS.values(), ids=RESTARTS)
def test_a_restart_loses_no_packet_and_no_address(
    pair: Pair, steps: tuple[Callable[[Pair], None], ...]
) -> None:
    """A container that starts after the restart gets an unused address, and no object of this container
    remains after its end.
    """
    before = pair.state()

    with ExitStack() as stack:
        streams = {
            kind: stack.enter_context(pinging(far, str(near.address)))
            for kind, (near, far) in pair.standing.items()
        }
        for step in steps:
            step(pair)
    is_reached = start_and_end(pair)

    assert {kind: stream.lost for kind, stream in streams.items()} == dict.fromkeys(streams, 0)
    assert is_reached == dict.fromkeys(streams, True)
    assert pair.state() == before


def start_and_end(pair: Pair) -> dict[str, bool]:
    """Start a further container in each way, and end it. Return whether the second host reached these
    containers.
    """
    new = pair.start(pair.host, "new")
    addresses = {near.address for near, _ in pair.standing.values()} | {one.address for one in new.values()}
    pings = together([partial(ping, pair.standing[kind][1], one.address) for kind, one in new.items()])
    together([partial(way.end, "new") for way in pair.ways["docker1"].values()])
    assert len(addresses) == 2 * len(new)
    return {kind: result.is_reached for kind, result in zip(new, pings, strict=True)}


def test_containers_start_while_the_store_is_unreachable(pair: Pair) -> None:
    pair.store.pause()
    try:
        wait_until(
            lambda: "2379/coreos.com/network, unreachable" in pair.host.flannelctl("status", check=False),
            what="flanneld reports the store as unreachable",
            deadline_s=SOON_S,
        )
        is_reached = start_and_end(pair)
    finally:
        pair.store.go_on()

    assert is_reached == dict.fromkeys(pair.standing, True)
