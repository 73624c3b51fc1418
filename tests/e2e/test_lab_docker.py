"""Real Docker engines in the lab, without flannel: subnets and routes are configured manually."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pyflannel.lab.containers import DockerContainer, fetch, serving, write_image
from pyflannel.lab.lab import Lab
from pyflannel.lab.lab_directory import ROOT, without_removals
from pyflannel.lab.topology import Host
from pyflannel.lab.traffic import ping_all
from pyflannel.lab.waiting import together

pytestmark = pytest.mark.skipif(
    shutil.which("dockerd") is None, reason="no dockerd: Debian's docker.io has it"
)

NAME = f"t{os.getpid()}-docker"


def start(host: Host, *, image: Path) -> DockerContainer:
    number = int(host.name[-1])
    host.engine.start(f"dockerd --bip=10.50.{number}.1/24 --mtu=1472 --ip-masq=false")
    host.engine.import_image(image)
    name = f"web-{host.name[-1]}"
    return host.engine.run_container(
        name, serving(f"page of {host.name}", name=name), options=["-P", "--expose=80"]
    )


def add_routes(lab: Lab) -> None:
    for host in lab.hosts.values():
        subnet = f"10.50.{host.name[-1]}.0/24"
        lab.router.run(["ip", "route", "add", subnet, "via", str(host.address)])
        for other in lab.hosts.values():
            if other is not host and other.place.segment == host.place.segment:
                other.run(["ip", "route", "add", subnet, "via", str(host.address)])


def control_groups(name: str) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"**/flannel-lab/{name}"))


def test_four_docker_engines_run_side_by_side() -> None:
    """Each engine has its own socket, images and bridge. Containers reach each other by the routes that the
    test adds.
    """
    with Lab(NAME) as lab:
        image = lab.directory / "busybox.tar"
        write_image(image)
        containers = together([partial(start, host, image=image) for host in lab.hosts.values()])
        add_routes(lab)
        by_host = dict(zip(lab.hosts, containers, strict=True))

        results = ping_all(containers)
        page = fetch(by_host["docker4"], by_host["docker1"].address)
        port = by_host["docker1"].published_port(80)
        published = fetch(by_host["docker4"], lab.hosts["docker1"].address, port=port)
        names = [host.engine.docker("ps", "--format", "{{.Names}}").stdout for host in lab.hosts.values()]
        groups = control_groups(NAME)

    assert [pair for pair, result in results.items() if not result.is_reached] == []
    assert len(results) == 12
    assert page == published == "page of docker1"
    assert names == ["web-1\n", "web-2\n", "web-3\n", "web-4\n"]
    assert groups
    assert control_groups(NAME) == []
    assert not (ROOT / NAME).exists()


HOLDER = """
import signal, sys
from pyflannel.lab.containers import write_image
from pyflannel.lab.lab import Lab
from pyflannel.lab.containers import serving

with Lab(sys.argv[1]) as lab:
    host = lab.hosts["docker1"]
    host.engine.start("dockerd --bip=10.50.1.1/24")
    write_image(lab.directory / "busybox.tar")
    host.engine.import_image(lab.directory / "busybox.tar")
    host.engine.run_container("web", serving("page", name="web"))
    print("up", flush=True)
    signal.pause()
"""


def test_the_next_run_removes_the_remains_of_docker_after_a_killed_run() -> None:
    """The remains are containers, their control groups and overlays."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, NAME], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        with without_removals():
            holder.kill()
            holder.wait()
            left = control_groups(NAME)

    with Lab(NAME) as lab:
        clean = control_groups(NAME)
        lab.hosts["docker1"].engine.start("dockerd --bip=10.50.1.1/24")
        containers = lab.hosts["docker1"].engine.docker("ps", "--all", "--quiet").stdout

    assert left
    assert clean == []
    assert containers == ""
    assert control_groups(NAME) == []
