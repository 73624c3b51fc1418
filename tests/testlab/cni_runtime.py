"""A container runtime like CNI's library, which runs the plugins of a network configuration in a chain."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyflannel.lab.topology import Host

DELEGATES = "/usr/lib/cni"


FURTHER = (
    {"type": "tuning", "sysctl": {"net.core.somaxconn": "517"}, "mtu": 1400},
    {"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000},
    {"type": "firewall", "backend": "iptables"},
)
"""Plugins of the CNI project that follow the plugin in a chain."""


class CniError(Exception):
    """The error object that a plugin printed."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document["msg"])
        self.document = document


@dataclass
class Container:
    """A network namespace of a host, and the result of its last ADD."""

    host: Host
    name: str
    result: dict[str, Any] | None = None

    @property
    def address(self) -> str:
        """The IPv4 address that the plugin assigned."""
        assert self.result is not None
        return str(self.result["ips"][0]["address"]).partition("/")[0]

    def reaches(self, address: str) -> bool:
        """Return whether a ping from the container is answered."""
        ping = ["ip", "netns", "exec", self.name, "ping", "-c1", "-W2", address]
        return self.host.run(ping, check=False).returncode == 0


class Runtime:
    """The runtime of one host, with the plugins of `flannelctl cni install` and Debian's delegates.

    Attributes:
        further: plugins that follow these plugins in the chain.
    """

    def __init__(self, host: Host, further: Sequence[Mapping[str, object]] = ()) -> None:
        self.host = host
        self.further = further
        self.host.run(["flannelctl", "cni", "install"])

    @property
    def plugins(self) -> list[dict[str, Any]]:
        """The plugins of the installed network configuration, each as its plugin receives it."""
        document = json.loads(self.host.run(["cat", "/etc/cni/net.d/10-flannel.conflist"]).stdout)
        common = {"name": document["name"], "cniVersion": document["cniVersion"]}
        return [{**common, **plugin} for plugin in (*document["plugins"], *self.further)]

    def container(self, name: str) -> Container:
        """Create a network namespace."""
        self.host.run(["ip", "netns", "add", name])
        return Container(self.host, name)

    def add(self, container: Container) -> None:
        """Attach a container."""
        result: dict[str, Any] | None = None
        for plugin in self.plugins:
            conf = {**plugin, **({"prevResult": result} if result else {})}
            result = json.loads(self.call("ADD", conf, container.name))
        container.result = result

    def check(self, container: Container) -> None:
        """Check an attachment."""
        for plugin in self.plugins:
            self.call("CHECK", {**plugin, "prevResult": container.result}, container.name)

    def delete(self, container: Container) -> None:
        """Detach a container."""
        previous = {"prevResult": container.result} if container.result else {}
        for plugin in reversed(self.plugins):
            self.call("DEL", {**plugin, **previous}, container.name)

    def end(self, container: Container) -> None:
        """Detach a container and delete its namespace."""
        self.delete(container)
        self.host.run(["ip", "netns", "delete", container.name])

    def call(self, command: str, conf: dict[str, Any], container: str = "", **more: str) -> str:
        """Run one plugin, and return its output.

        Raises:
            CniError: the plugin printed an error.
        """
        argv = self.command(command, str(conf["type"]), container, **more)
        done = self.host.run(argv, text=json.dumps(conf), check=False)
        if done.returncode:
            raise CniError(json.loads(done.stdout))
        return done.stdout

    def command(self, command: str, plugin: str, container: str = "", **more: str) -> list[str]:
        """Return the command line that runs a plugin with the variables of the specification."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}" if container else "",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"/opt/cni/bin:{DELEGATES}",
            **more,
        }
        given = [f"{name}={value}" for name, value in environment.items() if value]
        find = f"for dir in /opt/cni/bin {DELEGATES}; do [ ! -x $dir/$0 ] || exec $dir/$0; done; exit 9"
        return ["env", *given, "sh", "-c", find, plugin]

    def remains(self) -> list[str]:
        """Return the remains of attachments on the host: interfaces of the bridge, addresses, saved files."""
        ports = json.loads(self.host.run(["bridge", "-j", "link"]).stdout or "[]")
        find = ["find", "/var/lib/cni", "(", "-type", "f", "-o", "-type", "l", ")", "-name", "[0-9c]*"]
        files = self.host.run(find, check=False).stdout.split()
        return [port["ifname"] for port in ports] + files


CHAIN_EFFECTS = ("517", 1400, "8Mbit", True)
"""Effects of FURTHER on a container."""


def chain_effects(host: Host, namespace: str, address: str) -> tuple[str, int, str, bool]:
    """Return a sysctl and the MTU of a container, the rate to it, and whether the firewall accepts it."""
    inside = ["ip", "netns", "exec", namespace]
    somaxconn = host.run([*inside, "cat", "/proc/sys/net/core/somaxconn"]).stdout.strip()
    (link,) = json.loads(host.run(["ip", "-n", namespace, "-j", "link", "show", "eth0"]).stdout)
    outer = next(one["ifname"] for one in host.links() if one["ifindex"] == link["link_index"])
    words = host.run(["tc", "qdisc", "show", "dev", outer]).stdout.split()
    rate = words[words.index("rate") + 1] if "rate" in words else ""
    accepts = any(address in rule for rule in host.run(["iptables", "-S", "CNI-FORWARD"]).stdout.splitlines())
    return somaxconn, link["mtu"], rate, accepts
