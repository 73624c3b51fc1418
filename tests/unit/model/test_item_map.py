"""The map of items behaves like a dictionary, and its copies are independent."""

from collections.abc import Hashable
from dataclasses import dataclass
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.model import item
from pyflannel.model.item import ItemMap, Key


@dataclass(frozen=True)
class Thing:
    table: Hashable
    name: int
    value: int

    @property
    def key(self) -> Key:
        return self.table, self.name


things = st.builds(Thing, st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 1))
steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "put", "discard", "keep a copy", "go on with a copy", "union"]), things
    ),
    max_size=20,
)


def plain(items: ItemMap[Thing]) -> dict[Key, Thing]:
    return {thing.key: thing for thing in items.each()}


@patch.object(item, "_SMALL_TABLE", 0)
@given(steps)
def test_an_item_map_behaves_like_a_dictionary(made: list[tuple[str, Thing]]) -> None:
    """Each copy and each union is compared with its expected content after later changes of the original."""
    items, twin = ItemMap[Thing](), dict[Key, Thing]()
    others: list[tuple[ItemMap[Thing], dict[Key, Thing]]] = []
    for step, thing in made:
        match step:
            case "add":
                items.add([thing])
                twin.setdefault(thing.key, thing)
            case "put":
                items.put(thing)
                twin[thing.key] = thing
            case "discard":
                items.discard(thing.key)
                twin.pop(thing.key, None)
            case "keep a copy":
                others.append((items.copy(), dict(twin)))
            case "go on with a copy":
                others.append((items, dict(twin)))
                items = items.copy()
            case _:
                others.append((items.copy() | ItemMap([thing]), {thing.key: thing} | twin))
        others = others[-3:]

    for map_, dictionary in [(items, twin), *others]:
        assert plain(map_) == dictionary
        assert dict(map_) == dictionary
        assert len(map_) == len(dictionary)
        assert map_ == ItemMap(reversed(list(dictionary.values())))
        assert all(map_.tables.values())


def test_a_table_that_shrinks_does_not_keep_the_memory_of_its_largest_size() -> None:
    things = [Thing("a", number, 0) for number in range(20_000)]
    items = ItemMap(things)
    full = items.tables["a"].__sizeof__()
    for thing in things[5_000:]:
        items.discard(thing.key)

    assert len(items) == 5_000
    assert items.tables["a"].__sizeof__() < 0.6 * full
