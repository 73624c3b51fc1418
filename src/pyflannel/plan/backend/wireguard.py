"""The wireguard backend: packets use a WireGuard device, which encrypts them with the peer's key.

In the mode `separate`, each family has a device: `flannel-wg` for IPv4, whose tunnel uses IPv4, and
`flannel-wg-v6` for IPv6. In the other modes, `flannel-wg` carries both families, and the mode selects the
address of a peer. The whole network is routed to the device, which selects the peer by the destination
(allowed IPs). A second route, with the greatest metric, drops packets while the device is missing. Without
this route, packets would leave unencrypted by the default route.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_interface
from typing import Literal

from msgspec import Struct, field

from pyflannel.errors import ConfigError
from pyflannel.model.host import Bridge, Host, Underlay
from pyflannel.model.lease import Lease, WireguardData
from pyflannel.model.link import Address, Link
from pyflannel.model.network_config import (
    BOTH_FAMILIES,
    IPV4_ONLY,
    Family,
    IpAddress,
    IpNetwork,
    NetworkConfig,
)
from pyflannel.model.route import SCOPE_GLOBAL, SCOPE_LINK, Route, usual_metric
from pyflannel.model.state import State
from pyflannel.model.store_record import Secret
from pyflannel.model.tunnel_guard import GuardedPath
from pyflannel.model.wireguard import (
    KEY_BYTES,
    WireguardDevice,
    WireguardFacts,
    WireguardPeer,
    parse_key,
    sorted_networks,
    wireguard_link,
)
from pyflannel.plan.backend_keys import BackendKeys, ineffective
from pyflannel.plan.peers import place_of
from pyflannel.plan.routes import (
    NO_IPV6,
    Routed,
    address_objection,
    plan_fence,
    route_objection,
)

KEYS = ("ListenPort", "ListenPortV6", "MTU", "PSK", "PersistentKeepaliveInterval", "Mode")

OVERHEADS: Mapping[Family, int] = {4: 60, 6: 80}
"""Bytes that the tunnel adds: IPv4 (20) or IPv6 (40), UDP (8), WireGuard (32)."""

OVERHEAD = OVERHEADS[6]
"""The bytes that the plan subtracts from the MTU for both families, as in the original."""

PADDING = 16
"""WireGuard pads packets to a multiple of this number of bytes, but not above the MTU of its device."""

DEFAULT_PORT = 51820
DEFAULT_PORT_V6 = 51821
_PORTS = range(1, 65536)
_KEEPALIVES = range(65536)
_SMALLEST_MTU = 68
"""Bytes that IPv4 requires of each link (RFC 791)."""

_SMALLEST_MTU_V6 = 1280
"""Bytes that IPv6 requires of each link (RFC 8200)."""

_OUTER_MTUS = range(_SMALLEST_MTU + OVERHEAD, 65536)
_NAT_KEEPALIVE_S = 25
"""Interval of keepalive packets behind a NAT, which is less than the usual lifetimes of UDP mappings
(wg(8), PersistentKeepalive)."""

Mode = Literal["separate", "auto", "ipv4", "ipv6"]
_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_UNIQUE_LOCAL = IPv6Network("fc00::/7")
"""The prefixes that the original treats as private in the mode auto."""

_MODES: Mapping[str, Mode] = {"separate": "separate", "auto": "auto", "ipv4": "ipv4", "ipv6": "ipv6"}
_NO_KEY = parse_key("A" * 43 + "=")


class WireguardBackend(Struct, frozen=True, kw_only=True):
    """The wireguard backend of one network.

    Attributes:
        network: the IPv4 range of the network, which is routed to the device; None without IPv4.
        ipv6_network: the IPv6 range of the network; None without IPv6.
        udp_port: UDP port of this host, and of each peer that publishes no other port.
        udp_port_v6: UDP port of the device for IPv6.
        mode: mode, which selects the devices and the addresses of peers.
        keepalive_s: interval of keepalive packets; 0 for no such packets, unless this host is behind a NAT.
        outer_mtu: size in bytes of the largest encrypted packet; None for the underlay's MTU.
        preshared_key: preshared key of all peers; empty for no key.
        config_warnings: warnings about parts of the config without effect, one line each.
    """

    network: IPv4Network | None = None
    ipv6_network: IPv6Network | None = None
    udp_port: int = DEFAULT_PORT
    udp_port_v6: int = DEFAULT_PORT_V6
    mode: Mode = "separate"
    keepalive_s: int = 0
    outer_mtu: int | None = None
    preshared_key: Secret = field(default_factory=lambda: Secret(""))
    config_warnings: tuple[str, ...] = ()
    lease_type: str = "wireguard"
    way: str = "wireguard"
    reads: tuple[str, ...] = ()
    port: None = None
    config_line: None = None
    routed: Routed = "network"
    families: tuple[Family, ...] = BOTH_FAMILIES
    is_encrypted: bool = True

    @property
    def tunnel_port(self) -> int:
        """UDP port on which this host receives tunnel packets, in the first family of the network."""
        return self.tunnel_port_in(6 if self.network is None else 4)

    def tunnel_port_in(self, family: Family) -> int:
        """Return the UDP port of the device that carries the packets of an address family."""
        return self.udp_port if self._device_family(family) == 4 else self.udp_port_v6

    def lease_data(self, owner: str, wireguard: WireguardFacts, family: Family = 4) -> WireguardData:
        """Return the public key and the port of the lease.

        In the modes with one device, the original publishes `ListenPortV6` for IPv6, although the device does
        not receive packets on this port.
        """
        return WireguardData(public_key=wireguard.published, port=self.tunnel_port_in(family))

    def device(self, claimed: str, family: Family = 4) -> str:
        """Return the name of the device that carries a family, for a daemon with this claimed device name."""
        return wireguard_link(claimed, self._device_family(family))

    def _link(self, host: Host) -> str:
        return self.device(host.device, host.family)

    def _device_family(self, family: Family) -> Family:
        """Return the family of the device and the port that carry the packets of `family`."""
        return family if self.mode == "separate" else 4

    @property
    def _shares_device(self) -> bool:
        return self.mode != "separate" and None not in (self.network, self.ipv6_network)

    def _network(self, family: Family) -> IpNetwork | None:
        return self.network if family == 4 else self.ipv6_network

    def mtu(self, host: Host) -> int:
        """Return the size of the largest packet of a container, in bytes."""
        return self._mtu(host.underlay)

    def notes(self, host: Host) -> tuple[str, ...]:
        """Return notes about unusual properties of the backend on this host, one line each."""
        return tuple(self._notes(host))

    def _notes(self, host: Host) -> Iterator[str]:
        yield from self.config_warnings
        underlay = host.underlay
        if self.outer_mtu is not None and self.outer_mtu > underlay.mtu:
            yield (
                f"Backend.MTU is {self.outer_mtu}, and {underlay.link} carries up to {underlay.mtu}, which is"
                f" used; allowed on this host are {_OUTER_MTUS[0]} to {underlay.mtu}"
            )
        if not host.wireguard.is_in_kernel:
            yield "wireguard-go encrypts in user space, because the kernel of this host has no WireGuard"
        network = self._network(host.family)
        if network is not None and (why := route_objection(network, underlay, host.surroundings)) is not None:
            yield f"{'Network' if host.family == 4 else 'IPv6Network'} {why}"

    def obstacle(self, underlay: Underlay, wireguard: WireguardFacts) -> str | None:
        """Return the missing condition, which is WireGuard itself, or a sufficient MTU of the underlay."""
        if wireguard.problem:
            return wireguard.problem
        if self.mode == "ipv6" and underlay.ipv6_address is None:
            return underlay.ipv6_trouble or "an IPv6 address of the host"
        smallest = _SMALLEST_MTU if underlay.ipv6_address is None else _SMALLEST_MTU_V6
        underlay = underlay.in_family(4 if underlay.ipv6_address is None else 6)
        if self._mtu(underlay) >= smallest:
            return None
        needed = smallest + OVERHEAD
        if self.outer_mtu is not None and self.outer_mtu < min(underlay.mtu, needed):
            return f"a Backend.MTU of {needed} or more, which IPv6 needs, instead of {self.outer_mtu}"
        return f"an MTU of {needed} or more on {underlay.link}, which has {underlay.mtu}"

    def plan_host(self, host: Host) -> State:
        """Return the device with its key, its address, and the routes of the network."""
        link, facts = self._link(host), host.wireguard
        base = host.subnet.network_address
        return State.of(
            Link(
                name=link,
                kind="wireguard" if facts.is_in_kernel else "tun",
                mtu=self.mtu(host),
                queue_length=1000 if facts.is_in_kernel else 500,
                has_ipv6=host.family == 6 or self._shares_device,
                alias=host.mark,
                owner=host.device_owner,
            ),
            Address(link=link, address=ip_interface((base, base.max_prefixlen))),
            WireguardDevice(
                link=link,
                public_key=facts.key,
                port=self.tunnel_port_in(host.family),
                is_in_kernel=facts.is_in_kernel,
                sources=tuple(self._sources(host)),
            ),
            *self._routes(host, link),
        )

    def _sources(self, host: Host) -> Iterator[IpAddress]:
        """Yield the addresses from which the device sends."""
        if self.mode == "separate":
            yield host.address
            return
        families: Iterable[Family] = {"auto": BOTH_FAMILIES, "ipv4": IPV4_ONLY, "ipv6": (6,)}[self.mode]
        for family in families:
            if (address := host.underlay.address_in(family)) is not None:
                yield address

    def _routes(self, host: Host, link: str) -> Iterator[Route]:
        """Yield the route of the network, and the route that drops packets while the device does not
        exist.
        """
        network = self._network(host.family)
        if network is not None and route_objection(network, host.underlay, host.surroundings) is None:
            # The kernel has no scopes for IPv6 routes.
            is_global = host.serves_docker or host.family == 6
            yield Route(
                destination=network,
                link=link,
                metric=usual_metric(network),
                protocol=host.protocol,
                scope=SCOPE_GLOBAL if is_global else SCOPE_LINK,
            )
            yield plan_fence(network, host.protocol)

    def objection(self, peer: Lease, host: Host) -> str | None:
        """Return the reason why the peer cannot be reached: another backend, no key, or an unusable
        address.
        """
        attributes, part = peer.attributes, peer.part(host.family)
        if attributes.backend_type != self.lease_type:
            return f"Ignoring non-wireguard subnet: type={attributes.backend_type}"
        if part is None:
            return NO_IPV6
        address = self.address_of(peer, host)
        if address is None:
            return "it has no IPv6 address, which Backend.Mode ipv6 needs"
        if (why := address_objection(address, host)) is not None:
            return why
        data = part.wireguard
        if data is None or data.public_key == _NO_KEY:
            key = "BackendData" if host.family == 4 else "BackendV6Data"
            return f"its {key} has no PublicKey of WireGuard"
        if data.public_key in (host.wireguard.key, host.wireguard.published):
            return f"its PublicKey {data.public_key} is that of this host: is the peer a copy of this host?"
        return None

    def address_of(self, peer: Lease, host: Host) -> IpAddress | None:
        """Return the address to which packets to a peer are sent; None if the peer has no address in the
        family that the mode requires.

        The mode auto has the same rule as the original: IPv6 if the IPv4 address of the peer is private, and
        both hosts have a public IPv6 address.
        """
        part, ipv6 = peer.part(4), peer.attributes.public_ipv6
        ipv4, own_ipv6 = None if part is None else part.address, host.underlay.public_ipv6
        match self.mode:
            case "separate":
                return ipv4 if host.family == 4 else ipv6
            case "ipv4":
                return ipv4
            case "ipv6":
                return ipv6
            case "auto":
                may_use_ipv6 = ipv4 is None or (_is_private(ipv4) and _are_public(ipv6, own_ipv6))
                return ipv6 if may_use_ipv6 else ipv4

    def _peer_port(self, peer: Lease, host: Host) -> int:
        """Return the port of a peer. With one device, the method returns the port that is published for
        IPv4.
        """
        by_family = {4: peer.attributes.wireguard, 6: peer.attributes.wireguard_v6}
        data = by_family[self._device_family(host.family)] or by_family[host.family]
        return (None if data is None else data.port) or self.tunnel_port_in(host.family)

    def foreseen(self, peer: Lease) -> None:
        """Return nothing, because the key of a peer is known only from its lease."""

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IpNetwork, str]:
        """Return the peers that yield to another peer with the same key, by subnet, with the reason.

        A key belongs to one host. If peers publish the same key, the host that published it first has
        precedence: a copy, a mistake or a forged lease does not redirect packets for the first host.
        """
        by_key: dict[str, list[Lease]] = {}
        for peer in peers:
            data = peer.attributes.wireguard if host.family == 4 else peer.attributes.wireguard_v6
            if data is not None:
                by_key.setdefault(data.public_key, []).append(peer)
        reasons: dict[IpNetwork, str] = {}
        for public_key, sharing in by_key.items():
            first, *others = sorted(sharing, key=lambda peer: (peer.since, place_of(peer)))
            for peer in others:
                reasons[peer.subnet] = (
                    f"its PublicKey {public_key} is also that of {first.subnet} at"
                    f" {first.attributes.host_text}, which published it first and has precedence: if"
                    " that host is gone, delete its lease; if one is a copy of the other, run"
                    " `flannelctl rotate-key` on it"
                )
        return reasons

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return the WireGuard peer. The peer needs no separate route, because one route leads the whole
        network to the device.
        """
        part = peer.part(host.family)
        data = None if part is None else part.wireguard
        address = self.address_of(peer, host)
        if part is None or data is None or address is None or self.objection(peer, host) is not None:
            return State.EMPTY
        return State.of(
            WireguardPeer(
                link=self._link(host),
                public_key=data.public_key,
                allowed=sorted_networks([part.subnet]),
                endpoint=_endpoint(address, self._peer_port(peer, host)),
                keepalive_s=self.keepalive_s or (_NAT_KEEPALIVE_S if _is_behind_nat(host, address) else 0),
                preshared_key=self.preshared_key,
                family=host.family,
                shares_device=self._shares_device,
                keeps_family=self.mode != "auto",
            )
        )

    def guarded_path(self, host: Host) -> GuardedPath:
        """Return the device, at which all inner packets arrive."""
        return GuardedPath(links=(self._link(host),), refuses_clear=True)

    def plan_bridges(self, bridges: Iterable[Bridge], host: Host) -> State:
        """Return nothing, because bridges need no objects."""
        return State.EMPTY

    def _mtu(self, underlay: Underlay) -> int:
        outer = underlay.mtu if self.outer_mtu is None else min(self.outer_mtu, underlay.mtu)
        return outer - OVERHEAD


