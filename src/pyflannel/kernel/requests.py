"""Addresses and routes as netlink requests: what to ask for an operation, and what an answer means."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyflannel.kernel.refusals import GONE
from pyflannel.kernel.snapshot import KINDS
from pyflannel.model.address import Address
from pyflannel.model.operation import Add, Operation, Remove, Replace
from pyflannel.model.route import Route
from pyflannel.wire.netlink.acknowledgement import Acknowledgement
from pyflannel.wire.netlink.addresses import add_address, remove_address
from pyflannel.wire.netlink.message import Request
from pyflannel.wire.netlink.routes import UNICAST, RouteRecord, put_route, remove_route

_KIND_NUMBERS = {name: number for number, name in KINDS.items()}

_IndexOf = Callable[[str], int]
"""From a link's name to its index; raises OSError when there is no such link."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An operation and the requests that perform it, in order."""

    operation: Operation
    requests: tuple[Request, ...]


def ask(operation: Operation, index_of: _IndexOf) -> Asked:
    """Return what performs an operation on an address or a route.

    Raises:
        OSError: its link is not there; for a removal there is nothing to ask then.
        TypeError: the item is neither address nor route.
    """
    try:
        return Asked(operation, _requests(operation, index_of))
    except OSError:
        if isinstance(operation, Remove):
            return Asked(operation, ())
        raise


def ask_again(asked: Asked, answers: Sequence[Acknowledgement], index_of: _IndexOf) -> Asked | None:
    """Return what a route needs that stands behind another program's of the same key; None for all else.

    The kernel refuses to put it in the first's place while it is there itself (`ip route prepend`): EEXIST.
    It is taken out first; nothing is lost meanwhile, as the look-up got to the other.
    """
    match asked.operation:
        case Add(Route() as route) | Replace(_, Route() as route) if answers[-1].errno == errno.EEXIST:
            record = _record(route, index_of)
            return Asked(asked.operation, (remove_route(record), put_route(record)))
        case _:
            return None


def failure(asked: Asked, answers: Sequence[Acknowledgement]) -> Acknowledgement | None:
    """Return the answer that refuses the operation; None when it took effect.

    Removing what is gone already is fine.
    """
    is_removal = isinstance(asked.operation, Remove)
    for place, answer in enumerate(answers, start=1):
        may_be_gone = is_removal or place < len(answers)
        if answer.errno and not (may_be_gone and answer.errno in GONE):
            return answer
    return None


def _requests(operation: Operation, index_of: _IndexOf) -> tuple[Request, ...]:
    match operation:
        case Add(Address() as item):
            return (add_address(index_of(item.link), item.address),)
        case Replace(Address() as old, Address() as new):
            index = index_of(new.link)
            return remove_address(index, old.address, old.peer), add_address(index, new.address)
        case Remove(Address() as item):
            return (remove_address(index_of(item.link), item.address, item.peer),)
        case Add(Route() as item) | Replace(Route(), Route() as item):
            return (put_route(_record(item, index_of)),)
        case Remove(Route() as item):
            return (remove_route(_record(item, index_of)),)
        case _:
            raise TypeError(f"not an operation on an address or a route: {operation!r}")


def _record(route: Route, index_of: _IndexOf) -> RouteRecord:
    return RouteRecord(
        destination=route.destination,
        index=index_of(route.link) if route.link else 0,
        gateway=route.gateway,
        source=route.source,
        metric=route.metric,
        protocol=route.protocol,
        scope=route.scope,
        kind=_KIND_NUMBERS.get(route.kind, UNICAST),
        is_onlink=route.is_onlink,
        is_multipath=route.kind == "multipath",
    )
