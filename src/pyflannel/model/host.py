"""The observed host: its interfaces, its underlay, its bridges, and its own lease."""

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.model.item import Item, Key, Marks, Rank
from pyflannel.model.lease import Ipv4End, Lease, ipv4_end
from pyflannel.model.link import MARK, is_random_identity
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.route import PROTOCOL_FLANNEL, Route, route_protocol
from pyflannel.model.wireguard import UNKNOWN, WireguardFacts


class HostFile(Item, frozen=True, kw_only=True):
    """A file with exactly this text, mode 0644, replaced atomically."""

    KIND = "file"
    PLURAL = "files"
    RANK = Rank.FILE

    path: str
    text: str

    @property
    def key(self) -> Key:
        """The identity of the file."""
        return "file", self.path

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"file {self.path}"

    def is_marked(self, marks: Marks) -> bool:
        """Return False, because a file at another path belongs to another program."""
        return False


class InterfaceAddress(Struct, frozen=True, kw_only=True):
    """An address of an interface.

    Attributes:
        is_global: True if the address is usable beyond the link (scope global, and not a link-local address).
        is_permanent: True if the address has no lifetime, unlike an address from DHCP.
        is_tentative: True if the kernel has not yet verified that no other host uses the address, or found
            such a host (IPv6).
        is_secondary: True if another address of its prefix is primary (IPv4), or if the address is temporary
            (IPv6).
        is_deprecated: True if new connections must not use the address.
    """

    address: IPv4Interface | IPv6Interface
    is_global: bool = True
    is_permanent: bool = True
    is_secondary: bool = False
    is_tentative: bool = False
    is_deprecated: bool = False


