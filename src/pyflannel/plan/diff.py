"""The difference: what must happen so that what is there becomes what is wanted."""

from collections.abc import Iterator
from dataclasses import replace

from pyflannel.model.address import Address
from pyflannel.model.forwarder import Forwarder
from pyflannel.model.link import Link
from pyflannel.model.operation import Add, Operation, Remove, Replace
from pyflannel.model.route import Route
from pyflannel.model.state import Item, State


def diff(desired: State, actual: State) -> Iterator[Operation]:
    """Yield the operations that turn `actual` into `desired`, in no order.

    `actual` holds only what is ours. A link of another kind is made anew, and what hung on it is planned
    as missing in the same pass.
    """
    wanted = desired.by_key
    present = _after_recreation(actual, _recreated(desired, actual)).by_key
    for key, item in present.items():
        if key not in wanted:
            yield Remove(item)
    for key, item in wanted.items():
        old = present.get(key)
        if old is None:
            yield Add(item)
        elif old != item:
            yield Replace(old, item)


def _recreated(desired: State, actual: State) -> set[str]:
    """Return the names of links that this pass makes: the missing, and those of another kind."""
    return {
        item.name
        for item in desired
        if isinstance(item, Link) and _kind(actual.by_key.get(item.key)) != item.kind
    }


def _kind(item: Item | None) -> str | None:
    return item.kind if isinstance(item, Link) else None


def _after_recreation(actual: State, names: set[str]) -> State:
    """Return what will be left of `actual` once the links `names` were made anew."""
    if not names:
        return actual
    left: list[Item] = []
    for item in actual:
        match item:
            case Address() | Route() if item.link in names:
                continue  # the kernel drops them with their link
            case Forwarder() if item.link in names:
                left.append(replace(item, is_attached=False))
            case _:
                left.append(item)
    return State.collect(left)
