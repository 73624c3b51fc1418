"""A line of the list of peers, as a person or a script reads it."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerEntry:
    """Another host of the network; the same names are the JSON of `flannelctl peers --json`.

    Attributes:
        backend_type: as published: empty for udp and alloc.
        owner: identity of the host; None for an original flannel.
        refused: why this host does not send to it; None when it does.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    backend_type: str = ""
    owner: str | None = None
    refused: str | None = None
