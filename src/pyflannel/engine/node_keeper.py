"""The node keeper: publishes the lease of this host in its Kubernetes Node, and follows all Nodes.

Kubernetes assigns the subnet of a host, its podCIDR, and no lease expires. Therefore a host does not choose,
renew or contest a subnet, and the lease protocol is not used. The supervisor gets the same reports as from
the lease keeper.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from msgspec.structs import replace

from pyflannel.engine.lease_log import SkippedKeys
from pyflannel.engine.list_watch import ListAndWatch, StoreLog
from pyflannel.engine.pacing import pause
from pyflannel.errors import StoreError, WireError
from pyflannel.model.kubernetes_node import IS_UP, Node, NodeCondition, OwnNode
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import (
    Acquired,
    Held,
    LeaseChange,
    LeaseGone,
    LeaseSeen,
    Lost,
    Report,
    StoreAway,
    StoreBack,
    Unassigned,
    Wanted,
)
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import Family, IpNetwork, NetworkConfig
from pyflannel.model.store_record import Change, Listing, Put, PutSeen, Record, Written
from pyflannel.plan.lease.choice import merged_attributes
from pyflannel.plan.lease.holding import retry_pause_s
from pyflannel.ports import Clock, Store
from pyflannel.wire.kubernetes_node import (
    NODES,
    Subnets,
    format_annotations,
    format_condition,
    lease_of_node,
    leased,
    missing_annotations,
    node_of,
    rfc3339,
    subnets_of,
    with_published_addresses,
)

log = logging.getLogger(__name__)

_DRAIN = "Drain the Node and restart flanneld on it: pods that start then get addresses of the new podCIDR."


PATH_PATIENCE_S = 10.0
"""Seconds for which the data path may fail before the Node reports the failure. Most failures are repaired
earlier."""


class NodeKeeper:
    """Keeps the lease of this host in its Node, and follows the leases of all Nodes.

    `report` gets the reports about this host's lease, and `leases_changed` gets each new set of leases. These
    functions must not block. `is_ready` is set when the plan of the host has taken effect for the first time.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        draw: Callable[[int], int],
        store_log: StoreLog,
        own: OwnNode,
        wanted: Wanted,
        held: Held | None,
        report: Callable[[Report], None],
        leases_changed: Callable[[LeaseSet], None],
        is_ready: asyncio.Event,
    ) -> None:
        self._store = store
        self._clock = clock
        self._draw = draw
        self._own = own
        self._wanted = wanted
        self._held = held
        self._report = report
        self._leases_changed = leases_changed
        self._is_ready = is_ready
        self._is_away = False
        self._has_listed = False
        self._node: Node | None = None
        self._node_revision = 0
        self._is_lost = False
        self._has_trouble = False
        self._path_trouble: str | None = None
        self._path_noted = asyncio.Event()
        self._broken: NodeCondition | None = None
        self._due = asyncio.Event()
        self._leases = LeaseSet()
        self._of_node: dict[str, Lease] = {}
        self._skipped = SkippedKeys(clock)
        self._nodes = ListAndWatch(
            store=store,
            prefix=NODES,
            clock=clock,
            draw=draw,
            store_log=store_log,
            doing="Couldn't list the Nodes",
            listed=self._listed,
            changed=self._changed,
            failed=self._failed,
        )

    def order(self, wanted: Wanted) -> None:
        """Change the wanted lease, for example because the address or the config changed."""
        self._wanted = wanted
        self._due.set()

    def resume(self, held: Held) -> None:
        """Record the lease of the previous run, on which the host runs until the cluster answers."""
        self._held = held
        self._has_trouble = True  # the lease is reported again, even an unchanged lease

    def note_path(self, trouble: str | None) -> None:
        """Record the reason why this host cannot carry packets of the network; None if it can."""
        if trouble != self._path_trouble:
            self._path_trouble = trouble
            self._path_noted.set()

    async def run(self) -> None:
        """Keep the lease until cancelled; the annotations remain in the Node."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._nodes.run(), name="Nodes")
            tasks.create_task(self._note_ready(), name="readiness for the Node")
            tasks.create_task(self._follow_path(), name="data path for the Node")
            failures = 0
            while True:
                await self._due.wait()
                self._due.clear()
                try:
                    await self._publish()
                    failures = 0
                except StoreError as error:
                    self._wait_for(f"Node {self._own.name} cannot be changed: {error}", error.hint)
                    await pause(self._clock, retry_pause_s(failures, self._draw), until=self._due)
                    failures += 1
                    self._due.set()

    async def _note_ready(self) -> None:
        await self._is_ready.wait()
        self._due.set()

    async def _follow_path(self) -> None:
        """Report a failure of the data path that lasts, and report the end of the failure immediately."""
        while True:
            await self._path_noted.wait()
            self._path_noted.clear()
            if self._path_trouble is not None and self._broken is None:
                await self._clock.sleep(PATH_PATIENCE_S)
            trouble = self._path_trouble
            if trouble is None:
                self._broken = None
            elif self._broken is None:
                self._broken = NodeCondition(
                    is_unavailable=True, reason="FlannelPathBroken", message=f"No packets flow: {trouble}"
                )
            self._due.set()

    # Methods that follow all Nodes.

    def _failed(self, error: StoreError) -> None:
        self._is_away = True
        self._report(StoreAway(str(error), 0.0, error.hint))

    def _note_answer(self) -> None:
        if self._is_away:
            self._is_away = False
            self._report(StoreBack())

    def _listed(self, listing: Listing) -> None:
        self._skipped.keep_only(record.key for record in listing.records)
        before, self._of_node = self._of_node, {}
        own = None
        for record in listing.records:
            name = record.key.removeprefix(NODES)
            node = self._read(record)
            if name == self._own.name:
                own = node
            if node is not None and (lease := self._lease(node, record.revision, before.get(name))):
                self._of_node[name] = lease
        self._take_own(own, listing.revision)
        self._has_listed = True
        self._leases = self._leases.listed(self._of_node.values(), (), listing.revision)
        self._leases_changed(self._leases)
        self._note_answer()

    def _changed(self, changes: Sequence[Change]) -> None:
        found: list[LeaseChange] = []
        for change in changes:
            if isinstance(change, PutSeen):
                found += self._put(change.record)
            else:
                found += self._gone(change.key, change.revision)
        leases = self._leases.after(found)
        if leases is not self._leases:
            self._leases = leases
            self._leases_changed(leases)
        self._note_answer()

    def _put(self, record: Record) -> list[LeaseChange]:
        name = record.key.removeprefix(NODES)
        node = self._read(record)
        if name == self._own.name:
            self._take_own(node, record.revision)
        known = self._of_node.get(name)
        lease = None if node is None else self._lease(node, record.revision, known)
        if lease is known:
            return []
        found: list[LeaseChange] = []
        if known is not None and (lease is None or _subnets(lease) != _subnets(known)):
            found += self._gone(record.key, record.revision, is_deleted=False)
        if lease is not None:
            self._of_node[name] = lease
            found.append(LeaseSeen(lease))
        return found

    def _gone(self, key: str, revision: int, *, is_deleted: bool = True) -> list[LeaseChange]:
        name = key.removeprefix(NODES)
        if is_deleted:
            self._skipped.forget(key)
            if name == self._own.name:
                self._take_own(None, revision)
        lease = self._of_node.pop(name, None)
        if lease is None:
            return []
        other = next((one for one in self._of_node.values() if one.subnet == lease.subnet), None)
        if other is not None:
            return [LeaseSeen(replace(other, revision=revision))]
        return [LeaseGone(lease.subnet, revision, lease.ipv6_subnet)]

    def _read(self, record: Record) -> Node | None:
        try:
            return node_of(record)
        except WireError as error:
            self._skipped.skip(record.key, error)
            return None

    def _lease(self, node: Node, revision: int, known: Lease | None) -> Lease | None:
        """Return the lease of a Node; the known lease if no value that flannel uses has changed."""
        key = NODES + node.name
        try:
            lease = lease_of_node(node, self._own.prefix, revision, self._wanted.network.families)
        except WireError as error:
            self._skipped.skip(key, error)
            return known
        self._skipped.forget(key)
        if lease is not None and known is not None and replace(lease, revision=known.revision) == known:
            return known
        return lease

    def _take_own(self, node: Node | None, revision: int) -> None:
        """Record the state of the Node of this host, unless the answer to a write already contained a
        later state.
        """
        if revision >= self._node_revision:
            self._node, self._node_revision = node, revision
            self._due.set()

    # Methods that write the Node of this host.

    def _wait_for(self, cause: str, hint: str) -> None:
        self._has_trouble = True
        self._report(Unassigned(cause, hint))

    async def _publish(self) -> None:
        """Write the annotations and the condition that are missing in the Node."""
        node = self._node
        if node is None:
            if self._has_listed:
                self._lose(f"there is no Node {self._own.name}")
            return
        try:
            lease = self._wanted_lease(node)
        except WireError as error:
            self._wait_for(str(error), error.hint)
            return
        missing = missing_annotations(node, lease.attributes, self._own.prefix)
        if missing:
            after = {**node.annotations, **missing}
            node = replace(node, annotations={name: text for name, text in after.items() if text is not None})
            await self._patch(node, format_annotations(node, missing))
            log.info("Published the lease in Node %s: %s", node.name, ", ".join(sorted(missing)))
        condition = self._hold(lease)
        is_known = self._is_ready.is_set() or condition.is_unavailable
        if self._own.sets_condition and is_known and node.condition != condition:
            patch = format_condition(node, condition, rfc3339(self._clock.utc()))
            await self._patch(replace(node, condition=condition), patch)

    async def _patch(self, changed: Node, patch: bytes) -> None:
        """Change the Node, and use `changed` as its state until the watch delivers this state or a later
        state.
        """
        put = Put(key=NODES + changed.name, value=patch, ttl_s=None, expected=None)
        written = await self._store.write(put)
        if isinstance(written, Written) and written.revision > self._node_revision:
            self._node, self._node_revision = changed, written.revision

    def _lose(self, why: str) -> None:
        if self._held is not None and not self._is_lost:
            self._is_lost = True
            self._report(Lost(self._held.lease))
        self._wait_for(
            why, "The kubelet registers the Node; its name must equal NODE_NAME (kubectl get nodes)."
        )

    def _wanted_lease(self, node: Node) -> Lease:
        """Return the lease of this host: the podCIDRs of its Node, and the attributes that it publishes.

        If the operator has set annotations, the addresses are the addresses in these annotations. The
        addresses of the VTEPs are those that the peers already know.

        Raises:
            WireError: the Node has no podCIDR that this host can use, or an annotation is not an address.
        """
        prefix, config = self._own.prefix, self._wanted.network
        found = subnets_of(node)
        for family, subnet in ((4, found.ipv4), (6, found.ipv6)):
            if family in config.families:
                _check_subnet(node, subnet, family, config)
        attributes = with_published_addresses(node, self._wanted.attributes, prefix)
        with suppress(WireError):
            if (standing := lease_of_node(node, prefix, families=config.families)) is not None:
                wanted = replace(self._wanted, attributes=attributes)
                attributes = merged_attributes(standing.attributes, wanted)
        used = Subnets(found.ipv4, found.ipv6 if config.enable_ipv6 else None)
        lease = leased(used, attributes, self._node_revision, config.families)
        assert lease is not None  # each family of the network has a subnet
        return lease

    def _hold(self, lease: Lease) -> NodeCondition:
        """Report the lease if the lease is new, and return the condition of the Node.

        A running host keeps its subnet unless the operator allows it to renumber.
        """
        held, wanted = self._held, self._wanted
        previous = wanted.previous if lease.subnet.version == 4 else wanted.previous_ipv6
        running = previous if held is None else held.lease.subnet
        if held is not None and _subnets(held.lease) != _subnets(lease) and not wanted.renumbers:
            text = (
                f"Node {self._own.name} has podCIDR {lease.text} now, and its pods run in {held.lease.text}"
            )
            self._wait_for(text, _DRAIN)
            return NodeCondition(is_unavailable=True, reason="FlannelSubnetChanged", message=text)
        if running not in (None, lease.subnet):
            log.warning(
                "Changed the subnet from %s to podCIDR %s: pods in the former subnet are unreachable",
                running,
                lease.subnet,
            )
        is_known = held is not None and replace(lease, revision=held.lease.revision) == held.lease
        if not is_known or self._is_lost or self._has_trouble:
            self._is_lost = self._has_trouble = False
            self._held = Held(lease=lease)
            self._report(Acquired(self._held))
        return self._broken or IS_UP


def _check_subnet(node: Node, subnet: IpNetwork | None, family: Family, config: NetworkConfig) -> None:
    """Check that a Node has a subnet in a family of the network.

    Raises:
        WireError: the Node has no subnet, or a subnet outside of the network.
    """
    name, key = ("", "Network") if family == 4 else ("IPv6 ", "IPv6Network")
    if subnet is None and node.pod_cidrs:
        other = "IPv4 alone" if family == 6 else "IPv6 alone"
        raise WireError(
            f'node "{node.name}" pod cidr not assigned for IPv{family}: it has {", ".join(node.pod_cidrs)}',
            hint=f"In a cluster with {other}, write EnableIPv{family}: false in net-conf.json. For both"
            " families, start kube-controller-manager with both ranges in --cluster-cidr.",
        )
    if subnet is None:
        raise WireError(
            f'node "{node.name}" pod cidr not assigned',
            hint="Start kube-controller-manager with --allocate-node-cidrs and --cluster-cidr.",
        )
    if not config.admits(subnet):
        raise WireError(
            f'subnet "{config.range_of(family)}" specified in the flannel net config doesn\'t contain'
            f' "{subnet}" {name}PodCIDR of the "{node.name}" node',
            hint=f"Write the --cluster-cidr of kube-controller-manager as {key} in net-conf.json.",
        )


def _subnets(lease: Lease) -> tuple[object, object]:
    return lease.subnet, lease.ipv6_subnet
