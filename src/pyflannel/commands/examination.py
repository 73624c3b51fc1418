"""doctor: collects the observations of the host for the checks."""

import asyncio
import contextlib
import shlex
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from itertools import islice
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.assembly.stores import EtcdAddress, parse_store_url
from pyflannel.commands.host_links import (
    bridges_of_containers,
    interfaces_of_host,
    on_link,
    routes_of_network,
)
from pyflannel.commands.local_daemon import daemon_process, may_ask, offline_status
from pyflannel.commands.network_client import ControlClient
from pyflannel.commands.reach import (
    bench_path,
    ends_of,
    neighbours_of_host,
    peers_of,
    probe_path,
    probe_peers,
    targets_of,
)
from pyflannel.errors import FlannelError, NotReadyError, TargetError, UsageError, WireError
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.iptables import IptablesTarget, read_rules
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.programs import run_program
from pyflannel.kernel.filters.ruleset import ReadRules, read_ruleset
from pyflannel.kernel.host.files import read_end
from pyflannel.kernel.host.machine import (
    ask_route,
    closed_ports,
    docker_table,
    forwards,
    ignores_arp,
    ignores_echoes,
    is_ethernet,
    is_strict,
    lacks_arp,
    policy_rules,
    port_mtus,
    shapers,
    silent_ports,
    taking_filters,
    unforwarded,
)
from pyflannel.kernel.network.echo import clock_offsets
from pyflannel.kernel.network.ipsec import security_associations
from pyflannel.kernel.network.namespaces import far_ends, learned_by, read_namespace
from pyflannel.kernel.network.snapshot import survey
from pyflannel.model.fast_path import BpfPeer, BpfProgram
from pyflannel.model.host import Interfaces, RouteScope, TakingFilter
from pyflannel.model.item import Item
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.packet_filter import SavedRules
from pyflannel.model.probe import BenchReport, PeerReach, PingReport
from pyflannel.model.route import RouteAnswer
from pyflannel.model.state import State
from pyflannel.model.status import Finding, Membership, RefusedPeer, Status, StoreTimes
from pyflannel.plan.doctor.coverage import coverage, partly_examined
from pyflannel.plan.doctor.daemon import store_findings
from pyflannel.plan.doctor.docker import docker_drops
from pyflannel.plan.doctor.families import families_of, leases_in, network_of, status_in
from pyflannel.plan.doctor.findings import SAFE, findings_in_family, findings_of_host, merged
from pyflannel.plan.doctor.observed import (
    BadNeighbour,
    Certificate,
    ContainerLink,
    ContainerNamespace,
    Observed,
    SetNeighbour,
    SilentPort,
)
from pyflannel.plan.doctor.packets import mark_of
from pyflannel.plan.doctor.peers import clock_findings, joined, judged, with_peers
from pyflannel.plan.leftovers import rules_left
from pyflannel.plan.underlay import UnderlayOptions, choose
from pyflannel.ports import in_thread
from pyflannel.processes.found import find_containers, find_original
from pyflannel.processes.systemd import has_unit
from pyflannel.wire.certificate import validities_of, validity_of
from pyflannel.wire.lease_record import Kept, kept_lease, parse_last_known
from pyflannel.wire.subnet_env import parse_subnet_env

First = Callable[[Family], Awaitable[Collection[IpNetwork]]]
"""Returns, for a family, the subnets of the peers whose packets are evaluated first. A host may have ten
thousand peers."""

_DAEMON_S, _EXAMINED_S = 1.5, 2.0
"""Deadlines in seconds for the answer of the daemon and for the examination of the host, so that a command
takes at most 5 s."""


async def status_of_host(places: Places) -> Status:
    """Return the status of the daemon, or a status from its files if it does not respond."""
    try:
        return await ControlClient(places.control_socket, _DAEMON_S).status()
    except (NotReadyError, WireError) as error:
        return await offline_status(places, str(error))


