"""Ways to run containers on a host of a lab: Docker, Compose, cnitool, Podman, and containerd (ctr, CRI)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol

from pyflannel.lab.containers import DockerContainer, write_image
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import RUN_TIMEOUT_S
from pyflannel.lab.topology import COOKBOOK, LEFT, Host, Topology
from pyflannel.lab.traffic import Station
from pyflannel.lab.waiting import wait_until
from testlab.cni_runtime import Runtime

SOON_S = 60.0
SLEEP = ("sleep", "100000")
_NETWORK = "cbr0"
"""Name of the network that `flannelctl cni install` configures."""


@contextmanager
def segment_lab(name: str, configs: Mapping[str, object]) -> Iterator[tuple[Lab, EtcdServer, Program]]:
    """Create a lab with two hosts on one segment, an etcd with these network configs by key, and an image."""
    places = tuple(place for place in COOKBOOK.hosts if place.segment is LEFT)
    with Lab(name, Topology(COOKBOOK.segments, places)) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        store = etcd.start()
        for key, config in configs.items():
            etcd.etcdctl("put", f"{PREFIX}/{key}", json.dumps(config))
        write_image(lab.directory / "busybox.tar")
        yield lab, etcd, store


class Way(Protocol):
    """Starts and ends containers of one kind on one host."""

    def start(self, name: str) -> Station:
        """Start a container that sleeps."""

    def end(self, name: str) -> None:
        """End a container and remove it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A container on a host, as the command `into` that enters its network."""

    host: Host
    name: str
    address: IPv4Address
    into: tuple[str, ...]

    def run_in_network(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> CompletedProcess[str]:
        """Run a command of the machine in the network of the container."""
        return self.host.run([*self.into, *argv], check=check, timeout_s=timeout_s)

    def start_in_network(self, argv: Sequence[str | Path], *, name: str = "") -> Program:
        """Start a program of the machine in the network of the container."""
        return self.host.start([*self.into, *argv], name=name)


def _joined(host: Host, name: str, process: str, address: str) -> Joined:
    into = ("nsenter", f"--target={process}", "--net", "--")
    return Joined(host=host, name=name, address=IPv4Address(address), into=into)


# Docker.


class DockerWay:
    """`docker run --network NETWORK`."""

    def __init__(self, host: Host, network: str) -> None:
        self._host = host
        self._network = network

    def start(self, name: str) -> Station:
        """Start a container: see `Way`."""
        options = ["--stop-timeout=1"]
        return self._host.engine.run_container(
            f"{self._network}-{name}", SLEEP, network=self._network, options=options
        )

    def end(self, name: str) -> None:
        """End a container: see `Way`."""
        self._host.engine.docker("rm", "--force", f"{self._network}-{name}")


class ComposeWay:
    """A service of a Compose project with its own network.

    Args:
        program: `docker-compose`, or the path of the Compose plugin, which then runs as `docker compose`.
        networks: the top-level key `networks` of the project.
        services: names of the services. `start` gets the name of a service as the name of the container.
    """

    def __init__(
        self, host: Host, program: str | Path, project: str, networks: str, services: Sequence[str]
    ) -> None:
        self._host = host
        self._project = project
        command = [str(program)]
        if isinstance(program, Path):
            plugins = "/run/docker-settings/cli-plugins"
            install = f'mkdir -p {plugins} && ln -sf "$0" {plugins}/docker-compose'
            host.run(["sh", "-c", install, str(program)])
            command = ["env", "DOCKER_CONFIG=/run/docker-settings", "docker", "compose"]
        directory = f"/run/{project}"
        sleep = f"    image: busybox\n    command: {' '.join(SLEEP)}\n    stop_grace_period: 0s\n"
        text = 'version: "3"\nservices:\n' + "".join(f"  {name}:\n{sleep}" for name in services) + networks
        host.run(["mkdir", "-p", directory])
        host.run(["tee", f"{directory}/docker-compose.yml"], text=text)
        self._command = [*command, f"--project-directory={directory}", f"--project-name={project}"]
        self._command += ["-f", f"{directory}/docker-compose.yml"]

    def run(self, *argv: str, check: bool = True) -> CompletedProcess[str]:
        """Run Compose with this project."""
        return self._host.run([*self._command, *argv], check=check)

    def start(self, name: str) -> Station:
        """Start a service: see `Way`."""
        self.run("up", "--detach", name)
        network = f"{self._project}_default"
        return DockerContainer(self._host, self._host.engine, self._container(name), network=network)

    def end(self, name: str) -> None:
        """End the container of a service, without Compose, which needs seconds: see `Way`."""
        self._host.engine.docker("rm", "--force", self._container(name))

    def _container(self, service: str) -> str:
        labels = {"project": self._project, "service": service}
        selected = [f"--filter=label=com.docker.compose.{key}={value}" for key, value in labels.items()]
        return self._host.engine.docker("ps", "--quiet", *selected).stdout.strip()


# CNI.


def install_cni(host: Host) -> None:
    """Install the CNI plugin and Debian's delegates, as in the guide."""
    host.run(["flannelctl", "cni", "install"])
    host.run(["sh", "-c", "ln -s /usr/lib/cni/* /opt/cni/bin/"])


