"""Units of systemd: existing units, the unit of a process, and the start of a forwarder in a unit."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from pyflannel.processes import wireguard_go
from pyflannel.processes.systemd import (
    FORWARDER_TEMPLATE,
    NoUnitError,
    connect_to_new,
    has_unit,
    is_service,
    service_in,
    service_of,
)
from pyflannel.processes.wireguard_go import WireguardGo


def test_a_unit_exists_if_systemd_runs_and_has_its_file(tmp_path: Path) -> None:
    assert not has_unit("flanneld.service", tmp_path)
    directory = tmp_path / "usr/lib/systemd/system"
    directory.mkdir(parents=True)
    (directory / "flanneld.service").touch()
    assert not has_unit("flanneld.service", tmp_path)  # the package is installed, but systemd does not run

    (tmp_path / "run/systemd/system").mkdir(parents=True)

    assert has_unit("flanneld.service", tmp_path)
    assert not has_unit("docker.service", tmp_path)


@pytest.mark.parametrize("pid", [None, "1", ""])
def test_only_the_main_process_of_a_service_lets_systemd_start_forwarders(pid: str | None) -> None:
    """A shell of a service and its children inherit the variable."""
    environ = {} if pid is None else {"SYSTEMD_EXEC_PID": pid}

    assert not is_service(environ)
    assert is_service({"SYSTEMD_EXEC_PID": str(os.getpid())})


@pytest.mark.parametrize("is_bound", [False, True])
def test_a_socket_on_which_systemd_does_not_listen_is_an_error(tmp_path: Path, is_bound: bool) -> None:
    """Flanneld then starts the forwarder itself."""
    path = tmp_path / f"{FORWARDER_TEMPLATE}.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        if is_bound:
            bound.bind(str(path))

        with pytest.raises(NoUnitError, match=str(path)):
            connect_to_new(FORWARDER_TEMPLATE, tmp_path)


def test_flanneld_starts_wireguard_go_itself_if_the_unit_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the unit ended, it got the name of the device."""
    ours, unit = socket.socketpair()
    ours.setblocking(False)
    monkeypatch.setattr(wireguard_go, "connect_to_new", lambda _: ours)

    async def start() -> bool:
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(WireguardGo(tmp_path)._start_in_unit("flannel-wg"))
            await asyncio.sleep(0)
            assert unit.recv(100) == b"flannel-wg\n"
            unit.close()
        return starting.result()

    assert not asyncio.run(start())
    assert "so both stop together: flannel-wireguard@.service ended" in caplog.text


def test_a_test_run_and_a_missing_process_are_no_services() -> None:
    assert service_of(os.getpid()) is None
    assert service_of(2**22) is None  # larger than any process ID


@pytest.mark.parametrize(
    ("cgroups", "service"),
    [
        (b"0::/system.slice/flanneld.service\n", "flanneld.service"),
        (b"3:cpu:/x.service\n1:name=systemd:/system.slice/flanneld.service\n0::/\n", "flanneld.service"),
        (b"0::/user.slice/a\r0::/ssh.service\r/b\n", None),
        (b"0::/user.slice/\xff.service/a\n", None),
        (b"0::/system.slice/\xff.service\n", "\udcff.service"),
    ],
)
def test_the_unit_is_read_with_any_name_of_a_cgroup(cgroups: bytes, service: str | None) -> None:
    assert service_in(cgroups) == service
