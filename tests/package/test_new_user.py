"""A new user follows the README on two fresh Debian machines, with no other help than the package.

The machines are default installations of debootstrap with empty package lists. The first machine also runs
etcd. apt downloads the requirements from Debian's package index.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.lab import Lab
from pyflannel.lab.topology import COOKBOOK, LEFT, Topology
from testlab.booted_system import BootedSystem
from testlab.console import command_blocks
from testlab.debian_mirror import debian_mirror
from testlab.debian_systems import CODENAMES, NEEDS_DEBIAN_SYSTEMS, copy, fresh_system, package_of, subnet_of

README = (Path(__file__).parents[2] / "README.md").read_text()
DOWNLOAD_DEADLINE_S = 600.0
UPDATE, MISSING = "apt-get update", "not installable"
SHOWN_PACKAGE = "pyflannel_0.1.0-1~deb13_amd64.deb"
SHOWN_PEER = "10.100.77.0"

pytestmark = NEEDS_DEBIAN_SYSTEMS


def follow(system: BootedSystem, commands: str) -> str:
    """Run commands of the README and return their output. apt asks no question."""
    unasked = ["env", "DEBIAN_FRONTEND=noninteractive", "bash", "-ec"]
    answered = commands.replace("apt-get install", "apt-get install --yes")
    return system.run([*unasked, f"cd /root\n{answered}"], timeout_s=DOWNLOAD_DEADLINE_S).stdout


@pytest.mark.parametrize("release", CODENAMES)
def test_a_new_user_has_two_hosts_that_reach_each_other(release: str, dist: Path) -> None:
    package = package_of(dist, release)
    assert f"If apt-get prints `{MISSING}`, first run `{UPDATE}`:" in README
    install, configure, start, check, etcd = command_blocks("README.md", "Install the package")
    assert len((install + start).splitlines()) == 3

    places = tuple(place for place in COOKBOOK.hosts if place.segment == LEFT)
    with Lab(f"n{os.getpid()}", Topology(COOKBOOK.segments, places)) as lab, ExitStack() as mirrors:
        systems = [BootedSystem(host, fresh_system(release)) for host in lab.hosts.values()]
        for system in systems:
            system.install()
            system.write("/etc/hosts", f"127.0.0.1 localhost\n{places[0].address.ip} ETCD\n")
            system.boot()
            system.wait_up()
            mirrors.enter_context(debian_mirror(system))
            copy(package, system, f"/root/{package.name}")
        first, second = systems

        install = install.replace(SHOWN_PACKAGE, package.name)
        for system in systems:
            system.run(["sh", "-c", "rm -r /var/lib/apt/lists/*"])
            with pytest.raises(LabError, match=MISSING):
                follow(system, f"{install.strip()} >&2")
            follow(system, UPDATE)
        follow(first, etcd)
        for system in systems:
            follow(system, install)
        follow(first, configure)
        for system in systems:
            follow(system, start)

        listed, ping = check.splitlines()
        peer = subnet_of(second).replace(".1/24", ".0")
        assert f"{peer}/24" in follow(first, listed)
        assert SHOWN_PEER in ping
        assert " 0% packet loss" in follow(first, ping.replace(SHOWN_PEER, peer))
        assert "found no problem" in follow(first, "flannelctl doctor")
