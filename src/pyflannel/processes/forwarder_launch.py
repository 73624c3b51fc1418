"""Starts processes that continue after their parent exits, such as the forwarder."""

import asyncio
import errno
import logging
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path

from msgspec import Struct

from pyflannel.errors import TargetError, WireError
from pyflannel.model.forwarder import Forwarder
from pyflannel.ports import child_environment, in_thread
from pyflannel.processes.forwarder_client import (
    ANSWER_S,
    AbsentError,
    EndedError,
    ForwarderClient,
    RefusedError,
    SilentError,
    connected,
)
from pyflannel.processes.forwarder_descriptors import open_listener, open_underlay_socket
from pyflannel.processes.found import FORWARDER, end_process, find_port_holder, is_forwarder
from pyflannel.processes.systemd import FORWARDER_TEMPLATE, NoUnitError, connect_to_new, is_service
from pyflannel.wire.forwarder_control import (
    LOG_NAME,
    SOCKET_NAME,
    ForwarderState,
    Kind,
    Restriction,
    Settings,
    decode_handed,
    decode_state,
    decode_summary,
    encode_handed,
)

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.01

_END_S = 1.0
"""Deadline in seconds for the exit of a process that has closed its connection."""

_INHERITED = ("PYTHON*", "LD_LIBRARY_PATH", "LANG", "LC_*", "TZ")
"""Variables that the interpreter and its log need. These variables contain no settings of the daemon."""


_LACKS = {
    Restriction.NO_CAPABILITIES: "it could not drop its capabilities",
    Restriction.FILTERED_CALLS: "the kernel refused the filter of system calls",
}

_UNIT_HINT = "Read journalctl -u 'flannel-forwarder@*', then restart flanneld."

_MOVES = 3
"""Maximum number of attempts to replace a forwarder that runs as root. Each attempt may wait ANSWER_S for
the start of a forwarder."""

_UNKNOWN = 0
"""Process ID of a forwarder that systemd starts."""


class PortInUseError(TargetError):
    """Another program uses the UDP port."""


class PortFreedError(PortInUseError):
    """Another program used the UDP port and has released it. A retry succeeds."""


class NoHandOverError(TargetError):
    """The running forwarder refuses a hand-over and continues."""


