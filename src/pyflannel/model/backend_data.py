"""What a backend publishes in its host's lease, so that peers can reach it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Vtep:
    """The vxlan backend's: whom peers send to.

    Attributes:
        mac: MAC address of the VTEP, lower case with colons.
        vni: VXLAN network identifier; None in leases of release 0.6, which publishes none.
        mac_prefix: how the network config wants `mac` to begin; not published.
    """

    mac: str
    vni: int | None = None
    mac_prefix: bytes = field(default=b"", compare=False)


BackendData = Vtep
"""Every backend's data; another backend's type joins by a union."""
