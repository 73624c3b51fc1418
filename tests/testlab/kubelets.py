"""Nodes of a Kubernetes cluster on hosts of a lab: containerd, kubelet and kube-proxy, and their pods."""

import hashlib
import importlib.metadata
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sysconfig
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from packaging.requirements import Requirement

from pyflannel.errors import LabError
from pyflannel.lab.lab import Lab
from pyflannel.lab.program import Program, cgroup_of
from pyflannel.lab.sandbox import RUN_TIMEOUT_S
from pyflannel.lab.topology import LEFT, Host, plug_in
from pyflannel.lab.traffic import wait_reached
from pyflannel.lab.waiting import together, wait_until
from testlab.cluster import HELM, PROGRAMS, Cluster
from testlab.overlay import ipv6_underlay

ROOT = Path(__file__).parents[2]
IMAGE = "docker.io/library/pyflannel:0.1.0"
"""The image that the manifests name."""

BOX = "localhost/box:1"
"""The image of pods: busybox, whose default command waits."""

WEB = r"""
mkdir -p /tmp/www/cgi-bin
printf '#!/bin/sh\nprintf "Content-type: text/plain\\n\\n$REMOTE_ADDR"\n' >/tmp/www/cgi-bin/source
chmod +x /tmp/www/cgi-bin/source
exec busybox httpd -f -p 0.0.0.0:8080 -h /tmp/www
"""
WEB_PORT, HOST_PORT = 8080, 8888
"""The script of a web server whose page /cgi-bin/source is the address of the client."""

SOON_S = 120.0
_CGROUPS = Path("/sys/fs/cgroup")
_DIRECTORIES = {
    "kubelet": "/var/lib/kubelet",
    "containerd": "/var/lib/containerd",
    "log": "/var/log",
}
"""Directories of a node that must not be on the overlay of its sandbox."""

