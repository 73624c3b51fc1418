"""Findings from probes: unreachable peers, and small path MTUs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from shlex import quote
from types import MappingProxyType

from msgspec.structs import replace

from pyflannel.model.lease import LeaseEntry, host_text
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.probe import NarrowPath, PeerReach
from pyflannel.model.status import Finding, Severity, Status
from pyflannel.plan.doctor.host_routes import Detour, with_detours
from pyflannel.plan.doctor.ipsec import CODES as OF_IPSEC
from pyflannel.plan.doctor.ipsec import of_tunnel
from pyflannel.plan.doctor.observed import BadNeighbour, resolution, some

_BESIDE_THE_PATH = frozenset(
    {
        "certificate-invalid",
        "container-neighbour",
        "container-setting",
        "daemon-away",
        "files-exhausted",
        "forwarding-off",
        "fragments-dropped",
        "port-closed",
        "port-mtu",
        "port-not-learning",
        "store-away",
    }
)
"""Codes of findings that are errors, but do not stop packets of this host itself to known peers. These
findings do not explain that probes get no answer."""

_BEHIND_THE_UNDERLAY = frozenset(
    {
        "bridge-down",
        "bridge-unstable",
        "docker-drops",
        "forward-dropped",
        "ipv6-off",
        "overlay-address",
        "vtep-mac",
    }
)
"""Codes of findings that are errors about packets of the overlay, and do not explain that a peer is silent on
the underlay."""


_ON_THE_UNDERLAY = frozenset({"neighbour-set", "no-neighbour"})
"""Codes of findings that are errors about the underlay, and do not explain that a peer which answers on the
underlay is silent through the tunnel."""


def obstacle(found: Iterable[Finding], *, on_underlay: bool) -> Finding | None:
    """Return the first finding that explains lost packets, or packets that are lost on the underlay."""
    for one in found:
        if one.code == "probe-dropped":
            return one
        if one.severity != "error" or one.code in _BESIDE_THE_PATH:
            continue
        is_behind = one.code in _BEHIND_THE_UNDERLAY or (one.code in OF_IPSEC and not of_tunnel(one))
        if not (is_behind if on_underlay else one.code in _ON_THE_UNDERLAY):
            return one
    return None


MTU_FIX = "ip link set DEVICE mtu N  # on all hosts, the largest MTU that the underlay carries"


def fix_of_tunnel(status: Status) -> str:
    """Return the command for a tunnel that carries packets in one direction at most."""
    return f"flannelctl doctor  # on that host too; let every firewall pass {carrier_of(status)} both ways"


def carrier_of(status: Status) -> str:
    """Return the text of the packets that carry the overlay, for example `UDP port 8472`."""
    port = status.backend.port if status.backend is not None else None
    return "the overlay" if port is None else f"UDP port {port}"


def host_name(peer: LeaseEntry | PeerReach) -> str:
    """Return the name of a peer in texts: its host name, or its public address."""
    return host_text(peer.public_ip, peer.host_name)


def with_peers(
    found: Sequence[Finding],
    reach: Sequence[PeerReach],
    status: Status,
    neighbours: Mapping[IpAddress, BadNeighbour] = MappingProxyType({}),
    of_store: BadNeighbour | None = None,
    detours: Mapping[IpAddress, Detour] = MappingProxyType({}),
    more: Sequence[Finding] = (),
) -> tuple[Finding, ...]:
    """Return the findings about this host, including findings about peers that do not answer.

    If a fault of this host explains that peers are silent, this is a consequence, and not a separate finding.
    The same applies to a store that does not respond. An XDP program is a warning if packets to peers are
    lost.

    Args:
        found: the findings about this host.
        reach: the results of the probes.
        status: the status of this host.
        neighbours: neighbour entries after the probes that may stop packets, by the public address of the
            peer.
        of_store: the neighbour entry that may stop packets to the store.
        detours: routes and rules that stop or divert packets of this host, by the public address of the peer.
        more: further findings about packets to peers.
    """
    if of_store is not None:
        found = [_before_the_store(of_store, one) if one.code == "store-away" else one for one in found]
    of_peers = [*reach_findings(reach, status, neighbours, detours), *more]
    is_lossy = any(one.severity != "info" for one in of_peers)
    kept = [
        replace(one, severity="warning") if one.code == "xdp-program" and is_lossy else one for one in found
    ]
    consequences = dict[Finding, list[str]]()
    for one in of_peers:
        on_underlay = one.code not in _BEYOND_THE_UNDERLAY
        cause = None if one.severity == "info" else obstacle(found, on_underlay=on_underlay)
        if cause is None:
            kept.append(one)
        else:
            consequences.setdefault(cause, []).append(f"consequence: {one.cause}")
    ranks = {"error": 0, "warning": 1, "info": 2}
    whole = (replace(one, evidence=(*one.evidence, *consequences.get(one, ()))) for one in kept)
    return tuple(sorted(whole, key=lambda one: ranks[one.severity]))


_BEYOND_THE_UNDERLAY = frozenset({"overlay-filtered", "path-mtu", "tunnel-blocked"})
"""Codes of the findings about peers that answer on the underlay."""


def is_cut_off(reach: Sequence[PeerReach], status: Status) -> bool:
    """Return whether neither the store nor any probed peer answers on the underlay."""
    return (
        status.store is not None
        and not status.store.is_connected
        and bool(reach)
        and all(not one.is_reached and one.underlay.state != "reached" for one in reach)
    )


def reach_findings(
    reach: Sequence[PeerReach],
    status: Status,
    neighbours: Mapping[IpAddress, BadNeighbour],
    detours: Mapping[IpAddress, Detour] = MappingProxyType({}),
) -> Iterator[Finding]:
    """Yield the findings about peers that do not answer: errors if packets of containers are lost."""
    silent = [one for one in reach if not one.is_reached and one.underlay.state != "reached"]
    deaf = [one for one in silent if one.public_ip in neighbours]
    away = [one for one in silent if one.public_ip not in neighbours and one.underlay.state != "unsent"]
    unsent = [one for one in silent if one.public_ip not in neighbours and one not in away]
    blocked = [one for one in reach if not one.is_reached and one.underlay.state == "reached"]
    if blocked:
        yield Finding(
            code="tunnel-blocked",
            severity="error",
            cause=f"{_many(blocked, reach)} on the underlay, but not through the tunnel:"
            f" {carrier_of(status)} is blocked in one direction, or flannel does not run on that host",
            evidence=_listed(blocked),
            fix=fix_of_tunnel(status),
        )
    if deaf:
        yield from _neighbour_findings(
            {one.public_ip: neighbours[one.public_ip] for one in deaf},
            len(reach),
            "error" if len(silent) == len(reach) else "warning",
            detours,
        )
    for reason in dict.fromkeys(one.underlay.text for one in unsent):
        some_peers = [one for one in unsent if one.underlay.text == reason]
        refused = Finding(
            code="underlay-unsent",
            severity="error" if len(silent) == len(reach) else "warning",
            cause=f"this host cannot send to the public addresses of {len(some_peers)} of {len(reach)} probed"
            f" peers: {reason or 'the kernel refuses'}",
            evidence=_listed(some_peers),
            fix=f"ip -{some_peers[0].public_ip.version} route show match {some_peers[0].public_ip}"
            "  # delete a route that refuses, or add the missing route, for example the default route;"
            " ip rule shows rules that refuse",
        )
        yield with_detours(refused, (one.public_ip for one in some_peers), detours)
    if away:
        unanswered = Finding(
            code="peers-silent",
            severity="error" if len(silent) == len(reach) and not deaf else "warning",
            cause=f"{len(away)} of {len(reach)} probed peers answer neither on the underlay nor through the"
            " tunnel",
            evidence=_listed(away),
            fix=_remedy_of_silence(away[0], is_alone=len(silent) < len(reach)),
        )
        yield with_detours(unanswered, (one.public_ip for one in away), detours)
    yield from _small(reach, status)


def _remedy_of_silence(peer: PeerReach, *, is_alone: bool) -> str:
    """Return the command that shows why a peer is silent. `is_alone`: True if other peers answer, so that the
    packets of this host pass its own link.
    """
    address, ping = peer.public_ip, f"flannelctl ping {peer.public_ip}"
    lease = "If it no longer exists, delete its lease"
    if not is_alone:
        return (
            f"{ping}  # if only its containers answer, that host ignores ICMP echo requests."
            f" {lease}; if it runs, see the cable, the port of the switch and the VLAN of this host"
        )
    return (
        f"flannelctl peers --matrix  # if other hosts reach {host_name(peer)}, the underlay between this host"
        f" and {address} drops all packets: port isolation or VLAN of the switch, ACL of a router."
        f" {lease}. If '{ping}' reaches only containers, it ignores ICMP echo requests"
    )


def _neighbour_findings(
    neighbours: Mapping[IpAddress, BadNeighbour],
    probed: int,
    severity: Severity,
    detours: Mapping[IpAddress, Detour],
) -> Iterator[Finding]:
    """Yield a finding for each group of silent peers behind neighbour entries of one kind.

    `neighbours`: the entries, by the public address of the peer. `probed`: number of probed peers. `detours`:
    the routes and rules that divert packets, by the public address of the peer.
    """
    groups: dict[tuple[bool, IpAddress | None], list[BadNeighbour]] = {}
    for peer, one in neighbours.items():
        gateway = None if one.address == peer else one.address
        groups.setdefault((one.is_set, gateway), []).append(one)
    silent = [gateway for is_set, gateway in groups if not is_set]
    if None in silent and len(silent) > 1 and detours.keys().isdisjoint(neighbours):
        # The gateway and hosts on the same link do not answer, so this host is cut off.
        lost = [one for (is_set, _), group in groups.items() if not is_set for one in group]
        link, protocol = lost[0].link, resolution(lost[0].address)
        yield Finding(
            code="no-neighbour",
            severity=severity,
            cause=f"neither the gateway nor {len(groups[False, None])} of {probed} probed peers on the same"
            f" link answer {protocol}: {link} is cut off, or {protocol} does not pass",
            evidence=some([*dict.fromkeys(one.text for one in lost)]),
            fix=f"ip -statistics link show {quote(link)}"
            "  # then the cable, the port of the switch and its VLAN",
        )
        groups = {kind: group for kind, group in groups.items() if kind[0]}
    for (_, gateway), group in groups.items():
        some_peers = f"{len(group)} of {probed} probed peers"
        evidence = some([*dict.fromkeys(one.text for one in group)])
        role = "" if gateway is None else f"the gateway to {some_peers}"
        found = _neighbour_finding(group[0], severity, evidence, peers=some_peers, role=role)
        yield with_detours(found, (peer for peer, one in neighbours.items() if one in group), detours)


def _neighbour_finding(
    entry: BadNeighbour, severity: Severity, evidence: tuple[str, ...], *, peers: str = "", role: str
) -> Finding:
    """Return the finding about a neighbour entry.

    Args:
        entry: the entry.
        severity: the severity of the finding.
        evidence: the evidence.
        peers: the peers whose own entries are like this one, in words.
        role: the use of the neighbour, if it is not a peer itself, for example `the gateway to 2 peers`.
    """
    protocol = resolution(entry.address)
    if entry.is_set:
        cause = f"{peers} do not answer, and their MAC addresses were set manually"
        cause = f"the MAC address of {entry.address}, {role}, was set manually" if role else cause
        fix = (
            f"ip neighbour delete {entry.address} dev {quote(entry.link)}"
            f"  # the kernel then asks for it by {protocol}"
        )
    else:
        lacks = f"not answer {protocol}"
        cause = f"{peers} are on the same link and do {lacks}: they are off or have another"
        cause = f"{entry.address}, {role}, does {lacks}: it is off or has another" if role else cause
        cause += f" address, two hosts have the same MAC address, or {protocol} does not pass"
        fix = (
            f"ip neighbour show {entry.address}  # on that host: ip link (NOARP), ip address; on both:"
            f" nft list {'tables arp' if entry.address.version == 4 else 'ruleset ip6'}; then the VLAN of"
            " both, and isolated ports of the switch"
        )
    code = "neighbour-set" if entry.is_set else "no-neighbour"
    return Finding(code=code, severity=severity, cause=cause, evidence=evidence, fix=fix)


def _before_the_store(entry: BadNeighbour, away: Finding) -> Finding:
    """Return the finding about the neighbour entry because of which the store does not respond."""
    evidence = (entry.text, f"consequence: {away.cause}", *away.evidence)
    return _neighbour_finding(entry, "error", evidence, role="on the path to the store")


def _small(reach: Sequence[PeerReach], status: Status) -> Iterator[Finding]:
    """Yield findings for paths that carry only smaller packets than planned: an error if the route does not
    have the MTU of the path.
    """
    wanted, on_routes = status.backend.mtu if status.backend is not None else None, mtus_on_routes(status)
    small = [
        one
        for one in reach
        if one.path_mtu is not None
        and wanted
        and one.path_mtu < min(wanted, on_routes.get(one.subnet, wanted))
    ]
    if small:
        yield Finding(
            code="path-mtu",
            severity="error",
            cause=f"packets of {wanted} bytes, the MTU of the network, do not arrive at"
            f" {len(small)} of {len(reach)} probed peers; smaller packets arrive",
            evidence=_listed(small),
            fix=f"flannelctl ping {small[0].public_ip}  # shows the size of the largest packet that "
            f"arrives; {MTU_FIX}",
        )
    known = {one.subnet for one in small}
    lost = [
        one for one in status.path_mtus if not one.is_routed and (one.ipv6_subnet or one.subnet) not in known
    ]
    if lost:
        yield Finding(
            code="path-mtu",
            severity="error",
            cause=f"packets of the planned size do not arrive at {len(lost)} peers, and no route can have the"
            " MTU of these paths: it is below the minimum of the kernel, or below the 1280 bytes of IPv6",
            evidence=_paths(lost),
            fix=MTU_FIX,
        )
    routed = [one for one in status.path_mtus if one.is_routed and one.subnet not in known]
    if routed:
        yield Finding(
            code="path-mtu",
            severity="info",
            cause=f"the paths to {len(routed)} peers carry only smaller packets than planned, and the routes"
            " to them have the MTU of the path",
            evidence=_paths(routed),
            fix=f"{MTU_FIX}; only needed to avoid fragments",
        )


def mtus_on_routes(status: Status) -> dict[IpNetwork, int]:
    """Return the MTUs of paths that the routes of the first family have, by the subnet of the peer."""
    return {
        one.subnet: one.measured
        for one in status.path_mtus
        if one.is_routed and one.ipv6_subnet in (None, one.subnet)
    }


def _paths(paths: Sequence[NarrowPath]) -> tuple[str, ...]:
    return some(
        [f"{one.ipv6_subnet or one.subnet}: {one.measured} of {one.planned} bytes arrive" for one in paths]
    )


def _many(few: Sequence[PeerReach], reach: Sequence[PeerReach]) -> str:
    return f"{len(few)} of {len(reach)} probed peers answer{'s' if len(few) == 1 else ''}"


def _listed(peers: Sequence[PeerReach]) -> tuple[str, ...]:
    return some([f"{one.subnet} at {host_name(one)}: {_reason(one)}" for one in peers])


def _reason(one: PeerReach) -> str:
    if one.is_reached:
        return f"{one.path_mtu} bytes arrive"
    return one.decisive.text or one.decisive.state
