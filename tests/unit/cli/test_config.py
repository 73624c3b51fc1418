"""flannelctl config: checks, warnings, the difference to the stored config, the question on a terminal."""

import json
import os
import pty
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pyflannel.programs.flannelctl import run
from testlab.documents import read_document

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

    (warning,) = read_document(["config", "validate"], capfd.readouterr().out)["Warnings"]
    assert warning.startswith("Netwrok has no effect")


@pytest.mark.parametrize("is_valid", [True, False])
def test_the_stored_config_is_a_document_with_its_computed_values(
    is_valid: bool, store: str, set_config: Set, capfd: Printed
) -> None:
    set_config("--force", '{"Network": "10.100.0.0/16", "FastPath": "off", "Backend": {"Type": "vxlan"}}')
    if not is_valid:
        with closing(sqlite3.connect(store.removeprefix("sqlite://"))) as database, database:
            database.execute("UPDATE record SET value = ?", (b"{}",))
    capfd.readouterr()

    assert run(["--store", store, "config", "get", "--json"]) == 0

    document = read_document(["config", "get"], capfd.readouterr().out)
    assert (document["config"] is not None, document["error"] is None) == (is_valid, is_valid)


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
    assert "effect: " not in "\n".join(lines)
    assert lines[-1] == "would write the network config: 10.101.0.0/16"
    assert stored() == GOOD


def test_the_effects_on_running_hosts_are_shown(set_config: Set, capfd: Printed) -> None:
    set_config(GOOD)
    capfd.readouterr()

    assert set_config("--dry-run", '{"Network": "10.100.0.0/16", "Backend": {"Type": "vxlan"}}') == 0

    effects = [line for line in capfd.readouterr().out.splitlines() if line.startswith("effect: ")]
    assert effects[0].startswith("effect: Hosts change the backend from udp to vxlan with VNI 1.")
    assert len(effects) == 2


def test_a_dry_run_on_a_new_store_does_not_create_it(set_config: Set, tmp_path: Path, capfd: Printed) -> None:
    assert set_config("--dry-run", "--json", GOOD) == 0

    document = read_document(["config", "set"], capfd.readouterr().out)
    assert (document["Written"], document["Warnings"], document["Effects"]) == (False, [], [])
    assert document["Difference"][:2] == ["--- /dev/null", "+++ new"]
    assert list(tmp_path.iterdir()) == []


def on_a_terminal(answer: bytes, *words: str) -> tuple[int, str]:
    """Run flannelctl on a terminal of its own; return the exit code and the text on the terminal."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("flannelctl"), *words], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        os.write(master, answer)  # the terminal keeps it until flannelctl reads it
        text = b""
        while chunk := _read(master):
            text += chunk
        return process.wait(20), text.decode()
    finally:
        os.close(master)


def _read(master: int) -> bytes:
    try:
        return os.read(master, 4096)
    except OSError:  # EIO: the last process closed the terminal
        return b""


@pytest.mark.parametrize(("answer", "is_written"), [(b"y\n", True), (b"n\n", False), (b"\n", False)])
def test_on_a_terminal_set_writes_only_after_a_yes(answer: bytes, is_written: bool, tmp_path: Path) -> None:
    file = tmp_path / "leases.db"

    code, text = on_a_terminal(answer, "--store", f"sqlite://{file}", "config", "set", GOOD)

    assert "Write this network config for all hosts? [y/N]" in text
    assert (code, file.exists()) == (0 if is_written else 1, is_written)
    assert ("nothing was changed" in text) != is_written


def test_set_does_not_ask_with_yes(tmp_path: Path) -> None:
    code, text = on_a_terminal(b"", "--store", f"sqlite://{tmp_path}/l.db", "config", "set", "--yes", GOOD)

    assert (code, "[y/N]" in text) == (0, False)
