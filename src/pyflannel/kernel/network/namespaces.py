"""Sockets in the network namespaces of other processes."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pyflannel.errors import TargetError
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.network_config import IpNetwork
from pyflannel.wire.netlink.addresses import dump_addresses, parse_address_message
from pyflannel.wire.netlink.links import dump_links, parse_link

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


async def mtus_in(pid: int, subnet: IpNetwork) -> dict[str, int]:
    """Return the MTUs of the links with an address in the subnet, in the network namespace of a process;
    empty if they cannot be read.
    """
    with contextlib.suppress(OSError, TargetError):
        with contextlib.closing(in_namespace_of(pid, RequestSocket)) as requests:
            addresses = await requests.dump(dump_addresses(), parse_address_message)
            links = await requests.dump(dump_links(), parse_link)
        held = {one.index for one in addresses if one.address.ip in subnet}
        return {link.name: link.mtu for link in links if link.index in held}
    return {}
