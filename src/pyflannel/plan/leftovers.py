"""Objects of the original flannel on this host, and rules that the original left in the packet filter."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from ipaddress import IPv4Network, IPv6Network, ip_network

from pyflannel.model.item import Item
from pyflannel.model.link import MARK, Link
from pyflannel.model.network_config import is_part
from pyflannel.model.packet_filter import STEMS, IptablesHook, LeftRules, SavedRules
from pyflannel.model.route import PROTOCOL_KERNEL, PROTOCOLS, Route, usual_metric
from pyflannel.model.state import State
from pyflannel.model.status import Membership

# Filter rules that an original flannel left, recognized by the exact text of its releases.
#
#     before 0.6      nat: a chain FLANNEL, and a jump there
#     0.6, and later  nat POSTROUTING: `-s N -d N -j RETURN` and two or three more, without a mark; later also
#                     `-s N -j ACCEPT` and `-d N -j ACCEPT` in filter FORWARD
#     then            the same, each with a comment, `flanneld masq` or `flanneld forward`
#     0.20 and newer  its own chains, FLANNEL-POSTRTG and FLANNEL-FWD, with the names of pyflannel's chains
#
# A comment identifies a rule of the original. Without a comment, only a complete set of a release is
# certainly from the original: all rules, in their order, for a network that is known on this host. A part of
# a set of rules may belong to another program. The chains are treated as owned by pyflannel, except those in
# the kind of iptables that this host no longer uses.
#
# Source: the rules of flannel 0.6.2 and 0.20.2 as printed by iptables-save; the source code of the other
# releases.

Network = IPv4Network | IPv6Network

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_PREFIX = r"[0-9a-f.:]+/\d+"
_MASQUERADE = r"MASQUERADE(?: --random-fully)?"

_COMMENTED = {
    "nat": re.compile(
        rf"(?:-m mark --mark 0x4000/0x4000|(?:! )?-s {_PREFIX} (?:! )?-d {_PREFIX})"
        rf' -m comment --comment "flanneld masq" -j (?:RETURN|{_MASQUERADE})'
    ),
    "filter": re.compile(rf'-[sd] {_PREFIX} -m comment --comment "flanneld forward" -j ACCEPT'),
}

_INSIDE = re.compile(rf"-s (?P<network>{_PREFIX}) -d (?P=network) -j RETURN")
_OUT = re.compile(rf"-s (?P<network>{_PREFIX}) ! -d (?P<multicast>{_PREFIX}) -j (?P<verdict>{_MASQUERADE})")
_OWN = re.compile(rf"! -s (?P<network>{_PREFIX}) -d (?P<subnet>{_PREFIX}) -j RETURN")
_INTO = re.compile(rf"! -s (?P<network>{_PREFIX}) -d (?P=network) -j (?P<verdict>{_MASQUERADE})")

_HOOKS: Mapping[str, IptablesHook] = {"nat": "POSTROUTING", "filter": "FORWARD"}
"""The built-in chains in which the original has rules, by table."""

_FIRST_CHAIN = "FLANNEL"
_FIRST_FORMS = (
    (rf"-d (?P<network>{_PREFIX}) -j ACCEPT", r"! -d 224\.0\.0\.0/4 -j MASQUERADE"),
    (
        rf"-d (?P<network>{_PREFIX}) -j ACCEPT",
        r"-d 224\.0\.0\.0/4 -j ACCEPT",
        r"! -o \S+ -j MASQUERADE",
    ),
    (
        rf"-s (?P<subnet>{_PREFIX}) -o lo -j ACCEPT",
        rf"-s (?P=subnet) ! -d (?P<network>{_PREFIX}) -j MASQUERADE",
    ),
)
"""Rules in the chain that the original wrote: with any backend, in earlier releases with udp, and in
earlier releases with host-gw for the subnet."""


def rules_left(saved: Iterable[SavedRules], networks: Set[Network]) -> tuple[LeftRules, ...]:
    """Return the rules that an original flannel left, or may have left; `networks` are known on this host."""
    return tuple(left for one in saved for left in _left(one, networks))


def _left(saved: SavedRules, networks: Set[Network]) -> Iterator[LeftRules]:
    for table, hook in _HOOKS.items():
        marked = [rule for rule in _rules(saved, table, hook) if _COMMENTED[table].fullmatch(rule)]
        if marked:
            yield _in_hook(saved, table, hook, marked, is_sure=True)
    yield from _masquerades(saved, networks)
    yield from _accepts(saved, networks)
    yield from _first_chain(saved, networks)
    if saved.is_other:
        for table, hook in _HOOKS.items():
            name = STEMS[hook]
            if name in saved.chains.get(table, {}):
                yield _whole_chain(saved, table, name, is_sure=True)


def _masquerades(saved: SavedRules, networks: Set[Network]) -> Iterator[LeftRules]:
    """Yield, for each network, the rules of the releases that appended them to POSTROUTING itself."""
    hook = _HOOKS["nat"]
    found: dict[str, list[tuple[re.Pattern[str], re.Match[str]]]] = {}
    for rule in _rules(saved, "nat", hook):
        for form in (_INSIDE, _OUT, _INTO, _OWN):
            if (match := form.fullmatch(rule)) is not None and _is_proper(match, saved):
                found.setdefault(match["network"], []).append((form, match))
                break
    for text, matches in found.items():
        is_whole = [form for form, _ in matches if form is not _OWN] == [_INSIDE, _OUT, _INTO]
        is_whole = is_whole and len({m["verdict"] for form, m in matches if form in (_OUT, _INTO)}) == 1
        is_known = ip_network(text) in networks
        if is_whole or is_known:
            rules = [match[0] for _, match in matches]
            yield _in_hook(saved, "nat", hook, rules, is_sure=is_whole and is_known)


def _is_proper(match: re.Match[str], saved: SavedRules) -> bool:
    """Return whether a rule has the multicast addresses or the subnet of the original."""
    words = match.groupdict()
    if "multicast" in words:
        return words["multicast"] == _MULTICAST[saved.family]
    if "subnet" not in words:
        return True
    network, subnet = ip_network(words["network"]), ip_network(words["subnet"])
    if subnet.version != network.version or subnet.prefixlen <= network.prefixlen:
        return False
    return subnet.supernet(new_prefix=network.prefixlen) == network


def _accepts(saved: SavedRules, networks: Set[Network]) -> Iterator[LeftRules]:
    """Yield the two rules that accept packets of a network; an operator may have written the same rules."""
    hook = _HOOKS["filter"]
    rules = _rules(saved, "filter", hook)
    for network in sorted(map(str, networks)):
        pair = [rule for rule in rules if rule in (f"-s {network} -j ACCEPT", f"-d {network} -j ACCEPT")]
        if len(set(pair)) == 2:
            yield _in_hook(saved, "filter", hook, pair, is_sure=False)


def _first_chain(saved: SavedRules, networks: Set[Network]) -> Iterator[LeftRules]:
    chains = saved.chains.get("nat", {})
    rules = chains.get(_FIRST_CHAIN)
    if rules is None:
        return
    for form in _FIRST_FORMS:
        match = re.fullmatch("\n".join(form), "\n".join(rules))
        if match is None:
            continue
        words = match.groupdict()
        jump = f"-s {words.get('subnet', words['network'])} -j {_FIRST_CHAIN}"
        is_whole = _jumps(chains, _FIRST_CHAIN) == [(_HOOKS["nat"], jump)]
        is_sure = is_whole and ip_network(words["network"]) in networks
        yield _whole_chain(saved, "nat", _FIRST_CHAIN, is_sure=is_sure)


def _in_hook(saved: SavedRules, table: str, hook: str, rules: Sequence[str], *, is_sure: bool) -> LeftRules:
    return LeftRules(
        program=saved.program,
        table=table,
        shown=tuple(f"{saved.program} rule in {table} {hook}: {rule}" for rule in rules),
        removal=tuple(f"-D {hook} {rule}" for rule in rules),
        is_sure=is_sure,
    )


def _whole_chain(saved: SavedRules, table: str, name: str, *, is_sure: bool) -> LeftRules:
    jumps = [(where, rule) for where, rule in _jumps(saved.chains[table], name) if where != name]
    return LeftRules(
        program=saved.program,
        table=table,
        shown=(f"{saved.program} chain {name} in {table}",),
        removal=(*(f"-D {where} {rule}" for where, rule in jumps), f"-F {name}", f"-X {name}"),
        is_sure=is_sure,
    )


def _jumps(chains: Mapping[str, Sequence[str]], name: str) -> list[tuple[str, str]]:
    jump = re.compile(rf"(?:.* )?-[jg] {re.escape(name)}")
    return [(where, rule) for where, rules in chains.items() for rule in rules if jump.fullmatch(rule)]


def _rules(saved: SavedRules, table: str, chain: str) -> Sequence[str]:
    return saved.chains.get(table, {}).get(chain, ())


# Objects that an original flannel left on a host, and other unplanned routes inside the network.
#
# The original does not mark its objects. The devices of the original are recognized by name and kind. The
# routes of the original are recognized by the protocol boot, a gateway and a whole subnet. A daemon takes
# over the objects at the keys of its plan. A daemon does not touch other objects; only a command of an
# operator removes them.
#
# Source: the kernel objects of flannel 0.6.2 to 0.28.9.

PROTOCOL_BOOT = 3
"""rtm_protocol of routes that were added without a protocol (linux/rtnetlink.h, RTPROT_BOOT)."""

_DEVICES = (
    ("tun", re.compile(r"flannel0")),
    ("vxlan", re.compile(r"flannel(-v6)?\.\d+")),
    ("ipip", re.compile(r"flannel\.ipip")),
    ("wireguard", re.compile(r"flannel-wg(-v6)?")),
)
"""Kinds and names of the original's devices."""


