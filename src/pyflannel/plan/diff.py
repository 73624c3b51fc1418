"""The difference between two states: operations in a safe order, and their texts for the log and the
status.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence, Set
from itertools import compress, filterfalse
from operator import is_not

from msgspec.structs import replace

from pyflannel.model.fast_path import Tunnel
from pyflannel.model.host import HostFile
from pyflannel.model.item import ANY, Item, Key, LinkChanges, LinkPrefix, Rank
from pyflannel.model.link import Address, Link, Veth, Vxlan
from pyflannel.model.packet_filter import (
    ForeignRule,
    IptablesChain,
    IptablesRules,
    Jump,
    NftTable,
    Rules,
)
from pyflannel.model.state import Add, Operation, Remove, Replace, State
from pyflannel.model.tunnel_guard import GuardTable


def diff(desired: State, actual: State) -> Iterator[Operation]:
    """Yield the operations that turn `actual` into `desired`, in no particular order.

    `actual` holds only items that pyflannel owns. A link that cannot be changed in place is removed and
    created again.
    """
    for old, new in differences(actual, desired):
        operation = change(old, new)
        if operation is not None:
            yield operation


def differences(before: State, after: State) -> Iterator[tuple[Item | None, Item | None]]:
    """Yield both items of each key whose item differs, with the keys that have no item in `after` first.

    Nearly all items are the same objects in both states. The interpreter compares these in C, without running
    Python code.
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


def losses(operations: Collection[Operation], desired: State) -> Iterator[tuple[Item, Item | None]]:
    """Yield the items of `desired` that the kernel drops, or may drop, because of the operations.

    Also yield the remaining part of each item; None if nothing remains. An item that the operations write is
    omitted, because they write it after the kernel dropped it. Writing an item that the kernel has kept has
    no effect.
    """
    changes = _link_changes(operations, desired)
    if changes is None:
        return
    written = {operation.subject.key for operation in operations}
    for item in desired:
        if (left := item.after(changes)) is not item and item.key not in written:
            yield item, left


def _link_changes(operations: Iterable[Operation], desired: State) -> LinkChanges | None:
    """Return the changes that cause the kernel to drop other objects; None if there are no such changes."""
    recreated: set[str] = set()
    readdressed: set[str] = set()
    prefixes: set[LinkPrefix] = set()
    for operation in operations:
        match operation:
            case Replace(Link() as old, Link() as new) if not old.becomes(new):
                recreated.add(new.name)
            case Replace(Link() as old, Link() as new) if old.mac != new.mac:
                readdressed.add(new.name)
            case Remove(Address() as old) | Replace(Address() as old, _) if old.address.version == 4:
                prefixes.add(old.prefix)
            case _:
                pass
    if not (recreated or readdressed or prefixes):
        return None
    held = {one.link for one in desired.of_type(Address) if one.prefix not in prefixes}
    return LinkChanges(
        recreated=recreated,
        readdressed=readdressed,
        prefixes=prefixes,
        unaddressed={link for link, _ in prefixes} - held,
    )


# When the first IPv4 address of a prefix is removed from a link, the kernel also removes the other addresses
# of this prefix. Therefore, if a prefix remains, its old address is removed before new addresses are added.
# Any other old address is removed after that, because a link without addresses loses its routes and
# neighbours.
_SHARED_PREFIX_RANK = Rank.ADDRESS - 1

# Both ends of a veth are created together. While another link has the name of one end, the kernel refuses to
# create the other end. Therefore a link that is recreated is removed before other links are added.
_RECREATED_LINK_RANK = Rank.LINK - 1

# The kernel refuses a second vxlan device with the same VNI and port. Therefore a device that was renamed is
# removed before the new device is created.
_LINK_IN_THE_WAY_RANK = Rank.LINK - 2

_REMOVAL_RANK = 100
"""A number greater than every build rank. The kind that is built last is removed first."""


def order(operations: Iterable[Operation], desired: State) -> list[Operation]:
    """Sort the operations into a safe sequence, which is make before break, unless the kernel cannot have
    both objects.

    Operations of one rank keep their order.
    """
    listed = list(operations)
    kept = {address.prefix for address in desired.of_type(Address)}
    built = [one.subject for one in listed if isinstance(one.subject, Link) and not isinstance(one, Remove)]
    return sorted(listed, key=lambda operation: _rank(operation, kept, built))


