"""The tunnel guard as a Target: tables of nf_tables, written and read through netlink."""

import asyncio
import errno
import itertools
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Self, TypeVar, cast

from msgspec.structs import replace

from pyflannel.errors import TargetError
from pyflannel.kernel.network.netlink_socket import NotificationSocket, RequestSocket
from pyflannel.model.forwarder import Stranger
from pyflannel.model.item import Item, Key
from pyflannel.model.lease import Lease
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.model.tunnel_guard import GuardPeer, GuardTable, guard_device_of, guard_peers
from pyflannel.ports import Announce, ChangeChannel, performed, refused_by
from pyflannel.wire.netlink.guard_rules import (
    SETS,
    chains_of,
    elements_of,
    family_of,
    name_of,
    strangers,
)
from pyflannel.wire.netlink.message import Message, Request
from pyflannel.wire.netlink.nftables import (
    CHANGES,
    PROTOCOL,
    Chain,
    Element,
    Expression,
    SetSpec,
    TableName,
    add_elements,
    create_chain,
    create_rules,
    create_set,
    create_table,
    delete_chain,
    delete_elements,
    delete_rules,
    delete_table,
    dump_chains,
    dump_elements,
    dump_rules,
    dump_sets,
    dump_tables,
    get_elements,
    is_rule,
    parse_chain,
    parse_counted_elements,
    parse_element_bytes,
    parse_elements,
    parse_rule,
    parse_set,
    parse_table_name,
    table_of,
    transaction,
)

log = logging.getLogger(__name__)

_Value = TypeVar("_Value")

_MOST_BYTES = 100_000
"""Maximum size in bytes of one transaction. Without rights in the initial namespace, a socket can send
about 200,000 bytes at once."""

_AT_ONCE = 500
"""Number of elements that are computed before other tasks can run, which is about half a millisecond of
work."""

_COALESCE_S = 0.1
"""Seconds to wait for further changes: a program that sets up a firewall changes hundreds of rules."""

_HINT = (
    "Run flanneld as root, or with CAP_NET_ADMIN, on a kernel with nf_tables; or set --guard=off. See dmesg."
)


