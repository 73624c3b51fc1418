"""Only one program can lock a run directory, as real processes show."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.errors import BusyError, TargetError
from pyflannel.kernel.host.locks import RunLock

HOLD = """
import sys
from pyflannel.kernel.host.locks import RunLock
with RunLock(sys.argv[1], "flanneld"):
    print("held", flush=True)
    sys.stdin.read()
"""

HOLD_AND_TRY = """
import sys
from pyflannel.errors import BusyError
from pyflannel.kernel.host.locks import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    try:
        RunLock(sys.argv[1]).__enter__()
    except BusyError:
        print("refused")
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "flanneld.lock")


def hold(path: str) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_the_error_of_the_second_names_the_first(path: str) -> None:
    with hold(path) as holder:
        with (
            pytest.raises(BusyError, match=rf"flanneld \(pid {holder.pid}\).*{path}") as raised,
            RunLock(path),
        ):
            pass
        holder.communicate("")

    assert "--run-dir" in raised.value.hint


def test_a_release_removes_the_lock_and_its_file(path: str) -> None:
    with RunLock(path):
        assert Path(path).read_text() == f"{os.getpid()} flanneld\n"

    assert not os.path.exists(path)
    with RunLock(path):
        pass


def test_the_lock_of_a_killed_holder_is_free(path: str) -> None:
    with hold(path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()

    with RunLock(path):
        assert Path(path).read_text().startswith(f"{os.getpid()} ")


def test_a_program_that_the_holder_started_does_not_hold_the_lock(path: str) -> None:
    """The forwarder outlives the daemon, but the lock must not."""
    with RunLock(path):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with RunLock(path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_symlink_at_its_path_is_not_followed(tmp_path: Path) -> None:
    """A cleanup of root locks a directory that belongs to the user of flanneld."""
    target, path = tmp_path / "target", tmp_path / "lock"
    target.write_text("of root")
    path.symlink_to(target)

    with pytest.raises(TargetError, match="cannot be created: ELOOP"), RunLock(str(path)):
        pass

    assert target.read_text() == "of root"


def test_an_impossible_path_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(TargetError, match="cannot be created: ENOTDIR: Not a directory"),
        RunLock(str(tmp_path / "file" / "run" / "lock")),
    ):
        pass


def test_a_read_only_file_system_keeps_the_lock_of_an_earlier_daemon(path: str) -> None:
    """A killed daemon left the file. The next daemon starts, and a second daemon at the same time does
    not.
    """
    with hold(path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$1" -c "$2" "$3"'
    words = [os.path.dirname(path), sys.executable, HOLD_AND_TRY, path]

    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, *words], capture_output=True, text=True, check=False
    )

    assert ran.stdout == "held\nrefused\n", ran.stderr
