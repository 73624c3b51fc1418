"""Every link and every route of the main table, whoever made them: what a person wants to know of a host."""

from pyflannel.kernel.network.items import link_of, route_of
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.state import Item
from pyflannel.wire.netlink.inet import INET, INET6
from pyflannel.wire.netlink.links import dump_links, parse_link
from pyflannel.wire.netlink.routes import RouteRecord, dump_routes, glance_at_route, parse_route


async def survey() -> list[Item]:
    """Return all links and all routes of the network namespace that the process is in, in the kernel's order.

    Raises:
        TargetError: the kernel refused or did not answer.
    """
    requests = RequestSocket()
    try:
        links = await requests.dump(dump_links(), parse_link)
        names = {link.index: link.name for link in links}
        routes: list[RouteRecord] = []
        for family in (INET, INET6):
            routes += await requests.dump(dump_routes(family), _read_route)
    finally:
        requests.close()
    return [*(link_of(link, names) for link in links), *(route_of(route, names) for route in routes)]


def _read_route(body: bytes) -> RouteRecord | None:
    return None if glance_at_route(body) is None else parse_route(body)
