"""Only the intended process is killed, even if its process ID is reused."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.processes.found import FORWARDER, end_process, is_forwarder, is_forwarder_of
from pyflannel.wire.forwarder_control import SOCKET_NAME


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_the_intended_process_is_killed(sleeper: subprocess.Popen[bytes]) -> None:
    assert asyncio.run(end_process(sleeper.pid, lambda pid: pid == sleeper.pid))
    assert sleeper.wait(10) == -9


def test_another_process_is_not_killed(sleeper: subprocess.Popen[bytes]) -> None:
    assert not asyncio.run(end_process(sleeper.pid, lambda pid: False))
    assert sleeper.poll() is None


def test_a_process_that_reuses_the_id_after_the_check_is_not_killed(
    sleeper: subprocess.Popen[bytes],
) -> None:
    """The pidfd is opened first. If the process ends during the check, the signal has no receiver."""

    def end_meanwhile(pid: int) -> bool:
        sleeper.kill()
        sleeper.wait(10)
        return True

    assert not asyncio.run(end_process(sleeper.pid, end_meanwhile))


def test_a_process_is_checked_only_after_its_pidfd_is_open(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    really_open = os.pidfd_open

    def open_noted(pid: int, flags: int = 0) -> int:
        done.append("fixed")
        return really_open(pid, flags)

    monkeypatch.setattr(os, "pidfd_open", open_noted)

    asyncio.run(end_process(sleeper.pid, lambda pid: bool(done.append("examined"))))

    assert done == ["fixed", "examined"]


def test_an_unused_process_id_is_no_error() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()

    assert not asyncio.run(end_process(process.pid, lambda pid: True))


def test_a_forwarder_belongs_to_its_run_directory(tmp_path: Path) -> None:
    """This is the same after the file of its socket was deleted, so that no client can connect."""
    path = tmp_path / SOCKET_NAME
    wait = (
        "import socket, sys; bound = socket.socket(socket.AF_UNIX); bound.bind(sys.argv[2]);"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", wait, FORWARDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # Popen may return before /proc shows the command line
        path.unlink()
        assert is_forwarder(process.pid)
        assert is_forwarder_of(tmp_path, process.pid)
        assert not is_forwarder_of(tmp_path / "other", process.pid)
        process.kill()
