"""The difference between two states, as operations in a safe order."""

from collections.abc import Hashable, Iterable, Iterator, Set
from itertools import compress, filterfalse
from operator import is_not

from pyflannel.model.item import ANY, Item, Key, LinkChanges, Rank
from pyflannel.model.link import Address, Link
from pyflannel.model.state import Add, Operation, Remove, Replace, State


def diff(desired: State, actual: State) -> Iterator[Operation]:
    """Yield the operations that turn `actual` into `desired`, in no order.

    `actual` holds only items that pyflannel owns. A link that cannot be changed in place is created again.
    The items that the kernel drops with it, or when a link gets another MAC address, count as missing.
    """
    for old, new in differences(_after(link_changes(desired, actual), actual), desired):
        operation = change(old, new)
        if operation is not None:
            yield operation


def differences(before: State, after: State) -> Iterator[tuple[Item | None, Item | None]]:
    """Yield both items of each key whose item differs, those without an item in `after` first.

    Nearly all items are the same objects in both states. The loops skip those without a line of Python.
    """
    olds, news = before.by_key.tables, after.by_key.tables
    differing = [table for table in {**olds, **news} if olds.get(table) != news.get(table)]
    for table in differing:
        old, new = olds.get(table, {}), news.get(table, {})
        for name in filterfalse(new.__contains__, old):
            yield old[name], None
    for table in differing:
        old, new = olds.get(table, {}), news.get(table, {})
        for name in compress(new, map(is_not, map(old.get, new), new.values())):
            if old.get(name) != new[name]:
                yield old.get(name), new[name]


def change(actual: Item | None, desired: Item | None) -> Operation | None:
    """Return the operation that turns one item into the other; None means no item."""
    if desired is None:
        return None if actual is None else Remove(actual)
    if actual is None:
        return Add(desired)
    return None if actual == desired else Replace(actual, desired)


def link_changes(desired: State, actual: State) -> LinkChanges:
    """Return the links whose change into the desired ones makes the kernel drop other objects."""
    recreated: set[str] = set()
    readdressed: set[str] = set()
    for item in desired.of_type(Link):
        old = actual.by_key.get(item.key)
        if not isinstance(old, Link) or not old.becomes(item):
            recreated.add(item.name)
        elif old.mac != item.mac:
            readdressed.add(item.name)
    return LinkChanges(recreated=recreated, readdressed=readdressed)


def _after(changes: LinkChanges, actual: State) -> State:
    """Return the part of `actual` that remains once the links have changed; the links as found."""
    if not changes.recreated and not changes.readdressed:
        return actual
    return State.collect(left for item in actual if (left := item.after(changes)) is not None)


def losses(operation: Operation) -> LinkChanges | None:
    """Return the change of a link with which the kernel drops other objects; None if it drops none."""
    match operation:
        case Replace(Link() as old, Link() as new):
            changes = link_changes(State.of(new), State.of(old))
            return changes if changes.recreated or changes.readdressed else None
        case _:
            return None


# An address that shares its prefix with another of its link is secondary to it, and the kernel removes it
# with that one. So the old address is removed before the new one is added, unlike everything else.
_ADDRESS_CHANGE_RANK = Rank.ADDRESS - 1

_REMOVAL_RANK = 100
"""Above every build rank. The kind that is built last is removed first."""


def order(operations: Iterable[Operation]) -> list[Operation]:
    """Sort into a safe sequence: make before break. Operations of one rank keep their order."""
    listed = list(operations)
    readdressed = {one.item.link for one in listed if isinstance(one, Add) and isinstance(one.item, Address)}
    return sorted(listed, key=lambda operation: _rank(operation, readdressed))


def _rank(operation: Operation, readdressed: Set[str]) -> int:
    match operation:
        case Add(item) | Replace(_, item):
            return item.RANK
        case Remove(Address(link=link)) if link in readdressed:
            return _ADDRESS_CHANGE_RANK
        case Remove(item):
            return _REMOVAL_RANK - item.RANK


class Missing:
    """The objects that are not there yet, or do not serve yet, so that others cannot be built on them."""

    def __init__(self) -> None:
        self._keys: set[Key] = set()
        self._tables: set[Hashable] = set()

    def note(self, operation: Operation) -> None:
        """Note an operation that has not been performed."""
        match operation:
            case Add(item):
                pass
            case Replace(old, item) if type(old) is type(item) and not old.serves(item):
                pass
            case _:
                return
        self._keys.add(item.key)
        self._tables.add(item.key[0])

    def __bool__(self) -> bool:
        """Return whether anything is missing."""
        return bool(self._keys)

    def blocks(self, operation: Operation) -> bool:
        """Return whether the operation would be refused because something that it requires is missing."""
        if isinstance(operation, Remove) or not self._keys:
            return False
        return any(
            table in self._tables if name is ANY else (table, name) in self._keys
            for table, name in operation.subject.requires
        )
