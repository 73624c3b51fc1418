"""Faults of the links of this host, and of the kernel's tables for them: underlay, tunnel device, bridges."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from shlex import quote

from pyflannel.model.host import Interface
from pyflannel.model.link import Link
from pyflannel.model.network_config import Family, IpAddress
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.families import items_in
from pyflannel.plan.doctor.observed import DOCKER_FIX, NAMED, LinkSetter, Observed, resolution, some

_DOCKER0 = "docker0"


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


def _bridge_subnet(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the containers of Docker have addresses outside this host's subnet."""
    own, docker0 = seen.membership.subnet, seen.interfaces.named(_DOCKER0)
    if own is None or docker0 is None or seen.ports or not seen.docker0_ports:
        return
    held = ", ".join(
        str(one.address)
        for one in docker0.addresses
        if one.address.version == own.version and not one.address.is_link_local
    )
    if not held and not seen.is_first:
        return  # Docker may use IPv4 alone
    yield Finding(
        code="bridge-subnet",
        severity="warning",
        cause=f"the containers at {_DOCKER0} have no address of the subnet of this host, {own}",
        evidence=(f"{_DOCKER0} has {held or 'no address'}, and {seen.docker0_ports} containers",),
        fix=DOCKER_FIX,
    )


def _addresses(seen: Observed) -> Iterator[Finding]:
    """Yield findings for interfaces with addresses of other hosts' subnets, because this host then
    receives the packets for them.
    """
    membership, status = seen.membership, seen.status
    network, own = membership.network, membership.subnet
    tunnel = status.backend.link if status.backend is not None else None
    if network is None or own is None:
        return
    held = [
        (one.name, address)
        for one in seen.interfaces.interfaces
        if one.name not in (tunnel, membership.underlay) and not one.name.startswith("flannel")
        for address in (held.address for held in one.addresses)
        if address.ip in network and address.ip not in own
    ]
    if held:
        yield Finding(
            code="overlay-address",
            severity="error",
            cause="this host has addresses of subnets of other hosts, so it receives the packets for "
            "these addresses itself",
            evidence=some([f"{address} on {name}" for name, address in held]),
            fix=DOCKER_FIX
            if held[0][0] == _DOCKER0
            else "; ".join(
                f"ip address delete {address} dev {quote(name)}" for name, address in held[:NAMED]
            ),
        )


def addresses_of_peers(seen: Observed) -> dict[IpAddress, tuple[str, str]]:
    """Return the public addresses of peers that an interface of this host has, with the name of the interface
    and the address with its prefix length.

    An address that this host publishes itself is not included: two hosts then share it by their leases.
    """
    underlay = seen.status.underlay
    own = () if underlay is None else (underlay.address, underlay.public_ip)
    peers = {address for address in seen.membership.peers.values() if address not in own}
    return {
        held.address.ip: (one.name, str(held.address))
        for one in seen.interfaces.interfaces
        for held in one.addresses
        if held.address.ip in peers
    }


