"""flannelctl config: checks, warnings, the difference to the stored config, the question on a terminal."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from pyflannel.programs.flannelctl import run

NETWORK = "10.100.0.0/16"
GOOD = '{"Network": "10.100.0.0/16"}'
UNKNOWN_KEY = '{"Network": "10.100.0.0/16", "Netwrok": "10.0.0.0/8"}'
UNKNOWN_BACKEND = '{"Network": "10.100.0.0/16", "Backend": {"Type": "vxlam"}}'

Printed = pytest.CaptureFixture[str]
Set = Callable[..., int]


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/leases.db"


@pytest.fixture
def stored(store: str, capfd: Printed) -> Callable[[], str]:
    """Return the config in the store."""

    def read() -> str:
        capfd.readouterr()
        run(["--store", store, "config", "get"])
        return capfd.readouterr().out.strip()

    return read


@pytest.fixture
def set_config(store: str) -> Set:
    return lambda *words: run(["--store", store, "config", "set", *words])


def validate(**backend: object) -> int:
    return run(["config", "validate", json.dumps({"Network": NETWORK, "Backend": backend})])


def test_a_key_without_effect_gives_a_warning(capfd: Printed) -> None:
    code = validate(Type="vxlan", VNI=7, Name="tunnel")

    printed = capfd.readouterr()
    assert code == 0
    assert json.loads(printed.out)["BackendType"] == "vxlan"
    assert printed.err.startswith(
        "flannelctl: warning: Backend.Name has no effect: the vxlan backend knows VNI"
    )


def test_warnings_are_in_the_json_document_too(capfd: Printed) -> None:
    assert run(["config", "validate", "--json", UNKNOWN_KEY]) == 0

    (warning,) = json.loads(capfd.readouterr().out)["Warnings"]
    assert warning.startswith("Netwrok has no effect")


def test_a_value_out_of_range_is_refused_with_the_range(capfd: Printed) -> None:
    code = validate(Type="vxlan", VNI=16777216)

    printed = capfd.readouterr()
    assert code == 2
    assert printed.out == ""
    assert "Backend.VNI is 16777216, not a whole number from 0 to 16777215" in printed.err


@pytest.mark.parametrize("verb", ["validate", "set"])
def test_an_empty_argument_is_reported_as_such(verb: str, capfd: Printed) -> None:
    assert run(["config", verb, ""]) == 2

    message, hint = capfd.readouterr().err.splitlines()
    assert message == "flannelctl: the network config is missing: the argument is empty"
    assert "Name a file" in hint


@pytest.mark.parametrize(("config", "named"), [(UNKNOWN_KEY, "Netwrok"), (UNKNOWN_BACKEND, "vxlam")])
def test_set_refuses_an_unknown_key_and_backend_unless_forced(
    config: str, named: str, set_config: Set, stored: Callable[[], str], capfd: Printed
) -> None:
    set_config(GOOD)
    capfd.readouterr()

    assert set_config(config) == 2
    assert named in capfd.readouterr().err
    assert stored() == GOOD
    assert set_config("--force", config) == 0
    assert stored() == config


def test_set_does_not_force_an_invalid_config(set_config: Set, stored: Callable[[], str]) -> None:
    set_config(GOOD)

    assert set_config("--force", '{"Network": "10.100.0.0/33"}') == 2
    assert stored() == GOOD


def test_set_shows_the_difference_to_the_stored_config(set_config: Set, capfd: Printed) -> None:
    set_config(GOOD)
    capfd.readouterr()

    set_config('{"Network": "10.100.0.0/16", "SubnetLen": 26}')

    assert capfd.readouterr().out.splitlines() == [
        "--- stored",
        "+++ new",
        "@@ -1,3 +1,4 @@",
        " {",
        '-  "Network": "10.100.0.0/16"',
        '+  "Network": "10.100.0.0/16",',
        '+  "SubnetLen": 26',
        " }",
        "wrote the network config: 10.100.0.0/16",
    ]


def test_a_dry_run_shows_the_difference_and_writes_nothing(
    set_config: Set, stored: Callable[[], str], capfd: Printed
) -> None:
    set_config(GOOD)
    capfd.readouterr()

    code = set_config("--dry-run", '{"Network": "10.101.0.0/16"}')

    lines = capfd.readouterr().out.splitlines()
    assert code == 0
    assert '+  "Network": "10.101.0.0/16"' in lines
    assert lines[-1] == "would write the network config: 10.101.0.0/16"
    assert stored() == GOOD


def test_a_dry_run_on_a_new_store_does_not_create_it(set_config: Set, tmp_path: Path, capfd: Printed) -> None:
    assert set_config("--dry-run", "--json", GOOD) == 0

    document = json.loads(capfd.readouterr().out)
    assert (document["Written"], document["Warnings"]) == (False, [])
    assert document["Difference"][:2] == ["--- /dev/null", "+++ new"]
    assert list(tmp_path.iterdir()) == []


class TestOnATerminal:
    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    @pytest.fixture
    def answer(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[str]]:
        """Set the answer of the user; return the list of the questions."""

        def set_answer(is_yes: bool) -> list[str]:
            questions: list[str] = []

            def confirm(text: str, **_: Any) -> bool:
                questions.append(text)
                if not is_yes:
                    raise click.Abort
                return True

            monkeypatch.setattr(click, "confirm", confirm)
            return questions

        return set_answer

    def test_set_writes_nothing_without_a_yes(
        self, set_config: Set, answer: Callable[[bool], list[str]], tmp_path: Path
    ) -> None:
        questions = answer(False)

        assert set_config(GOOD) != 0
        assert questions == ["Write this network config for all hosts?"]
        assert list(tmp_path.iterdir()) == []

    def test_set_writes_after_a_yes(
        self, set_config: Set, answer: Callable[[bool], list[str]], stored: Callable[[], str]
    ) -> None:
        answer(True)

        assert set_config(GOOD) == 0
        assert stored() == GOOD

    def test_set_does_not_ask_with_yes(self, set_config: Set, answer: Callable[[bool], list[str]]) -> None:
        questions = answer(False)

        assert set_config("--yes", GOOD) == 0
        assert questions == []