class Reaper:
    """Reads the exit status of child processes when they exit, so that they do not remain zombies."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Read the status of this child when it exits.

        Raises:
            OSError: the kernel cannot report its exit.
        """
        descriptor = os.pidfd_open(process.pid)
        try:
            asyncio.get_running_loop().add_reader(descriptor, self._reap, descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._children[descriptor] = process

    def close(self) -> None:
        """Stop watching. `subprocess` reads the status of a process that exits later when it starts the
        next child.
        """
        for descriptor in list(self._children):
            self._forget(descriptor)

    def _reap(self, descriptor: int) -> None:
        self._forget(descriptor).wait()

    def _forget(self, descriptor: int) -> "subprocess.Popen[bytes]":
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        return self._children.pop(descriptor)


async def start_forwarder(
    forwarder: Forwarder,
    run_dir: Path,
    python: str,
    version: str,
    reaper: Reaper,
    *,
    is_successor: bool = False,
) -> None:
    """Start the forwarder process, and return when it listens on its control socket. A new forwarder is not
    attached to the device yet.

    The process opens no descriptors itself. The process gets its descriptors, its settings and its peers from
    the caller. If a forwarder runs, the new forwarder takes over its descriptors, and the running forwarder
    then exits. If the take-over fails, the running forwarder continues.

    Raises:
        PortInUseError: another program uses the port; the message names the program.
        PortFreedError: another program used the port and has released it.
        NoHandOverError: the running forwarder refused the hand-over.
        TargetError: the process did not start; the message contains the cause.
    """
    async with AsyncExitStack() as opened:
        equip = _take_over if is_successor else _open
        equipment = await equip(_state(forwarder, version), run_dir.absolute() / SOCKET_NAME, opened)
        restrictions = await _start_in_unit(equipment) if is_service() else None
        if restrictions is None:
            restrictions = await _start(python, equipment, run_dir, reaper)
    _report(restrictions)


async def move_forwarder(run_dir: Path, uid: int, gid: int) -> bool:
    """Replace the forwarder of a run directory if it refuses this user, which is the case if a flanneld that
    ran as root started it.

    Root calls this function. systemd starts the new forwarder, in the same way as if this user had connected.
    If the new forwarder gets no processor time to start, the running forwarder is killed after some attempts,
    because
    flanneld could never use it.

    Raises:
        TargetError: the forwarder was not replaced. The message states whether the forwarder was killed.
    """
    path = run_dir.absolute() / SOCKET_NAME
    if not await _refuses(path, uid, gid):
        return False
    for _ in range(_MOVES):
        try:
            await _move(path, uid, gid)
            return True
        except (SilentError, EndedError, RefusedError) as error:
            cause = error
    async with connected(path) as client:
        is_killed = await end_process(client.pid, is_forwarder)
    fate = "was killed" if is_killed else "continues"
    raise TargetError(
        f"the forwarder at {path} was not replaced, and {fate}: {cause}",
        hint="flanneld starts a forwarder. Give this host more processor time.",
    ) from cause


async def _refuses(path: Path, uid: int, gid: int) -> bool:
    try:
        with _as_user(uid, gid):
            async with connected(path) as client:
                await client.ask(Kind.READ_STATE)
        return False
    except AbsentError:
        return False
    except EndedError:
        log.debug("the forwarder refused the user uid=%d path=%s", uid, path)
        return True


async def _move(path: Path, uid: int, gid: int) -> None:
    async with AsyncExitStack() as opened:
        async with connected(path) as client:
            state = decode_state(await client.ask(Kind.READ_STATE))
        equipment = await _take_over(state, path, opened)
        with _as_user(uid, gid):
            connection = opened.enter_context(connect_to_new(FORWARDER_TEMPLATE))
        await _equip(ForwarderClient(connection, _UNKNOWN), equipment)


@contextmanager
def _as_user(uid: int, gid: int) -> Iterator[None]:
    """Let this process have another user during the block, because a forwarder accepts only the user that
    started it.
    """
    own_uid, own_gid = os.geteuid(), os.getegid()
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(own_uid)
        os.setegid(own_gid)


class _Equipment(Struct, frozen=True, kw_only=True):
    """The descriptors and the state that a new forwarder gets.

    Attributes:
        descriptors: the control socket, the UDP socket and, from a previous forwarder, the device.
        predecessor: connection to the previous forwarder.
    """

    state: ForwarderState
    descriptors: Sequence[int]
    predecessor: ForwarderClient | None = None


def _state(forwarder: Forwarder, version: str) -> ForwarderState:
    settings = Settings(
        forwarder.link,
        int(forwarder.tunnel_address),
        int(forwarder.subnet.network_address),
        forwarder.subnet.prefixlen,
        int(forwarder.listen_address),
        forwarder.port,
        forwarder.mtu,
    )
    return ForwarderState(version, 0, False, settings, ())


async def _open(state: ForwarderState, path: Path, opened: AsyncExitStack) -> _Equipment:
    """Return new sockets, without the device; `opened` closes the sockets."""
    udp = await _open_udp(state.settings, opened)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        listener = await in_thread(open_listener, str(path))
    except IsADirectoryError as error:
        raise TargetError(
            f"{path} is a directory, but must be the socket of the forwarder",
            hint="Remove the directory.",
            is_permanent=True,
        ) from error
    except OSError as error:
        hint = f"Check that {path.parent} is writable."
        raise TargetError.of(
            "the control socket of the forwarder cannot be created", error, hint=hint
        ) from error
    opened.callback(listener.close)
    opened.enter_context(_removed_after_failure(path))
    return _Equipment(state=state, descriptors=(listener.fileno(), udp))


async def _open_udp(settings: Settings, opened: AsyncExitStack) -> int:
    address, port = IPv4Address(settings.listen_address), settings.port
    try:
        udp = await in_thread(open_underlay_socket, str(address), port)
    except OSError as error:
        raise await _explain_no_socket(address, port, error) from error
    opened.callback(udp.close)
    return udp.fileno()


async def _explain_no_socket(address: IPv4Address, port: int, error: OSError) -> TargetError:
    if error.errno == errno.EADDRINUSE:
        holder = await in_thread(find_port_holder, address, port)
        if holder is None:
            return PortFreedError(
                f"UDP port {port} of {address} was in use until now", hint="flanneld retries."
            )
        return PortInUseError(
            f"UDP port {port} of {address} is in use by {holder}",
            hint="Stop the other program, or set another Backend.Port in the network config, for all hosts.",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return TargetError(
            f"the host has no address {address} to listen on",
            hint="Add the address to the interface again, or restart flanneld to choose another interface.",
        )
    return TargetError.of(
        "the socket of the tunnel cannot be opened", error, hint="Check the limits of flanneld."
    )


@contextmanager
def _removed_after_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


async def _take_over(state: ForwarderState, path: Path, opened: AsyncExitStack) -> _Equipment:
    """Return the descriptors of the running forwarder, with the new settings; `opened` closes the copied
    descriptors.
    """
    try:
        predecessor = await opened.enter_async_context(connected(path))
        count, other = decode_handed(await predecessor.ask(Kind.HAND_OVER))
        if len(predecessor.descriptors) != count or count < 2:
            raise WireError(f"received {len(predecessor.descriptors)} descriptors, not {count}", hint="")
        if other.settings.link != state.settings.link:
            raise WireError(f"it serves the link {other.settings.link}", hint="")
    except RefusedError:
        raise
    except (TargetError, WireError) as error:
        raise NoHandOverError(
            f"the hand-over of the forwarder at {path} failed: {error}",
            hint="flanneld restarts the forwarder.",
        ) from error
    listener, udp, *device = predecessor.descriptors
    if other.settings[4:6] != state.settings[4:6]:  # address and port
        udp = await _open_udp(state.settings, opened)
    return _Equipment(
        state=state._replace(peers=other.peers), descriptors=(listener, udp, *device), predecessor=predecessor
    )


async def _start_in_unit(equipment: _Equipment) -> Restriction | None:
    """Let systemd start the process in its own unit; log a warning and return None if systemd does not
    start it.
    """
    try:
        with connect_to_new(FORWARDER_TEMPLATE) as connection:
            return await _equip(ForwarderClient(connection, _UNKNOWN), equipment)
    except NoUnitError as error:
        cause = error.in_full
    except SilentError as error:
        if error.pid != _UNKNOWN:
            raise
        raise TargetError(  # a forwarder outside the unit would run until the next restart of flanneld
            f"flannel-forwarder@.service started no forwarder within {ANSWER_S:.0f} s", hint=_UNIT_HINT
        ) from error
    except EndedError as error:
        cause = f"flannel-forwarder@.service started no forwarder: {error}. {_UNIT_HINT}"
    log.warning("Started the forwarder inside this service, so both stop together: %s", cause)
    return None


async def _start(python: str, equipment: _Equipment, run_dir: Path, reaper: Reaper) -> Restriction:
    command = [python, "-P", "-m", FORWARDER]  # -P: Python finds no modules in the working directory
    said = run_dir / LOG_NAME
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        process, written = _spawned(
            command, child_environment(*_INHERITED), said, reaper, "the forwarder", theirs.fileno()
        )
        theirs.close()
        try:
            return await _equip(ForwarderClient(ours, process.pid), equipment)
        except EndedError as error:
            raise await _explain_end(process, said, written) from error
        except SilentError as error:
            if error.pid != process.pid:
                raise
            process.kill()
            raise TargetError(
                f"the forwarder did not respond within {ANSWER_S:.0f} s after its start",
                hint=f"Read {said}. The host may be overloaded.",
            ) from None


async def _equip(client: ForwarderClient, equipment: _Equipment) -> Restriction:
    """Give a new process its descriptors, and stop the previous process when both move packets.

    Raises:
        EndedError: the new process exited.
        SilentError: the new or the previous process did not respond.
    """
    start = encode_handed(len(equipment.descriptors), equipment.state)
    summary = decode_summary(await client.ask(Kind.START, start, equipment.descriptors))
    counters = b""
    if equipment.predecessor is not None:
        with suppress(EndedError):  # the process exited in the meantime
            counters = await equipment.predecessor.ask(Kind.TAKEN)
    await client.ask(Kind.LISTEN, counters)
    return summary.restrictions


def _report(restrictions: Restriction) -> None:
    log.info("Started the forwarder restrictions=%s", ",".join(restrictions.names) or "none")
    for one, reason in _LACKS.items():
        if one not in restrictions:
            log.warning("The forwarder keeps more rights than it needs: %s", reason)


async def _explain_end(process: subprocess.Popen[bytes], said: Path, written: int) -> TargetError:
    """Return the reason why the process exited, from its exit code and its output."""
    try:
        status = await in_thread(process.wait, _END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        status = 0
    last_line = _read_from(said, written).strip().rpartition("\n")[2]
    return TargetError(
        f"the forwarder ended with status {status}: {last_line or 'no output'}", hint=f"Read {said}."
    )


class Launch(Struct, frozen=True, kw_only=True):
    """The description of a process to start.

    Attributes:
        name: name of the process in messages, for example `the forwarder`.
        log: file that receives its standard error.
        answers: function that returns whether the process with this ID serves its socket.
        explain: function that returns the error of a process that exited, from its exit status and its
            output.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    answers: Callable[[int], Awaitable[bool]]
    explain: Callable[[int, str], Awaitable[TargetError]]


async def start_detached(launch: Launch, reaper: Reaper) -> None:
    """Start a process, and return when it responds.

    Raises:
        TargetError: the process did not start; or the error that `launch` derives from its output.
    """
    said = launch.log
    said.parent.mkdir(parents=True, exist_ok=True)
    process, written = _spawned(launch.command, launch.environment, said, reaper, launch.name)
    try:
        async with asyncio.timeout(ANSWER_S):
            while not await launch.answers(process.pid):
                if process.poll() is not None:
                    raise await launch.explain(process.returncode, _read_from(said, written))
                await asyncio.sleep(_LOOK_AGAIN_S)
    except TimeoutError:
        process.kill()
        raise TargetError(
            f"{launch.name} did not respond within {ANSWER_S:.0f} s after its start",
            hint=f"Read {said}. The host may be overloaded.",
        ) from None


def _spawned(
    command: list[str],
    environment: dict[str, str],
    said: Path,
    reaper: Reaper,
    name: str,
    stdin: int = subprocess.DEVNULL,
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process that appends its standard error to a file; return the process and the previous size of
    the file.

    Raises:
        TargetError: the process cannot be started or watched.
    """
    try:
        with said.open("ab") as stderr:
            written = stderr.tell()
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=stderr.fileno(),
                cwd="/",
                env=environment,
                start_new_session=True,  # so that signals to the daemon's terminal do not reach the forwarder
            )
    except OSError as error:
        hint = f"Check that {said.parent} is writable and that {command[0]} is executable."
        raise TargetError.of(f"{name} cannot be started", error, hint=hint) from error
    try:
        reaper.watch(process)
    except OSError as error:
        process.kill()
        process.wait()
        hint = "Raise the limit of open files (LimitNOFILE=). Linux 5.3 or newer is required."
        raise TargetError.of(f"{name} cannot be watched", error, hint=hint) from error
    return process, written


def _read_from(log: Path, offset: int) -> str:
    try:
        return log.read_bytes()[offset:].decode(errors="replace")
    except OSError:
        return ""
