"""A real Docker engine on a host of the lab, and its containers."""

import json
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import CompletedProcess

from pyflannel.errors import LabError
from pyflannel.lab.containers import image
from pyflannel.lab.sandboxes.cgroups import cgroup_of
from pyflannel.lab.sandboxes.exec_start import expand, read_environment_file
from pyflannel.lab.sandboxes.program import Program
from pyflannel.lab.sandboxes.sandbox import RUN_TIMEOUT_S, Sandbox

_START_DEADLINE_S = 60.0


class DockerEngine:
    """The engine of one host: /var/run/docker.sock, /var/lib/docker and /etc/docker are the host's own."""

    def __init__(self, host: Sandbox) -> None:
        self._host = host
        self._daemon: Program | None = None

    def write_settings(self) -> None:
        """Write the host's daemon.json, before the host begins; whoever starts dockerd there, it holds.

        The lab removes what lies under its own control group, whichever way the run ended.
        """
        settings = {
            "cgroup-parent": f"/{cgroup_of(self._host.directory)}",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
        }
        path = self._host.directory / "etc/docker/daemon.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))

    def start(self, exec_start: str, *, environment_file: Path | None = None) -> Program:
        """Start dockerd as systemd would by this ExecStart, and return when it is ready.

        Args:
            exec_start: the command line, `dockerd $DOCKER_OPTS` or `dockerd --bip=${FLANNEL_SUBNET}`.
            environment_file: where the variables stand, as the host sees the path.

        Raises:
            LabError: dockerd ended, or was not ready in time.
        """
        variables = {}
        if environment_file is not None:
            variables = read_environment_file(self._host.run(["cat", environment_file]).stdout)
        command = expand(exec_start, variables)
        self._daemon = self._host.start_service(command, name="dockerd", deadline_s=_START_DEADLINE_S)
        return self._daemon

    def stop(self) -> None:
        """Stop the engine; its containers end too."""
        if self._daemon is not None:
            self._daemon.stop(_START_DEADLINE_S)
            self._daemon = None

    def docker(self, *argv: str, check: bool = True) -> CompletedProcess[str]:
        """Run the docker command on the host."""
        return self._host.run(["docker", *argv], check=check)

    def import_image(self, archive: Path) -> None:
        """Make the image of `image.NAME` from a root file system."""
        self.docker("import", str(archive), image.NAME)

    def run_container(
        self, name: str, command: Sequence[str], *, options: Sequence[str] = ()
    ) -> "DockerContainer":
        """Run a container in the background, as `docker run --detach` with these further options."""
        self.docker("run", "--detach", f"--name={name}", *options, image.NAME, *command)
        return DockerContainer(self._host, self, name)


class DockerContainer:
    """A container of a Docker engine."""

    def __init__(self, host: Sandbox, engine: DockerEngine, name: str) -> None:
        self.name = name
        self._host = host
        self._engine = engine
        (found,) = json.loads(engine.docker("inspect", name).stdout)
        if not found["State"]["Running"]:
            said = engine.docker("logs", name, check=False)
            raise LabError(f"container {name} on {host.name} has ended", hint=said.stdout + said.stderr)
        self.address = IPv4Address(found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"])
        self._pid = int(found["State"]["Pid"])

    def run(self, argv: Sequence[str], *, check: bool = True) -> CompletedProcess[str]:
        """Run a command in the container by `docker exec`."""
        return self._engine.docker("exec", self.name, *argv, check=check)

    def run_in_network(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> CompletedProcess[str]:
        """Run one of the machine's commands in the network of the container."""
        return self._host.run([*self._into, *argv], check=check, timeout_s=timeout_s)

    def start_in_network(self, argv: Sequence[str | Path], *, name: str = "") -> Program:
        """Start one of the machine's programs in the network of the container."""
        return self._host.start([*self._into, *argv], name=name or f"{self.name}-{Path(argv[0]).name}")

    def published_port(self, port: int) -> int:
        """Return the host's port that leads to a port of the container."""
        answer = self._engine.docker("port", self.name, str(port)).stdout.splitlines()
        return int(answer[0].rpartition(":")[2])

    def remove(self) -> None:
        """End it at once and forget it."""
        self._engine.docker("rm", "--force", self.name)

    @property
    def _into(self) -> list[str]:
        return ["nsenter", f"--target={self._pid}", "--net", "--"]
