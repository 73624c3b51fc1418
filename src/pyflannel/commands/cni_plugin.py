"""Installation of the CNI plugin on this host: the program, and the network configuration that refers to
it.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

import pyflannel
from pyflannel.errors import UsageError
from pyflannel.kernel.host.files import replace_file
from pyflannel.wire.cni import DEFAULT_SUBNET_FILE

PROGRAM = "flannel"
CONFLIST = "10-flannel.conflist"
"""The name of the configuration file, which is the same as in the original."""

_FORMER = ".flannel.former"
"""Suffix that the installation appends to the name of an earlier program `flannel`."""

_MARK = "# Written by 'flannelctl cni install'. 'flannelctl cni uninstall' removes it."

_LAUNCHER = """\
#!{interpreter} -IS
{mark}
import sys

sys.path.insert(0, {package!r})
try:
    from pyflannel.programs.cni import main
except ImportError as error:
    import json

    message = f"the CNI plugin cannot load pyflannel from {package}: {{error}}"
    print(json.dumps({{"code": 999, "msg": message, "details": "Run flannelctl cni install again."}}))
    sys.exit(1)
sys.exit(main())
"""

DELEGATES = ("bridge", "host-local", "portmap", "loopback")
"""The plugins that the network configuration needs, and loopback, which every runtime needs."""

_RUNTIMES = {
    "containerd": "containerd, and Kubernetes on containerd",
    "crio": "CRI-O, and Kubernetes on CRI-O",
    "podman": 'Podman with network_backend = "cni"',
}
"""The programs of runtimes that read the default directories, and their names for people."""


class CniPlaces(Struct, frozen=True, kw_only=True):
    """The directories of CNI on a host."""

    bin_dir: Path = Path("/opt/cni/bin")
    conf_dir: Path = Path("/etc/cni/net.d")

    @property
    def are_default(self) -> bool:
        """True if runtimes read these directories by default."""
        return self == CniPlaces()


class CniReport(Struct):
    """The result of an installation or a removal, with one line for each item."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def install(places: CniPlaces, subnet_file: Path, path: str = os.environ.get("PATH", "")) -> CniReport:
    """Install the plugin: the program first, and the network configuration last.

    A runtime may read the directories at any moment, and must not find the configuration before its program.
    A program of the same name, which belongs to the original, is renamed. A network configuration of the same
    name is not changed, because the plugin reads the configuration of the original.

    Raises:
        UsageError: a directory cannot be written.
    """
    report = CniReport()
    program, conflist = places.bin_dir / PROGRAM, places.conf_dir / CONFLIST
    with _writing():
        for directory in (places.bin_dir, places.conf_dir):
            directory.mkdir(parents=True, exist_ok=True)
        if program.exists() and not _is_ours(program):
            os.replace(program, places.bin_dir / _FORMER)
            report.done.append(f"renamed the former {program} to {program.name}{_FORMER}")
        replace_file(str(program), _launcher().encode(), mode=0o755)
        report.done.append(f"wrote {program}")
        text = conflist_text(subnet_file)
        if conflist.exists() and conflist.read_text() != text:
            report.kept.append(f"{conflist}, which exists with another content")
        else:
            replace_file(str(conflist), text.encode())
            report.done.append(f"wrote {conflist}")
    report.warnings += _delegates_missing(places.bin_dir)
    report.warnings += _configurations_before(places.conf_dir)
    report.done += _readers(places, path)
    return report


def uninstall(places: CniPlaces) -> CniReport:
    """Remove the files of an installation, the network configuration first, and restore a program that the
    installation renamed.

    Raises:
        UsageError: a directory cannot be written.
    """
    report = CniReport()
    program, conflist = places.bin_dir / PROGRAM, places.conf_dir / CONFLIST
    former = places.bin_dir / _FORMER
    with _writing():
        if conflist.exists() and not former.exists():
            if _is_our_conflist(conflist):
                conflist.unlink()
                report.done.append(f"removed {conflist}")
            else:
                report.kept.append(f"{conflist}, which has another content")
        if program.exists() and not _is_ours(program):
            report.kept.append(f"{program}, which is another program")
        elif former.exists():
            os.replace(former, program)
            report.done.append(f"restored the former {program}")
        elif program.exists():
            program.unlink()
            report.done.append(f"removed {program}")
    return report


def conflist_text(subnet_file: Path) -> str:
    """Return the network configuration: the configuration of the original, with a version number that
    current runtimes accept.
    """
    flannel: dict[str, object] = {
        "type": PROGRAM,
        "delegate": {"hairpinMode": True, "isDefaultGateway": True},
    }
    if str(subnet_file) != DEFAULT_SUBNET_FILE:
        flannel["subnetFile"] = str(subnet_file)
    portmap: Mapping[str, object] = {"type": "portmap", "capabilities": {"portMappings": True}}
    conflist = {"cniVersion": "1.0.0", "name": "cbr0", "plugins": [flannel, portmap]}
    return json.dumps(conflist, indent=2) + "\n"


def _launcher() -> str:
    """Return the text of the program `flannel`. To save time, the program starts the system's Python
    interpreter without a virtual environment.
    """
    package = Path(pyflannel.__file__).parents[1]
    return _LAUNCHER.format(
        interpreter=os.path.realpath(sys.executable), mark=_MARK, package=str(package.resolve())
    )


def _is_ours(program: Path) -> bool:
    with program.open("rb") as file:
        return _MARK.encode() in file.read(4096)


def _is_our_conflist(conflist: Path) -> bool:
    text = conflist.read_text()
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        subnet_file = json.loads(text)["plugins"][0].get("subnetFile", DEFAULT_SUBNET_FILE)
        return text == conflist_text(Path(subnet_file))
    return False


def _delegates_missing(bin_dir: Path) -> list[str]:
    missing = [name for name in DELEGATES if not (bin_dir / name).exists()]
    if not missing:
        return []
    return [
        f"{bin_dir} lacks {', '.join(missing)}: install the CNI plugins there, or add their directory to the"
        " runtime's plugin directories (/usr/lib/cni with Debian's containernetworking-plugins)"
    ]


def _configurations_before(conf_dir: Path) -> list[str]:
    names = sorted(path.name for path in conf_dir.iterdir() if path.suffix in (".conf", ".conflist", ".json"))
    before = names[: names.index(CONFLIST)] if CONFLIST in names else []
    return [
        f"runtimes use the first file of {conf_dir}, which is {name}: remove it to use flannel"
        for name in before[:1]
    ]


def _readers(places: CniPlaces, path: str) -> Sequence[str]:
    """Return a line for each installed runtime that reads the directories."""
    if not places.are_default:
        return ["set both directories in the configuration of the runtime"]
    found = [text for program, text in _RUNTIMES.items() if shutil.which(program, path=path)]
    if not found:
        return [
            "found no runtime on this host that reads these directories: install containerd, CRI-O or Podman"
        ]
    return [f"read by {text}" for text in found]


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{error.filename}: {error.strerror}",
            hint="Run flannelctl as root, or choose other directories with --bin-dir and --conf-dir.",
        ) from error
