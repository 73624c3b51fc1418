"""Containers of a lab, as network namespaces or with Docker, including their image and a web server in a
container.
"""

import io
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol

from pyflannel.errors import LabError
from pyflannel.lab.program import Program, cgroup_of, expand, read_environment_file
from pyflannel.lab.sandbox import RUN_TIMEOUT_S, Sandbox

IMAGE = "busybox"
"""Name of the image of a lab's Docker containers."""


def write_image(path: Path) -> None:
    """Write the root file system of a busybox container as a tar archive, for `docker import`.

    Raises:
        LabError: the machine has no busybox, or a busybox that needs shared libraries.
    """
    found = shutil.which("busybox")
    if found is None:
        raise LabError("busybox is not installed", hint="Run scripts/setup, which installs busybox-static.")
    program = Path(found).read_bytes()
    if b"/lib64/ld-linux" in program or b"/lib/ld-linux" in program:
        raise LabError(f"{found} needs shared libraries", hint="Install busybox-static instead.")
    applets = subprocess.run([found, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(path, "w") as archive:
        _add_file(archive, "bin/busybox", program, mode=0o755)
        for applet in applets:
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
        _add_file(archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", mode=0o644)


def _add_file(archive: tarfile.TarFile, name: str, content: bytes, *, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


class Container(Protocol):
    """A container on a host, as a network namespace or run by Docker."""

    @property
    def name(self) -> str:
        """The name of the container on its host."""

    @property
    def address(self) -> IPv4Address:
        """The address of the container on the overlay."""

    def run(self, argv: Sequence[str], *, check: bool = True) -> CompletedProcess[str]:
        """Run a command in the container."""

    def run_in_network(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> CompletedProcess[str]:
        """Run a command of the machine in the network of the container."""

    def start_in_network(self, argv: Sequence[str | Path], *, name: str = "") -> Program:
        """Start a program of the machine in the network of the container."""

    def remove(self) -> None:
        """Remove the container."""


BRIDGE = "br0"


def create_bridge(host: Sandbox, address: IPv4Interface) -> None:
    """Create the bridge for the containers of a host; `address` is the gateway of the containers."""
    host.run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    host.run(["ip", "address", "add", str(address), "dev", BRIDGE])
    host.run(["ip", "link", "set", BRIDGE, "up"])


class _NetworkUser:
    """Runs programs of the machine in the network of a container."""

    def __init__(self, host: Sandbox, name: str, into: Sequence[str]) -> None:
        """The command `into` enters the network of the container."""
        self.name = name
        self._host = host
        self._into = into

    def run_in_network(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> CompletedProcess[str]:
        """Run a command of the machine in the network of the container."""
        return self._host.run([*self._into, *argv], check=check, timeout_s=timeout_s)

    def start_in_network(self, argv: Sequence[str | Path], *, name: str = "") -> Program:
        """Start a program of the machine in the network of the container."""
        return self._host.start([*self._into, *argv], name=name or f"{self.name}-{Path(argv[0]).name}")


class NamespaceContainer(_NetworkUser):
    """A network namespace with eth0 on the bridge of the host, and with the files of the host."""

    def __init__(
        self, host: Sandbox, name: str, *, address: IPv4Interface, gateway: IPv4Address, mtu: int
    ) -> None:
        super().__init__(host, name, ["nsenter", f"--net=/run/netns/{name}", "--"])
        self.address = address.ip
        host.run(["ip", "netns", "add", name])
        cable = f"link add c-{name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}\n"
        host.run(["ip", "-batch", "-"], text=f"{cable}link set c-{name} master {BRIDGE} up\n")
        inside = [f"address add {address} dev eth0", "link set eth0 up", "link set lo up"]
        inside.append(f"route add default via {gateway}")
        host.run(["ip", "-netns", name, "-batch", "-"], text="\n".join(inside) + "\n")

    def run(self, argv: Sequence[str], *, check: bool = True) -> CompletedProcess[str]:
        """Run a command in the container."""
        return self.run_in_network(argv, check=check)

    def remove(self) -> None:
        """Remove the network namespace and the veth."""
        self._host.run(["ip", "link", "delete", f"c-{self.name}"])
        self._host.run(["ip", "netns", "delete", self.name])


_START_DEADLINE_S = 60.0


class DockerEngine:
    """The Docker engine of one host, with the host's own docker.sock, /var/lib/docker and /etc/docker."""

    def __init__(self, host: Sandbox) -> None:
        self._host = host
        self._daemon: Program | None = None

    def write_settings(self) -> None:
        """Write the host's daemon.json before the host starts, so that it applies to every dockerd on the
        host.

        The containers are in the control group of the lab, which the lab removes in any case.
        """
        settings = {
            "cgroup-parent": f"/{cgroup_of(self._host.directory)}",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
        }
        path = self._host.directory / "etc/docker/daemon.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))

    def start(self, exec_start: str, *, environment_file: Path | None = None) -> Program:
        """Start dockerd in the same way as systemd does with this ExecStart, and return when it is ready.

        Args:
            exec_start: the command line, `dockerd $DOCKER_OPTS` or `dockerd --bip=${FLANNEL_SUBNET}`.
            environment_file: file of the variables, as a path on the host.

        Raises:
            LabError: dockerd exited, or was not ready in time.
        """
        variables = {}
        if environment_file is not None:
            variables = read_environment_file(self._host.run(["cat", environment_file]).stdout)
        command = expand(exec_start, variables)
        self._daemon = self._host.start_service(command, name="dockerd", deadline_s=_START_DEADLINE_S)
        return self._daemon

    def stop(self) -> None:
        """Stop the engine, which also stops its containers."""
        if self._daemon is not None:
            self._daemon.stop(_START_DEADLINE_S)
            self._daemon = None

    def docker(self, *argv: str, check: bool = True) -> CompletedProcess[str]:
        """Run the docker command on the host."""
        return self._host.run(["docker", *argv], check=check)

    def import_image(self, archive: Path) -> None:
        """Create the image `IMAGE` from a root file system."""
        self.docker("import", str(archive), IMAGE)

    def run_container(
        self, name: str, command: Sequence[str], *, options: Sequence[str] = (), network: str = "bridge"
    ) -> "DockerContainer":
        """Run a container in the background, as `docker run --detach` with these additional options."""
        self.docker("run", "--detach", f"--name={name}", f"--network={network}", *options, IMAGE, *command)
        return DockerContainer(self._host, self, name, network=network)


class DockerContainer(_NetworkUser):
    """A container of a Docker engine."""

    def __init__(self, host: Sandbox, engine: DockerEngine, name: str, *, network: str = "bridge") -> None:
        self._engine = engine
        (found,) = json.loads(engine.docker("inspect", name).stdout)
        if not found["State"]["Running"]:
            said = engine.docker("logs", name, check=False)
            raise LabError(f"container {name} on {host.name} has ended", hint=said.stdout + said.stderr)
        self.address = IPv4Address(found["NetworkSettings"]["Networks"][network]["IPAddress"])
        super().__init__(host, name, ["nsenter", f"--target={found['State']['Pid']}", "--net", "--"])

    def run(self, argv: Sequence[str], *, check: bool = True) -> CompletedProcess[str]:
        """Run a command in the container by `docker exec`."""
        return self._engine.docker("exec", self.name, *argv, check=check)

    def published_port(self, port: int) -> int:
        """Return the port of the host that is published for a port of the container."""
        answer = self._engine.docker("port", self.name, str(port)).stdout.splitlines()
        return int(answer[0].rpartition(":")[2])

    def remove(self) -> None:
        """Remove the container, even if it runs."""
        self._engine.docker("rm", "--force", self.name)


PORT = 80
_ANSWER_DEADLINE_S = 30.0
_SERVE = 'mkdir -p "$0" && printf "%s" "$1" >"$0/index.html" && exec busybox httpd -f -p "$2" -h "$0"'


def serving(page: str, *, name: str, port: int = PORT) -> list[str]:
    """Return the command of a web server that answers every request for / with `page`."""
    return ["busybox", "sh", "-c", _SERVE, f"/run/www/{name}", page, str(port)]


def fetch(container: Container, address: IPv4Address, *, port: int = PORT) -> str:
    """Fetch the page at an address from a container. Retry for some seconds while the server starts.

    Raises:
        LabError: the server did not respond within the deadline.
    """
    url = f"http://{address}:{port}/"
    # wget is used without the option -T, which crashes the static busybox 1.35 of Debian 12.
    command = ["busybox", "timeout", "3", "busybox", "wget", "-q", "-O", "-", url]
    end = time.monotonic() + _ANSWER_DEADLINE_S
    while (got := container.run(command, check=False)).returncode != 0:
        if time.monotonic() >= end:
            raise LabError(
                f"{container.name} received no page from {url}: {got.stderr.strip()}",
                hint=f"Ping the host of {url} from the container.",
            )
    return got.stdout
