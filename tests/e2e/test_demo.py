"""scripts/demo and flannelctl lab, by the commands of a user."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab.lab import standing_labs
from pyflannel.lab.lab_directory import ROOT, without_removals
from testlab.documents import read_document

DEMO = Path(__file__).parents[2] / "scripts" / "demo"
FLANNELCTL = DEMO.parents[1] / ".venv" / "bin" / "flannelctl"
NAME = f"t{os.getpid()}-demo"
SOON_S = 150.0

pytestmark = pytest.mark.timeout(400)

needs_docker = pytest.mark.skipif(
    shutil.which("dockerd") is None, reason="no dockerd: Debian's docker.io has it"
)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    left = [str(path) for path in ROOT.glob(NAME)]
    left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/flannel-lab/{NAME}")]
    left += [
        process.name
        for process in Path("/proc").iterdir()
        if process.name.isdecimal() and is_of_the_lab(process)
    ]
    subprocess.run([FLANNELCTL, "lab", "down", "--name", NAME], check=False, capture_output=True)
    assert left == []


def is_of_the_lab(process: Path) -> bool:
    try:
        return f"{ROOT / NAME}/".encode() in (process / "environ").read_bytes()
    except (OSError, ProcessLookupError):
        return False


def start_demo(*flags: str) -> subprocess.Popen[str]:
    hearing = ["env", "--default-signal=INT"]  # background jobs of a shell ignore SIGINT
    return subprocess.Popen(
        [*hearing, DEMO, "--name", NAME, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_step(demo: subprocess.Popen[str], word: str) -> None:
    """Read the output of the demo until a step with this word begins."""
    assert demo.stderr is not None
    told = ""
    end = time.monotonic() + SOON_S
    while word not in told and time.monotonic() < end:
        told += demo.stderr.read(1)
    assert word in told


def flannelctl_lab(*arguments: str) -> str:
    return subprocess.run(
        [FLANNELCTL, "lab", *arguments], check=True, capture_output=True, text=True, timeout=SOON_S
    ).stdout


@needs_docker
@pytest.mark.parametrize("flags", [["--store", "etcd", "--plugin"], []], ids=["plugin-etcd", "docker"])
def test_the_demo_reaches_every_host(flags: list[str]) -> None:
    check_demo(start_demo("--json", *flags))


def check_demo(demo: subprocess.Popen[str]) -> None:
    """Check the report of a demo in which every host reaches the other hosts."""
    said, told = demo.communicate(timeout=SOON_S)

    assert demo.returncode == 0, told
    report = read_document(["lab", "demo"], said)
    assert report["ok"]
    rows = report["rows"]
    assert [row["host"] for row in rows] == ["docker1", "docker2", "docker3", "docker4"]
    assert [row["address"] for row in rows] == [
        "10.10.10.101",
        "10.10.10.102",
        "192.168.50.101",
        "192.168.50.102",
    ]
    assert len({row["lease"] for row in rows}) == 4
    assert all(
        (row["device"], row["mtu"], row["reached"], row["others"]) == ("flannel0", 1472, 3, 3) for row in rows
    )
    assert all(row["rtt_ms"] > 0 for row in rows)
    assert report["page"] == "Hello from a container on docker1"
    assert report["overlay"]["gbit_s"] > 0
    assert report["ratio"] == report["overlay"]["gbit_s"] / report["kernel"]["gbit_s"]
    assert "removing the lab" in told


def test_the_demo_without_docker_works_after_a_killed_demo() -> None:
    killed = start_demo("--no-docker")
    wait_step(killed, "sending a TCP stream")
    with without_removals():
        killed.kill()
        killed.communicate()
        (found,) = [lab for lab in standing_labs() if lab.name == NAME]

    check_demo(start_demo("--no-docker", "--json"))

    assert found.state == "remains"
    assert "docker1" in found.hosts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_and_removes_the_lab(number: signal.Signals) -> None:
    demo = start_demo("--no-docker")
    wait_step(demo, "flanneld on each host")

    demo.send_signal(number)
    demo.communicate(timeout=SOON_S)

    assert demo.returncode == 130


def test_a_kept_demo_prints_a_table_and_can_be_used_and_removed() -> None:
    demo = start_demo("--no-docker", "--keep")
    said, told = demo.communicate(timeout=SOON_S)
    listed = read_document(["lab", "list"], flannelctl_lab("list", "--json"))["labs"]
    routes = flannelctl_lab("exec", "--name", NAME, "docker3", "ip", "route")
    page = flannelctl_lab(
        *["exec", "--name", NAME, "docker4", "cat", "/run/flannel/subnet.env"],
    )
    flannelctl_lab("down", "--name", NAME)

    assert demo.returncode == 0, told
    lines = said.splitlines()
    assert lines[1].split() == ["HOST", "ADDRESS", "LEASE", "DEVICE", "MTU", "REACHED", "RTT"]
    assert [line.split()[0] for line in lines[2:6]] == ["docker1", "docker2", "docker3", "docker4"]
    assert "3 of 3" in lines[2]
    assert "Gbit/s over the overlay" in said
    assert "times the throughput of the kernel's vxlan" in said
    assert f"lab down --name {NAME}" in told
    assert [lab["state"] for lab in listed if lab["name"] == NAME] == ["kept"]
    assert "10.100.0.0/16 dev flannel0" in routes
    assert "FLANNEL_MTU=1472" in page


def test_flannelctl_lab_reports_an_error_in_one_line() -> None:
    for arguments in (["down"], ["exec", "docker1"], ["demo", "--name", "No/Name"]):
        command, *rest = arguments
        name = [] if "--name" in rest else ["--name", NAME]
        done = subprocess.run(
            [FLANNELCTL, "lab", command, *name, *rest], check=False, capture_output=True, text=True
        )

        assert done.returncode == (2 if "--name" in rest else 1)
        assert done.stderr.startswith("flannelctl: ")
        assert "Traceback" not in done.stderr


def test_the_plugin_of_docker_needs_docker() -> None:
    demo = start_demo("--no-docker", "--plugin")

    _, told = demo.communicate(timeout=SOON_S)

    assert demo.returncode == 2
    assert "--plugin needs Docker" in told
