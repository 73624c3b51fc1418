"""The watchdog settings of the service manager, and the notifications to it."""

import os
import socket
from pathlib import Path

import pytest

from pyflannel.kernel.host.machine import notify, watchdog_s


@pytest.mark.parametrize(
    ("limit", "pid", "expected"),
    [
        ("30000000", str(os.getpid()), 30.0),
        ("500000", None, 0.5),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_of_another_process_is_ignored(
    monkeypatch: pytest.MonkeyPatch, limit: str | None, pid: str | None, expected: float | None
) -> None:
    for name, value in {"WATCHDOG_USEC": limit, "WATCHDOG_PID": pid}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)

    assert watchdog_s() == expected


def test_the_service_manager_receives_whole_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        assert notify("READY=1")

        assert manager.recv(100) == b"READY=1"


def test_a_missing_service_manager_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    assert not notify("READY=1")

    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify("READY=1")
