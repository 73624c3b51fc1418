"""The backends of a host: one, or several during a change of the backend (decision 0051).

Each backend gets its own view of the host and its peers: this host's lease as the backend published it, and
the lease of a peer as the backend can use it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from pyflannel.model.host import Bridge, Host
from pyflannel.model.item import Item, Key
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import Family, IpNetwork, NetworkConfig
from pyflannel.model.route import Route
from pyflannel.model.tunnel_guard import GuardedPath, joined
from pyflannel.plan.backends import Backend, own_variant
from pyflannel.plan.peers import subnet_of


class Generation(Struct, frozen=True):
    """A network config with its backend and its text. During a change of the backend, a host has several
    generations.
    """

    config: NetworkConfig
    backend: Backend
    text: str = ""


class View(Struct, frozen=True):
    """A backend, and the host in the view of this backend.

    Attributes:
        subnet_route: template for the routes to single peers, if another backend has the route of the
            network.
    """

    backend: Backend
    host: Host
    subnet_route: Route | None = None

    def variant(self, peer: Lease) -> Lease | None:
        """Return the lease of a peer in the form that this backend can use; None if the backend cannot use
        it.
        """
        if self.backend.objection(peer, self.host) is None:
            return peer
        others = peer.variants[1:]
        return next((one for one in others if self.backend.objection(one, self.host) is None), None)


class Basis(Struct, frozen=True):
    """The inputs that affect all objects of a family. If the basis changes, all objects are planned again.

    Attributes:
        family: the address family of the views.
        config: the config of the first view.
        views: the backends, in the order in which they are tried for a peer.
        newest: the backend of the newest config.
        path: the path of packets from other hosts.
        greeted: WireGuard keys of peers that have answered a handshake, if there are several views.
        path_mtus: the MTU of paths whose MTU is smaller than planned, by the subnet of the peer in the
            family; empty if there are several views.
    """

    family: Family
    config: NetworkConfig
    views: tuple[View, ...]
    newest: Backend
    path: GuardedPath | None
    greeted: frozenset[str] = frozenset()
    path_mtus: Mapping[IpNetwork, int] = field(default_factory=dict)


def basis_of(
    generations: Sequence[Generation],
    host: Host,
    newest: Backend,
    *,
    greeted: frozenset[str] = frozenset(),
    path_mtus: Mapping[IpNetwork, int] | None = None,
) -> Basis:
    """Return the basis of the host's family, with the backends that carry it."""
    backends = [one.backend for one in generations if host.family in one.backend.families]
    views = _views(backends, host)
    path = joined(view.backend.guarded_path(view.host) for view in views)
    is_change, is_probed = len(views) > 1, len(views) == 1
    return Basis(
        host.family,
        generations[0].config,
        views,
        newest,
        path,
        greeted if is_change else frozenset(),
        path_mtus if is_probed and path_mtus else {},
    )


def _views(backends: Sequence[Backend], host: Host) -> tuple[View, ...]:
    """Return the views of these backends. The first backend that routes the whole network has the route of
    the network.

    Of several backends, only udp has programs, because the programs of a host share their tables.
    """
    if len(backends) == 1:
        return (View(backends[0], host),)
    views: list[View] = []
    taken: set[Key] = set()
    for backend in backends:
        seen = replace(
            host,
            lease=own_variant(host.lease, backend, host),
            has_fast_path=host.has_fast_path and backend.way == "udp",
        )
        routes = backend.plan_host(seen).of_type(Route) if backend.routed == "network" else ()
        network = next((route for route in routes if route.kind == "unicast"), None)
        is_taken = network is not None and network.key in taken
        if network is not None:
            taken.add(network.key)
        views.append(View(backend, seen, network if is_taken else None))
    return tuple(views)


def view_of(peer: Lease, basis: Basis) -> View | None:
    """Return the first view that can reach a peer now.

    A peer that has not answered a handshake of WireGuard is reached through another view if possible.
    """
    able = [view for view in basis.views if view.variant(peer) is not None]
    first = able[0] if able else None
    return first if len(able) < 2 else next((view for view in able if _is_greeted(peer, view, basis)), first)


