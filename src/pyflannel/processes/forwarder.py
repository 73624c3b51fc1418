"""The forwarder as a target of plans. The forwarder is a process that is started, updated and found again."""

import asyncio
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from errno import EACCES, EBUSY, ENODEV, ENOENT, EPERM
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Self

from msgspec import Struct
from msgspec.structs import replace

from pyflannel import VERSION
from pyflannel.errors import TargetError, WireError, is_permanent, remedy, target_errors
from pyflannel.model.forwarder import Forwarder, ForwarderPeer, Stranger, StrangerReason
from pyflannel.model.item import Item
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.ports import Announce, ChangeChannel, in_thread, performed, refused_by
from pyflannel.processes.forwarder_client import (
    AbsentError,
    ForeignError,
    SilentError,
    connected,
)
from pyflannel.processes.forwarder_descriptors import attach_device
from pyflannel.processes.forwarder_launch import (
    NoHandOverError,
    PortFreedError,
    PortInUseError,
    Reaper,
    start_forwarder,
)
from pyflannel.processes.found import (
    end_process,
    find_forwarders,
    find_tun_holder,
    is_forwarder,
    is_forwarder_of,
)
from pyflannel.wire.forwarder_control import (
    LOG_NAME,
    SOCKET_NAME,
    ForwarderState,
    Kind,
    Peer,
    decode_counters,
    decode_state,
    decode_strangers,
    decode_summary,
    encode_change,
    encode_peers,
)

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0
"""Interval in seconds between checks for a forwarder that another program started."""

_REASONS: Mapping[str, StrangerReason] = {
    "stranger": "stranger",
    "impostor": "impostor",
    "not_ours": "not_ours",
}

_NO_RIGHT = "Give the daemon CAP_NET_ADMIN and /dev/net/tun. If the kernel lacks tun, run `modprobe tun`."
_ATTACH_HINTS = {
    EACCES: _NO_RIGHT,
    ENOENT: _NO_RIGHT,
    EPERM: _NO_RIGHT,
    EBUSY: "Stop that program. A device can have only one forwarder.",
    ENODEV: "The next pass creates the device again.",
}


class _Known(Struct, frozen=True, kw_only=True):
    """The last state that was read, and its process.

    Attributes:
        generation: generation of the table; None if it was not read.
        attached: the state of the forwarder and its peers, if the device is attached.
        detached: the state if the device is not attached.
    """

    pid: int | None = None
    generation: int | None = None
    attached: State = State.EMPTY
    detached: State = State.EMPTY


