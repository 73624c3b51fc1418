"""The command line of flannelctl: verbs, shared options, errors."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pyflannel import VERSION
from pyflannel.errors import NotReadyError
from pyflannel.programs.flannelctl import COMMANDS, LazyGroup, flannelctl, run
from testlab.documents import read_document

Printed = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", [*COMMANDS, "pins", "help", "version"])
def test_each_command_is_found_in_its_module(name: str) -> None:
    """A command is imported only when it runs, so no other test notices a renamed module."""
    group = LazyGroup()
    group.add_command(click.Command("help"))
    group.add_command(click.Command("version"))

    command = group.get_command(click.Context(group), name)

    assert command is not None
    assert command.name == name


def test_without_a_verb_flannelctl_prints_its_help(capfd: Printed) -> None:
    assert run([]) == 0
    alone = capfd.readouterr()
    assert run(["help"]) == 0
    asked = capfd.readouterr()

    assert alone == asked
    assert alone.out.startswith("Usage: flannelctl [OPTIONS] [COMMAND]")
    assert "\n    2  incorrect use, or an invalid network config\n" in alone.out
    assert "\n  pins" not in alone.out


@pytest.mark.parametrize("group", ["config", "lab"])
def test_a_group_without_a_verb_prints_its_help(group: str, capfd: Printed) -> None:
    assert run([group]) == 0

    assert capfd.readouterr().out.startswith(f"Usage: flannelctl {group} ")


def test_help_describes_a_command_of_any_depth(capfd: Printed) -> None:
    assert run(["help", "config", "set"]) == 0

    assert capfd.readouterr().out.startswith("Usage: flannelctl config set ")


def test_version_is_a_verb_too(capfd: Printed) -> None:
    assert run(["version"]) == 0
    assert capfd.readouterr().out == f"flannelctl {VERSION}\n"
    assert run(["version", "--json"]) == 0
    assert read_document(["version"], capfd.readouterr().out) == {"version": VERSION}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stauts"], "unknown command 'stauts'. Did you mean 'status'?"),
        (["config", "sett"], "unknown command 'config sett'. Did you mean 'set'?"),
        (["help", "leasse"], "unknown command 'leasse'. Did you mean 'leases'?"),
        (["xyzzy"], "unknown command 'xyzzy'."),
    ],
)
def test_an_unknown_verb_is_answered_with_a_similar_verb(
    words: list[str], message: str, capfd: Printed
) -> None:
    assert run(words) == 2

    assert capfd.readouterr().err.splitlines()[0] == f"flannelctl: {message}"


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_store_may_be_named_before_and_after_the_verb(place: str, tmp_path: Path, capfd: Printed) -> None:
    url = f"sqlite://{tmp_path}/leases.db"
    assert run(["--store", url, "config", "set", '{"Network": "10.1.0.0/16"}']) == 0
    capfd.readouterr()

    code = run(["--store", url, "config", "get"] if place == "before" else ["config", "get", "--store", url])

    assert (code, capfd.readouterr().out) == (0, '{"Network": "10.1.0.0/16"}\n')


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_verb_reports_an_option_that_it_ignores(place: str, tmp_path: Path, capfd: Printed) -> None:
    option = ["--store", f"sqlite://{tmp_path}/leases.db"]
    verb = ["peers", "--run-dir", str(tmp_path)]

    run([*option, *verb] if place == "before" else [*verb, *option])

    error = capfd.readouterr().err
    assert error.startswith("flannelctl: warning: --store has no effect on 'flannelctl peers'\n")


def test_the_socket_has_no_effect_beside_a_store(tmp_path: Path, capfd: Printed) -> None:
    run(["leases", "--socket", "/nowhere", "--store", f"sqlite://{tmp_path}/leases.db"])

    assert "--socket has no effect, because --store is given" in capfd.readouterr().err


@pytest.mark.parametrize("verb", [["leases"], ["config", "get"], ["config", "set", "--dry-run", "{}"]])
def test_reading_a_store_that_does_not_exist_creates_no_file(
    verb: list[str], tmp_path: Path, capfd: Printed
) -> None:
    code = run(["--store", f"sqlite://{tmp_path}/typo/leases.db", *verb])

    assert code in (2, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_store_is_reported_with_its_path(tmp_path: Path, capfd: Printed) -> None:
    run(["--store", f"sqlite://{tmp_path}/typo.db", "leases"])

    message, hint = capfd.readouterr().err.splitlines()
    assert message == f"flannelctl: the store sqlite://{tmp_path}/typo.db does not exist"
    assert "Correct the path" in hint


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--json", "nonsense"], 2),
        (["leases", "--json", "--nonsense"], 2),
        (["config", "validate", "--json", "{}"], 2),
        (["peers", "--json", "--socket", "/nowhere/flanneld.sock"], 3),
    ],
)
def test_with_json_an_error_is_a_document(words: list[str], code: int, capfd: Printed) -> None:
    assert run(words) == code

    printed = capfd.readouterr()
    error = read_document(words, printed.out)["error"]
    assert error["code"] == code
    assert error["message"] in printed.err


@pytest.mark.parametrize("words", [["help"], ["lab", "down", "--name", "no-such-lab"]])
def test_a_command_without_a_document_says_that_json_has_no_effect(words: list[str], capfd: Printed) -> None:
    run(["--json", *words])

    assert f"warning: --json has no effect on 'flannelctl {' '.join(words[:2])}'" in capfd.readouterr().err


def test_an_interrupt_is_an_error_document(capfd: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise click.Abort

    monkeypatch.setattr("pyflannel.programs.flannelctl.flannelctl.main", interrupt)

    assert run(["status", "--json"]) == 130
    error = read_document(["status"], capfd.readouterr().out)["error"]
    assert (error["message"], error["code"]) == ("interrupted", 130)


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (NotReadyError("flanneld is starting", hint="Try again."), "flanneld is starting\n  Try again.", 3),
        (
            ZeroDivisionError("division"),
            "ZeroDivisionError: division\n  This is a defect: set FLANNELCTL_TRACEBACK=1",
            1,
        ),
    ],
)
def test_an_error_of_concurrent_work_is_named(
    error: Exception, text: str, code: int, capfd: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("", [error])])

    monkeypatch.setattr("pyflannel.cli.status.places_of", fail)

    assert run(["doctor"]) == code
    assert text in capfd.readouterr().err


def test_without_rights_the_remedy_is_another_user(capfd: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: click.Context) -> None:
        raise PermissionError(13, "Permission denied", "/run/flannel/.bpf")

    monkeypatch.setattr(flannelctl.commands["version"], "invoke", refuse)
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    assert run(["version"]) == 1
    assert capfd.readouterr().err == (
        "flannelctl: no permission to use /run/flannel/.bpf\n  Run flannelctl as root.\n"
    )


def test_a_command_in_the_lab_has_its_own_json_option(capfd: Printed) -> None:
    assert run(["lab", "exec", "--name", "no-such-lab", "docker1", "flannelctl", "status", "--json"]) != 0

    assert capfd.readouterr().out == ""


def test_a_status_without_a_daemon_is_one_document_without_a_version(tmp_path: Path, capfd: Printed) -> None:
    places = ["--run-dir", tmp_path, "--state-dir", tmp_path, "--subnet-file", tmp_path / "subnet.env"]

    code = run(["status", "--json", *map(str, places)])

    printed = capfd.readouterr()
    document = read_document(["status"], printed.out)
    assert code == 3
    assert (document["version"], document["is_live"]) == (None, False)
    assert "flanneld does not respond" in printed.err


def test_a_status_without_a_daemon_claims_no_version(tmp_path: Path, capfd: Printed) -> None:
    places = ["--run-dir", tmp_path, "--state-dir", tmp_path, "--subnet-file", tmp_path / "subnet.env"]

    run(["status", *map(str, places)])

    first, *_ = capfd.readouterr().out.splitlines()
    assert first == "flanneld  does not respond; the facts below are from its files"


def test_the_list_of_labs_is_one_object(capfd: Printed) -> None:
    assert run(["lab", "list", "--json"]) == 0

    assert isinstance(read_document(["lab", "list"], capfd.readouterr().out)["labs"], list)


def test_output_to_a_closed_pipe_causes_no_error_text() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pyflannel.programs.flannelctl", "--help"]

    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)

    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_disk_is_not_reported_as_a_defect() -> None:
    command = [sys.executable, "-m", "pyflannel.programs.flannelctl", "--help"]
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "flannelctl: the output cannot be written: no space left on device",
        "  Delete files, or write the output to another file system.",
    ]
