"""flannelctl cleanup asks on a terminal before it removes anything."""

from pathlib import Path
from typing import Any

import click
import pytest

from pyflannel.commands.cleanup import CleanupReport
from pyflannel.programs.flannelctl import run
from testlab.documents import read_document


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the function of cleanup. Return the list of its calls."""
    calls: list[str] = []

    def double(name: str) -> Any:
        async def call(*_: Any) -> CleanupReport:
            calls.append(name)
            return CleanupReport(removed=["link flannel0"])

        return call

    monkeypatch.setattr("pyflannel.cli.cleanup.clean_up", double("clean up"))
    monkeypatch.setattr("pyflannel.cli.cleanup.preview", double("preview"))
    return calls


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    places = ["--run-dir", tmp_path, "--state-dir", tmp_path, "--subnet-file", tmp_path / "subnet.env"]
    return ["cleanup", *map(str, places)]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyflannel.cli.cleanup.is_interactive", lambda: True)


def answer(monkeypatch: pytest.MonkeyPatch, *, is_yes: bool) -> None:
    def confirm(*_: Any, **__: Any) -> bool:
        return is_yes

    monkeypatch.setattr(click, "confirm", confirm)


@pytest.mark.parametrize("option", [["--dry-run"], []])
@pytest.mark.usefixtures("performed")
def test_the_report_of_a_cleanup_is_a_json_document(
    option: list[str], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, *option, "--json"]) == 0

    document = read_document(["cleanup"], capfd.readouterr().out)
    assert document == {"removed": ["link flannel0"], "kept": [], "problems": []}


@pytest.mark.usefixtures("terminal", "performed")
def test_a_refused_question_is_an_error_document(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, is_yes=False)

    assert run([*words, "--json"]) == 1

    error = read_document(["cleanup"], capfd.readouterr().out)["error"]
    assert error == {"message": "nothing was changed", "hint": "", "code": 1}


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("is_yes", "calls"), [(True, ["preview", "clean up"]), (False, ["preview"])])
def test_on_a_terminal_cleanup_lists_the_objects_and_asks(
    is_yes: bool,
    calls: list[str],
    words: list[str],
    performed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    answer(monkeypatch, is_yes=is_yes)

    code = run(words)

    assert code == (0 if is_yes else 1)
    assert performed == calls
    assert "will remove link flannel0\n" in capfd.readouterr().err


@pytest.mark.usefixtures("terminal")
def test_with_yes_cleanup_does_not_ask(
    words: list[str], performed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, is_yes=False)

    assert run([*words, "--yes"]) == 0
    assert performed == ["clean up"]


def test_in_a_script_cleanup_does_not_ask(words: list[str], performed: list[str]) -> None:
    assert run(words) == 0
    assert performed == ["clean up"]


def test_a_dry_run_removes_nothing(
    words: list[str], performed: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--dry-run"]) == 0

    assert performed == ["preview"]
    assert capfd.readouterr().out == "would remove link flannel0\n"
