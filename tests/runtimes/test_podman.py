"""Podman with its CNI backend, and with netavark."""

import re
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host
from pyflannel.lab.traffic import ping, wait_reached
from testlab.container_ways import (
    PODMAN_WITH_CNI,
    PODMAN_WITH_NETAVARK,
    SOON_S,
    UNUSABLE_SUBNET_FILES,
    PodmanWay,
    attachments,
    other_subnet_file,
)
from testlab.pinging import pinging

GUIDE = (Path(__file__).parents[2] / "docs/guides/cni.md").read_text()
_BLOCKS = re.findall(r"^```\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
CREATE_IN_PART, CREATE_IN_HALF = (
    block.partition("podman run")[0] for block in _BLOCKS if "podman network create" in block
)
"""The commands of the guide."""


def clients(podman: PodmanWay, name: str) -> list[str]:
    """Return the addresses of the clients that a web server logged."""
    return re.findall(r"\[::ffff:([0-9.]+)\]:\d+: response:200", podman("logs", name).stderr)


def page(podman: PodmanWay, name: str, address: object) -> str:
    """Return the page at an address, read by a container."""
    return podman("exec", name, "wget", "-q", "-O", "-", f"http://{address}/passwd").stdout


def test_containers_of_two_hosts_reach_each_other_and_a_port_is_published(hosts: list[Host]) -> None:
    first, second = (PodmanWay(host, PODMAN_WITH_CNI) for host in hosts)
    own = first.start("web1", "--publish=8080:80").address
    address = second.start("web2").address
    assert "root:" in page(first, "web1", address)
    assert clients(second, "web2") == [str(own)]
    assert "root:" in second.host.run(["curl", "-s", f"http://{hosts[0].address}:8080/passwd"]).stdout
    for podman, name in ((first, "web1"), (second, "web2")):
        podman.end(name)
        assert attachments(podman.host) == []


@pytest.mark.parametrize(("text", "reason"), UNUSABLE_SUBNET_FILES.values(), ids=UNUSABLE_SUBNET_FILES)
def test_podman_shows_why_the_subnet_file_is_unusable(
    hosts: list[Host], text: str | None, reason: str
) -> None:
    podman = PodmanWay(hosts[0], PODMAN_WITH_CNI)
    run = ["run", "--rm", "--security-opt=seccomp=unconfined", "localhost/busybox", "true"]

    with other_subnet_file(hosts[0], text) as path:
        refused = podman(*run, check=False)

    assert f"{path}: {reason}" in refused.stderr
    assert attachments(hosts[0]) == []
    podman(*run)


def test_netavark_connects_containers_also_during_restarts_of_flanneld(pair: Any) -> None:
    """The containers need no restart of Podman, which has no daemon."""
    first, second = (PodmanWay(host, PODMAN_WITH_NETAVARK, "flannel") for host in pair.hosts)
    for podman in (first, second):
        podman.host.run(["sh", "-c", CREATE_IN_PART])
    near, far = (podman.start("web") for podman in (first, second))
    wait_reached([near, far], deadline_s=SOON_S)

    assert "root:" in page(first, "web", far.address)
    host = pair.hosts[0]
    sources = {str(host.lease().network_address), str(host.address)}  # with host-gw, the address of the host
    assert sources.issuperset(clients(second, "web"))  # netavark masquerades
    for end in (Program.stop, Program.kill):
        with pinging(far, str(near.address)) as pings:
            end(pair.daemons[host.name])
            pair.start_flanneld(host)
        new = first.start("new")
        assert (pings.lost, ping(far, new.address).is_reached) == (0, True)
        assert new.address != near.address
        first.end("new")
    for podman in (first, second):
        podman.end("web")
        podman("network", "rm", "flannel")


def test_netavark_may_have_the_upper_half_of_an_undivided_subnet(hosts: list[Host]) -> None:
    first, second = (PodmanWay(host, PODMAN_WITH_NETAVARK, "flannel") for host in hosts)
    for podman in (first, second):
        # Another test may have created cni0, with the same subnet.
        podman.host.run(["ip", "link", "delete", "cni0"], check=False)
        podman.host.run(["sh", "-c", CREATE_IN_HALF])
    near, far = (podman.start("web") for podman in (first, second))

    wait_reached([near, far], deadline_s=SOON_S)

    for podman in (first, second):
        podman.end("web")
        podman("network", "rm", "flannel")
