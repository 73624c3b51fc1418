"""Builds the form of the CNI plugin for hosts without Python.

    /usr/bin/python3 -IS standalone.py SOURCES DIRECTORY

Writes to DIRECTORY the program `flannel`, and `flannel.d` with the interpreter that runs this script, its
shared libraries, its dynamic loader, and the modules that the plugin imports. The first line of the program
names the loader and the interpreter by their paths in /opt/cni/bin. So the host needs neither a shell nor a C
library.

SOURCES is the directory that contains the package pyflannel. Needs patchelf and ldd.
"""

import importlib
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

BIN_DIR = "/opt/cni/bin"
"""The directory of plugins, to which the program belongs."""

PROGRAM = """\
#!{directory}/loader {directory}/python
import sys

sys.path[0] = "{directory}/lib/modules"  # instead of the directory of plugins
from pyflannel.programs.cni import main

sys.exit(main())
"""


def main(sources: Path, target: Path) -> None:
    """Write the program and its directory."""
    directory = target / "flannel.d"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "lib").mkdir(parents=True)
    interpreter = Path(os.path.realpath(sys.executable))
    shutil.copy(interpreter, directory / "python")
    libraries, loader = linked_with(interpreter)
    shutil.copy(loader, directory / "loader")
    modules = imported_modules(sources)
    extensions = [file for _, file in modules if file.suffix == ".so"]
    for library in {*libraries, *(each for file in extensions for each in linked_with(file)[0])}:
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
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
