"""The choice of the interface that carries the tunnel, of its address, and of the public address."""

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, ip_address

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.errors import NoUnderlayError
from pyflannel.model.host import (
    Interface,
    InterfaceAddress,
    Interfaces,
    RouteScope,
    Surroundings,
    Underlay,
    Uplink,
)
from pyflannel.model.link import MARK
from pyflannel.model.network_config import IPV4_ONLY, Family, IpAddress

_OVERLAY_KINDS = frozenset({"tun", "vxlan", "ipip", "wireguard"})
_CONTAINER_BRIDGE = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}|cni\d+|cbr\d+")
_NAMED_AT_MOST = 8

Reached = tuple[str, IpAddress] | None
"""Link and source address of packets to the address that must be reached; None if there is no route."""


class UnderlayOptions(Struct, frozen=True, kw_only=True):
    """The operator's options; without options, the interface of the default route is used.

    Attributes:
        ifaces: names or addresses of interfaces, tried in this order.
        iface_regexes: regular expressions that are tried next; they match any part of an interface's
            addresses, or otherwise of its name.
        can_reach: tried last: the interface through which the kernel reaches this address.
        public_ip: address that other hosts use to reach this host; None for the interface's address.
        public_ipv6: IPv6 address that other hosts use to reach this host.
    """

    ifaces: tuple[str, ...] = ()
    iface_regexes: tuple[re.Pattern[str], ...] = ()
    can_reach: IpAddress | None = None
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None

    @property
    def asks_for_default(self) -> bool:
        """True if no option selects an interface."""
        return not self.ifaces and not self.iface_regexes and self.can_reach is None


class _Found(Struct, frozen=True):
    interface: Interface
    address: IpAddress


class _Missed(Struct, frozen=True):
    sought: str
    reason: str


_Outcome = _Found | _Missed


def choose(
    wanted: UnderlayOptions,
    interfaces: Interfaces,
    reached: Reached = None,
    *,
    families: tuple[Family, ...] = IPV4_ONLY,
) -> Underlay:
    """Return the underlay, which is the first existing interface in the order of the options.

    This interface is chosen by IPv4, and then its IPv6 address is chosen. If this interface has no IPv6
    address, and no option selects an interface, IPv6 uses the interface of its own default route. A missing
    IPv6 address is not an error here, so that IPv4 continues without IPv6. In a network with IPv6 alone, the
    interface is chosen by IPv6.

    Args:
        wanted: the options of the operator.
        interfaces: the interfaces of the host.
        reached: the result of the kernel for `wanted.can_reach`.
        families: families of the network.

    Raises:
        NoUnderlayError: no interface is usable yet; the message gives the reasons in one line.
    """
    outcomes = list(_until_found(wanted, interfaces, reached, families[0]))
    match outcomes[-1]:
        case _Found(interface, address):
            underlay = Underlay(
                link=interface.name,
                address=address,
                mtu=interface.mtu,
                public_ip=_public(wanted, families[0]) or address,
                on_link=tuple(one for one in interface.on_link if one.version in families),
                driver=interface.driver,
            )
            if isinstance(address, IPv6Address):
                return replace(underlay, ipv6_address=address, public_ipv6=wanted.public_ipv6 or address)
            return _with_ipv6(underlay, wanted, interface, interfaces) if 6 in families else underlay
        case _Missed():
            reasons = "; ".join(outcome.reason for outcome in outcomes if isinstance(outcome, _Missed))
            raise NoUnderlayError(
                f"an interface to use: {reasons}",
                hint=(
                    "Check `ip address` and `ip route`, or select an interface with --iface. flanneld"
                    " continues when the interface exists."
                ),
            )