def left_by_original(found: Iterable[Item], membership: Membership) -> State:
    """Return the devices and routes among `found` that match those of the original."""
    return State.collect(
        item
        for item in found
        if (isinstance(item, Link) and _is_originals_link(item))
        or (isinstance(item, Route) and _is_originals_route(item, membership))
    )


def unplanned_routes(found: Iterable[Item], membership: Membership) -> State:
    """Return the routes to parts of the network that are owned neither by pyflannel nor by the original.

    Routes without an owner redirect packets for peers. Routes inside the host's own subnet are not included.
    """
    items = tuple(found)
    ours = {item.name for item in items if isinstance(item, Link) and item.alias.startswith(MARK)}
    return State.collect(
        item
        for item in items
        if isinstance(item, Route)
        and is_within(item, membership)
        and item.protocol not in PROTOCOLS | {PROTOCOL_KERNEL}
        and item.link not in ours
        and not _is_originals_route(item, membership)
    )


def is_within(route: Route, membership: Membership) -> bool:
    """Return whether the route is to a part of the network outside the host's own subnet."""
    destination, network, subnet = route.destination, membership.network, membership.subnet
    if network is None or not is_part(destination, network):
        return False
    return subnet is None or not is_part(destination, subnet)


def _is_originals_link(link: Link) -> bool:
    return not link.alias.startswith(MARK) and any(
        link.kind == kind and name.fullmatch(link.name) for kind, name in _DEVICES
    )


