"""Sockets in the network namespaces of other processes."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pyflannel.errors import TargetError, WireError
from pyflannel.kernel.host.namespace_settings import read_settings
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.network_config import IpAddress
from pyflannel.plan.doctor.observed import InnerAnswer, NamespaceSettings
from pyflannel.wire.netlink.addresses import AddressRecord, dump_addresses, parse_address_message
from pyflannel.wire.netlink.bridges import dump_learned, parse_learned
from pyflannel.wire.netlink.links import (
    LinkRecord,
    dump_links,
    get_namespace,
    parse_far_veth,
    parse_link,
    parse_namespace,
)
from pyflannel.wire.netlink.message import Message
from pyflannel.wire.netlink.neighbours import NeighbourRecord, dump_neighbours, parse_neighbour
from pyflannel.wire.netlink.routes import UNICAST, look_up_route, parse_route
from pyflannel.wire.netlink.tc import (
    EGRESS,
    INGRESS,
    dump_filters,
    dump_qdiscs,
    parse_filter,
    parse_qdisc,
)

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET

_Opened = TypeVar("_Opened")


def in_namespace_of(pid: int, opener: Callable[[], _Opened]) -> _Opened:
    """Return the result of `opener`, called in the network namespace of a process. A thread calls it, and
    ends afterwards.

    Raises:
        OSError: the namespace cannot be entered.
        TargetError: raised by `opener`, as OSError may be.
    """
    results: list[_Opened] = []
    failures: list[OSError | TargetError] = []

    def enter() -> None:
        try:
            with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
                library = ctypes.CDLL(None, use_errno=True)
                if library.setns(namespace.fileno(), _NEW_NETWORK):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            results.append(opener())
        except (OSError, TargetError) as error:
            failures.append(error)

    thread = threading.Thread(target=enter, name="socket in a container")
    thread.start()
    thread.join()
    for failure in failures:
        raise failure
    return results[0]


class ReadNamespace(NamedTuple):
    """The links of a namespace by index, its addresses and its neighbours.

    Attributes:
        filtered: the indexes of links with filters of traffic control.
        programs: the indexes of links with eBPF programs in these filters, with their direction.
        settings: its sysctls; None if they are unreadable.
        answers: the answers of the kernel to the questions, in their order.
    """

    links: dict[int, LinkRecord]
    addresses: list[AddressRecord]
    neighbours: list[NeighbourRecord]
    filtered: frozenset[int] = frozenset()
    programs: Sequence[tuple[int, str]] = ()
    settings: NamespaceSettings | None = None
    answers: Sequence[InnerAnswer] = ()


Question = tuple[IpAddress, IpAddress | None]
"""The destination of a packet, and its source; None if the kernel chooses the source."""


async def read_namespace(pid: int, questions: Iterable[Question] = ()) -> ReadNamespace | None:
    """Return the state of the network namespace of a process; None if it cannot be read.

    `questions`: the packets for whose routes the kernel is asked.
    """
    with contextlib.suppress(OSError, TargetError):
        opened, settings = in_namespace_of(pid, lambda: (RequestSocket(), read_settings()))
        with contextlib.closing(opened) as requests:
            links = await requests.dump(dump_links(), parse_link)
            qdiscs = await requests.dump(dump_qdiscs(), parse_qdisc)
            filtered = frozenset(link for link, kind in qdiscs if kind in _WITH_FILTERS)
            return ReadNamespace(
                links={link.index: link for link in links},
                addresses=await requests.dump(dump_addresses(), parse_address_message),
                neighbours=await requests.dump(dump_neighbours(0), parse_neighbour),
                filtered=filtered,
                programs=[
                    (link, direction)
                    for link in sorted(filtered)[:_LINKS_ASKED]
                    for parent, direction in ((INGRESS, "ingress"), (EGRESS, "egress"))
                    if await requests.dump(dump_filters(link, parent), parse_filter)
                ],
                settings=settings,
                answers=[
                    await _answer(requests, question, {link.index: link.name for link in links})
                    for question in questions
                ],
            )
    return None


async def _answer(requests: RequestSocket, question: Question, names: Mapping[int, str]) -> InnerAnswer:
    destination, source = question
    answer = await requests.ask(look_up_route(destination, source))
    if not isinstance(answer, Message):
        return InnerAnswer(destination=destination, asked_source=source, error=os.strerror(answer.errno))
    route = parse_route(answer.body)
    is_sent = route is not None and route.kind == UNICAST
    return InnerAnswer(
        destination=destination,
        asked_source=source,
        link=names.get(route.index, "") if route is not None else "",
        gateway=route.gateway if route is not None else None,
        source=route.source if route is not None and source is None else None,
        error="" if is_sent else "the packet does not leave the namespace",
    )


_WITH_FILTERS = frozenset({"clsact", "ingress"})
_LINKS_ASKED = 4
"""Maximum number of links of a namespace whose filters are read."""


async def far_ends(pids: Iterable[int]) -> dict[int, dict[int, int]]:
    """Return the links in the namespaces of processes whose other end is a veth in this namespace: the index
    of the veth by the index of the link, by the process. Processes without such links are omitted.
    """
    found: dict[int, dict[int, int]] = {}
    with contextlib.suppress(TargetError, WireError), contextlib.closing(RequestSocket()) as requests:
        by_number: dict[int, dict[int, int]] = {}
        for one in await requests.dump(dump_links(), parse_far_veth):
            by_number.setdefault(one.namespace, {})[one.peer] = one.index
        for pid in pids:
            answer = await requests.ask(get_namespace(pid))
            number = parse_namespace(answer.body) if isinstance(answer, Message) else None
            if number in by_number:
                found[pid] = by_number[number]
    return found


async def learned_by(bridge: int) -> list[tuple[int, str]]:
    """Return the port and the MAC address of each FDB entry of a bridge; empty if they cannot be read."""
    with contextlib.suppress(TargetError), contextlib.closing(RequestSocket()) as requests:
        found = await requests.dump(dump_learned(bridge), parse_learned)
        return [(port, mac) for index, port, mac in found if index == bridge]
    return []
