"""doctor: collects the observations of the host for the checks."""

import asyncio
import contextlib
import json
import shlex
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from itertools import islice
from pathlib import Path

from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.assembly.stores import EtcdAddress, parse_store_url
from pyflannel.commands.local_daemon import offline_status
from pyflannel.commands.network_client import ControlClient
from pyflannel.commands.reach import (
    bench_path,
    ends_of,
    neighbours_of_host,
    peers_of,
    probe_path,
    probe_peers,
    target_of,
)
from pyflannel.errors import FlannelError, NotReadyError, TargetError, UsageError, WireError
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.iptables import IptablesTarget, read_rules
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.programs import run_program
from pyflannel.kernel.filters.ruleset import read_ruleset
from pyflannel.kernel.host.files import read_end
from pyflannel.kernel.host.machine import (
    ask_route,
    docker_table,
    forwards,
    is_strict,
    lacks_arp,
    policy_rules,
    port_mtus,
    unforwarded,
)
from pyflannel.kernel.network.echo import clock_offsets
from pyflannel.kernel.network.interfaces import KernelInterfaces
from pyflannel.kernel.network.snapshot import survey
from pyflannel.model.fast_path import BpfPeer, BpfProgram
from pyflannel.model.host import Interfaces
from pyflannel.model.item import Item
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.probe import BenchReport, PeerReach, PingReport
from pyflannel.model.state import State
from pyflannel.model.status import Finding, Membership, Status, StoreTimes
from pyflannel.plan.doctor.daemon import store_findings
from pyflannel.plan.doctor.filters import docker_drops
from pyflannel.plan.doctor.findings import SAFE, findings
from pyflannel.plan.doctor.observed import (
    BadNeighbour,
    Certificate,
    ContainerNamespace,
    Observed,
    RouteAnswer,
)
from pyflannel.plan.doctor.peers import clock_findings, judged, with_peers
from pyflannel.plan.leftovers import rules_left
from pyflannel.plan.underlay import UnderlayOptions, choose
from pyflannel.ports import in_thread
from pyflannel.processes.found import find_containers, find_original
from pyflannel.processes.systemd import has_unit
from pyflannel.wire.certificate import validities_of, validity_of
from pyflannel.wire.lease_record import Kept, kept_lease, parse_last_known
from pyflannel.wire.subnet_env import parse_subnet_env

First = Callable[[], Awaitable[Collection[IpNetwork]]]
"""Returns the subnets of the peers whose packets are evaluated first: a host may have ten thousand peers."""

_DAEMON_S, _EXAMINED_S = 1.5, 2.0
"""Deadlines for the daemon and for the examination of the host, so that a command takes at most 5 s."""


async def status_of_host(places: Places) -> Status:
    """Return the status of the daemon, or a status from its files if it does not respond."""
    try:
        return await ControlClient(places.control_socket, _DAEMON_S).status()
    except (NotReadyError, WireError) as error:
        return await offline_status(places, str(error))


async def membership_of(places: Places, status: Status) -> Membership:
    """Return the network, subnet and underlay of the host; None for each unknown value."""
    known = _last_known(places)
    leases = () if known is None else filter(None, map(kept_lease, known.records))
    subnet = status.lease.subnet if status.lease else None
    return Membership(
        network=status.network.network if status.network else None,
        subnet=subnet if isinstance(subnet, IPv4Network) else None,
        underlay=status.underlay.link if status.underlay else await _underlay(known),
        peers=_ipv4_peers(
            {
                **{lease.subnet: lease.attributes.public_ip for lease in leases},
                **{peer.subnet: peer.public_ip for peer in status.refused_peers},
            }
        ),
    )


def _ipv4_peers(peers: Mapping[IpNetwork, IpAddress]) -> dict[IPv4Network, IPv4Address]:
    """Return the peers with IPv4, because doctor examines the rules and routes of IPv4."""
    return {
        subnet: address
        for subnet, address in peers.items()
        if isinstance(subnet, IPv4Network) and isinstance(address, IPv4Address)
    }


def _last_known(places: Places) -> Kept | None:
    with contextlib.suppress(OSError, WireError):
        return parse_last_known(read_end(places.last_known))
    return None


