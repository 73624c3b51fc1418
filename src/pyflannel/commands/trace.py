"""Reads the objects of the kernel that a packet passes on its path, and follows the packet through them."""

import asyncio
import contextlib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.commands.host_links import interfaces_of_host
from pyflannel.commands.membership import leases_of_host, status_of_host, without_leases
from pyflannel.commands.observations import programs_of
from pyflannel.commands.reach import probe_path
from pyflannel.errors import FlannelError, TargetError, WireError
from pyflannel.kernel.filters.packet_trace import trace_echo
from pyflannel.kernel.filters.programs import run_program
from pyflannel.kernel.filters.ruleset import ReadRules, read_ruleset
from pyflannel.kernel.host.packet_path import ask_route, forwards, unforwarded
from pyflannel.kernel.network.echo import send_echoes
from pyflannel.kernel.network.items import fdb_entry_of, link_of
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.fast_path import BpfPeer, BpfProgram
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import Interfaces
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import AnyAddress, AnyNetwork, Family, IpAddress
from pyflannel.model.probe import Echo, PacketTrace, PingReport, PingStep, TraceReport
from pyflannel.model.route import FdbEntry
from pyflannel.model.state import State
from pyflannel.model.status import Status
from pyflannel.plan.doctor.families import families_of, leases_in, network_of, status_in
from pyflannel.plan.doctor.ping import judged
from pyflannel.plan.trace.facts import Facts, RouteQuestion, TraceLink
from pyflannel.plan.trace.way import follow, with_text
from pyflannel.ports import in_thread
from pyflannel.processes.containers import find_containers
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.wire.netlink.bridges import dump_learned, parse_bridge_link, parse_learned
from pyflannel.wire.netlink.links import dump_links, parse_link
from pyflannel.wire.netlink.neighbours import dump_fdb, dump_neighbours, parse_fdb_entry, parse_neighbour
from pyflannel.wire.wireguard import DumpedDevice, parse_dump

_MOST_QUESTIONS = 16
"""Maximum number of queries of routes. A valid path has fewer steps."""

_DEADLINE_S = 2.0
"""Deadline in seconds for each request that may hang: to the forwarder, to wg, for the eBPF programs."""


async def trace_packet(
    places: Places,
    socket: Path | None,
    source: IpAddress | None,
    destination: IpAddress,
    *,
    probes: bool = False,
) -> TraceReport:
    """Follow a packet between two addresses, one of which is on this host.

    Args:
        places: paths of the daemon.
        socket: control socket, if the user specified one.
        source: None for a container of this host, or for the host itself if it has no container.
        destination: the other end.
        probes: send an echo request from the source, and follow it through nf_tables.

    Raises:
        FlannelError: neither address is on this host, or no packet can be sent from the source.
        NotReadyError: flanneld does not respond, and no leases are saved on this host.
        TargetError: the state of the kernel cannot be read.
    """
    if socket is not None:
        places = replace(places, run_dir=socket.parent)
    status, leases, interfaces = await asyncio.gather(
        status_of_host(places), leases_of_host(places), interfaces_of_host()
    )
    if not leases:
        raise without_leases(places)
    families, family = families_of(status), destination.version
    status, leases = status_in(status, family, leases), leases_in(leases, family)
    if not leases:
        raise FlannelError(
            f"no host has a lease with IPv{family}",
            hint="'flannelctl leases' lists the subnets of the hosts.",
        )
    if source is None:
        source = await _container_of(status, interfaces, leases, family)
    facts = Facts(source=source, destination=destination, leases=leases, interfaces=interfaces)
    own = status.lease.subnet if status.lease is not None else None
    facts = replace(facts, network=network_of(status, family), own=own)
    _check_ends(facts)
    # The tables of neighbours are read last, because the probes fill them.
    (probed, silent), facts = await asyncio.gather(
        _probe(facts, status), _read(facts, places, {*families, family})
    )
    facts = replace(facts, probed=probed, silent=silent)
    report = await _followed(await _with_tables(facts))
    return replace(report, probe=await _probed(facts)) if probes else report


async def _probed(facts: Facts) -> PacketTrace:
    """Send a packet from the source, and return its path through nf_tables.

    Raises:
        FlannelError: the source is on another host, or no process of its container is visible.
        TargetError: the nftables table, the socket or the packet cannot be created.
    """
    pid = None
    if facts.interfaces.holder(facts.source) is None:
        pid = next((one.pid for one in facts.containers if facts.source in one.addresses), None)
        if pid is None:
            raise FlannelError(
                f"no packet can be sent from {facts.source}: this host sees no process of the container",
                hint="Name a running container of this host as SOURCE, or run trace on its host.",
            )
    found = await trace_echo(facts.source, facts.destination, pid)
    return replace(found, events=tuple(with_text(one, facts.ruleset) for one in found.events))


def _check_ends(facts: Facts) -> None:
    if facts.is_here(facts.source) or facts.is_here(facts.destination):
        return
    holders = [facts.lease_of(one) for one in (facts.source, facts.destination)]
    hosts = [str(one.host_name or one.public_ip) for one in holders if one is not None]
    raise FlannelError(
        f"neither {facts.source} nor {facts.destination} is an address of this host or of its containers",
        hint=f"Run flannelctl trace on {' or '.join(hosts)}."
        if hosts
        else "'flannelctl leases' lists the hosts.",
    )