class ForwarderTarget:
    """The forwarder of one run directory. At most one forwarder runs in a run directory.

    A running forwarder is used, even if another program started it. Only an operation stops the forwarder;
    the forwarder continues when the daemon exits.
    """

    kinds = (Forwarder, ForwarderPeer)

    def __init__(self, run_dir: Path, python: str = sys.executable, version: str | None = None) -> None:
        self._run_dir = run_dir
        self._python = python
        self._version = version or VERSION
        self._known = _Known()
        self._terse: int | None = None
        self._socket = run_dir / SOCKET_NAME
        self._started = asyncio.Event()
        self._is_planned = False
        self._useless: int | None = None
        self._reaper = Reaper()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reaper.close()

    async def snapshot(self, desired: State) -> State:
        """Return the running forwarder and its peers, or an empty state.

        A forwarder that twice in succession does not respond, or uses another protocol, is killed, because it
        cannot receive changes of peers.

        Raises:
            TargetError: a forwarder runs, but does not respond.
        """
        self._note_plan(desired)
        try:
            with _boundary():
                found = await self._read()
        except AbsentError:
            return State.EMPTY
        except (SilentError, ForeignError) as error:
            if error.pid != self._useless or not await _killed(error.pid):
                self._useless = error.pid
                raise
            log.error("Killed the forwarder cause=%s", error)
            return State.EMPTY
        self._useless = None
        return found

    async def _read(self) -> State:
        """Return the state of the forwarder. The table of peers is read only if it changed since the last
        read.
        """
        async with connected(self._socket) as client:
            pid, summary = client.pid, None
            try:
                if pid == self._known.pid != self._terse:
                    # The value is reset after the answer, because a forwarder that does not know this request
                    # closes the connection.
                    self._terse = pid
                    summary = decode_summary(await client.ask(Kind.READ_SUMMARY))
                    self._terse = None
                    if summary.generation == self._known.generation:
                        return self._known.attached if summary.is_attached else self._known.detached
                state = decode_state(await client.ask(Kind.READ_STATE))
            except WireError as error:
                raise ForeignError(pid, error) from error
        peers = [_to_peer(state.settings.link, peer) for peer in state.peers]
        one = _to_forwarder(state, is_current=state.version == self._version)
        attached, detached = (
            State.collect((replace(one, is_attached=value), *peers)) for value in (True, False)
        )
        if one.is_current:  # a forwarder of another version may not know summaries
            # The generation was read before the table, so the next summary shows a change that occurred in
            # between.
            self._known = _Known(
                pid=pid,
                generation=None if summary is None else summary.generation,
                attached=attached,
                detached=detached,
            )
        return attached if one.is_attached else detached

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Stop and start the process, then change its peers in one request, then attach the device.

        This order does not depend on the order of the operations: a forwarder must exit before the new
        forwarder starts, and no packet may arrive while the table is empty.
        """
        return await performed(operations, self._apply(operations))

    async def _apply(self, operations: Sequence[Operation]) -> list[Refusal]:
        refusals: list[Refusal] = []
        waiting: list[tuple[Operation, Forwarder]] = []
        for operation in sorted(operations, key=lambda operation: not isinstance(operation, Remove)):
            try:
                with _boundary():
                    if (forwarder := await self._apply_process(operation)) is not None:
                        waiting.append((operation, forwarder))
            except TargetError as error:
                refusals.append(refused_by(operation, error))
        refusals += await self._apply_peers(operations)
        for operation, forwarder in waiting:
            try:
                with _boundary():
                    await self._attach(forwarder.link)
            except TargetError as error:
                refusals.append(refused_by(operation, error))
        return refusals

    def changes(self) -> ChangeChannel:
        """Open a channel that announces when a forwarder appears, exits, loses its device or is changed.

        The channel detects a new forwarder only if the plan contains a forwarder.
        """
        return ChangeChannel(self._read_changes)

    async def _read_changes(self, announce: Announce) -> None:
        is_absent = False
        while True:
            self._started.clear()
            try:
                async with connected(self._socket) as client:
                    is_absent = False
                    announce()  # the state may have changed before the connection was opened
                    while await client.wait_for_change():
                        announce()
                announce()
            except AbsentError:
                if not is_absent:
                    announce()  # the process may have exited before the first attempt
                is_absent = True
            except TargetError as error:
                log.debug("Could not watch the forwarder: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S if self._is_planned else None):
                    await self._started.wait()

    def _note_plan(self, desired: State) -> None:
        """Wake the task that watches as soon as a forwarder is planned."""
        is_planned = next(desired.of_type(Forwarder), None) is not None
        if is_planned and not self._is_planned:
            self._started.set()
        self._is_planned = is_planned

    async def end_unreachable(self) -> Sequence[int]:
        """Stop the unreachable forwarders of the run directory, and return their process IDs."""
        answering: int | None = None
        with suppress(TargetError):
            async with connected(self._socket) as client:
                await client.ask(Kind.READ_STATE)
                answering = client.pid
        found = await in_thread(find_forwarders, self._run_dir)
        is_ours = partial(is_forwarder_of, self._run_dir)
        ended = [pid for pid in found if pid != answering and await end_process(pid, is_ours)]
        for pid in ended:
            log.error("Killed the unreachable forwarder pid=%d", pid)
        return ended

    async def counters(self) -> Mapping[str, int]:
        """Return the counters of the forwarder by name; empty if it does not run.

        Raises:
            TargetError: a forwarder runs, but does not respond.
        """
        try:
            return decode_counters(await self._ask(Kind.READ_COUNTERS))
        except AbsentError:
            return {}
        except WireError as error:
            raise TargetError(str(error), hint=error.hint) from error

    async def strangers(self) -> list[Stranger]:
        """Return the senders of packets that the guard dropped, with the latest sender last; empty if no
        forwarder runs.

        Raises:
            TargetError: a forwarder runs, but does not respond.
        """
        try:
            strangers = decode_strangers(await self._ask(Kind.READ_STRANGERS))
        except AbsentError:
            return []
        except WireError as error:
            raise TargetError(str(error), hint=error.hint) from error
        return [
            Stranger(
                address=IPv4Address(one.address),
                reason=_REASONS[one.reason],
                packets=one.packets,
                age_s=one.age_ms / 1000,
                inner_source=IPv4Address(one.source),
                inner_destination=IPv4Address(one.destination),
            )
            for one in strangers
            if one.reason in _REASONS
        ]

    async def _read_state(self) -> ForwarderState:
        try:
            return decode_state(await self._ask(Kind.READ_STATE))
        except WireError as error:
            raise TargetError(str(error), hint=error.hint) from error

    async def _apply_process(self, operation: Operation) -> Forwarder | None:
        """Start, replace or stop the process; return the forwarder to attach now, or None."""
        match operation:
            case Add(Forwarder() as new):
                await self._start(new)
                return new
            case Replace(Forwarder() as old, Forwarder() as new):
                if replace(old, is_attached=new.is_attached) != new:
                    await self._hand_over(new)
                return new
            case Remove(Forwarder()):
                await self._stop()
                for name in (SOCKET_NAME, LOG_NAME):
                    (self._run_dir / name).unlink(missing_ok=True)
            case _:
                pass
        return None

    async def _start(self, forwarder: Forwarder) -> None:
        try:
            await self._launch(forwarder)
        except PortInUseError:
            # A forwarder whose socket was deleted still runs, but is unreachable.
            if not await self.end_unreachable():
                raise
            await self._launch(forwarder)
        self._started.set()

    async def _launch(self, forwarder: Forwarder, *, is_successor: bool = False) -> None:
        start = partial(
            start_forwarder,
            forwarder,
            self._run_dir,
            self._python,
            self._version,
            self._reaper,
            is_successor=is_successor,
        )
        try:
            await start()
        except PortFreedError:
            await start()

    async def _hand_over(self, forwarder: Forwarder) -> None:
        """Replace the process by a new process with other settings or of this version, without losing a
        packet.
        """
        try:
            await self._launch(forwarder, is_successor=True)
        except NoHandOverError as error:
            log.warning("Restarting the forwarder, a few packets are lost cause=%s", error)
            await self._restart(forwarder)
        else:
            log.info("Handed the forwarder over link=%s", forwarder.link)

    async def _restart(self, forwarder: Forwarder) -> None:
        """Restart the process with other settings and the same peers."""
        peers = (await self._read_state()).peers
        await self._stop()
        await self._start(forwarder)
        await self._ask(Kind.REPLACE_PEERS, encode_peers(peers))

    async def _stop(self) -> None:
        """Stop the process, or kill it if it does not respond. When the process has exited, the port and the
        device are free.
        """
        with suppress(AbsentError):
            async with connected(self._socket) as client:
                try:
                    await client.ask(Kind.STOP)
                except TargetError:
                    await _killed(client.pid)

    async def _apply_peers(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Change all peers in one atomic request. Of several operations on a subnet, the last operation is
        used.
        """
        ours = [operation for operation in operations if isinstance(_item(operation), ForwarderPeer)]
        removals: list[tuple[int, int]] = []
        peers: list[Peer] = []
        for operation in {_item(operation).key: operation for operation in ours}.values():
            match operation:
                case Remove(ForwarderPeer() as item):
                    removals.append(_from_peer(item)[:2])
                case Add(ForwarderPeer() as item) | Replace(_, ForwarderPeer() as item):
                    peers.append(_from_peer(item))
                case _:
                    pass
        if not ours:
            return ()
        try:
            await self._ask(Kind.CHANGE_PEERS, encode_change(removals, peers))
        except AbsentError as error:
            return [refused_by(operation, error) for operation in ours if not isinstance(operation, Remove)]
        except TargetError as error:
            return [refused_by(operation, error) for operation in ours]
        return ()

    async def _attach(self, link: str) -> None:
        """Give the forwarder a new attachment to the device, unless it already has the only possible
        attachment.
        """
        try:
            device = await in_thread(attach_device, link)
        except OSError as error:
            cause = str(error.strerror)
            hint = _ATTACH_HINTS.get(error.errno or 0) or remedy(error, f"Look at {link} and at dmesg.")
            if error.errno == EBUSY:
                if decode_summary(await self._ask(Kind.READ_SUMMARY)).is_attached:
                    return
                cause = f"{link} is in use by {await in_thread(find_tun_holder, link) or 'another program'}"
            raise TargetError(cause, hint=hint, is_permanent=is_permanent(error.errno)) from error
        try:
            await self._ask(Kind.ATTACH, descriptors=[device])
        finally:
            os.close(device)

    async def _ask(self, kind: Kind, payload: bytes = b"", descriptors: Sequence[int] = ()) -> bytes:
        async with connected(self._socket) as client:
            return await client.ask(kind, payload, descriptors)


