"""The packet filter in a status: the rules of flanneld in the kernel, and the rules that drop packets of the
overlay.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import islice

from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.commands.reach import peers_of
from pyflannel.errors import ConfigError, FlannelError
from pyflannel.kernel.filters.iptables import IptablesTarget, read_rules
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.ruleset import read_ruleset
from pyflannel.kernel.filters.tunnel_guard import TunnelGuardTarget
from pyflannel.kernel.host.machine import docker_table, forwards, port_mtus, unforwarded
from pyflannel.kernel.network.interfaces import KernelInterfaces
from pyflannel.model.host import Interfaces
from pyflannel.model.item import Item, Marks
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.state import State
from pyflannel.model.status import Finding, FirewallStatus, Membership, Status, UnderlayStatus
from pyflannel.model.tunnel_guard import GuardTable
from pyflannel.plan.doctor import docker, filters, packets
from pyflannel.plan.doctor.observed import Observed
from pyflannel.wire.network_config_json import parse_network_config

_DEADLINE_S = 1.2
"""Deadline in seconds for reading the rules, the same as for the probes of a status."""

_CHECKS = (*filters.CHECKS, *docker.CHECKS, packets.forwarding, packets.bridge_down)
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
    """Return the rules that drop packets of the overlay; None if the rules are unknown.

    Raises:
        TargetError: the interfaces or the rules are unreadable.
    """
    membership = _membership(status, leases)
    subnet = membership.subnet
    if membership.network is None or not isinstance(subnet, IPv4Network):
        return None  # the rules are evaluated only for IPv4 packets
    read, saved, table, interfaces = await asyncio.gather(
        read_ruleset(), read_rules(), docker_table(4), _interfaces()
    )
    if status.underlay is None:
        status = _with_underlay(status, leases, interfaces)
        membership = _membership(status, leases)
    seen = Observed(
        status=status,
        membership=membership,
        ruleset=read.ruleset,
        interfaces=interfaces,
        ports=_ports(interfaces, subnet),
        underlay_ports=tuple(port_mtus(membership.underlay or "")),
        docker_drops=docker.docker_drops(saved, table),
        forwards=forwards(4),
        unforwarded=unforwarded((one.name for one in interfaces.interfaces), 4),
    )
    found = [one for check in _CHECKS for one in check(seen) if one.severity == "error"]
    is_without_tunnel = status.backend is not None and status.backend.port is None
    if not found and (read.failures or (status.underlay is None and not is_without_tunnel)):
        return None
    return tuple(map(_line, found))


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


def _membership(status: Status, leases: Sequence[LeaseEntry]) -> Membership:
    subnet = status.lease.subnet if status.lease is not None else None
    peers = (
        (one.subnet, one.public_ip)
        for one in peers_of(status, leases)
        if isinstance(one.subnet, IPv4Network) and isinstance(one.public_ip, IPv4Address)
    )
    return Membership(
        network=status.network.network if status.network is not None else None,
        subnet=subnet if isinstance(subnet, IPv4Network) else None,
        underlay=status.underlay.link if status.underlay is not None else None,
        peers=dict(islice(peers, _PEERS)),
    )


async def _interfaces() -> Interfaces:
    async with KernelInterfaces() as observer:
        return await observer.observe()


def _ports(interfaces: Interfaces, subnet: IPv4Network) -> Mapping[str, Mapping[str, int]]:
    """Return the ports of the bridges with an address of this host's subnet, by the name of the bridge."""
    return {
        one.name: port_mtus(one.name)
        for one in interfaces.interfaces
        if one.kind == "bridge" and any(held.address.ip in subnet for held in one.addresses)
    }
