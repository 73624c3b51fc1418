"""What is ours among all that is there: the rules that decide what a pass may touch."""

from collections.abc import Iterable
from typing import assert_never

from pyflannel.model.address import Address
from pyflannel.model.fdb_entry import FdbEntry
from pyflannel.model.filter_name import FIRST_DEVICE
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host_file import HostFile
from pyflannel.model.iptables_chain import IptablesChain
from pyflannel.model.link import MARK, Link
from pyflannel.model.neighbour import Neighbour
from pyflannel.model.nft_table import NftTable
from pyflannel.model.route import PROTOCOL_FLANNEL, Route
from pyflannel.model.state import Item, State


def ours(actual: Iterable[Item], desired: State, mark: str = MARK) -> State:
    """Return the part of `actual` that a pass towards `desired` may change or remove.

    `mark` is the alias of the links that this daemon makes.

    1. What stands at a key of the plan, or on a link of the plan or with our mark, is ours whoever made
       it: a route that somebody replaced is taken back.
    2. Elsewhere only what carries our mark is ours: links by alias, routes by protocol number, filter rules
       by the name of their chain or table, which says the device.
    3. Everything else is foreign and stays.
    """
    items = tuple(actual)
    links = {item.name for item in (*items, *desired) if isinstance(item, Link) and item.alias == mark}
    devices = set(links)
    if mark == MARK and not links and not any(_is_first_device(item) for item in items):
        devices.add(FIRST_DEVICE)  # the names of the original's rules, and of ours when the device is gone
    return State.collect(
        item for item in items if item.key in desired.by_key or _is_marked(item, mark, links, devices)
    )


def _is_first_device(item: Item) -> bool:
    return isinstance(item, Link) and item.name == FIRST_DEVICE and item.alias.startswith(MARK)


def _is_marked(item: Item, mark: str, links: set[str], devices: set[str]) -> bool:
    match item:
        case Link():
            return item.alias == mark
        case Address() | Neighbour() | FdbEntry():
            return item.link in links
        case Route():
            return item.link in links or item.protocol == PROTOCOL_FLANNEL
        case IptablesChain() | NftTable():
            return item.device in devices
        case Forwarder() | ForwarderPeer():
            return True  # nobody else runs one in our run directory
        case HostFile():
            return False  # a file at another path is somebody else's
        case _:
            assert_never(item)
