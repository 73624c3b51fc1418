"""The faults of a host, from observations: one small check for each kind of fault.

A check returns the evidence and a command. On a healthy host, no check returns a finding.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pyflannel.model.fast_path import BpfProgram
from pyflannel.model.item import Item
from pyflannel.model.link import MARK, Link
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.packet_filter import (
    FIRST_DEVICE,
    ForwardChain,
    IptablesChain,
    LeftRules,
    NftTable,
    SavedRules,
)
from pyflannel.model.route import PROTOCOLS, Route, route_protocol
from pyflannel.model.status import Finding, Membership, RefusedLease, SignatureFault, Status
from pyflannel.plan.leftovers import is_within, left_by_original, unplanned_routes
from pyflannel.plan.routes import RouteConflict, conflicts, is_part, on_link_prefixes, overlap_note

_NAMED = 8
"""Most objects that one finding names."""

_APART = "flannelctl config set FILE  # with a Network that overlaps no address of any host"

RECENT_S = 3600.0
"""Age of a rejected sender's latest packet, or of a replaced lease, up to which it is a finding.

The status shows older ones too.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The observations of a host.

    Attributes:
        claimed: the device name that the daemon claims; None if pyflannel has not run here.
        original: process ID of an original flanneld on this host.
        items: all links, all routes of the main table, and the filter rules with names of flannel.
        left_rules: other filter rules that an original left, or may have left.
        forwards: the host forwards IPv4 packets; None if this is unknown.
        strict: links with a strict reverse path filter.
        dropping: chains with the policy drop.
        programs: programs of the claimed device, at the hooks of links.
        on_link: prefixes that the underlay reaches without a gateway.
        ports: MTU in bytes of the ports of each bridge in this host's subnet, by name.
        docker_drops: rules of Docker 28 or newer that drop packets of other hosts, by the name of the bridge.
        has_unit: systemd runs on this host and has the unit flanneld.service.
    """

    status: Status
    membership: Membership
    claimed: str | None = None
    original: int | None = None
    items: tuple[Item, ...] = ()
    left_rules: tuple[LeftRules, ...] = ()
    forwards: bool | None = True
    strict: frozenset[str] = frozenset()
    dropping: tuple[ForwardChain, ...] = ()
    programs: tuple[BpfProgram, ...] = ()
    on_link: tuple[IpNetwork, ...] = ()
    ports: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    docker_drops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_unit: bool = True


def findings(seen: Observed) -> tuple[Finding, ...]:
    """Return all findings, the errors first."""
    checks = (
        _daemon,
        _config,
        _forwarding,
        _forward_chains,
        _docker_drops,
        _refused_peers,
        _silent_peers,
        _user_space,
        _left_programs,
        _strangers,
        _refused_leases,
        _allow_list,
        _underlay_conflicts,
        _leftovers,
        _doubtful_rules,
        _unplanned_routes,
        _reverse_path,
        _port_mtus,
        _warnings,
        _notes,
    )
    ranks = {"error": 0, "warning": 1, "info": 2}
    return tuple(
        sorted((one for check in checks for one in check(seen)), key=lambda one: ranks[one.severity])
    )


def _daemon(seen: Observed) -> Iterator[Finding]:
    """Yield why the daemon is not ready, with the most specific reason."""
    status = seen.status
    waiting = status.waiting_for or "no reason given"
    if not status.is_live:
        yield Finding(
            code="daemon-away",
            severity="error",
            cause="flanneld does not respond: damage is not repaired and new peers are unreachable",
            evidence=(waiting,),
            fix="systemctl start flanneld" if seen.has_unit else "start flanneld",
        )
    elif status.store is not None and not status.store.is_connected:
        yield Finding(
            code="store-away",
            severity="error",
            cause="the store does not respond: leases expire and new peers are unreachable",
            evidence=(f"{status.store.url}: {status.store.last_error or waiting}",),
            fix=f"flannelctl --store {status.store.url} leases  # prints the cause",
        )
    elif status.reconcile is not None and status.reconcile.held:
        yield Finding(
            code="fight",
            severity="error",
            cause="another program keeps changing objects of flanneld",
            evidence=_some(status.reconcile.held),
            fix="ip monitor  # find the program (NetworkManager, dhcpcd, …) and exclude the object there",
        )
    elif status.reconcile is not None and status.reconcile.refused:
        yield Finding(
            code="refused",
            severity="error",
            cause="the host refuses a part of the plan",
            evidence=_some(status.reconcile.refused),
            fix="journalctl -u flanneld  # shows each refusal with its remedy",
        )
    elif status.lease is not None and status.lease.trouble is not None:
        yield Finding(
            code="no-free-subnet",
            severity="error",
            cause=f"flanneld has no lease: {status.lease.trouble.text}",
            fix=status.lease.trouble.hint,
        )
    elif not status.is_ready and not _waits_for_config(status):
        yield Finding(
            code="not-ready",
            severity="error",
            cause=f"flanneld waits for {waiting}",
            fix="flannelctl status",
        )


def _config(seen: Observed) -> Iterator[Finding]:
    network = seen.status.network
    if network is not None and network.trouble is not None:
        yield Finding(
            code="bad-config",
            severity="error" if _waits_for_config(seen.status) else "warning",
            cause=f"flanneld {network.trouble.text}",
            evidence=(f"in force: {network.text}",) if network.text is not None else (),
            fix=network.trouble.hint,
        )


def _waits_for_config(status: Status) -> bool:
    """Return whether there was no valid network config yet, so that the daemon cannot start."""
    network = status.network
    return network is not None and network.text is None and network.trouble is not None


def _forwarding(seen: Observed) -> Iterator[Finding]:
    if seen.forwards is False:
        yield Finding(
            code="forwarding-off",
            severity="error",
            cause="the host forwards no packets: its containers reach no other host",
            evidence=("net.ipv4.ip_forward = 0",),
            fix="sysctl -w net.ipv4.ip_forward=1",
        )


def _forward_chains(seen: Observed) -> Iterator[Finding]:
    network = seen.membership.network
    for chain in seen.dropping:
        if network is None or chain.lets_pass(network):
            continue
        place = f"{chain.family} {chain.table} {chain.name}"
        is_iptables = (chain.table, chain.name) == ("filter", "FORWARD")
        insert = (
            f"{chain.program or 'iptables'} -I FORWARD -{{0}} {{1}} -j ACCEPT"
            if is_iptables
            else f"nft insert rule {place} ip {{0}} {{1}} accept"
        )
        shown = f"{chain.program} -S {chain.name}" if chain.program else f"nft list chain {place}"
        words = ("s", "d") if is_iptables else ("saddr", "daddr")
        yield Finding(
            code="forward-dropped",
            severity="error",
            cause=f"the chain {place} drops packets of {network}, even if another chain accepts them",
            evidence=(f"{shown}: policy drop, and no rule that accepts {network}",),
            fix="; ".join(insert.format(word, network) for word in words),
        )


_RAW_DROP = re.compile(r"-d \S+ ! -i (?P<bridge>\S+) (?:.* )?-j DROP")
_FORWARD_DROP = re.compile(r"! -i (?P<bridge>\S+) -o (?P=bridge) -j DROP")
_NFT_CHAIN = re.compile(r"\s*chain filter-forward-in__(?P<bridge>\S+) \{")
_NFT_RAW_DROP = re.compile(r'iifname != "(?P<bridge>[^"]+)" .*drop comment "DROP DIRECT ACCESS"')
_NFT_FORWARD_DROP = 'drop comment "UNPUBLISHED PORT DROP"'


def docker_drops(saved: Iterable[SavedRules], table: str) -> dict[str, tuple[str, ...]]:
    """Return the rules by which Docker drops packets to addresses of its containers, by bridge.

    Docker 28 and newer write them in iptables or, if so configured, in nftables.

    Args:
        saved: the rules of iptables.
        table: Docker's table of nftables, as `nft list table ip docker-bridges` prints it; "" without one.

    Source: moby 29, daemon/libnetwork/drivers/bridge/internal.
    """
    found: dict[str, list[str]] = {}
    for rules in saved:
        for place, chain, pattern in (("raw", "PREROUTING", _RAW_DROP), ("filter", "DOCKER", _FORWARD_DROP)):
            for rule in rules.chains.get(place, {}).get(chain, ()) if rules.family == 4 else ():
                if (drop := pattern.search(rule)) is not None:
                    text = f"{rules.program} -t {place} -A {chain} {rule}"
                    found.setdefault(drop["bridge"], []).append(text)
    bridge = ""
    for line in table.splitlines():
        if (header := _NFT_CHAIN.match(line)) is not None:
            bridge = header["bridge"]
        elif line.strip() == "}":
            bridge = ""
        elif (drop := _NFT_RAW_DROP.search(line)) is not None:
            found.setdefault(drop["bridge"], []).append(line.strip())
        elif bridge and _NFT_FORWARD_DROP in line:
            found.setdefault(bridge, []).append(line.strip())
    return {name: tuple(lines) for name, lines in found.items()}


def _docker_drops(seen: Observed) -> Iterator[Finding]:
    for bridge in sorted(seen.docker_drops.keys() & seen.ports.keys()):
        yield Finding(
            code="docker-drops",
            severity="error",
            cause=f"Docker drops packets of other hosts to containers at {bridge}",
            evidence=_some(list(seen.docker_drops[bridge])),
            fix="docker network create -d flannel --ipam-driver flannel NAME  # needs --docker-plugin."
            " Or use a bridge network with -o com.docker.network.bridge.gateway_mode_ipv4=nat-unprotected",
        )


def _refused_peers(seen: Observed) -> Iterator[Finding]:
    refused = seen.status.refused_peers
    if refused:
        yield Finding(
            code="peers-refused",
            severity="warning",
            cause=f"{len(refused)} of {seen.status.peers} peers are refused and unreachable",
            evidence=_some([f"{peer.subnet} at {peer.host_text}: {peer.reason}" for peer in refused]),
            fix="flannelctl peers",
        )


def _silent_peers(seen: Observed) -> Iterator[Finding]:
    """Yield the WireGuard peers that have never answered a handshake."""
    peers = seen.status.wireguard.peers if seen.status.wireguard is not None else ()
    silent = [peer for peer in peers if peer.handshake_age_s is None and peer.sent]
    if silent:
        yield Finding(
            code="no-handshake",
            severity="error",
            cause=f"{len(silent)} of {len(peers)} peers have not answered a handshake of WireGuard",
            evidence=_some([f"{peer.subnet} at {peer.endpoint or 'an unknown address'}" for peer in silent]),
            fix="wg show  # let firewalls and NATs pass the UDP ports of these endpoints, in both directions",
        )


def _user_space(seen: Observed) -> Iterator[Finding]:
    path = seen.status.fast_path
    if path is not None and path.mode == "user-space":
        reason = path.reason or ""
        lacking = (one.text for one in path.lacking if one.text not in reason)
        yield Finding(
            code="no-fast-path",
            severity="warning",
            cause="user space carries the packets, which is slower: the kernel cannot carry them",
            evidence=_some([reason, *lacking]),
            fix=f"flanneld --fast-path=off  # to accept this; otherwise: {path.hint}",
        )


def _left_programs(seen: Observed) -> Iterator[Finding]:
    """Yield programs that carry packets although the daemon cannot read or change them."""
    path = seen.status.fast_path
    if path is None:
        return
    restart = "systemctl restart flanneld" if seen.has_unit else "restart flanneld"
    cause = "programs of an earlier flanneld carry packets by tables that flanneld cannot update"
    blind = [notice.text for notice in path.remarks if notice.hint]
    has_looked = seen.status.reconcile is not None and seen.status.reconcile.passes > 0
    if blind or (path.mode != "safe" and seen.programs and has_looked):
        yield Finding(
            code="programs-left",
            severity="error",
            cause=cause,
            evidence=_some([*blind, *(program.title for program in seen.programs)]),
            fix=f"flannelctl pins, then {restart}  # or, to remove the programs: flannelctl cleanup",
        )
    for notice in path.remarks:
        if not notice.hint:
            yield Finding(code="fast-path-full", severity="info", cause=notice.text, fix="flannelctl status")


def _strangers(seen: Observed) -> Iterator[Finding]:
    recent = [one for one in seen.status.strangers if one.age_s < RECENT_S]
    for one in recent[:_NAMED]:
        yield Finding(
            code="stranger",
            severity="warning",
            cause=f"tunnel packets from {one.address} are dropped: {one.cause}",
            evidence=(
                f"{one.packets} packets, the latest {one.age_s:.0f} s ago"
                f" from {one.inner_source} to {one.inner_destination}",
            ),
            fix=one.hint,
        )


def _refused_leases(seen: Observed) -> Iterator[Finding]:
    """Yield the leases whose signatures are refused, by fault."""
    signing = seen.status.lease_signing
    if signing is None:
        return
    by_fault: dict[SignatureFault, list[RefusedLease]] = {}
    for one in signing.refused:
        if one.is_in_store or one.age_s < RECENT_S:
            by_fault.setdefault(one.fault, []).append(one)
    for some in by_fault.values():
        many = "a lease is" if len(some) == 1 else f"{len(some)} leases are"
        how = "refused" if signing.mode == "require" else "accepted only because of --lease-signing=warn"
        yield Finding(
            code="lease-signature",
            severity="warning",
            cause=f"{many} {how}: {some[0].cause}",
            evidence=_some([_refused_lease(one) for one in some]),
            fix=some[0].hint,
        )


def _allow_list(seen: Observed) -> Iterator[Finding]:
    """Yield why the latest allow-list is not in use, and whether it lacks this host."""
    signing = seen.status.lease_signing
    if signing is not None and signing.trouble is not None:
        has_none = signing.allowed == 0 and signing.mode == "require"
        how = "flanneld refuses all other hosts" if has_none else "flanneld keeps the last good allow-list"
        yield Finding(
            code="allow-list",
            severity="error" if has_none else "warning",
            cause=f"{how}: {signing.trouble.text}",
            evidence=(f"in force: {signing.allowed} keys",),
            fix=signing.trouble.hint,
        )
    if signing is not None and signing.is_own_key_allowed is False:
        yield Finding(
            code="own-key-not-allowed",
            severity="warning",
            cause="the allow-list lacks the key of this host: hosts with the same list refuse its lease",
            evidence=(f"in force: {signing.allowed} keys",),
            fix="jq -r .Public /var/lib/flannel/lease-key.json  # add this key to the list on all hosts",
        )


def _refused_lease(one: RefusedLease) -> str:
    times = "once" if one.times == 1 else f"{one.times} times"
    place = "in the store" if one.is_in_store else "not in the store any more"
    return f"{one.subnet} at {one.host_text}: written {times}, read {one.age_s:.0f} s ago, {place}"


def _underlay_conflicts(seen: Observed) -> Iterator[Finding]:
    """Yield how the network overlaps the underlay; an error if a route takes packets from it."""
    found = _conflicts(seen)
    if found:
        routes = (item for item in seen.items if isinstance(item, Route))
        taking = [route for route in routes if _takes(route, found, seen.membership)]
        yield Finding(
            code="network-overlaps-underlay",
            severity="error" if taking else "warning",
            cause=f"Network {found[0].text}",
            evidence=_some([*(f"Network {one.text}" for one in found[1:]), *map(_shown, taking)]),
            fix=_APART,
        )


def _conflicts(seen: Observed) -> tuple[RouteConflict, ...]:
    network, link = seen.membership.network, seen.membership.underlay
    if network is None or link is None:
        return ()
    return conflicts([network], on_link_prefixes(link, seen.on_link))


def _takes(route: Route, found: Iterable[RouteConflict], membership: Membership) -> bool:
    """Return whether a route into the overlay has precedence over the routes to a prefix of the underlay."""
    destination = route.destination
    return (
        route.kind == "unicast"
        and (route.link != membership.underlay or route.protocol in PROTOCOLS)
        and is_within(route, membership)
        and any(is_part(destination, one.other.prefix) for one in found)
    )


def _leftovers(seen: Observed) -> Iterator[Finding]:
    """Yield objects of an original flannel; its rules only if no pyflannel daemon took them over."""
    left = list(left_by_original(seen.items, seen.membership))
    if seen.claimed is None and not seen.status.is_live and not _has_another_daemon(seen.items):
        rules = (item for item in seen.items if isinstance(item, IptablesChain | NftTable))
        left += [item for item in rules if item.device == FIRST_DEVICE]
    sure = [one for one in seen.left_rules if one.is_sure]
    shown = [*(_shown(item) for item in left), *(line for one in sure for line in one.shown)]
    if shown and seen.original is not None:
        yield Finding(
            code="original-runs",
            severity="warning",
            cause=f"an original flanneld runs on this host (pid {seen.original}) with these objects",
            evidence=_some(shown),
            fix=f"kill {seen.original}  # to replace it; then run flannelctl doctor again",
        )
    elif shown:
        commands = [command for item in left if (command := _removal(item))]
        commands += [command for one in sure for command in one.commands]
        is_ours_here = seen.claimed is not None or seen.status.is_live
        yield Finding(
            code="left-by-original",
            severity="warning",
            cause="another flannel left these objects, and they may redirect or change packets",
            evidence=_some(shown),
            fix="; ".join(commands[:_NAMED]) if is_ours_here else "flannelctl cleanup",
        )


def _has_another_daemon(items: Iterable[Item]) -> bool:
    """Return whether a pyflannel daemon with another run directory has objects on this host."""
    return any(
        (isinstance(item, Link) and (item.alias == MARK or item.alias.startswith(f"{MARK} ")))
        or (isinstance(item, Route) and item.protocol == route_protocol(FIRST_DEVICE))
        for item in items
    )


def _doubtful_rules(seen: Observed) -> Iterator[Finding]:
    doubtful = [one for one in seen.left_rules if not one.is_sure]
    if doubtful and seen.original is None:
        commands = [command for one in doubtful for command in one.commands]
        yield Finding(
            code="rules-like-original",
            severity="info",
            cause="another flannel may have left these filter rules, or another program uses them",
            evidence=_some([line for one in doubtful for line in one.shown]),
            fix=f"{'; '.join(commands[:_NAMED])}  # if no program uses them",
        )


def _unplanned_routes(seen: Observed) -> Iterator[Finding]:
    routes = list(unplanned_routes(seen.items, seen.membership))
    if routes:
        yield Finding(
            code="unplanned-route",
            severity="warning",
            cause="unplanned routes to parts of the network redirect packets for peers",
            evidence=_some([_shown(route) for route in routes]),
            fix="; ".join(_removal(route) for route in routes[:_NAMED]),
        )


def _reverse_path(seen: Observed) -> Iterator[Finding]:
    """Yield a strict filter that drops tunnel packets of peers to which this host sends by another link."""
    backend = seen.status.backend
    tunnel = backend.link if backend is not None else None
    if tunnel is None or tunnel not in seen.strict:
        return
    elsewhere = [
        item
        for item in seen.items
        if isinstance(item, Route)
        and item.kind == "unicast"
        and item.link != tunnel
        and is_within(item, seen.membership)
    ]
    if elsewhere:
        yield Finding(
            code="strict-reverse-path",
            severity="warning",
            cause=f"packets of these peers from the tunnel are dropped: the route to them is not by {tunnel}",
            evidence=(f"rp_filter of {tunnel} is 1, strict", *_some([_shown(route) for route in elsewhere])),
            fix=f"sysctl -w net/ipv4/conf/all/rp_filter=2 net/ipv4/conf/{tunnel}/rp_filter=2",
        )


def _port_mtus(seen: Observed) -> Iterator[Finding]:
    backend = seen.status.backend
    mtu = backend.mtu if backend is not None else None
    for bridge, ports in seen.ports.items():
        large = {port: size for port, size in ports.items() if mtu is not None and size > mtu}
        if large:
            yield Finding(
                code="container-mtu",
                severity="warning",
                cause=f"containers on {bridge} send packets larger than the MTU of the network, {mtu} bytes",
                evidence=_some([f"{port} has MTU {size}" for port, size in large.items()]),
                fix="mk-docker-opts -c -d /etc/default/docker  # restart Docker with it, recreate containers",
            )


def _warnings(seen: Observed) -> Iterator[Finding]:
    """Yield the warnings of the status that no other finding contains."""
    status = seen.status
    reported = {peer.reason for peer in status.refused_peers}
    if status.network is not None and status.network.trouble is not None:
        reported.add(status.network.trouble.text)
    for text in _some([text for text in status.warnings if text not in reported]):
        yield Finding(code="network-warning", severity="warning", cause=text, fix="flannelctl leases")


def _notes(seen: Observed) -> Iterator[Finding]:
    """Yield the notes of the backend that no other finding contains."""
    backend, network = seen.status.backend, seen.membership.network
    reported = {f"Network {conflict.text}" for conflict in _conflicts(seen)}
    if network is not None:
        items = (
            *unplanned_routes(seen.items, seen.membership),
            *left_by_original(seen.items, seen.membership),
        )
        reported |= {overlap_note(network, item) for item in items if isinstance(item, Route)}
    for note in backend.notes if backend is not None else ():
        if note in reported:
            continue
        if note.startswith("Network "):
            yield Finding(code="network-overlaps-host", severity="warning", cause=note, fix=_APART)
        else:
            yield Finding(code="backend-note", severity="info", cause=note, fix="flannelctl config get")


def _some(texts: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    more = len(texts) - _NAMED
    return (*texts[:_NAMED], f"… and {more} more") if more > 0 else tuple(texts)


def _shown(item: Item) -> str:
    if not isinstance(item, Route):
        return item.title
    gateway = f" via {item.gateway}" if item.gateway is not None else ""
    link = f" dev {item.link}" if item.link else ""
    return f"{item.title}{gateway}{link} proto {item.protocol}"


def _removal(item: Item) -> str:
    """Return the command that removes a link or a route; "" for other items."""
    match item:
        case Link():
            return f"ip link delete {item.name}"
        case Route():
            kind = "" if item.kind in ("unicast", "multipath") else f"{item.kind} "
            metric = f" metric {item.metric}" if item.metric else ""
            return f"ip route delete {kind}{item.destination}{metric} proto {item.protocol}"
        case _:
            return ""