def variant_of(peer: Lease, view: View, basis: Basis) -> Lease | None:
    """Return the lease of a peer, which a view of the basis can reach, in the form for this view; None if
    this view cannot reach the peer.

    With one view and one form of the lease, the lease is not checked again, which takes time.
    """
    return peer if len(basis.views) == 1 and not peer.attributes.also else view.variant(peer)


def _is_greeted(peer: Lease, view: View, basis: Basis) -> bool:
    """Return whether a view needs no first handshake with a peer, or the peer has answered a handshake."""
    is_new = view.backend is basis.newest and view.backend.is_encrypted
    variant = view.variant(peer) if is_new else None
    part = None if variant is None else variant.part(basis.family)
    return part is None or part.wireguard is None or part.wireguard.public_key in basis.greeted


def items_of(peer: Lease, basis: Basis) -> Iterator[Item]:
    """Yield the objects of a peer for all backends, but the routes of only one backend (see `view_of`).

    The peer may send by each of these backends, until it has read the newest lease of this host. The peer may
    send by the newest backend before this host has read the peer's lease.
    """
    keys: set[Key] = set()
    chosen = view_of(peer, basis)
    items: Iterable[Item]
    for view in basis.views:
        variant = view.variant(peer)
        if variant is None:
            items = receiving_items(peer, view) if view.backend is basis.newest else ()
        else:
            items = view.backend.plan_peer(variant, view.host)
        if view is chosen and view.subnet_route is not None:
            subnet = subnet_of(peer, basis.family)
            route = replace(view.subnet_route, destination=subnet, protocol=view.host.protocol)
            items = (*items, route)
        for item in items:
            if item.key not in keys and (view is chosen or not isinstance(item, Route)):
                keys.add(item.key)
                yield item


def narrowed(items: tuple[Item, ...], peer: Lease, basis: Basis) -> tuple[Item, ...]:
    """Return the objects of a peer; if the MTU of its path is smaller than planned, include a route with the
    MTU of the path.

    A backend that routes the whole network has no route to a peer. With a backend that routes the whole
    network, a route to the peer is added beside the route of the network.
    """
    mtu = basis.path_mtus.get(subnet_of(peer, basis.family)) if basis.path_mtus else None
    if mtu is None or not items:
        return items
    if any(isinstance(item, Route) for item in items):
        return tuple(replace(item, mtu=mtu) if isinstance(item, Route) else item for item in items)
    view = basis.views[0]
    routes = view.backend.plan_host(view.host).of_type(Route)
    network = next((one for one in routes if one.kind == "unicast"), None)
    if network is None:
        return items
    protocol = view.host.protocol
    subnet = subnet_of(peer, basis.family)
    return (*items, replace(network, destination=subnet, protocol=protocol, mtu=mtu))


def receiving_items(peer: Lease, view: View) -> Iterable[Item]:
    """Return the objects without which this host refuses packets that the peer sends by a backend."""
    foreseen = view.backend.foreseen(peer)
    return () if foreseen is None else view.backend.plan_peer(foreseen, view.host)


def outranked_by(peers: Sequence[Lease], basis: Basis) -> dict[IpNetwork, str]:
    """Return the peers that yield to other peers, by subnet, with the reason. A view can reach each peer."""
    found: dict[IpNetwork, str] = {}
    for view in basis.views:
        variants = [each for peer in peers if (each := variant_of(peer, view, basis)) is not None]
        found.update(view.backend.outranked(variants, view.host))
    return found


def bridge_items(basis: Basis, bridges: tuple[Bridge, ...]) -> Iterator[Item]:
    """Yield the objects of bridges and their containers, for all backends."""
    for view in basis.views:
        yield from view.backend.plan_bridges(bridges, view.host)


def transition_notes(basis: Basis) -> Iterator[str]:
    """Yield a note during a change of the backend."""
    others = [view.backend.way for view in basis.views if view.backend is not basis.newest]
    if others:
        yield (
            f"The backend changes to {basis.newest.way}. This host also receives packets by"
            f" {' and '.join(others)}, until no other host needs it"
        )