class Interface(Struct, frozen=True, kw_only=True):
    """A link with its addresses, in the kernel's order.

    Attributes:
        kind: kind of the link in the kernel; "" for a physical device.
        alias: alias; on a link of pyflannel, it contains the mark.
        owner: random identity of a host, on its tunnel device; "" if it contains no identity.
        on_link: prefixes that the host reaches by the link without a gateway, sorted with IPv4 first; default
            routes are excluded. The link-local prefix of IPv6 is not included.
        driver: kernel driver, for example `vmxnet3` or `veth`; "" if it is unknown, or the link has no IPv4
            address.
        has_ipv6: True if IPv6 is enabled on the link.
        mac: MAC address in lower case with colons; "" if the link has none.
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
    on_link: tuple[IpNetwork, ...] = ()
    driver: str = ""
    has_ipv6: bool = True
    mac: str = ""

    def holds(self, address: IPv4Address | IPv6Address) -> bool:
        """Return whether the interface has exactly this address."""
        return any(held.address.ip == address for held in self.addresses)


class DefaultRoute(Struct, frozen=True, kw_only=True):
    """A default route.

    Attributes:
        link: name of the interface of the route.
        source: preferred source address of the host's own packets, if the route has one.
        gateway: gateway; None if the route has no gateway.
    """

    link: str
    metric: int = 0
    source: IpAddress | None = None
    gateway: IpAddress | None = None


class RouteScope(Struct, frozen=True, kw_only=True):
    """The scope of observed routes. Observed routes overlap these networks and do not have pyflannel's
    protocol.

    IPv6 routes are only observed if one of the networks is an IPv6 network.
    """

    networks: frozenset[IpNetwork] = frozenset()
    protocol: int = PROTOCOL_FLANNEL


_UDP = 17


class IpsecEnds(Struct, frozen=True, kw_only=True):
    """The two ends of a security association of IPsec, or of the association that a policy requires.

    Attributes:
        source: the sender; the unspecified address for any sender.
        destination: the receiver; the unspecified address for any receiver.
    """

    source: IpAddress
    destination: IpAddress


class IpsecPolicy(Struct, frozen=True, kw_only=True):
    """An IPsec policy: the packets that match it, and its action.

    Attributes:
        direction: `in`: packets for this host; `out`: packets that leave this host, including forwarded
            packets; `forward`: arriving packets that this host forwards.
        protocol: IP protocol; 0 for all protocols.
        port: destination port; only the bits of `port_mask` are compared.
        source_port: source port; only the bits of `source_port_mask` are compared.
        link: index of the interface; 0 for all interfaces.
        mark: mark of the packet; only the bits of `mark_mask` are compared.
        priority: the policy with the lowest number decides.
        is_block: True if the policy drops the packets; other policies let packets pass, or encrypt them.
        ends: for each layer of encryption that the policy requires, the ends of the security association;
            None for the source and the destination of the packet (transport mode).
    """

    direction: Literal["in", "out", "forward"]
    source: IpNetwork
    destination: IpNetwork
    protocol: int = 0
    port: int = 0
    port_mask: int = 0
    source_port: int = 0
    source_port_mask: int = 0
    link: int = 0
    mark: int = 0
    mark_mask: int = 0
    priority: int = 0
    is_block: bool = False
    ends: tuple[IpsecEnds | None, ...] = ()

    def may_concern(self, source: IpAddress | None, destination: IpAddress | None, port: int | None) -> bool:
        """Return whether UDP packets between these two endpoints may match the policy; None means any
        address or port.
        """
        return (
            self.protocol in (0, _UDP)
            and (port is None or (port ^ self.port) & self.port_mask == 0)
            and (source is None or source in self.source)
            and (destination is None or destination in self.destination)
        )


class Interfaces(Struct, frozen=True, kw_only=True):
    """All interfaces of a host, by index, and its default routes, in the kernel's order.

    Attributes:
        default_routes: the IPv4 default routes.
        ipv6_default_routes: the IPv6 default routes, if they were requested.
        routes: routes of other programs and of the kernel, of every kind, in the requested scope; default
            routes are excluded.
        resolvers: addresses of the host's DNS servers.
        policies: IPsec policies.
    """

    interfaces: tuple[Interface, ...] = ()
    default_routes: tuple[DefaultRoute, ...] = ()
    routes: tuple[Route, ...] = ()
    resolvers: tuple[IpAddress, ...] = ()
    policies: tuple[IpsecPolicy, ...] = ()
    ipv6_default_routes: tuple[DefaultRoute, ...] = ()

    def named(self, name: str) -> Interface | None:
        """Return the interface with this name."""
        return next((one for one in self.interfaces if one.name == name), None)

    def holder(self, address: IPv4Address | IPv6Address) -> Interface | None:
        """Return the interface that has this address."""
        return next((one for one in self.interfaces if one.holds(address)), None)


class QueueingDiscipline(Struct, frozen=True, kw_only=True):
    """A queueing discipline of a link.

    Attributes:
        kind: its name in `tc qdisc`.
        drops: number of packets that it has dropped since it was created.
    """

    link: str
    kind: str
    drops: int = 0


class TakingFilter(Struct, frozen=True, kw_only=True):
    """A filter of traffic control that has dropped or redirected packets.

    Attributes:
        direction: ingress or egress.
        priority: priority of the filter, with which `tc` deletes it.
        text: the kind and the action of the filter.
        packets: number of packets since the filter was created.
    """

    link: str
    direction: str
    priority: int
    text: str
    packets: int


class BridgedContainer(Struct, frozen=True, kw_only=True):
    """A neighbour of the host behind a port of a bridge.

    Attributes:
        mac: six bytes in lower-case hexadecimal, with colons.
        port: port of the bridge to the neighbour, which is the host's end of its veth.
    """

    address: IPv4Address
    mac: str
    port: str


class Bridge(Struct, frozen=True, kw_only=True):
    """A bridge with IPv4 addresses of the host.

    Attributes:
        obstacles: descriptions of the features that a frame bypasses if it is sent directly to a port.
        containers: neighbours behind its forwarding ports that have sent packets, in the order of addresses.
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


class Uplink(Struct, frozen=True, kw_only=True):
    """An interface as underlay; its attributes have the same meaning as in `Underlay`."""

    link: str
    mtu: int
    on_link: tuple[IpNetwork, ...] = ()
    driver: str = ""


class Underlay(Struct, frozen=True, kw_only=True):
    """The interface that carries the tunnel.

    Attributes:
        link: name of the interface.
        address: address of the interface, to which tunnel sockets are bound; its IPv6 address in a network
            with IPv6 alone.
        mtu: size in bytes of the largest outgoing packet.
        public_ip: address that other hosts use; it differs from `address` behind a NAT.
        on_link: prefixes that the host reaches by the interface without a gateway, of both families.
        driver: kernel driver of the interface, for example `vmxnet3` or `veth`; "" if it is unknown.
        ipv6_address: the same as `address` for IPv6; None if IPv6 is not used, or the interface has no usable
            address.
        public_ipv6: the same as `public_ip` for IPv6.
        ipv6_uplink: the interface that carries IPv6, if it differs from the interface that carries IPv4.
        ipv6_trouble: reason why there is no `ipv6_address` although IPv6 is used; "" if there is an address.
    """

    link: str
    address: IpAddress
    mtu: int
    public_ip: IpAddress
    on_link: tuple[IpNetwork, ...] = ()
    driver: str = ""
    ipv6_address: IPv6Address | None = None
    public_ipv6: IPv6Address | None = None
    ipv6_uplink: Uplink | None = None
    ipv6_trouble: str = ""

    @property
    def is_virtual(self) -> bool:
        """True if outgoing packets may arrive with partial checksums, because no hardware completes them.

        The value is also True for an unknown driver.
        """
        return self.driver in _VIRTUAL_DRIVERS

    def in_family(self, family: Family) -> "Underlay":
        """Return the underlay with the interface that carries a family."""
        uplink = self.ipv6_uplink
        if family == 4 or uplink is None:
            return self
        return replace(self, link=uplink.link, mtu=uplink.mtu, on_link=uplink.on_link, driver=uplink.driver)

    def address_in(self, family: Family) -> IpAddress | None:
        """Return the address of the interface in a family; None if the interface has no address in the
        family.
        """
        if family == 6:
            return self.ipv6_address
        return self.address if self.address.version == 4 else None

    def reaches(self, address: IpAddress) -> bool:
        """Return whether a host at `address` is reached without a gateway."""
        return any(address in prefix for prefix in self.on_link)


