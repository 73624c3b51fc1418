"""Builds the form of the CNI plugin for hosts without Python.

    /usr/bin/python3 -IS standalone.py SOURCES DIRECTORY SBOM

Writes to DIRECTORY the program `flannel`, and `flannel.d` with the interpreter that runs this script, its
shared libraries, its dynamic loader, and the modules that the plugin imports. The first line of the program
names the loader and the interpreter by their paths in /opt/cni/bin. Therefore the host needs neither a shell
nor a C library.

SOURCES is the directory that contains the package pyflannel. SBOM is the file for the list of the Debian
packages whose files are in DIRECTORY (CycloneDX). Needs patchelf, ldd and dpkg-query.
"""

import importlib
import json
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

BIN_DIR = "/opt/cni/bin"
"""The directory of the CNI plugins, where the program must be installed."""

PROGRAM = """\
#!{directory}/loader {directory}/python
import sys

sys.path[0] = "{directory}/lib/modules"  # instead of the directory of plugins
from pyflannel.programs.cni import main

sys.exit(main())
"""


def main(sources: Path, target: Path, sbom: Path) -> None:
    """Write the program, its directory and the list of packages."""
    directory = target / "flannel.d"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "lib").mkdir(parents=True)
    interpreter = Path(os.path.realpath(sys.executable))
    shutil.copy(interpreter, directory / "python")
    libraries, loader = linked_with(interpreter)
    shutil.copy(loader, directory / "loader")
    modules = imported_modules(sources)
    extensions = [file for _, file in modules if file.suffix == ".so"]
    libraries += [each for file in extensions for each in linked_with(file)[0]]
    for library in {*libraries}:
        shutil.copy(library, directory / "lib" / library.name)
    subprocess.run(
        ["patchelf", "--force-rpath", "--set-rpath", "$ORIGIN/lib", directory / "python"], check=True
    )
    standard = directory / "lib" / f"python{sysconfig.get_python_version()}"
    for name, file in modules:
        place = (directory / "lib/modules" if name.startswith("pyflannel") else standard) / relative(
            name, file
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
        if file.suffix == ".py":
            py_compile.compile(
                str(place), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
            )
    (standard / "lib-dynload").mkdir(exist_ok=True)
    program = target / "flannel"
    program.write_text(PROGRAM.format(directory=f"{BIN_DIR}/flannel.d"))
    program.chmod(0o755)
    foreign = [file for name, file in modules if not name.startswith("pyflannel")]
    sbom.write_text(
        json.dumps(list_of_packages([interpreter, loader, *libraries, *foreign]), indent=2) + "\n"
    )


def list_of_packages(files: Iterable[Path]) -> dict[str, object]:
    """Return the CycloneDX list of the Debian packages that contain these files."""
    paths = {Path(os.path.realpath(file)) for file in files}
    components = []
    for package in sorted({owner(path) for path in paths}):
        shown = ["dpkg-query", "--show", "--showformat=${source:Package} ${Version} ${Architecture}", package]
        source, version, architecture = subprocess.check_output(shown, text=True).split()
        name = package.partition(":")[0]
        components.append(
            {
                "type": "library",
                "name": name,
                "version": version,
                "purl": f"pkg:deb/debian/{name}@{version}?arch={architecture}&upstream={source}",
            }
        )
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}


def owner(path: Path) -> str:
    """Return the package that contains a file.

    The packages of Debian 12 list some files in /lib, which is a link to /usr/lib.
    """
    for one in (path, Path("/", *path.parts[2:])):
        found = subprocess.run(["dpkg-query", "--search", one], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return found.stdout.partition(": ")[0]
    raise FileNotFoundError(f"no Debian package contains {path}")


def linked_with(file: Path) -> tuple[list[Path], Path]:
    """Return the shared libraries of an ELF file, and the loader."""
    listed = subprocess.run(["ldd", file], capture_output=True, text=True, check=True).stdout
    paths = [Path(word) for line in listed.splitlines() for word in line.split() if word.startswith("/")]
    loader = next((path for path in paths if path.name.startswith("ld-")), Path())
    return [path for path in paths if path != loader], loader


def imported_modules(sources: Path) -> list[tuple[str, Path]]:
    """Return name and file of each module that the plugin imports, also after an error."""
    sys.path.insert(0, str(sources))
    for name in ("site", "socket", "pyflannel.programs.cni"):
        importlib.import_module(name)
    files = ((name, getattr(module, "__file__", None)) for name, module in sys.modules.items())
    return [(name, Path(file)) for name, file in files if file and name != "__main__"]


def relative(name: str, file: Path) -> Path:
    """Return the path of a module below the directory of its root package."""
    if file.suffix == ".so":
        return Path("lib-dynload") / file.name
    parts = name.split(".")
    return Path(*parts, "__init__.py") if file.name == "__init__.py" else Path(*parts[:-1], file.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]), Path(sys.argv[3]))
