"""The packet filter in a status: the rules of flanneld in the kernel, and the rules that drop packets of the
overlay.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from itertools import islice

from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.commands.host_links import (
    bridges_of_containers,
    interfaces_of_host,
    on_link,
    routes_of_network,
)
from pyflannel.commands.reach import peers_of
from pyflannel.errors import ConfigError, FlannelError
from pyflannel.kernel.filters.iptables import IptablesTarget, read_rules
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.ruleset import read_ruleset
from pyflannel.kernel.filters.tunnel_guard import TunnelGuardTarget
from pyflannel.kernel.host.packet_path import docker_table, forwards, is_ethernet, port_mtus, unforwarded
from pyflannel.model.host import Interfaces
from pyflannel.model.item import Item, Marks
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import Family
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.state import State
from pyflannel.model.status import Finding, FirewallStatus, Membership, Status, UnderlayStatus
from pyflannel.model.tunnel_guard import GuardTable
from pyflannel.plan.doctor import docker, filters, links, packets
from pyflannel.plan.doctor.families import families_of, leases_in, network_of, status_in
from pyflannel.plan.doctor.observed import Observed
from pyflannel.wire.network_config_json import parse_network_config

_DEADLINE_S = 1.2
"""Deadline in seconds for reading the rules, the same as for the probes of a status."""

_CHECKS = (*filters.CHECKS, *docker.CHECKS, packets.forwarding, links.bridge_down)
"""The checks of doctor for the reasons why this host itself drops packets."""

_PEERS = 8
"""Maximum number of peers for whose packets the rules are evaluated."""


async def with_firewall(status: Status, places: Places, leases: Sequence[LeaseEntry]) -> Status:
    """Return the status with the rules that drop packets of the overlay. If the daemon does not respond, also
    add the rules of flanneld that exist.

    The rules remain unknown if they cannot be read in time, or without root.
    """
    firewall = status.firewall
    if firewall is None and not status.is_live:
        firewall = _of_config(status)
    if firewall is None:
        return status
    with contextlib.suppress(TimeoutError, FlannelError):
        async with asyncio.timeout(_DEADLINE_S):
            if not status.is_live:
                firewall = replace(firewall, objects=await _own_objects(places))
            firewall = replace(firewall, drops=await _drops(status, leases))
    return replace(status, firewall=firewall)


def _of_config(status: Status) -> FirewallStatus | None:
    """Return the engine that the last known network config selects; None if no config is known."""
    with contextlib.suppress(ConfigError):
        if status.network is not None and status.network.text is not None:
            config = parse_network_config(status.network.text)
            return FirewallStatus(engine="nftables" if config.enable_nftables else "iptables")
    return None


async def _own_objects(places: Places) -> tuple[str, ...]:
    """Return the chains and tables of the daemon that exist.

    Raises:
        TargetError: the chains and tables cannot be read.
    """
    marks = Marks(mark=places.mark, device=places.device(), links=frozenset())
    async with IptablesTarget() as iptables, NftTarget() as nftables, TunnelGuardTarget() as guard:
        found = await asyncio.gather(*(one.snapshot(State.EMPTY) for one in (iptables, nftables, guard)))
    items: Iterator[Item] = (item for snapshot in found for item in snapshot)
    kinds = (IptablesChain, NftTable, GuardTable)
    return tuple(item.title for item in items if isinstance(item, kinds) and item.is_marked(marks))


async def _drops(status: Status, leases: Sequence[LeaseEntry]) -> tuple[str, ...] | None:
    """Return the rules that drop packets of the overlay, in any family of the network; None if the rules are
    unknown.

    Raises:
        TargetError: the interfaces or the rules are unreadable.
    """
    families = families_of(status)
    read, saved, interfaces = await asyncio.gather(
        read_ruleset(families), read_rules(), interfaces_of_host(routes_of_network(status))
    )
    lines: list[str] = []
    is_complete = not read.failures
    for family in families:
        seen = _observed(
            status_in(status, family, leases), family, leases_in(leases, family), interfaces, families
        )
        if seen is None:
            is_complete = False
            continue
        drops = docker.docker_drops(saved, await docker_table(family), family)
        seen = replace(seen, ruleset=read.ruleset, docker_drops=drops)
        lines += [_line(one) for check in _CHECKS for one in check(seen) if one.severity == "error"]
        backend, underlay = seen.status.backend, seen.status.underlay
        is_complete &= underlay is not None or (backend is not None and backend.port is None)
    return tuple(dict.fromkeys(lines)) if lines or is_complete else None


def _observed(
    status: Status,
    family: Family,
    leases: Sequence[LeaseEntry],
    interfaces: Interfaces,
    families: Sequence[Family],
) -> Observed | None:
    """Return the observations of this host in one family, without rules; None if its subnet is unknown.

    Status and leases are those of a network with this family alone.
    """
    if status.underlay is None:
        status = _with_underlay(status, leases, interfaces)
    membership = _membership(status, family, leases)
    if membership.network is None or membership.subnet is None:
        return None
    bridges = bridges_of_containers(interfaces, membership, family, is_alone=len(families) == 1)
    return Observed(
        status=status,
        membership=membership,
        family=family,
        is_first=family == families[0],
        interfaces=interfaces,
        ports={name: port_mtus(name) for name in bridges},
        underlay_ports=tuple(port_mtus(membership.underlay or "")),
        on_link=on_link(interfaces, membership),
        is_ethernet=is_ethernet(membership.underlay or ""),
        forwards=forwards(family),
        unforwarded=unforwarded((one.name for one in interfaces.interfaces), family),
    )


def _with_underlay(status: Status, leases: Sequence[LeaseEntry], interfaces: Interfaces) -> Status:
    """Return the status with the interface that has the address of the last known lease of this host;
    unchanged if there is none.
    """
    subnet = status.lease.subnet if status.lease is not None else None
    address = next((one.public_ip for one in leases if one.subnet == subnet), None)
    link = None if address is None else interfaces.holder(address)
    if address is None or link is None:
        return status
    underlay = UnderlayStatus(link=link.name, address=address, public_ip=address, mtu=link.mtu)
    return replace(status, underlay=underlay)


def _line(finding: Finding) -> str:
    return f"{finding.cause}: {'; '.join(finding.evidence)}" if finding.evidence else finding.cause


def _membership(status: Status, family: Family, leases: Sequence[LeaseEntry]) -> Membership:
    peers = (
        (one.subnet, one.public_ip)
        for one in peers_of(status, leases)
        if one.subnet.version == family == one.public_ip.version
    )
    return Membership(
        network=network_of(status, family),
        subnet=status.lease.subnet if status.lease is not None else None,
        underlay=status.underlay.link if status.underlay is not None else None,
        peers=dict(islice(peers, _PEERS)),
    )
