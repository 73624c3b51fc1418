"""Faults of the links of this host, and of the kernel's tables for them: underlay, tunnel device, bridges."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from shlex import quote

from pyflannel.model.link import Link
from pyflannel.model.network_config import Family
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.families import items_in
from pyflannel.plan.doctor.observed import NAMED, LinkSetter, Observed, resolution, some


def bridge_down(seen: Observed) -> Iterator[Finding]:
    """Yield findings for bridges that are down, or on which IPv6 is off.

    The kernel then removes the IPv6 addresses of the link.
    """
    for name in seen.ports:
        link = seen.interfaces.named(name)
        own, again = seen.membership.subnet, ""
        if link is None or own is None:
            continue
        if seen.family == 6 and not any(held.address.ip in own for held in link.addresses):
            again = f"; ip address add {own[1]}/{own.prefixlen} dev {quote(name)}"
        times, setters = seen.set_down.get(name, 0), seen.link_setters.get(name, ())
        if times or (setters and not link.is_up):
            yield _set_down(name, times, setters, again)
        elif not link.is_up:
            yield Finding(
                code="bridge-down",
                severity="error",
                cause=f"the bridge {name} of the containers of this host is down",
                evidence=(f"ip link show {name}: state DOWN",),
                fix=f"ip link set {quote(name)} up{again}",
            )
        elif seen.family == 6 and not link.has_ipv6:
            yield Finding(
                code="ipv6-off",
                severity="error",
                cause=f"IPv6 is off on the bridge {name} of the containers of this host",
                evidence=(f"net.ipv6.conf.{name}.disable_ipv6 = 1",),
                fix=f"sysctl -w {quote(f'net/ipv6/conf/{name}/disable_ipv6=0')}{again}",
            )


def _set_down(name: str, times: int, setters: Sequence[LinkSetter], again: str) -> Finding:
    """Return the finding that a program sets a bridge down. `again`: the command for its lost address."""
    counted = [f"ip monitor link: {name} was set down {times} times during the examination"]
    stop = " ".join(str(one.pid) for one in setters[:NAMED])
    up = f"ip link set {quote(name)} up{again}"
    return Finding(
        code="bridge-unstable",
        severity="error",
        cause=f"a program sets the bridge {name} of the containers of this host down again and again"
        if times
        else f"the bridge {name} of the containers of this host is down, and a program may set it down again",
        evidence=(
            *(counted if times else [f"ip link show {name}: state DOWN"]),
            *some([f"{one.process}: {one.command}" for one in setters]),
        ),
        fix=f"{up}  # first stop the program that sets it down" + (f": kill {stop}" if stop else ""),
    )


def _arp(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the underlay cannot send to peers on the same link."""
    lost = [
        address
        for address in dict.fromkeys(seen.membership.peers.values())
        if any(address in prefix for prefix in seen.on_link) and address not in seen.set_neighbours
    ]
    link = seen.membership.underlay
    if seen.lacks_arp and lost and link is not None:
        yield Finding(
            code="arp-off",
            severity="error",
            cause=f"{resolution(lost[0])} is off on {link}, so this host reaches no peer on the same link",
            evidence=(
                f"ip link show {link}: NOARP",
                *some([f"{one}: no MAC address" for one in lost]),
            ),
            fix=f"ip link set {quote(link)} arp on",
        )


def _bridge_arp(seen: Observed) -> Iterator[Finding]:
    """Yield the bridges without ARP and neighbour discovery: the host then finds no container, and its
    containers do not find their gateway.
    """
    for bridge in sorted(seen.bridges_without_arp):
        yield Finding(
            code="arp-off",
            severity="error",
            cause=f"ARP and neighbour discovery are off on {bridge}, so this host and its containers do not"
            " reach each other",
            evidence=(f"ip link show {bridge}: NOARP",),
            fix=f"ip link set {quote(bridge)} arp on",
        )


def _unanswered(seen: Observed) -> Iterator[Finding]:
    """Yield the settings by which the host does not answer requests of its peers."""
    link = seen.membership.underlay
    if seen.ignores_arp and link is not None:
        yield Finding(
            code="arp-ignored",
            severity="warning",
            cause=f"this host answers no ARP requests on {link}, so peers on the same link may not find it",
            evidence=(f"arp_ignore of {link} is 8",),
            fix=f"sysctl -w net/ipv4/conf/all/arp_ignore=0 {quote(f'net/ipv4/conf/{link}/arp_ignore=0')}",
        )
    if seen.ignores_echoes:
        setting = _ECHO_IGNORED[seen.family]
        yield Finding(
            code="echo-ignored",
            severity="warning",
            cause="this host answers no ICMP echo requests, so peers report it as unreachable, even if"
            " packets of containers arrive",
            evidence=(f"{setting} = 1",),
            fix=f"sysctl -w {setting}=0",
        )


_ECHO_IGNORED: Mapping[Family, str] = {
    4: "net.ipv4.icmp_echo_ignore_all",
    6: "net.ipv6.icmp.echo_ignore_all",
}


