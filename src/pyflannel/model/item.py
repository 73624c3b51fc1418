"""What every planned object has in common: a key, and the maps that hold objects by key."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

Key = tuple[Hashable, Hashable]
"""What makes two values one object: in which table it is, and its name there.

A table holds objects of one sort on one link, say, so that ten thousand objects cost no key of their own: the
name is a part of each.
"""


class Keyed(Protocol):
    """What has a key."""

    @property
    def key(self) -> Key:
        """The table, and the name in it."""
        ...


_Item = TypeVar("_Item", bound=Keyed)


class ItemMap(Mapping[Key, _Item]):
    """Items by key; at most one has a key."""

    __slots__ = ("_tables",)

    def __init__(self, items: Iterable[_Item] = ()) -> None:
        """Make the map of these items; where two have one key, the first stays."""
        self._tables: dict[Hashable, dict[Hashable, _Item]] = {}
        self.add(items)

    @classmethod
    def of_tables(cls, tables: Mapping[Hashable, Mapping[Hashable, _Item]]) -> "ItemMap[_Item]":
        """Return the map of these tables, which nobody changes any more, nor the map."""
        made = cls()
        made._tables.update((table, names) for table, names in tables.items() if names)  # type: ignore[misc]
        return made

    @property
    def tables(self) -> Mapping[Hashable, Mapping[Hashable, _Item]]:
        """The items by table and name; no table is empty."""
        return self._tables

    def copy(self) -> "ItemMap[_Item]":
        """Return a map of its own with the same items."""
        return self.of_tables({table: dict(names) for table, names in self._tables.items()})

    def add(self, items: Iterable[_Item]) -> None:
        """Add these items; where two have one key, the first stays."""
        tables = self._tables
        for item in items:
            table, name = item.key
            if table in tables:
                tables[table].setdefault(name, item)
            else:
                tables[table] = {name: item}

    def put(self, item: _Item) -> None:
        """Add an item, in the place of that with its key."""
        table, name = item.key
        self._tables.setdefault(table, {})[name] = item

    def discard(self, key: Key) -> None:
        """Take out the item with this key, if there is one."""
        table, name = key
        names = self._tables.get(table, {})
        if names.pop(name, None) is not None and not names:
            del self._tables[table]

    def each(self) -> Iterator[_Item]:
        """Yield the items, as `values()` does after looking each of them up."""
        for names in self._tables.values():
            yield from names.values()

    def __or__(self, other: "ItemMap[_Item]") -> "ItemMap[_Item]":
        """Return the union; where both have a key, ours stays. It shares tables: nobody changes them then."""
        tables = dict(other._tables)
        for table, names in self._tables.items():
            tables[table] = {**tables[table], **names} if table in tables else names
        return self.of_tables(tables)

    def __getitem__(self, key: Key) -> _Item:
        table, name = key
        return self._tables[table][name]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and key[1] in self._tables.get(key[0], ())

    def __iter__(self) -> Iterator[Key]:
        for table, names in self._tables.items():
            for name in names:
                yield table, name

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ItemMap):
            return super().__eq__(other)
        return self._tables == other._tables
