"""Networks of Docker in two flannel networks of one flanneld, on real engines, also with IPv6."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pyflannel.lab.containers import DockerContainer, serving
from pyflannel.lab.lab import Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.container_ways import segment_lab

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="no dockerd: Debian's docker.io has it"),
]

GUIDE = (Path(__file__).parents[2] / "docs/guides/docker-plugin.md").read_text()
CREATE = next(line for line in GUIDE.splitlines() if "-o flannel.network=blue" in line)
"""The command of the guide."""

NAMES = ("blue", "red")
SOON_S = 60.0


@dataclass
class Pair:
    """Two hosts, each with a container `blue` and a container `red` in the flannel network of its name."""

    lab: Lab
    daemons: dict[str, Program]
    flags: tuple[str, ...]
    has_ipv6: bool

    @property
    def hosts(self) -> list[Host]:
        return list(self.lab.hosts.values())

    def start_flanneld(self, host: Host) -> None:
        self.daemons[host.name] = host.start_flanneld(*self.flags)

    def prepare(self, host: Host) -> None:
        self.start_flanneld(host)
        for name in NAMES:
            file = host.directory / f"run/flannel/networks/{name}.env"
            wait_until(file.exists, what=f"{name} is ready", deadline_s=SOON_S)
        host.engine.start("dockerd --live-restore")
        host.engine.import_image(self.lab.directory / "busybox.tar")
        for name, port in zip(NAMES, (8080, 8081), strict=True):
            ipv6 = " --ipv6 " if self.has_ipv6 else " "
            host.run(CREATE.replace("blue", name).replace(" -d ", f"{ipv6}-d ").split())
            options = [f"--publish={port}:80", "--restart=always", "--stop-timeout=1"]
            host.engine.run_container(name, serving(name, name=name), network=name, options=options)

    def containers(self, name: str) -> list[DockerContainer]:
        return [DockerContainer(host, host.engine, name, network=name) for host in self.hosts]

    def addresses(self, container: DockerContainer) -> list[str]:
        """Return the addresses of a container, one of each family."""
        shown = container.run_in_network(["ip", "-j", "address", "show", "dev", "eth0", "scope", "global"])
        (link,) = json.loads(shown.stdout)
        found = [one["local"] for one in link["addr_info"] if one]
        assert len(found) == (2 if self.has_ipv6 else 1)
        return found

    def reached(self) -> dict[tuple[str, str], set[bool]]:
        """Return whether containers reach the containers of each network, on both hosts, in each family."""
        return {
            (one, other): {
                is_reached(source, address)
                for source in self.containers(one)
                for target in self.containers(other)
                for address in self.addresses(target)
                if (source.name, source.address) != (target.name, target.address)
            }
            for one in NAMES
            for other in NAMES
        }


def is_reached(source: DockerContainer, address: str) -> bool:
    return source.run_in_network(["ping", "-n", "-c1", "-W1", address], check=False).returncode == 0


REACHED = {(one, other): {one == other} for one in NAMES for other in NAMES}


@pytest.fixture(scope="module", params=[("udp", "vxlan"), ("host-gw", "vxlan")], ids="-".join)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    has_ipv6 = "host-gw" in request.param
    configs = {}
    for number, (name, kind) in enumerate(zip(NAMES, request.param, strict=True), start=101):
        config = {"Network": f"10.{number}.0.0/16", "Backend": {"Type": kind}}
        if has_ipv6:
            config |= {"EnableIPv6": True, "IPv6Network": f"fd00:{number}::/48"}
        configs[f"{name}/config"] = config
    with segment_lab(f"apart-{request.param[0]}", configs) as (lab, etcd, _):
        flags = (f"--store={etcd.url}", "--watch-networks", "--docker-plugin", "--ip-masq")
        pair = Pair(lab, {}, flags, has_ipv6)
        for number, host in enumerate(pair.hosts, start=1):
            host.run(["ip", "address", "add", f"fd07::{number}/64", "dev", "eth0", "nodad"])
            host.run(["ip", "route", "add", "default", "via", "fd07::fe", "dev", "eth0"])
            host.run(["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1"])
        together([lambda host=host: pair.prepare(host) for host in pair.hosts])
        yield pair


def wait_reached(pair: Pair) -> None:
    for name in NAMES:
        one, other = pair.containers(name)
        ways = [(one, address) for address in pair.addresses(other)]
        ways += [(other, address) for address in pair.addresses(one)]
        for source, address in ways:
            wait_until(
                partial(is_reached, source, address),
                what=f"a container of {name} reaches {address}",
                deadline_s=SOON_S,
            )


def test_containers_reach_only_the_containers_of_their_flannel_network(pair: Pair) -> None:
    wait_reached(pair)

    assert pair.reached() == REACHED


def test_a_packet_with_a_false_source_address_does_not_arrive(pair: Pair) -> None:
    blue, red = (pair.containers(name)[0] for name in NAMES)
    blue.run_in_network(["ip", "address", "add", "10.9.9.9/32", "dev", "eth0"])
    before = echoes(red)

    blue.run_in_network(["ping", "-c1", "-W1", "-I", "10.9.9.9", str(red.address)], check=False)
    blue.run_in_network(["ip", "address", "delete", "10.9.9.9/32", "dev", "eth0"])

    assert echoes(red) == before


def echoes(container: DockerContainer) -> str:
    """Return the number of pings that arrived in a container."""
    names, values = [
        line.split()
        for line in container.run_in_network(["cat", "/proc/net/snmp"]).stdout.splitlines()
        if line.startswith("Icmp:")
    ]
    return dict(zip(names, values, strict=True))["InEchos"]


def test_a_published_port_is_reached_from_the_other_flannel_network(pair: Pair) -> None:
    here, there = pair.hosts
    for host in (here, there):
        url = f"http://{here.address}:8080/"
        red = DockerContainer(host, host.engine, "red", network="red")
        page = red.run(["busybox", "timeout", "5", "busybox", "wget", "-q", "-O", "-", url])
        assert page.stdout == "blue"


def test_wrong_options_are_refused_with_the_command(pair: Pair) -> None:
    host = pair.hosts[0]
    plain = "network create -d flannel --ipam-driver flannel"
    option = "flannel.network=blue"
    right = CREATE.rpartition(" ")[0] + " NAME"

    for options in ("", f" -o {option}", f" --ipam-opt {option}"):
        refused = host.engine.docker(*f"{plain}{options} wrong".split(), check=False)
        assert refused.returncode != 0
        assert right in refused.stderr
    unknown = CREATE.removeprefix("docker ").replace("blue", "green").split()
    assert "the existing networks are: blue, red" in host.engine.docker(*unknown, check=False).stderr
    assert len(host.engine.docker("network", "ls", "--filter=driver=flannel", "--quiet").stdout.split()) == 2


def test_restarts_keep_addresses_and_isolation(pair: Pair) -> None:
    host = pair.hosts[0]
    before = [pair.addresses(one) for name in NAMES for one in pair.containers(name)]

    pair.daemons[host.name].kill()
    host.engine.stop()
    pair.start_flanneld(host)
    host.engine.start("dockerd --live-restore")
    wait_reached(pair)

    assert [pair.addresses(one) for name in NAMES for one in pair.containers(name)] == before
    assert pair.reached() == REACHED


def test_no_object_remains_after_the_end_of_the_networks(pair: Pair) -> None:
    host = pair.hosts[0]
    for name in NAMES:
        host.engine.docker("rm", "--force", name)
        host.engine.docker("network", "rm", name)

    for name in NAMES:
        state = json.loads((host.directory / f"var/lib/flannel/{name}/docker-networks.json").read_text())
        assert [kind for kind, entries in state.items() if entries and "others" not in kind] == []
    assert not [one["ifname"] for one in host.links() if one["ifname"].startswith(("flbr", "flv"))]