def _item(operation: Operation) -> Item:
    return operation.new if isinstance(operation, Replace) else operation.item


async def _killed(pid: int) -> bool:
    """Kill the process that serves the socket; return whether it was a forwarder that this process may kill.

    A forwarder in its own unit runs as another user, and the watchdog of systemd kills it.
    """
    with _boundary(), suppress(PermissionError):
        return await end_process(pid, is_forwarder)
    return False


def _boundary() -> AbstractContextManager[None]:
    return target_errors(
        "the forwarder cannot be reached or changed",
        hint="Check the run directory, and the log of the forwarder in it.",
    )


def _to_forwarder(state: ForwarderState, *, is_current: bool) -> Forwarder:
    settings = state.settings
    return Forwarder(
        link=settings.link,
        tunnel_address=IPv4Address(settings.tunnel_address),
        subnet=IPv4Network((settings.subnet, settings.prefix_length)),
        listen_address=IPv4Address(settings.listen_address),
        port=settings.port,
        mtu=settings.mtu,
        is_attached=state.is_attached,
        is_current=is_current,
    )


def _to_peer(link: str, peer: Peer) -> ForwarderPeer:
    return ForwarderPeer(
        link=link,
        subnet=IPv4Network((peer.subnet, peer.prefix_length)),
        address=IPv4Address(peer.address),
        port=peer.port,
    )


def _from_peer(peer: ForwarderPeer) -> Peer:
    return Peer(int(peer.subnet.network_address), peer.subnet.prefixlen, int(peer.address), peer.port)
