"""Hosts in one network, on which container runtimes use the CNI plugin or their own networks."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyflannel.lab.containers import write_image
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import LEFT, Host
from pyflannel.lab.waiting import together
from testlab.container_ways import install_cni

GO_PROGRAMS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyflannel/go"
"""Directory of cnitool, crictl, dockerd, docker-compose and newer delegates.

`scripts/setup --runtimes` builds these programs with Go.
"""


@dataclass
class Pair:
    """Two hosts with flanneld and the CNI plugin, as its guide installs them."""

    hosts: list[Host]
    flags: tuple[str, ...]
    daemons: dict[str, Program] = field(default_factory=dict)

    def start_flanneld(self, host: Host) -> None:
        self.daemons[host.name] = host.start_flanneld(*self.flags)

    def prepare(self, host: Host) -> None:
        self.start_flanneld(host)
        install_cni(host)


@contextmanager
def running_pair(name: str, backend: str, *flags: str) -> Iterator[Pair]:
    with Lab(f"{name}-{backend}-{os.getpid()}") as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        config = {"Network": "10.100.0.0/16", "Backend": {"Type": backend}}
        etcd.etcdctl("put", f"{PREFIX}/config", json.dumps(config))
        write_image(lab.directory / "busybox.tar")
        pair = Pair(
            [lab.hosts["docker1"], lab.hosts["docker2"]], (f"--store={etcd.url}", "--ip-masq", *flags)
        )
        together([lambda host=host: pair.prepare(host) for host in pair.hosts])
        yield pair


@pytest.fixture(scope="session")
def hosts() -> Iterator[list[Host]]:
    """The hosts of a vxlan network."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    with running_pair("cni", "vxlan") as pair:
        yield pair.hosts


@pytest.fixture(scope="module", params=["udp", "vxlan", "host-gw"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The hosts of a network with each backend, with divided subnets."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    with running_pair("each", request.param, "--docker-plugin") as pair:
        yield pair


@pytest.fixture(scope="session")
def go_programs() -> Path:
    """The directory of the programs that Go built."""
    if not (GO_PROGRAMS / "docker-compose").exists():  # the last program of the build
        pytest.skip("the programs of CNI, Kubernetes and Docker are not built, because Go is not installed")
    return GO_PROGRAMS
