"""A real kube-apiserver with its etcd in the sandbox of a lab, and the Nodes that a test creates."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyflannel.errors import LabError
from pyflannel.lab.lab import EtcdServer
from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import Sandbox
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.inside import enter_network

PROGRAMS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyflannel/go"
"""The directory of the programs that `scripts/setup` builds with Go: `--kube` and `--kubelets`."""

PROGRAM = PROGRAMS / "kube-apiserver"
HELM = PROGRAMS / "helm"
CHART = Path(__file__).parents[2] / "deploy/kubernetes"
PORT = 6443
HEALTH = 8081
PREFIX = "flannel.alpha.coreos.com/"
STRATEGIC, MERGE = "application/strategic-merge-patch+json", "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
ACCOUNT = "/api/v1/namespaces/kube-flannel/serviceaccounts/flannel"
_API_SERVER = "kube-apiserver"
_COMPONENTS = ("kube-controller-manager", "kube-scheduler", "kube-proxy")
_NODES = ("node1", "node2")
_CLONE_NEWNET = 0x40000000
_READY_S = 90.0


class Cluster:
    """A control plane without controllers: tests assign podCIDRs.

    Attributes:
        directory: keys, kubeconfigs and the audit log; visible in all sandboxes of the lab.
        service_range: the range of Services. For both families, the value is two ranges with a comma between
            them.
    """

    def __init__(
        self, place: Sandbox, address: IPv4Address, directory: Path, service_range: str = "10.96.0.0/16"
    ) -> None:
        self.directory = directory
        self.service_range = service_range
        self.url = f"https://{address}:{PORT}"
        self._place = place
        self._address = address
        self._programs: dict[str, Program] = {}
        self._starts: dict[str, Callable[[], object]] = {
            "etcd": self._start_etcd,
            _API_SERVER: self.start_api_server,
        }

    def start(self) -> None:
        """Create the keys and start etcd and the API server."""
        self.directory.mkdir(parents=True)
        self._make_keys()
        self._start_etcd()
        self.start_api_server()

    def _start_etcd(self) -> None:
        self._programs["etcd"] = EtcdServer(self._place, str(self._address)).start()

    def start_api_server(self) -> None:
        """Start or restart the API server, and wait until it is ready."""
        d = self.directory
        flags = {
            "etcd-servers": "http://127.0.0.1:2379",
            "secure-port": str(PORT),
            "bind-address": "0.0.0.0",
            "advertise-address": str(self._address),
            "cert-dir": str(d),
            "tls-cert-file": f"{d}/api.crt",
            "tls-private-key-file": f"{d}/api.key",
            "client-ca-file": f"{d}/ca.crt",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": f"{d}/sa.pub",
            "service-account-signing-key-file": f"{d}/sa.key",
            "service-cluster-ip-range": self.service_range,
            "token-auth-file": f"{d}/tokens.csv",
            "authorization-mode": "Node,RBAC",
            "audit-policy-file": f"{d}/audit.yaml",
            "audit-log-path": f"{d}/audit.jsonl",
        }
        self._programs[_API_SERVER] = self._place.start(
            ["nice", "-n", "5", PROGRAM, *(f"--{name}={value}" for name, value in flags.items())],
            name=_API_SERVER,
        )
        wait_until(self._is_ready, what="kube-apiserver is ready", deadline_s=_READY_S)

    def kill_api_server(self) -> None:
        """Kill the API server. After SIGTERM, the API server would need a minute to exit."""
        self._kill(_API_SERVER)

    def restart(self, name: str) -> None:
        """Kill a program of the control plane, and start it again."""
        self._kill(name)
        self._starts[name]()

    def _kill(self, name: str) -> None:
        self._programs[name].send(signal.SIGKILL)
        self._programs[name].wait()

    def start_controllers(self, pod_range: str) -> None:
        """Start the controllers and the scheduler. The controllers assign podCIDRs from this range.

        For both families, the value is two ranges with a comma between them.
        """
        d = self.directory
        lengths = {"node-cidr-mask-size": "24"}
        if "," in pod_range:
            lengths = {"node-cidr-mask-size-ipv4": "24", "node-cidr-mask-size-ipv6": "64"}
        flags = lengths | {
            "allocate-node-cidrs": "true",
            "cluster-cidr": pod_range,
            "service-cluster-ip-range": self.service_range,
            "service-account-private-key-file": f"{d}/sa.key",
            "root-ca-file": f"{d}/ca.crt",
            "use-service-account-credentials": "true",
        }
        for name, own in (("kube-controller-manager", flags), ("kube-scheduler", {})):
            self._starts[name] = partial(self._start_component, name, **own)
            self._starts[name]()

    def _start_component(self, name: str, **flags: str) -> None:
        path = self.kubeconfig(name, token=f"{name}-token")
        flags |= {
            "kubeconfig": str(path),
            "authentication-kubeconfig": str(path),
            "authorization-kubeconfig": str(path),
            "leader-elect": "false",
            "bind-address": "127.0.0.1",
            "cert-dir": str(self.directory),
        }
        words = [f"--{flag}={value}" for flag, value in flags.items()]
        command: list[str | Path] = ["nice", "-n", "5", PROGRAMS / name, *words]
        self._programs[name] = self._place.start(command, name=name)

    def _make_keys(self) -> None:
        d = self.directory
        names = f"subjectAltName=DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:{self._address}\n"
        (d / "ext").write_text(f"{names}extendedKeyUsage=serverAuth\n")
        new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        sign = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 9"
        script = f"""
            openssl req -x509 {new} -subj /CN=lab-ca -days 9 -keyout ca.key -out ca.crt
            openssl req -x509 {new} -subj /CN=other-ca -days 9 -keyout other.key -out other.crt
            openssl req {new} -subj /CN=kube-apiserver -keyout api.key -out api.csr
            openssl x509 -req -in api.csr {sign} -extfile ext -out api.crt
            openssl req {new} -subj /O=system:masters/CN=operator -keyout client.key -out client.csr
            openssl x509 -req -in client.csr {sign} -out client.crt
            openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out sa.key
            openssl pkey -in sa.key -pubout -out sa.pub"""
        subprocess.run(["sh", "-ec", script], cwd=d, check=True, capture_output=True)
        users = ['admin-token,admin,admin,"system:masters"']
        users += [f"{name}-token,system:{name},{name}" for name in _COMPONENTS]
        users += [f'{name}-token,system:node:{name},{name},"system:nodes"' for name in _NODES]
        (d / "tokens.csv").write_text("\n".join(users))
        rules = [
            {
                "level": "Request",
                "verbs": ["patch"],
                "resources": [{"group": "", "resources": ["nodes/status"]}],
            },
            {"level": "Metadata"},
        ]
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}
        (d / "audit.yaml").write_text(json.dumps({**policy, "omitStages": ["RequestReceived"]}))

    def kubeconfig(self, name: str, ca: str = "ca.crt", **user: str) -> Path:
        """Write a kubeconfig with this user and return its path."""
        path = self.directory / f"{name}.conf"
        cluster = {"server": self.url, "certificate-authority": ca}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
        }
        path.write_text(json.dumps(document))
        return path

    # The API.

    def _is_ready(self) -> bool:
        program = self._programs[_API_SERVER]
        if program.exit_code is not None:
            raise LabError("kube-apiserver ended", hint=program.last_words())
        try:
            return self.call("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        kind: str = "application/json",
        token: str = "admin-token",
    ) -> tuple[int, Any]:
        """Return status and document of an answer. `body`: a document, or its text."""
        with self.connection() as connection:
            text = body if isinstance(body, str) or body is None else json.dumps(body)
            connection.request(method, path, text, {"Authorization": f"Bearer {token}", "Content-Type": kind})
            answer = connection.getresponse()
            data = answer.read()
        return answer.status, json.loads(data) if data[:1] == b"{" else data.decode()

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """Open a connection to the API server."""
        context = ssl.create_default_context(cafile=str(self.directory / "ca.crt"))
        connection = http.client.HTTPConnection(str(self._address), PORT, timeout=30)
        raw = _dial(self._place.init_pid, str(self._address))
        with raw, context.wrap_socket(raw, server_hostname=str(self._address)) as channel:
            connection.sock = channel
            yield connection

    def must(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        """Return the document of a successful answer. Raise an error for another answer."""
        status, document = self.call(method, path, body, kind)
        if status >= 400:
            raise LabError(f"{method} {path}: {status} {document}", hint="Correct the request.")
        return document

    def apply(self, manifest: Path) -> None:
        """Apply the documents of a manifest."""
        for path, text in self._documents(manifest):
            self.must("PATCH", f"{path}?fieldManager=tests&force=true", text, APPLY)

    def delete(self, manifest: Path) -> None:
        """Delete the objects of a manifest."""
        for path, _ in self._documents(manifest):
            self.must("DELETE", path)

    def _documents(self, manifest: Path) -> Iterator[tuple[str, str]]:
        """Yield the path of each object in a manifest, and its document."""
        for text in re.split(r"^---$", manifest.read_text(), flags=re.MULTILINE):
            found = dict(re.findall(r"^(kind|apiVersion|  name|  namespace): *(\S+)$", text, re.MULTILINE))
            kind, version = found["kind"], found["apiVersion"]
            group = "/api/v1" if version == "v1" else f"/apis/{version}"
            place = f"/namespaces/{found['  namespace']}" if "  namespace" in found else ""
            plural = re.sub("ys$", "ies", f"{kind.lower()}s")
            yield f"{group}{place}/{plural}/{found['  name']}", text

    def token(self, seconds: int = 3600, pod: dict[str, Any] | None = None) -> str:
        """Return a token of the service account of flannel; with `pod`, the token of this pod."""
        spec: dict[str, Any] = {"expirationSeconds": seconds}
        if pod is not None:
            metadata = pod["metadata"]
            reference = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
            spec["boundObjectRef"] = reference
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.must("POST", f"{ACCOUNT}/token", request)["status"]["token"])

    def add_node(self, name: str, cidr: str | None = None, **notes: str) -> None:
        """Create a Node. Underscores in the names of annotations stand for dashes."""
        self.must("POST", "/api/v1/nodes", _node(name, cidr, **notes))

    def add_peers(self, count: int) -> None:
        """Create Nodes of other hosts with vxlan, with podCIDRs from 10.245.0.0/24 on.

        The status of each Node is as long as the status of a kubelet with fifty images, the maximum that a
        kubelet reports.
        """
        texts = []
        for number in range(count):
            high, low = divmod(number, 256)
            mac = f"02:00:00:01:{high:02x}:{low:02x}"
            node = _node(f"peer{number}", f"10.{245 + high}.{low}.0/24", **peer(f"10.20.{high}.{low}", mac))
            texts.append(json.dumps({"apiVersion": "v1", "kind": "Node", "status": _STATUS, **node}))
        with self.connection() as connection:
            for text in texts:
                headers = {"Authorization": "Bearer admin-token", "Content-Type": "application/json"}
                connection.request("POST", "/api/v1/nodes", text, headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 201

    def assign(self, name: str, cidr: str) -> None:
        """Give a Node its podCIDR, as the controller does."""
        self.must("PATCH", f"/api/v1/nodes/{name}", {"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}, MERGE)

    def annotate(self, name: str, **notes: str | None) -> None:
        """Change annotations of flannel; the value None removes an annotation."""
        patch = {"metadata": {"annotations": _annotations(notes)}}
        self.must("PATCH", f"/api/v1/nodes/{name}", patch, MERGE)

    def delete_node(self, name: str) -> None:
        """Delete a Node."""
        self.must("DELETE", f"/api/v1/nodes/{name}")

    def annotations(self, name: str) -> dict[str, str]:
        """Return the annotations of flannel."""
        found = self.must("GET", f"/api/v1/nodes/{name}")["metadata"].get("annotations", {})
        return {k.removeprefix(PREFIX): v for k, v in found.items() if k.startswith(PREFIX)}

    def condition(self, name: str) -> dict[str, str] | None:
        """Return the condition NetworkUnavailable; None if there is none."""
        conditions = self.must("GET", f"/api/v1/nodes/{name}")["status"].get("conditions", [])
        return next((one for one in conditions if one["type"] == "NetworkUnavailable"), None)

    def events(self, name: str) -> list[tuple[str, str]]:
        """Return type and message of the Events that flanneld created for a Node, in order."""
        found = self.must("GET", "/api/v1/namespaces/default/events")["items"]
        ours = [one for one in found if one["involvedObject"]["name"] == name]
        ours = [one for one in ours if one["source"].get("component") == "flanneld"]
        return [
            (one["type"], one["message"]) for one in sorted(ours, key=lambda one: one["metadata"]["name"])
        ]

    def requests(self, source: IPv4Address) -> list[str]:
        """Return the requests from an address, from the audit log: verb and path without query."""
        found = []
        for line in (self.directory / "audit.jsonl").read_text().splitlines():
            event = json.loads(line)
            is_start = event["verb"] != "watch" or event["stage"] == "ResponseStarted"
            if str(source) in event["sourceIPs"] and is_start:
                found.append(f"{event['verb']} {event['requestURI'].partition('?')[0]}")
        return found


class Member:
    """A host of the cluster and its flanneld."""

    def __init__(self, host: Host, node: str, cluster: Cluster) -> None:
        self.host = host
        self.node = node
        self._cluster = cluster
        self._flanneld: Program | None = None
        self.config = cluster.directory / f"{node}.json"
        self.configure({"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}})

    def configure(self, config: object) -> None:
        """Write net-conf.json: a text unchanged, or an object as JSON."""
        self.config.write_text(config if isinstance(config, str) else json.dumps(config))

    def launch(self, *flags: str, kubeconfig: Path | None = None, **environment: str) -> Program:
        """Start flanneld without waiting."""
        self._flanneld = self.host.launch_flanneld(
            *self._flags(flags, kubeconfig), environment={"NODE_NAME": self.node, **environment}
        )
        return self._flanneld

    def start(self, *flags: str, kubeconfig: Path | None = None) -> Program:
        """Start flanneld and wait until it is ready."""
        self._flanneld = self.host.start_flanneld(
            *self._flags(flags, kubeconfig), environment={"NODE_NAME": self.node}
        )
        return self._flanneld

    def _flags(self, flags: tuple[str, ...], kubeconfig: Path | None) -> list[str]:
        return [
            "--kube-subnet-mgr",
            f"--kubeconfig-file={kubeconfig or self._cluster.directory / 'flannel.conf'}",
            f"--net-config-path={self.config}",
            "--iface=eth0",
            "--ip-masq",
            f"--healthz-port={HEALTH}",
            *flags,
        ]

    def stop(self) -> None:
        """Stop flanneld, if it runs."""
        if self._flanneld is not None and self._flanneld.exit_code is None:
            assert self._flanneld.stop() == 0

    def clean(self) -> None:
        """Remove all files and objects of flannel from the host."""
        self.host.flannelctl("cleanup", "--yes", check=False)
        self._flanneld = None
        self.host.run(["sh", "-c", "rm -rf /var/lib/flannel/*"])

    def log(self) -> str:
        """Return the log of flanneld."""
        return (self.host.directory / "log/flanneld.log").read_text()

    def waits_for(self) -> str:
        """Return the text of /readyz."""
        url = f"http://127.0.0.1:{HEALTH}/readyz"
        return self.host.run(["curl", "-s", url], check=False).stdout.strip()

    def until_waits_for(self, text: str) -> None:
        """Wait until the reason in /readyz contains this text."""
        wait_until(lambda: text in self.waits_for(), what=f"waiting for {text}", deadline_s=30)

    def until_ready(self, deadline_s: float = 30) -> None:
        """Wait until /readyz is a success."""
        try:
            wait_until(lambda: self.waits_for() == "flanneld is ready", what="ready", deadline_s=deadline_s)
        except LabError as error:
            error.add_note(self.waits_for())
            raise

    def has_route(self, subnet: str) -> bool:
        """Return whether the host has a route to this subnet."""
        return any(route["dst"] == subnet for route in self.host.routes())

    def until_route(self, subnet: str, deadline_s: float = 30) -> None:
        """Wait until the host has a route to this subnet."""
        wait_until(lambda: self.has_route(subnet), what=f"route to {subnet}", deadline_s=deadline_s)


def peer(address: str, mac: str) -> dict[str, str]:
    """Return the annotations of another host with vxlan."""
    return {
        "kube_subnet_manager": "true",
        "backend_type": "vxlan",
        "backend_data": f'{{"VNI":1,"VtepMAC":"{mac}"}}',
        "public_ip": address,
    }


_STATUS = {
    "capacity": dict.fromkeys(("cpu", "memory", "pods", "ephemeral-storage"), "64"),
    "conditions": [
        {"type": name, "status": "False", "reason": "KubeletHasEnough", "message": "kubelet has enough" * 3}
        for name in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
    ],
    "images": [
        {
            "names": [
                f"registry.example/team/program{n}@sha256:{'0' * 64}",
                f"registry.example/team/program{n}:1",
            ]
        }
        for n in range(50)
    ],
}


def _node(name: str, cidr: str | None, **notes: str) -> dict[str, Any]:
    spec = {} if cidr is None else {"podCIDR": cidr, "podCIDRs": [cidr]}
    return {"metadata": {"name": name, "annotations": _annotations(notes)}, "spec": spec}


def _annotations(notes: dict[str, Any]) -> dict[str, Any]:
    return {PREFIX + name.replace("_", "-"): text for name, text in notes.items()}


def copy_chart(directory: Path) -> Path:
    """Return a copy of the Helm chart without its minimum version of Kubernetes, because this API server
    reports no version.
    """
    copy = directory / "flannel"
    shutil.copytree(CHART, copy)
    lines = (copy / "Chart.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("kubeVersion:")]
    assert len(kept) == len(lines) - 1
    (copy / "Chart.yaml").write_text("\n".join(kept))
    return copy


def pod_on(node: str, cluster: Cluster) -> dict[str, Any]:
    """Create a pod of flannel on a Node and return it."""
    spec = {
        "nodeName": node,
        "serviceAccountName": "flannel",
        "hostNetwork": True,
        "containers": [{"name": "c", "image": "none"}],
    }
    pod = {"metadata": {"generateName": "flannel-"}, "spec": spec}
    created: dict[str, Any] = cluster.must("POST", "/api/v1/namespaces/kube-flannel/pods", pod)
    return created


def _dial(process: int, address: str) -> socket.socket:
    """Return a connection from the network of a process. Only the calling thread enters this network."""
    found: list[socket.socket | OSError | LabError] = []

    def connect() -> None:
        try:
            enter_network(f"/proc/{process}/ns/net")
            found.append(socket.create_connection((address, PORT), timeout=30))
        except (OSError, LabError) as error:
            found.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
