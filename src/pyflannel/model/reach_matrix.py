"""The requests of hosts to each other, and the answers: which host reaches which other host, and how many
bytes a host received. Also the report of flannelctl.
"""

from typing import Literal

from msgspec import Struct

from pyflannel.model.network_config import AnyAddress, AnyNetwork, IpNetwork
from pyflannel.model.probe import ProbeState

MOST_HOSTS = 32
"""Maximum number of hosts in a matrix."""

_MOST_EVENTS = 40_000
"""Maximum number of events that the store sends to all hosts together for one matrix."""


def most_hosts(leases: int) -> int:
    """Return the maximum number of hosts in a matrix of a network with this number of leases, because the
    store sends each row to all hosts.
    """
    return max(4, min(MOST_HOSTS, _MOST_EVENTS // max(1, leases)))


class Answer(Struct, frozen=True):
    """The result of the probe of one host. `rtt_ms` is None without a reply."""

    state: ProbeState
    rtt_ms: float | None = None


class RowRequest(Struct, frozen=True, kw_only=True):
    """The request to these hosts to probe each other, or to report the bytes from the requesting host.

    Attributes:
        id: random text that connects rows with their request.
        asker: the subnet of the requesting host.
    """

    id: str
    asker: IpNetwork
    hosts: tuple[IpNetwork, ...]


class Row(Struct, frozen=True, kw_only=True):
    """The results of one host, for the hosts of a request in their order."""

    id: str
    host: IpNetwork
    answers: tuple[Answer, ...]


class ByteCount(Struct, frozen=True, kw_only=True):
    """The bytes that one host received from the host that wrote a request.

    Attributes:
        id: the identifier of the request.
        host: the subnet of the host that counted.
        received: bytes of tunnel packets; None if the host does not count them.
    """

    id: str
    host: IpNetwork
    received: int | None


class MatrixCell(Struct, frozen=True, kw_only=True):
    """The result of the probe of one host by another host.

    Attributes:
        subnet: the subnet of the probed host.
        state: the state of the probe; `skipped`: the probing host does not send to this host.
    """

    subnet: AnyNetwork
    state: ProbeState
    rtt_ms: float | None = None


class MatrixRow(Struct, frozen=True, kw_only=True):
    """The results of one host.

    Attributes:
        subnet, public_ip, host_name: the lease of the probing host.
        failure: reason why the host's results are unknown; None if the results are known.
        cells: results for each other host of the matrix; empty if the results are unknown.
    """

    subnet: AnyNetwork
    public_ip: AnyAddress
    host_name: str | None = None
    failure: str | None = None
    cells: tuple[MatrixCell, ...] = ()


class Matrix(Struct, frozen=True, kw_only=True):
    """Which hosts of a network reach which other hosts.

    Attributes:
        rows: one row for each host of the matrix, ordered by subnet.
        silent: subnets of the hosts whose results are unknown.
        left_out: number of hosts of the network that are not in the matrix, because the matrix would be too
            large.
    """

    rows: tuple[MatrixRow, ...]
    silent: tuple[AnyNetwork, ...] = ()
    left_out: int = 0


CellLetter = Literal["+", "x", "-"]
"""A result in text: reached, not reached, skipped."""


def letter(state: ProbeState) -> CellLetter:
    """Return the letter of a result."""
    match state:
        case "reached":
            return "+"
        case "skipped":
            return "-"
        case "rejected" | "silent" | "unsent":
            return "x"
