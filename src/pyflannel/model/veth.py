"""veth: two devices that are one wire."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Veth:
    """What one end of a veth is, beyond being a link. Where one end is there the other is too.

    Attributes:
        peer: name of the other end; "" when that is in another network namespace. Never changes in place.
        has_gro: segments of TCP that are sent into the other end come out of this one joined. That takes GRO
            here and no TSO there: the kernel joins nothing for a sender that could have sent it whole.
    """

    peer: str
    has_gro: bool = False

    def becomes(self, other: "Veth") -> bool:
        """Return whether this can be changed into `other` in place; else the link is made anew."""
        return self.peer == other.peer
