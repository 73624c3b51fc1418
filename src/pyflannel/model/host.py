"""The host as it was observed: what plans are made from, beside the config and the leases."""

from dataclasses import dataclass
from ipaddress import IPv4Address

from pyflannel.model.lease import Lease
from pyflannel.model.link import MARK


@dataclass(frozen=True, slots=True, kw_only=True)
class Underlay:
    """The interface that carries the tunnel.

    Attributes:
        link: name of the interface.
        address: its address, where tunnel sockets are bound.
        mtu: octets of the largest packet that leaves by it.
        public_ip: address that other hosts use; differs from `address` behind a NAT.
    """

    link: str
    address: IPv4Address
    mtu: int
    public_ip: IPv4Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """This host: its lease, its underlay, and what it calls its own.

    Attributes:
        device: name of the tunnel device; another network on this host has another.
        mark: alias of the links that we make.
    """

    lease: Lease
    underlay: Underlay
    device: str = "flannel0"
    mark: str = MARK
