"""Names in /proc that users of the host choose."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyflannel.processes.found import find_original, routes_in

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


@pytest.mark.parametrize("name", ["eth0", "a\x1cb", "\x1c", "\x1f\x1f", "a\x85b", "\u2028"])
def test_routes_are_read_with_any_name_of_the_link(name: str) -> None:
    """Without rights, a user can create a namespace with a link of such a name."""
    line = f"{name}\t0001030A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0" + " " * 20 + "\n"

    assert list(routes_in(HEAD + line)) == [IPv4Network("10.3.1.0/24")]


def test_routes_that_the_kernel_rejects_are_omitted() -> None:
    assert list(routes_in(f"{HEAD}*\t0000030A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0\n")) == []


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users can enter."""
    with TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@contextmanager
def running(program: Path, uid: int) -> Iterator[int]:
    with subprocess.Popen([program, "60"], user=uid) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to start a program as another user")
def test_only_a_process_with_rights_is_the_original(open_directory: Path) -> None:
    """Otherwise, any user could prevent `flannelctl cleanup` from removing objects of the original."""
    program = Path(shutil.copy("/bin/sleep", open_directory / "flanneld"))

    with running(program, 65534):
        assert find_original() is None
        with running(program, 0) as pid:
            assert find_original() == pid
