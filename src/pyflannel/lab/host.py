"""A host of the lab: a sandbox in the topology that runs flanneld, Docker and containers."""

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from pyflannel.lab.containers import DockerEngine, NamespaceContainer, lay_bridge
from pyflannel.lab.program import Program, read_environment_file
from pyflannel.lab.sandbox import READY_DEADLINE_S, Sandbox
from pyflannel.lab.topology import HostPlace


class Host(Sandbox):
    """A host. The default paths of flanneld are usable, because the host has its own /run, /etc and /var/lib.

    Attributes:
        place: its place in the topology.
        engine: its Docker engine, not started.
    """

    def __init__(self, place: HostPlace, directory: Path) -> None:
        super().__init__(place.name, directory)
        self.place = place
        self.engine = DockerEngine(self)

    def begin(self) -> None:
        """Start the first process, as in every sandbox."""
        self.engine.write_settings()
        super().begin()

    @property
    def address(self) -> IPv4Address:
        """Its address on the underlay."""
        return self.place.address.ip

    def start_flanneld(
        self,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        deadline_s: float = READY_DEADLINE_S,
    ) -> Program:
        """Start flanneld and return when it is ready.

        Raises:
            LabError: it ended, or was not ready in time; the message contains the end of its log.
        """
        return self.start_service(["flanneld", *flags], environment=environment, deadline_s=deadline_s)

    def launch_flanneld(self, *flags: str, environment: Mapping[str, str] | None = None) -> Program:
        """Start flanneld without waiting."""
        return self.start(["flanneld", *flags], environment=environment)

    def flannelctl(self, *argv: str, check: bool = True) -> str:
        """Run flannelctl on the host and return its output."""
        return self.run(["flannelctl", *argv], check=check).stdout

    def subnet_env(self) -> dict[str, str]:
        """Return the variables of /run/flannel/subnet.env."""
        return read_environment_file((self.directory / "run/flannel/subnet.env").read_text())

    def gateway(self) -> IPv4Interface:
        """Return the address for the bridge of the containers, from subnet.env."""
        return IPv4Interface(self.subnet_env()["FLANNEL_SUBNET"])

    def lease(self) -> IPv4Network:
        """Return the subnet of the host, from subnet.env."""
        return self.gateway().network

    def links(self) -> list[dict[str, Any]]:
        """Return the devices of the host, from `ip -json -details link`."""
        shown: list[dict[str, Any]] = json.loads(self.run(["ip", "-json", "-details", "link"]).stdout)
        return shown

    def routes(self, *selector: str) -> list[dict[str, Any]]:
        """Return the routes of the host, from `ip -json route show`."""
        shown: list[dict[str, Any]] = json.loads(self.run(["ip", "-json", "route", "show", *selector]).stdout)
        return shown

    def commands(self) -> list[list[str]]:
        """Return the command line of every program on the host, including its containers."""
        script = 'for process in /proc/[0-9]*; do tr "\\0" "\\t" <$process/cmdline; echo; done'
        lines = self.run(["bash", "-c", script], check=False).stdout.splitlines()
        return [line.rstrip("\t").split("\t") for line in lines if line]

    def container(
        self, name: str, *, gateway: IPv4Interface, number: int = 2, mtu: int
    ) -> NamespaceContainer:
        """Add a container as a network namespace, with address `number` of the gateway's subnet."""
        if not any(link["ifname"] == "br0" for link in self.links()):
            lay_bridge(self, gateway)
        address = IPv4Interface((gateway.network[number], gateway.network.prefixlen))
        return NamespaceContainer(self, name, address=address, gateway=gateway.ip, mtu=mtu)
