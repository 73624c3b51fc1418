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
    """Yield the names `flannel0`, `flannel1`, … that this daemon may claim, with the best name first.

    The name of the previous run is first, then the name of a device with the daemon's mark, so that a
    restarted daemon finds its own objects. A device without a mark belongs to the program that created it,
    except flannel0, which the only daemon of a host takes over. A name with existing routes belongs to a
    daemon that is not running.

    Args:
        mark: alias of this daemon's links.
        interfaces: the existing devices.
        kept: the name of the previous run.
        protocols: protocol numbers of the existing routes.
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


def identity_on_device(mark: str, claimed: str, interfaces: Interfaces) -> str | None:
    """Return the identity on the tunnel device of a daemon with this mark that has exited.

    None if the device does not exist, or if its daemon may still run. Only the holder of a name has a device
    of that name, and only the holder of flannel0 has a vxlan device with the default mark.

    Args:
        mark: alias of this daemon's links.
        claimed: the name that this daemon holds.
        interfaces: the links of the host.
    """
    ours = [one for one in interfaces.interfaces if one.alias == mark and one.owner]
    owners = {one.owner for one in ours}
    has_ended = any(one.name == claimed for one in ours) or (mark, claimed) == (MARK, FIRST_DEVICE)
    return owners.pop() if has_ended and len(owners) == 1 else None


def ours(actual: State, desired: State, mark: str = MARK, device: str | None = FIRST_DEVICE) -> State:
    """Return the objects that this daemon owns, which a pass may change or remove to reach `desired`.

    `mark` is the alias of the links of this daemon. `device` is the name that the daemon claims; None if it
    is unknown, so that its routes and filter rules cannot be distinguished from those of another daemon.

    1. The daemon owns an object at a key of the plan, on a link of the plan or with its mark, even if another
       program created it. Therefore a route that another program replaced is repaired. However, a link with
       the mark of another daemon belongs to that daemon, together with the objects on it. A route that
       another program created first is not planned (plan.routes).
    2. In all other cases, the daemon owns only objects with its mark: links by alias, routes by protocol
       number, filter rules by the name of their chain or table, which contains the device.
    3. All other objects belong to other programs and are not changed.
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
    """Return a refusal for each link of the plan that another daemon of this host owns, by the name of the
    link.

    A link of another daemon is omitted from the plan while the other daemon owns the link.
    """
    return {
        item.name: Refusal(
            operation=Add(wanted),
            cause=f"the flanneld with --run-dir={_run_dir(item.alias)} owns this link",
            hint="Give each network its own VNI (Backend.VNI). If the other daemon no longer exists, run"
            f" `flannelctl cleanup --run-dir={_run_dir(item.alias)}`.",
        )
        for item in actual.of_type(Link)
        if _is_others(item, mark) and isinstance(wanted := desired.by_key.get(item.key), Link)
    }


def without_links(desired: State, names: Set[str]) -> State:
    """Return the plan without these links and the objects on them."""
    return desired.without(
        [
            item.key
            for item in desired
            if item.parent_link in names or (isinstance(item, Link) and item.name in names)
        ]
    )


def _is_others(link: Link, mark: str) -> bool:
    """Return whether the link has the mark of another daemon, with or without a run directory."""
    return link.alias != mark and (link.alias == MARK or link.alias.startswith(f"{MARK} "))


def _run_dir(alias: str) -> str:
    return alias.removeprefix(MARK).strip() or "/run/flannel"


def _is_on(item: Item, links: Set[str]) -> bool:
    """Return whether the item is one of these links, or is bound to one of them."""
    return item.IS_BOUND_TO_LINK and _link_of(item) in links


def _link_of(item: Item) -> str | None:
    return item.name if isinstance(item, Link) else item.parent_link
