"""The Debian packages on fresh Debian systems that systemd boots, two hosts per release.

The systems come from debootstrap, with nothing of this checkout inside. The network namespaces of the systems
reach no package index, so a package that downloads something fails.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import EtcdServer, Lab
from pyflannel.lab.topology import COOKBOOK, LEFT, Topology
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import wait_until
from testlab.booted_system import BootedSystem
from testlab.console import command_blocks
from testlab.debian_systems import (
    CODENAMES,
    NEEDS_DEBIAN_SYSTEMS,
    bootable_system,
    copy,
    newer,
    package_of,
    subnet_of,
)
from testlab.pinging import Pings, pinging

NAMES = ("docker1", "docker2")
README = (Path(__file__).parents[2] / "README.md").read_text()
INSTALL, CONFIGURE, START, CHECK, _ = re.findall(
    r"^```\n(.*?)^```",
    README.partition("\n## Install the package\n")[2].partition("\n## ")[0],
    flags=re.DOTALL | re.MULTILINE,
)
GUIDE = "docs/guides/install.md"
PEER = "10.100.77.0"
"""The address of another host in the README's last block."""
SOON_S = 60.0
MTU = 1472

pytestmark = NEEDS_DEBIAN_SYSTEMS


@dataclass(frozen=True)
class Installed:
    """Two booted hosts with the package installed and flanneld running, and a container on each."""

    lab: Lab
    package: Path
    systems: dict[str, BootedSystem]
    containers: dict[str, NamespaceContainer]

    def subnet(self, name: str) -> str:
        return subnet_of(self.systems[name])

    def pinging(self) -> AbstractContextManager[Pings]:
        first, second = (self.containers[name] for name in NAMES)
        return pinging(first, str(second.address))


@pytest.fixture(scope="session", params=CODENAMES)
def release(request: pytest.FixtureRequest) -> str:
    """The Debian release."""
    return str(request.param)


@pytest.fixture(scope="session")
def package(dist: Path, release: str) -> Path:
    """The package of this release."""
    return package_of(dist, release)


@pytest.fixture(scope="session")
def installed(package: Path, release: str) -> Iterator[Installed]:
    """Install the package on two hosts by the README's commands; `ETCD` is the name of the etcd server."""
    places = tuple(place for place in COOKBOOK.hosts if place.name in NAMES)
    with Lab(f"p{os.getpid()}", Topology(COOKBOOK.segments, places)) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        systems = {name: BootedSystem(lab.hosts[name], bootable_system(release)) for name in NAMES}
        for system in systems.values():
            system.install()
            system.boot()
            system.wait_up()
            system.run(["tee", "--append", "/etc/hosts"], text=f"{LEFT.gateway.ip} ETCD\n")
            run_apt(system, INSTALL, package)
        systems["docker1"].run(["sh", "-ec", CONFIGURE])
        for system in systems.values():
            system.run(["sh", "-ec", START])
        containers = {
            name: lab.hosts[name].container("c", gateway=IPv4Interface(subnet_of(system)), mtu=MTU)
            for name, system in systems.items()
        }
        yield Installed(lab, package, systems, containers)


def run_apt(system: BootedSystem, command: str, package: Path | None = None) -> None:
    """Run an apt-get of a document without questions, with this package instead of the package in the
    document.
    """
    words = command.split()
    words.insert(2, "--yes")
    if package is not None:
        copy(package, system, f"/root/{package.name}")
        words[-1] = f"/root/{package.name}"
    system.run([*words, "--no-install-recommends"])


def test_the_leases_list_the_hosts_and_their_first_addresses_answer(installed: Installed) -> None:
    """The systems have no ping, so the machine's ping runs in their network."""
    show, check = CHECK.splitlines()
    subnets = [str(IPv4Interface(installed.subnet(name)).network) for name in NAMES]

    listed = installed.systems["docker1"].run(["sh", "-ec", show]).stdout
    assert [subnet for subnet in subnets if subnet not in listed] == []
    assert PEER in check
    installed.lab.hosts["docker1"].run(check.replace(PEER, subnets[1].partition("/")[0]).split())


def test_containers_of_two_hosts_reach_each_other(installed: Installed) -> None:
    first, second = (installed.containers[name] for name in NAMES)

    wait_until(lambda: ping(first, str(second.address)).is_reached, what="a reply", deadline_s=SOON_S)


def test_programs_have_man_pages(installed: Installed) -> None:
    system = installed.systems["docker1"]
    pages = system.run(["ls", "/usr/share/man/man8"]).stdout.split()

    assert {"flanneld.8.gz", "flannelctl.8.gz", "flannelctl-status.8.gz", "mk-docker-opts.8.gz"} <= {*pages}
    text = system.run(["zcat", "/usr/share/man/man8/flanneld.8.gz"]).stdout
    assert r"\-\-etcd\-endpoints" in text


def test_the_package_contains_the_screen_of_top(installed: Installed) -> None:
    python = "/usr/lib/pyflannel/bin/python3"

    installed.systems["docker1"].run([python, "-c", "import pyflannel.cli.top_screen"])


def test_upgrade_and_roll_back_lose_no_ping_and_keep_the_lease(installed: Installed, tmp_path: Path) -> None:
    subnet = installed.subnet("docker1")
    (commands,) = command_blocks(GUIDE, "Upgrade and roll back")
    packages = newer(installed.package, tmp_path), installed.package

    with installed.pinging() as pings:
        for command, package in zip(commands.splitlines(), packages, strict=True):
            system = installed.systems["docker1"]
            pid = system.show("flanneld", "MainPID")
            run_apt(system, command, package)
            assert system.show("flanneld", "ActiveState") == "active"
            assert system.show("flanneld", "MainPID") != pid

    assert pings.lost == 0
    assert installed.subnet("docker1") == subnet


STAND_IN = "#!/bin/sh\necho $* >/run/arguments\nexec sleep infinity\n"


def test_the_drop_in_gives_docker_the_subnet(installed: Installed) -> None:
    """A stand-in for dockerd records its arguments, because the systems have no Docker."""
    _, drop_in = command_blocks(GUIDE, "Debian")
    system = installed.systems["docker1"]
    system.run(["install", "/dev/stdin", "/usr/bin/dockerd"], text=STAND_IN)
    system.run(["tee", "/etc/systemd/system/docker.service"], text="[Service]\nExecStart=dockerd\n")

    system.run(["sh", "-ec", drop_in])

    recorded = ["sh", "-c", "until [ -s /run/arguments ]; do sleep 0.1; done; cat /run/arguments"]
    assert f"--bip={installed.subnet('docker1')}" in system.run(recorded).stdout


def test_remove_leaves_the_network_and_purge_leaves_no_file(installed: Installed) -> None:
    """This is the last test, because it removes one host from the network."""
    system = installed.systems["docker2"]
    (commands,) = command_blocks(GUIDE, "Remove")
    remove, purge = commands.splitlines()

    run_apt(system, remove)

    links = installed.lab.hosts["docker2"].links()
    assert not [link["ifname"] for link in links if link["ifname"].startswith("flannel")]
    assert system.run(["test", "-e", "/etc/default/flanneld"], check=False).returncode == 0
    run_apt(system, purge)
    found = system.run(["find", "/", "-xdev", "-name", "*flannel*", "-not", "-path", "/root/*"]).stdout
    assert found == ""
    assert system.run(["find", "/run", "-name", "*flannel*"]).stdout == ""
