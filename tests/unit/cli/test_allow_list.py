"""flannelctl allow-list creates the key of an operator, and signs, publishes and prints the list."""

import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pyflannel.programs.flannelctl import run
from testlab.documents import read_document

A, B = "ab" * 32, "cd" * 32

Printed = pytest.CaptureFixture[str]
Call = Callable[..., int]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Printed) -> Call:
    """Run `flannelctl allow-list` on a store, in the directory with the key and the list of an operator."""
    monkeypatch.chdir(tmp_path)
    store = f"sqlite://{tmp_path}/leases.db"
    run(["--store", store, "config", "set", '{"Network": "10.100.0.0/16"}'])
    Path("keys").write_text(f"{A} docker1\n")
    run(["allow-list", "new-key", "op.json"])
    capfd.readouterr()
    return lambda *words: run(["--store", store, "allow-list", *words])


def test_the_key_of_an_operator_is_private_and_stays(call: Call, capfd: Printed) -> None:
    before = Path("op.json").read_text()
    call("new-key", "op.json")
    public = capfd.readouterr().out.strip()

    assert stat.S_IMODE(Path("op.json").stat().st_mode) == 0o600
    assert Path("op.json").read_text() == before
    run(["allow-list", "new-key", "--json", "op.json"])
    document = read_document(["allow-list", "new-key"], capfd.readouterr().out)
    assert document == {"file": "op.json", "operator": public, "counter": None}


def test_a_list_is_signed_published_and_printed(call: Call, capfd: Printed) -> None:
    assert call("sign", "keys", "--key", "op.json") == 0
    assert capfd.readouterr().out == "signed 1 keys with counter 1: keys.signed\n"

    assert call("publish", "keys.signed", "--dry-run") == 0
    assert capfd.readouterr().out.splitlines() == [
        "--- /dev/null",
        "+++ new, counter 1",
        "@@ -0,0 +1 @@",
        f"+{A} docker1",
        "would write the allow-list with counter 1",
    ]
    assert call("get") == 3
    capfd.readouterr()

    assert call("publish", "keys.signed") == 0
    assert capfd.readouterr().out.endswith("wrote the allow-list with counter 1\n")
    assert call("get") == 0
    assert capfd.readouterr().out.endswith(f"\n{A} docker1\n")


def test_a_second_list_has_the_next_counter_and_shows_its_difference(call: Call, capfd: Printed) -> None:
    call("sign", "keys", "--key", "op.json")
    call("publish", "keys.signed")
    Path("keys").write_text(f"{A} docker1\n{B} docker2\n")
    capfd.readouterr()

    assert call("sign", "--json", "keys", "--key", "op.json") == 0
    assert read_document(["allow-list", "sign"], capfd.readouterr().out)["counter"] == 2
    assert call("publish", "keys.signed", "--json") == 0
    document = read_document(["allow-list", "publish"], capfd.readouterr().out)
    assert document["written"]
    assert document["difference"][-1] == f"+{B} docker2"
    assert call("get", "--json") == 0
    assert read_document(["allow-list", "get"], capfd.readouterr().out)["text"].count("\n") == 2


def test_an_old_list_is_not_published(call: Call, capfd: Printed) -> None:
    call("sign", "keys", "--key", "op.json", "--counter=7")
    call("publish", "keys.signed")
    capfd.readouterr()
    Path("keys").write_text(f"{B} docker2\n")
    call("sign", "keys", "--key", "op.json", "--counter=7")

    assert call("publish", "keys.signed") == 2
    printed = capfd.readouterr().err
    assert "keys.signed has the counter 7, but the stored list has the counter 7" in printed
    assert "Sign the list again with --counter=8." in printed


def test_a_list_for_another_prefix_is_not_published(call: Call, capfd: Printed) -> None:
    run(["--store", "etcd://192.0.2.1/blue", "allow-list", "sign", "keys", "--key", "op.json"])

    assert call("publish", "keys.signed") == 2
    assert "the signature does not match the key and the prefix (none)" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["", "short\n"])
def test_a_broken_list_is_not_signed(text: str, call: Call, capfd: Printed) -> None:
    Path("keys").write_text(text)

    assert call("sign", "keys", "--key", "op.json") == 2
    assert capfd.readouterr().err.startswith("flannelctl: keys: ")
    assert not Path("keys.signed").exists()


def test_signing_does_not_create_a_missing_key(call: Call, capfd: Printed) -> None:
    assert call("sign", "keys", "--key", "other.json") == 2
    assert "other.json does not exist" in capfd.readouterr().err
    assert not Path("other.json").exists()


@pytest.mark.parametrize("value", [b"rubbish", b"\xff"])
def test_a_damaged_list_in_the_store_is_an_error_and_can_be_replaced(
    value: bytes, call: Call, capfd: Printed, tmp_path: Path
) -> None:
    call("sign", "keys", "--key", "op.json")
    call("publish", "keys.signed")
    with closing(sqlite3.connect(tmp_path / "leases.db")) as database, database:
        database.execute("UPDATE record SET value = ? WHERE key = 'allow-list'", (value,))
    capfd.readouterr()

    assert call("get") == 2
    assert "the stored list: it is not a signed allow-list" in capfd.readouterr().err
    assert call("publish", "keys.signed") == 0
