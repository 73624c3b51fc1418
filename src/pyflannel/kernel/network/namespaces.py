"""Sockets in the network namespaces of other processes."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from pyflannel.errors import TargetError, WireError
from pyflannel.kernel.network.netlink_socket import RequestSocket
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
    """The links of a namespace by index, its addresses, and its neighbours."""

    links: dict[int, LinkRecord]
    addresses: list[AddressRecord]
    neighbours: list[NeighbourRecord]


async def read_namespace(pid: int) -> ReadNamespace | None:
    """Return the links, addresses and neighbours in the network namespace of a process; None if they cannot
    be read.
    """
    with contextlib.suppress(OSError, TargetError):
        with contextlib.closing(in_namespace_of(pid, RequestSocket)) as requests:
            links = await requests.dump(dump_links(), parse_link)
            return ReadNamespace(
                links={link.index: link for link in links},
                addresses=await requests.dump(dump_addresses(), parse_address_message),
                neighbours=await requests.dump(dump_neighbours(0), parse_neighbour),
            )
    return None


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
