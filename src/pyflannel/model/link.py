"""Links: the network devices of a host."""

from dataclasses import dataclass

from pyflannel.model.item_map import Key
from pyflannel.model.veth import Veth
from pyflannel.model.vxlan import Vxlan

MARK = "pyflannel"
"""How the alias of every link of ours begins; where several daemons share a host, each has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network device, as planned or as found.

    Attributes:
        name: at most 15 octets (IFNAMSIZ less the NUL).
        kind: the kernel's kind, `tun`, `vxlan`, `veth`; "" for a physical device. Never changes in place.
        mtu: octets of the largest packet that leaves by it.
        is_up: administratively up (IFF_UP).
        queue_length: packets (txqueuelen).
        has_ipv6: False when IPv6 is disabled on it.
        alias: free text; the mark of whoever made it on links of ours.
        mac: lower case with colons; "" where there is none, as on a TUN device.
        vxlan: its parameters, on a vxlan device.
        veth: its parameters, on an end of a veth.
    """

    name: str
    kind: str
    mtu: int
    is_up: bool = True
    queue_length: int = 500
    has_ipv6: bool = False
    alias: str = MARK
    mac: str = ""
    vxlan: Vxlan | None = None
    veth: Veth | None = None

    def becomes(self, other: "Link") -> bool:
        """Return whether this link can be changed into `other` in place; else it is made anew."""
        if self.kind != other.kind:
            return False
        if self.veth is not None and other.veth is not None:
            return self.veth.becomes(other.veth)
        return self.vxlan is None or other.vxlan is None or self.vxlan.becomes(other.vxlan)

    @property
    def key(self) -> Key:
        """What makes two values one kernel object."""
        return "link", self.name