def _peer_addresses(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that this host has addresses of peers on the underlay: it delivers the packets for
    them to itself, and drops packets that have one of its own addresses as source.
    """
    if held := addresses_of_peers(seen):
        refused = [one for one in seen.status.refused_peers if one.public_ip in held]
        yield Finding(
            code="peer-address",
            severity="error",
            cause="this host has addresses of other hosts, so it exchanges no packets with these hosts, and"
            " takes packets that are for them",
            evidence=some(
                [
                    *(f"{name} has {address}, the address of a peer" for name, address in held.values()),
                    *(f"consequence: {one.subnet} at {one.host_text} is refused" for one in refused),
                ]
            ),
            fix="; ".join(
                f"ip address delete {address} dev {quote(name)}" for name, address in [*held.values()][:NAMED]
            ),
        )


def address_taken(link: str, address: IPv4Address, mac: str) -> Finding:
    """Return the finding that another host on the link answers for the address of this host."""
    return Finding(
        code="address-taken",
        severity="error",
        cause=f"another host on the link of {link} also has {address}, so answers to this host go to the"
        " other host",
        evidence=(f"{mac} answers an ARP probe for {address} at {link}",),
        fix=f"ip -br link | grep -i {mac}  # finds the other host, if run on each host; there: ip address"
        f" delete {address} dev DEVICE",
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


_VIRTUALBOX = IPv4Address("10.0.2.15")


def _other_interface(seen: Observed) -> str:
    """Return another interface with an IPv4 address outside the network; `eth1` if there is none."""
    network, underlay = seen.membership.network, seen.membership.underlay
    others = (
        one.name
        for one in seen.interfaces.interfaces
        if not one.is_loopback and one.is_up and one.name != underlay and not one.kind.startswith("bridge")
        for held in one.addresses
        if held.address.version == 4 and not held.address.is_link_local
        if network is None or held.address.ip not in network
    )
    return next(others, "eth1")


_PUBLIC_OPTION: Mapping[Family, str] = {4: "--public-ip", 6: "--public-ipv6"}


def _address_again(seen: Observed, link: Interface, address: IpAddress) -> str:
    """Return the command that gives a link its lost address again. Its prefix length is known if the link
    still reaches a prefix with the address.

    With the last address in a prefix, the kernel also deletes the routes by gateways in this prefix.
    """
    near = [held.address.network for held in link.addresses] + list(link.on_link)
    prefix = max(
        (one for one in near if address in one and one.num_addresses > 1),
        key=lambda one: one.prefixlen,
        default=None,
    )
    interfaces = seen.interfaces
    defaults = interfaces.default_routes if address.version == 4 else interfaces.ipv6_default_routes
    route = (
        ""
        if address.version == 6 or any(one.link == link.name for one in defaults)
        else "; then add the default route, which the kernel deleted with the address"
    )
    if prefix is not None:
        command = f"ip address add {address}/{prefix.prefixlen} dev {quote(link.name)}"
        return f"{command}  #{route.removeprefix(';')}" if route else command
    return (
        f"ip address show dev {quote(link.name)}  # the link needs {address} again: let the network service"
        " of this host configure the link, or add the address with the prefix length from the documentation"
        f" of the network{route}"
    )


def _public_address(seen: Observed) -> Iterator[Finding]:
    """Yield a finding for a public address at which peers cannot reach this host."""
    underlay = seen.status.underlay
    if underlay is None:
        return
    link = seen.interfaces.named(underlay.link)
    if underlay.public_ip == _VIRTUALBOX:
        yield Finding(
            code="nat-address",
            severity="error",
            cause="peers cannot reach 10.0.2.15, the address that VirtualBox gives to every guest",
            evidence=(f"{underlay.link} has {underlay.address}, published as {underlay.public_ip}",),
            fix=f"flanneld --iface={_other_interface(seen)}  # the interface that reaches the other hosts",
        )
    elif link is not None and not link.holds(underlay.address):
        yield Finding(
            code="address-gone",
            severity="error",
            cause=f"{underlay.link} has lost {underlay.address}, the address of the tunnel",
            evidence=(f"ip address show {underlay.link}: no {underlay.address}",),
            fix=_address_again(seen, link, underlay.address),
        )
    elif (
        underlay.public_ip != underlay.address
        and seen.interfaces.holder(underlay.public_ip) is None
        and any(underlay.public_ip in prefix for prefix in seen.on_link)
    ):
        yield Finding(
            code="public-address",
            severity="error",
            cause=f"peers send to {underlay.public_ip}, which no interface of this host has",
            evidence=(f"{underlay.link} has {underlay.address}, published as {underlay.public_ip}",),
            fix=f"flanneld {_PUBLIC_OPTION[seen.family]}={underlay.address}  # the address of"
            f" {underlay.link}; or start flanneld without this option",
        )


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    _arp,
    _bridge_arp,
    _unanswered,
    _shaped,
    _tracking,
    _early_programs,
    _taken,
    bridge_down,
    _bridge_subnet,
    _addresses,
    _peer_addresses,
    _public_address,
    _vtep,
)
