"""The planner: holds what is known of the network and this host, and keeps the plan made from it."""

import logging
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.host import Bridge, GroChoice, Host, Underlay
from pyflannel.model.host_file import HostFile
from pyflannel.model.item import Item, ItemMap
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import Held
from pyflannel.model.lease_set import LeaseSet, SubnetMap
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.state import Add, Operation, Remove, Replace, State
from pyflannel.plan.backends import Backend, notes_on
from pyflannel.plan.packet_filter import FilterOptions, plan_filter
from pyflannel.plan.peers import Conflict, PeerChange, Peers
from pyflannel.plan.routes import plan_blackhole
from pyflannel.wire.subnet_env import format_subnet_env

log = logging.getLogger(__name__)

NAMED_IN_LOG = 20
"""So many peers that come or go at once are named one by one."""

_Whom = tuple[IPv4Network, IPv4Address, IPv4Network | None, int]


class Planner:
    """What the plan is made of, and the plan.

    Any of what it is made of may change at any time; `update` then brings the plan up to date. The plan
    depends on what there is alone: a lease that changes re-plans its peer only, and gives what planning
    everything would.
    """

    def __init__(
        self,
        *,
        subnet_file: str,
        other_files: tuple[HostFile, ...] = (),
        packet_filter: FilterOptions,
        device: str,
        mark: str,
        owner: str = "",
        kernel: str = "",
        has_blackhole: bool = False,
        gro: GroChoice = "auto",
    ) -> None:
        self._subnet_file = subnet_file
        self._other_files = other_files
        self._packet_filter = packet_filter
        self._device = device
        self._mark = mark
        self._kernel = kernel
        self._has_blackhole = has_blackhole
        self._gro = gro
        self.owner = owner
        self.config: NetworkConfig | None = None
        self.backend: Backend | None = None
        self.underlay: Underlay | None = None
        self.held: Held | None = None
        self.leases = LeaseSet()
        self.counted: SubnetMap[Lease] | None = None
        self.bridges: tuple[Bridge, ...] = ()
        self.has_fast_path = False
        self.objections: dict[IPv4Network, str] = {}
        self._said_obstacle: str | None = None
        self._said_notes: tuple[str, ...] = ()
        self._whom: _Whom | None = None
        self._peers: Peers | None = None
        self._conflicts: tuple[Conflict, ...] = ()
        self._made_of: tuple[NetworkConfig, Backend, Host] | None = None
        self._plan: ItemMap[Item] = ItemMap()
        self._is_contested = False
        self._bridged: tuple[Bridge, ...] = ()

    @property
    def peers(self) -> tuple[Lease, ...]:
        """The peers that are planned for, in the order of their subnets."""
        return tuple(sorted(self._peers or (), key=_place))

    @property
    def peer_count(self) -> int:
        """How many peers there are."""
        return len(self._peers or ())

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """What is wrong with the leases."""
        return self._conflicts

    @property
    def refused(self) -> dict[IPv4Network, str]:
        """The leases of others that are not planned for, and why."""
        ignored = {} if self._peers is None else self._peers.ignored
        return {**{subnet: conflict.text for subnet, conflict in ignored.items()}, **self.objections}

    @property
    def refused_owners(self) -> dict[IPv4Network, str]:
        """Who holds those of them that have an owner known by an identity."""
        leases = self.leases.by_subnet
        owners = {subnet: lease.attributes.owner for subnet in self.refused if (lease := leases.get(subnet))}
        return {subnet: owner.owner for subnet, owner in owners.items() if owner is not None}

    @property
    def host(self) -> Host | None:
        """This host, once it has a lease and an underlay."""
        if self.held is None or self.underlay is None:
            return None
        return Host(
            lease=self.held.lease,
            underlay=self.underlay,
            device=self._device,
            mark=self._mark,
            owner=self.owner,
            has_fast_path=self.has_fast_path,
            gro=self._gro,
            kernel=self._kernel,
        )

    @property
    def obstacle(self) -> str | None:
        """What the backend waits for, as it cannot work with the underlay that there is; None when it can."""
        if self.backend is None or self.underlay is None:
            return None
        return self.backend.obstacle(self.underlay)

    def desired(self) -> State | None:
        """Return the plan, or None while something that it is made of is missing.

        It is the plan itself: single peers are exchanged in it. Planning everything makes another.
        """
        return State(self._plan) if self._plan else None

    def update(self) -> list[Operation] | None:
        """Bring the plan up to date, and say what changed.

        Returns:
            What turns the plan of before into that of now, when single peers changed; None when anything may
            have.
        """
        changes = self._update_peers()
        host = self.host
        if self._is_obstructed() or host is None or self.config is None or self.backend is None:
            return None  # what stands is kept
        made_of = self.config, self.backend, host
        if made_of == self._made_of and not self._is_contested:
            operations = self._plan_changes(changes, self.backend, host)
            if not self._is_contested:
                return operations + self._plan_bridges(self.backend, host)
        self._made_of = made_of
        self._plan_all(self.config, self.backend, host)
        return None

    def _update_peers(self) -> list[PeerChange]:
        if self.held is None or self.config is None:
            return []
        own = self.held.lease
        whom = (own.subnet, own.attributes.public_ip, self.config.network, self.config.subnet_length)
        before: dict[IPv4Network, Lease] | None = None
        if self._peers is None or whom != self._whom:
            before = {peer.subnet: peer for peer in self._peers or ()}
            self._whom = whom
            self._peers = Peers(own, self.config.network, self.config.subnet_length)
        changes = self._peers.update(self.leases.by_subnet if self.counted is None else self.counted)
        if before is not None:
            now = {peer.subnet: peer for peer in self._peers}
            changes = [PeerChange(before.get(s), now.get(s)) for s in before.keys() | now.keys()]
        _tell("added", [change.new for change in changes if change.new and not change.old])
        _tell("removed", [change.old for change in changes if change.old and not change.new])
        self._take_conflicts(self._peers.conflicts)
        return changes

    def _take_conflicts(self, conflicts: tuple[Conflict, ...]) -> None:
        """Take the conflicts of now, and say what is news."""
        known = frozenset(self._conflicts)
        news = [conflict for conflict in conflicts if conflict not in known]
        self._conflicts = conflicts
        for conflict in news[:NAMED_IN_LOG]:
            log.warning("Conflict: %s", conflict.text)
        if len(news) > NAMED_IN_LOG:
            log.warning("Conflicts: %d more; flannelctl status names them", len(news) - NAMED_IN_LOG)

    def _plan_all(self, config: NetworkConfig, backend: Backend, host: Host) -> None:
        """Plan everything; of two peers that want one thing, the backend says who gets it."""
        text = format_subnet_env(
            config=config,
            subnet=host.lease.subnet,
            mtu=backend.mtu(host),
            ip_masq=self._packet_filter.masquerades,
        )
        self._tell_notes(notes_on(config, backend, host), backend)
        plan: ItemMap[Item] = backend.plan_host(host).by_key.copy()
        if self._has_blackhole:
            plan.add(plan_blackhole(host))
        plan.add(plan_filter(config, host, self._packet_filter))
        plan.add((*self._other_files, HostFile(path=self._subnet_file, text=text)))
        self._bridged = self.bridges
        plan.add(backend.plan_bridges(self.bridges, host))
        count = len(plan)
        peers = self.peers
        outranked = backend.outranked(peers, host)
        objections: dict[IPv4Network, str] = {}
        refused: list[Lease] = []
        for peer in peers:
            objection = outranked.get(peer.subnet) or backend.objection(peer, host)
            if objection is not None:
                objections[peer.subnet] = objection
                refused.append(peer)
                continue
            items = backend.plan_peer(peer, host)
            count += len(items)
            plan.add(items)
        self._take_objections(objections, refused)
        self._plan, self._is_contested = plan, bool(outranked) or len(plan) < count

    def _plan_changes(self, changes: Iterable[PeerChange], backend: Backend, host: Host) -> list[Operation]:
        """Plan the changed peers anew; when two peers want one key, only that this is so is noted."""
        gone: ItemMap[Item] = ItemMap()
        come: ItemMap[Item] = ItemMap()
        objections = dict(self.objections)
        refused: list[Lease] = []
        for change in changes:
            if change.old is not None:
                gone.add(backend.plan_peer(change.old, host))
                objections.pop(change.old.subnet, None)
        for change in changes:
            if change.new is None:
                continue
            objection = backend.objection(change.new, host)
            if objection is not None:
                objections[change.new.subnet] = objection
                refused.append(change.new)
                continue
            items = backend.plan_peer(change.new, host)
            if any(i.key in come or (i.key in self._plan and i.key not in gone) for i in items):
                self._is_contested = True
                return []
            come.add(items)
        self._take_objections(objections, refused)
        return self._exchange(gone, come)

    def _plan_bridges(self, backend: Backend, host: Host) -> list[Operation]:
        """Plan anew what hangs on the bridges and their containers, where these changed."""
        if self.bridges is self._bridged:
            return []
        gone = backend.plan_bridges(self._bridged, host).by_key
        come = backend.plan_bridges(self.bridges, host).by_key
        self._bridged = self.bridges
        return self._exchange(gone, come)

    def _exchange(self, gone: ItemMap[Item], come: ItemMap[Item]) -> list[Operation]:
        """Take the items of before out of the plan and those of now in; return the operations of that."""
        operations: list[Operation] = []
        for item in gone.each():
            if item.key not in come:
                self._plan.discard(item.key)
                operations.append(Remove(item))
        for item in come.each():
            old = gone.get(item.key)
            if old is None:
                operations.append(Add(item))
            elif old != item:
                operations.append(Replace(old, item))
            self._plan.put(item)
        return operations

    def _is_obstructed(self) -> bool:
        """Return whether the backend cannot work on this host, and say so where it is news."""
        obstacle = self.obstacle
        if obstacle is not None and obstacle != self._said_obstacle:
            log.warning("Waiting for %s", obstacle)
        self._said_obstacle = obstacle
        return obstacle is not None

    def _tell_notes(self, notes: tuple[str, ...], backend: Backend) -> None:
        """Say what a person should know, where it is news; what is odd about the config was said with it."""
        for note in notes:
            if note not in self._said_notes and note not in backend.config_warnings:
                log.warning("Note: %s", note)
        self._said_notes = notes

    def _take_objections(self, objections: dict[IPv4Network, str], peers: Iterable[Lease]) -> None:
        """Take the objections of now, which are to these peers or were there before, and say what is news."""
        news = [peer for peer in peers if self.objections.get(peer.subnet) != objections[peer.subnet]]
        self.objections = objections
        for peer in news[:NAMED_IN_LOG]:
            objection, address = objections[peer.subnet], peer.attributes.public_ip
            log.warning("%s lease=%s address=%s", objection, peer.subnet, address)
        if len(news) > NAMED_IN_LOG:
            log.warning("Refused %d more peers: flannelctl peers names them", len(news) - NAMED_IN_LOG)


def _tell(what: str, leases: list[Lease]) -> None:
    if len(leases) > NAMED_IN_LOG:
        log.info("Subnets %s: %d", what, len(leases))
        return
    for lease in sorted(leases, key=_place):
        log.info("Subnet %s: %s", what, lease.subnet)


def _place(lease: Lease) -> tuple[int, int]:
    """Return what sorts as the subnet does, ten times as fast."""
    return int(lease.subnet.network_address), lease.subnet.prefixlen
