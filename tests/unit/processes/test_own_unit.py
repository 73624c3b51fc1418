"""Units of systemd: existing units, the scope of a process, and its refusal."""

import os
from pathlib import Path

import pytest

from pyflannel.processes.systemd import has_unit, own_unit, service_of, was_refused


def words(environ: dict[str, str]) -> list[str]:
    return own_unit("flannel-forwarder", "Forwarder of flannel0", environ)


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
def test_only_the_main_process_of_a_service_asks_for_a_scope(pid: str | None) -> None:
    """A shell of a service and its children inherit the variable."""
    environ = {} if pid is None else {"SYSTEMD_EXEC_PID": pid}

    assert words(environ) == []


def test_two_forwarders_get_different_scopes(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = os.path.join(tmp_path, "systemd-run")
    os.close(os.open(program, os.O_CREAT, 0o755))
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    environ = {"SYSTEMD_EXEC_PID": str(os.getpid())}

    first, second = words(environ), words(environ)

    assert first[:2] == ["systemd-run", "--scope"]
    assert first[-1] == "--"
    assert first != second


def test_without_systemd_run_no_scope_is_requested(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))

    assert words({"SYSTEMD_EXEC_PID": str(os.getpid())}) == []


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (1, "Failed to start transient scope unit: Connection timed out\n", True),
        (1, "another forwarder has this run directory\n", False),
        (98, "Failed to think of anything\n", False),
    ],
)
def test_a_refusal_of_systemd_is_distinguished_from_an_end_of_the_forwarder(
    status: int, said: str, expected: bool
) -> None:
    assert was_refused(status, said) == expected


def test_a_test_run_and_a_missing_process_are_no_services() -> None:
    assert service_of(os.getpid()) is None
    assert service_of(2**22) is None  # larger than any process ID
