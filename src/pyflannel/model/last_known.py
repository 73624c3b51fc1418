"""What a host knew when its store last answered: enough to carry packets without it."""

from dataclasses import dataclass

from pyflannel.model.lease import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class LastKnown:
    """The network config as text, our own lease, and all leases, our own among them."""

    config: str
    own: Lease
    leases: tuple[Lease, ...]
