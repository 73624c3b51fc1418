"""Fixtures of the lab: throw-away network namespaces of the real kernel."""

import asyncio
import ctypes
import itertools
import os
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

Result = TypeVar("Result")

_CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)


class Namespace:
    """A network namespace with loopback up, gone after the test."""

    def __init__(self) -> None:
        self.name = f"pfk{os.getpid()}-{next(_numbers)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.ip("link set lo up")

    def delete(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)

    def command(self, *words: str, given: str = "") -> str:
        """Run a command in the namespace, with `given` as its input, and return what it printed."""
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
        """Run a command in the namespace, which may fail, and return what it printed."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *words], stdout=subprocess.PIPE, text=True, check=False
        ).stdout

    def ip(self, words: str) -> str:
        """Run `ip` with these words in the namespace and return what it printed."""
        return self.command("ip", *words.split())

    def run(self, work: Callable[[], Awaitable[Result]], timeout_s: float = 60.0) -> Result:
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
        """Bind the calling thread to the namespace, for as long as it lives."""
        descriptor = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A fresh network namespace."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    made = Namespace()
    try:
        yield made
    finally:
        made.delete()


@pytest.fixture
def make_namespace() -> Iterator[Callable[[], Namespace]]:
    """Make further network namespaces."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    try:
        yield make
    finally:
        for namespace in made:
            namespace.delete()
