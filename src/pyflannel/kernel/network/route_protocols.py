"""Which route protocols are in use: by them one daemon finds out which others have been here."""

from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.wire.netlink.inet import INET, INET6
from pyflannel.wire.netlink.routes import dump_routes, glance_at_route


async def route_protocols() -> frozenset[int]:
    """Return the rtm_protocol of every route of the main table, each once.

    Raises:
        TargetError: the kernel refused or did not answer.
    """
    requests = RequestSocket()
    try:
        found: set[int] = set()
        for family in (INET, INET6):
            found.update(await requests.dump(dump_routes(family), _protocol))
        return frozenset(found)
    finally:
        requests.close()


def _protocol(body: bytes) -> int | None:
    glance = glance_at_route(body)
    return None if glance is None else glance.protocol