UNUSABLE_SUBNET_FILES: dict[str, tuple[str | None, str]] = {
    "missing": (None, "No such file or directory"),
    "cut-short": ("FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.3.1/2", "it is missing FLANNEL_MTU"),
}
"""Contents of a subnet file, and the error of the CNI plugin."""


@contextmanager
def other_subnet_file(host: Host, text: str | None) -> Iterator[str]:
    """Let the CNI plugin read a file with this text, or a missing file, during a block. Yield the path of the
    file.
    """
    path, conflist = "/run/other/subnet.env", "/etc/cni/net.d/10-flannel.conflist"
    before = host.run(["cat", conflist]).stdout
    document = json.loads(before)
    document["plugins"][0]["subnetFile"] = path
    host.run(["mkdir", "-p", "/run/other"])
    if text is not None:
        host.run(["tee", path], text=text)
    host.run(["tee", conflist], text=json.dumps(document))
    yield path
    host.run(["tee", conflist], text=before)
    host.run(["rm", "-r", "/run/other"])


def attachments(host: Host) -> list[str]:
    """Return the files that the CNI plugin and host-local saved for containers of the host."""
    find = ["find", "/var/lib/cni/flannel", "/var/lib/cni/networks", "-type", "f", "-name", "[!l]*"]
    return sorted(host.run(find, check=False).stdout.split())


class CnitoolWay:
    """`cnitool`, in a network namespace for each container."""

    def __init__(self, host: Host, programs: Path) -> None:
        self._host = host
        settings = ["CNI_PATH=/opt/cni/bin", "NETCONFPATH=/etc/cni/net.d"]
        self._command = ["env", *settings, str(programs / "cnitool")]

    def start(self, name: str) -> Station:
        """Attach a new network namespace: see `Way`."""
        path = f"/run/netns/{name}"
        self._host.run(["ip", "netns", "add", name])
        result = json.loads(self._host.run([*self._command, "add", _NETWORK, path]).stdout)
        address = IPv4Address(result["ips"][0]["address"].partition("/")[0])
        return Joined(host=self._host, name=name, address=address, into=("nsenter", f"--net={path}", "--"))

    def end(self, name: str) -> None:
        """Detach a network namespace and delete it: see `Way`."""
        self._host.run([*self._command, "del", _NETWORK, f"/run/netns/{name}"])
        self._host.run(["ip", "netns", "delete", name])


CONTAINERS_CONF = """\
[network]
{network}
[engine]
cgroup_manager="cgroupfs"
events_logger="file"
[containers]
default_ulimits=["nofile=1024:1024","nproc=1024:1024"]
"""

PODMAN_WITH_CNI = f'network_backend="cni"\ndefault_network="{_NETWORK}"'
PODMAN_WITH_NETAVARK = 'network_backend="netavark"'


class PodmanWay:
    """`podman run`. Every container is a web server.

    Args:
        settings: the table `network` of containers.conf.
        network: the network of the containers; "" for the default network.
    """

    def __init__(self, host: Host, settings: str, network: str = "") -> None:
        self.host = host
        self._network = [f"--network={network}"] if network else []
        text = CONTAINERS_CONF.format(network=settings)
        host.run(["sh", "-c", "mkdir -p /etc/containers && cat >/etc/containers/containers.conf"], text=text)
        self("import", str(host.directory.parent / "busybox.tar"), "busybox")

    def __call__(self, *words: str, check: bool = True) -> CompletedProcess[str]:
        """Run Podman."""
        podman = ["podman", "--runtime=/usr/sbin/runc", "--storage-driver=vfs"]
        return self.host.run([*podman, *words], check=check)

    def start(self, name: str, *options: str) -> Station:
        """Start a web server: see `Way`."""
        settings = ["--detach", f"--name={name}", "--security-opt=seccomp=unconfined", *self._network]
        self("run", *settings, *options, "localhost/busybox", "httpd", "-f", "-v", "-h", "/etc")
        (shown,) = json.loads(self("inspect", name).stdout)
        (network,) = shown["NetworkSettings"]["Networks"].values()
        return _joined(self.host, name, shown["State"]["Pid"], network["IPAddress"])

    def end(self, name: str) -> None:
        """End a container: see `Way`."""
        self("rm", "--force", "--time=0", name)


