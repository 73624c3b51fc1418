"""WireGuard devices as a target of plans. `wg` configures the kernel's devices and those of wireguard-go.

`wg addconf` and `wg set` change only the objects of an operation. `wg syncconf` would set the endpoint of
every peer again, even if flanneld learned another endpoint from a handshake.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Protocol

from msgspec.structs import replace

from pyflannel.errors import TargetError, WireError
from pyflannel.kernel.filters.programs import Ran, run_program
from pyflannel.model.item import Key
from pyflannel.model.network_config import BOTH_FAMILIES, Family, IpAddress, IpNetwork
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.model.store_record import Secret
from pyflannel.model.wireguard import WireguardContact, WireguardDevice, WireguardPeer, sorted_networks
from pyflannel.ports import Announce, ChangeChannel, performed, refused_by
from pyflannel.wire.wireguard import DumpedDevice, DumpedPeer, format_device, format_peers, parse_dump

log = logging.getLogger(__name__)

_PROGRAM = "wg"
_LOOK_S = 0.5
"""Minimum interval in seconds between two checks for changes, because WireGuard does not announce changes."""

_PER_PEER_S = 0.0015
"""Additional seconds between two checks, for each peer. A check takes a hundredth of this time."""

_LIVE_S = 180
"""Lifetime of a session in seconds after its handshake (REJECT_AFTER_TIME of the WireGuard paper, section
6.1)."""

_AT_ONCE = 500
"""Maximum number of peers in one command line of `wg`."""

_ABSENT = ("No such device", "Protocol not supported")
"""Messages of `wg` for a missing device. The second message is for a kernel without WireGuard."""

_GREETING_S = 25
"""Interval in seconds of keepalive packets to a new peer until the handshake has begun. Any value starts the
handshake."""


class Userspace(Protocol):
    """The processes of wireguard-go in this network namespace."""

    def links(self) -> Collection[str]:
        """Return the links that a process of wireguard-go serves.

        Raises:
            TargetError: the processes cannot be found.
        """

    def pid(self, link: str) -> int | None:
        """Return the process ID of the process that serves a link; None if the link has no process.

        Raises:
            TargetError: the process cannot be found.
        """

    async def start(self, link: str) -> None:
        """Start the process of a link, after stopping a process that already runs.

        Raises:
            TargetError: the process did not start.
        """

    async def stop(self, link: str) -> None:
        """Stop the process of a link if the link has a process.

        Raises:
            TargetError: another program serves the link.
        """


class WireguardTarget:
    """The WireGuard devices of the network namespace.

    An existing device or process is used, even if another program created it. A device or process is removed
    only by an operation.
    """

    kinds = (WireguardDevice, WireguardPeer)

    def __init__(self, private: Callable[[str], Secret | None], userspace: Userspace) -> None:
        self._private = private
        self._userspace = userspace
        self._desired = State.EMPTY
        self._known: State | None = (
            None  # the state that was last read or announced, if it differs from the plan
        )
        self._sources: dict[str, tuple[IpAddress, ...]] = {}  # the addresses from which devices send
        self._endpoints: dict[Key, str] = {}  # the endpoints that the plan contained when they were set

    async def snapshot(self, desired: State) -> State:
        """Return the planned devices, the devices of flanneld's wireguard-go processes, and their peers.

        Raises:
            TargetError: `wg` failed.
        """
        self._desired = desired
        self._known = await self._read(desired)
        return self._known

    async def _read(self, desired: State) -> State:
        links = {device.link for device in desired.of_type(WireguardDevice)}
        state = State.EMPTY
        for link in sorted({*links, *self._userspace.links()}):
            device = await self._dump(link)
            if device is not None:
                state |= self._state(device, desired)
        return state

    def _state(self, device: DumpedDevice, desired: State) -> State:
        now = time.time()
        return State.of(
            WireguardDevice(
                link=device.link,
                public_key=device.public_key,
                port=device.port,
                is_in_kernel=self._userspace.pid(device.link) is None,
                sources=self._sources_of(device.link, desired),
            ),
            *(part for one in device.peers for part in self._parts(one, desired, now)),
        )

    def _sources_of(self, link: str, desired: State) -> tuple[IpAddress, ...]:
        """Return the source addresses that this process set on a device; before the first change, the planned
        addresses. The kernel does not show source addresses.
        """
        planned = next((one for one in desired.of_type(WireguardDevice) if one.link == link), None)
        return self._sources.setdefault(link, () if planned is None else planned.sources)

    def _parts(self, one: DumpedPeer, desired: State, now: float) -> Iterator[WireguardPeer]:
        """Yield the parts of a peer. A part is reported as equal to the plan if its endpoint differs only
        because of a handshake.
        """
        present: dict[Family, list[IpNetwork]] = {}
        for network in one.peer.allowed:
            present.setdefault(network.version, []).append(network)
        found = (desired.by_key.get(replace(one.peer, family=family).key) for family in BOTH_FAMILIES)
        planned = {part.family: part for part in found if isinstance(part, WireguardPeer)}
        shares_device = any(part.shares_device for part in planned.values())
        keeps_family = any(part.keeps_family for part in planned.values())
        for family in present or [*planned][:1] or [4]:
            part = replace(
                one.peer,
                allowed=tuple(present.get(family, ())),
                family=family,
                shares_device=shares_device,
                keeps_family=keeps_family,
            )
            wanted = planned.get(family)
            if wanted is not None and now - one.handshake_at <= _LIVE_S and self._is_set(part, wanted):
                part = replace(part, endpoint=wanted.endpoint)
            yield wanted if wanted == part else part

    def _is_set(self, part: WireguardPeer, wanted: WireguardPeer) -> bool:
        """Return whether the planned endpoint was set, so that a different endpoint must be from a later
        handshake.

        At the start of flanneld, the answer is unknown, and an endpoint of the planned family is assumed to
        be set.

        If two hosts change the family one after the other, each may learn the previous endpoint from the
        other again. Neither host would leave the previous family.
        """
        is_of_family = part.endpoint.startswith("[") == wanted.endpoint.startswith("[")
        known = self._endpoints.setdefault(wanted.key, wanted.endpoint if is_of_family else part.endpoint)
        return known == wanted.endpoint and (is_of_family or not wanted.keeps_family)

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Configure the devices, then add and change peers, then remove peers.

        With this order, a subnet that moves from one key to another always belongs to a key.
        """
        refusals = await performed(operations, self._apply(operations))
        if not refusals:
            self._known = None
        return refusals

    async def _apply(self, operations: Sequence[Operation]) -> list[Refusal]:
        refusals: list[Refusal] = []
        removed: set[str] = set()
        changes: dict[str, list[Operation]] = {}
        removals: dict[str, list[WireguardPeer]] = {}
        for operation in operations:
            match operation:
                case Remove(WireguardPeer() as part):
                    removals.setdefault(part.link, []).append(part)
                case Add(WireguardPeer(link=link)) | Replace(_, WireguardPeer(link=link)):
                    changes.setdefault(link, []).append(operation)
                case Remove(WireguardDevice(link=link)):
                    removed.add(link)
                    refusals += await self._settle([operation], self._userspace.stop(link))
                case Add(WireguardDevice() as new):
                    refusals += await self._settle([operation], self._configure(None, new))
                case Replace(WireguardDevice() as old, WireguardDevice() as new):
                    refusals += await self._settle([operation], self._configure(old, new))
                case _:
                    raise TypeError(f"not an operation on WireGuard: {operation!r}")
        for link, some in changes.items():
            refusals += await self._settle(some, self._change(link, some))
        for link, gone in removals.items():
            if link not in removed:
                refusals += await self._settle([*map(Remove, gone)], self._remove(link, gone))
        return refusals

    async def _remove(self, link: str, parts: Sequence[WireguardPeer]) -> None:
        """Remove parts of peers. A peer that has another part is not removed."""
        left = await self._other_networks(link, parts)
        changes = {
            key: ("allowed-ips", ",".join(map(str, networks))) if (networks := left.get(key)) else ("remove",)
            for key in (part.public_key for part in parts)
        }
        await self._set(link, [(key, *words) for key, words in changes.items()])
        for part in parts:
            self._endpoints.pop(part.key, None)

    async def _other_networks(self, link: str, parts: Sequence[WireguardPeer]) -> dict[str, list[IpNetwork]]:
        """Return the allowed IPs of the existing peers that do not belong to one of these parts, by key.

        If no part shares its device with the other address family, the device is not read.
        """
        device = await self._dump(link) if any(part.shares_device for part in parts) else None
        families = {(part.public_key, part.family) for part in parts}
        return {
            one.peer.public_key: [
                network
                for network in one.peer.allowed
                if (one.peer.public_key, network.version) not in families
            ]
            for one in (() if device is None else device.peers)
        }

    async def _settle(self, operations: Sequence[Operation], work: Awaitable[None]) -> list[Refusal]:
        try:
            await work
        except TargetError as error:
            return [refused_by(operation, error) for operation in operations]
        return []

    async def _configure(self, old: WireguardDevice | None, new: WireguardDevice) -> None:
        private = self._private(new.public_key)
        if private is None:
            raise TargetError(
                f"the private key of {new.public_key} is not in the key file",
                hint="flanneld reads the key file again and retries.",
            )
        if new.is_in_kernel:
            await self._userspace.stop(new.link)
        elif old is None or old.is_in_kernel:
            await self._userspace.start(new.link)
        await self._run("addconf", new.link, "/dev/stdin", given=format_device(private, new.port))
        if old is not None and old.sources != new.sources:
            await self._send_from_new_source(new.link)
        self._sources[new.link] = new.sources

    async def _send_from_new_source(self, link: str) -> None:
        """Set the endpoint of each peer again, and send it a packet, from which the peer learns the new
        address.

        wireguard-go keeps the source address of its packets to an endpoint. If the host loses this address,
        the peer receives no packets until it sends a packet itself.
        """
        device = await self._dump(link)
        peers = [one.peer for one in (() if device is None else device.peers) if one.peer.endpoint]
        greeting = ("persistent-keepalive", str(_GREETING_S))
        await self._set(link, [(peer.public_key, "endpoint", peer.endpoint, *greeting) for peer in peers])
        await self._set(
            link, [(peer.public_key, "persistent-keepalive", str(peer.keepalive_s)) for peer in peers]
        )

    async def _change(self, link: str, operations: Sequence[Operation]) -> None:
        """Add and change peers, and begin a handshake with each peer that is added.

        A peer that is added may have a session with a previous process of this host. Without the handshake,
        its packets would be lost for 15 s, until the peer begins a handshake itself. A new keepalive setting
        sends a packet immediately.
        """
        sections: dict[str, tuple[WireguardPeer, bool]] = {}
        added: dict[str, WireguardPeer] = {}
        new_items = [one.new if isinstance(one, Replace) else one.item for one in operations]
        others = await self._other_networks(
            link, [item for item in new_items if isinstance(item, WireguardPeer)]
        )
        for operation in operations:
            match operation:
                case Add(WireguardPeer() as new):
                    is_new_endpoint = is_new = new.public_key not in others
                case Replace(WireguardPeer() as old, WireguardPeer() as new):
                    is_new_endpoint, is_new = old.endpoint != new.endpoint, False
                    if old.preshared_key and not new.preshared_key:
                        await self._set(link, [(new.public_key, "preshared-key", "/dev/null")])
                case _:
                    continue
            key = new.public_key
            if key in sections:
                before, had_new_endpoint = sections[key]
                allowed, is_new_endpoint = before.allowed, is_new_endpoint or had_new_endpoint
            else:
                allowed = tuple(others.get(key, ()))
            if is_new:
                added[key] = new
            section = replace(
                new,
                allowed=sorted_networks([*allowed, *new.allowed]),
                keepalive_s=_GREETING_S if key in added else new.keepalive_s,
            )
            sections[key] = section, is_new_endpoint
        await self._run("addconf", link, "/dev/stdin", given=format_peers(sections.values()))
        self._endpoints |= {item.key: item.endpoint for item in new_items if isinstance(item, WireguardPeer)}
        await self._set(
            link,
            [
                (key, "persistent-keepalive", str(peer.keepalive_s))
                for key, peer in added.items()
                if peer.keepalive_s != _GREETING_S
            ],
        )

    async def _set(self, link: str, changes: Sequence[tuple[str, ...]]) -> None:
        """Change individual settings of peers. A missing peer or link counts as removed."""
        for start in range(0, len(changes), _AT_ONCE):
            some = changes[start : start + _AT_ONCE]
            ran = await run_program(
                _PROGRAM, "set", link, *(word for change in some for word in ("peer", *change))
            )
            if not _is_absent(ran):
                _check(ran, f"wg set {link}")

    async def contacts(self) -> list[WireguardContact]:
        """Return the latest handshake and traffic of each peer; empty if the device does not exist.

        Raises:
            TargetError: `wg` failed.
        """
        now = time.time()
        found: list[WireguardContact] = []
        for planned in [*self._desired.of_type(WireguardDevice)]:  # the plan may change during the wait
            device = await self._dump(planned.link)
            found += [_contact(one, now) for one in (() if device is None else device.peers)]
        return found

    async def _dump(self, link: str) -> DumpedDevice | None:
        """Return the current state of a device; None if there is no device with this name.

        Raises:
            TargetError: `wg` failed.
        """
        ran = await run_program(_PROGRAM, "show", link, "dump")
        if _is_absent(ran):
            return None
        _check(ran, f"wg show {link}")
        try:
            return parse_dump(link, ran.output)
        except WireError as error:
            raise TargetError(str(error), hint=error.hint) from error

    async def _run(self, *words: str, given: str = "") -> None:
        _check(await run_program(_PROGRAM, *words, given=given), f"wg {words[0]} {words[1]}")

    def changes(self) -> ChangeChannel:
        """Open a channel that announces differences of a planned device from the plan. The reader of the
        channel polls `wg`.
        """
        return ChangeChannel(self._read_changes)

    async def _read_changes(self, announce: Announce) -> None:
        pause_s = _LOOK_S
        while True:
            await asyncio.sleep(pause_s)
            desired = self._desired
            if next(desired.of_type(WireguardDevice), None) is None:
                continue
            try:
                state = await self._read(desired)
            except TargetError as error:
                log.debug("Could not check WireGuard for changes: %s", error)
                continue
            pause_s = max(_LOOK_S, _PER_PEER_S * len(state))
            if state == desired.of_kinds(self.kinds):
                self._known = None
            elif state != self._known:
                self._known = state
                announce()


def _contact(one: DumpedPeer, now: float) -> WireguardContact:
    return WireguardContact(
        public_key=one.peer.public_key,
        endpoint=one.peer.endpoint,
        handshake_age_s=max(0.0, now - one.handshake_at) if one.handshake_at else None,
        received=one.received,
        sent=one.sent,
    )


def _is_absent(ran: Ran) -> bool:
    return ran.status != 0 and ran.cause.endswith(_ABSENT)


def _check(ran: Ran, what: str) -> None:
    if ran.status:
        raise TargetError(
            f"{what} failed: {ran.cause}", hint=_HINTS.get(_reason(ran.cause), _HINT), is_permanent=False
        )


def _reason(cause: str) -> str:
    return cause.rpartition(": ")[2]


_HINT = "Read the kernel's log (dmesg)."
_HINTS = {
    "Address already in use": "Stop the program that uses the UDP port (`ss -lunp` names it), or set another"
    " Backend.ListenPort.",
    "Operation not permitted": "Give flanneld CAP_NET_ADMIN.",
}