def known_networks(places: Places, membership: Membership) -> frozenset[IPv4Network | IPv6Network]:
    """Return the current and former networks of this host, from the store and each subnet.env."""
    files = [places.subnet_file, *places.run_dir.glob("networks/*.env")]
    named = {network for path in files for network in _named_in(path)}
    return frozenset(named if membership.network is None else {membership.network, *named})


def _named_in(path: Path) -> Iterator[IPv4Network | IPv6Network]:
    with contextlib.suppress(OSError, WireError):
        env = parse_subnet_env(read_end(path, follows_links=True).decode(errors="replace"))
        for name in ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"):
            for word in env.get(name, "").split(","):
                with contextlib.suppress(ValueError):
                    yield ip_network(word.strip())


async def _underlay(known: Kept | None) -> str | None:
    """Return the interface with the address of the last lease, or otherwise the interface of the default
    route.
    """
    with contextlib.suppress(FlannelError):
        interfaces = await interfaces_of_host()
        own = None if known is None else interfaces.holder(known.own.attributes.public_ip)
        if own is not None:
            return own.name
        return choose(UnderlayOptions(), interfaces).link
    return None


async def leases_of_host(places: Places) -> list[LeaseEntry]:
    """Return the leases that the daemon knows, or the leases in its files if it does not respond."""
    with contextlib.suppress(NotReadyError, WireError):
        return await ControlClient(places.control_socket, _DAEMON_S).leases()
    known = _last_known(places)
    leases = () if known is None else (known.own, *filter(None, map(kept_lease, known.records)))
    return list({lease.subnet: LeaseEntry.of(lease) for lease in leases}.values())


async def ping_path(places: Places, socket: Path | None, name: str) -> PingReport:
    """Probe the path to a host or a container, and find the place where packets stop.

    `socket`: control socket, if the user specified it.

    Raises:
        FlannelError: no lease belongs to this name, or no probe can be sent.
        NotReadyError: flanneld does not respond, and no leases are saved on this host.
    """
    places, status, leases = await _known(places, socket)
    peer, container = target_of(status, leases, name)
    steps, local = await asyncio.gather(
        probe_path(status, peer, container), _findings_in_time(places, status, leases, peer.subnet)
    )
    return judged(peer, steps, is_container=container is not None, status=status, local=local)


async def bench_host(places: Places, socket: Path | None, name: str) -> BenchReport:
    """Measure the paths to a host or a container. The arguments and errors are the same as those of
    `ping_path`.
    """
    _, status, leases = await _known(places, socket)
    return await bench_path(status, *target_of(status, leases, name))


async def _known(places: Places, socket: Path | None) -> tuple[Places, Status, list[LeaseEntry]]:
    """Return the paths of the daemon, its status and its leases.

    Raises:
        NotReadyError: flanneld does not respond, and its files contain no leases.
    """
    if socket is not None:
        places = replace(places, run_dir=socket.parent)
    status, leases = await asyncio.gather(status_of_host(places), leases_of_host(places))
    if not leases:
        raise NotReadyError(
            "no lease is known on this host: flanneld does not respond, or has no lease",
            hint="flannelctl doctor",
        )
    return places, status, leases


async def _findings_in_time(
    places: Places, status: Status, leases: list[LeaseEntry], peer: IpNetwork
) -> tuple[Finding, ...]:
    """Return the findings about this host itself, with the packets of this peer first; empty if the
    examination does not end in time.
    """

    async def first() -> Collection[IpNetwork]:
        return {peer}

    with contextlib.suppress(TimeoutError, FlannelError):
        async with asyncio.timeout(_EXAMINED_S):
            return await _examined(places, status, leases, first)
    return ()


async def examine(places: Places, left_s: float = 15.0) -> tuple[Finding, ...]:
    """Return the findings about this host, errors first. If the examination takes more than `left_s`
    seconds, one finding reports that the examination is incomplete.

    Raises:
        TargetError: links and routes are unreadable.
    """
    end = asyncio.get_running_loop().time() + left_s
    status, leases = await asyncio.gather(status_of_host(places), leases_of_host(places))
    reaching = asyncio.ensure_future(_reach(status, leases))

    async def silent() -> Collection[IpNetwork]:
        return {one.subnet for one in await asyncio.shield(reaching) if not one.is_reached}

    found, reach, offsets, times = await asyncio.gather(
        _examined_until(end, places, status, leases, silent),
        reaching,
        _clock_offsets(status, leases),
        _store_times(places, status),
    )
    neighbours = await _bad_neighbours(status, reach)
    own = (*found, *store_findings(status, times), *clock_findings(offsets))
    return with_peers(own, reach, status, neighbours)


