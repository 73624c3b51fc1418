"""The planner: computes the plan from the inputs of a network and this host.

The plan is a function of `Inputs` alone. A cache makes small changes fast: if a lease changes, only its peer
is planned again, and the result equals a new plan.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network

from pyflannel.model.host import ALONE, Bridge, GroChoice, Host, HostFile, Surroundings, Underlay
from pyflannel.model.item import Item, ItemMap, Key
from pyflannel.model.lease import Lease
from pyflannel.model.lease_set import LeaseSet, SubnetMap
from pyflannel.model.link import MARK, Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.route import Route
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardedPath
from pyflannel.model.wireguard import UNKNOWN, WireguardFacts
from pyflannel.plan.backends import Backend, notes_on
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The inputs of a plan that may change while the host runs.

    Attributes:
        config: the network config in force; None until one is known.
        backend: the backend of the config.
        underlay: the interface that carries the tunnel.
        lease: this host's lease.
        leases: the leases that are valid for the data path, including this host's.
        bridges: bridges of containers; only known for the fast path.
        has_fast_path: programs in the kernel may carry packets.
        owner: identity of this host.
        surroundings: addresses and routes outside the overlay.
        wireguard: key and implementation, for the wireguard backend.
    """

    config: NetworkConfig | None = None
    backend: Backend | None = None
    underlay: Underlay | None = None
    lease: Lease | None = None
    leases: SubnetMap[Lease] = field(default_factory=SubnetMap)
    bridges: tuple[Bridge, ...] = ()
    has_fast_path: bool = False
    owner: str = ""
    surroundings: Surroundings = ALONE
    wireguard: WireguardFacts = UNKNOWN


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
    """

    subnet_file: str
    other_files: tuple[HostFile, ...] = ()
    packet_filter: FilterOptions = field(default_factory=FilterOptions)
    device: str = FIRST_DEVICE
    mark: str = MARK
    kernel: str = ""
    has_blackhole: bool = False
    gro: GroChoice = "auto"


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
    """A peer that is not planned, and the reason."""

    peer: Lease
    reason: str


@dataclass(frozen=True, slots=True)
class _Basis:
    """The inputs that concern all objects of a plan. Another basis requires a new plan."""

    config: NetworkConfig
    backend: Backend
    host: Host
    path: GuardedPath | None


class Planner:
    """Keeps the plan up to date: `update` takes the present inputs and returns the changes of the plan.

    Attributes:
        conflicts: conflicts of leases, in the order of their subnets.
        objections: the peers that are not planned, by subnet; the same mapping until it changes.
        notes: peculiarities of the network on this host, one line each.
        peer_changes: peers that the latest update added, removed or changed, until `forget_changes`.
    """

    def __init__(self, options: PlanOptions) -> None:
        self._options = options
        self._basis: _Basis | None = None
        self._plan: ItemMap[Item] = ItemMap()
        self._peers: Peers | None = None
        self._peers_of: tuple[object, ...] = ()
        self._bridges: tuple[Bridge, ...] = ()
        self._host_routes: tuple[IPv4Network, ...] = ()  # routes of the host itself, independent of peers
        self._is_contested = False  # two peers need one key, and only a whole plan decides which gets it
        self._contested: Set[Key] = frozenset()  # keys of the peers that yield to others
        self.conflicts: tuple[Conflict, ...] = ()
        self.objections: Mapping[IPv4Network, Objection] = {}
        self.notes: tuple[str, ...] = ()
        self.peer_changes: list[PeerChange] = []

    @property
    def peers(self) -> tuple[Lease, ...]:
        """The valid leases of other hosts, in the order of their subnets."""
        return tuple(sorted(self._peers or (), key=_place))

    @property
    def peer_count(self) -> int:
        """The number of peers."""
        return len(self._peers or ())

    @property
    def refused(self) -> dict[IPv4Network, str]:
        """The reasons why leases of other hosts are not planned, by subnet."""
        ignored = {} if self._peers is None else self._peers.ignored
        objected = {subnet: objection.reason for subnet, objection in self.objections.items()}
        return {**{subnet: conflict.text for subnet, conflict in ignored.items()}, **objected}

    def refused_owners(self, leases: LeaseSet) -> dict[IPv4Network, str]:
        """Return the owners of the refused leases that have an owner, by subnet."""
        refused = (lease for subnet in self.refused if (lease := leases.by_subnet.get(subnet)) is not None)
        return {one.subnet: one.attributes.owner for one in refused if one.attributes.owner is not None}

    @property
    def plan(self) -> State | None:
        """The plan in force, None before the first."""
        return State(self._plan) if self._plan else None

    def host(self, inputs: Inputs) -> Host | None:
        """Return the host as backends see it; None while its lease or its underlay is missing."""
        if inputs.lease is None or inputs.underlay is None:
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
        )
        config, backend = inputs.config, inputs.backend
        if config is None or backend is None or config.network is None:
            return host
        links = (
            {item.name for item in backend.plan_host(host).of_type(Link)}
            if inputs.surroundings.routes
            else ()
        )
        found = foreign(inputs.surroundings, config.network, links, self._plan)
        own, needed, peers = (
            host.lease.subnet,
            {*found.stores, *found.gateways, *found.resolvers},
            self._peers,
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
        if config.network is None or inputs.underlay is None:
            return None
        found = foreign(inputs.surroundings, config.network, {self._options.device}, self._plan)
        return network_objection(config.network, backend.routed, inputs.underlay, found)

    def avoided(self, config: NetworkConfig, inputs: Inputs) -> tuple[IPv4Network, ...]:
        """Return the prefixes that a new subnet of this host should not overlap."""
        if config.network is None or inputs.underlay is None:
            return ()
        found = foreign(inputs.surroundings, config.network, {self._options.device}, self._plan)
        return avoided(config.network, inputs.underlay, found)

    def update(self, inputs: Inputs) -> PlanResult:
        """Update the plan to these inputs, and return the change."""
        self.peer_changes = self._update_peers(inputs)
        if inputs.backend is None or inputs.underlay is None:
            return self._block("")
        reason = inputs.backend.obstacle(inputs.underlay, inputs.wireguard)
        host = self.host(inputs)
        if reason is not None or host is None or inputs.config is None:
            return self._block(reason or "")
        if inputs.backend.routed != "nothing":
            why = subnet_objection(host.lease.subnet, inputs.underlay, inputs.surroundings)
            if why is not None:
                return self._block(f"another subnet for this host: {why}")
        basis = _Basis(inputs.config, inputs.backend, host, inputs.backend.guarded_path(host))
        if basis == self._basis and not self._is_contested:
            previous = self._plan_peers(basis)
            if previous is not None:
                previous |= self._plan_bridges(basis, inputs.bridges)
                return Changed(previous) if previous else Unchanged()
        self._basis = basis
        return self._plan_all(basis, inputs.bridges)

    def forget_changes(self) -> None:
        """Free the list of changed peers, which contains all peers after a start."""
        self.peer_changes = []

    def _block(self, reason: str) -> Blocked:
        """Keep the plan in force. If peers changed meanwhile, the next plan is a new one."""
        if self.peer_changes:
            self._basis = None
        return Blocked(reason)

    def _update_peers(self, inputs: Inputs) -> list[PeerChange]:
        """Update the peers to the leases; return the peers that were added, removed or changed."""
        config, own = inputs.config, inputs.lease
        if own is None or config is None:
            return []
        peers_of = (own.subnet, own.attributes.public_ip, config.network, config.subnet_length)
        before: dict[IPv4Network, Lease] | None = None
        if self._peers is None or peers_of != self._peers_of:
            before = {peer.subnet: peer for peer in self._peers or ()}
            self._peers_of = peers_of
            self._peers = Peers(own, config.network, config.subnet_length)
        changes = self._peers.update(inputs.leases)
        self.conflicts = self._peers.conflicts
        if before is None:
            return changes
        now = {peer.subnet: peer for peer in self._peers}
        pairs = ((before.get(subnet), now.get(subnet)) for subnet in before.keys() | now.keys())
        return [PeerChange(old, new) for old, new in pairs if old is not new]

    def _plan_all(self, basis: _Basis, bridges: tuple[Bridge, ...]) -> Replaced:
        """Plan everything. If two peers need one object, the backend decides which gets it."""
        config, backend, host, options = basis.config, basis.backend, basis.host, self._options
        text = format_subnet_env(
            config=config,
            subnet=host.lease.subnet,
            mtu=backend.mtu(host),
            ip_masq=options.packet_filter.masquerades,
        )
        self.notes = notes_on(config, backend, host)
        plan: ItemMap[Item] = backend.plan_host(host).by_key.copy()
        self._host_routes = tuple(
            item.destination
            for item in State(plan).of_type(Route)
            if item.kind == "unicast" and isinstance(item.destination, IPv4Network)
        )
        if options.has_blackhole:
            plan.add(plan_blackhole(host))
        plan.add(plan_filter(config, host, options.packet_filter))
        plan.add(plan_guard(basis.path, config, host, options.packet_filter))
        plan.add((*options.other_files, HostFile(path=options.subnet_file, text=text)))
        plan.add(backend.plan_bridges(bridges, host))
        self._bridges = bridges
        count, peers = len(plan), self.peers
        judged = [(peer, self._objection(peer, basis)) for peer in peers]
        # A refused peer has precedence over no other.
        outranked = backend.outranked([peer for peer, reason in judged if reason is None], host)
        objections: dict[IPv4Network, Objection] = {}
        for peer, objection in judged:
            reason = (outranked.get(peer.subnet) if outranked else None) or objection
            if reason is not None:
                objections[peer.subnet] = Objection(peer, reason)
                continue
            items = self._plan_peer(peer, basis)
            count += len(items)
            plan.add(items)
        self.objections = objections
        self._plan, self._is_contested = plan, len(plan) < count
        yielding = [peer for peer in peers if peer.subnet in outranked] if outranked else []
        self._contested = {item.key for peer in yielding for item in backend.plan_peer(peer, host)}
        return Replaced(State(plan))

    def _plan_peers(self, basis: _Basis) -> dict[Key, Item | None] | None:
        """Plan the changed peers again; return None if two peers need one key: then all must be planned."""
        if not self.peer_changes:
            return {}
        gone: ItemMap[Item] = ItemMap()
        come: ItemMap[Item] = ItemMap()
        objections, are_others = dict(self.objections), False
        changes = [*self.peer_changes, *self._affected(basis)]
        if self._contested and any(self._is_about_contest(change, basis) for change in changes):
            return None
        for change in changes:
            if change.old is None:
                continue
            if objections.pop(change.old.subnet, None) is None:
                gone.add(self._plan_peer(change.old, basis))
            else:
                are_others = True
        for change in changes:
            if change.new is None:
                continue
            reason = self._objection(change.new, basis)
            if reason is not None:
                objections[change.new.subnet] = Objection(change.new, reason)
                are_others = True
                continue
            items = self._plan_peer(change.new, basis)
            if any(item.key in come or (item.key in self._plan and item.key not in gone) for item in items):
                self._is_contested = True
                return None
            come.add(items)
        if are_others:
            self.objections = objections
        return self._exchange(gone, come)

    def _is_about_contest(self, change: PeerChange, basis: _Basis) -> bool:
        """Return whether a peer needs, or needed, an object for which others yield."""
        return any(
            item.key in self._contested
            for peer in (change.old, change.new)
            if peer is not None
            for item in basis.backend.plan_peer(peer, basis.host)
        )

    def _affected(self, basis: _Basis) -> list[PeerChange]:
        """Return the peers whose address enters or leaves the overlay because other peers changed."""
        if basis.backend.routed != "peers" or self._peers is None:
            return []
        changed = {
            each.subnet for one in self.peer_changes for each in (one.old, one.new) if each is not None
        }
        return [PeerChange(peer, peer) for peer in self._peers.inside(changed) if peer.subnet not in changed]

    def _objection(self, peer: Lease, basis: _Basis) -> str | None:
        """Return why a peer is not planned: the backend's objection, or its address is in the overlay."""
        config, backend, host = basis.config, basis.backend, basis.host
        reason, address = backend.objection(peer, host), peer.attributes.public_ip
        if reason is not None or config.network is None or address not in config.network:
            return reason
        if self._peers is None or backend.routed == "nothing":
            return None
        routed = [
            lease.subnet
            for lease in self._peers.covering(address)
            if any(backend.plan_peer(lease, host).of_type(Route))
        ]
        return overlay_objection(address, (host.lease.subnet, *self._host_routes, *routed), host)

    def _plan_peer(self, peer: Lease, basis: _Basis) -> tuple[Item, ...]:
        """Return the objects of one peer; none if the backend plans none for it."""
        items = tuple(basis.backend.plan_peer(peer, basis.host))
        if not items:
            return items
        return (*items, *plan_guard_peer(basis.path, peer, basis.host, self._options.packet_filter.guard))

    def _plan_bridges(self, basis: _Basis, bridges: tuple[Bridge, ...]) -> dict[Key, Item | None]:
        """Plan the objects of the bridges and their containers again, if these changed."""
        if bridges is self._bridges:
            return {}
        gone = basis.backend.plan_bridges(self._bridges, basis.host).by_key
        come = basis.backend.plan_bridges(bridges, basis.host).by_key
        self._bridges = bridges
        return self._exchange(gone, come)

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


def _place(lease: Lease) -> tuple[int, int]:
    """Return a key that sorts as the subnet does, ten times as fast."""
    return int(lease.subnet.network_address), lease.subnet.prefixlen