async def memberships_of(places: Places, status: Status) -> tuple[Membership, ...]:
    """Return the network, subnet and underlay of the host in each family of its network; None for each
    unknown value.
    """
    leases = await leases_of_host(places)
    return tuple(
        [
            await _membership_in(family, places, status_in(status, family, leases))
            for family in families_of(status)
        ]
    )


async def _membership_in(family: Family, places: Places, status: Status) -> Membership:
    """Return the network, subnet and underlay of the host in a family.

    `status`: the status as in a network with this family alone.
    """
    known = _last_known(places)
    records = () if known is None else filter(None, map(kept_lease, known.records))
    leases = leases_in(map(LeaseEntry.of, records), family)
    return Membership(
        network=network_of(status, family),
        subnet=status.lease.subnet if status.lease else None,
        underlay=(
            status.underlay.link
            if status.underlay
            else await _underlay(known, family, routes_of_network(status))
        ),
        peers={
            **{lease.subnet: lease.public_ip for lease in leases},
            **_addresses_of(status.refused_peers, family),
        },
    )


def _addresses_of(peers: Iterable[LeaseEntry | RefusedPeer], family: Family) -> dict[IpNetwork, IpAddress]:
    """Return the public address of each peer with an address in this family, by its subnet."""
    return {peer.subnet: peer.public_ip for peer in peers if peer.public_ip.version == family}


def _last_known(places: Places) -> Kept | None:
    with contextlib.suppress(OSError, WireError):
        return parse_last_known(read_end(places.last_known))
    return None


def known_networks(places: Places, *memberships: Membership) -> frozenset[IPv4Network | IPv6Network]:
    """Return the current and former networks of this host, from the store and each subnet.env."""
    files = [places.subnet_file, *places.run_dir.glob("networks/*.env")]
    named = {network for path in files for network in _named_in(path)}
    return frozenset(named.union(one.network for one in memberships if one.network is not None))


def _named_in(path: Path) -> Iterator[IPv4Network | IPv6Network]:
    with contextlib.suppress(OSError, WireError):
        env = parse_subnet_env(read_end(path, follows_links=True).decode(errors="replace"))
        for name in ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"):
            for word in env.get(name, "").split(","):
                with contextlib.suppress(ValueError):
                    yield ip_network(word.strip())


async def _underlay(known: Kept | None, family: Family, scope: RouteScope) -> str | None:
    """Return the interface with the address of the last lease, or otherwise the interface of the default
    route.
    """
    with contextlib.suppress(FlannelError):
        interfaces = await interfaces_of_host(scope)
        part = None if known is None else known.own.part(family)
        own = None if part is None else interfaces.holder(part.address)
        if own is not None:
            return own.name
        return choose(UnderlayOptions(), interfaces, families=(family,)).link
    return None


async def leases_of_host(places: Places) -> list[LeaseEntry]:
    """Return the leases that the daemon knows, or the leases in its files if it does not respond."""
    with contextlib.suppress(NotReadyError, WireError):
        return await ControlClient(places.control_socket, _DAEMON_S).leases()
    known = _last_known(places)
    leases = () if known is None else (known.own, *filter(None, map(kept_lease, known.records)))
    return list({lease.subnet: LeaseEntry.of(lease) for lease in leases}.values())


async def ping_path(places: Places, socket: Path | None, name: str) -> PingReport:
    """Probe the path to a host in each family, or to a container, and find the place where packets stop.

    `socket`: control socket, if the user specified it.

    Raises:
        FlannelError: no lease belongs to this name, or no probe can be sent.
        NotReadyError: flanneld does not respond, and no leases are saved on this host.
    """
    places, status, leases = await _known(places, socket)
    targets = targets_of(status, leases, name)
    local, paths = await asyncio.gather(
        _findings_in_time(places, status, leases, {one.family: one.peer.subnet for one in targets}),
        asyncio.gather(*(probe_path(one.status, one.peer, one.container) for one in targets)),
    )
    return joined(
        {
            one.family: judged(
                one.peer,
                steps,
                is_container=one.container is not None,
                status=one.status,
                local=local.get(one.family, ()),
            )
            for one, steps in zip(targets, paths, strict=True)
        }
    )


