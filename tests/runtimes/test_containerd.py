"""containerd: `ctr run --cni`, and pods by the interface of Kubernetes (CRI)."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until

IMAGE = "localhost/busybox:latest"
CONFIG = f"""\
version = 2
root = "/var/lib/docker/containerd"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"""
SOON_S = 60.0


@pytest.fixture(scope="module")
def containerd(hosts: list[Host]) -> Iterator[list[Host]]:
    """Start containerd on both hosts, with an image that sleeps."""
    running = []
    for host in hosts:
        host.run(["sh", "-c", "mkdir -p /etc/containerd && cat >/etc/containerd/config.toml"], text=CONFIG)
        running.append(host.start(["containerd"]))
        socket = host.directory / "run/containerd/containerd.sock"
        wait_until(socket.exists, what="containerd answers", deadline_s=SOON_S)
        podman = ["podman", "--storage-driver=vfs"]
        archive = str(host.directory.parent / "busybox.tar")
        change = '--change=ENTRYPOINT ["/bin/sleep", "infinity"]'
        host.run([*podman, "import", change, archive, IMAGE])
        host.run([*podman, "save", "--format=docker-archive", "--output=/run/image.tar", IMAGE])
        host.run(["ctr", "--namespace=k8s.io", "image", "import", "/run/image.tar"])
    yield hosts
    for program in running:
        program.stop()


def test_containers_of_two_hosts_reach_each_other_with_ctr(containerd: list[Host]) -> None:
    first, second = containerd
    run = ["ctr", "--namespace=k8s.io", "run", "--cni", "--snapshotter=native", "--cgroup="]
    second.start([*run, IMAGE, "other"], name="ctr")
    shown = ["ctr", "--namespace=k8s.io", "task", "exec", "--exec-id=look", "other", "ip", "-o", "-4", "addr"]
    wait_until(lambda: "eth0" in second.run(shown, check=False).stdout, what="a container", deadline_s=SOON_S)
    address = next(line.split()[3] for line in second.run(shown).stdout.splitlines() if "eth0" in line)
    ping = [IMAGE, "one", "ping", "-c1", "-W5", address.partition("/")[0]]
    assert "1 packets received" in first.run([*run, "--rm", *ping]).stdout
    second.run(["ctr", "--namespace=k8s.io", "task", "kill", "--signal=KILL", "other"])
    assert first.run(["find", "/var/lib/cni/flannel", "-type", "f"]).stdout == ""


def test_pods_of_two_hosts_reach_each_other_by_cri(containerd: list[Host], go_programs: Path) -> None:
    def crictl(host: Host, *words: str, text: str | None = None) -> str:
        socket = "unix:///run/containerd/containerd.sock"
        return host.run([str(go_programs / "crictl"), "-r", socket, *words], text=text).stdout

    addresses = []
    for host in containerd:
        conditions = json.loads(crictl(host, "info"))["status"]["conditions"]
        assert [each["status"] for each in conditions if each["type"] == "NetworkReady"] == [True]
        pod = {"metadata": {"name": "web", "namespace": "default", "uid": host.name}, "linux": {}}
        host.run(["sh", "-c", "cat >/run/pod.json"], text=json.dumps(pod))
        number = crictl(host, "runp", "/run/pod.json").strip()
        status = json.loads(crictl(host, "inspectp", number))["status"]
        addresses.append((number, status["network"]["ip"]))
    for host, (number, _), (_, other) in zip(containerd, addresses, reversed(addresses), strict=True):
        pid = json.loads(crictl(host, "inspectp", number))["info"]["pid"]
        host.run(["nsenter", f"--target={pid}", "--net", "ping", "-c1", "-W5", other])
    for host, (number, _) in zip(containerd, addresses, strict=True):
        crictl(host, "stopp", number)
        crictl(host, "rmp", number)
        assert host.run(["find", "/var/lib/cni/flannel", "-type", "f"]).stdout == ""
