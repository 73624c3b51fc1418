"""The planner: computes the plan from the inputs of a network and this host.

The plan is a function only of `Inputs`. A cache makes small changes fast: if a lease changes, only its peer
is planned again, and the result equals a plan that is computed from the beginning.
"""

from collections.abc import Iterator, Mapping, Set

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.engine.condition import Inputs
from pyflannel.engine.world import PlanOptions
from pyflannel.model.docker import NO_DOCKER, DockerParts
from pyflannel.model.host import Bridge, Host, HostFile
from pyflannel.model.item import Item, ItemMap, Key
from pyflannel.model.lease import Lease
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.link import Link
from pyflannel.model.network_config import Family, IpNetwork, NetworkConfig
from pyflannel.model.route import Route
from pyflannel.model.state import Blocked, Changed, PlanResult, Replaced, State, Unchanged
from pyflannel.model.tunnel_guard import guard_table
from pyflannel.plan.backends import Backend, notes_on
from pyflannel.plan.docker_plugin import divide, ipv6_part_of_cni, plan_bridges_of_docker
from pyflannel.plan.generations import (
    Basis,
    basis_of,
    bridge_items,
    items_of,
    narrowed,
    outranked_by,
    receiving_items,
    transition_notes,
    variant_of,
    view_of,
)
from pyflannel.plan.packet_filter import plan_filter, plan_guard, plan_guard_peer, plan_open_ports
from pyflannel.plan.peers import Conflict, PeerChange, Peers, differences, place_of, subnet_of
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

_NAMED = 5
"""Maximum number of hosts that a note names."""


class Objection(Struct, frozen=True):
    """A peer that is not planned in one address family, and the reason."""

    peer: Lease
    reason: str
    family: Family = 4