async def bench_host(places: Places, socket: Path | None, name: str) -> BenchReport:
    """Measure the paths to a host in the first family of the network, or to a container. The arguments and
    errors are the same as those of `ping_path`.
    """
    _, status, leases = await _known(places, socket)
    first = targets_of(status, leases, name)[0]
    return await bench_path(first.status, first.peer, first.container)


async def _known(places: Places, socket: Path | None) -> tuple[Places, Status, list[LeaseEntry]]:
    """Return the paths of the daemon, its status and its leases.

    Raises:
        NotReadyError: flanneld does not respond, and its files contain no leases.
    """
    if socket is not None:
        places = replace(places, run_dir=socket.parent)
    status, leases = await asyncio.gather(status_of_host(places), leases_of_host(places))
    if not leases:
        raise without_leases(places)
    return places, status, leases


def without_leases(places: Places) -> NotReadyError:
    """Return the error that this process knows no leases."""
    if not may_ask(places.control_socket):
        return NotReadyError(
            "this user has no permission to ask flanneld, and to read its files",
            hint="Run flannelctl as root, or as the user of flanneld.",
        )
    return NotReadyError(
        "no lease is known on this host: flanneld does not respond, or has no lease",
        hint="Run flannelctl doctor.",
    )


async def _findings_in_time(
    places: Places, status: Status, leases: list[LeaseEntry], peer: Mapping[Family, IpNetwork]
) -> Mapping[Family, tuple[Finding, ...]]:
    """Return the findings about this host itself by family, with the packets of a peer first; empty if the
    examination does not end in time.

    `peer`: the subnet of the peer in each family.
    """

    async def first(family: Family) -> Collection[IpNetwork]:
        return {peer[family]} if family in peer else ()

    with contextlib.suppress(TimeoutError, FlannelError):
        async with asyncio.timeout(_EXAMINED_S):
            found = await _examined(places, status, leases, first)
            common = found.get(None, ())
            return {family: merged((*common, *found.get(family, ()))) for family in peer}
    return {}


async def examine(places: Places, left_s: float = 15.0) -> tuple[Finding, ...]:
    """Return the findings about this host, errors first. If the examination takes more than `left_s`
    seconds, one finding reports that the examination is incomplete.

    Raises:
        TargetError: links and routes are unreadable.
    """
    end = asyncio.get_running_loop().time() + left_s
    whole, every_lease = await asyncio.gather(status_of_host(places), leases_of_host(places))
    reaching: dict[Family, asyncio.Future[list[PeerReach]]] = {
        family: asyncio.ensure_future(
            _reach(status_in(whole, family, every_lease), leases_in(every_lease, family))
        )
        for family in families_of(whole)
    }

    async def silent(family: Family) -> Collection[IpNetwork]:
        return {one.subnet for one in await asyncio.shield(reaching[family]) if not one.is_reached}

    found, reached, offsets, times = await asyncio.gather(
        _examined_until(end, places, whole, every_lease, silent),
        asyncio.gather(*reaching.values()),
        _clock_offsets(whole, every_lease),
        _store_times(places, whole),
    )
    common = (*found.get(None, ()), *store_findings(whole, times), *clock_findings(offsets))
    complete: list[Finding] = []
    for family, reach in zip(reaching, reached, strict=True):
        status = status_in(whole, family, every_lease)
        probed = len([*peers_of(status, leases_in(every_lease, family))]) if reach else 0
        partly = partly_examined([("{} peers were probed", len(reach), probed)])
        own = (*common, *found.get(family, ()), *partly)
        complete += with_peers(own, reach, status, await _bad_neighbours(status, reach))
    return merged(complete)


async def _examined_until(
    end: float, places: Places, status: Status, leases: list[LeaseEntry], first: First
) -> Mapping[Family | None, tuple[Finding, ...]]:
    """Return the findings about this host itself, by family; None for findings about all families. If they
    are not complete at `end`, return only a finding that reports this.
    """
    try:
        async with asyncio.timeout_at(end):
            return await _examined(places, status, leases, first)
    except TimeoutError:
        cause = "the examination of this host took too long, so its problems are unknown"
        return {None: (Finding(code="not-examined", severity="error", cause=cause, fix="flannelctl doctor"),)}


