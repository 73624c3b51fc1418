"""The host as observed: its interfaces, its underlay, its bridges, and its own lease."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from typing import Literal

from pyflannel.model.item import Item, Key, Marks, Rank
from pyflannel.model.lease import Lease
from pyflannel.model.link import MARK, is_random_identity
from pyflannel.model.route import PROTOCOL_FLANNEL, Route, route_protocol
from pyflannel.model.wireguard import UNKNOWN, WireguardFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFile(Item):
    """A file with exactly this text, mode 0644, replaced atomically."""

    KIND = "file"
    PLURAL = "files"
    RANK = Rank.FILE

    path: str
    text: str

    @property
    def key(self) -> Key:
        """What makes two values one file."""
        return "file", self.path

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"file {self.path}"

    def is_marked(self, marks: Marks) -> bool:
        """Return False: a file at another path belongs to another program."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """An address that an interface holds.

    Attributes:
        is_global: usable beyond the link (scope global, and not a link-local address).
        is_permanent: it has no lifetime; one by DHCP has.
        is_secondary: another address of its prefix came before it (IPv4), or it is temporary (IPv6).
        is_deprecated: no new connection may use it.
    """

    address: IPv4Interface | IPv6Interface
    is_global: bool = True
    is_permanent: bool = True
    is_secondary: bool = False
    is_deprecated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A link with its addresses, in the kernel's order.

    Attributes:
        kind: the kernel's kind; "" for a physical device.
        alias: free text; the mark on a link of pyflannel.
        owner: random identity of a host, on its tunnel device; "" if there is none.
        on_link: prefixes that the host reaches by it without a gateway, sorted; without the default route.
        driver: the kernel driver, `vmxnet3`, `veth`; "" when it does not say, or there is no IPv4 address.
    """

    name: str
    index: int
    mtu: int
    is_up: bool = True
    is_loopback: bool = False
    kind: str = ""
    alias: str = ""
    owner: str = ""
    addresses: tuple[InterfaceAddress, ...] = ()
    on_link: tuple[IPv4Network, ...] = ()
    driver: str = ""

    def holds(self, address: IPv4Address | IPv6Address) -> bool:
        """Return whether it has exactly this address."""
        return any(held.address.ip == address for held in self.addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultRoute:
    """A route to everywhere.

    Attributes:
        link: name of the interface that it leaves by.
        source: the address that it prefers for the host's own packets, when it names one.
        gateway: None where it leads to everybody without one.
    """

    link: str
    metric: int = 0
    source: IPv4Address | None = None
    gateway: IPv4Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteScope:
    """Which routes matter: those that overlap these networks and do not have the protocol of our own."""

    networks: frozenset[IPv4Network] = frozenset()
    protocol: int = PROTOCOL_FLANNEL


_UDP = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class IpsecPolicy:
    """Which packets a policy of IPsec is about, whatever it asks for.

    Attributes:
        is_outgoing: about packets that leave; else about those that arrive.
        protocol: of IP; 0 for all.
        port: of the destination; only the bits of `port_mask` count.
    """

    is_outgoing: bool
    source: IPv4Network
    destination: IPv4Network
    protocol: int = 0
    port: int = 0
    port_mask: int = 0

    def may_concern(
        self, source: IPv4Address | None, destination: IPv4Address | None, port: int | None
    ) -> bool:
        """Return whether UDP between these ends can meet it; None is any address, or any port."""
        return (
            self.protocol in (0, _UDP)
            and (port is None or (port ^ self.port) & self.port_mask == 0)
            and (source is None or source in self.source)
            and (destination is None or destination in self.destination)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interfaces:
    """All interfaces of a host, by index, and its IPv4 default routes, in the kernel's order.

    Attributes:
        routes: of other programs and of the kernel, of every kind, in the scope that was asked about; without
            default routes.
        resolvers: addresses of the host's DNS servers.
        policies: of IPsec.
    """

    interfaces: tuple[Interface, ...] = ()
    default_routes: tuple[DefaultRoute, ...] = ()
    routes: tuple[Route, ...] = ()
    resolvers: tuple[IPv4Address, ...] = ()
    policies: tuple[IpsecPolicy, ...] = ()

    def named(self, name: str) -> Interface | None:
        """Return the interface of this name."""
        return next((one for one in self.interfaces if one.name == name), None)

    def holder(self, address: IPv4Address | IPv6Address) -> Interface | None:
        """Return the interface that has this address."""
        return next((one for one in self.interfaces if one.holds(address)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgedContainer:
    """A neighbour of the host behind a port of a bridge.

    Attributes:
        mac: six octets in lower-case hexadecimal, with colons.
        port: the link of the bridge that leads to it: the host's end of its veth.
    """

    address: IPv4Address
    mac: str
    port: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A bridge with IPv4 addresses of the host.

    Attributes:
        obstacles: what a frame would miss that goes to a port past the bridge, in words; empty for most.
        containers: the neighbours behind its forwarding ports that sent something, in the order of addresses.
    """

    name: str
    addresses: tuple[IPv4Interface, ...]
    obstacles: tuple[str, ...] = ()
    containers: tuple[BridgedContainer, ...] = ()


GroChoice = Literal["auto", "on", "off"]

_VIRTUAL_DRIVERS = frozenset(
    {
        "",
        "802.1Q VLAN Support",
        "bonding",
        "bridge",
        "hv_netvsc",
        "ipvlan",
        "macvlan",
        "team",
        "tun",
        "veth",
        "vif",
        "virtio_net",
        "vmxnet3",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Underlay:
    """The interface that carries the tunnel.

    Attributes:
        link: name of the interface.
        address: its address, where tunnel sockets are bound.
        mtu: octets of the largest packet that leaves by it.
        public_ip: address that other hosts use; differs from `address` behind a NAT.
        on_link: prefixes that the host reaches by the interface without a gateway.
        driver: the kernel driver of the interface, `vmxnet3`, `veth`; "" when it does not say.
    """

    link: str
    address: IPv4Address
    mtu: int
    public_ip: IPv4Address
    on_link: tuple[IPv4Network, ...] = ()
    driver: str = ""

    @property
    def is_virtual(self) -> bool:
        """Whether what leaves may arrive as it is, with checksums that hardware was to finish.

        So it is where no hardware is in between, and where that cannot be told.
        """
        return self.driver in _VIRTUAL_DRIVERS

    def reaches(self, address: IPv4Address) -> bool:
        """Return whether a host at `address` is reached without a gateway."""
        return any(address in prefix for prefix in self.on_link)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the host has beside the overlay, and needs to reach.

    Attributes:
        networks: the ranges that `routes` is about.
        routes: of other programs and of the kernel, that overlap the networks; without default routes.
        addresses: of its interfaces.
        gateways: of its default routes.
        stores: by which it reaches the store, as far as known.
        resolvers: of its DNS servers.
        policies: of IPsec.
    """

    networks: frozenset[IPv4Network] = frozenset()
    routes: tuple[Route, ...] = ()
    addresses: frozenset[IPv4Address] = frozenset()
    gateways: tuple[IPv4Address, ...] = ()
    stores: tuple[IPv4Address, ...] = ()
    resolvers: tuple[IPv4Address, ...] = ()
    policies: tuple[IpsecPolicy, ...] = ()


ALONE = Surroundings()
"""Nothing is known beside the overlay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """This host: its lease, its underlay, and what it calls its own.

    Attributes:
        device: name that the daemon claims, unique on this host: the name of its TUN device, and the mark of
            its filter rules and its routes.
        mark: alias of the links that we make.
        owner: our identity, from which a VTEP's MAC address is derived.
        kernel: release of the running kernel, `6.1.0-18-amd64`; "" when not known.
        has_fast_path: programs in the kernel may carry the udp backend's packets.
        gro: whether TCP that the programs take from the underlay in segments is joined before it goes on;
            auto where the underlay is hardware.
        surroundings: without what is in its own subnet, and without what the plan itself has made.
        wireguard: key and implementation, for the wireguard backend.
    """

    lease: Lease
    underlay: Underlay
    device: str = "flannel0"
    mark: str = MARK
    owner: str = ""
    kernel: str = ""
    has_fast_path: bool = False
    gro: GroChoice = "auto"
    surroundings: Surroundings = ALONE
    wireguard: WireguardFacts = UNKNOWN

    @property
    def device_owner(self) -> str:
        """The identity on its tunnel device, from which a restart without directories reads it."""
        return self.owner if is_random_identity(self.owner) else ""

    @property
    def protocol(self) -> int:
        """The rtm_protocol of its routes."""
        return route_protocol(self.device)
