"""Hosts in one network, on which container runtimes use the CNI plugin."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab.containers import write_image
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.topology import LEFT, Host
from pyflannel.lab.waiting import together

GO_PROGRAMS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyflannel/go"
"""Directory of cnitool, crictl, dockerd, docker-compose and newer delegates.

`scripts/setup --runtimes` builds them with Go.
"""


@pytest.fixture(scope="session")
def hosts() -> Iterator[list[Host]]:
    """Two hosts with flanneld and the plugin, as its guide installs them."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    with Lab(f"runtimes-{os.getpid()}") as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        config = {"Network": "10.100.0.0/16", "Backend": {"Type": "vxlan"}}
        etcd.etcdctl("put", f"{PREFIX}/config", json.dumps(config))
        write_image(lab.directory / "busybox.tar")
        pair = [lab.hosts["docker1"], lab.hosts["docker2"]]
        together([lambda host=host: _prepare(host, etcd.url) for host in pair])
        yield pair


def _prepare(host: Host, store: str) -> None:
    host.start_flanneld(f"--store={store}", "--ip-masq")
    host.run(["flannelctl", "cni", "install"])
    host.run(["sh", "-c", "ln -s /usr/lib/cni/* /opt/cni/bin/"])


@pytest.fixture(scope="session")
def go_programs() -> Path:
    """The directory of the programs that Go built."""
    if not (GO_PROGRAMS / "docker-compose").exists():  # which is built last
        pytest.skip("the programs of CNI, Kubernetes and Docker are not built, because Go is not installed")
    return GO_PROGRAMS
