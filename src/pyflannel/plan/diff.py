"""The difference: what must happen so that what is there becomes what is wanted."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import compress, filterfalse
from operator import is_not

from pyflannel.model.address import Address
from pyflannel.model.bpf_program import BpfProgram
from pyflannel.model.fdb_entry import FdbEntry
from pyflannel.model.forwarder import Forwarder
from pyflannel.model.link import Link
from pyflannel.model.neighbour import Neighbour
from pyflannel.model.operation import Add, Operation, Remove, Replace
from pyflannel.model.route import Route
from pyflannel.model.state import Item, State


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