def _endpoint(address: IpAddress, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def _is_behind_nat(host: Host, peer: IpAddress) -> bool:
    """Return whether this host is behind a NAT in the family of a peer's address."""
    underlay = host.underlay
    if peer.version == 4:
        return underlay.public_ip != underlay.address
    return underlay.public_ipv6 != underlay.ipv6_address


def _is_private(address: IpAddress) -> bool:
    return any(address in network for network in _PRIVATE)


def _are_public(*addresses: IPv6Address | None) -> bool:
    return all(address is not None and address not in _UNIQUE_LOCAL for address in addresses)


def parse(config: NetworkConfig) -> WireguardBackend:
    """Return the backend of the config.

    Raises:
        ConfigError: a value is invalid; the message names the key and the value.
    """
    keys = BackendKeys("wireguard", config.backend)
    mode = _mode(keys)
    if mode == "ipv6" and not config.enable_ipv6:
        raise ConfigError(
            "Backend.Mode ipv6 needs EnableIPv6: without it, hosts publish no IPv6 address",
            hint="Add EnableIPv6 and IPv6Network, or set another Backend.Mode.",
        )
    if mode == "ipv4" and not config.enable_ipv4:
        raise ConfigError(
            "Backend.Mode ipv4 needs EnableIPv4: without it, hosts publish no IPv4 address",
            hint="Set another Backend.Mode, or omit EnableIPv4 and set Network.",
        )
    return WireguardBackend(
        network=config.network if config.enable_ipv4 else None,
        ipv6_network=config.ipv6_network if config.enable_ipv6 else None,
        mode=mode,
        udp_port_v6=keys.number("ListenPortV6", DEFAULT_PORT_V6, _PORTS),
        udp_port=keys.number("ListenPort", DEFAULT_PORT, _PORTS),
        keepalive_s=keys.number("PersistentKeepaliveInterval", 0, _KEEPALIVES),
        outer_mtu=keys.number("MTU", 0, _OUTER_MTUS, default_means="the MTU of the interface") or None,
        preshared_key=_preshared_key(keys),
        config_warnings=ineffective(config, KEYS, BOTH_FAMILIES),
    )


def _mode(keys: BackendKeys) -> Mode:
    wanted = f"one of {', '.join(_MODES)}"
    text = keys.text("Mode", wanted)
    if text is None:
        return "separate"
    if text not in _MODES:
        raise ConfigError(
            f"no valid Mode configured: Backend.Mode is {text[:80]!r}, not {wanted}",
            hint="Set Backend.Mode to one of these values, or omit it for separate.",
        )
    return _MODES[text]


def _preshared_key(keys: BackendKeys) -> Secret:
    """Return the preshared key. Messages never contain this key."""
    text = keys.text("PSK", "a preshared key in quotes")
    if text is None or text == "":
        return Secret("")
    if (key := parse_key(text)) is None:
        raise ConfigError(
            f"error decoding wireguard backend config: Backend.PSK is not a key of {KEY_BYTES} bytes in"
            f" base64: it has {len(text)} characters, and a key has 44",
            hint="Write the output of `wg genpsk`, or omit PSK to use no preshared key.",
        )
    return Secret(key)
