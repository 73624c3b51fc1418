"""What a dump's messages were made into when they came last."""

from array import array
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar


class OnLink(Protocol):
    """What hangs on a link, or on none: its name is empty then."""

    @property
    def link(self) -> str:
        """The link's name."""
        ...


_Item = TypeVar("_Item", bound=OnLink)


class Remembered(Generic[_Item]):
    """The items of the last look in the order in which they came, by the hash of what lasts of each message.

    The kernel dumps a table in one order, so that the next message is nearly always the one that came next
    before: two numbers each are enough, where a dictionary takes ten. Where the order differs, one is made
    and kept until the dump ends. Python's hash of octets has 64 bits and a secret: that two of a million
    messages share one is less likely than that the memory errs.
    """

    def __init__(self) -> None:
        self._hashes, self._items = array("q"), list[_Item | None]()
        self._old_hashes, self._old_items = self._hashes, self._items
        self._place = 0
        self._by_hash: dict[int, _Item | None] | None = None
        self._links: Mapping[int, str] = {}
        self._names: frozenset[str] = frozenset()

    def begin(self, links: Mapping[int, str]) -> None:
        """Begin another look; only what is on these links is remembered, as their names are known to stay."""
        if links != self._links:
            self._links, self._names = links, frozenset(links.values()) | {""}
            self._hashes, self._items = array("q"), []
        self._old_hashes, self._old_items = self._hashes, self._items
        self._hashes, self._items = array("q"), []
        self._place, self._by_hash = 0, None

    def end(self) -> None:
        """End the look: what did not come in it is forgotten."""
        self._old_hashes, self._old_items, self._by_hash = self._hashes, self._items, None

    def reader(
        self, make: Callable[[bytes], _Item | None], lasting: Callable[[bytes], bytes] = bytes
    ) -> Callable[[bytes], _Item | None]:
        """Return what reads a dump; `make` is asked about what is new, and what it made nothing of."""

        def read(body: bytes) -> _Item | None:
            part = hash(lasting(body))
            item = self._known(part) or make(body)
            self._hashes.append(part)
            self._items.append(item if item is not None and item.link in self._names else None)
            return item

        return read

    def _known(self, part: int) -> _Item | None:
        if self._by_hash is None:
            place = self._place
            if place < len(self._old_hashes) and self._old_hashes[place] == part:
                self._place = place + 1
                return self._old_items[place]
            self._by_hash = dict(zip(self._old_hashes, self._old_items, strict=True))
        return self._by_hash.get(part)
