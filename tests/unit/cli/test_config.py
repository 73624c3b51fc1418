"""flannelctl config: checks, warnings, the difference to the stored config, the question on a terminal."""

import asyncio
import json
import os
import pty
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from pyflannel.assembly.stores import open_store
from pyflannel.model.store_record import Put
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


def test_a_dry_run_on_a_new_store_does_not_create_the_store(
    set_config: Set, tmp_path: Path, capfd: Printed
) -> None:
    assert set_config("--dry-run", "--json", GOOD) == 0

    document = read_document(["config", "set"], capfd.readouterr().out)
    assert (document["Written"], document["Warnings"], document["Effects"]) == (False, [], [])
    assert document["Difference"][:2] == ["--- /dev/null", "+++ new"]
    assert list(tmp_path.iterdir()) == []


def on_a_terminal(answer: bytes, *words: str) -> tuple[int, str]:
    """Run flannelctl on a new terminal. Return the exit code and the text on the terminal."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("flannelctl"), *words], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        os.write(master, answer)  # the terminal keeps the answer until flannelctl reads
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


class TestDifferenceAndHistory:
    """The stored config, a file, and the leases of running hosts."""

    LEASES: ClassVar = {
        "10.100.1.0-24": b'{"PublicIP":"10.0.0.1","Pyflannel":{"Owner":"5d0f","Host":"docker1","Port":8285}}',
        "10.100.2.0-24": b'{"PublicIP":"10.0.0.2","Pyflannel":{"Owner":"77d2","Host":"docker2","Port":9999}}',
        "10.200.3.0-24": b'{"PublicIP":"10.0.0.3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"'
        b'1a:71:ad:7e:3b:3f"}}',
        "10.100.4.0-24": b'{"PublicIP":"10.0.0.4","BackendType":"host-gw"}',
    }

    @pytest.fixture
    def network(self, store: str, set_config: Set, capfd: Printed) -> str:
        """A config of udp, three running hosts, and a reservation that no host has used."""
        assert set_config(GOOD) == 0

        async def put() -> None:
            opened = open_store(store)
            for name, value in self.LEASES.items():
                ttl_s = None if name.startswith("10.100.4") else 60
                await opened.write(Put(key=f"subnets/{name}", value=value, ttl_s=ttl_s, expected=0))
            await opened.close()

        asyncio.run(put())
        capfd.readouterr()
        return store

    def test_hosts_whose_lease_differs_are_named(self, network: str, capfd: Printed) -> None:
        assert run(["--store", network, "config", "diff", "--json"]) == 1

        found = read_document(["config", "diff"], capfd.readouterr().out)
        assert [(one["host_name"], one["differences"]) for one in found["hosts"]] == [
            ("docker2", ["its Port is 9999, not 8285"]),
            (None, ["the config does not admit its subnet 10.200.3.0/24", "its backend is vxlan, not udp"]),
        ]
        assert (found["ok"], found["difference"], found["this_host"], found["leases"]) == (False, [], None, 4)

    def test_a_file_is_compared_with_its_effects(self, network: str, capfd: Printed) -> None:
        new = '{"Network": "10.100.0.0/16", "Backend": {"Type": "vxlan"}}'

        assert run(["--store", network, "config", "diff", new]) == 1

        shown = capfd.readouterr().out
        assert '+    "Type": "vxlan"' in shown
        assert "effect: Hosts change the backend from " in shown
        assert "2 of 4 leases differ from the stored network config" in shown

    def test_without_a_difference_the_exit_code_is_0(
        self, store: str, set_config: Set, capfd: Printed
    ) -> None:
        set_config(GOOD)
        capfd.readouterr()

        assert run(["--store", store, "config", "diff", GOOD]) == 0

        assert capfd.readouterr().out.splitlines() == [
            "no difference to the stored network config",
            "0 of 0 leases differ from the stored network config",
        ]

    @pytest.mark.parametrize(("given", "code"), [("{", 2), ('{"Network": "x"}', 2), ("/missing", 2)])
    def test_an_invalid_file_is_refused(self, network: str, given: str, code: int) -> None:
        assert run(["--store", network, "config", "diff", given]) == code

    def test_without_a_stored_config_the_exit_code_is_3(self, store: str, set_config: Set) -> None:
        asyncio.run(_empty(store))

        assert run(["--store", store, "config", "diff"]) == 3

    def test_the_versions_of_the_config_are_listed(self, network: str, capfd: Printed) -> None:
        new = '{"Network": "10.100.0.0/16", "SubnetLen": 25}'
        assert run(["--store", network, "config", "set", new]) == 0
        capfd.readouterr()

        assert run(["--store", network, "config", "history"]) == 0
        shown = capfd.readouterr().out
        assert run(["--store", network, "config", "history", "--json"]) == 0

        found = read_document(["config", "history"], capfd.readouterr().out)
        assert [one["text"] for one in found["versions"]] == [GOOD, new]
        assert found["versions"][0]["not_after"] is not None
        assert '+  "SubnetLen": 25' in shown
        assert "The history is complete since the store was created, up to revision" in shown


async def _empty(url: str) -> None:
    opened = open_store(url)
    await opened.list("")
    await opened.close()
