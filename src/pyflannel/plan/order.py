"""The order of a batch: no operation relies on a later one; make before break."""

from collections.abc import Iterable, Set

from pyflannel.model.address import Address
from pyflannel.model.bpf_container import BpfContainer
from pyflannel.model.bpf_peer import BpfPeer
from pyflannel.model.bpf_program import BpfProgram
from pyflannel.model.fdb_entry import FdbEntry
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host_file import HostFile
from pyflannel.model.iptables_chain import IptablesChain
from pyflannel.model.link import Link
from pyflannel.model.neighbour import Neighbour
from pyflannel.model.nft_table import NftTable
from pyflannel.model.operation import Add, Operation, Remove, Replace
from pyflannel.model.route import Route

# The route attracts traffic, so it is built after all that carries it and torn down first: a packet routed
# while nobody forwards it would be lost. A program comes when its tables are filled. Filter rules come after
# the route, since they may have to wait for a lock. The file comes last: whoever reads it may start
# containers at once.
_BUILD_RANK: dict[type, int] = {
    Link: 0,
    Address: 2,
    Forwarder: 3,
    ForwarderPeer: 4,
    FdbEntry: 4,
    Neighbour: 4,
    BpfPeer: 4,
    BpfContainer: 4,
    BpfProgram: 5,
    Route: 6,
    NftTable: 7,
    IptablesChain: 8,
    HostFile: 9,
}

# An address that shares its prefix with another of its link is secondary to it, and goes with it. So the old
# one leaves before the new one comes, unlike everything else.
_ADDRESS_CHANGE_RANK = 1

_REMOVAL_RANK = 100
"""Above every build rank; what was built last is removed first."""


def order(operations: Iterable[Operation]) -> list[Operation]:
    """Sort into a safe sequence: make before break; equal ranks keep their order."""
    listed = list(operations)
    readdressed = {one.item.link for one in listed if isinstance(one, Add) and isinstance(one.item, Address)}
    return sorted(listed, key=lambda operation: _rank(operation, readdressed))


def _rank(operation: Operation, readdressed: Set[str]) -> int:
    match operation:
        case Add(item) | Replace(_, item):
            return _BUILD_RANK[type(item)]
        case Remove(Address(link=link)) if link in readdressed:
            return _ADDRESS_CHANGE_RANK
        case Remove(item):
            return _REMOVAL_RANK - _BUILD_RANK[type(item)]
