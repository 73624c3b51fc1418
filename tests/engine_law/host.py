"""A host in memory whose targets can be slow, silent, unreadable or refusing, independently."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from msgspec import Struct
from msgspec.structs import replace

from doubles.fake_kernel import FakeKernel
from doubles.simulated_time import SimulatedClock
from pyflannel.errors import TargetError
from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import HostFile
from pyflannel.model.item import ANY, Item, Key
from pyflannel.model.link import Address, Link, Veth
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.model.tunnel_guard import GuardPeer, GuardTable
from pyflannel.plan.diff import differences
from pyflannel.ports import Announce, ChangeChannel

PARTS: tuple[tuple[type[Item], ...], ...] = (
    (Link, Address, Neighbour, FdbEntry, Route),
    (Forwarder, ForwarderPeer),
    (BpfProgram, BpfPeer, BpfContainer),
    (IptablesChain, NftTable, GuardTable, GuardPeer),
    (HostFile,),
)
"""The kinds of each target, divided in the same way as the kinds of the adapters."""

DEADLINE_S = 10.0
"""Seconds after which a read of a silent target fails: the longest deadline of the adapters."""

UNDERLAY_OBJECTS: tuple[Item, ...] = (
    Link(name="eth0", kind="", mtu=1500, alias=""),
    Address(link="eth0", address=IPv4Interface("192.168.50.102/24")),
    Route(destination=IPv4Network("192.168.50.0/24"), link="eth0", protocol=2),
    Address(link="eth0", address=IPv6Interface("fd07:1::66/64")),
    Route(destination=IPv6Network("fd07:1::/64"), link="eth0", protocol=2),
)
FOREIGN: tuple[Item, ...] = (
    Link(name="eth1", kind="", mtu=1500, alias=""),
    Route(destination=IPv4Network("172.20.0.0/16"), link="eth1", protocol=3),
)


class Kernel(FakeKernel):
    """A kernel that records its own refusals.

    Attributes:
        own_refusals: refusals by its own rules, not by request of a test.
    """

    def __init__(self) -> None:
        super().__init__(State.of(*UNDERLAY_OBJECTS, *FOREIGN))
        self.own_refusals: list[tuple[Operation, str]] = []

    def perform(self, operation: Operation) -> str | None:
        """Perform an operation; return the reason if it is refused."""
        cause = self._perform(operation)
        if cause is not None:
            self.own_refusals.append((operation, cause))
        return cause


class Trouble(Struct, frozen=True):
    """The reason why a target refuses operations.

    Attributes:
        key: the key of the only refused object; None if all objects are refused.
        is_permanent: value in the refusal.
        takes_effect: True if the operation is performed although it is refused, because its response was
            lost.
    """

    key: Key | None
    is_permanent: bool
    takes_effect: bool


class Part:
    """One target of the host.

    Attributes:
        may_look: a read waits for it, before it reads and again afterwards.
        may_apply: a batch waits for it.
        is_readable: a read fails while this is False.
        trouble: the reason for its refusals, if it refuses.
        hears_itself: its channel also announces the changes of pyflannel.
        looks: number of reads.
        failures: number of failed reads.
        seen_at: start of the latest successful read.
        announcements: number of announced changes.
        tries: number of requested operations.
        refusals: number of refused operations.
        longest_batch_s: maximum duration of a batch.
        writing: called before each operation.
    """

    def __init__(
        self,
        kinds: Collection[type[Item]],
        kernel: Kernel,
        clock: SimulatedClock,
        changed: Callable[[State, "Part"], None],
    ) -> None:
        self.kinds = kinds
        self.kernel = kernel
        self.may_look = asyncio.Event()
        self.may_look.set()
        self.may_apply = asyncio.Event()
        self.may_apply.set()
        self.is_readable = True
        self.trouble: Trouble | None = None
        self.hears_itself = False
        self.looks = self.failures = self.announcements = self.tries = self.refusals = 0
        self.longest_batch_s = 0.0
        self.writing: Callable[[], object] = lambda: None
        self.seen_at = -math.inf
        self._clock = clock
        self._tell = changed
        self._changed = asyncio.Event()
        self._is_broken = False
        self._begun: set[Key] = set()

    @property
    def state(self) -> State:
        """The state of the target."""
        return self.kernel.state.of_kinds(self.kinds)

    async def snapshot(self, desired: State) -> State:
        """Return the state of the target, or an earlier state."""
        self.looks += 1
        began = self._clock.now()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self.may_look.wait()
                state, is_readable = self.state, self.is_readable
                await asyncio.sleep(0)
                await self.may_look.wait()
        except TimeoutError:
            is_readable = False
        if not is_readable:
            self.failures += 1
            raise TargetError("the test asked for this", hint="Try again.")
        self.seen_at = began
        return state

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations one by one. Each operation waits until `may_apply` is set."""
        began = self._clock.now()
        refusals: list[Refusal] = []
        try:
            for operation in operations:
                await self.may_apply.wait()
                refusals += self._perform(operation)
            await asyncio.sleep(0)
            await self.may_apply.wait()
        finally:
            self.longest_batch_s = max(self.longest_batch_s, self._clock.now() - began)
        return refusals

    def _perform(self, operation: Operation) -> list[Refusal]:
        self.tries += 1
        self.writing()
        before, trouble, cause = self.kernel.state, self.trouble, None
        if trouble is not None and trouble.key in (None, operation.subject.key):
            cause = "the test asked for this"
            if trouble.takes_effect:
                self.kernel.perform(self._completing(operation))
                self._begun.add(operation.subject.key)
        else:
            trouble, cause = None, self.kernel.perform(self._completing(operation))
            self._begun.discard(operation.subject.key)
        self._tell(before, self)
        if cause is None:
            return []
        self.refusals += 1
        is_permanent = trouble is not None and trouble.is_permanent
        return [Refusal(operation=operation, cause=cause, is_permanent=is_permanent)]

    def _completing(self, operation: Operation) -> Operation:
        """Return the operation. If an earlier attempt may have added its object, the operation completes it.

        The kernel treats a request for an existing address as done, and drops nothing.
        """
        item = operation.subject
        if isinstance(item, Address):
            return operation
        found = self.kernel.state.by_key.get(item.key)
        if found is None or item.key not in self._begun or not isinstance(operation, Add):
            return operation
        return Replace(found, item)

    def changes(self) -> ChangeChannel:
        """Open a channel of changes."""
        return ChangeChannel(self._read_changes)

    async def _read_changes(self, announce: Announce) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._is_broken:
                self._is_broken = False
                raise TargetError("the test asked for this", hint="Try again.")
            self.announcements += 1
            announce()

    def announce(self) -> None:
        """Announce that something may have changed."""
        self._changed.set()

    def break_channel(self) -> None:
        """Let the channel of changes fail."""
        self._is_broken = True
        self._changed.set()


