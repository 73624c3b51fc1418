"""The files in /proc that contain names which users of the host choose."""

from ipaddress import IPv4Network

import pytest

from pyflannel.processes.found import inodes_bound_at, routes_in

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


@pytest.mark.parametrize("name", ["eth0", "a\x1cb", "\x1c", "\x1f\x1f", "a\x85b", "\u2028"])
def test_routes_are_read_with_any_name_of_the_link(name: str) -> None:
    """Without rights, a user can create a namespace with a link of such a name."""
    line = f"{name}\t0001030A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0" + " " * 20 + "\n"

    assert list(routes_in(HEAD + line)) == [IPv4Network("10.3.1.0/24")]


def test_routes_that_the_kernel_rejects_are_omitted() -> None:
    assert list(routes_in(f"{HEAD}*\t0000030A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0\n")) == []


@pytest.mark.parametrize("other", ["/run/a", "@abstract", "/tmp/a\x1c/run/x.sock", ""])
def test_only_a_socket_with_the_path_is_found(other: str) -> None:
    text = "".join(
        f"0000000000000000: 00000002 00000000 00010000 0001 01 {inode} {path}\n"
        for inode, path in ((7, other), (12345, "/run/x.sock"))
    )

    assert list(
        inodes_bound_at(f"Num RefCount Protocol Flags Type St Inode Path\n{text}", "/run/x.sock")
    ) == ["12345"]
