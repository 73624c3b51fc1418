"""Minimal Debian systems from debootstrap, and pyflannel's package on a booted system."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyflannel.lab.sandbox import Sandbox
from testlab.booted_system import BootedSystem

CODENAMES = {"12": "bookworm", "13": "trixie"}
_BOOTABLE = "systemd,systemd-sysv,dbus,python3,iproute2,iptables,libbpf1"
_SMALL = "--variant=minbase"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyflannel"
_TOOLS = ("debootstrap", "help2man")
_missing = BootedSystem.missing() or next((tool for tool in _TOOLS if not shutil.which(tool)), None)
NEEDS_DEBIAN_SYSTEMS = [
    pytest.mark.skipif(_missing is not None, reason=f"no {_missing}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and mounts"),
    pytest.mark.timeout(3600),
]
"""Marks of the tests that build packages, and install them on booted Debian systems."""

_LOCAL_AUTHORITIES = Path("/usr/local/share/ca-certificates")


def bootable_system(release: str) -> Path:
    """Return the directory of a system that systemd can boot. The directory is created once for each
    machine.
    """
    return _system(release, f"debian-{release}", [_SMALL, f"--include={_BOOTABLE}"])


def fresh_system(release: str) -> Path:
    """Return the directory of a default installation of Debian, with nothing that pyflannel requires.

    The directory is created once for each machine.
    """
    return _system(release, f"debian-{release}-fresh", ["--include=dbus"])


def firewall_system(release: str) -> Path:
    """Return the directory of a bootable system with ufw and firewalld.

    The directory is created once for each machine.
    """
    return _system(
        release,
        f"debian-{release}-firewalls",
        [_SMALL, f"--include={_BOOTABLE},libpam-systemd,nftables,ufw,firewalld"],
    )


def pipx_system(release: str) -> Path:
    """Return the directory of a bootable system with pipx. The directory is created once for each machine."""
    return _system(release, f"debian-{release}-pipx", [_SMALL, f"--include={_BOOTABLE},pipx,python3-venv"])


def bare_system(release: str) -> Path:
    """Return the directory of a small system like a container image, without Python.

    The directory is created once for each machine.

    The system trusts the certificate authorities that the administrator of this machine added.
    """
    system = _system(release, f"debian-{release}-bare", [_SMALL])
    if _LOCAL_AUTHORITIES.is_dir():
        shutil.copytree(_LOCAL_AUTHORITIES, system / _LOCAL_AUTHORITIES.relative_to("/"), dirs_exist_ok=True)
    return system


def _system(release: str, name: str, options: list[str]) -> Path:
    system, unfinished = _CACHE / name, _CACHE / f"{name}.part"
    if not system.exists():
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        # An interrupted debootstrap must leave no mounted /proc, which would prevent the next attempt.
        separate = ["unshare", "--mount", "debootstrap"]
        subprocess.run([*separate, *options, CODENAMES[release], str(unfinished)], check=True)
        unfinished.rename(system)
    return system


class UnbootedSystem(Sandbox):
    """A Debian system without systemd in the network of a host. The programs of the system run in a changed
    root.
    """

    def __init__(self, host: Sandbox, base: Path) -> None:
        super().__init__(host.name, host.directory)
        self._root = host.directory / "system/root"
        BootedSystem(host, base).install()
        for name in ("proc", "dev", "sys"):
            host.run(["mount", "--rbind", f"/{name}", self._root / name])
        self.adopt(host.init_pid)

    def entering(self, argv: Sequence[str | Path]) -> list[str]:
        """Return the command that runs `argv` inside."""
        return super().entering(["chroot", self._root, *argv])


def package_of(dist: Path, release: str) -> Path:
    """Return the package for a release and the architecture of this machine."""
    architecture = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
    (built,) = dist.glob(f"pyflannel_*~deb{release}_{architecture}.deb")
    return built


def copy(file: Path, system: Sandbox, path: str) -> None:
    """Copy a file into a system."""
    encoded = subprocess.check_output(["base64", file], text=True)
    system.run(["sh", "-c", f"base64 --decode >{path}"], text=encoded)


def install(system: Sandbox, package: Path) -> str:
    """Copy a package into a system, install it, and return the output."""
    copied = "/root/pyflannel.deb"
    copy(package, system, copied)
    done = system.run(["dpkg", "--install", copied])
    return done.stdout + done.stderr


def subnet_of(system: BootedSystem) -> str:
    """Return the subnet that flanneld wrote to subnet.env."""
    text = system.run(["cat", "/run/flannel/subnet.env"]).stdout
    return str(re.findall(r"^FLANNEL_SUBNET=(.+)$", text, re.MULTILINE)[0])


def newer(package: Path, directory: Path) -> Path:
    """Return a copy of a package with a higher version."""
    tree, copy = directory / "tree", directory / "newer.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^(Version: .*)-1~", r"\1-2~", control.read_text(), flags=re.MULTILINE))
    fast = ["-Zgzip", "-z1"]
    subprocess.run(["dpkg-deb", *fast, "--build", tree, copy], check=True, stdout=subprocess.DEVNULL)
    return copy


def download_wheels(into: Path, python: str, *requirements: str | Path) -> None:
    """Download the wheels of the requirements, and of all packages that these require, for a version of
    Python.
    """
    build = Path(__file__).parents[2] / "build"
    pip: list[str | Path] = [
        build / "tools/bin/python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "download",
    ]
    where: list[str | Path] = ["--quiet", "--dest", into, "--find-links", build / "wheels"]
    target = ["--only-binary=:all:", "--python-version", python]
    subprocess.run([*pip, *where, *target, *requirements], check=True)
