"""Objects of other programs that redirect or change packets, and networks that overlap."""

from collections.abc import Iterable, Iterator
from itertools import islice

from pyflannel.model.item import Item
from pyflannel.model.link import MARK, Link
from pyflannel.model.network_config import is_part
from pyflannel.model.packet_filter import FIRST_DEVICE, IptablesChain, NftTable
from pyflannel.model.route import PROTOCOLS, Route, route_protocol
from pyflannel.model.status import Finding, Membership
from pyflannel.plan.doctor.families import items_in
from pyflannel.plan.doctor.observed import NAMED, Observed, main_route, removal, shown, some
from pyflannel.plan.leftovers import is_within, left_by_original, unplanned_routes
from pyflannel.plan.routes import RouteConflict, conflicts, on_link_prefixes, overlap_note

_EXAMINED = 4
"""Maximum number of peers in the prefix of an unplanned route that are examined. A host may have ten
thousand routes."""

_APART = "flannelctl config set FILE  # with a Network that overlaps no address of any host"


def _underlay_conflicts(seen: Observed) -> Iterator[Finding]:
    """Yield a finding if the network overlaps the underlay; it is an error if a route diverts packets for
    the underlay.
    """
    strange = {
        one.destination
        for one in unplanned_routes(seen.items, seen.membership)
        if isinstance(one, Route) and one.gateway is None
    }
    own = seen.membership.subnet
    strange |= {
        one.destination
        for one in seen.items
        if isinstance(one, Route)
        and own is not None
        and own != one.destination
        and is_part(one.destination, own)
    }
    # The prefix of an unplanned route is on the link only because of this route, which is a finding itself.
    found = [one for one in _conflicts(seen) if one.other.prefix not in strange]
    if found:
        routes = (item for item in seen.items if isinstance(item, Route))
        taking = [route for route in routes if _takes(route, found, seen.membership)]
        yield Finding(
            code="network-overlaps-underlay",
            severity="error" if taking else "warning",
            cause=f"Network {found[0].text}",
            evidence=some([*(f"Network {one.text}" for one in found[1:]), *map(shown, taking)]),
            fix=_APART,
        )


def _conflicts(seen: Observed) -> tuple[RouteConflict, ...]:
    network, link = seen.membership.network, seen.membership.underlay
    if network is None or link is None:
        return ()
    return conflicts([network], on_link_prefixes(link, seen.on_link))


def _takes(route: Route, found: Iterable[RouteConflict], membership: Membership) -> bool:
    """Return whether a route into the overlay has precedence over the routes to a prefix of the underlay."""
    destination = route.destination
    return (
        route.kind == "unicast"
        and (route.link != membership.underlay or route.protocol in PROTOCOLS)
        and is_within(route, membership)
        and any(is_part(destination, one.other.prefix) for one in found)
    )


def _leftovers(seen: Observed) -> Iterator[Finding]:
    """Yield objects of an original flannel; include its rules only if no pyflannel daemon took them over."""
    left = list(items_in(left_by_original(seen.items, seen.membership), seen.family, is_first=seen.is_first))
    if (
        seen.is_first
        and seen.claimed is None
        and not seen.status.is_live
        and not _has_another_daemon(seen.items)
    ):
        rules = (item for item in seen.items if isinstance(item, IptablesChain | NftTable))
        left += [item for item in rules if item.device == FIRST_DEVICE]
    sure = [one for one in seen.left_rules if one.is_sure and seen.is_first]
    lines = [*(shown(item) for item in left), *(line for one in sure for line in one.shown)]
    if lines and seen.original is not None:
        yield Finding(
            code="original-runs",
            severity="warning",
            cause=f"an original flanneld runs on this host (pid {seen.original}) with these objects",
            evidence=some(lines),
            fix=f"kill {seen.original}  # replaces the original; then run flannelctl doctor again",
        )
    elif lines:
        commands = [command for item in left if (command := removal(item))]
        commands += [command for one in sure for command in one.commands]
        is_ours_here = seen.claimed is not None or seen.status.is_live
        yield Finding(
            code="left-by-original",
            severity="warning",
            cause="another flannel left these objects, and they may redirect or change packets",
            evidence=some(lines),
            fix="; ".join(commands[:NAMED]) if is_ours_here else "flannelctl cleanup",
        )


def _has_another_daemon(items: Iterable[Item]) -> bool:
    """Return whether a pyflannel daemon with another run directory has objects on this host."""
    return any(
        (isinstance(item, Link) and (item.alias == MARK or item.alias.startswith(f"{MARK} ")))
        or (isinstance(item, Route) and item.protocol == route_protocol(FIRST_DEVICE))
        for item in items
    )


def _doubtful_rules(seen: Observed) -> Iterator[Finding]:
    doubtful = [one for one in seen.left_rules if not one.is_sure]
    if doubtful and seen.original is None and seen.is_first:
        commands = [command for one in doubtful for command in one.commands]
        yield Finding(
            code="rules-like-original",
            severity="info",
            cause="another flannel may have left these filter rules, they are a remedy that doctor printed,"
            " or another program uses them",
            evidence=some([line for one in doubtful for line in one.shown]),
            fix=f"{'; '.join(commands[:NAMED])}  # only if they are no remedy, and no program uses them",
        )


def _unplanned_routes(seen: Observed) -> Iterator[Finding]:
    routes = list(unplanned_routes(seen.items, seen.membership))
    if routes:
        used = any(_is_used(route, seen) for route in routes[:NAMED] if isinstance(route, Route))
        yield Finding(
            code="unplanned-route",
            severity="error" if used else "warning",
            cause="unplanned routes to parts of the network redirect packets for peers",
            evidence=some([shown(route) for route in routes]),
            fix="; ".join(removal(route) for route in routes[:NAMED]),
        )


def _is_used(route: Route, seen: Observed) -> bool:
    """Return whether the kernel sends packets for one of the first peers in a prefix with this route."""
    subnets = (subnet for subnet in seen.membership.peers if route.destination.overlaps(subnet))
    return any(main_route(seen, subnet.network_address + 2) == route for subnet in islice(subnets, _EXAMINED))


def _notes(seen: Observed) -> Iterator[Finding]:
    """Yield findings for the notes of the backend that no other finding contains."""
    backend, network = seen.status.backend, seen.membership.network
    reported = {f"Network {conflict.text}" for conflict in _conflicts(seen)}
    if network is not None:
        items = (
            *unplanned_routes(seen.items, seen.membership),
            *left_by_original(seen.items, seen.membership),
        )
        reported |= {overlap_note(network, item) for item in items if isinstance(item, Route)}
    for note in backend.notes if backend is not None else ():
        if note in reported:
            continue
        if note.startswith("Network "):
            if network is None or note.startswith(f"Network {network} "):
                yield Finding(code="network-overlaps-host", severity="warning", cause=note, fix=_APART)
        elif seen.is_first:
            yield Finding(code="backend-note", severity="info", cause=note, fix="flannelctl config get")


CHECKS = (
    _underlay_conflicts,
    _leftovers,
    _doubtful_rules,
    _unplanned_routes,
    _notes,
)
