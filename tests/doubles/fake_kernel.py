"""A kernel in memory."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from pyflannel.errors import TargetError
from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item
from pyflannel.model.link import Address, Link
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.ports import Announce, ChangeChannel

_ON_LINKS = (Address, Neighbour, FdbEntry, Route, BpfProgram)


class FakeKernel:
    """A Target in memory that refuses what a test names, and drops what the kernel drops.

    Everything goes with a deleted link, also the other end of a veth; the routes and neighbours of a link go
    when it is set down, its neighbours when its MAC address changes; the routes that have an address as their
    source go with it. A change by another program is announced. What the daemon does itself is not, nor what
    the kernel drops because of that.

    Attributes:
        is_readable: a snapshot fails while this is False.
    """

    kinds = (
        *(Link, Address, Neighbour, FdbEntry, Route),
        *(Forwarder, ForwarderPeer, BpfProgram, BpfPeer, BpfContainer),
        *(IptablesChain, NftTable, HostFile),
    )

    def __init__(
        self, state: State = State.EMPTY, *, refuse: Callable[[Operation], bool] = lambda operation: False
    ) -> None:
        self.state = state
        self.refuse = refuse
        self.batches: list[list[Operation]] = []
        self.is_readable = True
        self._changed = asyncio.Event()

    async def snapshot(self, desired: State) -> State:
        """Return everything there is."""
        if not self.is_readable:
            raise TargetError("the test asked for this", hint="Try again.")
        return self.state

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform what the test does not refuse, and what the kernel would not."""
        self.batches.append(list(operations))
        refusals = []
        for operation in operations:
            if self.refuse(operation):
                refusals.append(Refusal(operation=operation, cause="the test asked for this"))
            elif (cause := self._perform(operation)) is not None:
                refusals.append(Refusal(operation=operation, cause=cause))
        return refusals

    def changes(self) -> ChangeChannel:
        """Open a channel of the changes by other programs."""
        return ChangeChannel(self._read_changes)

    async def _read_changes(self, announce: Announce) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            announce()

    def damage(self, *operations: Operation, is_announced: bool = True) -> None:
        """Change something behind the daemon's back."""
        for operation in operations:
            self._perform(operation)
        if is_announced:
            self._changed.set()

    def _perform(self, operation: Operation) -> str | None:
        match operation:
            case Add(item) | Replace(_, item):
                if (cause := self._missing(item)) is not None:
                    return cause
                old = self.state.by_key.get(item.key)
                self._set(item)
                if isinstance(old, Link) and isinstance(item, Link):
                    self._link_changed(old, item)
            case Remove(item):
                self._drop([item])
                self._drop(self._dependants(item))
        return None

    def _missing(self, item: Item) -> str | None:
        """Return why the kernel would refuse the item: what it hangs on is not there."""
        match item:
            case Address(link=name) | Forwarder(link=name) | Neighbour(link=name) | FdbEntry(link=name):
                return None if self._has_link(name) else f"no link {name}"
            case Route(link=name, source=source) if name:
                link = self.state.by_key.get(("link", name))
                if not (isinstance(link, Link) and link.is_up):
                    return f"link {name} is down or missing"
                return (
                    None if source is None or self._has_address(source) else f"{source} is nobody's address"
                )
            case ForwarderPeer(link=name):
                return None if ("forwarder", name) in self.state.by_key else f"no forwarder of {name}"
            case _:
                return None

    def _has_link(self, name: str) -> bool:
        return ("link", name) in self.state.by_key

    def _has_address(self, address: IPv4Address | IPv6Address) -> bool:
        return any(isinstance(item, Address) and item.address.ip == address for item in self.state)

    def _link_changed(self, old: Link, new: Link) -> None:
        if not old.becomes(new):
            self._drop(self._dependants(old))
        elif old.is_up and not new.is_up:
            self._drop(
                item for item in self.state if isinstance(item, Route | Neighbour) and item.link == new.name
            )
        elif old.mac != new.mac:
            self._drop(item for item in self.state if isinstance(item, Neighbour) and item.link == new.name)

    def _dependants(self, gone: Item) -> list[Item]:
        match gone:
            case Link(name=name):
                for item in list(self.state):
                    if isinstance(item, Forwarder) and item.link == name:
                        self._set(replace(item, is_attached=False))
                gone_links = {name} if gone.veth is None else {name, gone.veth.peer}
                return [
                    item
                    for item in self.state
                    if (isinstance(item, _ON_LINKS) and item.link in gone_links)
                    or (isinstance(item, Link) and item.name in gone_links and item.veth is not None)
                ]
            case Address(link=name, address=address):
                return [
                    item
                    for item in self.state
                    if isinstance(item, Route) and item.link == name and item.source == address.ip
                ]
            case Forwarder(link=name):
                return [item for item in self.state if isinstance(item, ForwarderPeer) and item.link == name]
            case _:
                return []

    def _set(self, item: Item) -> None:
        self.state = State.of(item) | self.state

    def _drop(self, items: Iterable[Item]) -> None:
        self.state = self.state.without([item.key for item in items])