def surroundings_of(interfaces: Interfaces, scope: RouteScope) -> Surroundings:
    """Return the addresses and routes of the host outside the overlay, as observed in this scope."""
    held = (one.address.ip for interface in interfaces.interfaces for one in interface.addresses)
    gateways = (route.gateway for route in (*interfaces.default_routes, *interfaces.ipv6_default_routes))
    uses_ipv6 = any(network.version == 6 for network in scope.networks)
    return Surroundings(
        networks=scope.networks,
        routes=interfaces.routes,
        addresses=frozenset(address for address in held if uses_ipv6 or address.version == 4),
        gateways=tuple(gateway for gateway in gateways if gateway is not None),
        resolvers=tuple(one for one in interfaces.resolvers if uses_ipv6 or one.version == 4),
        policies=interfaces.policies,
    )


def narrate(
    wanted: UnderlayOptions,
    interfaces: Interfaces,
    reached: Reached = None,
    *,
    families: tuple[Family, ...] = IPV4_ONLY,
) -> tuple[str, ...]:
    """Return the log lines of a choice, in order, in the form that flannel 0.6.2 and 0.28.9 use.

    Raises:
        NoUnderlayError: the same as for `choose`.
    """
    underlay = choose(wanted, interfaces, reached, families=families)
    lines = ["Determining IP address of default interface"] if wanted.asks_for_default else []
    lines += [
        f"Could not find valid interface matching {outcome.sought}: {outcome.reason}"
        for outcome in _until_found(wanted, interfaces, reached, families[0])
        if isinstance(outcome, _Missed)
    ]
    lines.append(f"Using {underlay.address} as external interface")
    lines.append(f"Using {underlay.public_ip} as external endpoint")
    if underlay.ipv6_address not in (None, underlay.address):
        lines.append(f"Using {underlay.ipv6_address} as external interface")
        lines.append(f"Using {underlay.public_ipv6} as external endpoint")
    return tuple(lines)


def _public(wanted: UnderlayOptions, family: Family) -> IpAddress | None:
    return wanted.public_ip if family == 4 else wanted.public_ipv6


def _until_found(
    wanted: UnderlayOptions, interfaces: Interfaces, reached: Reached, family: Family
) -> Iterator[_Outcome]:
    """Yield the outcome of each attempt, up to the first success; there is at least one."""
    for outcome in _attempts(wanted, interfaces, reached, family):
        if isinstance(outcome, _Found) and not outcome.interface.mtu:
            outcome = _Missed(outcome.interface.name, f"{outcome.interface.name} has no MTU")
        yield outcome
        if isinstance(outcome, _Found):
            return


def _attempts(
    wanted: UnderlayOptions, interfaces: Interfaces, reached: Reached, family: Family
) -> Iterator[_Outcome]:
    for name in wanted.ifaces:
        yield _by_name_or_address(name, interfaces, family)
    for pattern in wanted.iface_regexes:
        yield _by_pattern(pattern, interfaces, family)
    if wanted.can_reach is not None:
        yield _by_reach(wanted.can_reach, interfaces, reached, family)
    if wanted.asks_for_default:
        yield from _by_default(_public(wanted, family), interfaces, family)


def _by_name_or_address(sought: str, interfaces: Interfaces, family: Family) -> _Outcome:
    address = _parse(sought)
    if address is None:
        interface = interfaces.named(sought)
        if interface is None:
            return _Missed(sought, f"no interface is named {sought}")
        return _with_best_address(sought, interface, family)
    if (several := _on_several(address, interfaces)) is not None:
        return several
    interface = interfaces.holder(address)
    if interface is None:
        return _Missed(sought, f"no interface has the address {address}")
    if address.version != family:
        return _with_best_address(sought, interface, family)
    return _checked(sought, interface, address)


def _on_several(address: IPv4Address | IPv6Address, interfaces: Interfaces) -> _Missed | None:
    """Return the failure if several interfaces have an address, so that the address selects no interface;
    None otherwise.
    """
    holders = [one for one in interfaces.interfaces if one.holds(address) and not one.is_loopback]
    if len(holders) < 2:
        return None
    names = " and ".join(one.name for one in holders)
    reason = f"{address} is an address of {names}: select one of them by its name with --iface"
    return _Missed(str(address), reason)


