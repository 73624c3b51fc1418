"""The rpm: its file list, its requirements, and its installation into an empty root. No Fedora runs here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = ("rpmbuild", "help2man", "busybox")
missing = next((tool for tool in TOOLS if not shutil.which(tool)), None)
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=f"no {missing}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: rpm changes its root directory"),
    pytest.mark.timeout(3600),
]

PROGRAMS_OF_SCRIPTS = ("sh", "readlink", "cat", "echo", "find", "rm")
INTERPRETER = "/usr/bin/python3.12"


@pytest.fixture(scope="module")
def package(dist: Path) -> Path:
    (built,) = dist.glob(f"*.{os.uname().machine}.rpm")
    return built


@pytest.fixture(scope="module")
def root(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package into a root that contains only the programs of its scripts."""
    root = tmp_path_factory.mktemp("root")
    (root / "bin").mkdir()
    shutil.copy(str(shutil.which("busybox")), root / "bin/busybox")
    for name in PROGRAMS_OF_SCRIPTS:
        (root / "bin" / name).symlink_to("busybox")
    rpm("--root", root, "--nodeps", "--install", package)
    return root


def rpm(*argv: str | Path) -> str:
    return subprocess.run(["rpm", *argv], check=True, capture_output=True, text=True).stdout


def test_the_files_are_where_systemd_man_and_shells_search_them(package: Path) -> None:
    files = {*rpm("-qlp", package).split()}

    assert {
        "/usr/bin/flanneld",
        "/etc/default/flanneld",
        "/usr/lib/systemd/system/flanneld.service",
        "/usr/share/man/man8/flanneld.8.gz",
        "/usr/share/zsh/site-functions/_flanneld",
        "/usr/share/doc/pyflannel/sbom.cdx.json",
    } <= files


def test_the_package_requires_the_interpreter_of_its_programs(package: Path, root: Path) -> None:
    assert INTERPRETER in rpm("-qp", "--requires", package).split()
    assert (root / "usr/lib/pyflannel/bin/python3").readlink() == Path(INTERPRETER)


def test_the_settings_are_kept_by_an_upgrade(package: Path) -> None:
    assert rpm("-qp", "--configfiles", package).split() == ["/etc/default/flanneld"]


def test_removal_leaves_no_file(root: Path) -> None:
    """This is the last test, because it removes the package."""
    rpm("--root", root, "--nodeps", "--erase", "pyflannel")

    assert [*root.rglob("*flannel*")] == []
