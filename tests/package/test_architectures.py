"""The compiled parts of each package are for its architecture. The parts are inspected, not run."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

TOOLS = ("help2man", "rpmbuild")
missing = next((tool for tool in TOOLS if not shutil.which(tool)), None)
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=f"no {missing}"),
    pytest.mark.timeout(3600),
]

MACHINES = {"amd64": 62, "x86_64": 62, "arm64": 183, "aarch64": 183}
"""e_machine by architecture (elf.h): EM_X86_64, EM_AARCH64."""

BPF = 247
"""EM_BPF (elf.h)."""


def elf_machine(file: Path) -> int | None:
    """Return e_machine of an ELF file; None if the file is no ELF file."""
    with file.open("rb") as opened:
        header = opened.read(20)
    if not header.startswith(b"\x7fELF"):
        return None
    (machine,) = struct.unpack_from("<H", header, 18)
    return int(machine)


def extract(package: Path, directory: Path) -> None:
    if package.suffix == ".deb":
        subprocess.run(["dpkg-deb", "--extract", package, directory], check=True)
    else:
        options = ["--nodeps", "--noscripts", "--ignorearch", "--ignoreos"]
        subprocess.run(["rpm", "--root", directory, *options, "--install", package], check=True)


@pytest.mark.parametrize("architecture", MACHINES)
def test_compiled_parts_are_for_the_architecture_of_the_package(
    architecture: str, dist: Path, tmp_path: Path
) -> None:
    packages = [*dist.glob(f"*_{architecture}.deb"), *dist.glob(f"*.{architecture}.rpm")]

    for package in packages:
        directory = tmp_path / package.name
        extract(package, directory)
        parts = (directory / "usr/lib/pyflannel").rglob("*")
        files = [file for file in parts if file.is_file() and not file.is_symlink()]
        machines = {machine for file in files if (machine := elf_machine(file))}
        assert machines == {MACHINES[architecture], BPF}, package

    assert packages