def _by_pattern(pattern: re.Pattern[str], interfaces: Interfaces, family: Family) -> _Outcome:
    candidates = [one for one in interfaces.interfaces if not _is_overlay(one)]
    for interface in candidates:
        for held in _usable(interface, family):
            if pattern.search(str(held)):
                return _Found(interface, held)
    for interface in candidates:
        if any(pattern.search(str(held)) for held in _usable(interface, 6 if family == 4 else 4)):
            return _with_best_address(pattern.pattern, interface, family)
    outcomes = [
        _with_best_address(pattern.pattern, interface, family)
        for interface in candidates
        if pattern.search(interface.name)
    ]
    found = [outcome for outcome in outcomes if isinstance(outcome, _Found)]
    if found:
        return found[0]
    if outcomes:
        return outcomes[0]
    return _Missed(
        pattern.pattern, f"no interface matches {pattern.pattern} (found {_listing(candidates, family)})"
    )


def _by_reach(address: IpAddress, interfaces: Interfaces, reached: Reached, family: Family) -> _Outcome:
    if reached is None:
        return _Missed(str(address), f"no route to {address}")
    link, source = reached
    interface = interfaces.named(link)
    if interface is not None and interface.is_loopback:
        interface = interfaces.holder(source)  # the address belongs to this host
    if interface is None:
        return _Missed(str(address), f"the route to {address} uses {link}, which does not exist")
    if source.version != family:
        return _with_best_address(str(address), interface, family)
    return _checked(str(address), interface, source)


def _by_default(public_ip: IpAddress | None, interfaces: Interfaces, family: Family) -> Iterator[_Outcome]:
    # A public address may belong to a NAT, so that no interface has it. A public address selects an interface
    # only if the interface has this address.
    if public_ip is not None and (holder := interfaces.holder(public_ip)) is not None:
        yield _on_several(public_ip, interfaces) or _checked(str(public_ip), holder, public_ip)
    known = interfaces.default_routes if family == 4 else interfaces.ipv6_default_routes
    routes = sorted(known, key=lambda route: route.metric)
    for route in routes:
        interface = interfaces.named(route.link)
        if interface is None:
            yield _Missed(route.link, f"the default route uses {route.link}, which does not exist")
        elif interface.is_loopback or _is_container_bridge(interface):
            yield _Missed(route.link, f"the default route uses {route.link}, which reaches no other host")
        elif route.source is not None and interfaces.holder(route.source) is not None:
            yield _checked(route.link, interface, route.source)
        else:
            yield _with_best_address(route.link, interface, family)
    if not routes:
        yield _Missed("default route", "no default route" if family == 4 else "no IPv6 default route")


def _with_best_address(sought: str, interface: Interface, family: Family) -> _Outcome:
    usable = _usable(interface, family)
    if not usable:
        lack = "" if family == 4 else f": {_lack(interface)}"
        return _Missed(sought, f"{interface.name} has no IPv{family} address{lack}")
    return _checked(sought, interface, usable[0])


def _checked(sought: str, interface: Interface, address: IpAddress) -> _Outcome:
    if _is_overlay(interface):
        return _Missed(sought, f"{interface.name} is the overlay's own device")
    return _Found(interface, address)


def _usable(interface: Interface, family: Family) -> Sequence[IpAddress]:
    """Return the addresses of a family that other hosts can reach, with the best address first."""
    return _usable_ipv4(interface) if family == 4 else _usable_ipv6(interface)


def _usable_ipv4(interface: Interface) -> list[IPv4Address]:
    """Return the IPv4 addresses that other hosts can reach, with the best address first, and otherwise in
    kernel order.
    """
    ranked = sorted(
        (held for held in interface.addresses if not held.is_deprecated),
        key=lambda held: (not held.is_global, not held.is_permanent, held.is_secondary),
    )
    return [address for held in ranked if (address := _unicast(held)) is not None]


