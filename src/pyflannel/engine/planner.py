"""The planner: computes the plan from the inputs of a network and this host.

The plan is a function of `Inputs` alone. A cache makes small changes fast: if a lease changes, only its peer
is planned again, and the result equals a new plan.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network

from pyflannel.model.docker import NO_DOCKER, DockerParts
from pyflannel.model.host import ALONE, Bridge, GroChoice, Host, HostFile, Surroundings, Underlay
from pyflannel.model.item import Item, ItemMap, Key
from pyflannel.model.lease import Lease
from pyflannel.model.lease_set import LeaseSet, SubnetMap
from pyflannel.model.link import MARK, Link
from pyflannel.model.network_config import Family, IpNetwork, NetworkConfig
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.route import Route
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardedPath, GuardTable, joined
from pyflannel.model.wireguard import UNKNOWN, WireguardFacts
from pyflannel.plan.backends import Backend, notes_on, own_variant
from pyflannel.plan.docker_plugin import divide, plan_bridges_of_docker
from pyflannel.plan.packet_filter import FilterOptions, plan_filter, plan_guard, plan_guard_peer
from pyflannel.plan.peers import Conflict, PeerChange, Peers
from pyflannel.plan.routes import (
    avoided,
    foreign,
    network_objection,
    outside,
    overlay_objection,
    plan_blackhole,
    subnet_objection,
)
from pyflannel.wire.subnet_env import format_subnet_env


@dataclass(frozen=True, slots=True)
class Generation:
    """A network config with its backend. During a change of the backend, a host has several."""

    config: NetworkConfig
    backend: Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The inputs of a plan that may change while the host runs.

    Attributes:
        config: the network config in force; None until one is known.
        backend: the backend of the config.
        previous: earlier configs by which peers may still send, the newest first.
        is_prepared: this host can receive packets by `backend`; until then, it sends by `previous`.
        underlay: the interface that carries the tunnel.
        lease: this host's lease.
        leases: the leases that are valid for the data path, including this host's.
        bridges: bridges of containers; only known for the fast path.
        has_fast_path: programs in the kernel may carry packets.
        owner: identity of this host.
        surroundings: addresses and routes outside the overlay.
        wireguard: key and implementation, for the wireguard backend.
        docker: networks of Docker that the network plugin created.
    """

    config: NetworkConfig | None = None
    backend: Backend | None = None
    previous: tuple[Generation, ...] = ()
    is_prepared: bool = True
    underlay: Underlay | None = None
    lease: Lease | None = None
    leases: SubnetMap[Lease] = field(default_factory=SubnetMap)
    bridges: tuple[Bridge, ...] = ()
    has_fast_path: bool = False
    owner: str = ""
    surroundings: Surroundings = ALONE
    wireguard: WireguardFacts = UNKNOWN
    docker: DockerParts = NO_DOCKER

    @property
    def generations(self) -> tuple[Generation, ...]:
        """The configs of this host, in the order in which it sends by them; empty while none is known."""
        if self.config is None or self.backend is None:
            return ()
        newest = Generation(self.config, self.backend)
        return (newest, *self.previous) if self.is_prepared else (*self.previous, newest)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The backends of these configs."""
        return tuple(one.backend for one in self.generations)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The inputs of a plan that do not change while the host runs.

    Attributes:
        subnet_file: path of subnet.env.
        other_files: further planned files.
        packet_filter: options of the filter rules.
        device: device name that the daemon claims.
        mark: alias of its links.
        kernel: release of the running kernel; "" if unknown.
        has_blackhole: drop packets to this host's subnet that no local bridge accepts.
        gro: coalesce received TCP segments of the fast path.
        serves_docker: the host has the network plugin for Docker.
    """

    subnet_file: str
    other_files: tuple[HostFile, ...] = ()
    packet_filter: FilterOptions = field(default_factory=FilterOptions)
    device: str = FIRST_DEVICE
    mark: str = MARK
    kernel: str = ""
    has_blackhole: bool = False
    gro: GroChoice = "auto"
    serves_docker: bool = False


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The plan has not changed."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Some objects of the plan changed. Their keys, with the planned objects before the change."""

    previous: Mapping[Key, Item | None]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A new plan. Later changes are made in place and reported by `Changed`."""

    plan: State


@dataclass(frozen=True, slots=True)
class Blocked:
    """There is no plan for these inputs, so the previous plan stays in force.

    Attributes:
        reason: the condition that the backend waits for; "" if an input is missing.
    """

    reason: str = ""


PlanResult = Unchanged | Changed | Replaced | Blocked


@dataclass(frozen=True, slots=True)
class Objection:
    """A peer that is not planned in a family, and the reason."""

    peer: Lease
    reason: str
    family: Family = 4


@dataclass(frozen=True, slots=True)
class _View:
    """A backend, and the host as it sees it.

    Attributes:
        subnet_route: pattern of the routes to single peers, if another backend has the route of the network.
    """

    backend: Backend
    host: Host
    subnet_route: Route | None = None

    def variant(self, peer: Lease) -> Lease | None:
        """Return the lease of a peer as this backend can use it; None if it cannot."""
        if self.backend.objection(peer, self.host) is None:
            return peer
        others = peer.variants[1:]
        return next((one for one in others if self.backend.objection(one, self.host) is None), None)


@dataclass(frozen=True, slots=True)
class _Basis:
    """The inputs that concern all objects of a family. Another basis requires a new plan.

    Attributes:
        family: the family of the views.
        config: the config of the first view.
        views: the backends, in the order in which a peer is planned by them.
        newest: the backend of the newest config.
        path: the path of packets from other hosts.
    """

    family: Family
    config: NetworkConfig
    views: tuple[_View, ...]
    newest: Backend
    path: GuardedPath | None


class Planner:
    """Keeps the plan up to date: `update` takes the present inputs and returns the changes of the plan.

    Attributes:
        conflicts: conflicts of leases, in the order of their subnets.
        objections: the peers that are not planned, by their subnet in the family; the same mapping until it
            changes.
        notes: peculiarities of the network on this host, one line each.
        peer_changes: peers that the latest update added, removed or changed, until `forget_changes`.
        obstacle: why the newest backend cannot work on this host; "" if it can.
    """

    def __init__(self, options: PlanOptions) -> None:
        self._options = options
        self._bases: tuple[_Basis, ...] = ()  # one per family; none if the next plan must be a new one
        self._plan: ItemMap[Item] = ItemMap()
        self._peers: Mapping[Family, Peers] = {}
        self._peers_of: tuple[object, ...] = ()
        self._bridges: tuple[Bridge, ...] = ()
        self._docker = NO_DOCKER
        self._host_routes: tuple[IpNetwork, ...] = ()  # routes of the host itself, independent of peers
        self._is_contested = False  # two peers need one key, and only a whole plan decides which gets it
        self._contested: Set[Key] = frozenset()  # keys of the peers that yield to others
        self.conflicts: tuple[Conflict, ...] = ()
        self.objections: Mapping[IpNetwork, Objection] = {}
        self.notes: tuple[str, ...] = ()
        self.peer_changes: list[PeerChange] = []
        self.obstacle = ""
        self._behind: set[IpNetwork] = set()  # peers that only a previous backend can reach

    @property
    def peers(self) -> tuple[Lease, ...]:
        """The valid leases of other hosts, in the order of their subnets."""
        return self._peers_in(4)

    def _peers_in(self, family: Family) -> tuple[Lease, ...]:
        return tuple(sorted(self._peers.get(family, ()), key=_place))

    @property
    def peer_count(self) -> int:
        """The number of peers."""
        return len(self._peers.get(4, ()))

    @property
    def refused(self) -> dict[IPv4Network, str]:
        """The reasons why leases of other hosts are not planned, by their IPv4 subnet; that of IPv4 first."""
        reasons: dict[IPv4Network, str] = {}
        for family in (6, 4):
            if (peers := self._peers.get(family)) is not None:
                reasons.update((subnet, conflict.text) for subnet, conflict in peers.ignored.items())
            objections = (one for one in self.objections.values() if one.family == family)
            reasons.update((one.peer.subnet, one.reason) for one in objections)
        return reasons

    def refused_owners(self, leases: LeaseSet) -> dict[IPv4Network, str]:
        """Return the owners of the refused leases that have an owner, by subnet."""
        refused = (lease for subnet in self.refused if (lease := leases.by_subnet.get(subnet)) is not None)
        return {one.subnet: one.attributes.owner for one in refused if one.attributes.owner is not None}

    @property
    def needs_previous(self) -> bool:
        """Whether a peer is reached by a previous backend, or the newest cannot work on this host."""
        return bool(self._behind or self.obstacle)

    @property
    def plan(self) -> State | None:
        """The plan in force, None before the first."""
        return State(self._plan) if self._plan else None

    def host(self, inputs: Inputs, family: Family = 4) -> Host | None:
        """Return the host as backends see it; None while its lease or its underlay is missing."""
        if inputs.lease is None or inputs.underlay is None:
            return None
        if family == 6 and (inputs.lease.ipv6_subnet is None or inputs.underlay.ipv6_address is None):
            return None
        host = Host(
            lease=inputs.lease,
            underlay=inputs.underlay,
            device=self._options.device,
            mark=self._options.mark,
            owner=inputs.owner,
            has_fast_path=inputs.has_fast_path,
            gro=self._options.gro,
            kernel=self._options.kernel,
            wireguard=inputs.wireguard,
            serves_docker=self._options.serves_docker,
            family=family,
        )
        network = None if inputs.config is None else inputs.config.range_of(family)
        if inputs.backend is None or network is None:
            return host
        backends = [one for one in inputs.backends if inputs.surroundings.routes and family in one.families]
        links = {item.name for one in backends for item in one.plan_host(host).of_type(Link)}
        found = foreign(inputs.surroundings, network, links, self._plan)
        own, needed, peers = (
            host.subnet,
            {*found.stores, *found.gateways, *found.resolvers},
            self._peers.get(family),
        )
        # A host may have thousands of addresses of services, which change and do not concern the plan.
        addresses = frozenset(
            address
            for address in found.addresses
            if address in needed or (peers is not None and peers.has_address(address))
        )
        return replace(host, surroundings=replace(outside(found, own), addresses=addresses))

    def objection_to(self, config: NetworkConfig, backend: Backend, inputs: Inputs) -> str | None:
        """Return why this host cannot use a config, independent of leases; None if it can."""
        if inputs.underlay is None:
            return None
        for network in config.ranges:
            found = foreign(inputs.surroundings, network, {self._options.device}, self._plan)
            why = network_objection(network, backend.routed, inputs.underlay, found)
            if why is not None:
                return why
        return None

    def avoided(self, config: NetworkConfig, inputs: Inputs) -> tuple[IpNetwork, ...]:
        """Return the prefixes that the new subnets of this host should not overlap."""
        if inputs.underlay is None:
            return ()
        prefixes: list[IpNetwork] = []
        for network in config.ranges:
            found = foreign(inputs.surroundings, network, {self._options.device}, self._plan)
            prefixes.extend(avoided(network, inputs.underlay, found))
        return tuple(prefixes)

    def update(self, inputs: Inputs) -> PlanResult:
        """Update the plan to these inputs, and return the change."""
        self.peer_changes = self._update_peers(inputs)
        if inputs.backend is None or inputs.underlay is None:
            return self._block("")
        self.obstacle = inputs.backend.obstacle(inputs.underlay, inputs.wireguard) or ""
        host = self.host(inputs)
        if host is None or inputs.config is None:
            return self._block(self.obstacle)
        generations = [
            one
            for one in inputs.generations
            if one.backend.obstacle(inputs.underlay, inputs.wireguard) is None
        ]
        if not generations:
            return self._block(self.obstacle)
        if not self._plan and inputs.config.enable_ipv6 and inputs.underlay.ipv6_address is None:
            return self._block(inputs.underlay.ipv6_trouble or "an IPv6 address of the host")
        hosts = [one for family in inputs.config.families if (one := self.host(inputs, family)) is not None]
        if generations[0].backend.routed != "nothing":
            for one in hosts:
                why = subnet_objection(one.subnet, inputs.underlay, inputs.surroundings)
                if why is not None:
                    return self._block(f"another subnet for this host: {why}")
        bases = tuple(self._basis(generations, one, inputs.backend) for one in hosts)
        if bases == self._bases and not self._is_contested:
            previous = self._plan_peers(bases)
            if previous is not None:
                previous |= self._plan_bridges(bases[0], inputs.bridges)
                previous |= self._plan_docker(bases[0], inputs.docker)
                return Changed(previous) if previous else Unchanged()
        self._bases = bases
        return self._plan_all(bases, inputs)

    def _basis(self, generations: Sequence[Generation], host: Host, newest: Backend) -> _Basis:
        """Return the basis of the host's family, with the backends that carry it."""
        backends = [one.backend for one in generations if host.family in one.backend.families]
        views = _views(backends, host)
        path = joined(view.backend.guarded_path(view.host) for view in views)
        return _Basis(host.family, generations[0].config, views, newest, path)

    def receiving_keys(self) -> set[Key]:
        """Return the objects by which this host receives packets of the newest backend, as planned."""
        newest = [view for basis in self._bases for view in basis.views if view.backend is basis.newest]
        if not newest:
            return set()
        found = {item.key for one in newest for item in one.backend.plan_host(one.host) if item.IS_HOST_PART}
        return found | {GuardTable(device=self._options.device).key}

    def forget_changes(self) -> None:
        """Free the list of changed peers, which contains all peers after a start."""
        self.peer_changes = []

    def _block(self, reason: str) -> Blocked:
        """Keep the plan in force. If peers changed meanwhile, the next plan is a new one."""
        if self.peer_changes:
            self._bases = ()
        return Blocked(reason)

    def _update_peers(self, inputs: Inputs) -> list[PeerChange]:
        """Update the peers to the leases; return the peers that were added, removed or changed."""
        config, own = inputs.config, inputs.lease
        if own is None or config is None:
            return []
        parts = {family: part for family in config.families if (part := own.part(family)) is not None}
        peers_of = tuple(
            (part.subnet, part.address, config.range_of(family), config.length_of(family))
            for family, part in parts.items()
        )
        before: Mapping[Family, Peers] | None = None
        if not self._peers or peers_of != self._peers_of:
            before, self._peers_of = self._peers, peers_of
            self._peers = {
                family: Peers(own, config.range_of(family), config.length_of(family), family)
                for family in parts
            }
        changes = [change for peers in self._peers.values() for change in peers.update(inputs.leases)]
        self.conflicts = self._all_conflicts()
        return changes if before is None else list(_between(before, self._peers))

    def _all_conflicts(self) -> tuple[Conflict, ...]:
        """Return the conflicts of all families; with those of one, the same tuple until they change."""
        conflicts = [peers.conflicts for peers in self._peers.values() if peers.conflicts]
        if len(conflicts) < 2:
            return conflicts[0] if conflicts else ()
        return tuple(dict.fromkeys(conflict for each in conflicts for conflict in each))

    def _plan_all(self, bases: tuple[_Basis, ...], inputs: Inputs) -> Replaced:
        """Plan everything. If two peers need one object, the backend decides which gets it."""
        config, options = bases[0].config, self._options
        firsts = [basis.views[0] for basis in bases if basis.views]
        text = format_subnet_env(
            config=config,
            subnet=firsts[0].host.lease.subnet,
            ipv6_subnet=firsts[0].host.lease.ipv6_subnet,
            mtu=min(view.backend.mtu(view.host) for view in firsts),
            ip_masq=options.packet_filter.masquerades,
            division=divide(firsts[0].host.lease.subnet) if options.serves_docker else None,
        )
        notes = (note for view in firsts for note in notes_on(config, view.backend, view.host))
        self.notes = (*dict.fromkeys(notes), *_transition_notes(bases[0]))
        plan: ItemMap[Item] = ItemMap()
        for basis in bases:
            for view in basis.views:
                plan.add(item for item in view.backend.plan_host(view.host) if item.key not in plan)
        self._host_routes = tuple(
            item.destination for item in State(plan).of_type(Route) if item.kind == "unicast"
        )
        for basis in bases:
            if not basis.views:
                continue
            host = basis.views[0].host
            if options.has_blackhole:
                plan.add(plan_blackhole(host))
            plan.add(self._items_of_docker(basis, inputs.docker))
            plan.add(plan_guard(basis.path, config, host, options.packet_filter))
        plan.add((*options.other_files, HostFile(path=options.subnet_file, text=text)))
        plan.add(_bridge_items(bases[0], inputs.bridges))
        self._bridges, self._docker = inputs.bridges, inputs.docker
        self._behind, self.objections = set(), {}
        contested: set[Key] = set()
        self._is_contested = False
        for basis in bases:
            self._is_contested |= self._add_peers(plan, basis, contested)
        self._plan, self._contested = plan, contested
        return Replaced(State(plan))

    def _add_peers(self, plan: ItemMap[Item], basis: _Basis, contested: set[Key]) -> bool:
        """Add the peers of a family to a plan, and the keys for which peers yield to `contested`.

        Returns:
            Whether two peers need one key.
        """
        count, peers = len(plan), self._peers_in(basis.family)
        judged = [(peer, self._objection(peer, basis)) for peer in peers]
        # A refused peer has precedence over no other.
        outranked = _outranked([peer for peer, reason in judged if reason is None], basis)
        objections = dict(self.objections)
        for peer, objection in judged:
            reason = (outranked.get(peer.subnet) if outranked else None) or objection
            if reason is not None:
                objections[_subnet(peer, basis.family)] = Objection(peer, reason, basis.family)
                continue
            items = self._plan_peer(peer, basis)
            self._note_generation(peer, basis)
            count += len(items)
            plan.add(items)
        self.objections = objections
        yielding = [peer for peer in peers if peer.subnet in outranked] if outranked else []
        contested.update(item.key for peer in yielding for item in self._plan_peer(peer, basis))
        return len(plan) < count

    def _plan_peers(self, bases: tuple[_Basis, ...]) -> dict[Key, Item | None] | None:
        """Plan the changed peers again; return None if two peers need one key: then all must be planned."""
        if not self.peer_changes:
            return {}
        gone: ItemMap[Item] = ItemMap()
        come: ItemMap[Item] = ItemMap()
        objections, are_others = dict(self.objections), False
        by_family = {basis.family: basis for basis in bases if basis.views}
        changes = [
            change for change in (*self.peer_changes, *self._affected(bases)) if change.family in by_family
        ]
        if self._contested and any(
            self._is_about_contest(change, by_family[change.family]) for change in changes
        ):
            return None
        for change in changes:
            if change.old is None:
                continue
            basis, subnet = by_family[change.family], _subnet(change.old, change.family)
            self._behind.discard(subnet)
            if objections.pop(subnet, None) is None:
                gone.add(self._plan_peer(change.old, basis))
            else:
                are_others = True
        for change in changes:
            if change.new is None:
                continue
            basis = by_family[change.family]
            reason = self._objection(change.new, basis)
            if reason is not None:
                subnet = _subnet(change.new, change.family)
                objections[subnet] = Objection(change.new, reason, change.family)
                are_others = True
                continue
            items = self._plan_peer(change.new, basis)
            if any(item.key in come or (item.key in self._plan and item.key not in gone) for item in items):
                self._is_contested = True
                return None
            come.add(items)
            self._note_generation(change.new, basis)
        if are_others:
            self.objections = objections
        return self._exchange(gone, come)

    def _is_about_contest(self, change: PeerChange, basis: _Basis) -> bool:
        """Return whether a peer needs, or needed, an object for which others yield."""
        return any(
            item.key in self._contested
            for peer in (change.old, change.new)
            if peer is not None
            for item in self._plan_peer(peer, basis)
        )

    def _affected(self, bases: tuple[_Basis, ...]) -> list[PeerChange]:
        """Return the peers whose address enters or leaves the overlay because other peers changed."""
        affected: list[PeerChange] = []
        for basis in bases:
            family, peers = basis.family, self._peers.get(basis.family)
            if peers is None or all(view.backend.routed != "peers" for view in basis.views):
                continue
            changed = {
                _subnet(each, family)
                for one in self.peer_changes
                for each in (one.old, one.new)
                if each is not None and one.family == family
            }
            affected += [
                PeerChange(peer, peer, family)
                for peer in peers.inside(changed)
                if _subnet(peer, family) not in changed
            ]
        return affected

    def _objection(self, peer: Lease, basis: _Basis) -> str | None:
        """Return why a peer is not planned: the backend's objection, or its address is in the overlay."""
        view, network = _view_of(peer, basis), basis.config.range_of(basis.family)
        if view is None:
            return basis.views[0].backend.objection(peer, basis.views[0].host) if basis.views else None
        attributes = peer.attributes
        address = attributes.public_ip if basis.family == 4 else attributes.public_ipv6
        if network is None or address is None or address not in network:
            return None
        host, peers = view.host, self._peers.get(basis.family)
        if peers is None or view.backend.routed == "nothing":
            return None
        routed = [
            _subnet(lease, basis.family)
            for lease in peers.covering(address)
            if any(isinstance(item, Route) for item in self._plan_peer(lease, basis))
        ]
        return overlay_objection(address, (host.subnet, *self._host_routes, *routed), host)

    def _note_generation(self, peer: Lease, basis: _Basis) -> None:
        """Note whether a planned peer is reached by a previous backend."""
        if len(basis.views) > 1:
            view = _view_of(peer, basis)
            if view is not None and view.backend is not basis.newest:
                self._behind.add(_subnet(peer, basis.family))

    def _plan_peer(self, peer: Lease, basis: _Basis) -> tuple[Item, ...]:
        """Return the objects of one peer; none if no backend plans any for it."""
        if not basis.views:
            return ()
        host = basis.views[0].host
        if len(basis.views) == 1:
            variant = basis.views[0].variant(peer) if peer.attributes.also else peer
            items = tuple(basis.views[0].backend.plan_peer(variant or peer, host))
        else:
            items = tuple(_items_of(peer, basis))
        if not items:
            return items
        return (*items, *plan_guard_peer(basis.path, peer, host, self._options.packet_filter.guard))

    def _plan_bridges(self, basis: _Basis, bridges: tuple[Bridge, ...]) -> dict[Key, Item | None]:
        """Plan the objects of the bridges and their containers again, if these changed."""
        if bridges is self._bridges:
            return {}
        gone = State.collect(_bridge_items(basis, self._bridges)).by_key
        come = State.collect(_bridge_items(basis, bridges)).by_key
        self._bridges = bridges
        return self._exchange(gone, come)

    def _plan_docker(self, basis: _Basis, docker: DockerParts) -> dict[Key, Item | None]:
        """Plan the networks of Docker and the filter rules again, if these networks changed."""
        if docker is self._docker:
            return {}
        gone = self._items_of_docker(basis, self._docker).by_key
        come = self._items_of_docker(basis, docker).by_key
        self._docker = docker
        return self._exchange(gone, come)

    def _items_of_docker(self, basis: _Basis, docker: DockerParts) -> State:
        """Return the bridges of Docker's networks, and the filter rules, some of which concern them."""
        first = basis.views[0]
        rules = plan_filter(basis.config, first.host, self._options.packet_filter, docker)
        if basis.family == 6:
            return rules  # networks of Docker have IPv4 only
        bridges = plan_bridges_of_docker(docker, first.host, first.backend.mtu(first.host))
        return State.collect((*bridges, *rules))

    def _exchange(self, gone: ItemMap[Item], come: ItemMap[Item]) -> dict[Key, Item | None]:
        """Remove items from the plan and add others; return the previous item of each changed key."""
        previous: dict[Key, Item | None] = {}
        for item in gone.each():
            if item.key not in come:
                previous[item.key] = item
                self._plan.discard(item.key)
        for item in come.each():
            old = gone.get(item.key)
            if old != item:
                previous[item.key] = old
            self._plan.put(item)
        return previous


