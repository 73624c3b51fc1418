"""Completion of command lines with Tab."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from pyflannel.programs.flannelctl import flannelctl
from testlab.control_socket import serving_leases

DEPLOY = Path(__file__).parents[3] / "deploy/completion"

SCRIPT = """
compopt() { :; }
source "$1"
COMP_WORDS=("${@:3}") COMP_CWORD=$(($# - 3))
"$2" "$3"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed_in_bash(program: str, function: str, *words: str) -> list[str]:
    """Return the completions of the last word."""
    script = DEPLOY / f"{program}.bash"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    argv = ["bash", "-c", SCRIPT, "bash", script, function, program, *words]
    found = subprocess.run(argv, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True)
    assert found.stderr == ""
    return found.stdout.split()


def completed(*words: str) -> list[str]:
    """Return the completions that flannelctl prints for a shell. No shell runs."""
    *before, incomplete = words
    shell = ShellComplete(flannelctl, {}, "flannelctl", "_FLANNELCTL_COMPLETE")
    return [item.value for item in shell.get_completions(before, incomplete)]


@pytest.mark.parametrize(("word", "flags"), [("--etcd-en", ["--etcd-endpoints="]), ("--no-such", [])])
def test_bash_completes_flags_of_flanneld(word: str, flags: list[str]) -> None:
    assert completed_in_bash("flanneld", "_flanneld", word) == flags


def test_bash_completes_commands_and_host_names(tmp_path: Path) -> None:
    with serving_leases(tmp_path, "docker1", "web-7"):
        words = ["leases", "--run-dir", str(tmp_path), "do"]

        assert completed_in_bash("flannelctl", "_flannelctl_completion", *words) == ["docker1"]
    assert completed_in_bash("flannelctl", "_flannelctl_completion", "stat") == ["status"]
    assert completed_in_bash("flannelctl", "_flannelctl_completion", *words) == []


@pytest.mark.parametrize("verb", ["leases", "peers"])
def test_host_names_come_from_the_daemon(verb: str, tmp_path: Path) -> None:
    with serving_leases(tmp_path, "docker2", "docker1", "docker1", "web-7", None) as path:
        assert completed(verb, "--run-dir", str(tmp_path), "") == ["docker1", "docker2", "web-7"]
        assert completed("--socket", str(path), verb, "do") == ["docker1", "docker2"]
        assert completed(verb, "--socket", str(path), "docker2", "w") == ["web-7"]


def test_without_a_daemon_no_host_name_is_completed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert completed("leases", "--run-dir", str(tmp_path), "") == []
    assert capfd.readouterr() == ("", "")


def test_a_daemon_that_hangs_delays_the_completion_only_briefly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "flanneld.sock"))
        listener.listen()
        began = time.monotonic()

        assert completed("leases", "--run-dir", str(tmp_path), "") == []
    assert 0.3 <= time.monotonic() - began < 3
    assert capfd.readouterr() == ("", "")


def test_names_and_hosts_of_labs_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("demo", "tutorial", "Not-A-Lab"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("pyflannel.lab.lab_directory.ROOT", tmp_path)
    hosts = {"demo": {"docker1": 1, "docker2": 2, "router": 3}, "tutorial": {"docker4": 4}}
    monkeypatch.setattr("pyflannel.lab.lab_directory.first_processes", lambda path: hosts[path.name])

    assert completed("lab", "down", "--name", "") == ["demo", "tutorial"]
    assert completed("lab", "exec", "do") == ["docker1", "docker2"]
    assert completed("lab", "exec", "--name", "tutorial", "") == ["docker4"]
    assert completed("lab", "exec", "--name", "../..", "") == []


def test_options_and_the_command_of_help_are_completed() -> None:
    assert completed("leases", "--w") == ["--wide"]
    assert completed("help", "doc") == ["doctor"]
