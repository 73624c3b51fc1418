"""The daemon is found by its lock, and only the daemon is stopped."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.commands import local_daemon
from pyflannel.commands.local_daemon import check_own_files, running_daemon, stop_daemon
from pyflannel.errors import BusyError, UsageError
from pyflannel.http.sockets import listen_unix
from pyflannel.kernel.host.locks import RunLock

HOLD = """
import signal, sys
from pyflannel.kernel.host.locks import RunLock
path, program, how = sys.argv[1:]
if how == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with RunLock(path, program):
    print("held", flush=True)
    sys.stdin.read()
"""

Hold = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "flanneld.lock"


@pytest.fixture
def hold(lock: Path) -> Iterator[Hold]:
    """Start a process that holds the lock with the name of a program."""
    with contextlib.ExitStack() as started:

        def start(program: str = "flanneld", how: str = "") -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-c", HOLD, lock, program, how],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            started.enter_context(process)
            started.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            return process

        yield start


def test_the_holder_is_found_and_stopped(lock: Path, hold: Hold) -> None:
    daemon = hold()

    found = running_daemon(lock)
    stopped = asyncio.run(stop_daemon(lock))

    assert found == stopped == daemon.pid
    assert daemon.wait(20) == -15
    assert running_daemon(lock) is None


def test_a_suspended_daemon_is_stopped(lock: Path, hold: Hold) -> None:
    """A process that SIGSTOP suspends handles SIGTERM only after SIGCONT."""
    daemon = hold()
    daemon.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)

    assert asyncio.run(stop_daemon(lock)) == daemon.pid
    assert daemon.wait(20) == -15


def test_the_service_of_a_process_that_got_the_number_is_not_stopped(
    lock: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon ends after it was found, and its number is given to the main process of another service."""
    daemon = hold()
    stopped: list[str] = []

    def end_and_return_other(pid: int) -> str:
        daemon.kill()
        daemon.wait()
        return "other.service"

    async def stop(unit: str, deadline_s: float) -> None:
        stopped.append(unit)

    monkeypatch.setattr(local_daemon, "service_of", end_and_return_other)
    monkeypatch.setattr(local_daemon, "_check_namespace", lambda pid: None)
    monkeypatch.setattr(local_daemon, "stop_service", stop)

    assert asyncio.run(stop_daemon(lock)) == daemon.pid
    assert stopped == []


def test_without_a_lock_there_is_no_daemon(lock: Path) -> None:
    assert running_daemon(lock) is None
    assert asyncio.run(stop_daemon(lock)) is None


@pytest.mark.parametrize("text", ["", "flanneld", "nonsense flanneld", "999999999 flanneld", "-1 flanneld"])
def test_an_invalid_or_stale_lock_is_ignored(lock: Path, text: str) -> None:
    lock.write_text(text)

    assert running_daemon(lock) is None


def test_a_process_with_the_id_of_a_dead_daemon_is_not_stopped(lock: Path) -> None:
    """The lock of a killed daemon contains a process ID that another process may have now."""
    lock.write_text(f"{os.getpid()} flanneld\n")

    assert asyncio.run(stop_daemon(lock)) is None


def test_another_cleanup_is_not_stopped(lock: Path, hold: Hold) -> None:
    other = hold("flannelctl cleanup")

    assert asyncio.run(stop_daemon(lock)) is None
    assert other.poll() is None


def test_a_daemon_that_does_not_end_is_reported(
    lock: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_daemon, "STOP_S", 0.1)
    daemon = hold(how="stubborn")

    with pytest.raises(BusyError, match=rf"pid {daemon.pid}\) did not exit"):
        asyncio.run(stop_daemon(lock))


def test_a_daemon_whose_lock_was_deleted_is_reported(lock: Path) -> None:
    """Nothing of a running daemon is removed, because the daemon would create it again."""
    with listen_unix(lock.with_name("flanneld.sock")):
        with pytest.raises(BusyError, match=rf"pid {os.getpid()}\) is running at") as refused:
            asyncio.run(stop_daemon(lock))

    assert refused.value.hint == f"Terminate flanneld with 'kill {os.getpid()}', then run cleanup again."
    assert asyncio.run(stop_daemon(lock)) is None  # a remaining socket is not a daemon


def test_the_cleanup_of_one_network_does_not_end_the_daemon_of_several(tmp_path: Path) -> None:
    """The remedy does not end the daemon of the other networks."""
    blue = Places(run_dir=tmp_path).of_network("blue", tmp_path / "networks")

    with RunLock(str(Places(run_dir=tmp_path).lock)), listen_unix(blue.control_socket):
        with pytest.raises(BusyError, match=rf"pid {os.getpid()}\) runs the network blue") as refused:
            asyncio.run(stop_daemon(blue.lock))

    assert "Remove the network from --networks" in refused.value.hint
    assert "kill" not in refused.value.hint


@pytest.mark.parametrize("other", ["--state-dir", "--subnet-file"])
def test_the_files_of_the_usual_daemon_are_protected(tmp_path: Path, other: str) -> None:
    """A cleanup with only another run directory would remove identity and subnet.env of a running daemon."""
    usual = Places(run_dir=tmp_path / "usual", state_dir=tmp_path / "state", subnet_file=tmp_path / "env")
    own = Places(run_dir=tmp_path / "own", state_dir=tmp_path / "own-state", subnet_file=tmp_path / "own-env")
    shared = (
        replace(own, state_dir=usual.state_dir)
        if other == "--state-dir"
        else replace(own, subnet_file=usual.subnet_file)
    )

    check_own_files(shared, usual)  # the usual daemon has never run here
    message = rf"the flanneld of .*/usual uses {other}="
    with RunLock(str(usual.lock)), pytest.raises(UsageError, match=message):
        check_own_files(shared, usual)
    usual.device_file.touch()
    with pytest.raises(UsageError, match=r"the flanneld of .*/usual uses"):
        check_own_files(shared, usual)
    check_own_files(own, usual)
    check_own_files(usual, usual)