def _rank(operation: Operation, kept: Set[LinkPrefix], built: Sequence[Link]) -> int:
    match operation:
        case Replace(Link() as old, Link() as new) if not old.becomes(new):
            return _RECREATED_LINK_RANK
        case Add(item) | Replace(_, item):
            return item.RANK
        case Remove(Address() as old) if old.prefix in kept:
            return _SHARED_PREFIX_RANK
        case Remove(Link() as old) if any(old.excludes(link) for link in built):
            return _LINK_IN_THE_WAY_RANK
        case Remove(item):
            return _REMOVAL_RANK - item.RANK


class Missing:
    """The objects that do not exist yet, or do not work yet, so that objects that require them cannot be
    built.
    """

    def __init__(self) -> None:
        self._keys: set[Key] = set()
        self._tables: set[Hashable] = set()

    def note(self, operation: Operation) -> None:
        """Record an operation that has not been performed."""
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
        """Return whether any object is missing."""
        return bool(self._keys)

    def blocks(self, operation: Operation) -> bool:
        """Return whether the operation would be refused because an object that it requires is missing."""
        if isinstance(operation, Remove) or not self._keys:
            return False
        return any(
            table in self._tables if name is ANY else (table, name) in self._keys
            for table, name in operation.subject.requires
        )


_Part = Vxlan | Veth | Tunnel


def found(operation: Operation) -> str:
    """Return the difference that an operation removes, for example `link flannel0: mtu 1300, wanted 1472`."""
    match operation:
        case Add(item):
            return f"{item.title}: missing"
        case Remove(item):
            return f"{item.title}: not wanted"
        case Replace(old, new):
            return f"{new.title}: {', '.join(_differences(old, new))}"


def _differences(old: Item, new: Item) -> list[str]:
    if type(old) is not type(new):
        return [f"another object, {old.title}"]
    if isinstance(new, HostFile):
        return ["its text differs"]
    if isinstance(old, IptablesChain) and isinstance(new, IptablesChain):
        return _chain_differences(old, new)
    if isinstance(old, GuardTable) and old.differences:
        return list(old.differences)
    if isinstance(old, NftTable) and isinstance(new, NftTable):
        return _table_differences(old, new)
    return list(_attribute_differences(old, new))


def _attribute_differences(old: Item | _Part, new: Item | _Part) -> Iterator[str]:
    for name in new.__struct_fields__:
        was, wanted = getattr(old, name), getattr(new, name)
        if isinstance(was, _Part) and isinstance(wanted, _Part):
            yield from _attribute_differences(was, wanted)
        elif isinstance(was, _Part) or isinstance(wanted, _Part):
            yield f"no {name}" if was is None else f"is {name}"
        elif was != wanted:
            yield _difference(name, was, wanted)


def _chain_differences(old: IptablesChain, new: IptablesChain) -> list[str]:
    texts = _rule_differences(old.rules, new.rules)
    if old.is_for_dropping != new.is_for_dropping:
        texts.append(f"not needed while {old.hook} drops nothing")
    if old.jump is not Jump.IN_PLACE:
        texts.append(f"the jump from {old.hook} is {old.jump.value}")
    return texts


def _table_differences(old: NftTable, new: NftTable) -> list[str]:
    wanted = {chain.name: chain for chain in new.chains}
    present = {chain.name: chain for chain in old.chains}
    texts = [f"foreign {other}" for other in old.others]
    texts += [f"chain {name} not wanted" for name in present if name not in wanted]
    for name, chain in wanted.items():
        there = present.get(name)
        if there is None:
            texts.append(f"chain {name} missing")
        elif replace(there, rules=()) != replace(chain, rules=()):
            texts.append(f"chain {name} at another hook")
        else:
            texts += [f"{text} in {name}" for text in _rule_differences(there.rules, chain.rules)]
    return texts or ["chains in another order"]


def _rule_differences(old: Rules | IptablesRules, new: Rules | IptablesRules) -> list[str]:
    texts = [f"foreign rule {rule.text!r}" for rule in old if isinstance(rule, ForeignRule)]
    if missing := sum(rule not in old for rule in new):
        texts.append(f"{missing} of {len(new)} rules missing")
    if strange := sum(not isinstance(rule, ForeignRule) and rule not in new for rule in old):
        texts.append(f"{strange} other rules")
    return texts if texts or old == new else ["rules in another order"]


def _difference(attribute: str, was: object, wanted: object) -> str:
    if isinstance(wanted, bool):
        word = attribute.removeprefix("is_").removeprefix("has_")
        return f"not {word}" if wanted else word
    return f"{attribute.replace('_', ' ')} {_text(was)}, wanted {_text(wanted)}"


def _text(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value or "none")
