"""Waits for descriptors and calls who waits for them."""

import select
from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP
"""Reported always, whether asked for or not."""

Handler = Callable[[int], None]
"""Called with the events of its descriptor, which are reported again until they are dealt with."""


class Poller:
    """Level-triggered: what a handler leaves comes again in the next round, after the others' turn."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def add(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call the handler whenever one of the events is there."""
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def change(self, descriptor: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Forget a descriptor, which must still be open."""
        self._epoll.unregister(descriptor)
        del self._handlers[descriptor]

    def run_round(self) -> None:
        """Wait until something is ready, then call each handler once."""
        for descriptor, events in self._epoll.poll():
            # An earlier handler of this round may have removed it.
            if (handler := self._handlers.get(descriptor)) is not None:
                handler(events)
