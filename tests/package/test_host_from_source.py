"""`scripts/setup --no-dev` turns a fresh Debian machine into a host, and installs no tool of the tests.

The source archive of the release takes the place of a clone. apt downloads from Debian's package index. pip
installs downloaded wheels, because the network of the system does not reach the index of Python.
"""

import os
import tarfile
from pathlib import Path

import pytest

from pyflannel.lab.lab import EtcdServer, Lab
from pyflannel.lab.topology import COOKBOOK, LEFT, Topology
from pyflannel.lab.waiting import wait_until
from testlab.booted_system import BootedSystem
from testlab.console import command_blocks
from testlab.debian_mirror import debian_mirror
from testlab.debian_systems import NEEDS_DEBIAN_SYSTEMS, copy, download_wheels, fresh_system

ROOT = Path(__file__).parents[2]
RELEASE, PYTHON = "13", "3.13"
CLONE, WHEELS = "/root/clone", "/root/wheels"
WITHOUT_DOCKER = "scripts/setup --no-dev --no-docker"
OF_THE_TESTS = {"etcd-server", "iperf3", "busybox", "busybox-static", "ethtool", "systemd-container"}
SETUP_DEADLINE_S = 900.0
SOON_S = 60.0

pytestmark = NEEDS_DEBIAN_SYSTEMS


@pytest.fixture
def wheels(dist: Path, tmp_path: Path) -> Path:
    """An archive with the packages that pip needs for an editable installation."""
    directory = tmp_path / "wheels"
    (wheel,) = dist.glob("pyflannel-*.whl")
    download_wheels(directory, PYTHON, f"{wheel}[top]", "hatchling", "editables")
    packed = tmp_path / "wheels.tar"
    with tarfile.open(packed, "w") as opened:
        opened.add(directory, "wheels")
    return packed


def test_setup_without_the_tools_of_the_tests_makes_a_host(dist: Path, wheels: Path) -> None:
    install, configure, start, *_ = command_blocks("README.md", "Run from a clone")
    assert WITHOUT_DOCKER in (ROOT / "README.md").read_text()
    (source,) = dist.glob("pyflannel-*.tar.gz")
    with Lab(f"s{os.getpid()}", Topology(COOKBOOK.segments, COOKBOOK.hosts[:1])) as lab:
        EtcdServer(lab.router, str(LEFT.gateway.ip)).start()
        system = BootedSystem(lab.hosts["docker1"], fresh_system(RELEASE))
        system.install()
        system.write("/etc/hosts", f"127.0.0.1 localhost\n{LEFT.gateway.ip} ETCD\n")
        system.boot()
        system.wait_up()
        copy(source, system, "/root/source.tar.gz")
        copy(wheels, system, "/root/wheels.tar")
        system.run(["mkdir", CLONE])
        unpack = ["tar", "--extract", f"--directory={CLONE}", "--strip-components=1"]
        system.run([*unpack, "--file=/root/source.tar.gz"])
        system.run(["tar", "--extract", "--file=/root/wheels.tar", "--directory=/root"])
        offline = ["env", "PIP_NO_INDEX=1", f"PIP_FIND_LINKS={WHEELS}"]

        def follow(commands: str) -> str:
            command = [*offline, "bash", "-ec", f"cd {CLONE}\n{commands}"]
            return system.run(command, timeout_s=SETUP_DEADLINE_S).stdout

        with debian_mirror(system):
            follow(install.replace("scripts/setup --no-dev", WITHOUT_DOCKER))
        follow(configure)
        system.start(["bash", "-ec", start], name="flanneld")

        wait_until(
            lambda: ", ready\n" in system.run(["flannelctl", "status"], check=False).stdout,
            what="flanneld is ready",
            deadline_s=SOON_S,
        )
        packages = system.run(["dpkg-query", "--show", "--showformat=${Package}\n"]).stdout.split()
        assert {"nftables", "iptables", "etcd-client"} <= {*packages}
        assert OF_THE_TESTS & {*packages} == set()
        environment = system.run(["ls", f"{CLONE}/.venv/lib/python{PYTHON}/site-packages"]).stdout.split()
        assert "msgspec" in environment
        assert {"pytest", "_pytest", "hypothesis", "mypy"} & {*environment} == set()