async def fix(found: Sequence[Finding]) -> list[str]:
    """Run the repair commands of the safe findings, and return the commands that succeeded."""
    fixes = [one.fix for one in found if one.code in SAFE]
    done = []
    for command in (command for one in fixes for command in one.split("; ")):
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
            if name != link:
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
    others = [one for one in silent if one not in found][:_ROUTES_ASKED]
    answers = await asyncio.gather(*(ask_route("host out", address) for address in others))
    for address, answer in zip(others, answers, strict=True):
        if answer is not None and answer.gateway is not None and answer.gateway in entries:
            found[address] = entries[answer.gateway]
    return found


_ROUTES_ASKED = 8
"""Maximum number of silent peers whose gateway is determined."""


async def _set_neighbours() -> tuple[SetNeighbour, ...]:
    """Return the neighbours of this host whose MAC address an operator set."""
    with contextlib.suppress(TargetError):
        return tuple(
            SetNeighbour(address=one.address, link=name, mac=one.mac)
            for name, one in await neighbours_of_host()
            if one.is_permanent
        )
    return ()


def _published_mac(places: Places, family: Family) -> str | None:
    known = _last_known(places)
    part = None if known is None else known.own.part(family)
    return None if part is None or part.vtep is None else part.vtep.mac


_CLOCKS = 16
"""Maximum number of peers whose clocks are compared with the clock of this host."""

_CLOCK_DEADLINE_S = 0.7
"""Deadline in seconds for the answers to timestamp requests. Many firewalls drop timestamp requests, and
doctor must not wait for them."""


async def _clock_offsets(status: Status, leases: list[LeaseEntry]) -> dict[IPv4Address, float]:
    """Return the clock offsets of some peers in seconds; empty if no peer can be asked. ICMPv6 has no
    message that contains a time.
    """
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


class _Host(Struct, frozen=True, kw_only=True):
    """The observations of a host that do not depend on the family.

    Attributes:
        family: the family that is examined.
        is_alone: the host carries only this family.
    """

    family: Family = 4
    is_alone: bool = True
    items: tuple[Item, ...]
    saved: tuple[SavedRules, ...]
    read: ReadRules
    interfaces: Interfaces
    programs: tuple[BpfProgram, ...]
    containers: tuple[ContainerNamespace, ...]
    taking_filters: tuple[TakingFilter, ...]


async def _examined(
    places: Places, status: Status, leases: list[LeaseEntry], first: First
) -> Mapping[Family | None, tuple[Finding, ...]]:
    """Return the findings about this host itself, by family; None for findings about all families. Rules and
    routes are evaluated for the packets of some peers, beginning with those that `first` returns.
    """
    families = families_of(status)
    items, rules, saved, read, interfaces, programs = await asyncio.gather(
        survey(),
        _filter_rules(),
        read_rules(),
        read_ruleset(families),
        interfaces_of_host(routes_of_network(status)),
        programs_of(places),
    )
    containers, taken = await asyncio.gather(
        in_thread(find_containers),
        taking_filters({one.name: one.kind for one in interfaces.interfaces}),
    )
    host = _Host(
        items=(*items, *rules),
        saved=saved,
        read=read,
        interfaces=interfaces,
        programs=programs[0],
        containers=containers,
        taking_filters=taken,
    )
    unread = tuple(
        Finding(code="rules-unread", severity="info", cause=f"filter rules: {error}", fix=error.hint)
        for error in read.failures
    )
    observed = [
        await _observed(
            places,
            replace(host, family=family, is_alone=len(families) == 1),
            status_in(status, family, leases),
            leases_in(leases, family),
            await first(family),
        )
        for family in families
    ]
    found: dict[Family | None, tuple[Finding, ...]] = {None: (*findings_of_host(observed[0]), *unread)}
    for one in observed:
        own = findings_in_family(replace(one, is_first=one is observed[0]))
        found[one.family] = (*own, *coverage(one))
    return found