def _views(backends: Sequence[Backend], host: Host) -> tuple[_View, ...]:
    """Return the views of these backends. The first that routes the whole network has its route."""
    if len(backends) == 1:
        return (_View(backends[0], host),)
    views: list[_View] = []
    taken: set[Key] = set()
    for backend in backends:
        seen = replace(host, lease=own_variant(host.lease, backend, host))
        routes = backend.plan_host(seen).of_type(Route) if backend.routed == "network" else ()
        network = next((route for route in routes if route.kind == "unicast"), None)
        is_taken = network is not None and network.key in taken
        if network is not None:
            taken.add(network.key)
        views.append(_View(backend, seen, network if is_taken else None))
    return tuple(views)


def _view_of(peer: Lease, basis: _Basis) -> _View | None:
    """Return the first view that can reach a peer."""
    return next((view for view in basis.views if view.variant(peer) is not None), None)


def _items_of(peer: Lease, basis: _Basis) -> Iterator[Item]:
    """Yield the objects of a peer for all backends, but the routes of the first alone.

    The peer may send by each of them, until it has read the newest lease of this host.
    """
    keys: set[Key] = set()
    chosen: _View | None = None
    for view in basis.views:
        variant = view.variant(peer)
        if variant is None:
            continue
        chosen = chosen or view
        items: Iterable[Item] = view.backend.plan_peer(variant, view.host)
        if view is chosen and view.subnet_route is not None:
            subnet = _subnet(peer, basis.family)
            route = replace(view.subnet_route, destination=subnet, protocol=view.host.protocol)
            items = (*items, route)
        for item in items:
            if item.key not in keys and (view is chosen or not isinstance(item, Route)):
                keys.add(item.key)
                yield item