class Planner:
    """Keeps the plan up to date: `update` takes the current inputs and returns the changes of the plan.

    Attributes:
        conflicts: conflicts of leases, in the order of their subnets.
        objections: the peers that are not planned, by their subnet in the family; the same mapping object
            until its content changes.
        notes: notes about unusual properties of the network on this host, one line each.
        peer_changes: peers that the latest update added, removed or changed, until `forget_changes`.
        obstacle: reason why the newest backend cannot work on this host; "" if it can.
    """

    def __init__(self, options: PlanOptions) -> None:
        self._options = options
        # one entry per family; empty if the next plan must be computed from the beginning
        self._bases: tuple[Basis, ...] = ()
        self._plan: ItemMap[Item] = ItemMap()
        self._peers: Mapping[Family, Peers] = {}
        self._peers_of: tuple[object, ...] = ()
        self._bridges: tuple[Bridge, ...] = ()
        self._docker = NO_DOCKER
        # the links of all plans so far, because a link and its routes exist until they are removed
        self._links: set[str] = set()
        self._host_routes: tuple[IpNetwork, ...] = ()  # routes of the host itself, independent of peers
        self._is_contested = False  # two peers need one key, and only a whole plan decides which peer gets it
        self._contested: Set[Key] = frozenset()  # keys of the objects that a peer leaves to another peer
        self.conflicts: tuple[Conflict, ...] = ()
        self.objections: Mapping[IpNetwork, Objection] = {}
        self.notes: tuple[str, ...] = ()
        self.peer_changes: list[PeerChange] = []
        self.obstacle = ""
        self._behind: set[IpNetwork] = set()  # peers that only a previous backend can reach

    @property
    def first_family(self) -> Family:
        """The first family of the network, in which its leases have their identity."""
        return next(iter(self._peers), 4)

    @property
    def peers(self) -> tuple[Lease, ...]:
        """The valid leases of other hosts, in the order of their subnets."""
        return self._peers_in(self.first_family)

    @property
    def has_both_families(self) -> bool:
        """True if the network has IPv4 and IPv6, and so has the lease of this host."""
        return len(self._peers) > 1

    def planned_peers(self, family: Family) -> Iterator[Lease]:
        """Yield the peers in a family, without those that are not planned, in no particular order."""
        peers = self._peers.get(family, ())
        return (peer for peer in peers if subnet_of(peer, family) not in self.objections)

    def planned_peer(self, subnet: IpNetwork) -> Lease | None:
        """Return the planned peer with this subnet, of either family; None if there is none."""
        peers = self._peers.get(subnet.version)
        return None if peers is None or subnet in self.objections else peers.at(subnet)

    def _peers_in(self, family: Family) -> tuple[Lease, ...]:
        return tuple(sorted(self._peers.get(family, ()), key=place_of))

    @property
    def peer_count(self) -> int:
        """The number of peers."""
        return len(self._peers.get(self.first_family, ()))

    @property
    def refused(self) -> dict[IpNetwork, str]:
        """The reasons why leases of other hosts are not planned, by the subnet that identifies them;
        the reason in IPv4 has precedence.
        """
        reasons: dict[IpNetwork, str] = {}
        for family in (6, 4):
            if (peers := self._peers.get(family)) is not None:
                reasons.update((subnet, conflict.text) for subnet, conflict in peers.ignored.items())
            objections = (one for one in self.objections.values() if one.family == family)
            reasons.update((one.peer.subnet, one.reason) for one in objections)
        return reasons

    def refused_owners(self, leases: LeaseSet) -> dict[IpNetwork, str]:
        """Return the owners of the refused leases that have an owner, by subnet."""
        refused = (lease for subnet in self.refused if (lease := leases.by_subnet.get(subnet)) is not None)
        return {one.subnet: one.attributes.owner for one in refused if one.attributes.owner is not None}

    @property
    def needs_previous(self) -> bool:
        """True if a peer is reached by a previous backend, or if the newest backend cannot work on this
        host.
        """
        return bool(self._behind or self.obstacle)

    @property
    def family_notes(self) -> tuple[str, ...]:
        """The reason why a network with both families carries only IPv4 on this host."""
        if not self._bases or not self._bases[0].views:
            return ()
        basis = self._bases[0]
        families = {one.family for one in self._bases}
        if families.issuperset(basis.config.families) or 6 not in basis.newest.families:
            return ()
        trouble = basis.views[0].host.underlay.ipv6_trouble
        return (f"no IPv6 packets are carried: waiting for {trouble or 'an IPv6 address of the host'}",)

    @property
    def change_notes(self) -> tuple[str, ...]:
        """The change of the backend in progress, and the hosts that have not changed."""
        notes = tuple(transition_notes(self._bases[0])) if self._bases else ()
        if not notes or not self._behind:
            return notes
        behind = [peer.attributes.host_text for peer in self.peers if peer.subnet in self._behind]
        if not behind:
            return notes
        more = f" and {len(behind) - _NAMED} more" if len(behind) > _NAMED else ""
        return (
            *notes,
            f"Hosts that this host still reaches by a previous backend: {', '.join(behind[:_NAMED])}{more}",
        )

    @property
    def plan(self) -> State | None:
        """The current plan; None before the first plan."""
        return State(self._plan) if self._plan else None

    def hosts(self, inputs: Inputs) -> list[Host]:
        """Return the host in each family of the network in which it has a lease and an underlay."""
        families = () if inputs.config is None else inputs.config.families
        return [host for family in families if (host := self.host(inputs, family)) is not None]

    def host(self, inputs: Inputs, family: Family) -> Host | None:
        """Return the host in the form that backends use; None while its lease or its underlay is missing in
        the family.
        """
        if inputs.lease is None or inputs.underlay is None:
            return None
        if inputs.lease.subnet_in(family) is None or inputs.underlay.address_in(family) is None:
            return None
        host = Host(
            lease=inputs.lease,
            underlay=inputs.underlay.in_family(family),
            device=self._options.device,
            mark=self._options.mark,
            owner=inputs.owner,
            has_fast_path=inputs.has_fast_path,
            caches_flows=inputs.caches_flows,
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
        found = foreign(inputs.surroundings, network, links | self._links, self._plan)
        own, needed, peers = (
            host.subnet,
            {*found.stores, *found.gateways, *found.resolvers},
            self._peers.get(family),
        )
        # A host may have thousands of addresses of services, which change often and do not affect the plan.
        addresses = frozenset(
            address
            for address in found.addresses
            if address in needed or (peers is not None and peers.has_address(address))
        )
        return replace(host, surroundings=replace(outside(found, own), addresses=addresses))

    def objection_to(self, config: NetworkConfig, backend: Backend, inputs: Inputs) -> str | None:
        """Return the reason why this host cannot use a config, independent of leases; None if it can."""
        if inputs.underlay is None:
            return None
        for network in config.ranges:
            found = foreign(inputs.surroundings, network, {self._options.device}, self._plan)
            underlay = inputs.underlay.in_family(network.version)
            why = network_objection(network, backend.routed, underlay, found)
            if why is not None:
                return why
        return None

    def avoided(self, config: NetworkConfig, inputs: Inputs) -> tuple[IpNetwork, ...]:
        """Return the prefixes that a new subnet of this host should not overlap."""
        if inputs.underlay is None:
            return ()
        prefixes: list[IpNetwork] = []
        for network in config.ranges:
            found = foreign(inputs.surroundings, network, {self._options.device}, self._plan)
            prefixes.extend(avoided(network, inputs.underlay.in_family(network.version), found))
        return tuple(prefixes)

    def update(self, inputs: Inputs) -> PlanResult:
        """Update the plan to these inputs, and return the change."""
        self.peer_changes = self._update_peers(inputs)
        if inputs.backend is None or inputs.underlay is None:
            return self._block("")
        self.obstacle = inputs.backend.obstacle(inputs.underlay, inputs.wireguard) or ""
        hosts = self.hosts(inputs)
        if inputs.config is None or not hosts or hosts[0].family != inputs.config.families[0]:
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
        if generations[0].backend.routed != "nothing":
            for one in hosts:
                why = subnet_objection(one.subnet, one.underlay, inputs.surroundings)
                if why is not None:
                    return self._block(f"another subnet for this host: {why}")
        bases = tuple(
            basis_of(generations, one, inputs.backend, greeted=inputs.greeted, path_mtus=inputs.path_mtus)
            for one in hosts
        )
        if bases == self._bases and not self._is_contested:
            previous = self._plan_peers(bases)
            if previous is not None:
                previous |= self._plan_bridges(bases[0], inputs.bridges)
                previous |= self._plan_docker(bases, inputs.docker)
                return Changed(previous) if previous else Unchanged()
        self._bases = bases
        return self._plan_all(bases, inputs)

    def receiving_keys(self) -> set[Key]:
        """Return the keys of the objects that this host needs to receive packets of the newest backend, if
        this backend is planned.
        """
        found: set[Key] = set()
        for basis in self._bases:
            for view in basis.views:
                if view.backend is basis.newest:
                    found.add(guard_table(self._options.device, basis.family))
                    found.update(item.key for item in view.backend.plan_host(view.host) if item.IS_HOST_PART)
                    peers = (
                        peer for peer in self._peers.get(basis.family, ()) if view_of(peer, basis) is not None
                    )
                    found.update(item.key for peer in peers for item in receiving_items(peer, view))
        return found

    def forget_changes(self) -> None:
        """Free the list of changed peers, which contains all peers after a start."""
        self.peer_changes = []

    def _block(self, reason: str) -> Blocked:
        """Keep the plan in force. If peers changed in this update, the next plan is computed from the
        beginning.
        """
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
            (part.subnet, part.address, config.range_of(family)) for family, part in parts.items()
        )
        before: Mapping[Family, Peers] = {}
        if not self._peers or peers_of != self._peers_of:
            before, self._peers_of = self._peers, peers_of
            self._peers = {
                family: Peers(own, config.range_of(family), part.subnet.prefixlen, family)
                for family, part in parts.items()
            }
        changes = [change for peers in self._peers.values() for change in peers.update(inputs.leases)]
        self.conflicts = self._all_conflicts()
        return list(differences(before, self._peers)) if before else changes

    def _all_conflicts(self) -> tuple[Conflict, ...]:
        """Return the conflicts of all families.

        If only one family has conflicts, the same tuple is returned until the conflicts change.
        """
        conflicts = [peers.conflicts for peers in self._peers.values() if peers.conflicts]
        if len(conflicts) < 2:
            return conflicts[0] if conflicts else ()
        return tuple(dict.fromkeys(conflict for each in conflicts for conflict in each))

    def _plan_all(self, bases: tuple[Basis, ...], inputs: Inputs) -> Replaced:
        """Plan everything. If two peers need one object, the backend decides which peer gets it."""
        config, options = bases[0].config, self._options
        firsts = [basis.views[0] for basis in bases if basis.views]
        lease = firsts[0].host.lease
        text = format_subnet_env(
            config=config,
            subnet=lease.subnet,
            ipv6_subnet=lease.ipv6_subnet,
            mtu=min(view.backend.mtu(view.host) for view in firsts),
            ip_masq=options.packet_filter.masquerades,
            division=divide(lease.subnet) if options.serves_docker else None,
            ipv6_cni=ipv6_part_of_cni(lease.ipv6_subnet) if options.serves_docker else None,
        )
        notes = (note for view in firsts for note in notes_on(config, view.backend, view.host))
        self.notes = (*dict.fromkeys(notes), *transition_notes(bases[0]), *self.family_notes)
        plan: ItemMap[Item] = ItemMap()
        for basis in bases:
            for view in basis.views:
                plan.add(item for item in view.backend.plan_host(view.host) if item.key not in plan)
        self._links |= {item.name for item in State(plan).of_type(Link)}
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
            ports = (view.backend.tunnel_port_in(basis.family) for view in basis.views)
            plan.add(plan_open_ports(filter(None, ports), config, host, options.packet_filter))
        plan.add((*options.other_files, HostFile(path=options.subnet_file, text=text)))
        plan.add(bridge_items(bases[0], inputs.bridges))
        self._bridges, self._docker = inputs.bridges, inputs.docker
        self._behind, self.objections = set(), {}
        contested: set[Key] = set()
        self._is_contested = False
        for basis in bases:
            self._is_contested |= self._add_peers(plan, basis, contested)
        self._plan, self._contested = plan, contested
        return Replaced(State(plan))

    def _add_peers(self, plan: ItemMap[Item], basis: Basis, contested: set[Key]) -> bool:
        """Add the peers of a family to a plan. If several peers need one key, add the key to `contested`.

        Returns:
            True if two peers need one key.
        """
        count, peers = len(plan), self._peers_in(basis.family)
        judged = [(peer, self._objection(peer, basis)) for peer in peers]
        # A refused peer does not have precedence over other peers.
        outranked = outranked_by([peer for peer, reason in judged if reason is None], basis)
        objections = dict(self.objections)
        for peer, objection in judged:
            reason = (outranked.get(peer.subnet) if outranked else None) or objection
            if reason is not None:
                objections[subnet_of(peer, basis.family)] = Objection(peer, reason, basis.family)
                continue
            items = self._plan_peer(peer, basis)
            self._note_generation(peer, basis)
            count += len(items)
            plan.add(items)
        self.objections = objections
        yielding = [peer for peer in peers if peer.subnet in outranked] if outranked else []
        contested.update(item.key for peer in yielding for item in self._plan_peer(peer, basis))
        return len(plan) < count

    def _plan_peers(self, bases: tuple[Basis, ...]) -> dict[Key, Item | None] | None:
        """Plan the changed peers again; return None if two peers need one key, so that all peers must be
        planned.
        """
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
            basis, subnet = by_family[change.family], subnet_of(change.old, change.family)
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
                subnet = subnet_of(change.new, change.family)
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

    def _is_about_contest(self, change: PeerChange, basis: Basis) -> bool:
        """Return whether a peer needs, or needed, an object that other peers leave to it."""
        return any(
            item.key in self._contested
            for peer in (change.old, change.new)
            if peer is not None
            for item in self._plan_peer(peer, basis)
        )

    def _affected(self, bases: tuple[Basis, ...]) -> list[PeerChange]:
        """Return the peers whose address enters or leaves the overlay because other peers changed."""
        affected: list[PeerChange] = []
        for basis in bases:
            family, peers = basis.family, self._peers.get(basis.family)
            if peers is None or all(view.backend.routed != "peers" for view in basis.views):
                continue
            changed = {
                subnet_of(each, family)
                for one in self.peer_changes
                for each in (one.old, one.new)
                if each is not None and one.family == family
            }
            affected += [
                PeerChange(peer, peer, family)
                for peer in peers.inside(changed)
                if subnet_of(peer, family) not in changed
            ]
        return affected

    def _objection(self, peer: Lease, basis: Basis) -> str | None:
        """Return the reason why a peer is not planned: the backend's objection, or an address inside the
        overlay.
        """
        view, network = view_of(peer, basis), basis.config.range_of(basis.family)
        if view is None:
            return basis.views[0].backend.objection(peer, basis.views[0].host) if basis.views else None
        part = peer.part(basis.family)
        if network is None or part is None or part.address not in network:
            return None
        host, peers = view.host, self._peers.get(basis.family)
        if peers is None or view.backend.routed == "nothing":
            return None
        routed = [
            subnet_of(lease, basis.family)
            for lease in peers.covering(part.address)
            if any(isinstance(item, Route) for item in self._plan_peer(lease, basis))
        ]
        return overlay_objection(part.address, (host.subnet, *self._host_routes, *routed), host)

    def _note_generation(self, peer: Lease, basis: Basis) -> None:
        """Record whether a planned peer is reached by a previous backend."""
        if len(basis.views) > 1:
            view = view_of(peer, basis)
            if view is not None and view.backend is not basis.newest:
                self._behind.add(subnet_of(peer, basis.family))

    def _plan_peer(self, peer: Lease, basis: Basis) -> tuple[Item, ...]:
        """Return the objects of one peer; none if no backend plans objects for it."""
        if not basis.views:
            return ()
        host = basis.views[0].host
        if len(basis.views) == 1:
            variant = variant_of(peer, basis.views[0], basis)
            items = narrowed(tuple(basis.views[0].backend.plan_peer(variant or peer, host)), peer, basis)
        else:
            items = tuple(items_of(peer, basis))
        if not items:
            return items
        return (*items, *plan_guard_peer(basis.path, peer, host, self._options.packet_filter.guard))

    def _plan_bridges(self, basis: Basis, bridges: tuple[Bridge, ...]) -> dict[Key, Item | None]:
        """Plan the objects of the bridges and their containers again, if the bridges changed."""
        if bridges is self._bridges:
            return {}
        gone = State.collect(bridge_items(basis, self._bridges)).by_key
        come = State.collect(bridge_items(basis, bridges)).by_key
        self._bridges = bridges
        return self._exchange(gone, come)

    def _plan_docker(self, bases: tuple[Basis, ...], docker: DockerParts) -> dict[Key, Item | None]:
        """Plan the networks of Docker and the filter rules again, if these networks changed."""
        if docker is self._docker:
            return {}
        previous: dict[Key, Item | None] = {}
        for basis in bases:
            if basis.views:
                gone = self._items_of_docker(basis, self._docker).by_key
                previous |= self._exchange(gone, self._items_of_docker(basis, docker).by_key)
        self._docker = docker
        return previous

    def _items_of_docker(self, basis: Basis, docker: DockerParts) -> State:
        """Return the bridges of Docker's networks, and the filter rules, some of which are for these
        bridges.
        """
        first = basis.views[0]
        rules = plan_filter(basis.config, first.host, self._options.packet_filter, docker)
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