async def _observed(
    places: Places, host: _Host, status: Status, leases: list[LeaseEntry], early: Collection[IpNetwork]
) -> Observed:
    """Return the observations in one family. Status and leases are those of a network with this family
    alone.
    """
    family = host.family
    membership = await _membership_in(family, places, status)
    peers = {**membership.peers, **_addresses_of(peers_of(status, leases), family)}
    if membership.subnet is not None:
        peers.pop(membership.subnet, None)
    membership = replace(membership, peers=dict(sorted(peers.items(), key=lambda one: one[0] not in early)))
    interfaces = host.interfaces
    bridges = bridges_of_containers(interfaces, membership, family, is_alone=host.is_alone)
    names = [one.name for one in interfaces.interfaces]
    permanent = await _set_neighbours()
    return Observed(
        status=status,
        membership=membership,
        family=family,
        may_ask=may_ask(places.control_socket),
        daemon=daemon_process(places.lock),
        claimed=places.device(),
        original=find_original(),
        items=host.items,
        left_rules=rules_left(host.saved, known_networks(places, membership)),
        forwards=forwards(family),
        unforwarded=unforwarded(names, family),
        strict=frozenset(name for name in names if family == 4 and is_strict(name)),
        ruleset=host.read.ruleset,
        answers=await _route_answers(status, membership, next(iter(bridges), None), family),
        marked_answers=await _marked_answers(status, membership, next(iter(bridges), None), family),
        interfaces=interfaces,
        programs=host.programs,
        on_link=on_link(interfaces, membership),
        ports={name: port_mtus(name) for name in bridges},
        silent_ports=await _silent_ports(interfaces, bridges),
        closed_ports={port: state for name in bridges for port, state in closed_ports(name).items()},
        lacks_arp=lacks_arp(membership.underlay or ""),
        ignores_arp=family == 4 and ignores_arp(membership.underlay or ""),
        ignores_echoes=ignores_echoes(family),
        is_ethernet=is_ethernet(membership.underlay or ""),
        set_neighbours=frozenset(one.address for one in permanent if one.link == membership.underlay),
        bridge_neighbours=tuple(one for one in permanent if one.link in bridges),
        shapers=await shapers(membership.underlay or ""),
        taking_filters=host.taking_filters,
        underlay_ports=tuple(port_mtus(membership.underlay or "")),
        associations=await security_associations() if interfaces.policies else None,
        docker0_ports=len(port_mtus("docker0")),
        docker_drops=docker_drops(host.saved, await docker_table(family), family),
        mark=places.mark,
        published_mac=_published_mac(places, family),
        containers=await _with_links(host.containers, membership.subnet, _indexes(interfaces, bridges)),
        certificates=() if status.store is None else certificates_for(status.store.url),
        now=time.time(),
        has_unit=has_unit("flanneld.service"),
    )


_CONTAINERS_ASKED = 512
"""Maximum number of containers whose links are read, which takes less than a second."""


def _indexes(interfaces: Interfaces, bridges: Iterable[str]) -> frozenset[int]:
    """Return the indexes of the ports of the bridges."""
    ports = {port for bridge in bridges for port in port_mtus(bridge)}
    return frozenset(one.index for one in interfaces.interfaces if one.name in ports)


async def _with_links(
    found: tuple[ContainerNamespace, ...], subnet: IpNetwork | None, ports: frozenset[int]
) -> tuple[ContainerNamespace, ...]:
    """Return the containers. For the containers in the subnet of this host, and for those at the `ports` of
    its bridges, add their links and permanent neighbour entries.

    The host sees only its own end of the link of a container, which may have another MTU.
    """
    if subnet is None:
        return found
    own = [one for one in found if any(address in subnet for address in one.addresses)]
    known = {one.pid: await _with_links_of(one, subnet) for one in own[:_CONTAINERS_ASKED]}
    if ports - {link.peer for one in known.values() for link in one.links}:
        # A port leads to a container that has lost its address, or whose link is down.
        ends = await far_ends(one.pid for one in found if one.pid not in known)
        for one in found:
            inside = frozenset(link for link, port in ends.get(one.pid, {}).items() if port in ports)
            if inside and len(known) < _CONTAINERS_ASKED:
                known[one.pid] = await _with_links_of(one, subnet, inside)
    return tuple(known.get(one.pid, one) for one in found)


