"""Each command of the guides on systemd, on backends and on changes of the config runs on booted systems."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pyflannel.lab.lab import EtcdServer, Lab
from pyflannel.lab.topology import COOKBOOK, LEFT, Topology
from pyflannel.lab.waiting import together, wait_until
from testlab.booted_system import BootedSystem
from testlab.console import command_blocks

missing = BootedSystem.missing() or (
    None if shutil.which("dockerd") else "dockerd: Debian's docker.io has it"
)
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=f"no {missing}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and mounts"),
]

ROOT = Path(__file__).parents[2]
CLONE = "/opt/pyflannel"
SOON_S = 60.0
NAMES = ("docker1", "docker2")
VXLAN = '{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}'


@pytest.fixture(scope="module")
def systems() -> Iterator[dict[str, BootedSystem]]:
    """Two booted systems with the programs, the files of the clone, and the network config in etcd."""
    places = tuple(place for place in COOKBOOK.hosts if place.name in NAMES)
    with Lab(f"running-{os.getpid()}", Topology(COOKBOOK.segments, places)) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        etcd.etcdctl("put", "/coreos.com/network/config", '{"Network":"10.100.0.0/16"}')
        systems = {name: BootedSystem(lab.hosts[name]) for name in NAMES}
        together([partial(boot, system) for system in systems.values()])
        yield systems
        together([system.power_off for system in systems.values()])


def boot(system: BootedSystem) -> None:
    """Boot a system with the files of deploy/systemd."""
    system.install()
    for path in (ROOT / "deploy/systemd").rglob("*"):
        if path.is_file():
            system.write(f"{CLONE}/{path.relative_to(ROOT)}", path.read_text())
    system.boot()
    system.wait_up()


def run(system: BootedSystem, block: str) -> str:
    """Run a block in the clone and return its output."""
    done = system.run(["bash", "-ec", f"cd {CLONE}\n{block}"])
    return done.stdout + done.stderr


def wait_for(system: BootedSystem, holds: Callable[[BootedSystem], bool], what: str) -> None:
    wait_until(lambda: holds(system), what=f"{system.name}: {what}", deadline_s=SOON_S)


def subnet_env(system: BootedSystem) -> dict[str, str]:
    lines = system.run(["cat", "/run/flannel/subnet.env"]).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def docker_address(system: BootedSystem) -> str:
    return system.run(["ip", "-brief", "-4", "address", "show", "docker0"]).stdout.split()[2]


def test_the_guide_on_systemd_installs_hosts(systems: dict[str, BootedSystem]) -> None:
    """docker1 passes the subnet to Docker by subnet.env, docker2 by the file of options."""
    units, settings, *ways, forwarding, start = command_blocks("docs/guides/systemd.md", "Install")

    for system, way in zip(systems.values(), ways, strict=True):
        run(system, units)
        system.run(["tee", "/etc/default/flanneld"], text=settings)
        run(system, way)
        run(system, forwarding)
        run(system, start)

    for system in systems.values():
        assert docker_address(system) == subnet_env(system)["FLANNEL_SUBNET"]
        assert system.show("flanneld", "UnitFileState") == "enabled"


def test_the_guide_on_changes_of_the_config_changes_running_hosts(systems: dict[str, BootedSystem]) -> None:
    """The network changes from 10.100.0.0/16 to 10.96.0.0/12, which contains all subnets, and back."""
    guide = "docs/guides/changing-the-config.md"
    dry_run, shown, write = command_blocks(guide, "Check and write the config")
    first = systems["docker1"]
    before = [subnet_env(system)["FLANNEL_SUBNET"] for system in systems.values()]

    assert "would write the network config" in run(first, dry_run)
    printed = run(first, dry_run.replace('{"Network":"10.96.0.0/12"}', VXLAN))
    assert [line for line in shown.splitlines() if line not in printed.splitlines()] == []
    run(first, write)
    for system in systems.values():
        wait_for(system, lambda one: subnet_env(one)["FLANNEL_NETWORK"] == "10.96.0.0/12", "new network")
    assert [subnet_env(system)["FLANNEL_SUBNET"] for system in systems.values()] == before


def test_the_guide_on_changes_of_the_config_moves_hosts(systems: dict[str, BootedSystem]) -> None:
    (move,) = command_blocks("docs/guides/changing-the-config.md", "Move the hosts to other subnets")
    first = systems["docker1"]
    run(first, """flannelctl config set '{"Network":"10.200.0.0/16"}'""")

    for system in systems.values():
        run(system, move)

    for system in systems.values():
        assert docker_address(system) == subnet_env(system)["FLANNEL_SUBNET"]
        assert subnet_env(system)["FLANNEL_SUBNET"].startswith("10.200.")
    run(first, """flannelctl config set '{"Network":"10.100.0.0/16"}'""")
    for system in systems.values():
        run(system, move)


def test_the_guide_on_backends_changes_the_backend(systems: dict[str, BootedSystem]) -> None:
    write, check = command_blocks("docs/guides/choosing-a-backend.md", "Change the backend")
    first = systems["docker1"]

    run(first, write)

    for system in systems.values():
        wait_for(system, lambda one: subnet_env(one)["FLANNEL_MTU"] == "1450", "MTU of vxlan")
        wait_for(system, lambda one: "answers in" in run(one, check), "the peer answers")


def test_the_guide_on_systemd_removes_a_host(systems: dict[str, BootedSystem]) -> None:
    """This is the last test of the module."""
    remove = command_blocks("docs/guides/systemd.md", "Behaviour")[-1]
    system = systems["docker2"]

    run(system, remove)

    assert system.show("flanneld", "UnitFileState") == "disabled"
    assert system.run(["find", "/run", "/var/lib/flannel", "-name", "*flannel*"], check=False).stdout == ""
