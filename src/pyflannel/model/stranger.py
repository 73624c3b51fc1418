"""Who sends tunnel packets that the guard drops."""

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

StrangerReason = Literal["stranger", "impostor", "not_ours"]
"""No host has the inner source; another host has it; the inner destination is not ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """Packets from one address that were dropped for one reason, since counting began.

    Attributes:
        address: the sender's on the underlay, as the outer header says: it may be forged.
        age_s: seconds since the latest packet.
        inner_source: of the latest packet, as is `inner_destination`.
    """

    address: IPv4Address
    reason: StrangerReason
    packets: int
    age_s: float
    inner_source: IPv4Address
    inner_destination: IPv4Address