def _with_ipv6(
    underlay: Underlay, wanted: UnderlayOptions, interface: Interface, interfaces: Interfaces
) -> Underlay:
    """Return the underlay with its IPv6 address, or with the reason why there is no IPv6 address."""
    usable, public = _usable_ipv6(interface), wanted.public_ipv6
    if public is not None and not interface.holds(public):
        other = interfaces.holder(public)
        if other is not None:
            return replace(
                underlay,
                ipv6_trouble=f"one interface for both families: IPv4 uses {interface.name}, and {public}"
                f" (--public-ipv6) is an address of {other.name}",
            )
    if not usable and wanted.asks_for_default:
        outcomes = list(_until_found(wanted, interfaces, None, 6))
        if isinstance(found := outcomes[-1], _Found) and isinstance(found.address, IPv6Address):
            return replace(
                underlay,
                ipv6_address=found.address,
                public_ipv6=public or found.address,
                ipv6_uplink=Uplink(
                    link=found.interface.name,
                    mtu=found.interface.mtu,
                    on_link=found.interface.on_link,
                    driver=found.interface.driver,
                ),
            )
    if not usable:
        return replace(underlay, ipv6_trouble=f"an IPv6 address of {interface.name}: {_lack(interface)}")
    preferred = [address for address in usable if address == public or _is_selected(address, wanted)]
    address = (preferred or usable)[0]
    return replace(underlay, ipv6_address=address, public_ipv6=public or address)


def _is_selected(address: IPv6Address, wanted: UnderlayOptions) -> bool:
    """Return whether --iface names this address, or a pattern of --iface-regex matches it."""
    if any(_parse(name) == address for name in wanted.ifaces):
        return True
    return any(pattern.search(str(address)) for pattern in wanted.iface_regexes)


def _lack(interface: Interface) -> str:
    if not interface.has_ipv6:
        return f"IPv6 is disabled on it (sysctl net.ipv6.conf.{interface.name}.disable_ipv6)"
    held = [one for one in interface.addresses if isinstance(one.address, IPv6Interface)]
    if not held:
        return "it has none"
    texts = ", ".join(f"{one.address.ip} is {_fault(one)}" for one in held[:_NAMED_AT_MOST])
    return f"other hosts cannot use those that it has ({texts})"


def _fault(held: InterfaceAddress) -> str:
    for is_it, word in (
        (not held.is_global, "link-local"),
        (held.is_tentative, "not yet verified, or a duplicate"),
        (held.is_deprecated, "deprecated"),
        (held.is_secondary, "temporary"),
    ):
        if is_it:
            return word
    return "not the address of one host"


def _usable_ipv6(interface: Interface) -> list[IPv6Address]:
    """Return the IPv6 addresses that other hosts can reach for a long time, with the best address first.

    Temporary addresses (RFC 8981), deprecated addresses and link-local addresses are not included.
    """
    ranked = sorted(interface.addresses, key=lambda held: not held.is_permanent)
    return [
        held.address.ip
        for held in ranked
        if isinstance(held.address, IPv6Interface)
        and held.is_global
        and not (held.is_tentative or held.is_deprecated or held.is_secondary)
        and not (held.address.ip.is_loopback or held.address.ip.is_multicast)
    ]


def _unicast(held: InterfaceAddress) -> IPv4Address | None:
    address = held.address.ip
    if not isinstance(address, IPv4Address):
        return None
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        return None
    return address


def _is_overlay(interface: Interface) -> bool:
    """Return whether a link is a device of pyflannel or of another flannel, which cannot carry the tunnel."""
    is_flannels = interface.name.startswith("flannel") and interface.kind in _OVERLAY_KINDS
    return interface.alias.startswith(MARK) or is_flannels


def _is_container_bridge(interface: Interface) -> bool:
    return interface.kind == "bridge" and _CONTAINER_BRIDGE.fullmatch(interface.name) is not None


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _listing(interfaces: list[Interface], family: Family) -> str:
    named = [
        f"{one.name}: {', '.join(map(str, found))}" for one in interfaces if (found := _usable(one, family))
    ]
    more = [f"{len(named) - _NAMED_AT_MOST} more"] if len(named) > _NAMED_AT_MOST else []
    return "; ".join(named[:_NAMED_AT_MOST] + more) or f"none with an IPv{family} address"
