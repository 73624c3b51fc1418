"""Faults of the routes inside containers: packets for other hosts are refused, or have a wrong next hop."""

from collections.abc import Callable, Iterable, Iterator

from pyflannel.model.status import Finding
from pyflannel.plan.doctor.observed import DOCKER_FIX, NAMED, Observed, some


def _refused(seen: Observed) -> Iterator[Finding]:
    """Yield findings for containers that cannot send to other hosts. Containers without a route may be
    intended, for example in an internal network.
    """
    own, peer = seen.membership.subnet, next(iter(seen.membership.peers), None)
    if own is None or peer is None:
        return
    there, pids = peer.network_address + 2, list[int]()
    lost = []
    for one in seen.containers:
        held = sorted((held for held in one.addresses if held in own), key=int)
        if held and not one.has_route_to(there):
            route = one.route_to(there)
            refused = "" if route is None else f", refuses packets to {route.destination}"
            lost += [f"{address}, {one.process}{refused}" for address in held]
            pids.append(one.pid)
    if lost:
        yield Finding(
            code="container-route",
            severity="info",
            cause="these containers have no route to other hosts",
            evidence=some(lost),
            fix=f"nsenter --net --target {pids[0]} ip -{seen.family} route"
            "  # the default route must lead to the bridge, and no route may refuse the packets",
        )


def _gateways(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers send packets for other hosts to a gateway that is neither this host
    nor a container of this host.
    """
    own, peer = seen.membership.subnet, next(iter(seen.membership.peers), None)
    if own is None or peer is None:
        return
    bridges = [(name, seen.interfaces.named(name)) for name in seen.ports]
    here = [
        held.address.ip
        for _, bridge in bridges
        if bridge is not None
        for held in bridge.addresses
        if held.address.ip in own
    ]
    known = {*here, *(address for one in seen.containers for address in one.addresses)}
    wrong = {
        f"{one.process}: {route.destination} via {route.gateway}": (one.pid, route)
        for one in seen.containers
        if any(held in own for held in one.addresses)
        if (route := one.route_to(peer.network_address + 2)) is not None and not route.is_refused
        if route.gateway is not None and route.gateway in own and route.gateway not in known
    }
    if wrong and here:
        yield Finding(
            code="container-gateway",
            severity="warning",
            cause="containers send packets for other hosts to an address that neither this host nor a"
            " container has",
            evidence=some([*wrong]),
            fix="; ".join(
                f"nsenter --net --target {pid} ip -{seen.family} route replace {route.destination}"
                f" via {here[0]}"
                for pid, route in [*wrong.values()][:NAMED]
            ),
        )


def _prefixes(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers expect the containers of other hosts on their own link."""
    own, peer = seen.membership.subnet, next(iter(seen.membership.peers), None)
    if own is None or peer is None:
        return
    wide = {
        f"{one.process}: {prefix} is on the link": one.pid
        for one in seen.containers
        if (prefix := one.expects_on_link(peer.network_address + 2, own)) is not None
    }
    if wide:
        yield Finding(
            code="container-prefix",
            severity="warning",
            cause="containers do not send packets for other hosts to their gateway, because the prefix of"
            f" their address is wider than the subnet of this host, {own}",
            evidence=some([*wide]),
            fix=DOCKER_FIX,
        )


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    _refused,
    _prefixes,
    _gateways,
)
