"""The packet filter rules of a host: masquerading and forwarding, for iptables or nftables."""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.model.docker import NO_DOCKER, DockerParts
from pyflannel.model.host import Host
from pyflannel.model.item import Item
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import Family, IpNetwork, NetworkConfig, is_part
from pyflannel.model.packet_filter import (
    FORWARD,
    POSTROUTING,
    Accept,
    FilterRule,
    IptablesChain,
    IsolationRule,
    LoopbackRule,
    Mark,
    Masquerade,
    NftChain,
    NftTable,
    PortRule,
    Prefix,
    Return,
    TranslatedRule,
    TunnelRule,
)
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardedPath, GuardedTunnel, GuardMode, GuardPeer, GuardTable

# Masquerading: packets that leave the network get the host's address. Packets inside the network are
# unchanged.
#
# Source: flannel 0.28.9, its iptables rules and their order. The nftables rules of the original differ,
# because they do not masquerade packets from the host to containers of other hosts. pyflannel has one set of
# rules for both engines.

MASQUERADED = Mark(0x4000, 0x4000)
"""Mark that kube-proxy sets on packets that it masquerades itself. A second masquerading would lose the
port."""

_MULTICAST_IPV4 = IPv4Network("224.0.0.0/4")
_MULTICAST_IPV6 = IPv6Network("ff00::/8")


def masquerade_rules(
    network: IPv4Network | IPv6Network, subnet: IPv4Network | IPv6Network, *, is_fully_random: bool
) -> tuple[FilterRule, ...]:
    """Return the masquerading rules of a host with `subnet`, in their order."""
    inside, outside = Prefix(network), Prefix(network, is_negated=True)
    own = Prefix(subnet)
    unicast = Prefix(_MULTICAST_IPV4 if network.version == 4 else _MULTICAST_IPV6, is_negated=True)
    masquerade = Masquerade(is_fully_random)
    return (
        FilterRule(mark=MASQUERADED, verdict=Return()),
        FilterRule(source=own, destination=inside, verdict=Return()),
        FilterRule(source=inside, destination=own, verdict=Return()),
        # Packets from clients outside the overlay reach containers of this host with their real source
        # address.
        FilterRule(source=outside, destination=own, verdict=Return()),
        FilterRule(source=inside, destination=unicast, verdict=masquerade),
        # Packets of the host itself are masqueraded, because a peer could not send an answer to an address of
        # the underlay through the overlay.
        FilterRule(source=outside, destination=inside, verdict=masquerade),
    )


# Forwarding: packets from and to the network are accepted, regardless of the policy of the chain.
#
# As in the original, the rules contain no interface. With host-gw, and for clients behind a router, the
# packets arrive at the underlay interface.


def forward_rules(network: IPv4Network | IPv6Network) -> tuple[FilterRule, ...]:
    """Return the forwarding rules, in their order (flannel 0.28.9)."""
    return (
        FilterRule(source=Prefix(network), verdict=Accept()),
        FilterRule(destination=Prefix(network), verdict=Accept()),
    )


_SRCNAT = 100
"""Priority of source NAT (linux/netfilter_ipv4.h, NF_IP_PRI_NAT_SRC); the priority of the filter is 0."""


class FilterOptions(Struct, frozen=True, kw_only=True):
    """The operator's options for this host's packet filter.

    Attributes:
        is_fully_random: True for random ports of masqueraded packets, if the host supports them.
        opens_ports: True to accept tunnel packets in INPUT.
        guard: mode of the tunnel guard, which selects the tunnel packets that are accepted.
        users: local users that may send tunnel packets in addition to root.
    """

    masquerades: bool = False
    is_fully_random: bool = True
    accepts_forwarded: bool = False
    opens_ports: bool = False
    guard: GuardMode = "off"
    users: tuple[int, ...] = ()


class _FamilyRules(Struct, frozen=True, kw_only=True):
    """The rules of one family; empty if no option requests them."""

    family: Family
    masquerade: tuple[FilterRule, ...]
    forward: tuple[FilterRule, ...]
    docker: tuple[NftChain, ...] = ()