async def _with_links_of(
    container: ContainerNamespace, subnet: IpNetwork, inside: frozenset[int] = frozenset()
) -> ContainerNamespace:
    """Return the container with its links in the subnet, and with its links whose index is in `inside`."""
    if (read := await read_namespace(container.pid)) is None:
        return container
    held: dict[int, set[IpAddress]] = {}
    for one in read.addresses:
        held.setdefault(one.index, set()).add(one.address.ip)
    links = tuple(
        ContainerLink(
            name=link.name,
            mtu=link.mtu,
            mac=link.mac,
            peer=link.peer if link.kind == "veth" else 0,
            is_up=link.is_up,
            addresses=frozenset(held.get(index, ())),
        )
        for index, link in read.links.items()
        if any(address in subnet for address in held.get(index, ())) or index in inside
    )
    permanent = tuple(
        SetNeighbour(address=one.address, link=read.links[one.index].name, mac=one.mac)
        for one in read.neighbours
        if one.is_permanent and one.mac and one.index in read.links
    )
    return replace(container, links=links, set_neighbours=permanent)


async def _silent_ports(interfaces: Interfaces, bridges: Iterable[str]) -> tuple[SilentPort, ...]:
    """Return the ports of the bridges that learn no MAC addresses; there are nearly always none."""
    found = []
    for bridge in bridges:
        ports, here = silent_ports(bridge), interfaces.named(bridge)
        entries = await learned_by(here.index) if ports and here is not None else []
        for name, floods in ports.items():
            if (port := interfaces.named(name)) is not None:
                macs = frozenset(mac for index, mac in entries if index == port.index)
                found.append(SilentPort(bridge=bridge, name=name, index=port.index, floods=floods, macs=macs))
    return tuple(found)


_ASKED, _ASKED_OUT = 2, 16
"""Maximum number of peers for which the kernel is asked for the routes in all directions, and for the route
of packets to them. A policy rule may divert the packets to a single peer."""


async def _route_answers(
    status: Status, membership: Membership, bridge: str | None, family: Family
) -> tuple[RouteAnswer, ...]:
    """Return the routes that the kernel chooses for packets between this host and some of its peers."""
    own, underlay = membership.subnet, status.underlay
    local = None if underlay is None else underlay.address
    tunnel = status.backend.link if status.backend is not None else None
    if own is None or not status.is_live:
        return ()
    rules = await policy_rules(family)
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
        if underlay is not None and local is not None and local.version == address.version:
            asked.append(ask_route("tunnel in", local, source=address, arrives_at=underlay.link))
    return tuple(filter(None, await asyncio.gather(*asked)))


_MARKS_ASKED = 4
"""Maximum number of policy rules with a mark for which the kernel is asked."""


async def _marked_answers(
    status: Status, membership: Membership, bridge: str | None, family: Family
) -> tuple[RouteAnswer, ...]:
    """Return the routes of a packet to the first peer, once for each mark that a policy rule selects."""
    own, peer = membership.subnet, next(iter(membership.peers), None)
    if own is None or peer is None or bridge is None or not status.is_live:
        return ()
    rules = [rule for rule in await policy_rules(family) if mark_of(rule)][:_MARKS_ASKED]
    here, there = own.network_address + 2, peer.network_address + 2
    asked = (
        ask_route("container out", there, source=here, arrives_at=bridge, rules=(rule,), mark=mark_of(rule))
        for rule in rules
    )
    return tuple(filter(None, await asyncio.gather(*asked)))


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