class Surroundings(Struct, frozen=True, kw_only=True):
    """The host's addresses and routes outside the overlay, and the addresses that it must reach.

    Attributes:
        networks: the scope of `routes`.
        routes: routes of other programs and of the kernel that overlap the networks; default routes are
            excluded.
        addresses: addresses of the host's interfaces.
        gateways: gateways of the host's default routes.
        stores: addresses of the store, as far as they are known.
        resolvers: addresses of the host's DNS servers.
        policies: IPsec policies.
    """

    networks: frozenset[IpNetwork] = frozenset()
    routes: tuple[Route, ...] = ()
    addresses: frozenset[IpAddress] = frozenset()
    gateways: tuple[IpAddress, ...] = ()
    stores: tuple[IpAddress, ...] = ()
    resolvers: tuple[IpAddress, ...] = ()
    policies: tuple[IpsecPolicy, ...] = ()


ALONE = Surroundings()
"""Surroundings without any known address or route."""


class Host(Struct, frozen=True, kw_only=True):
    """This host in one address family: its lease, its underlay, and its names.

    A network with both families is planned as two networks, one per family, on the same host. The functions
    of a backend receive the host in one family, and plan the objects of this family.

    Attributes:
        family: the family. `subnet` and `address` belong to this family.
        device: name that the daemon claims, unique on this host: the name of its TUN device, and the mark of
            its filter rules and its routes.
        mark: alias of this daemon's links.
        owner: identity of the host, from which the MAC address of a VTEP is derived.
        kernel: release of the running kernel, for example `6.1.0-18-amd64`; "" if it is unknown.
        has_fast_path: True if eBPF programs may carry packets of the backends udp and vxlan.
        caches_flows: True if these programs may cache the firewall's decisions (mode flow).
        gro: whether received TCP segments are coalesced; auto: only if the underlay is a network card.
        surroundings: the surroundings excluding the host's own subnet and the objects of the plan.
        wireguard: key and implementation, for the wireguard backend.
        serves_docker: True if the host has the network plugin for Docker. Docker refuses a network whose
            prefix overlaps a route with scope link, so the route of the flannel network must not have this
            scope.
    """

    lease: Lease
    underlay: Underlay
    device: str = "flannel0"
    mark: str = MARK
    owner: str = ""
    kernel: str = ""
    has_fast_path: bool = False
    caches_flows: bool = False
    gro: GroChoice = "auto"
    surroundings: Surroundings = ALONE
    wireguard: WireguardFacts = UNKNOWN
    serves_docker: bool = False
    family: Family = 4

    @property
    def subnet(self) -> IpNetwork:
        """The host's subnet in this address family."""
        subnet = self.lease.subnet_in(self.family)
        assert subnet is not None  # a host without a subnet in the family is not planned in the family
        return subnet

    @property
    def address(self) -> IpAddress:
        """The underlay address in this address family, to which tunnel sockets are bound."""
        address = self.underlay.address_in(self.family)
        assert address is not None  # a host without an address in the family is not planned in the family
        return address

    @property
    def ipv4(self) -> Ipv4End:
        """The host's subnet and underlay address in a network with IPv4."""
        return ipv4_end(self.lease.subnet, self.underlay.address)

    @property
    def device_owner(self) -> str:
        """The identity on the host's tunnel device, from which a restart without directories reads it."""
        return self.owner if is_random_identity(self.owner) else ""

    @property
    def protocol(self) -> int:
        """The rtm_protocol of the routes that the host adds."""
        return route_protocol(self.device)