def plan_filter(
    config: NetworkConfig, host: Host, options: FilterOptions, docker: DockerParts = NO_DOCKER
) -> State:
    """Return the rules of the host's family, as items of the engine that the config selects.

    The rules for networks of Docker are in nftables, even if the other rules are in iptables. Ports are
    published for IPv4 only.
    """
    network = config.range_of(host.family)
    if network is None:
        return State.EMPTY
    published = tuple(_isolation(network, host, docker))
    if host.family == 4:
        published += tuple(_docker_chains(config.network, host, options, docker))
    items = _nftables if config.enable_nftables else _iptables
    return State.collect(items(_rules(host.family, network, host.subnet, options, published), host.device))


_RAW = -300
_DSTNAT = -100
_BEFORE_SRCNAT = _SRCNAT - 1


def _isolation(network: IPv4Network | IPv6Network, host: Host, docker: DockerParts) -> Iterator[NftChain]:
    """Yield the chain that isolates this flannel network from other flannel networks of the host, if there
    are any.

    This chain precedes the translation of destinations, so that a published port is reachable from each
    network.
    """
    bridges = [each.bridge for each in docker.networks if is_part(each.subnet, host.lease.subnet)]
    others = [one for one in docker.others if one.version == network.version and not _overlap(one, network)]
    rules = tuple(IsolationRule(origin, other) for other in others for origin in (network, *bridges))
    if rules:
        yield NftChain(name="isolation", kind="filter", hook="prerouting", priority=_RAW, rules=rules)


