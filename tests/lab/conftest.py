"""Fixtures of the lab: temporary network namespaces of the real kernel."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from doubles.planning import pass_operations
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.model.state import Operation, Refusal, State
from pyflannel.plan.ownership import ours
from pyflannel.ports import Changes
from testlab.inside import enter_network
from testlab.overlay import SOON_S, Overlay, PingStream, overlay_in

Result = TypeVar("Result")

_SILENCE_S = 0.1
_TURNS = 20
_numbers = itertools.count(1)


class Namespace:
    """A network namespace with loopback up, removed after the test."""

    def __init__(self) -> None:
        self.name = f"pfk{os.getpid()}-{next(_numbers)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.ip("link set lo up")

    def command(self, *words: str, given: str = "") -> str:
        """Run a command in the namespace, with `given` as its input, and return its output."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *words],
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def attempt(self, *words: str) -> str:
        """Run a command in the namespace, which may fail, and return its output."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *words], stdout=subprocess.PIPE, text=True, check=False
        ).stdout

    def ip(self, *commands: str) -> str:
        """Run commands of `ip` in the namespace, in one process, and return their output."""
        done = subprocess.run(
            ["ip", "-n", self.name, *commands[0].split()]
            if len(commands) == 1
            else ["ip", "-n", self.name, "-batch", "-"],
            input="\n".join(commands),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"ip {'; '.join(commands)}: {done.stderr}"
        return done.stdout

    def settle(self, **states: str) -> None:
        """Wait until each link has its operational state. The kernel announces this state up to a second
        late.
        """
        deadline = time.monotonic() + SOON_S
        while not self._is_settled(states):
            assert time.monotonic() < deadline, self.ip("link show")
            time.sleep(0.01)

    def _is_settled(self, states: Mapping[str, str]) -> bool:
        links = {link["ifname"]: link["operstate"] for link in json.loads(self.ip("-json link show"))}
        return all(links.get(name) == state for name, state in states.items())

    def run(self, work: Callable[[], Awaitable[Result]], timeout_s: float = 120.0) -> Result:
        """Run a coroutine function on a thread of the namespace and return its result."""
        results: list[Result] = []
        errors: list[BaseException] = []

        async def bounded() -> Result:
            async with asyncio.timeout(timeout_s):
                return await work()

        def enter_and_run() -> None:
            try:
                self._enter()
                results.append(asyncio.run(bounded()))
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)

        thread = threading.Thread(target=enter_and_run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def _enter(self) -> None:
        """Bind the calling thread to the namespace until the thread ends."""
        enter_network(f"/run/netns/{self.name}")


class Wakes:
    """The announcements of the `changes()` of a port while a block runs."""

    def __init__(self, channel: AbstractAsyncContextManager[Changes]) -> None:
        self._channel = channel

    async def __aenter__(self) -> Self:
        self._changes = await self._channel.__aenter__()
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._channel.__aexit__(*error)

    async def next(self) -> None:
        """Return at the next announcement; fail if there is none."""
        async with asyncio.timeout(SOON_S):
            await self._changes.next()

    async def silence(self) -> int:
        """Wait until there is no announcement for a while, and return the number of earlier announcements."""
        count = 0
        while await self._announces_within(_SILENCE_S) or await self._announces_now():
            count += 1
        return count

    async def _announces_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changes.next()
                return True
        return False

    async def _announces_now(self) -> bool:
        """Return whether an earlier announcement is unread, because the loop had no time to read it."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        return await self._announces_within(0)


@pytest.fixture
def listen() -> type[Wakes]:
    """Return the class whose `async with` block receives the announcements of a port."""
    return Wakes


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A fresh network namespace."""
    with namespaces() as make:
        yield make()


@contextlib.contextmanager
def namespaces() -> Iterator[Callable[[], Namespace]]:
    """Yield a function that makes network namespaces, which are removed at the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    try:
        yield make
    finally:
        deletions = "".join(f"netns delete {namespace.name}\n" for namespace in made)
        subprocess.run(["ip", "-batch", "-"], input=deletions, text=True, check=True)


@pytest.fixture
def make_namespace() -> Iterator[Callable[[], Namespace]]:
    """Make further network namespaces."""
    with namespaces() as make:
        yield make


@pytest.fixture(scope="module")
def make_shared_namespace() -> Iterator[Callable[[], Namespace]]:
    """Make network namespaces that the tests of a module share."""
    with namespaces() as make:
        yield make


@pytest.fixture
def no_forwarder_remains(tmp_path: Path) -> Iterator[None]:
    """Kill the forwarders that a test started with its own run directory."""
    yield
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_text(errors="replace")
            # The command does not contain the run directory, but the log of the forwarder is in it.
            if "pyflannel.programs.forwarder" in command and str(tmp_path) in os.readlink(process / "fd/2"):
                os.kill(int(process.name), signal.SIGKILL)


class Driver:
    """Passes of a LinuxTarget in a namespace, without an engine."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    def snapshot(self, desired: State) -> State:
        async def look() -> State:
            async with LinuxTarget() as target:
                return await target.snapshot(desired)

        return self.namespace.run(look)

    def heal(self, desired: State) -> list[Refusal]:
        async def make_pass() -> list[Refusal]:
            async with LinuxTarget() as target:
                actual = ours(await target.snapshot(desired), desired)
                return list(await target.apply(pass_operations(desired, actual)))

        return self.namespace.run(make_pass)

    def apply(self, *operations: Operation) -> list[Refusal]:
        async def perform() -> list[Refusal]:
            async with LinuxTarget() as target:
                return list(await target.apply(operations))

        return self.namespace.run(perform)


@pytest.fixture
def target(namespace: Namespace) -> Driver:
    """Passes of a LinuxTarget in the namespace."""
    return Driver(namespace)


@pytest.fixture(scope="module")
def overlay(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    """Four hosts and an etcd with a network config. Each module selects the hosts that join."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    module = request.module.__name__.rpartition("_")[2]
    with overlay_in(module[:8]) as made:
        yield made


@pytest.fixture
def figures(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line that is visible regardless of the result of the test."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line}", end="", flush=True)

    return say


@pytest.fixture(scope="session")
def ping_stream() -> type[PingStream]:
    """Start a stream of pings: `ping_stream(source, address, interval_s=0.001)`."""
    return PingStream


@pytest.fixture(scope="session")
def make_overlay() -> type[Overlay]:
    """Join the hosts of a separate lab: `make_overlay(lab, etcd, etcd_program)`."""
    return Overlay