async def _examined_until(
    end: float, places: Places, status: Status, leases: list[LeaseEntry], first: First
) -> tuple[Finding, ...]:
    """Return the findings about this host itself; if they are not complete at `end`, only a finding that
    reports this.
    """
    try:
        async with asyncio.timeout_at(end):
            return await _examined(places, status, leases, first)
    except TimeoutError:
        cause = "the examination of this host took too long, so its problems are unknown"
        return (Finding(code="not-examined", severity="error", cause=cause, fix="flannelctl doctor"),)


async def fix(found: Sequence[Finding]) -> list[str]:
    """Run the repair commands of the safe findings, and return the commands that succeeded."""
    commands = [one.fix for one in found if one.code in SAFE]
    done = []
    for command in commands:
        with contextlib.suppress(TargetError):
            ran = await run_program(*shlex.split(command))
            done += [] if ran.status else [command]
    return done


async def _store_times(places: Places, status: Status) -> StoreTimes | None:
    """Return how long requests of the daemon to its store take now; None if the daemon does not respond."""
    if not status.is_live:
        return None
    with contextlib.suppress(NotReadyError, WireError):
        return await ControlClient(places.control_socket).store_times()
    return None


async def _reach(status: Status, leases: list[LeaseEntry]) -> list[PeerReach]:
    """Return the answers of the peers; empty if this process has no permission to send probes."""
    with contextlib.suppress(TargetError):
        return list((await probe_peers(status, leases)).values())
    return []


async def _bad_neighbours(status: Status, reach: list[PeerReach]) -> dict[IpAddress, BadNeighbour]:
    """Return the neighbour entries on the underlay that may stop packets to silent peers, by the public
    address of the peer.
    """
    link = status.underlay.link if status.underlay is not None else None
    entries: dict[IpAddress, BadNeighbour] = {}
    with contextlib.suppress(TargetError):
        for name, one in await neighbours_of_host():
            if name != link or not isinstance(one.address, IPv4Address):
                continue
            if one.is_unresolved or one.is_permanent:
                state = f"lladdr {one.mac} PERMANENT" if one.is_permanent else "FAILED or INCOMPLETE"
                text = f"ip neighbour show {one.address} dev {name}: {state}"
                entries[one.address] = BadNeighbour(
                    address=one.address, link=name, text=text, is_set=one.is_permanent
                )
    silent = [one.public_ip for one in reach if not one.is_reached and one.underlay.state != "reached"]
    found = {address: entries[address] for address in silent if address in entries}
    if found.keys() == entries.keys():
        return found
    others = [one for one in silent if one not in found and isinstance(one, IPv4Address)][:_ROUTES_ASKED]
    answers = await asyncio.gather(*(ask_route("host out", address) for address in others))
    for address, answer in zip(others, answers, strict=True):
        if answer is not None and answer.gateway in entries:
            found[address] = entries[answer.gateway]
    return found


_ROUTES_ASKED = 8
"""Maximum number of silent peers whose gateway is determined."""


async def _set_neighbours(link: str | None) -> frozenset[IPv4Address]:
    """Return the addresses whose MAC address at a link is set by an operator."""
    with contextlib.suppress(TargetError):
        return frozenset(
            one.address
            for name, one in await neighbours_of_host()
            if name == link and one.is_permanent and isinstance(one.address, IPv4Address)
        )
    return frozenset()


def _published_mac(places: Places) -> str | None:
    known = _last_known(places)
    vtep = None if known is None else known.own.attributes.vtep
    return None if vtep is None else vtep.mac


_CLOCKS = 16
"""Maximum number of peers whose clocks are compared with the clock of this host."""

_CLOCK_DEADLINE_S = 0.7
"""Deadline for the answers of these peers. Many firewalls drop timestamp requests, and doctor must not
wait for them."""


