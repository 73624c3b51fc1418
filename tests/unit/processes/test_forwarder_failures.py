"""A system error of the forwarder target is a refusal of the operation and does not end the daemon."""

import asyncio
import errno
import os
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from msgspec.structs import replace

from pyflannel.model.forwarder import Forwarder
from pyflannel.model.state import Add, Operation, Refusal, Remove
from pyflannel.processes import forwarder
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.forwarder_client import RefusedError
from pyflannel.processes.found import find_forwarders
from pyflannel.wire.forwarder_control import SOCKET_NAME

FORWARDER = Forwarder(
    link="flannel0",
    tunnel_address=IPv4Address("10.100.15.0"),
    subnet=IPv4Network("10.100.15.0/24"),
    listen_address=IPv4Address("127.0.0.1"),
    port=0,
    mtu=1472,
)


def apply(run_dir: Path, *operations: Operation) -> Sequence[Refusal]:
    async def run() -> Sequence[Refusal]:
        return await ForwarderTarget(run_dir).apply(operations)

    return asyncio.run(run())


@pytest.mark.parametrize("operation", [Add(FORWARDER), Remove(FORWARDER)])
def test_a_directory_at_the_path_of_the_socket_is_a_refusal(tmp_path: Path, operation: Operation) -> None:
    """The cause names the path, so that the operator can remove it."""
    (tmp_path / SOCKET_NAME).mkdir()

    (refusal,) = apply(tmp_path, operation)

    assert refusal.operation == operation
    assert str(tmp_path / SOCKET_NAME) in refusal.cause
    assert "irectory" in refusal.cause
    assert find_forwarders(tmp_path) == []


def test_a_start_that_fails_leaves_no_socket(tmp_path: Path) -> None:
    """192.0.2.1 is no address of this host (RFC 5737)."""
    (refusal,) = apply(tmp_path, Add(replace(FORWARDER, listen_address=IPv4Address("192.0.2.1"))))

    assert refusal.cause == "the host has no address 192.0.2.1 to listen on"
    assert list(tmp_path.iterdir()) == []


def test_a_forwarder_that_cannot_be_watched_is_refused_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon has no free descriptor to watch the end of the process."""

    def none_left(pid: int, flags: int = 0) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", none_left)

    (refusal,) = apply(tmp_path, Add(FORWARDER))

    assert "EMFILE" in refusal.cause
    assert find_forwarders(tmp_path) == []
    assert not (tmp_path / SOCKET_NAME).exists()


def test_a_device_that_cannot_be_opened_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(link: str) -> int:
        raise OSError(errno.EMFILE, f"device {link}: EMFILE: Too many open files")

    monkeypatch.setattr(forwarder, "attach_device", none_left)
    try:
        (refusal,) = apply(tmp_path, Add(FORWARDER))
    finally:
        apply(tmp_path, Remove(FORWARDER))

    assert refusal.cause == "device flannel0: EMFILE: Too many open files"
    assert "LimitNOFILE=" in refusal.hint
    assert not refusal.is_permanent


@pytest.mark.parametrize("code", [0, errno.EMFILE, errno.EINVAL])
def test_each_refusal_of_the_forwarder_has_a_remedy(code: int) -> None:
    assert RefusedError("the descriptor of the device is missing", errno=code).hint
