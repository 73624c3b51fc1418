"""The security associations and the policies of IPsec in a network namespace."""

import contextlib

from pyflannel.errors import TargetError
from pyflannel.kernel.network.namespaces import in_namespace_of
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.host import IpsecEnds, IpsecPolicy
from pyflannel.wire.netlink import xfrm
from pyflannel.wire.netlink.message import Message


async def security_associations() -> frozenset[IpsecEnds] | None:
    """Return the ends of the negotiated security associations; None if they cannot be read."""
    try:
        with contextlib.closing(RequestSocket(xfrm.PROTOCOL)) as requests:
            return frozenset(await requests.dump(xfrm.dump_associations(), xfrm.parse_association))
    except TargetError:
        return None


async def read_policies(requests: RequestSocket) -> tuple[IpsecPolicy, ...]:
    """Return the IPsec policies and the default action, in the namespace of a socket of NETLINK_XFRM.

    Raises:
        TargetError: the kernel refused or did not answer.
    """
    found = await requests.dump(xfrm.dump_policies(), xfrm.parse_policy)
    answer = await requests.ask(xfrm.get_default())
    if isinstance(answer, Message):  # a kernel before 5.15 refuses this option
        found += xfrm.parse_default(answer.body)
    return tuple(found)


async def policies_in(pid: int) -> tuple[IpsecPolicy, ...]:
    """Return the IPsec policies in the network namespace of a process; empty if they cannot be read."""
    with contextlib.suppress(OSError, TargetError):
        opened = in_namespace_of(pid, lambda: RequestSocket(xfrm.PROTOCOL))
        with contextlib.closing(opened) as requests:
            return await read_policies(requests)
    return ()
