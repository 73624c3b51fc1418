"""Tasks that follow changes of the host: of its underlay interface and of its bridges."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from pyflannel.engine.list_watch import listen
from pyflannel.engine.pacing import pause
from pyflannel.errors import NoUnderlayError, TargetError
from pyflannel.model.host import Bridge, Interface, Interfaces, RouteScope, Surroundings, Underlay
from pyflannel.model.network_config import BOTH_FAMILIES, IPV4_ONLY, IpAddress, IpNetwork
from pyflannel.model.route import PROTOCOL_FLANNEL
from pyflannel.plan.underlay import UnderlayOptions, choose, narrate, surroundings_of
from pyflannel.ports import BridgeSource, Clock, InterfaceSource

log = logging.getLogger(__name__)


LOOK_S = 60.0
"""Interval in seconds between two checks without a notification of a change. The kernel announces all changes
except those of the DNS servers. With 10,000 peers, a check takes 40 ms, because it reads all routes."""

_ANNOUNCEMENTS, _ANNOUNCED_EVERY_S = 3, 1.0
"""Announcements of one address, and the seconds between them: a new link may drop the first announcements."""


class UnderlayFollower:
    """Calls `found` with the first underlay and each later underlay that differs, and `waiting` if there is
    no underlay yet.

    `surrounded` gets the other interfaces and routes of the host in the same way. If both changed,
    `surrounded` is called before `found`.

    Before the network config is known, the interface is chosen by IPv4. In a network with IPv6 alone, the
    interface is chosen by IPv6, and `found` gets the underlay after `ask_about` has named the network.

    If the underlay disappears, it remains valid until another underlay is found, because packets may still
    get through.

    The first address, and each address that moves to another interface or MAC address, is announced to the
    hosts on the link. Without the announcement, these hosts send to the previous MAC address until their
    neighbour entry expires.
    """

    def __init__(
        self,
        *,
        source: InterfaceSource,
        wanted: UnderlayOptions,
        clock: Clock,
        found: Callable[[Underlay], None],
        surrounded: Callable[[Surroundings], None],
        waiting: Callable[[], None],
        protocol: int = PROTOCOL_FLANNEL,
        look_s: float = LOOK_S,
    ) -> None:
        self._source = source
        self._wanted = wanted
        self._clock = clock
        self._found = found
        self._surrounded = surrounded
        self._waiting = waiting
        self._look_s = look_s
        self._scope = RouteScope(protocol=protocol)
        self._surroundings: Surroundings | None = None
        self._current: Underlay | None = None
        self._ipv6_trouble = ""
        self._announced: tuple[object, ...] = ()
        self._to_announce: list[tuple[Interface, IpAddress]] = []
        self._has_moved = asyncio.Event()
        self._changed = asyncio.Event()
        self.has_looked = asyncio.Event()
        self.waiting_for: str | None = "an interface"

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                listen(self._source.changes, self._clock, self._changed.set), name="interface changes"
            )
            tasks.create_task(self._announce(), name="announcements")
            while True:
                self._changed.clear()
                await self._look()
                self.has_looked.set()
                await pause(self._clock, self._look_s, until=self._changed)

    def ask_about(self, networks: Iterable[IpNetwork]) -> None:
        """Include the routes to these networks in the surroundings of the host, and check these routes
        soon.
        """
        self._scope = replace(self._scope, networks=frozenset(networks))
        self._changed.set()

    async def _look(self) -> None:
        target, scope = self._wanted.can_reach, self._scope
        # Before the network config is known, the interface is chosen by IPv4.
        families = tuple(sorted({network.version for network in scope.networks})) or IPV4_ONLY
        try:
            interfaces = await self._source.observe(scope)
            surroundings = surroundings_of(interfaces, scope)
            reached = None if target is None else await self._source.route_to(target)
            try:
                found = choose(self._wanted, interfaces, reached, families=families)
            except NoUnderlayError:
                self._take_surroundings(surroundings)
                raise
        except (NoUnderlayError, TargetError) as error:
            self._wait(error)
            return
        underlay = self._with_known_ipv6(found)
        self._note_place(found, interfaces)
        self.waiting_for = None
        has_new_address = self._current is None or _in_ipv4(self._current) != _in_ipv4(underlay)
        if has_new_address:
            self._take_surroundings(surroundings)
        if underlay != self._current:
            if (
                self._current is not None
                and self._current.address.version == underlay.address.version
                and has_new_address
            ):
                log.warning("Underlay changed from %s to %s", _words(self._current), _words(underlay))
            for line in narrate(self._wanted, interfaces, reached, families=families):
                log.info("%s", line)
            self._current = underlay
            self._found(underlay)
        # Call `found` before `surrounded`, in case a known underlay has got an IPv6 part: after the call of
        # `surrounded`, the host may use the network config.
        self._take_surroundings(surroundings)

    def _note_place(self, found: Underlay, interfaces: Interfaces) -> None:
        """Note the interface of each address, and announce the addresses if one has another interface."""
        addresses = {address: family for family in BOTH_FAMILIES if (address := found.address_in(family))}
        places = [
            (interface, address)
            for address, family in addresses.items()
            if (interface := interfaces.named(found.in_family(family).link)) is not None
        ]
        noted = tuple((one.index, one.mac, one.is_up, address) for one, address in places)
        if noted != self._announced:
            self._announced = noted
            self._to_announce = places
            self._has_moved.set()

    async def _announce(self) -> None:
        while True:
            await self._has_moved.wait()
            self._has_moved.clear()
            for _ in range(_ANNOUNCEMENTS):
                if self._has_moved.is_set():
                    break
                try:
                    for interface, address in self._to_announce:
                        await self._source.announce(interface, [address])
                except TargetError as error:
                    log.info("Could not announce the address of the underlay: %s", error)
                    break
                await self._clock.sleep(_ANNOUNCED_EVERY_S)

    def _with_known_ipv6(self, found: Underlay) -> Underlay:
        """Return the underlay with its last IPv6 address if the interface has lost it, because packets may
        still get through.
        """
        current = self._current
        has_lost_it = found.ipv6_trouble and current is not None and current.ipv6_address is not None
        if not has_lost_it or current is None or current.in_family(6).link != found.link:
            self._ipv6_trouble = ""
            return found
        if found.ipv6_trouble != self._ipv6_trouble:
            log.warning("Waiting for %s; until then, using %s", found.ipv6_trouble, current.ipv6_address)
            self._ipv6_trouble = found.ipv6_trouble
        return replace(
            found, ipv6_address=current.ipv6_address, public_ipv6=current.public_ipv6, ipv6_trouble=""
        )

    def _take_surroundings(self, surroundings: Surroundings) -> None:
        if surroundings != self._surroundings:
            self._surroundings = surroundings
            self._surrounded(surroundings)

    def _wait(self, error: NoUnderlayError | TargetError) -> None:
        if self.waiting_for != str(error):
            log.warning("Waiting for %s", error.in_full)
            self.waiting_for = str(error)
            self._waiting()


def _in_ipv4(underlay: Underlay) -> Underlay:
    """Return the underlay without its IPv6 part, which is added after the network config is known."""
    on_link = tuple(one for one in underlay.on_link if one.version == 4)
    return replace(
        underlay, on_link=on_link, ipv6_address=None, public_ipv6=None, ipv6_uplink=None, ipv6_trouble=""
    )


def _words(underlay: Underlay) -> str:
    address = f"{underlay.link} {underlay.address} mtu {underlay.mtu} public {underlay.public_ip}"
    return f"{address} on link {','.join(map(str, underlay.on_link)) or 'nothing'}"


BRIDGE_LOOK_S = 10.0
"""Interval in seconds between two checks without a notification of a change."""


class BridgeFollower:
    """Calls `found` with the bridges, and again after each change, while the bridges are needed.

    While the bridges are not needed, the follower does not subscribe to changes. In a vxlan network, the
    kernel would announce the neighbour and the FDB entry of each peer.

    If the bridges are unreadable, they count as missing. Without an entry, the kernel's bridge carries the
    packets of a container.
    """

    def __init__(
        self, *, source: BridgeSource, clock: Clock, found: Callable[[tuple[Bridge, ...]], None]
    ) -> None:
        self._source = source
        self._clock = clock
        self._found = found
        self._current: tuple[Bridge, ...] = ()
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()

    def want(self, is_wanted: bool) -> None:
        """Start or stop following the bridges."""
        if is_wanted:
            self._wanted.set()
        else:
            self._wanted.clear()
            self._changed.set()  # ends the pause

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await self._wanted.wait()
            async with asyncio.TaskGroup() as tasks:
                changes = tasks.create_task(
                    listen(self._source.changes, self._clock, self._changed.set), name="bridge changes"
                )
                while self._wanted.is_set():
                    self._changed.clear()
                    await self._look()
                    await pause(self._clock, BRIDGE_LOOK_S, until=self._changed)
                changes.cancel()

    async def _look(self) -> None:
        try:
            bridges = await self._source.observe()
        except TargetError as error:
            log.warning(
                "Could not read the bridges of containers, so their packets take the normal path: %s", error
            )
            bridges = ()
        if bridges != self._current:
            self._current = bridges
            self._found(bridges)