def is_on_originals_device(route: Route) -> bool:
    """Return whether the route is to a peer of an original, on a device with a name that only the original
    uses.

    A pyflannel daemon marks its routes with their protocol number.
    """
    return route.protocol == PROTOCOL_BOOT and any(
        name.fullmatch(route.link) for kind, name in _DEVICES if kind != "tun"
    )


def _is_originals_route(route: Route, membership: Membership) -> bool:
    return _is_originals_blackhole(route, membership) or (
        is_within(route, membership)
        and membership.subnet is not None
        and route.destination.prefixlen == membership.subnet.prefixlen
        and route.protocol == PROTOCOL_BOOT
        and route.kind == "unicast"
        and route.gateway is not None
        and route.link == membership.underlay
        and route.metric == usual_metric(route.destination)
        and _may_lead_to_peer(route, membership)
    )


def _may_lead_to_peer(route: Route, membership: Membership) -> bool:
    """Return whether a peer with this subnet has the gateway's address, or whether no such peer is known."""
    return membership.peers.get(route.destination) in (None, route.gateway)


def _is_originals_blackhole(route: Route, membership: Membership) -> bool:
    """Return whether the route is the blackhole of the original for the host's subnet."""
    return (
        route.destination == membership.subnet
        and route.kind == "blackhole"
        and route.protocol == PROTOCOL_BOOT
        and route.metric == usual_metric(route.destination)
    )
