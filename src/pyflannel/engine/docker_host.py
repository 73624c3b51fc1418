"""The host, as the network plugin for Docker needs it."""

import asyncio
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Protocol

from pyflannel.engine.supervisor import Supervisor
from pyflannel.errors import DockerPluginError, NotReadyError
from pyflannel.model.docker import DockerParts
from pyflannel.model.link import Address, Link
from pyflannel.model.packet_filter import NftTable

_KINDS = (Link, Address, NftTable)
"""Objects of the plan that the networks of Docker consist of."""


@dataclass(frozen=True, slots=True)
class HostSubnet:
    """The facts of this host that a network of Docker depends on.

    Attributes:
        subnet: the subnet of the host.
        network: the network of all hosts.
        mtu: bytes of the largest packet of a container.
    """

    subnet: IPv4Network
    network: IPv4Network
    mtu: int


class DockerHost(Protocol):
    """The host, as the plugin needs it.

    Attributes:
        progress: set whenever the reconciler has changed the host.
    """

    progress: asyncio.Event

    def subnet(self) -> HostSubnet:
        """Return the facts of the host.

        Raises:
            DockerPluginError: the network has no IPv4.
            NotReadyError: the host has no lease yet.
        """

    def plan(self, parts: DockerParts) -> None:
        """Make these networks and ports a part of the plan."""

    def objection(self) -> str | None:
        """Return why a part of the plan is not in place; "" while it is in progress, None if all is."""


class SupervisedHost:
    """The DockerHost of a supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.progress = supervisor.progress

    def subnet(self) -> HostSubnet:
        """Return the facts of the host: see `DockerHost`."""
        inputs = self._supervisor.condition.inputs
        config, backend = inputs.config, inputs.backend
        if config is not None and config.network is None:
            raise DockerPluginError(
                "the flannel network has no IPv4 addresses", hint="Write a network config with Network."
            )
        host = self._supervisor.planner.host(inputs)
        if host is None or config is None or config.network is None or backend is None:
            raise NotReadyError(
                f"flanneld is not ready: it waits for {self._supervisor.waiting_for}",
                hint="Run flannelctl status.",
            )
        return HostSubnet(host.lease.subnet, config.network, backend.mtu(host))

    def plan(self, parts: DockerParts) -> None:
        """Make these networks and ports a part of the plan."""
        self._supervisor.plan_docker(parts)

    def objection(self) -> str | None:
        """Return why a part of the plan is not in place: see `DockerHost`."""
        reconciler = self._supervisor.reconciler
        if all(reconciler.is_in_place(kind) for kind in _KINDS):
            return None
        refused = (one for one in reconciler.refused() if isinstance(one.operation.subject, _KINDS))
        return next((one.cause for one in refused), "")
