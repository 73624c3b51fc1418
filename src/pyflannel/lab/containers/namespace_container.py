"""A container that is a network namespace of its host and nothing more."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from subprocess import CompletedProcess

from pyflannel.lab.sandboxes.program import Program
from pyflannel.lab.sandboxes.sandbox import RUN_TIMEOUT_S, Sandbox

BRIDGE = "br0"


def lay_bridge(host: Sandbox, address: IPv4Interface) -> None:
    """Give the host the bridge that its containers hang on; `address` is their gateway."""
    host.run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    host.run(["ip", "address", "add", str(address), "dev", BRIDGE])
    host.run(["ip", "link", "set", BRIDGE, "up"])


class NamespaceContainer:
    """Eth0 in a network of its own, on the host's bridge; the files are the host's."""

    def __init__(
        self, host: Sandbox, name: str, *, address: IPv4Interface, gateway: IPv4Address, mtu: int
    ) -> None:
        self.name = name
        self.address = address.ip
        self._host = host
        host.run(["ip", "netns", "add", name])
        cable = f"link add c-{name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}\n"
        host.run(["ip", "-batch", "-"], text=f"{cable}link set c-{name} master {BRIDGE} up\n")
        inside = [f"address add {address} dev eth0", "link set eth0 up", "link set lo up"]
        inside.append(f"route add default via {gateway}")
        host.run(["ip", "-netns", name, "-batch", "-"], text="\n".join(inside) + "\n")

    def run(self, argv: Sequence[str], *, check: bool = True) -> CompletedProcess[str]:
        """Run a command in the container."""
        return self.run_in_network(argv, check=check)

    def run_in_network(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> CompletedProcess[str]:
        """Run one of the machine's commands in the network of the container."""
        return self._host.run([*self._into, *argv], check=check, timeout_s=timeout_s)

    def start_in_network(self, argv: Sequence[str | Path], *, name: str = "") -> Program:
        """Start one of the machine's programs in the network of the container."""
        return self._host.start([*self._into, *argv], name=name or f"{self.name}-{Path(argv[0]).name}")

    def remove(self) -> None:
        """Take the network away; programs in it lose it."""
        self._host.run(["ip", "link", "delete", f"c-{self.name}"])
        self._host.run(["ip", "netns", "delete", self.name])

    @property
    def _into(self) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}", "--"]