class TunnelGuardTarget:
    """A Target for GuardTable and GuardPeer items.

    If nf_tables is permanently unusable, a scan finds nothing, and each operation is refused with the reason.
    """

    kinds = (GuardTable, GuardPeer)

    def __init__(self) -> None:
        self._requests: RequestSocket | None = None
        self._desired = State.EMPTY
        # A peer that leaves the plan keeps its elements until an operation removes them. Scans report the
        # peers of these two lists if the peers still have elements: the peers that the latest scan found, and
        # the peers that operations added after the beginning of that scan.
        self._found: tuple[GuardPeer, ...] = ()
        self._added: list[GuardPeer] = []
        self._is_planned = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    async def snapshot(self, desired: State) -> State:
        """Return the tables of pyflannel, and the peers with entries in the planned tables.

        Peers that were never planned are not returned. Their entries are differences of the table.
        """
        self._desired = desired
        planned, began = tuple(desired.of_type(GuardPeer)), len(self._added)
        if next(desired.of_type(GuardTable), None) is not None:
            self._is_planned.set()
            await asyncio.sleep(0)  # notifications are received before the table is read
        try:
            names = await self._dump(dump_tables(), parse_table_name)
            found = State.EMPTY
            for table in filter(None, map(_guard_of, names)):
                wanted = desired.by_key.get(table.key)
                found |= (
                    await self._compare(wanted, planned)
                    if isinstance(wanted, GuardTable)
                    else State.of(table)
                )
            self._found = tuple(found.of_type(GuardPeer))
            del self._added[:began]
            return found
        except TargetError as error:
            if not error.is_permanent:
                raise
            return State.EMPTY

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations. Operations on one table form one change."""
        return await performed(operations, self._apply(operations))

    def changes(self) -> ChangeChannel:
        """Open a channel that announces changes of the tables by other programs."""
        return ChangeChannel(self._read_changes)

    async def strangers(self, device: str) -> list[Stranger]:
        """Return the senders of the packets that the tables of a device dropped.

        Raises:
            TargetError: the tables cannot be read.
        """
        found: list[Stranger] = []
        for table in [*self._desired.of_type(GuardTable)]:  # the plan may change during the loop
            if table.device == device:
                request = dump_elements(name_of(table), SETS[table.family].dropped.name)
                dropped = [one for some in await self._dump(request, parse_counted_elements) for one in some]
                found += strangers(dropped, self._peers(table).values()) if dropped else ()
        return found

    async def received_bytes(self, device: str, peer: Lease) -> int | None:
        """Return the bytes of the tunnel packets that the tables of a device accepted from a peer; None if
        no element counts only the packets of this peer.

        Raises:
            TargetError: the kernel did not answer.
        """
        counted = [
            await self._received(table, peer)
            for table in [*self._desired.of_type(GuardTable)]
            if table.device == device
        ]
        found = [size for size in counted if size is not None]
        return sum(found) if found else None

    async def _received(self, table: GuardTable, lease: Lease) -> int | None:
        part, peers = lease.part(table.family), self._peers(table)
        peer = None if part is None else peers.get(int(part.subnet.network_address))
        if part is None or peer is None:
            return None
        if peer.sources != part.subnet and sum(one.address == peer.address for one in peers.values()) > 1:
            return None
        for spec in SETS[table.family].of_sources:
            for key in elements_of([peer], spec, table.source_length):
                answer = await self._socket().ask(get_elements(name_of(table), spec, [key]))
                if isinstance(answer, Message):
                    return next(iter(parse_element_bytes(answer.body).values()), None)
        return None

    async def _compare(self, planned: GuardTable, planned_peers: Sequence[GuardPeer]) -> State:
        """Return the table, with its differences from the plan, and its peers.

        `planned_peers` are the peers of the plan when the scan began. The plan may change during the scan.

        Only the elements of one set are in memory at a time, because there are tens of thousands of elements.
        """
        table, length = name_of(planned), planned.source_length
        differences = [*await self._set_differences(planned), *await self._rule_differences(planned)]
        peers = self._peers(planned)
        present, leaving = peers, dict[Hashable, GuardPeer]()
        for spec in SETS[planned.family].of_peers:
            missing = await _elements_of_many(peers.values(), spec, length)
            foreign = await self._take_found(table, spec.name, missing)
            if missing:  # while the kernel resizes a set, its answer may lack some elements
                foreign |= await self._take_found(table, spec.name, missing)
            if foreign:
                foreign.difference_update(elements_of(peers.values(), spec, length))
            if foreign:
                former = {
                    peer.key[1]: peer
                    for peer in self._former_peers(planned, planned_peers, peers)
                    if not foreign.isdisjoint(elements_of([peer], spec, length))
                }
                leaving |= former
                foreign.difference_update(elements_of(former.values(), spec, length))
            if foreign:
                differences.append(f"{len(foreign)} foreign elements in set {spec.name}")
            if missing:
                present = {
                    name: peer
                    for name, peer in present.items()
                    if missing.isdisjoint(elements_of([peer], spec, length))
                }
        if leaving:
            present = {**leaving, **present}
        tables: dict[Hashable, dict[Hashable, Item]] = {
            guard_peers(planned.device, planned.family): cast("dict[Hashable, Item]", present)
        }
        return State.of(replace(planned, differences=tuple(differences))) | State.of_tables(tables)

    def _former_peers(
        self, table: GuardTable, planned_peers: Iterable[GuardPeer], peers: Mapping[Hashable, GuardPeer]
    ) -> Iterator[GuardPeer]:
        """Yield the peers of a table that may have elements, although they are not among `peers`."""
        group = guard_peers(table.device, table.family)
        for peer in itertools.chain(self._found, planned_peers, self._added):
            of, name = peer.key
            if of == group and peers.get(name) is not peer:
                yield peer

    async def _set_differences(self, table: GuardTable) -> list[str]:
        found = {name: spec for name, *spec in await self._dump(dump_sets(name_of(table)), parse_set)}
        return [
            f"set {spec.name} {'differs' if spec.name in found else 'missing'}"
            for spec in SETS[table.family]
            if found.get(spec.name) != [spec.flags, spec.key_length]
        ]

    async def _rule_differences(self, planned: GuardTable) -> list[str]:
        own = name_of(planned)
        chains = await self._chains(own)
        rules: dict[str, list[tuple[Expression, ...]]] = {}
        for table, name, steps in await self._dump(dump_rules(own), parse_rule):
            if table == own:
                rules.setdefault(name, []).append(steps)
        wanted = chains_of(planned)
        differences = [f"chain {name} not wanted" for name in chains.keys() - {one.name for one in wanted}]
        for chain in wanted:
            there = rules.get(chain.name, [])
            if chain.name not in chains:
                differences.append(f"chain {chain.name} missing")
            elif chains[chain.name] != replace(chain, rules=()):
                differences.append(f"chain {chain.name} at another hook")
            elif len(there) != len(chain.rules) or not all(map(is_rule, chain.rules, there)):
                differences.append(f"rules differ in {chain.name}")
        return differences

    async def _chains(self, table: TableName) -> dict[str, Chain | None]:
        """Return the chains of a table by name, without rules; None if a type or policy differs from the
        plan.
        """
        listed = await self._dump(dump_chains(table.family), parse_chain)
        return {chain.name: chain if accepts else None for where, chain, accepts in listed if where == table}

    async def _take_found(self, table: TableName, name: str, missing: set[Element]) -> set[Element]:
        """Remove the elements of a set from `missing`, and return the other elements of the set."""
        others = set[Element]()

        def take(body: bytes) -> None:
            elements = parse_elements(body)
            others.update(element for element in elements if element not in missing)
            missing.difference_update(elements)

        await self._dump(dump_elements(table, name), take)
        return others

    async def _elements(self, table: TableName, name: str) -> list[Element]:
        listed = await self._dump(dump_elements(table, name), parse_elements)
        return [element for some in listed for element in some]

    async def _apply(self, operations: Sequence[Operation]) -> list[Refusal]:
        batches: dict[Key, list[Operation]] = {}
        for operation in operations:
            batches.setdefault(_table_of(operation.subject).key, []).append(operation)
        refusals: list[Refusal] = []
        for batch in batches.values():
            try:
                await self._change(batch)
            except TargetError as error:
                refusals += [refused_by(operation, error) for operation in batch]
        return refusals

    async def _change(self, operations: Sequence[Operation]) -> None:
        """Perform the operations of one table."""
        table = next((one for one in operations if isinstance(one.subject, GuardTable)), None)
        match table:
            case Remove(GuardTable() as gone):
                await self._commit([delete_table(name_of(gone))], but=errno.ENOENT)
            case Add(GuardTable() as wanted) | Replace(_, GuardTable() as wanted):
                await self._build(wanted, operations)
            case _:
                await self._exchange(_table_of(operations[0].subject), operations)

    async def _build(self, planned: GuardTable, operations: Sequence[Operation]) -> None:
        """Create a table as planned. The rules are last, so that no packet of a peer is dropped while the
        table is created.
        """
        table, sets = name_of(planned), SETS[planned.family]
        peers = self._peers_after(planned, operations).values()
        if await self._set_differences(planned):
            await self._commit([delete_table(table)], but=errno.ENOENT)
        requests = [create_table(table)]
        requests += (create_set(table, spec, number) for number, spec in enumerate(sets, start=1))
        await self._commit(requests)
        for spec in sets.of_peers:
            strange = set(await self._elements(table, spec.name))
            if strange:
                strange.difference_update(elements_of(peers, spec, planned.source_length))
            added = elements_of(peers, spec, planned.source_length)
            await self._commit_in_parts(
                itertools.chain(delete_elements(table, spec, strange), add_elements(table, spec, added))
            )
        chains = chains_of(planned)
        await self._commit(
            [
                delete_rules(table),
                *(delete_chain(table, name) for name in await self._chains(table)),
                *(create_chain(table, chain) for chain in chains),
                *(request for chain in chains for request in create_rules(table, chain)),
            ]
        )

    async def _exchange(self, unplanned: GuardTable, operations: Sequence[Operation]) -> None:
        """Change the entries of peers in an existing table."""
        table = name_of(unplanned)
        come = [peer for one in operations if (peer := _after(one)) is not None]
        gone = [peer for one in operations if (peer := _before(one)) is not None]
        left = self._peers_after(unplanned, operations).values() if gone else ()
        addresses = {int(peer.address) for peer in gone}
        sharing = [peer for peer in left if int(peer.address) in addresses]  # integers are faster
        for port in {port for peer in gone for port in peer.ports}:
            sharing += itertools.islice((peer for peer in left if port in peer.ports), 1)
        length = self._source_length(unplanned)
        self._added += come
        new: list[Request] = []
        useless: list[Request] = []
        for spec in SETS[unplanned.family].of_peers:
            added, removed, kept = (set(elements_of(some, spec, length)) for some in (come, gone, sharing))
            new += add_elements(table, spec, added)
            useless += delete_elements(table, spec, removed - kept)
        await self._commit_in_parts(new)
        # Another program may have deleted one of these objects. The next scan finds the remaining
        # differences.
        await self._commit_in_parts(useless, but=errno.ENOENT)

    def _source_length(self, table: GuardTable) -> int:
        """Return the prefix length of most sources; if no table is planned yet, 0, which matches all
        sources.
        """
        planned = self._desired.by_key.get(table.key)
        return planned.source_length if isinstance(planned, GuardTable) else 0

    def _peers(self, table: GuardTable) -> dict[Hashable, GuardPeer]:
        """Return a copy of the planned peers of a table, by the name that their key contains."""
        named = self._desired.by_key.tables.get(guard_peers(table.device, table.family), {})
        return cast("dict[Hashable, GuardPeer]", dict(named))  # a table holds items of one kind

    def _peers_after(
        self, table: GuardTable, operations: Sequence[Operation]
    ) -> Mapping[Hashable, GuardPeer]:
        """Return the peers that exist after the operations. The plan may be newer than the latest scan."""
        peers = self._peers(table)
        for operation in operations:
            if not isinstance(operation.subject, GuardPeer):
                continue
            _, name = operation.subject.key
            if (peer := _after(operation)) is None:
                peers.pop(name, None)
            else:
                peers[name] = peer
        return peers

    async def _commit_in_parts(self, requests: Iterable[Request], but: int = 0) -> None:
        """Perform requests in several transactions. Each request is built only when it is sent."""
        part: list[Request] = []
        size = 0
        for request in requests:
            if part and size + len(request.body) > _MOST_BYTES:
                await self._commit(part, but)
                part, size = [], 0
            part.append(request)
            size += len(request.body)
        if part:
            await self._commit(part, but)

    async def _commit(self, requests: Sequence[Request], but: int = 0) -> None:
        """Perform a transaction; the argument `but` is an errno that does not count as a refusal."""
        refused = await self._socket().transact_whole(transaction(requests))
        if refused is not None and refused.errno not in (0, but):
            error = OSError(refused.errno, refused.text or os.strerror(refused.errno))
            raise TargetError.of("nf_tables refused the tunnel guard", error, hint=_HINT)

    async def _dump(self, request: Request, read: Callable[[bytes], _Value]) -> list[_Value]:
        return await self._socket().dump(request, read)

    def _socket(self) -> RequestSocket:
        if self._requests is None:
            self._requests = RequestSocket(PROTOCOL)
        return self._requests

    async def _read_changes(self, announce: Announce) -> None:
        await self._is_planned.wait()  # without a guard, no notifications are needed
        try:
            notifications = NotificationSocket(CHANGES, PROTOCOL)
        except TargetError as error:
            if not error.is_permanent:
                raise
            log.warning("Only audits find damage of the tunnel guard: %s", error)
            await asyncio.Event().wait()
            return
        try:
            while True:
                await notifications.wait(self._concerns_us)
                await asyncio.sleep(_COALESCE_S)
                await notifications.forget()
                announce()
        finally:
            notifications.close()

    def _concerns_us(self, message: Message) -> bool:
        """Return whether another program changed a table with a name of pyflannel."""
        table = table_of(message)
        if table is None or guard_device_of(table.name) is None:
            return False
        return self._requests is None or message.port != self._requests.port


def _guard_of(table: TableName) -> GuardTable | None:
    """Return the guard that is not planned and has this name; None if it is not a table of the guard."""
    family, device = family_of(table), guard_device_of(table.name)
    return None if family is None or device is None else GuardTable(device=device, family=family)


def _table_of(item: Item) -> GuardTable:
    """Return the table of an item, without its content."""
    match item:
        case GuardTable() | GuardPeer():
            return GuardTable(device=item.device, family=item.family)
        case _:
            raise TypeError(f"not an item of the tunnel guard: {item!r}")


async def _elements_of_many(peers: Iterable[GuardPeer], spec: SetSpec, source_length: int) -> set[Element]:
    """Return the elements of one set for the peers; let other tasks run in the meantime."""
    elements: set[Element] = set()
    left = iter(peers)
    while part := list(itertools.islice(left, _AT_ONCE)):
        elements.update(elements_of(part, spec, source_length))
        await asyncio.sleep(0)
    return elements


def _before(operation: Operation) -> GuardPeer | None:
    """Return the peer that an operation removes."""
    match operation:
        case Remove(GuardPeer() as peer) | Replace(GuardPeer() as peer, _):
            return peer
        case _:
            return None


def _after(operation: Operation) -> GuardPeer | None:
    """Return the peer that exists after an operation."""
    match operation:
        case Add(GuardPeer() as peer) | Replace(_, GuardPeer() as peer):
            return peer
        case _:
            return None