async def _container_of(
    status: Status, interfaces: Interfaces, leases: Sequence[LeaseEntry], family: Family
) -> IpAddress:
    """Return the address of a container of this host that the kernel knows, or an address of the host: on its
    bridge, or on the underlay.

    Raises:
        FlannelError: this host has no container and none of these addresses.
    """
    own = status.lease.subnet if status.lease is not None else None
    bridges = [
        (one.name, held.address.ip)
        for one in interfaces.interfaces
        if one.kind == "bridge" and own is not None
        for held in one.addresses
        if held.address.ip in own
    ]
    with contextlib.closing(RequestSocket()) as requests:
        tables = await _Tables.read(requests)
    known = [
        address
        for bridge, gateway in bridges
        for (link, address), mac in tables.neighbours.items()
        if link == bridge and address != gateway and (bridge, mac) in tables.ports
        if own is not None and address in own
    ]
    found = min(known, key=int, default=bridges[0][1] if bridges else None)
    if found is None and status.underlay is not None and status.underlay.address.version == family:
        found = status.underlay.address
    if found is None:  # flanneld does not respond
        published = (lease.public_ip for lease in leases if lease.subnet == own)
        found = next((one for one in published if interfaces.holder(one) is not None), None)
    if found is None:
        raise FlannelError(
            "this host has no container, no bridge of containers and no known address",
            hint="Specify the source: flannelctl trace SOURCE DESTINATION",
        )
    return found


async def _probe(facts: Facts, status: Status) -> tuple[PingReport | None, frozenset[IpAddress]]:
    """Probe the other host, and the containers of this host.

    The probes also fill the neighbour tables of the kernel.
    """
    ends = [facts.source, facts.destination]
    near = [one for one in ends if facts.is_here(one) and facts.interfaces.holder(one) is None]
    far = next((one for one in ends if not facts.is_here(one)), None)
    peer = None if far is None else facts.lease_of(far)
    container = None if peer is None or far in (peer.public_ip, peer.subnet.network_address) else far
    try:
        answers, steps = await asyncio.gather(
            send_echoes([Echo(destination=one) for one in near]),
            probe_path(status, peer, container) if peer is not None else _no_steps(),
        )
    except TargetError:
        return None, frozenset()
    silent = frozenset(one for one, answer in zip(near, answers, strict=True) if answer.state != "reached")
    if peer is None:
        return None, silent
    return judged(peer, steps, is_container=container is not None, status=status, local=()), silent


async def _no_steps() -> list[PingStep]:
    return []


class _Tables(Struct, frozen=True, kw_only=True):
    """The tables of the kernel for links, neighbours and frame forwarding (FDB)."""

    links: dict[str, TraceLink]
    neighbours: dict[tuple[str, IpAddress], str]
    fdb: dict[tuple[str, str], FdbEntry]
    ports: dict[tuple[str, str], str]

    @classmethod
    async def read(cls, requests: RequestSocket) -> "_Tables":
        """Read the tables of this network namespace.

        Raises:
            TargetError: the kernel refused or did not answer.
        """
        records = await requests.dump(dump_links(), parse_link)
        names = {one.index: one.name for one in records}
        items = {one.index: link_of(one, names) for one in records}
        states = await requests.dump(dump_links(), parse_bridge_link)
        links = {
            one.name: TraceLink(
                name=one.name,
                kind=one.kind,
                is_up=one.is_up,
                has_carrier=one.has_carrier,
                resolves=one.resolves,
                is_ethernet=one.is_ethernet,
                is_forwarding=one.is_forwarding or not one.bridge,
                vxlan=items[one.index].vxlan if one.index in items else None,
            )
            for one in states
        }
        near = await requests.dump(dump_neighbours(0), parse_neighbour)
        entries = [
            fdb_entry_of(entry, names)
            for one in states
            if one.kind == "vxlan"
            for entry in await requests.dump(dump_fdb(one.index), parse_fdb_entry)
            if entry.index == one.index
        ]
        learned = [
            entry
            for one in states
            if one.kind == "bridge"
            for entry in await requests.dump(dump_learned(one.index), parse_learned)
        ]
        return cls(
            links=links,
            neighbours={
                (names.get(one.index, ""), one.address): one.mac
                for one in near
                if one.mac and not one.is_unasked
            },
            fdb={(one.link, one.mac): one for one in entries},
            ports={(names.get(bridge, ""), mac): names.get(port, "") for bridge, port, mac in learned},
        )


async def _with_tables(facts: Facts) -> Facts:
    with contextlib.closing(RequestSocket()) as requests:
        tables = await _Tables.read(requests)
    return replace(
        facts, links=tables.links, neighbours=tables.neighbours, fdb=tables.fdb, ports=tables.ports
    )


