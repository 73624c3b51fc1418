"""The host as it was observed: what plans are made from, beside the config and the leases."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from pyflannel.model.lease import Lease
from pyflannel.model.link import MARK
from pyflannel.model.route_protocol import route_protocol

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
class Host:
    """This host: its lease, its underlay, and what it calls its own.

    Attributes:
        device: name that the daemon claims, which no other on this host has; that of its TUN device, and what
            its filter rules and its routes are told by.
        mark: alias of the links that we make.
        owner: our identity, from which a VTEP's MAC address is derived.
        kernel: release of the running kernel, `6.1.0-18-amd64`; "" when not known.
        has_fast_path: programs in the kernel may carry the udp backend's packets.
        gro: whether TCP that the programs take from the underlay in segments is joined before it goes on;
            auto where the underlay is hardware.
    """

    lease: Lease
    underlay: Underlay
    device: str = "flannel0"
    mark: str = MARK
    owner: str = ""
    kernel: str = ""
    has_fast_path: bool = False
    gro: GroChoice = "auto"

    @property
    def protocol(self) -> int:
        """The rtm_protocol of its routes."""
        return route_protocol(self.device)
