"""State: a set of kernel objects, files and processes; the operations between two states."""

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping
from typing import ClassVar, TypeVar

from msgspec import Struct, field

from pyflannel.model.item import Item, ItemMap, Key

_Kind = TypeVar("_Kind", bound=Item)


class State(Struct, frozen=True):
    """Items by key. At most one item has a given key.

    A state is not changed after its creation, except the plan, which `engine.planner` updates in place.
    """

    by_key: ItemMap[Item] = field(default_factory=ItemMap)

    EMPTY: ClassVar["State"]

    @classmethod
    def of(cls, *items: Item) -> "State":
        """Return the state of these items. If two items have one key, the first is kept."""
        return cls(ItemMap(items))

    @classmethod
    def collect(cls, items: Iterable[Item]) -> "State":
        """Return the state of these items. If two items have one key, the first is kept."""
        return cls(ItemMap(items))

    @classmethod
    def of_tables(cls, tables: Mapping[Hashable, dict[Hashable, Item]]) -> "State":
        """Return the state of these tables, which are shared and must not be changed after that."""
        return cls(ItemMap.of_tables(tables))

    def of_kinds(self, kinds: Container[type[Item]]) -> "State":
        """Return the items of these kinds. The tables are shared, and each contains items of one kind."""
        tables = self.by_key.tables.items()
        return State.of_tables({t: names for t, names in tables if type(next(iter(names.values()))) in kinds})

    def of_type(self, kind: type[_Kind]) -> Iterator[_Kind]:
        """Yield the items of a type. A table contains items of only one type."""
        for names in self.by_key.tables.values():
            for item in names.values():
                if not isinstance(item, kind):
                    break
                yield item

    def without(self, keys: Iterable[Key]) -> "State":
        """Return the state without the items that have these keys."""
        left = self.by_key.copy()
        for key in keys:
            left.discard(key)
        return State(left)

    def __or__(self, other: "State") -> "State":
        """Return the union. If both states contain a key, the item of this state is kept."""
        return State(self.by_key | other.by_key)

    def __iter__(self) -> Iterator[Item]:
        return self.by_key.each()

    def __len__(self) -> int:
        return len(self.by_key)

    def __contains__(self, item: Item) -> bool:
        return self.by_key.get(item.key) == item


State.EMPTY = State()


class Add(Struct, frozen=True):
    """The item is missing."""

    item: Item

    @property
    def subject(self) -> Item:
        """The item to which the operation applies."""
        return self.item


class Replace(Struct, frozen=True):
    """The item exists, but differs."""

    old: Item
    new: Item

    @property
    def subject(self) -> Item:
        """The wanted item."""
        return self.new


class Remove(Struct, frozen=True):
    """The item exists and is not wanted. An item that no longer exists counts as removed."""

    item: Item

    @property
    def subject(self) -> Item:
        """The item to which the operation applies."""
        return self.item


Operation = Add | Replace | Remove


class Refusal(Struct, frozen=True, kw_only=True):
    """An operation that did not take effect, the cause, and the remedy.

    Attributes:
        is_permanent: True if the same operation cannot succeed before its input changes, for example because
            of a missing right, a read-only file system, an unknown feature. All other refusals are temporary.
    """

    operation: Operation
    cause: str
    hint: str = ""
    is_permanent: bool = False


# Changes of a plan.


class Unchanged(Struct, frozen=True):
    """The plan has not changed."""


class Changed(Struct, frozen=True):
    """Some objects of the plan changed: the keys of these objects, each with the planned object before the
    change.
    """

    previous: Mapping[Key, Item | None]


class Replaced(Struct, frozen=True):
    """A new plan. The whole plan was replaced. Later changes are made in place and reported by `Changed`."""

    plan: State


class Blocked(Struct, frozen=True):
    """There is no plan for these inputs, so the previous plan stays in force.

    Attributes:
        reason: the condition that the backend waits for; "" if an input is missing.
    """

    reason: str = ""


PlanResult = Unchanged | Changed | Replaced | Blocked