async def _read(facts: Facts, places: Places, families: Set[Family]) -> Facts:
    rules, programs, forwarder, encryption = await asyncio.gather(
        read_ruleset(sorted(families)), _programs(places), _forwarder(places), _encryption(facts.interfaces)
    )
    return replace(
        facts,
        forwards=forwards(facts.family),
        unforwarded=unforwarded((one.name for one in facts.interfaces.interfaces), facts.family),
        containers=await in_thread(find_containers),
        ruleset=rules.ruleset,
        rules_unread=_unread(rules),
        programs=programs[0],
        program_peers=programs[1],
        forwarder=forwarder[0],
        forwarder_peers=forwarder[1],
        encryption=[one.peer for device in encryption for one in device.peers],
        listen_ports={device.link: device.port for device in encryption},
    )


def _unread(rules: ReadRules) -> str | None:
    return str(rules.failures[0]) if rules.failures else None


async def _programs(places: Places) -> tuple[tuple[BpfProgram, ...], tuple[BpfPeer, ...]]:
    with contextlib.suppress(FlannelError, OSError, TimeoutError):
        async with asyncio.timeout(_DEADLINE_S):
            return await programs_of(places)
    return (), ()


async def _forwarder(places: Places) -> tuple[Forwarder | None, tuple[ForwarderPeer, ...]]:
    with contextlib.suppress(FlannelError, TimeoutError):
        async with asyncio.timeout(_DEADLINE_S), ForwarderTarget(places.run_dir) as target:
            found = await target.snapshot(State.EMPTY)
            return next(iter(found.of_type(Forwarder)), None), tuple(found.of_type(ForwarderPeer))
    return None, ()


async def _encryption(interfaces: Interfaces) -> list[DumpedDevice]:
    """Return the WireGuard devices of the kernel and of wireguard-go."""
    found: list[DumpedDevice] = []
    for link in interfaces.interfaces:
        if link.kind in ("wireguard", "tun"):
            with contextlib.suppress(TargetError, WireError):
                ran = await run_program("wg", "show", link.name, "dump")
                if not ran.status:
                    found.append(parse_dump(link.name, ran.output))
    return found


class AddressReport(Struct, frozen=True, kw_only=True):
    """The document of `flannelctl whois`.

    Attributes:
        kind: `host`: the public address of a host; `tunnel`: the first address of a subnet, which the tunnel
            device has; `container`: another address of a subnet; `unused`: no host has a lease for the
            address.
        host_name: null if it is unknown.
        is_here: True if this host has the lease.
        link: interface of this host that has the address, or the bridge of the container.
        mac: MAC address of the container; null if the kernel of this host does not know it.
        port: port of the bridge to the container; null if the bridge has not learned it.
    """

    address: AnyAddress
    kind: Literal["host", "tunnel", "container", "unused"]
    subnet: AnyNetwork | None = None
    host_name: str | None = None
    public_ip: AnyAddress | None = None
    backend_type: str = ""
    expires_in_s: float | None = None
    is_here: bool = False
    link: str | None = None
    mac: str | None = None
    port: str | None = None


async def who_is(leases: Sequence[LeaseEntry], address: IpAddress) -> AddressReport:
    """Return the host and the container of an address, from the leases and the kernel of this host.

    Raises:
        TargetError: the state of the kernel cannot be read.
    """
    interfaces = await interfaces_of_host()
    leases = leases_in(leases, address.version)
    facts = Facts(source=address, destination=address, leases=leases, interfaces=interfaces)
    lease = facts.lease_of(address)
    holder, bridge = interfaces.holder(address), facts.bridge_of(address)
    link = holder or bridge
    mac = port = None
    if bridge is not None and holder is None:
        with contextlib.closing(RequestSocket()) as requests:
            tables = await _Tables.read(requests)
        mac = tables.neighbours.get((bridge.name, address))
        port = tables.ports.get((bridge.name, mac or ""))
    return AddressReport(
        address=address,
        kind=_kind_of(lease, address),
        subnet=None if lease is None else lease.subnet,
        host_name=None if lease is None else lease.host_name,
        public_ip=None if lease is None else lease.public_ip,
        backend_type="" if lease is None else lease.backend_type or "udp",
        expires_in_s=None if lease is None else lease.expires_in_s,
        is_here=lease is not None and interfaces.holder(lease.public_ip) is not None,
        link=None if link is None else link.name,
        mac=mac,
        port=port,
    )


def _kind_of(
    lease: LeaseEntry | None, address: IpAddress
) -> Literal["host", "tunnel", "container", "unused"]:
    if lease is None:
        return "unused"
    if address == lease.public_ip:
        return "host"
    return "tunnel" if address == lease.subnet.network_address else "container"


async def _followed(facts: Facts) -> TraceReport:
    """Ask the kernel for the routes of the packet, one query after the other.

    The path of the packet depends on these routes.
    """
    for _ in range(_MOST_QUESTIONS):
        match follow(facts):
            case RouteQuestion() as one:
                answer = await ask_route(
                    one.way, one.destination, source=one.source, arrives_at=one.arrives_at
                )
                facts = replace(facts, answers={**facts.answers, one: answer})
            case TraceReport() as report:
                return report
    raise TargetError(
        "the path of the packet has too many steps", hint="Report this defect, with the output of 'ip route'."
    )
