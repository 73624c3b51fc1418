"""Ownership: which objects pyflannel may change or remove, and which device name a daemon claims."""

from collections.abc import Collection, Hashable, Iterator, Mapping, Set
from itertools import filterfalse

from pyflannel.model.host import Interfaces
from pyflannel.model.item import Item, ItemMap, Marks
from pyflannel.model.link import MARK, Link
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.route import DEVICES, route_protocol
from pyflannel.model.state import Add, Refusal, State


def device_names(
    mark: str, interfaces: Interfaces, *, kept: str | None = None, protocols: Collection[int] = ()
) -> Iterator[str]:
    """Yield `flannel0`, `flannel1`, … as this daemon may claim them, the best first.

    The name of its last life comes first, then that of a device that carries its mark, so that a restart
    finds what is its own. A device without a mark belongs to the program that made it, except flannel0:
    the host's only daemon takes it over. A name whose routes are there is that of a daemon that is down.

    Args:
        mark: alias of our links.
        interfaces: the devices that there are.
        kept: the name of the last life.
        protocols: of the routes that there are.
    """
    aliases = {one.name: one.alias for one in interfaces.interfaces}
    if kept in DEVICES and aliases.get(kept, mark) == mark:
        yield kept
    ours = [name for name in DEVICES if aliases.get(name) == mark]
    yield from ours
    if mark == MARK and not ours and not aliases.get(FIRST_DEVICE, "").startswith(MARK):
        yield FIRST_DEVICE
    for name in DEVICES:
        if name not in aliases and route_protocol(name) not in protocols:
            yield name


def standing_identity(mark: str, claimed: str, interfaces: Interfaces) -> str | None:
    """Return the identity on the tunnel device of the former daemon with this mark, which has ended.

    None if there is no such device, or if its daemon may still run: only the holder of a name has a device of
    that name, and only the holder of flannel0 has a vxlan device with the default mark.

    Args:
        mark: alias of our links.
        claimed: the name that this daemon holds.
        interfaces: the links of the host.
    """
    ours = [one for one in interfaces.interfaces if one.alias == mark and one.owner]
    owners = {one.owner for one in ours}
    has_ended = any(one.name == claimed for one in ours) or (mark, claimed) == (MARK, FIRST_DEVICE)
    return owners.pop() if has_ended and len(owners) == 1 else None


def ours(actual: State, desired: State, mark: str = MARK, device: str | None = FIRST_DEVICE) -> State:
    """Return the part of `actual` that a pass towards `desired` may change or remove.

    `mark` is the alias of the links that this daemon makes, `device` the name that it claims; None when
    that is not known, so that routes and filter rules cannot be told from another daemon's.

    1. An object at a key of the plan, on a link of the plan or with our mark is ours, no matter which
       program made it: a route that another program replaced is repaired. But a link with another daemon's
       mark is that daemon's, and so are the objects on it. A route that another program had first is not
       planned (plan.routes).
    2. Elsewhere only what carries our mark is ours: links by alias, routes by protocol number, filter rules
       by the name of their chain or table, which says the device.
    3. Everything else is foreign and stays.
    """
    others = {link.name for link in actual.of_type(Link) if _is_others(link, mark)}
    links = {link.name for link in (*actual.of_type(Link), *desired.of_type(Link)) if link.alias == mark}
    marks = Marks(mark=mark, device=device, links=links - others)
    kept: dict[Hashable, dict[Hashable, Item]] = {}
    for table, found in actual.by_key.tables.items():
        wanted = desired.by_key.tables.get(table, {})
        doubtful = found if others else list(filterfalse(wanted.__contains__, found))
        foreign = {
            name
            for name in doubtful
            if (name not in wanted or _is_on(found[name], others)) and not found[name].is_marked(marks)
        }
        kept[table] = {n: item for n, item in found.items() if n not in foreign} if foreign else found
    return State(ItemMap.of_tables(kept))


def taken_links(actual: State, desired: State, mark: str = MARK) -> Mapping[str, Refusal]:
    """Return the links of the plan that another daemon of this host has, by name: each a refusal, as it says.

    Nobody fights over them: they are left out of the plan for as long.
    """
    return {
        item.name: Refusal(
            operation=Add(wanted),
            cause=f"the flanneld with --run-dir={_run_dir(item.alias)} has this link",
            hint="Give each network a VNI of its own (Backend.VNI); what a daemon left that is no more,"
            f" `flannelctl cleanup --run-dir={_run_dir(item.alias)}` removes.",
        )
        for item in actual.of_type(Link)
        if _is_others(item, mark) and isinstance(wanted := desired.by_key.get(item.key), Link)
    }


def without_links(desired: State, names: Set[str]) -> State:
    """Return the plan but for these links and all that would be on them."""
    return desired.without(
        [
            item.key
            for item in desired
            if item.parent_link in names or (isinstance(item, Link) and item.name in names)
        ]
    )


def _is_others(link: Link, mark: str) -> bool:
    """Return whether another daemon's mark is on the link: ours, or ours and a run directory."""
    return link.alias != mark and (link.alias == MARK or link.alias.startswith(f"{MARK} "))


def _run_dir(alias: str) -> str:
    return alias.removeprefix(MARK).strip() or "/run/flannel"


def _is_on(item: Item, links: Set[str]) -> bool:
    """Return whether the item is one of these links, or is bound to one of them."""
    return item.IS_BOUND_TO_LINK and _link_of(item) in links


def _link_of(item: Item) -> str | None:
    return item.name if isinstance(item, Link) else item.parent_link
