"""The identity of a host, its clocks, its devices, and notifications of the service manager."""

import asyncio
import json
import logging
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from pyflannel.errors import TargetError
from pyflannel.kernel.host.machine import BoottimeClock, machine_digest, new_identity, notify, read_identity
from pyflannel.model.lease import Identity

MACHINE_ID = "0123456789abcdef0123456789abcdef\n"


@pytest.fixture
def machine_id(tmp_path: Path) -> Path:
    path = tmp_path / "machine-id"
    path.write_text(MACHINE_ID)
    return path


@pytest.fixture
def state_dir(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "flannel")


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "flannel")


def test_the_bytes_of_a_device_are_read_with_any_name_of_another_device(namespace) -> None:
    code = "from pyflannel.kernel.host.machine import device_bytes; print(device_bytes('flannel.1'))"
    for name in (b"\x1cflannel.1", b"\xff", "flannel.1\u2028".encode()):
        namespace.command("ip", "link", "add", os.fsdecode(name), "type", "bridge")

    without = namespace.command(sys.executable, "-c", code)
    namespace.ip("link add flannel.1 type bridge")

    assert without == "None\n"
    assert namespace.command(sys.executable, "-c", code) == "(0, 0)\n"


def test_an_identity_is_created_once_and_kept(state_dir: str, run_dir: str, machine_id: Path) -> None:
    first = read_identity(state_dir, run_dir, str(machine_id))

    assert len(first.owner) == 32
    assert read_identity(state_dir, run_dir, str(machine_id)) == first
    assert read_identity(state_dir + "2", run_dir + "2", str(machine_id)).owner != first.owner


def test_the_machine_id_itself_is_never_published(state_dir: str, run_dir: str, machine_id: Path) -> None:
    identity = read_identity(state_dir, run_dir, str(machine_id))

    assert len(identity.machine) == 16
    assert identity.machine not in MACHINE_ID
    assert MACHINE_ID.strip() not in (Path(state_dir) / "identity.json").read_text()


def test_a_cloned_disk_gets_a_new_identity(state_dir: str, run_dir: str, machine_id: Path, caplog) -> None:
    original = read_identity(state_dir, run_dir, str(machine_id))
    machine_id.write_text("ffffffffffffffffffffffffffffffff\n")

    clone = read_identity(state_dir, run_dir, str(machine_id))

    assert clone.owner != original.owner
    assert clone.machine != original.machine
    assert "identity of another machine" in caplog.text
    assert read_identity(state_dir, run_dir, str(machine_id)) == clone


@pytest.mark.parametrize("text", ["", "uninitialized\n"])
def test_a_machine_without_machine_id_is_not_treated_as_a_clone(
    state_dir: str, run_dir: str, machine_id: Path, text: str
) -> None:
    machine_id.write_text(text)
    nameless = read_identity(state_dir, run_dir, str(machine_id))
    machine_id.write_text(MACHINE_ID)

    named = read_identity(state_dir, run_dir, str(machine_id))

    assert nameless.machine == ""
    assert named == Identity(owner=nameless.owner, machine=machine_digest(str(machine_id)))
    machine_id.write_text("ffffffffffffffffffffffffffffffff\n")
    assert read_identity(state_dir, run_dir, str(machine_id)).owner != named.owner


def test_the_identity_on_the_device_is_used_without_a_file(
    state_dir: str, run_dir: str, machine_id: Path
) -> None:
    """A container may have no permanent directory. The host writes the identity to the file."""
    found = read_identity(state_dir, run_dir, str(machine_id), standing="a" * 32)

    assert found == Identity(owner="a" * 32, machine=machine_digest(str(machine_id)))
    assert read_identity(state_dir, run_dir, str(machine_id), standing="b" * 32) == found
    assert read_identity(state_dir + "2", run_dir, str(machine_id), standing="b" * 32) == found
    assert read_identity(state_dir, run_dir, str(machine_id), "node-7", standing="b" * 32).owner == "node-7"


def test_a_missing_machine_id_is_unknown(tmp_path: Path) -> None:
    assert machine_digest(str(tmp_path / "nothing")) == ""


