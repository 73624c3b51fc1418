"""Podman with its CNI backend: containers of two hosts, and a published port."""

import json
import re

from pyflannel.lab.topology import Host

CONTAINERS_CONF = """\
[network]
{network}
[engine]
cgroup_manager="cgroupfs"
events_logger="file"
[containers]
default_ulimits=["nofile=1024:1024","nproc=1024:1024"]
"""


CREATE_NETWORK = """\
. /run/flannel/subnet.env
podman network create --subnet ${FLANNEL_SUBNET%.*}.128/25 --opt mtu=$FLANNEL_MTU flannel
"""
"""The commands of the guide."""


class Podman:
    """Podman on one host of the lab, whose /var/lib is an overlay."""

    def __init__(self, host: Host, network: str) -> None:
        self.host = host
        text = CONTAINERS_CONF.format(network=network)
        host.run(
            ["sh", "-c", "mkdir -p /etc/containers && cat >/etc/containers/containers.conf"],
            text=text,
        )
        self("import", str(host.directory.parent / "busybox.tar"), "busybox")

    def __call__(self, *words: str) -> str:
        return self.host.run(["podman", "--runtime=/usr/sbin/runc", "--storage-driver=vfs", *words]).stdout

    def start(self, name: str, *options: str) -> str:
        """Start a web server; return its address."""
        settings = ["--detach", f"--name={name}", "--security-opt=seccomp=unconfined", *options]
        self("run", *settings, "localhost/busybox", "httpd", "-f", "-v", "-h", "/etc")
        [network] = json.loads(self("inspect", name))[0]["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])


def clients(podman: Podman, name: str) -> list[str]:
    """Return the addresses of the clients that a web server logged."""
    logged = podman.host.run(["podman", "--storage-driver=vfs", "logs", name]).stderr
    return re.findall(r"\[::ffff:([0-9.]+)\]:\d+: response:200", logged)


def test_containers_of_two_hosts_reach_each_other_and_a_port_is_published(hosts: list[Host]) -> None:
    first, second = (Podman(host, 'network_backend="cni"\ndefault_network="cbr0"') for host in hosts)
    own = first.start("web1", "--publish=8080:80")
    address = second.start("web2")
    assert "root:" in first("exec", "web1", "wget", "-q", "-O", "-", f"http://{address}/passwd")
    assert clients(second, "web2") == [own]
    assert "root:" in second.host.run(["curl", "-s", f"http://{hosts[0].address}:8080/passwd"]).stdout
    for podman, name in ((first, "web1"), (second, "web2")):
        podman("rm", "--force", "--time=0", name)
        assert podman.host.run(["find", "/var/lib/cni/flannel", "-type", "f"]).stdout == ""


def test_containers_of_two_hosts_reach_each_other_with_netavark(hosts: list[Host]) -> None:
    first, second = (Podman(host, 'network_backend="netavark"') for host in hosts)
    addresses = []
    for podman in (first, second):
        podman.host.run(
            ["ip", "link", "delete", "cni0"], check=False
        )  # of another test, with the same subnet
        podman.host.run(["sh", "-c", CREATE_NETWORK])
        addresses.append(podman.start("web", "--network=flannel"))
    assert "root:" in first("exec", "web", "wget", "-q", "-O", "-", f"http://{addresses[1]}/passwd")
    assert clients(second, "web") == [str(hosts[0].lease().network_address)]  # netavark masquerades
    for podman in (first, second):
        podman("rm", "--force", "--time=0", "web")
        podman("network", "rm", "flannel")
