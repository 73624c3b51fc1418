"""The archive of bugreport contains the parts that were ready, and no planted secret."""

import asyncio
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.commands import bug_report
from pyflannel.commands.bug_report import BugReport, report_bug
from pyflannel.errors import FlannelError

PLANTED = {
    "environment": "plantedInEnvironment",
    "flag": "plantedInFlag",
    "config": "plantedInConfig",
    "url": "plantedInUrl",
    "password file": "planted in a password file",
    "WireGuard key": "cGxhbnRlZEluV2lyZWd1YXJkS2V5",
    "lease key": "0abc1def0abc1def",
}
_DAEMON = """
import os, sys
with open(sys.argv[1], "w") as lock:
    lock.write(f"{os.getpid()} flanneld")
    lock.flush()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """The files of a host, whose log quotes each secret without a name."""
    made = Places(run_dir=tmp_path / "run", state_dir=tmp_path / "state", subnet_file=tmp_path / "subnet.env")
    made.run_dir.mkdir()
    made.state_dir.mkdir()
    made.subnet_file.write_text("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\n")
    (made.run_dir / "forwarder.log").write_text(f"quoted: {'; '.join(PLANTED.values())}\nthe last line\n")
    made.wireguard_key.write_text(PLANTED["WireGuard key"] + "\n")
    made.lease_key.write_text(json.dumps({"Owner": "o", "Private": PLANTED["lease key"], "Public": "aa"}))
    (tmp_path / "password").write_text(PLANTED["password file"] + "\n")
    backend = {"Type": "wireguard", "PSK": PLANTED["config"]}
    config = json.dumps({"Network": "10.5.0.0/16", "Backend": backend})
    made.last_known.write_text(json.dumps({"Config": config}))
    return made


def report(
    places: Places, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[BugReport, dict[str, str]]:
    """Return the document, and the texts of the archive by their names."""
    commands = {
        "kernel/echo.txt": ("echo", f"http://root:{PLANTED['url']}@10.0.0.1 and {PLANTED['config']}"),
        "kernel/none.txt": ("no-such-program",),
        "kernel/slow.txt": ("sleep", "60"),
    }
    monkeypatch.setattr(bug_report, "_COMMANDS", commands)
    environ = {
        "FLANNELD_ETCD_PASSWORD": PLANTED["environment"],
        "FLANNELD_ETCD_PASSWORD_FILE": str(places.state_dir.parent / "password"),
    }
    lock = places.run_dir / "flanneld.lock"
    words = [sys.executable, "-c", _DAEMON, str(lock), f"--etcd-password={PLANTED['flag']}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        found = asyncio.run(report_bug(places, archive, "host", environ, 2.0))
        daemon.kill()
    with tarfile.open(archive) as tar:
        files = {name: tar.extractfile(name) for name in tar.getnames()}
        texts = {name: file.read().decode() for name, file in files.items() if file is not None}
    return found, {name.removeprefix("host/"): text for name, text in texts.items()}


def test_no_planted_secret_is_in_the_archive(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "report.tar.gz"

    found, texts = report(places, archive, monkeypatch)

    whole = "\n".join(texts.values())
    assert [name for name, secret in PLANTED.items() if secret in whole] == []
    assert texts["log/forwarder.log"].endswith("the last line\n")
    assert "10.5.0.0/16" in texts["files/last-known.json"]
    assert "--etcd-password=(removed)" in texts["files/daemon.txt"]
    assert "wgkey" in texts["files/directories.txt"]
    assert found.removed >= len(PLANTED)
    assert set(found.parts) == set(texts)
    assert archive.stat().st_mode & 0o777 == 0o600


def test_missing_parts_are_named(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, texts = report(places, tmp_path / "report.tar.gz", monkeypatch)

    reasons = {one.name: one.reason for one in found.missing}
    assert reasons["kernel/slow.txt"] == "not complete within 2.0 s"
    assert reasons["kernel/none.txt"] == "no-such-program is not installed"
    assert reasons["events.json"].startswith("flanneld does not respond at ")
    assert "kernel/none.txt: no-such-program is not installed" in texts["missing.txt"]
    assert json.loads(texts["status.json"])["is_live"] is False


def test_a_defect_in_one_part_leaves_the_other_parts(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def examine(_: Places, left_s: float) -> None:
        raise ZeroDivisionError("a defect of the checks")

    monkeypatch.setattr(bug_report, "examine", examine)

    found, texts = report(places, tmp_path / "report.tar.gz", monkeypatch)

    reasons = {one.name: one.reason for one in found.missing}
    assert reasons["doctor.json"].startswith("a defect of pyflannel: Traceback (most recent call last):\n")
    assert reasons["doctor.json"].endswith("ZeroDivisionError: a defect of the checks")
    assert json.loads(texts["status.json"])["is_live"] is False


def test_an_existing_file_is_not_overwritten(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "report.tar.gz"
    archive.write_text("mine")

    with pytest.raises(FlannelError, match="cannot be written: EEXIST"):
        report(places, archive, monkeypatch)

    assert archive.read_text() == "mine"


def test_no_link_in_the_directories_of_the_daemon_is_followed(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directories of a daemon may belong to the user flanneld, and root collects the parts."""
    private = tmp_path / "shadow"
    private.write_text("root:$6$hash\n")
    (places.run_dir / "linked.log").symlink_to(private)
    places.docker.symlink_to(private)
    os.mkfifo(places.run_dir / "fifo.log")

    found, texts = report(places, tmp_path / "report.tar.gz", monkeypatch)

    assert "$6$hash" not in "\n".join(texts.values())
    reasons = {one.name: one.reason for one in found.missing}
    assert reasons["log/linked.log"].startswith("ELOOP: ")
    assert reasons["files/docker-networks.json"].startswith("ELOOP: ")
    assert reasons["log/fifo.log"].endswith("fifo.log is not a regular file")


def test_only_the_end_of_a_long_file_is_read(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (places.run_dir / "long.log").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"the last line\n")

    _, texts = report(places, tmp_path / "report.tar.gz", monkeypatch)

    assert texts["log/long.log"].startswith("… ")
    assert texts["log/long.log"].endswith("the last line\n")


def test_names_of_secrets_in_leases_do_not_delay_the_report(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer of the store chooses the owners of leases."""
    owners = [{"Owner": f"token=secret-{number:06}"} for number in range(50_000)]
    places.last_known.write_text(json.dumps(owners))
    started = time.process_time()

    _, texts = report(places, tmp_path / "report.tar.gz", monkeypatch)

    assert time.process_time() - started < 10.0
    assert "secret-0" not in texts["files/last-known.json"]
    assert PLANTED["url"] not in texts["log/forwarder.log"]
