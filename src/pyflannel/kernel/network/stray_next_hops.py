"""Next hops that no route refers to: what is left when somebody deletes a route of ours by hand."""

from pyflannel.errors import TargetError
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.wire.netlink.next_hops import (
    dump_next_hops,
    next_hop_number,
    next_hop_protocol,
    remove_next_hop,
)


async def remove_next_hops(protocol: int) -> int:
    """Remove the next hops of this rtm_protocol, and what refers to them; return how many there were.

    A kernel that knows no next hops has none.

    Raises:
        TargetError: the kernel did not answer.
    """

    def read(body: bytes) -> int | None:
        return next_hop_number(body) if next_hop_protocol(body) == protocol else None

    requests = RequestSocket()
    try:
        try:
            numbers = await requests.dump(dump_next_hops(), read)
        except TargetError:
            return 0
        await requests.transact([remove_next_hop(number) for number in numbers])
    finally:
        requests.close()
    return len(numbers)
