"""The container image, built from its Dockerfile and run on two hosts as in the guide."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.topology import COOKBOOK, LEFT, Host, Topology
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import wait_until
from testlab.debian_systems import bare_system

ROOT = Path(__file__).parents[2]
_, BUILD, START, STATUS, REMOVE, CLEANUP = re.findall(
    r"^```\n(.*?)^```", (ROOT / "docs/guides/containers.md").read_text(), flags=re.DOTALL | re.MULTILINE
)
BASE = "localhost/debian"
NAMES = ("docker1", "docker3")
SOON_S = 60.0
ADDED_MB = 110
MTU = 1472
IMPORT_ALL = """
import importlib, pkgutil, pyflannel
for module in pkgutil.walk_packages(pyflannel.__path__, "pyflannel."):
    if module.name != "pyflannel.cli.top_screen":  # needs textual
        importlib.import_module(module.name)
"""

TOOLS = ("debootstrap", "help2man", "buildah", "dockerd")
missing = next((tool for tool in TOOLS if not shutil.which(tool)), None)
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=f"no {missing}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and mounts"),
    pytest.mark.timeout(3600),
]


@dataclass(frozen=True)
class Image:
    """The image as an archive, and the size of its layers above the base."""

    archive: Path
    added_bytes: int


class Buildah:
    """Buildah with its files in a directory of the test."""

    def __init__(self, directory: Path) -> None:
        self._global = [f"--root={directory}/root", f"--runroot={directory}/run", "--storage-driver=overlay"]

    def run(self, verb: str, *argv: str | Path) -> str:
        return subprocess.run(
            ["buildah", *self._global, verb, *argv], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
        ).stdout.strip()


@pytest.fixture(scope="module")
def image(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Build the image by the guide's command, on a base without Python."""
    directory = tmp_path_factory.mktemp("image")
    buildah = Buildah(directory)
    base = buildah.run("from", "scratch")
    buildah.run("add", "--quiet", base, bare_system("13"), "/")
    buildah.run("commit", "--quiet", base, BASE)

    program, verb, *options = shlex.split(BUILD)
    assert program == "buildah"
    buildah.run(verb, "--isolation=chroot", f"--build-arg=BASE={BASE}", *options)

    archive = directory / "pyflannel.tar"
    buildah.run("push", "--quiet", "pyflannel", f"docker-archive:{archive}:pyflannel:latest")
    buildah.run("push", "--quiet", BASE, f"docker-archive:{directory}/base.tar:base:latest")
    added = archive.stat().st_size - (directory / "base.tar").stat().st_size
    return Image(archive, added)


@pytest.fixture(scope="module")
def lab(image: Image) -> Iterator[Lab]:
    """Run flanneld in a container on two hosts on different segments."""
    places = tuple(place for place in COOKBOOK.hosts if place.name in NAMES)
    with Lab(f"i{os.getpid()}", Topology(COOKBOOK.segments, places)) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        etcd.etcdctl("put", f"{PREFIX}/config", '{"Network":"10.100.0.0/16"}')
        for host in lab.hosts.values():
            host.run(["tee", "--append", "/etc/hosts"], text=f"{LEFT.gateway.ip} ETCD\n")
            host.engine.start("dockerd --iptables=false")
            host.run(["docker", "load", "--input", image.archive])
            host.run(["bash", "-ec", START])
        for host in lab.hosts.values():
            wait_ready(host)
        yield lab


def wait_ready(host: Host) -> None:
    def is_ready() -> bool:
        return ", ready" in host.run(["bash", "-c", STATUS], check=False).stdout

    wait_until(is_ready, what=f"flanneld is ready on {host.name}", deadline_s=SOON_S)


def test_the_image_adds_little_to_its_base(image: Image) -> None:
    assert image.added_bytes < ADDED_MB * 1_000_000


def test_the_image_contains_each_package_that_the_programs_import(lab: Lab) -> None:
    """`leases` prints a table with rich, and `new-key` creates a key with cryptography."""
    host = lab.hosts["docker1"]

    host.run(["docker", "exec", "flanneld", "/opt/pyflannel/bin/python3", "-c", IMPORT_ALL])
    printed = host.run(["docker", "exec", "flanneld", "flannelctl", "leases"]).stdout
    key = ["docker", "exec", "flanneld", "flannelctl", "allow-list", "new-key", "/run/flannel/operator.key"]
    host.run(key)

    assert str(host.lease()) in printed


def test_containers_of_two_hosts_reach_each_other(lab: Lab) -> None:
    first, second = (
        host.container("c", gateway=host.gateway(), mtu=MTU) for host in map(lab.hosts.__getitem__, NAMES)
    )

    wait_until(lambda: ping(first, str(second.address)).is_reached, what="a reply", deadline_s=SOON_S)


def test_the_root_file_system_stays_unchanged(lab: Lab) -> None:
    host = lab.hosts["docker1"]

    (shown,) = json.loads(host.run(["docker", "inspect", "flanneld"]).stdout)
    changes = host.run(["docker", "diff", "flanneld"]).stdout.split("\n")

    assert shown["HostConfig"]["ReadonlyRootfs"]
    mount_points = re.compile(
        r"[AC] /(etc|run|var|var/lib|(run|var/lib)/flannel|run/xtables.lock|etc/machine-id)"
    )
    assert [change for change in changes if change and not mount_points.fullmatch(change)] == []


def test_a_new_container_keeps_the_subnet(lab: Lab) -> None:
    host = lab.hosts["docker1"]
    subnet = host.lease()

    host.run(["bash", "-ec", REMOVE + START])
    wait_ready(host)

    assert host.lease() == subnet


def test_cleanup_leaves_no_device_and_no_lease(lab: Lab) -> None:
    """This is the last test, because it removes one host from the network."""
    host = lab.hosts["docker3"]

    host.run(["bash", "-ec", CLEANUP])

    assert not [link for link in host.links() if link["ifname"].startswith("flannel")]
    store = ("--store", f"etcd://{LEFT.gateway.ip}:2379{PREFIX}")
    assert len(json.loads(lab.hosts["docker1"].flannelctl(*store, "leases", "--json"))["leases"]) == 1
