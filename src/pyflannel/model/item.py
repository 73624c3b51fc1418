"""Objects of a plan: the common base of all kinds, and the maps of objects by key."""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Set
from enum import IntEnum
from typing import ClassVar, Self, TypeVar

from msgspec import Struct

Key = tuple[Hashable, Hashable]
"""The identity of an object: its table, and its name in the table.

A table contains objects of one kind, for example the routes on one link. Ten thousand objects therefore need
no memory for keys, because the name is a part of each object.
"""

ANY = None
"""A value in place of the name in a key, which means any object of the table."""


class Rank(IntEnum):
    """The position of a kind in a batch. Objects are built in this order and removed in the reverse order.

    The route directs packets to the other objects. A route is built after the objects that carry its packets,
    and removed before these objects, so that no packet is lost. A program is attached after its maps are
    filled. Filter rules follow the route, because they may have to wait for a lock. Files are last, because a
    program that reads subnet.env may start containers immediately.
    """

    LINK = 0
    ADDRESS = 2
    FORWARDER = 3
    PEER = 4
    PROGRAM = 5
    ROUTE = 6
    GUARD = 7
    GUARD_PEER = 8
    NFT_TABLE = 9
    IPTABLES_CHAIN = 10
    FILE = 11


class Marks(Struct, frozen=True, kw_only=True):
    """The properties by which a daemon recognizes its own objects.

    Attributes:
        mark: alias of the links that the daemon creates.
        device: device name that the daemon claims; None if it is unknown, in which case no route or filter
            rule is recognized.
        links: names of the links that carry the mark of the daemon.
    """

    mark: str
    device: str | None
    links: Set[str]


LinkPrefix = tuple[str, Hashable]
"""The name of a link, and the prefix of an address on it."""


class LinkChanges(Struct, frozen=True, kw_only=True):
    """Changes of links that cause the kernel to drop other objects.

    Attributes:
        recreated: links that are deleted and created again. The kernel drops all objects on these links.
        readdressed: links that get another MAC address. The kernel drops the neighbours on these links.
        prefixes: prefixes of removed IPv4 addresses. The kernel may drop other addresses of the prefix.
        unaddressed: links that lose their last IPv4 address. The kernel drops the IPv4 routes and neighbours
            on these links.
    """

    recreated: Collection[str]
    readdressed: Collection[str]
    prefixes: Collection[LinkPrefix]
    unaddressed: Collection[str]


class Item(Struct, frozen=True, kw_only=True, gc=False):
    """One object that a plan can contain: a kernel object, a process, a file, or an entry of a table.

    A kind is a frozen struct that inherits from this class and defines all its properties: its key, its
    rank, its requirements, its reaction to changes of links, its texts, its owner. A new kind therefore
    changes only its own module, the backend that plans it, and its adapter.

    The garbage collector ignores the objects, of which there may be forty thousand. The objects refer only to
    values that cannot refer back to these objects.

    Attributes:
        KIND: name of the kind as one word, for metrics and the status.
        PLURAL: name of the kind in the plural, for texts.
        RANK: position of the kind in a batch.
        IS_HOST_PART: True if no file is written before all objects of the kind exist.
        IS_BOUND_TO_LINK: True if the key contains the link, so that the owner of the link owns the object.
        IS_SELF_CONTAINED: True if the kernel announces each change of an object of the kind, and if a change
            of an object of another kind never changes one of this kind.
    """

    KIND: ClassVar[str]
    PLURAL: ClassVar[str]
    RANK: ClassVar[Rank]
    IS_HOST_PART: ClassVar[bool] = False
    IS_BOUND_TO_LINK: ClassVar[bool] = False
    IS_SELF_CONTAINED: ClassVar[bool] = False

    @property
    def key(self) -> Key:
        """The table of the object, and its name in the table. Two values with one key are one object."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """The name of the object in texts, for example `link flannel0`."""
        raise NotImplementedError

    @property
    def parent_link(self) -> str | None:
        """Name of the link that the object is on; None for objects that are on no link."""
        return None

    @property
    def requires(self) -> tuple[Key, ...]:
        """Keys of the objects without which the kernel refuses this object; `ANY`: any object of a table."""
        return () if self.parent_link is None else (("link", self.parent_link),)

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the object is recognized as owned by pyflannel even if no plan names it."""
        raise NotImplementedError

    def serves(self, wanted: Self) -> bool:
        """Return whether the object can carry the objects that require `wanted`, although it differs from
        `wanted`.
        """
        return True

    def after(self, changes: LinkChanges) -> "Item | None":
        """Return the remainder of the object after these links have changed; None if the kernel drops the
        whole object.
        """
        return None if self.parent_link in changes.recreated else self


_Item = TypeVar("_Item", bound=Item)


_REBUILT_AFTER = 8
"""A table is rebuilt after an eighth of its items was removed: a dictionary that shrinks keeps the memory of
its largest size."""

_SMALL_TABLE = 1024
"""Number of items of a table that is never rebuilt."""


class ItemMap(Mapping[Key, _Item]):
    """Items by key. At most one item has a given key."""

    __slots__ = ("_removed", "_tables")

    def __init__(self, items: Iterable[_Item] = ()) -> None:
        """Create the map of these items. Of two items with one key, the first is kept."""
        self._tables: dict[Hashable, dict[Hashable, _Item]] = {}
        self._removed: dict[Hashable, int] = {}  # removed items since a table was rebuilt
        self.add(items)

    @classmethod
    def of_tables(cls, tables: Mapping[Hashable, dict[Hashable, _Item]]) -> "ItemMap[_Item]":
        """Return a map that consists of these tables. The map shares these tables, so neither the tables
        nor the map may change after that.
        """
        made = cls()
        made._tables.update((table, names) for table, names in tables.items() if names)
        return made

    @property
    def tables(self) -> Mapping[Hashable, dict[Hashable, _Item]]:
        """The items by table and name; no table is empty. Readers must not change the tables."""
        return self._tables

    def copy(self) -> "ItemMap[_Item]":
        """Return a separate map with the same items."""
        return self.of_tables({table: dict(names) for table, names in self._tables.items()})

    def add(self, items: Iterable[_Item]) -> None:
        """Add these items. Of two items with one key, the first is kept."""
        tables = self._tables
        for item in items:
            table, name = item.key
            if table in tables:
                tables[table].setdefault(name, item)
            else:
                tables[table] = {name: item}

    def put(self, item: _Item) -> None:
        """Add an item, or replace the item with the same key."""
        table, name = item.key
        self._tables.setdefault(table, {})[name] = item

    def discard(self, key: Key) -> None:
        """Remove the item with this key, if it exists."""
        table, name = key
        names = self._tables.get(table, {})
        if names.pop(name, None) is None:
            return
        removed = self._removed[table] = self._removed.get(table, 0) + 1
        if not names:
            del self._tables[table], self._removed[table]
        elif removed * _REBUILT_AFTER > len(names) > _SMALL_TABLE:
            self._tables[table], self._removed[table] = dict(names), 0

    def each(self) -> Iterator[_Item]:
        """Yield the items. This method is faster than `values()`, which looks up each item."""
        for names in self._tables.values():
            yield from names.values()

    def __or__(self, other: "ItemMap[_Item]") -> "ItemMap[_Item]":
        """Return the union. If both maps contain a key, the item of this map is kept.

        The union shares tables with both maps. None of the three maps may change afterwards.
        """
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