async def _clock_offsets(status: Status, leases: list[LeaseEntry]) -> dict[IPv4Address, float]:
    """Return the offsets of the clocks of some peers; empty if no peer can be asked."""
    ends = (underlay for peer in peers_of(status, leases) for underlay, _ in (ends_of(peer),))
    with contextlib.suppress(TargetError):
        some_ends = list(islice((end for end in ends if isinstance(end, IPv4Address)), _CLOCKS))
        return await clock_offsets(some_ends, deadline_s=_CLOCK_DEADLINE_S)
    return {}


def certificates_for(url: str) -> tuple[Certificate, ...]:
    """Return the readable certificates whose files the URL of a store names."""
    try:
        address = parse_store_url(url).store
    except UsageError:
        return ()
    if not isinstance(address, EtcdAddress):
        return ()
    found = []
    for name, noun in (("certfile", "client certificate"), ("cafile", "certificate of the authority")):
        with contextlib.suppress(OSError, WireError):
            if (path := address.path(name)) is None:
                continue
            text = path.read_text(errors="replace")
            valid = [validity_of(text)] if name == "certfile" else validities_of(text)
            last = max(valid, key=lambda one: one.not_after, default=None)
            if last is not None:
                times = last.not_before.timestamp(), last.not_after.timestamp()
                found.append(Certificate(path=str(path), noun=noun, not_before=times[0], not_after=times[1]))
    return tuple(found)


async def _examined(
    places: Places, status: Status, leases: list[LeaseEntry], first: First
) -> tuple[Finding, ...]:
    """Return the findings about this host itself. Rules and routes are evaluated for the packets of some
    peers, beginning with those that `first` returns.
    """
    membership = await membership_of(places, status)
    others = _ipv4_peers({peer.subnet: peer.public_ip for peer in peers_of(status, leases)})
    peers = {**membership.peers, **others}
    if membership.subnet is not None:
        peers.pop(membership.subnet, None)
    membership = replace(membership, peers=peers)
    items, rules, saved, read, interfaces, programs = await asyncio.gather(
        survey(), _filter_rules(), read_rules(), read_ruleset(), interfaces_of_host(), programs_of(places)
    )
    early = await first()
    membership = replace(
        membership, peers=dict(sorted(membership.peers.items(), key=lambda one: one[0] not in early))
    )
    bridges = _own_bridges(interfaces, membership)
    seen = Observed(
        status=status,
        membership=membership,
        claimed=places.device(),
        original=find_original(),
        items=(*items, *rules),
        left_rules=rules_left(saved, known_networks(places, membership)),
        forwards=forwards(),
        unforwarded=unforwarded(one.name for one in interfaces.interfaces),
        strict=frozenset(one.name for one in interfaces.interfaces if is_strict(one.name)),
        ruleset=read.ruleset,
        answers=await _route_answers(status, membership, next(iter(bridges), None)),
        interfaces=interfaces,
        programs=programs[0],
        on_link=_on_link(interfaces, membership),
        ports={name: port_mtus(name) for name in bridges},
        lacks_arp=lacks_arp(membership.underlay or ""),
        set_neighbours=await _set_neighbours(membership.underlay),
        underlay_ports=tuple(port_mtus(membership.underlay or "")),
        docker0_ports=len(port_mtus("docker0")),
        docker_drops=docker_drops(saved, await docker_table()),
        mark=places.mark,
        published_mac=_published_mac(places),
        containers=await _with_mtus(await in_thread(find_containers), membership.subnet),
        certificates=() if status.store is None else certificates_for(status.store.url),
        now=time.time(),
        has_unit=has_unit("flanneld.service"),
    )
    unread = (
        Finding(code="rules-unread", severity="info", cause=f"filter rules: {error}", fix=error.hint)
        for error in read.failures
    )
    return (*findings(seen), *unread)


_CONTAINERS_ASKED = 16
"""Maximum number of containers whose MTU is read."""


async def _with_mtus(
    found: tuple[ContainerNamespace, ...], subnet: IPv4Network | None
) -> tuple[ContainerNamespace, ...]:
    """Return the containers, some of those in the subnet of this host with the MTUs of their links.

    The host sees only its own end of the link of a container, which may have another MTU.
    """
    if subnet is None:
        return found
    own = [one for one in found if any(address in subnet for address in one.addresses)][:_CONTAINERS_ASKED]
    mtus = await asyncio.gather(*(_mtus_in(one.pid, subnet) for one in own))
    known = {one.pid: replace(one, mtus=read) for one, read in zip(own, mtus, strict=True)}
    return tuple(known.get(one.pid, one) for one in found)