# containerd.

IMAGE = "localhost/sleeper:latest"
_CONFIG = f"""\
version = 2
root = "/var/lib/docker/without-docker"
state = "/run/without-docker"
[grpc]
address = "/run/without-docker/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"""


class Containerd:
    """containerd on a host, with an image that sleeps. dockerd neither starts nor uses this containerd."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._program: Program | None = None
        host.run(["sh", "-c", "mkdir -p /etc/containerd && cat >/etc/containerd/config.toml"], text=_CONFIG)

    def start(self) -> None:
        """Start containerd, and wait until it answers."""
        self._program = self.host.start(["containerd"])
        wait_until(self._answers, what="containerd answers", deadline_s=SOON_S)

    def stop(self) -> None:
        """End containerd. The containers continue to run."""
        if self._program is not None:
            self._program.stop()

    def kill(self) -> None:
        """Kill containerd. The containers continue to run."""
        if self._program is not None:
            self._program.kill()

    def import_image(self) -> None:
        """Create the image from the archive of the lab."""
        podman = ["podman", "--storage-driver=vfs"]
        archive = str(self.host.directory.parent / "busybox.tar")
        self.host.run([*podman, "import", '--change=ENTRYPOINT ["/bin/sleep", "infinity"]', archive, IMAGE])
        self.host.run([*podman, "save", "--format=docker-archive", "--output=/run/image.tar", IMAGE])
        self.ctr("image", "import", "/run/image.tar")

    def ctr(self, *words: str, check: bool = True) -> CompletedProcess[str]:
        """Run `ctr`."""
        return self.host.run([*CTR, *words], check=check)

    def _answers(self) -> bool:
        return self.ctr("version", check=False).returncode == 0


SOCKET = "unix:///run/without-docker/containerd.sock"
CTR = ("ctr", f"--address={SOCKET.removeprefix('unix://')}", "--namespace=k8s.io")
CTR_RUN = (*CTR, "run", "--cni", "--snapshotter=native", "--cgroup=")


class CtrWay:
    """`ctr run --cni`."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._host = containerd.host
        self._runtime = Runtime(containerd.host)

    def start(self, name: str) -> Station:
        """Start a container: see `Way`."""
        self._host.run([*CTR_RUN, "--detach", IMAGE, name])
        tasks = self._containerd.ctr("task", "ls").stdout.splitlines()
        process = next(line.split()[1] for line in tasks if line.startswith(f"{name} "))
        joined = _joined(self._host, name, process, "0.0.0.0")
        shown = joined.run_in_network(["ip", "-j", "-4", "address", "show", "dev", "eth0"]).stdout
        return _joined(self._host, name, process, json.loads(shown)[0]["addr_info"][0]["local"])

    def end(self, name: str) -> None:
        """End a container: see `Way`. `ctr` itself detaches only containers in the foreground."""
        self._containerd.ctr("task", "kill", "--signal=KILL", name)
        self._containerd.ctr("task", "delete", "--force", name, check=False)
        self._containerd.ctr("container", "delete", name)
        self._runtime.call("DEL", self._runtime.plugins[0], f"k8s.io-{name}", CNI_NETNS="")


class CriWay:
    """Pods by the interface CRI of Kubernetes, which `crictl` calls."""

    def __init__(self, containerd: Containerd, programs: Path) -> None:
        self._host = containerd.host
        self._command = [str(programs / "crictl"), "--timeout=60s", "-r", SOCKET]
        self._pods: dict[str, str] = {}

    def crictl(self, *words: str) -> str:
        """Run `crictl`."""
        return self._host.run([*self._command, *words]).stdout

    def start(self, name: str) -> Station:
        """Start a pod: see `Way`."""
        wait_until(self._is_ready, what="containerd accepts pods", deadline_s=SOON_S)
        pod = {"metadata": {"name": name, "namespace": "default", "uid": self._host.name}, "linux": {}}
        self._host.run(["sh", "-c", "cat >/run/pod.json"], text=json.dumps(pod))
        number = self._pods[name] = self.crictl("runp", "/run/pod.json").strip()
        shown = json.loads(self.crictl("inspectp", number))
        return _joined(self._host, name, shown["info"]["pid"], shown["status"]["network"]["ip"])

    def end(self, name: str) -> None:
        """End a pod: see `Way`."""
        number = self._pods.pop(name)
        self.crictl("stopp", number)
        self.crictl("rmp", number)

    def _is_ready(self) -> bool:
        shown = self._host.run([*self._command, "info"], check=False)
        if shown.returncode != 0:
            return False
        return all(each["status"] for each in json.loads(shown.stdout)["status"]["conditions"])