_MACHINE_SYSCTLS = {"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
"""The kubelet sets these sysctls for the whole machine. Each node has plain files instead of these
sysctls."""

_FILES = (
    *("/run/flannel", "/var/lib/flannel", "/sys/fs/bpf/flannel", "/opt/cni/bin/flannel"),
    *("/opt/cni/bin/flannel.d", "/etc/cni/net.d/10-flannel.conflist", "/var/lib/cni/flannel"),
    "/var/lib/cni/networks/cbr0",
)
"""The files of flannel on a node."""

_CONTAINERD = f"""\
version = 2
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{BOX}"
restrict_oom_score_adj = true
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


class Pod:
    """A running pod with its own network."""

    def __init__(self, node: "KubeNode", document: dict[str, Any]) -> None:
        self.name = str(document["metadata"]["name"])
        self.address = IPv4Address(document["status"]["podIP"])
        self.addresses = [ip_address(one["ip"]) for one in document["status"]["podIPs"]]
        self.node = node
        number = document["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        self._into = ["nsenter", f"--target={node.process(number)}", "--net", "--"]

    def run_in_network(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> CompletedProcess[str]:
        """Run a command of the machine in the network of the pod."""
        return self.node.host.run([*self._into, *argv], check=check, timeout_s=timeout_s)

    def start_in_network(self, argv: Sequence[str | Path], *, name: str = "") -> Program:
        """Start a program of the machine in the network of the pod."""
        return self.node.host.start([*self._into, *argv], name=name)


class KubeNode:
    """A host with containerd, kubelet and kube-proxy."""

    def __init__(
        self, lab: Lab, host: Host, name: str, cluster: Cluster, proxy_mode: str, addresses: str
    ) -> None:
        """Prepare a node. `addresses` are the addresses that the kubelet reports, separated by commas."""
        self._addresses = addresses
        self.host = host
        self.name = name
        self._lab = lab
        self._cluster = cluster
        self._proxy_mode = proxy_mode
        self._programs: dict[str, Program] = {}

    def start(self, images: Iterable[Path]) -> None:
        """Start the programs of the node and load the images."""
        self._prepare()
        self._boot()
        for image in images:
            self.load(image)

    def load(self, image: Path) -> None:
        """Load the archive of an image."""
        self._ctr("images", "import", str(image))

    def _prepare(self) -> None:
        files = self.host.directory / "node"
        for name in (*_DIRECTORIES, "log/pods", "log/containers"):
            (files / name).mkdir(parents=True)
        for path, value in _MACHINE_SYSCTLS.items():
            (files / path.replace("/", ".")).write_text(f"{value}\n")
        (files / "containerd.toml").write_text(_CONTAINERD)
        (files / "kubelet.json").write_text(json.dumps(self._kubelet_configuration()))
        (files / "proxy.json").write_text(json.dumps(self._proxy_configuration()))

    def _kubelet_configuration(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroup_of(self.host.directory)}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "featureGates": {"KubeletInUserNamespace": True},
            "enforceNodeAllocatable": [],
            "imageGCHighThresholdPercent": 100,
            "syncFrequency": "5s",
            "evictionHard": {"nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        }

    def _proxy_configuration(self) -> dict[str, object]:
        kubeconfig = self._cluster.kubeconfig("kube-proxy", token="kube-proxy-token")
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": self._proxy_mode,
            "clusterCIDR": "10.244.0.0/16",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "hostnameOverride": self.name,
            # With other values, kube-proxy sets sysctls of the whole machine.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }

    def _boot(self) -> None:
        self._make_cgroups()
        files = self.host.directory / "node"
        mounts = [
            f"mkdir -p {path}; mount --bind {files}/{name} {path}" for name, path in _DIRECTORIES.items()
        ]
        mounts += [
            f"mount --bind {files}/{path.replace('/', '.')} /proc/sys/{path}" for path in _MACHINE_SYSCTLS
        ]
        plugins = "mkdir -p /opt/cni/bin; cp -n /usr/lib/cni/* /opt/cni/bin/"
        self.host.run(["sh", "-ec", "\n".join([*mounts, plugins, "mount --make-rshared /"])])
        for name in ("containerd", "kube-proxy", "kubelet"):
            self._start(name)

    def _make_cgroups(self) -> None:
        """Create the control groups of the node. A cpuset accepts a process only if it names processors."""
        for root in _CGROUPS.iterdir():
            if not (root / "cgroup.procs").exists() or root.name == "unified" or root.is_symlink():
                continue
            group = root
            for part in Path(cgroup_of(self.host.directory)).parts:
                group /= part
                group.mkdir(exist_ok=True)
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if (group / name).exists() and not (group / name).read_text().strip():
                        (group / name).write_text((group.parent / name).read_text())

    def _start(self, name: str) -> None:
        files = self.host.directory / "node"
        flags = {
            "containerd": [f"--config={files}/containerd.toml"],
            "kube-proxy": [f"--config={files}/proxy.json"],
            "kubelet": [
                f"--config={files}/kubelet.json",
                f"--kubeconfig={self._cluster.kubeconfig(self.name, token=f'{self.name}-token')}",
                f"--hostname-override={self.name}",
                f"--node-ip={self._addresses}",
            ],
        }[name]
        program = name if name == "containerd" else PROGRAMS / name
        self._programs[name] = self.host.start(["nice", "-n", "5", program, *flags], name=name)
        if name == "containerd":
            wait_until(lambda: self._ctr("version", check=False) != "", what="containerd", deadline_s=SOON_S)

    def restart(self, name: str) -> None:
        """Kill containerd, kube-proxy or the kubelet, and start it again. Pods keep running."""
        self._programs[name].send(signal.SIGKILL)
        self._programs[name].wait()
        self._start(name)

    def reboot(self) -> None:
        """End every process of the node, and start it again with its files, without its /run."""
        os.kill(self.host.init_pid, signal.SIGKILL)
        wait_until(
            lambda: not Path(f"/proc/{self.host.init_pid}/ns/net").exists(), what="the end", deadline_s=SOON_S
        )
        for entry in (self.host.directory / "run").iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        with suppress(LabError):  # the cable may be removed a moment later
            self._lab.router.run(["ip", "link", "delete", self.host.place.name])
        self.host.begin()
        self.host.finish()
        plug_in(self._lab.router, self.host, self.host.place)
        self._boot()

    def traces(self) -> list[str]:
        """Return all files and objects of flannel on the node."""
        script = f"""
            for file in {" ".join(_FILES)}; do if [ -e $file ]; then echo $file; fi; done
            ip -oneline link | grep -oE ' (flannel[^:]*|cni0):' || true
            ip route | grep 10.244 || true
            ip -6 route | grep fd00:10:244 || true
            nft list ruleset | grep -i flannel || true
            iptables-save | grep -i flannel || true
            ip6tables-save | grep -i flannel || true
        """
        found = self.host.run(["sh", "-c", script]).stdout
        return [line.strip() for line in found.splitlines()]

    # Pods and containers.

    def _ctr(self, *argv: str, check: bool = True) -> str:
        return self.host.run(["ctr", "--namespace=k8s.io", *argv], check=check).stdout

    def process(self, container: str) -> int:
        """Return the first process of a container, in the sandbox of the host."""
        for line in self._ctr("task", "ls").splitlines():
            name, number, *_ = line.split()
            if name == container:
                return int(number)
        raise LabError(f"container {container} does not run on {self.name}", hint="Read kubelet.log.")

    def kill_container(self, container: str) -> None:
        """Kill the first process of a container."""
        self._ctr("task", "kill", "--signal=KILL", container)


class KubeApi:
    """The cluster by the commands of an operator: kubectl, pods and the DaemonSet of flannel."""

    def __init__(self, lab: Lab, cluster: Cluster, nodes: Sequence[KubeNode]) -> None:
        self.cluster = cluster
        self.nodes = {node.name: node for node in nodes}
        self._lab = lab
        self._admin = cluster.kubeconfig("admin", token="admin-token")

    def kubectl(self, *argv: str | Path, text: str | None = None, check: bool = True) -> str:
        """Run kubectl as an administrator and return its output."""
        program = shutil.which("kubectl") or PROGRAMS / "kubectl"
        command = [program, f"--kubeconfig={self._admin}", *argv]
        return self._lab.router.run(command, text=text, check=check).stdout

    def run(self, command: str) -> str:
        """Run a command of a document: kubectl with arguments quoted as in a shell, and repository paths."""
        program, *words = shlex.split(command)
        assert program == "kubectl"
        return self.kubectl(*(ROOT / word if word.startswith("deploy/") else word for word in words))

    def helm(self, *argv: str | Path) -> str:
        """Run helm as an administrator, in the namespace of flannel."""
        command = ["nice", "-n", "5", HELM, f"--kubeconfig={self._admin}", "--namespace=kube-flannel", *argv]
        return self._lab.router.run(command, timeout_s=SOON_S).stdout

    def get(self, *argv: str) -> dict[str, Any]:
        """Return a document of `kubectl get`."""
        document: dict[str, Any] = json.loads(self.kubectl("get", "--output=json", *argv))
        return document

    def pod(self, name: str, node: str, script: str, **spec: object) -> Pod:
        """Run a shell script in a pod of a node, and return the pod when it runs."""
        container = {
            "name": "c",
            "image": BOX,
            "imagePullPolicy": "Never",
            "command": ["sh", "-c", script],
            **spec,
        }
        document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": node},
                "terminationGracePeriodSeconds": 0,
                "tolerations": [{"operator": "Exists"}],
                "containers": [container],
            },
        }
        # A namespace without its default account accepts no pods.
        account = ("get", "serviceaccount", "default")
        wait_until(lambda: self.kubectl(*account, check=False) != "", what="the account", deadline_s=SOON_S)
        self.kubectl("apply", "--filename=-", text=json.dumps(document))
        return self.until_runs(name)

    def until_runs(self, name: str) -> Pod:
        """Wait until a pod runs and has an address."""
        found: dict[str, Any] = {}

        def runs() -> bool:
            found.update(self.get("pod", name))
            status = found["status"]
            return (
                status.get("phase") == "Running"
                and "podIP" in status
                and all("running" in one["state"] for one in status["containerStatuses"])
            )

        try:
            wait_until(runs, what=f"pod {name} runs", deadline_s=SOON_S)
        except LabError as error:
            error.add_note(self.kubectl("describe", "pod", name))
            raise
        return Pod(self.nodes[found["spec"]["nodeName"]], found)

    def web_pod(self, name: str, node: str) -> Pod:
        """Run a web server in a pod, with a port of its host, and behind a Service of the same name."""
        pod = self.pod(name, node, WEB, ports=[{"containerPort": WEB_PORT, "hostPort": HOST_PORT}])
        self.kubectl("expose", "pod", name, "--port=80", f"--target-port={WEB_PORT}")
        return pod

    def outside(self, argv: Sequence[str]) -> str:
        """Return the output of a command on the router, which is no node of the cluster."""
        return self._lab.router.run(argv, check=False).stdout

    def restarts(self, name: str) -> int:
        """Return the number of restarts of the container of a pod."""
        return sum(one["restartCount"] for one in self.get("pod", name)["status"]["containerStatuses"])

    def kill_flanneld(self, node: str) -> None:
        """Kill flanneld in its pod, and wait until the kubelet has restarted it."""
        before = self._flanneld_container(node)
        self.nodes[node].kill_container(before)
        wait_until(
            lambda: self._flanneld_container(node) not in ("", before),
            what="a new container",
            deadline_s=SOON_S,
        )
        self.until_flannel_is_ready()

    def _flanneld_container(self, node: str) -> str:
        pod = self.flanneld_pod(node)
        (status,) = pod["status"]["containerStatuses"] if pod else ({},)
        return str(status.get("containerID", "")).removeprefix("containerd://")

    def give_flanneld_tun(self) -> None:
        """Create /dev/net/tun in the pods of flanneld, whose manifest does not mount it."""
        script = "mkdir -p /dev/net; mknod /dev/net/tun c 10 200"
        for name, node in self.nodes.items():
            process = node.process(self._flanneld_container(name))
            node.host.run(["nsenter", f"--target={process}", "--mount", "--", "sh", "-ec", script])

    def use_backend(self, backend: str) -> None:
        """Change the backend in the ConfigMap and wait until all Nodes publish it."""
        config = json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": backend}})
        patch = json.dumps({"data": {"net-conf.json": config}})
        names = ("configmap", "kube-flannel-cfg", "--namespace=kube-flannel")
        self.kubectl("patch", *names, f"--patch={patch}")
        kind = {"udp": ""}.get(backend, backend)

        def is_published() -> bool:
            return all(self.cluster.annotations(name).get("backend-type") == kind for name in self.nodes)

        wait_until(is_published, what=f"backend {backend}", deadline_s=SOON_S)
        self.until_flannel_is_ready()

    def conditions(self) -> dict[str, dict[str, str] | None]:
        """Return the condition NetworkUnavailable of each Node."""
        return {name: self.cluster.condition(name) for name in self.nodes}

    def until_rolled_out(self) -> None:
        """Wait until the pods of flanneld have the newest manifest and are ready."""
        daemons = ("daemonset/kube-flannel-ds", "--namespace=kube-flannel", f"--timeout={SOON_S:g}s")
        self.kubectl("rollout", "status", *daemons)

    def renew_flanneld(self, node: str) -> None:
        """Delete the pod of flanneld on a node, and wait until the next pod is ready."""
        before = self.flanneld_pod(node)
        assert before is not None
        self.kubectl("delete", "pod", "--namespace=kube-flannel", before["metadata"]["name"])
        self.until_flannel_is_ready()

    def flanneld_pod(self, node: str) -> dict[str, Any] | None:
        """Return the pod of flanneld on a node, if there is one."""
        pods = self.get("pods", "--namespace=kube-flannel", f"--field-selector=spec.nodeName={node}")
        return next(iter(pods["items"]), None)

    def until_flannel_is_ready(self) -> None:
        """Wait until the pods of flanneld and all nodes are ready."""

        def is_ready() -> bool:
            pods = [self.flanneld_pod(name) for name in self.nodes]
            nodes = self.get("nodes")["items"]
            return (
                None not in pods
                and all(_has_condition(pod, "Ready") for pod in pods if pod)
                and len(nodes) == len(self.nodes)
                and all(_has_condition(node, "Ready") for node in nodes)
            )

        try:
            wait_until(is_ready, what="nodes and flanneld are ready", deadline_s=SOON_S)
        except LabError as error:
            error.add_note(self.kubectl("describe", "pods", "--namespace=kube-flannel"))
            for name in self.nodes:
                if pod := self.flanneld_pod(name):
                    logs = ("logs", "--namespace=kube-flannel", pod["metadata"]["name"], "--tail=30")
                    error.add_note(self.kubectl(*logs, check=False))
            error.add_note(self.kubectl("describe", "nodes"))
            raise


def _has_condition(document: dict[str, Any], name: str) -> bool:
    conditions = document["status"].get("conditions", [])
    return any(one["type"] == name and one["status"] == "True" for one in conditions)


def start_cluster(lab: Lab, cluster: Cluster, pod_range: str, *, has_ipv6: bool = False) -> KubeApi:
    """Start a cluster with two nodes, without flannel, and with its images on the nodes."""
    cluster.start()
    cluster.start_controllers(pod_range)
    images = [lab.directory / "box.tar", lab.directory / "pyflannel.tar"]
    build_plugin(lab.directory / "plugin")
    write_box(images[0])
    write_flannel_image(images[1], IMAGE, lab.directory / "plugin")
    nodes: list[KubeNode] = []
    for host, name, mode in (("docker1", "node1", "nftables"), ("docker2", "node2", "iptables")):
        place = lab.hosts[host]
        addresses = f"{place.address},{ipv6_underlay(place).ip}" if has_ipv6 else str(place.address)
        nodes.append(KubeNode(lab, place, name, cluster, mode, addresses))
    together([partial(node.start, images) for node in nodes])
    return KubeApi(lab, cluster, nodes)


# Traffic.


def source_at(pod: Pod, address: object, port: int = WEB_PORT) -> str:
    """Return the address that the web server at `address` sees when a pod fetches its page."""
    host = f"[{address}]" if ":" in str(address) else address
    url = f"http://{host}:{port}/cgi-bin/source"
    return pod.run_in_network(["curl", "-s", "-m", "5", url], check=False).stdout.strip()


def check_traffic(api: KubeApi, one: Pod, two: Pod) -> None:
    """Check pod to pod, Services, ports of hosts and the outside."""
    wait_reached([one, two], deadline_s=SOON_S)
    for pod, other in ((one, two), (two, one)):
        assert source_at(pod, other.address) == str(pod.address), "the source address is kept"
        service = api.get("service", other.name)["spec"]["clusterIP"]
        seen = lambda pod=pod, service=service: source_at(pod, service, 80) == str(pod.address)  # noqa: E731
        wait_until(seen, what=f"the Service of {other.name}", deadline_s=SOON_S)
        assert source_at(pod, LEFT.gateway.ip) == str(pod.node.host.address), "masquerade to the outside"
        fetch = ["curl", "-s", "-m", "5", f"http://{pod.node.host.address}:{HOST_PORT}/cgi-bin/source"]
        assert api.outside(fetch).strip() == str(LEFT.gateway.ip), "hostPort"


# Images, from programs of this machine.


def write_box(path: Path) -> None:
    """Write the image of pods: busybox. containerd also uses this image for its sandboxes."""
    _Image().write(path, BOX, ["sleep", "1000000000"])


def write_flannel_image(path: Path, name: str, plugin: Path) -> None:
    """Write an image of pyflannel from this clone, with the CNI plugin from the directory `plugin`.

    The interpreter, iptables and nft are copied from this machine, so the image needs no download.
    """
    image = _Image()
    interpreter = f"/usr/bin/python{sysconfig.get_python_version()}"
    _add_filters(image)
    image.add_program(interpreter, Path(interpreter).resolve())
    image.add_link("/usr/bin/python3", Path(interpreter).name)
    for library in ("libbpf.so.1", "libelf.so.1", "libz.so.1"):
        image.add_program(
            f"/usr/lib/x86_64-linux-gnu/{library}", Path(f"/usr/lib/x86_64-linux-gnu/{library}")
        )
    image.add_tree(sysconfig.get_path("stdlib"), Path(sysconfig.get_path("stdlib")))
    packages = "/opt/pyflannel/lib"
    for package, files in _requirements("pyflannel"):
        for file in files:
            image.add_program(f"{packages}/{file}", Path(str(package.locate_file(file))))
    image.add_tree(f"{packages}/pyflannel", ROOT / "src/pyflannel")
    for program in ("flanneld", "flannelctl", "flannel-forwarder"):
        module = {"flannel-forwarder": "forwarder"}.get(program, program)
        text = f"import sys\nfrom pyflannel.programs.{module} import main\nsys.exit(main())\n"
        image.add(f"/opt/pyflannel/bin/{program}", f"#!{interpreter}\n{text}".encode())
    image.add_link("/opt/bin", "pyflannel/bin")
    image.add("/opt/pyflannel/bin/install-conf", INSTALL_CONF)
    image.add_tree("/opt/cni/bin", plugin)
    path_variable = "PATH=/opt/pyflannel/bin:/usr/sbin:/usr/bin:/bin"
    image.write(path, name, ["flanneld"], [path_variable, f"PYTHONPATH={packages}"])


def _add_filters(image: "_Image") -> None:
    for program in ("/usr/sbin/nft", "/usr/sbin/ip", "/usr/sbin/xtables-nft-multi"):
        image.add_program(program, Path(program).resolve())
    for command in (
        "iptables",
        "iptables-save",
        "iptables-restore",
        "ip6tables",
        "ip6tables-save",
        "ip6tables-restore",
    ):
        image.add_link(f"/usr/sbin/{command}", "xtables-nft-multi")
    image.add_tree("/usr/lib/x86_64-linux-gnu/xtables", Path("/usr/lib/x86_64-linux-gnu/xtables"))


INSTALL_CONF = b'#!/bin/sh -e\ncp "$1" "$2.new"\nmv -f "$2.new" "$2"\n'
"""The program by which manifests of flannel write the network configuration of CNI."""


def write_original_images(directory: Path, flannel: str, plugin: str, program: Path) -> list[Path]:
    """Write the two images of the original with these names. The second image contains `program`."""
    image = _Image()
    image.add_program("/opt/bin/flanneld", PROGRAMS / "flannel/flanneld")
    image.add("/opt/bin/install-conf", INSTALL_CONF)
    _add_filters(image)
    image.write(directory / "flannel.tar", flannel, ["/opt/bin/flanneld"], ["PATH=/usr/sbin:/bin"])
    image = _Image()
    image.add("/flannel", program.read_bytes())
    image.write(directory / "plugin.tar", plugin, ["sh"])
    return [directory / "flannel.tar", directory / "plugin.tar"]


def write_policies_image(path: Path, name: str) -> None:
    """Write the image of kube-network-policies with this name. The manifest of kube-network-policies contains
    the whole command.
    """
    image = _Image()
    image.add_program("/bin/netpol", PROGRAMS / "kube-network-policies/netpol")
    image.write(path, name, [])


def _requirements(name: str) -> list[tuple[importlib.metadata.Distribution, list[str]]]:
    """Return the packages that a package needs when it runs, with their files."""
    found: dict[str, tuple[importlib.metadata.Distribution, list[str]]] = {}
    waiting = [name]
    while waiting:
        package = importlib.metadata.distribution(waiting.pop())
        for text in package.requires or ():
            needed = Requirement(text)
            if needed.name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
                other = importlib.metadata.distribution(needed.name)
                files = [str(file) for file in other.files or () if not str(file).startswith("..")]
                found[needed.name] = (other, files)
                waiting.append(needed.name)
    return list(found.values())


class _Image:
    """The single layer of an image, in memory. Every image contains busybox."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
        for directory, mode in (
            ("tmp", 0o1777),
            ("proc", 0o755),
            ("sys", 0o755),
            ("dev", 0o755),
            ("run", 0o755),
        ):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            self._entries[f"/{directory}"] = entry, b""
        for directory in ("lib", "lib64"):
            self.add_link(f"/{directory}", f"usr/{directory}")
        busybox = shutil.which("busybox")
        assert busybox is not None
        self.add("/bin/busybox", Path(busybox).read_bytes())
        self.add("/etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
        applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout
        for applet in applets.split():
            self.add_link(f"/bin/{applet}", "busybox")

    def add(self, name: str, data: bytes) -> None:
        """Add a file with this content. Of two entries with one name, the first is kept."""
        entry = tarfile.TarInfo(name.lstrip("/"))
        entry.size, entry.mode = len(data), 0o755
        self._entries.setdefault(name, (entry, data))

    def add_link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        entry = tarfile.TarInfo(name.lstrip("/"))
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self._entries.setdefault(name, (entry, b""))

    def add_program(self, name: str, file: Path) -> None:
        """Add a file of this machine, and the libraries with which it is linked."""
        data = file.read_bytes()
        self.add(name, data)
        if data[:4] == b"\x7fELF":
            linked = subprocess.run(["ldd", file], capture_output=True, text=True, check=False).stdout
            for library in (word for word in linked.split() if word.startswith("/")):
                place = library if library.startswith("/usr/") else f"/usr{library}"
                self.add(place, Path(library).read_bytes())

    def add_tree(self, name: str, directory: Path) -> None:
        """Add a directory of this machine, without tests and bytecode."""
        for file in sorted(directory.rglob("*")):
            inner = file.relative_to(directory)
            if {"test", "__pycache__", "dist-packages", "idlelib"} & set(inner.parts):
                continue
            if file.is_symlink():
                self.add_link(f"{name}/{inner}", os.readlink(file))
            elif file.is_file():
                self.add_program(f"{name}/{inner}", file)

    def write(self, path: Path, name: str, command: list[str], environment: Sequence[str] = ()) -> None:
        """Write the image as an archive of Docker."""
        layer = _archive(self._entries.values())
        digest = hashlib.sha256(layer).hexdigest()
        variables = [*environment] or ["PATH=/bin"]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": command, "Env": variables},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        files = {"config.json": json.dumps(config).encode(), "layer.tar": layer}
        entries = []
        for file, data in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            entry = tarfile.TarInfo(file)
            entry.size = len(data)
            entries.append((entry, data))
        path.write_bytes(_archive(entries))


def _archive(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Return a tar archive of these entries, each with its content."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for entry, content in entries:
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def build_plugin(directory: Path) -> None:
    """Build the form of the CNI plugin that needs no file of its host."""
    directory.mkdir()
    builder = ROOT / "deploy/cni/standalone.py"
    packages = directory.with_suffix(".cdx.json")
    subprocess.run(["/usr/bin/python3", "-IS", builder, ROOT / "src", directory, packages], check=True)


def is_built() -> bool:
    """True if the programs of Kubernetes are built."""
    programs = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
    return all((PROGRAMS / name).exists() for name in programs)
