"""The wheel on Debian 12, installed by pipx with the commands of the guide, under systemd.

The system reaches no package index. The system gets the Python packages from a directory.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.topology import COOKBOOK, LEFT, Topology
from testlab.booted_system import BootedSystem
from testlab.console import command_blocks
from testlab.debian_systems import NEEDS_DEBIAN_SYSTEMS, copy, download_wheels, pipx_system, subnet_of

RELEASE, PYTHON = "12", "3.11"
WHEELS = "/root/wheels"

pytestmark = NEEDS_DEBIAN_SYSTEMS


@pytest.fixture
def archive(dist: Path, tmp_path: Path) -> Path:
    """An archive with the wheel, the packages that the wheel requires, and the packages that pipx
    requires.
    """
    (wheel,) = dist.glob("pyflannel-*.whl")
    wheels = tmp_path / "wheels"
    download_wheels(wheels, PYTHON, wheel, "pip", "setuptools", "wheel")
    packed = tmp_path / "wheels.tar"
    with tarfile.open(packed, "w") as opened:
        opened.add(wheels, "wheels")
    return packed


@pytest.fixture
def system() -> Iterator[BootedSystem]:
    """A booted Debian 12 with pipx, and an etcd with the name ETCD."""
    with Lab(f"x{os.getpid()}", Topology(COOKBOOK.segments, COOKBOOK.hosts[:1])) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        etcd.etcdctl("put", f"{PREFIX}/config", '{"Network":"10.100.0.0/16"}')
        system = BootedSystem(lab.hosts["docker1"], pipx_system(RELEASE))
        system.install()
        system.boot()
        system.wait_up()
        system.run(["tee", "--append", "/etc/hosts"], text=f"{LEFT.gateway.ip} ETCD\n")
        yield system


def test_pipx_installs_a_host(system: BootedSystem, archive: Path) -> None:
    (block,) = command_blocks("docs/guides/install.md", "Other distributions")
    copy(archive, system, "/root/wheels.tar")
    system.run(["tar", "--extract", "--file=/root/wheels.tar", "--directory=/root"])
    offline = ["env", "PIP_NO_INDEX=1", f"PIP_FIND_LINKS={WHEELS}"]

    system.run([*offline, "bash", "-ec", f"cd {WHEELS}\n{block}"], timeout_s=600)

    assert subnet_of(system).startswith("10.100.")
    assert ", ready\n" in system.run(["flannelctl", "status"]).stdout
    pid = system.show("flanneld", "MainPID")
    assert system.run(["stat", "--format=%U", f"/proc/{pid}"]).stdout.strip() == "flanneld"