async def _mtus_in(pid: int, subnet: IPv4Network) -> dict[str, int]:
    """Return the MTUs of the links with an address in the subnet, in the network namespace of a process;
    empty if they cannot be read.
    """
    with contextlib.suppress(TargetError, ValueError, KeyError):
        ran = await run_program("nsenter", "--net", f"--target={pid}", "ip", "-json", "-4", "address")
        return {
            link["ifname"]: link["mtu"]
            for link in json.loads(ran.output)
            if any(IPv4Address(one["local"]) in subnet for one in link["addr_info"])
        }
    return {}


_ASKED, _ASKED_OUT = 2, 16
"""Maximum number of peers for which the kernel is asked for the routes in all directions, and for the route
of packets to them. A policy rule may divert the packets to a single peer."""


async def _route_answers(
    status: Status, membership: Membership, bridge: str | None
) -> tuple[RouteAnswer, ...]:
    """Return the routes that the kernel chooses for packets between this host and some of its peers."""
    own, underlay = membership.subnet, status.underlay
    local = None if underlay is None else underlay.address
    tunnel = status.backend.link if status.backend is not None else None
    if own is None or not status.is_live:
        return ()
    rules = await policy_rules()
    here = own.network_address + 2
    refused = {peer.subnet for peer in status.refused_peers}
    peers = ((subnet, address) for subnet, address in membership.peers.items() if subnet not in refused)
    asked = []
    for number, (subnet, address) in enumerate(islice(peers, _ASKED_OUT)):
        there = subnet.network_address + 2
        source = here if bridge is not None else None
        asked.append(ask_route("container out", there, source=source, arrives_at=bridge, rules=rules))
        if number >= _ASKED:
            continue
        if tunnel is not None:
            asked.append(ask_route("container in", here, source=there, arrives_at=tunnel))
        if underlay is not None and isinstance(local, IPv4Address):
            asked.append(ask_route("tunnel in", local, source=address, arrives_at=underlay.link))
    return tuple(filter(None, await asyncio.gather(*asked)))


async def interfaces_of_host() -> Interfaces:
    """Return the interfaces of this host, with their addresses.

    Raises:
        TargetError: they are unreadable.
    """
    async with KernelInterfaces() as observer:
        return await observer.observe()


async def programs_of(places: Places) -> tuple[tuple[BpfProgram, ...], tuple[BpfPeer, ...]]:
    """Return the eBPF programs of the daemon's tunnel, and their peers; empty if they are unreadable."""
    device = places.device()
    async with BpfTarget(FastPath(str(places.bpf))) as fast_path:
        found = await fast_path.snapshot(State.EMPTY)
        own = [one for one in found.of_type(BpfProgram) if one.tunnel.device == device]
        # The maps of the programs are read only if the programs are planned.
        found = await fast_path.snapshot(State.collect(own)) if own else State.EMPTY
    programs = tuple(one for one in found.of_type(BpfProgram) if one.tunnel.device == device)
    return programs, tuple(found.of_type(BpfPeer))


async def _filter_rules() -> list[Item]:
    """Return the chains and tables with flannel's names; empty if they are unreadable."""
    async with IptablesTarget() as iptables, NftTarget() as nftables:
        found = await asyncio.gather(iptables.snapshot(State.EMPTY), nftables.snapshot(State.EMPTY))
        return [item for snapshot in found for item in snapshot]


def _on_link(interfaces: Interfaces, membership: Membership) -> tuple[IpNetwork, ...]:
    underlay = None if membership.underlay is None else interfaces.named(membership.underlay)
    return () if underlay is None else underlay.on_link


def _own_bridges(interfaces: Interfaces, membership: Membership) -> list[str]:
    """Return the bridges with an address of this host's subnet, which connect its containers."""
    if membership.subnet is None:
        return []
    return [
        one.name
        for one in interfaces.interfaces
        if one.kind == "bridge" and any(held.address.ip in membership.subnet for held in one.addresses)
    ]
