"""What makes a vxlan device one of our network: its VTEP's parameters."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Vxlan:
    """The parameters of a vxlan device, as planned or as found.

    Attributes:
        vni: VXLAN network identifier, 0 to 2^24 - 1.
        port: UDP destination port.
        parent: name of the underlay interface; "" when the device is bound to none.
        local: source address of the tunnel; None when the kernel chooses.
        group: where packets go that no FDB entry knows; we never plan one.
        has_gbp: carries the group policy extension.
        learns: learns FDB entries from what it receives.
        reports_misses: tells user space of unknown addresses (l2miss or l3miss), as release 0.6 asked for.
        offloads_checksums: leaves inner checksums to the device (tx-checksum-ip-generic).
    """

    vni: int
    port: int
    parent: str
    local: IPv4Address | IPv6Address | None
    group: IPv4Address | IPv6Address | None = None
    has_gbp: bool = False
    learns: bool = False
    reports_misses: bool = False
    offloads_checksums: bool = True

    def becomes(self, other: "Vxlan") -> bool:
        """Return whether a standing device can be changed into `other`; else it is made anew."""
        return self.fixed == other.fixed

    @property
    def fixed(self) -> tuple[object, ...]:
        """What the kernel does not change in a standing device."""
        is_bound = bool(self.parent)
        is_ipv6 = self.local is not None and self.local.version == 6
        return self.vni, self.port, is_bound, is_ipv6, self.group, self.has_gbp, self.reports_misses
