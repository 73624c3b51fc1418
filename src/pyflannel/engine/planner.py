"""The planner: holds what is known of the network and this host, and makes the plan from it."""

import logging
from ipaddress import IPv4Network

from pyflannel.model.host import Host, Underlay
from pyflannel.model.host_file import HostFile
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import Held
from pyflannel.model.lease_set import Conflict, LeaseSet, settle
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.state import State
from pyflannel.plan.backends import Backend
from pyflannel.plan.packet_filter import FilterOptions, plan_filter
from pyflannel.wire.subnet_env import format_subnet_env

log = logging.getLogger(__name__)

NAMED_IN_LOG = 20
"""So many peers that come or go at once are named one by one."""


class Planner:
    """What the plan is made of. Any of it may change at any time; the plan depends on what is there alone."""

    def __init__(self, *, subnet_file: str, packet_filter: FilterOptions, device: str, mark: str) -> None:
        self._subnet_file = subnet_file
        self._packet_filter = packet_filter
        self._device = device
        self._mark = mark
        self.config: NetworkConfig | None = None
        self.backend: Backend | None = None
        self.underlay: Underlay | None = None
        self.held: Held | None = None
        self.leases = LeaseSet()
        self.lingering: tuple[Lease, ...] = ()
        self.peers: tuple[Lease, ...] = ()
        self.conflicts: tuple[Conflict, ...] = ()

    def settle(self) -> None:
        """Work out who our peers are, and say what changed."""
        if self.held is None or self.config is None:
            return
        before = {peer.subnet for peer in self.peers}
        peers, conflicts = settle(self.leases, self.held.lease, self.config.network)
        lingering, _ = settle(self.lingering, self.held.lease, self.config.network)
        self.peers = (*peers, *lingering)
        after = {peer.subnet for peer in self.peers}
        _tell("added", sorted(after - before))
        _tell("removed", sorted(before - after))
        for conflict in conflicts:
            if conflict not in self.conflicts:
                log.warning("Conflict: %s", conflict.text)
        self.conflicts = conflicts

    @property
    def host(self) -> Host | None:
        """This host, once it has a lease and an underlay."""
        if self.held is None or self.underlay is None:
            return None
        return Host(lease=self.held.lease, underlay=self.underlay, device=self._device, mark=self._mark)

    def desired(self) -> State | None:
        """Return the plan, or None while something that it is made of is missing."""
        host = self.host
        if host is None or self.config is None or self.backend is None:
            return None
        text = format_subnet_env(
            config=self.config,
            subnet=host.lease.subnet,
            mtu=self.backend.mtu(host),
            ip_masq=self._packet_filter.masquerades,
        )
        by_key = dict(self.backend.plan_host(host).by_key)
        for peer in self.peers:
            by_key.update(self.backend.plan_peer(peer, host).by_key)
        by_key.update(plan_filter(self.config, host, self._packet_filter).by_key)
        file = HostFile(path=self._subnet_file, text=text)
        return State({**by_key, file.key: file})


def _tell(what: str, subnets: list[IPv4Network]) -> None:
    if len(subnets) > NAMED_IN_LOG:
        log.info("Subnets %s: %d", what, len(subnets))
        return
    for subnet in subnets:
        log.info("Subnet %s: %s", what, subnet)