def _overlap(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return int(one[0]) <= int(other[-1]) and int(other[0]) <= int(one[-1])


def _docker_chains(
    network: IPv4Network | None, host: Host, options: FilterOptions, docker: DockerParts
) -> Iterator[NftChain]:
    """Yield the chains of published ports, and of packets that leave the network from containers of Docker.

    Docker creates rules of masquerading only for its own bridges, and networks of the plugin have bridges of
    pyflannel. With `--ip-masq`, other rules already masquerade the whole network.
    """
    own = [each for each in docker.networks if is_part(each.subnet, host.lease.subnet)]
    ports = tuple(PortRule(port) for port in docker.ports if any(port.address in each.subnet for each in own))
    if own:
        loopback = LoopbackRule(is_source=False), LoopbackRule(is_source=True)
        yield NftChain(name="loopback", kind="filter", hook="prerouting", priority=_RAW, rules=loopback)
    if ports:
        yield NftChain(name="published", kind="nat", hook="prerouting", priority=_DSTNAT, rules=ports)
        yield NftChain(name="published_own", kind="nat", hook="output", priority=_DSTNAT, rules=ports)
    rules: list[FilterRule | TranslatedRule] = []
    for each in own:
        if ports:
            rules.append(TranslatedRule(each.subnet, each.subnet))
            rules.append(TranslatedRule(_LOOPBACK, each.subnet))
    if network is not None and not options.masquerades:
        outside = Prefix(network, is_negated=True)
        masquerade = Masquerade(options.is_fully_random)
        for each in own:
            if not each.is_internal:
                source = Prefix(each.subnet)
                rules.append(FilterRule(source=source, destination=Prefix(_MULTICAST_IPV4), verdict=Return()))
                rules.append(FilterRule(source=source, destination=outside, verdict=masquerade))
    if rules:
        yield NftChain(
            name="docker", kind="nat", hook="postrouting", priority=_BEFORE_SRCNAT, rules=tuple(rules)
        )


_LOOPBACK = IPv4Network("127.0.0.0/8")


def _rules(
    family: Family,
    network: IPv4Network | IPv6Network,
    subnet: IPv4Network | IPv6Network,
    options: FilterOptions,
    docker: tuple[NftChain, ...],
) -> _FamilyRules:
    masquerade = masquerade_rules(network, subnet, is_fully_random=options.is_fully_random)
    return _FamilyRules(
        family=family,
        masquerade=masquerade if options.masquerades else (),
        forward=forward_rules(network) if options.accepts_forwarded else (),
        docker=docker,
    )


def _iptables(rules: _FamilyRules, device: str) -> Iterator[Item]:
    if rules.masquerade:
        yield IptablesChain(family=rules.family, hook="POSTROUTING", device=device, rules=rules.masquerade)
    if rules.forward:
        yield IptablesChain(family=rules.family, hook="FORWARD", device=device, rules=rules.forward)
    if rules.docker:
        yield NftTable(family=rules.family, device=device, chains=rules.docker)


def _nftables(rules: _FamilyRules, device: str) -> Iterator[Item]:
    forward = NftChain(name=FORWARD, kind="filter", hook="forward", priority=0, rules=rules.forward)
    masquerade = NftChain(
        name=POSTROUTING, kind="nat", hook="postrouting", priority=_SRCNAT, rules=rules.masquerade
    )
    chains = (*(chain for chain in (forward, masquerade) if chain.rules), *rules.docker)
    if chains:
        yield NftTable(family=rules.family, device=device, chains=chains)
    if rules.forward:
        # An accept rule in pyflannel's table does not override a drop rule in another table. If Docker has
        # set the policy of iptables' FORWARD to DROP, the packet must be accepted in that chain.
        yield IptablesChain(
            family=rules.family, hook="FORWARD", device=device, rules=rules.forward, is_for_dropping=True
        )


# Open ports: INPUT accepts the tunnel packets of this host. The tunnel guard has already dropped tunnel
# packets of senders without a lease.
#
# iptables has the rules with both engines, because an accept rule in pyflannel's table of nftables does not
# override a drop rule in another table.


def plan_open_ports(ports: Iterable[int], config: NetworkConfig, host: Host, options: FilterOptions) -> State:
    """Return the chain that accepts packets to the ports of the tunnels, in the host's family."""
    if not options.opens_ports:
        return State.EMPTY
    rules = tuple(TunnelRule(host.address, port) for port in sorted({*ports}))
    if not rules:
        return State.EMPTY
    return State.of(
        IptablesChain(
            family=host.family,
            hook="INPUT",
            device=host.device,
            rules=rules,
            is_for_dropping=config.enable_nftables,
        )
    )


# The tunnel guard: it accepts tunnel packets to this host or to a peer only from allowed senders. The same is
# true for inner packets.

_ANYBODY: Mapping[Family, IpNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


def plan_guard(path: GuardedPath | None, config: NetworkConfig, host: Host, options: FilterOptions) -> State:
    """Return the table of the guard in the host's family, without its peers."""
    if path is None or options.guard == "off":
        return State.EMPTY
    if options.guard != "strict":
        path = replace(path, refuses_clear=False)
    return State.of(
        GuardTable(
            device=host.device,
            family=host.family,
            underlay=host.underlay.link,
            address=host.address,
            source_length=host.subnet.prefixlen if options.guard == "strict" else 0,
            network=config.range_of(host.family),
            subnet=host.subnet,
            path=path,
            users=options.users,
        )
    )


def plan_guard_peer(
    path: GuardedPath | None, peer: Lease, host: Host, mode: GuardMode
) -> tuple[GuardPeer, ...]:
    """Return the guard's entry for a peer in the host's family; None if there is no tunnel."""
    if path is None or path.tunnel is None or mode == "off":
        return ()
    part = peer.part(host.family)
    if part is None:
        return ()
    port, *others = dict.fromkeys(port for tunnel in path.tunnels for port in _tunnel_ports(peer, tunnel))
    return (
        GuardPeer(
            device=host.device,
            subnet=part.subnet,
            address=part.address,
            port=port,
            other_ports=tuple(others),
            sources=part.subnet if mode == "strict" else _ANYBODY[host.family],
        ),
    )


def _tunnel_ports(peer: Lease, tunnel: GuardedTunnel) -> Iterator[int]:
    """Yield the ports on which a peer receives packets of a tunnel. Only udp publishes a port."""
    ports = (
        [one.attributes.port for one in peer.variants if one.attributes.port] if tunnel.vni is None else []
    )
    yield from ports or [tunnel.port]
