"""Operations: what turns one state into another, and what was refused."""

from dataclasses import dataclass

from pyflannel.model.state import Item


@dataclass(frozen=True, slots=True)
class Add:
    """The item is missing."""

    item: Item


@dataclass(frozen=True, slots=True)
class Replace:
    """The item is there, but differs."""

    old: Item
    new: Item


@dataclass(frozen=True, slots=True)
class Remove:
    """The item is there and must go; one that is gone already is fine."""

    item: Item


Operation = Add | Replace | Remove


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An operation that did not take effect, why, and what the operator can do about it."""

    operation: Operation
    cause: str
    hint: str = ""
