"""A host examined: everything that doctor judges by, observed."""

import asyncio

from pyflannel.assembly.footing import footing_of, known_networks, status_of_host
from pyflannel.assembly.places import Places
from pyflannel.errors import FlannelError
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.iptables import IptablesTarget
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.saved_rules import read_rules
from pyflannel.kernel.host.host_settings import (
    forward_chains,
    forwards,
    is_strict,
    legacy_forward_chains,
    port_mtus,
)
from pyflannel.kernel.network.interfaces import KernelInterfaces
from pyflannel.kernel.network.survey import survey
from pyflannel.model.bpf_program import BpfProgram
from pyflannel.model.finding import Finding
from pyflannel.model.footing import Footing
from pyflannel.model.interface import Interfaces
from pyflannel.model.state import Item, State
from pyflannel.plan.doctor import Observed, findings
from pyflannel.plan.left_rules import rules_left
from pyflannel.processes.holders import find_original


async def examine(places: Places) -> tuple[Finding, ...]:
    """Return what is wrong with this host, the errors first.

    Raises:
        TargetError: links and routes cannot be read.
    """
    status = await status_of_host(places)
    footing = await footing_of(places, status)
    items, rules, saved, interfaces, programs = await asyncio.gather(
        survey(), _filter_rules(), read_rules(), _interfaces(), _programs(places)
    )
    unread: list[Finding] = []
    dropping = await legacy_forward_chains()
    try:
        dropping += await forward_chains()
    except FlannelError as error:
        unread.append(
            Finding(code="rules-unread", severity="info", cause=f"filter rules: {error}", fix=error.hint)
        )
    seen = Observed(
        status=status,
        footing=footing,
        claimed=places.device(),
        original=find_original(),
        items=(*items, *rules),
        left_rules=rules_left(saved, known_networks(places, footing)),
        forwards=forwards(),
        strict=frozenset(one.name for one in interfaces.interfaces if is_strict(one.name)),
        dropping=tuple(dropping),
        programs=programs,
        ports={name: port_mtus(name) for name in _own_bridges(interfaces, footing)},
    )
    return (*findings(seen), *unread)


async def _interfaces() -> Interfaces:
    observer = KernelInterfaces()
    try:
        return await observer.observe()
    finally:
        observer.close()


async def _programs(places: Places) -> tuple[BpfProgram, ...]:
    """Return the programs of the daemon's tunnel; nothing where they cannot be read."""
    fast_path, device = BpfTarget(FastPath(str(places.bpf))), places.device()
    try:
        found = await fast_path.snapshot(State.EMPTY)
    finally:
        fast_path.close()
    return tuple(one for one in found if isinstance(one, BpfProgram) and one.tunnel.device == device)


async def _filter_rules() -> list[Item]:
    """Return the chains and tables with names of flannel's; nothing where they cannot be read."""
    iptables, nftables = IptablesTarget(), NftTarget()
    try:
        found = await asyncio.gather(iptables.snapshot(State.EMPTY), nftables.snapshot(State.EMPTY))
        return [item for snapshot in found for item in snapshot]
    finally:
        iptables.close()
        nftables.close()


def _own_bridges(interfaces: Interfaces, footing: Footing) -> list[str]:
    """Return the bridges that have an address of our subnet: containers are behind them."""
    if footing.subnet is None:
        return []
    return [
        one.name
        for one in interfaces.interfaces
        if one.kind == "bridge" and any(held.address.ip in footing.subnet for held in one.addresses)
    ]