class FakeHost:
    """The targets of one host, and the damage to it."""

    def __init__(self, clock: SimulatedClock) -> None:
        self.kernel = Kernel()
        self.parts = [Part(kinds, self.kernel, clock, self._announce) for kinds in PARTS]
        self._damage: Counter[Key] = Counter()

    def befall(self, *operations: Operation, is_announced: bool) -> None:
        """Change an object as another program would."""
        before = self.kernel.state
        for operation in operations:
            self.kernel._perform(operation)
        self._note_damage(before, is_announced=is_announced)

    def rename(self, old: str, new: str, *, is_announced: bool) -> None:
        """Rename a link as another program would."""
        before = self.kernel.state
        self.kernel.state = State.collect(_renamed(item, old, new) for item in before)
        self._note_damage(before, is_announced=is_announced)

    def _note_damage(self, before: State, *, is_announced: bool) -> None:
        for old, new in differences(before, self.kernel.state):
            item = new if old is None else old
            assert item is not None
            self._damage[item.key] += 1
        if is_announced:
            self._announce(before, None)

    def damage_to(self, item: Item) -> int:
        """Return the number of damages to an object, and to objects that it requires."""
        causes = (item.key, *item.requires)
        return sum(count for key, count in self._damage.items() if any(is_at(key, cause) for cause in causes))

    def _announce(self, before: State, actor: Part | None) -> None:
        """Let every target announce its changes since `before`. The target that made the changes may omit the
        announcement.
        """
        kinds = {type(new if old is None else old) for old, new in differences(before, self.kernel.state)}
        for part in self.parts:
            if not kinds.isdisjoint(part.kinds) and (part is not actor or part.hears_itself):
                part.announce()


def _renamed(item: Item, old: str, new: str) -> Item:
    match item:
        case Link(name=name) if name == old:
            return replace(item, name=new)
        case Link(veth=Veth(peer=peer) as veth) if peer == old:
            return replace(item, veth=replace(veth, peer=new))
        case Forwarder(link=name) if name == old:
            return replace(item, is_attached=False)
        case Address(link=name) | Neighbour(link=name) | FdbEntry(link=name) | Route(link=name) if (
            name == old
        ):
            return replace(item, link=new)
        case BpfProgram(link=name) if name == old:
            return replace(item, link=new)
        case _:
            return item


def is_at(key: Key, required: Key) -> bool:
    """Return whether `required` represents the object at a key."""
    table, name = required
    return key[0] == table and name in (ANY, key[1])


def underlay_removed() -> list[Operation]:
    """Return the removal of the underlay's link; the kernel drops the rest."""
    return [Remove(UNDERLAY_OBJECTS[0])]


def underlay_created() -> list[Operation]:
    """Return the creation of the underlay with all its objects."""
    return [Add(item) for item in UNDERLAY_OBJECTS]