def test_an_identity_given_by_a_flag_is_the_owner_and_is_not_saved(
    state_dir: str, run_dir: str, machine_id: Path
) -> None:
    identity = read_identity(state_dir, run_dir, str(machine_id), "node-7")

    assert identity == Identity(owner="node-7", machine=machine_digest(str(machine_id)))
    assert not Path(state_dir).exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"Owner": 7}', '{"Owner": "", "Machine": ""}', "\x00\xff", "[" * 100_000]
)
def test_a_damaged_identity_is_moved_and_reported(
    state_dir: str, run_dir: str, machine_id: Path, caplog, text: str
) -> None:
    read_identity(state_dir, run_dir, str(machine_id))
    path = Path(state_dir) / "identity.json"
    path.write_bytes(text.encode("latin-1"))

    with caplog.at_level(logging.WARNING):
        identity = read_identity(state_dir, run_dir, str(machine_id))

    assert json.loads(path.read_text())["Owner"] == identity.owner
    assert path.with_name("identity.json.corrupt").read_bytes() == text.encode("latin-1")
    assert "damaged" in caplog.text


def test_a_new_identity_replaces_the_old_identity(state_dir: str, run_dir: str, machine_id: Path) -> None:
    old = read_identity(state_dir, run_dir, str(machine_id))

    new = new_identity(state_dir, run_dir, str(machine_id))

    assert new.owner != old.owner
    assert read_identity(state_dir, run_dir, str(machine_id)) == new


def test_without_a_state_directory_the_run_directory_has_the_identity(
    state_dir: str, run_dir: str, machine_id: Path
) -> None:
    """The previous daemon of this boot and namespace wrote the identity. The caller holds the lock of the
    directory.
    """
    former = read_identity(state_dir, run_dir, str(machine_id))

    assert read_identity(state_dir + "2", run_dir, str(machine_id)) == former
    assert read_identity(state_dir + "2", run_dir + "2", str(machine_id)) == former


@pytest.mark.parametrize("key", ["Boot", "Namespace", "Machine"])
def test_the_run_directory_of_another_host_has_no_identity_for_this_host(
    state_dir: str, run_dir: str, machine_id: Path, key: str
) -> None:
    """The directory was copied from another boot, network namespace or machine."""
    former = read_identity(state_dir, run_dir, str(machine_id))
    path = Path(run_dir) / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "another"}) + "\n")

    assert read_identity(state_dir + "2", run_dir, str(machine_id)).owner != former.owner


def test_a_new_identity_is_used_without_a_state_directory_too(
    state_dir: str, run_dir: str, machine_id: Path
) -> None:
    read_identity(state_dir, run_dir, str(machine_id))

    new = new_identity(state_dir, run_dir, str(machine_id))

    assert read_identity(state_dir + "2", run_dir, str(machine_id)) == new


def test_an_unwritable_directory_is_reported(tmp_path: Path, run_dir: str, machine_id: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(TargetError, match=r"identity\.json: ENOTDIR") as raised:
        read_identity(str(tmp_path / "file" / "state"), run_dir, str(machine_id))

    assert "--node-id" in raised.value.hint


def test_the_clock_counts_from_boot_and_its_sleep_uses_the_same_clock() -> None:
    clock = BoottimeClock()
    before = clock.now()

    asyncio.run(clock.sleep(0.05))

    assert 0.05 <= clock.now() - before < 30
    assert abs(clock.now() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 30
    assert abs(clock.utc() - time.time()) < 30


@pytest.mark.parametrize("is_abstract", [False, True])
def test_the_service_manager_receives_the_notification(
    tmp_path: Path, monkeypatch, is_abstract: bool
) -> None:
    name = f"@{tmp_path}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", name)

        assert notify("READY=1\nSTATUS=packets can flow")
        assert manager.recv(100) == b"READY=1\nSTATUS=packets can flow"


@pytest.mark.parametrize("name", ["", "/nowhere/notify", "vsock:2:3"])
def test_without_a_service_manager_no_notification_is_sent(monkeypatch, name: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)

    assert not notify("READY=1")
