"""Names in /proc that users of the host choose."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyflannel.processes.found import find_original, ipv6_addresses_in, ipv6_routes_in, routes_in

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


@pytest.mark.parametrize("name", ["eth0", "a\x1cb", "\x1c", "\x1f\x1f", "a\x85b", "\u2028"])
def test_routes_are_read_with_any_name_of_the_link(name: str) -> None:
    """A user without rights can create a namespace with a link of any name."""
    line = f"{name}\t0001030A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0" + " " * 20 + "\n"

    assert list(routes_in(HEAD + line)) == [IPv4Network("10.3.1.0/24")]


def test_routes_that_the_kernel_rejects_are_omitted() -> None:
    assert list(routes_in(f"{HEAD}*\t0000030A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0\n")) == []


ZERO = "0" * 32


@pytest.mark.parametrize("name", ["eth0", "a\x1cb", "\x1c", "a\x85b", "\u2028"])
def test_ipv6_addresses_and_routes_are_read_with_any_name_of_the_link(name: str) -> None:
    """A route that is rejected, and the route to an own address, are omitted."""
    address = "fd000005000000070000000000000002"
    network = "fd000005000000070000000000000000"
    routes = "".join(
        f"{to} {length} {ZERO} 00 {ZERO} 00000400 00000001 00000000 {flags} {name}\n"
        for to, length, flags in (
            (network, "40", "00000001"),
            (ZERO, "00", "00000003"),
            (address, "80", "80200001"),
            (ZERO, "00", "00200200"),
        )
    )

    assert list(ipv6_addresses_in(f"{address} 02 40 00 80     {name}\n")) == [IPv6Address("fd00:5:0:7::2")]
    assert list(ipv6_routes_in(routes)) == [IPv6Network("fd00:5:0:7::/64"), IPv6Network("::/0")]


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
def test_only_a_process_with_rights_counts_as_the_original(open_directory: Path) -> None:
    """If the name were sufficient, any user could prevent `flannelctl cleanup` from removing objects of the
    original.
    """
    program = Path(shutil.copy("/bin/sleep", open_directory / "flanneld"))

    with running(program, 65534):
        assert find_original() is None
        with running(program, 0) as pid:
            assert find_original() == pid