def _outranked(peers: Sequence[Lease], basis: _Basis) -> dict[IPv4Network, str]:
    """Return the peers that yield to others, by subnet, with the reason."""
    found: dict[IPv4Network, str] = {}
    for view in basis.views:
        variants = [variant for peer in peers if (variant := view.variant(peer)) is not None]
        found.update(view.backend.outranked(variants, view.host))
    return found


def _bridge_items(basis: _Basis, bridges: tuple[Bridge, ...]) -> Iterator[Item]:
    for view in basis.views:
        yield from view.backend.plan_bridges(bridges, view.host)


def _transition_notes(basis: _Basis) -> Iterator[str]:
    others = [view.backend.way for view in basis.views if view.backend is not basis.newest]
    if others:
        yield (
            f"The backend changes to {basis.newest.way}. This host also receives packets by"
            f" {' and '.join(others)}, until no other host needs it"
        )


def _between(before: Mapping[Family, Peers], now: Mapping[Family, Peers]) -> Iterator[PeerChange]:
    """Yield the peers that differ."""
    for family in sorted({*before, *now}):
        old = {peer.subnet: peer for peer in before.get(family, ())}
        new = {peer.subnet: peer for peer in now.get(family, ())}
        for subnet in old.keys() | new.keys():
            if old.get(subnet) is not new.get(subnet):
                yield PeerChange(old.get(subnet), new.get(subnet), family)


def _subnet(lease: Lease, family: Family) -> IPv4Network | IPv6Network:
    """Return the subnet of a peer in a family that it has."""
    return lease.subnet if family == 4 or lease.ipv6_subnet is None else lease.ipv6_subnet


def _place(lease: Lease) -> tuple[int, int]:
    """Return a key that sorts as the subnet does, ten times as fast."""
    return int(lease.subnet.network_address), lease.subnet.prefixlen
