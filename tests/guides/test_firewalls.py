"""The rules of the guide to ports with Debian's ufw and firewalld, and the flag that opens the port.

docker3 has a firewall that drops all input. User space carries the packets.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import COOKBOOK, LEFT, Host, Topology
from pyflannel.lab.traffic import ping, wait_reached
from pyflannel.lab.waiting import wait_until
from testlab.booted_system import BootedSystem
from testlab.console import command_blocks
from testlab.debian_systems import firewall_system

missing = BootedSystem.missing() or (None if shutil.which("debootstrap") else "debootstrap")
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=f"no {missing}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and mounts"),
    pytest.mark.timeout(3600),  # debootstrap creates the system of the firewalls once for each machine
]

GUIDE = "docs/guides/ports.md"
SOON_S = 60.0
START = {"ufw": "ufw --force enable", "firewalld": "systemctl start firewalld"}
STOP = {"ufw": "ufw --force reset", "firewalld": "systemctl stop firewalld; rm -f /etc/firewalld/zones/*"}


@dataclass
class Filtered:
    """Two hosts, each with a container, and the system that has the firewall of the second host."""

    etcd: EtcdServer
    hosts: list[Host]
    system: BootedSystem
    containers: list[NamespaceContainer] = field(default_factory=list)
    firewall: str = ""

    def start_flanneld(self, host: Host, *flags: str) -> Program:
        return host.start_flanneld(f"--etcd-endpoints={self.etcd.endpoint}", "--fast-path=off", *flags)

    @contextmanager
    def running(self, *flags: str) -> Iterator[None]:
        """Run flanneld on the host with the firewall, for the duration of a block."""
        flanneld = self.start_flanneld(self.hosts[1], *flags)
        yield
        flanneld.stop()

    def run(self, commands: str) -> None:
        """Run commands on the system with the firewall."""
        self.system.run(["bash", "-ec", commands])

    def is_open(self) -> bool:
        """Return whether the first container reaches the container behind the firewall."""
        return ping(self.containers[0], self.containers[1].address, count=1).is_reached

    def wait_open(self) -> None:
        wait_reached(self.containers, deadline_s=SOON_S)

    def wait_closed(self) -> None:
        """Wait until the port is closed. The port remains open for replies of the tunnel for a second."""
        wait_until(lambda: not self.is_open(), what="the firewall drops packets", deadline_s=SOON_S)

    def findings(self) -> dict[str, dict[str, Any]]:
        """Return the findings of doctor on the host with the firewall, by code."""
        printed = self.hosts[1].flannelctl("doctor", "--json", check=False)
        return {one["code"]: one for one in json.loads(printed)["findings"]}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Filtered]:
    """The hosts without a firewall. flanneld runs on the first host."""
    places = tuple(place for place in COOKBOOK.hosts if place.name in ("docker1", "docker3"))
    with Lab(f"walls-{os.getpid()}", Topology(COOKBOOK.segments, places)) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        etcd.etcdctl("put", f"{PREFIX}/config", '{"Network":"10.100.0.0/16"}')
        first, second = lab.hosts.values()
        system = BootedSystem(second, firewall_system("13"))
        system.install()
        system.boot()
        system.wait_up()
        second.run(
            ["sysctl", *(f"net.netfilter.nf_conntrack_udp_timeout{part}=1" for part in ("", "_stream"))]
        )
        found = Filtered(etcd, [first, second], system)
        found.start_flanneld(first)
        with found.running():
            for host in found.hosts:
                found.containers.append(host.container("web", gateway=host.gateway(), mtu=1472))
            found.wait_open()
        yield found
        system.power_off()


@pytest.fixture(params=["ufw", "firewalld"])
def filtered(request: pytest.FixtureRequest, hosts: Filtered) -> Iterator[Filtered]:
    """The hosts with one of the firewalls."""
    hosts.firewall = request.param
    hosts.run(START[hosts.firewall])
    yield hosts
    hosts.run(STOP[hosts.firewall])


def test_the_rules_of_the_guide_open_the_host(filtered: Filtered) -> None:
    rules, *_ = command_blocks(GUIDE, filtered.firewall)
    with filtered.running():
        filtered.wait_closed()

        filtered.run(rules)

        filtered.wait_open()
        assert {"tunnel-dropped", "forward-dropped"} & filtered.findings().keys() == set()


def test_doctor_names_the_port_and_its_commands_open_the_port(filtered: Filtered) -> None:
    with filtered.running():
        filtered.wait_closed()

        found = filtered.findings()

        assert "UDP port 8285" in found["tunnel-dropped"]["cause"]
        for code in ("tunnel-dropped", "forward-dropped"):
            if code in found:
                filtered.run(found[code]["fix"])
        filtered.wait_open()


def test_the_flag_opens_the_port_of_ufw_and_not_that_of_firewalld(filtered: Filtered) -> None:
    with filtered.running("--open-ports"):
        if filtered.firewall == "ufw":
            filtered.wait_open()
            assert "tunnel-dropped" not in filtered.findings()
        else:
            filtered.wait_closed()
            fix = filtered.findings()["tunnel-dropped"]["fix"]
            assert "firewall-cmd --permanent --add-port=8285/udp" in fix