def _shaped(seen: Observed) -> Iterator[Finding]:
    """Yield the links of the overlay with a queueing discipline of an operator that dropped packets. It may
    limit the rate as intended, but a blackhole drops all packets.
    """
    underlay = {seen.membership.underlay, *seen.underlay_ports}
    on_the_way = underlay | _links_of_overlay(seen)
    found = [one for one in seen.disciplines if one.drops and one.kind not in _USUAL_DISCIPLINES]
    for code, links in (("underlay-shaped", underlay), ("link-shaped", on_the_way - underlay)):
        dropping = [one for one in found if one.link in links]
        names = [*dict.fromkeys(one.link for one in dropping)][:NAMED]
        if names:
            yield Finding(
                code=code,
                severity="warning" if any(one.kind == "blackhole" for one in dropping) else "info",
                cause=f"traffic control at {' and '.join(names)} drops packets, for example because it limits"
                " the rate",
                evidence=some(
                    [
                        f"tc -statistics qdisc show dev {one.link}: {one.kind} has dropped {one.drops}"
                        " packets"
                        for one in dropping
                    ]
                ),
                fix="; ".join(f"tc qdisc delete dev {quote(name)} root" for name in names)
                + "  # if no program needs it",
            )


_USUAL_DISCIPLINES = frozenset(
    {"noqueue", "noop", "pfifo_fast", "fq_codel", "fq", "mq", "mqprio", "clsact", "ingress"}
)
"""The queueing disciplines that the kernel gives to a link, and those that only contain filters."""


def _tracking(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the kernel cannot track further connections, and drops their packets."""
    count, most = seen.tracked or (0, 1)
    if count >= most * _NEARLY_FULL:
        yield Finding(
            code="conntrack-full",
            severity="error" if count >= most else "warning",
            cause=f"the table of connections is {'full' if count >= most else 'nearly full'}, and the kernel"
            " drops the packets of new connections while it is full",
            evidence=(f"nf_conntrack_count = {count}, nf_conntrack_max = {most}",),
            fix=f"sysctl -w net.netfilter.nf_conntrack_max={max(2 * most, _USUAL_CONNECTIONS)}"
            "  # 'conntrack -L' shows the connections",
        )


_NEARLY_FULL = 0.9

_USUAL_CONNECTIONS = 262_144
"""The default of nf_conntrack_max on hosts with more than 4 GiB of memory."""


def _early_programs(seen: Observed) -> Iterator[Finding]:
    """Yield the links of the overlay with an XDP program, which sees packets before all other parts of the
    kernel.
    """
    found = sorted(seen.xdp_links & _links_of_overlay(seen))
    if found:
        yield Finding(
            code="xdp-program",
            severity="info",
            cause="XDP programs may drop packets before the kernel counts them",
            evidence=some([f"ip link show dev {link}: an XDP program is attached" for link in found]),
            fix=f"ip link set dev {quote(found[0])} xdp off  # if no program needs it",
        )


def _passthru(seen: Observed) -> Iterator[Finding]:
    """Yield the links that take all frames of a link of the overlay. Packets of the host then arrive by
    another interface, and the replies to its ARP requests have no effect.
    """
    taken = _links_of_overlay(seen) | set(seen.underlay_ports)
    found = {name: link for name, link in seen.passthru_links.items() if link in taken}
    if found:
        yield Finding(
            code="frames-taken",
            severity="error",
            cause=f"{' and '.join(list(found)[:NAMED])} takes all frames that arrive at"
            f" {' and '.join(dict.fromkeys(found.values()))}, so packets arrive by the wrong interface, and"
            " ARP finds no neighbour",
            evidence=some(
                [f"ip -details link show {name}: above {link}, mode passthru" for name, link in found.items()]
            ),
            fix="; ".join(f"ip link delete {quote(name)}" for name in list(found)[:NAMED]),
        )


def _links_of_overlay(seen: Observed) -> set[str]:
    """Return the links that packets of the overlay pass: underlay, tunnel device, bridges and their ports."""
    backend = seen.status.backend
    links = {seen.membership.underlay, backend.link if backend is not None else None, *seen.ports}
    return {one for one in links if one} | {port for ports in seen.ports.values() for port in ports}


def _taken(seen: Observed) -> Iterator[Finding]:
    """Yield the filters of traffic control that drop or redirect packets at links of the overlay."""
    on_the_way = _links_of_overlay(seen)
    found = [one for one in seen.taking_filters if one.link in on_the_way]
    if found:
        lines = [
            f"tc filter show dev {one.link} {one.direction}: pref {one.priority} {one.text},"
            f" {one.packets} packets"
            for one in found
        ]
        commands = dict.fromkeys(
            f"tc filter delete dev {quote(one.link)} {one.direction} pref {one.priority}" for one in found
        )
        yield Finding(
            code="filter-takes",
            severity="warning",
            cause="filters of traffic control drop or redirect packets, perhaps those of the overlay",
            evidence=some(lines),
            fix="; ".join([*commands][:NAMED]),
        )


def _vtep(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that peers send to a MAC address which the vxlan device does not have.

    A running flanneld restores the address within a second.
    """
    if seen.status.is_live or seen.published_mac is None:
        return
    items = items_in(seen.items, seen.family, is_first=seen.is_first)
    devices = [item for item in items if isinstance(item, Link) and item.vxlan is not None]
    own = [item for item in devices if item.alias == seen.mark]
    if len(own) == 1 and own[0].mac != seen.published_mac:
        yield Finding(
            code="vtep-mac",
            severity="error",
            cause=f"{own[0].name} drops the packets of peers, because its MAC address differs from the"
            " published address",
            evidence=(f"{own[0].name} has {own[0].mac}, the lease contains {seen.published_mac}",),
            fix=f"ip link set {quote(own[0].name)} address {seen.published_mac}",
        )


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    _arp,
    _bridge_arp,
    _unanswered,
    _shaped,
    _tracking,
    _early_programs,
    _passthru,
    _taken,
    bridge_down,
    _vtep,
)
