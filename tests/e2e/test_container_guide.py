"""The commands of the guide to flanneld in a container, with a real Docker engine."""

import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import LEFT, Host
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("dockerd") is None, reason="no dockerd: Debian's docker.io has it"
)

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```\n(.*?)^```", (ROOT / "docs/guides/containers.md").read_text(), flags=re.DOTALL | re.MULTILINE
)
READY_S = 60.0
PROGRAMS = [f"--volume={path}:{path}:ro" for path in ("/usr", "/etc/alternatives", ROOT)]
"""The image contains no files, because the programs of this machine are mounted."""


def import_image(host: Host) -> None:
    archive = host.directory / "pyflannel.tar"
    with tarfile.open(archive, "w") as image:
        for name in ("bin", "sbin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            image.addfile(link)
    path = f"ENV PATH={ROOT}/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    changes = ["--change", 'ENTRYPOINT ["flanneld"]', "--change", path]
    host.run(["docker", "import", *changes, str(archive), "pyflannel"])


def run_block(host: Host, block: str) -> str:
    """Run a block of the guide."""
    command = block.replace("docker run", f"docker run {' '.join(PROGRAMS)}")
    return host.run(["bash", "-ec", command]).stdout


def wait_ready(host: Host, status: str) -> str:
    """Return the status when flanneld in the container is ready."""
    shown: list[str] = []

    def is_ready() -> bool:
        shown.append(host.run(["bash", "-c", f"{status.strip()} --wide"], check=False).stdout)
        return ", ready" in shown[-1]

    wait_until(is_ready, what="flanneld is ready in the container", deadline_s=READY_S)
    return shown[-1]


def lease_line(status: str) -> str:
    return next(line.split(",")[0] for line in status.splitlines() if line.startswith("lease"))


def owner_line(status: str) -> str:
    return next(line for line in status.splitlines() if line.startswith("owner"))


def test_a_new_container_without_directories_has_the_subnet_of_the_previous_container(
    new_network: Callable[..., Any],
) -> None:
    """The new container reads the identity from the device, and makes no claim.

    The first container leaves filter tables. An earlier version of nft crashed in the second container when
    it listed these tables as JSON.
    """
    *_, start, status, remove, cleanup = BLOCKS
    without_directories = re.sub(r"--volume (/(run|var/lib)/flannel):\S+", r"--tmpfs \1", start)
    network = new_network("docker1")
    host = network.hosts["docker1"]
    host.run(["tee", "--append", "/etc/hosts"], text=f"{LEFT.gateway.ip} ETCD\n")
    host.engine.start("dockerd --iptables=false")
    import_image(host)

    run_block(host, start)
    first = wait_ready(host, status)
    host.run(["test", "-e", "/run/flannel/subnet.env"])
    run_block(host, remove)
    host.run(["rm", "-r", "/run/flannel", "/var/lib/flannel"])
    run_block(host, without_directories)
    second = wait_ready(host, status)

    assert (lease_line(second), owner_line(second)) == (lease_line(first), owner_line(first))
    log = host.run(["docker", "logs", "flanneld"]).stderr
    assert "Using the identity on the device" in log
    assert "asking whether" not in log

    run_block(host, cleanup)
    assert not [link for link in host.links() if link["ifname"].startswith("flannel")]
    assert not network.etcdctl("get", "--prefix", f"{PREFIX}/subnets/")
