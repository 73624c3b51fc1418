"""Only the intended process is killed, even if its process ID is reused."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyflannel.processes.found import (
    FORWARDER,
    end_process,
    find_forwarders,
    is_forwarder,
    is_forwarder_of,
)
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


_BIND = (
    "import os, socket, sys; bound = socket.socket(socket.AF_UNIX); name = eval(sys.argv[1]);"
    "name[0] == '/' and os.makedirs(os.path.dirname(name), exist_ok=True); bound.bind(name);"
    "print('ready', flush=True); sys.stdin.read()"
)


@contextmanager
def bound(address: str, *words: str, uid: int | None = None) -> Iterator[int]:
    """Run a program that has a bound Unix socket, and yield its process ID."""
    command = [sys.executable, "-c", _BIND, repr(address), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=uid) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def test_a_forwarder_belongs_to_its_run_directory(tmp_path: Path) -> None:
    """The forwarder still belongs to its run directory after the file of its socket was deleted, although no
    client can connect.
    """
    path = tmp_path / SOCKET_NAME
    with bound(str(path), FORWARDER) as pid:
        path.unlink()
        assert is_forwarder(pid)
        assert is_forwarder_of(tmp_path, pid)
        assert not is_forwarder_of(tmp_path / "other", pid)


@pytest.mark.parametrize("kind", ["abstract", "file"])
def test_another_user_cannot_assign_a_forwarder_to_another_run_directory(kind: str) -> None:
    """/proc/net/unix shows the inode to all users, and prints a newline in the name of a socket."""
    with ExitStack() as opened:
        one, two, foreign = (opened.enter_context(TemporaryDirectory()) for _ in range(3))
        pid = opened.enter_context(bound(f"{two}/{SOCKET_NAME}", FORWARDER))
        (inode,) = (line.split()[6] for line in _table() if line.endswith(f" {two}/{SOCKET_NAME}"))
        forged = f"0: 2 0 0 1 1 {inode} {one}/{SOCKET_NAME}"
        name = f"\0\n{forged}\n" if kind == "abstract" else f"{foreign}/\n{forged}"
        os.chmod(foreign, 0o777)
        opened.enter_context(bound(name, uid=None if os.geteuid() else 65534))

        assert forged in _table()
        assert is_forwarder_of(Path(two), pid)
        assert not is_forwarder_of(Path(one), pid)
        assert find_forwarders(Path(one)) == []


def _table() -> list[str]:
    return Path("/proc/net/unix").read_text(errors="replace").split("\n")
