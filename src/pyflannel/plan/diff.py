"""The difference between two states, as operations in a safe order."""

from collections.abc import Collection, Iterable, Iterator, Set
from dataclasses import replace
from itertools import compress, filterfalse
from operator import is_not

from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host_file import HostFile
from pyflannel.model.link import Address, Link
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Item, Operation, Remove, Replace, State


def diff(desired: State, actual: State) -> Iterator[Operation]:
    """Yield the operations that turn `actual` into `desired`, in no order.

    `actual` holds only what is ours. A link that cannot be changed in place is made anew; what hung on it,
    and what the kernel drops when a link gets another MAC address, is planned as missing in the same pass.
    Nearly all items are the very same in both, at nearly all times: no line of ours looks at these.
    """
    present, wanted = _after_links(desired, actual).by_key.tables, desired.by_key.tables
    differing = [table for table in {**present, **wanted} if present.get(table) != wanted.get(table)]
    for table in differing:
        found, planned = present.get(table, {}), wanted.get(table, {})
        for name in filterfalse(planned.__contains__, found):
            yield Remove(found[name])
    for table in differing:
        found, planned = present.get(table, {}), wanted.get(table, {})
        for name in compress(planned, map(is_not, map(found.get, planned), planned.values())):
            old, new = found.get(name), planned[name]
            if old is None:
                yield Add(new)
            elif old != new:
                yield Replace(old, new)


def _after_links(desired: State, actual: State) -> State:
    """Return what will be left of `actual` once the links are as wanted, the links themselves as found."""
    made: set[str] = set()
    renamed: set[str] = set()
    for item in desired.of_type(Link):
        old = actual.by_key.get(item.key)
        if not isinstance(old, Link) or not old.becomes(item):
            made.add(item.name)
        elif old.mac != item.mac:
            renamed.add(item.name)
    if not made and not renamed:
        return actual
    return State.collect(left for item in actual if (left := _left_of(item, made, renamed)) is not None)


def _left_of(item: Item, made: Collection[str], renamed: Collection[str]) -> Item | None:
    match item:
        case Address() | Route() | FdbEntry() | BpfProgram() if item.link in made:
            return None  # the kernel drops them with their link
        case Neighbour() if item.link in made or item.link in renamed:
            return None
        case Forwarder() if item.link in made:
            return replace(item, is_attached=False)
        case _:
            return item


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
