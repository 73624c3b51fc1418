"""Collects the state of this host in one archive, without secrets."""

import asyncio
import contextlib
import gzip
import io
import os
import shutil
import tarfile
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from pyflannel import VERSION
from pyflannel.assembly.directories import Places
from pyflannel.assembly.options import KEY_FILE
from pyflannel.commands.examination import examine
from pyflannel.commands.local_daemon import running_daemon
from pyflannel.commands.membership import leases_of_host, status_of_host
from pyflannel.commands.network_client import ControlClient
from pyflannel.errors import FlannelError, in_words
from pyflannel.kernel.filters.programs import run_program
from pyflannel.kernel.host.files import read_end
from pyflannel.wire.control_json import (
    format_config_text,
    format_events,
    format_findings,
    format_leases,
    format_status,
)
from pyflannel.wire.redaction import Redactor, is_secret, named_secrets, secrets_in

_OF_DOCTOR = 0.9
"""Fraction of the deadline after which doctor reports the findings that it has, so that the archive contains
them."""

_MOST_BYTES = 2 << 20
"""Maximum number of bytes of one part. Only the end of a longer part is kept."""

_MOST_LEARNED = 200
"""Maximum number of found secrets that are searched for in all parts. A value next to the name of a secret is
always removed there. This maximum limits only the search for the same value in other places."""

_DEFAULTS = Path("/etc/default/flanneld")
_MOST_KEY_BYTES = 1 << 20

_COMMANDS: Mapping[str, Sequence[str]] = {
    "kernel/links.txt": ("ip", "-details", "-statistics", "link"),
    "kernel/addresses.txt": ("ip", "address"),
    "kernel/policy-rules.txt": ("ip", "rule"),
    "kernel/routes.txt": ("ip", "route", "show", "table", "all"),
    "kernel/routes-ipv6.txt": ("ip", "-6", "route", "show", "table", "all"),
    "kernel/next-hops.txt": ("ip", "nexthop"),
    "kernel/neighbours.txt": ("ip", "neighbour"),
    "kernel/ipsec-policies.txt": ("ip", "xfrm", "policy"),
    "kernel/fdb.txt": ("bridge", "fdb"),
    "kernel/bridge-ports.txt": ("bridge", "-details", "link"),
    "kernel/tc-filters.txt": ("tc", "-statistics", "qdisc"),
    "kernel/programs.txt": ("bpftool", "net"),
    "kernel/wireguard.txt": ("wg", "show"),
    "kernel/sockets.txt": ("ss", "--udp", "--tcp", "--all", "--numeric", "--processes"),
    "kernel/sysctl-ipv4.txt": ("sysctl", "--pattern", r"^net\.(ipv4\.(conf|ip_forward)|bridge)", "-a"),
    "rules/nftables.txt": ("nft", "list", "ruleset"),
    "rules/iptables.txt": ("iptables-save", "-c"),
    "rules/ip6tables.txt": ("ip6tables-save", "-c"),
    "rules/iptables-legacy.txt": ("iptables-legacy-save", "-c"),
    "log/journal.txt": ("journalctl", "--unit=flanneld", "--no-pager", "--lines=5000"),
    "log/kernel.txt": ("dmesg", "--ctime"),
    "versions/iproute2.txt": ("ip", "-Version"),
    "versions/nftables.txt": ("nft", "--version"),
    "versions/iptables.txt": ("iptables", "--version"),
    "versions/docker.txt": ("docker", "version"),
    "versions/systemd.txt": ("systemctl", "--version"),
}
"""The programs whose output is a part of the archive."""


class MissingPart(Struct, frozen=True, kw_only=True):
    """A part of the archive that could not be collected, and the reason."""

    name: str
    reason: str


class BugReport(Struct, frozen=True, kw_only=True):
    """The document of `flannelctl bugreport`.

    Attributes:
        file: path of the archive.
        parts: names of the files in the archive.
        removed: number of secrets that were removed from the texts.
    """

    file: str
    parts: tuple[str, ...]
    missing: tuple[MissingPart, ...] = ()
    removed: int = 0


class _Collection(Struct):
    deadline_s: float
    parts: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    async def take(self, name: str, part: Awaitable[str]) -> None:
        """Add a part to the archive, or the reason why the part is missing."""
        self.missing[name] = f"not complete within {self.deadline_s:.1f} s"
        try:
            self.parts[name] = _end_of(await part)
        except FlannelError as error:
            self.missing[name] = str(error)
        except OSError as error:
            self.missing[name] = in_words(error)
        except Exception as error:  # noqa: BLE001 - the report is most needed when a check has a defect
            trace = "".join(traceback.format_exception(error))
            self.missing[name] = f"a defect of pyflannel: {trace.rstrip()}"
        else:
            del self.missing[name]


async def report_bug(
    places: Places, archive: Path, directory: str, environ: Mapping[str, str], deadline_s: float
) -> BugReport:
    """Write an archive with the state of this host, readable only for its owner.

    Args:
        places: paths of the daemon.
        archive: path of the archive, which must not exist.
        directory: name of the directory in the archive.
        environ: the environment of flannelctl; its secrets are removed from all texts.
        deadline_s: deadline for all parts. A part that is not complete is named as missing.

    Raises:
        FlannelError: the archive cannot be written.
    """
    collection = _Collection(deadline_s)
    process = _Process(running_daemon(places.lock))
    environ = {**_default_settings(), **environ}
    parts = {**_documents(places, deadline_s), **_files(places, process)}
    work = [collection.take(name, _output_of(words)) for name, words in _COMMANDS.items()]
    work += [collection.take(name, read()) for name, read in parts.items()]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            await asyncio.gather(*work)
    redactor = Redactor({*_known_secrets(places, process, environ), *_learned(collection.parts, process)})
    texts = {name: redactor.clean(text) for name, text in sorted(collection.parts.items())}
    reasons = {name: redactor.clean(text) for name, text in sorted(collection.missing.items())}
    texts["missing.txt"] = "".join(f"{name}: {reason}\n" for name, reason in reasons.items())
    _write(archive, directory, texts)
    return BugReport(
        file=str(archive),
        parts=tuple(texts),
        missing=tuple(MissingPart(name=name, reason=reason) for name, reason in reasons.items()),
        removed=redactor.removed,
    )


def _documents(places: Places, deadline_s: float) -> dict[str, Callable[[], Awaitable[str]]]:
    """Return the documents of flannelctl and of the daemon."""

    async def status() -> str:
        return format_status(await status_of_host(places)).decode()

    async def doctor() -> str:
        found = await examine(places, deadline_s * _OF_DOCTOR)
        return format_findings(found, is_ok=all(one.severity != "error" for one in found)).decode()

    async def leases() -> str:
        return format_leases(await leases_of_host(places)).decode()

    daemon = ControlClient(places.control_socket, deadline_s)

    async def events() -> str:
        return format_events(await daemon.events()).decode()

    async def config() -> str:
        return format_config_text(await daemon.config_text()).decode()

    return {
        "status.json": status,
        "doctor.json": doctor,
        "leases.json": leases,
        "events.json": events,
        "config.json": config,
    }


class _Process:
    """The command line and the environment of the daemon; empty without a daemon."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        self.arguments = self._read("cmdline")
        self.environ = dict(line.split("=", 1) for line in self._read("environ") if "=" in line)

    def _read(self, name: str) -> list[str]:
        with contextlib.suppress(OSError):
            content = Path(f"/proc/{self.pid}/{name}").read_bytes()
            return content.decode(errors="replace").rstrip("\0").split("\0")
        return []

    @property
    def flags(self) -> Iterator[tuple[str, str]]:
        """The flags of a command line, with their values."""
        for word, following in zip(self.arguments, [*self.arguments[1:], ""], strict=False):
            if word.startswith("-"):
                name, equals, value = word.lstrip("-").partition("=")
                yield name, value if equals else following


def _files(places: Places, process: _Process) -> dict[str, Callable[[], Awaitable[str]]]:
    """Return the files of the daemon and the facts about its process. The result never includes a file
    that contains keys.
    """
    files = {
        "files/subnet.env": places.subnet_file,
        "files/last-known.json": places.last_known,
        "files/docker-networks.json": places.docker,
        "files/flanneld-default": _DEFAULTS,
        "files/docker-default": Path("/etc/default/docker"),
        "files/daemon.json": Path("/etc/docker/daemon.json"),
        "files/resolv.conf": Path("/etc/resolv.conf"),
        "kernel/modules.txt": Path("/proc/modules"),
        "kernel/udp.txt": Path("/proc/net/snmp"),
        "versions/kernel.txt": Path("/proc/version"),
        "versions/system.txt": Path("/etc/os-release"),
        **{f"log/{path.name}": path for path in sorted(places.run_dir.glob("*.log"))},
    }

    own = {places.run_dir, places.state_dir, places.subnet_file.parent}

    def reader(path: Path) -> Callable[[], Awaitable[str]]:
        async def read() -> str:
            content = read_end(path, _MOST_BYTES + 1, follows_links=path.parent not in own)
            return _end_of(content.decode(errors="replace"))

        return read

    async def daemon() -> str:
        variables = sorted(f"{name}={value}" for name, value in process.environ.items() if _concerns(name))
        return "\n".join([f"pid {process.pid}", *process.arguments, *variables, ""])

    async def listing() -> str:
        return "".join(_listed(places.run_dir)) + "".join(_listed(places.state_dir))

    async def version() -> str:
        return f"pyflannel {VERSION}\n"

    return {
        **{name: reader(path) for name, path in files.items()},
        "files/daemon.txt": daemon,
        "files/directories.txt": listing,
        "versions/pyflannel.txt": version,
    }


def _default_settings() -> dict[str, str]:
    """Return the variables in the file _DEFAULTS. The systemd units of the packages read this file."""
    with contextlib.suppress(OSError):
        lines = _DEFAULTS.read_text(errors="replace").splitlines()
        pairs = (line.strip().partition("=") for line in lines)
        return {name: value.strip("'\"") for name, equals, value in pairs if equals}
    return {}


def _concerns(variable: str) -> bool:
    return variable.startswith(("FLANNEL", "WIREGUARD", "NODE_", "POD_", "KUBERNETES_SERVICE_"))


def _listed(directory: Path) -> Iterator[str]:
    for path in sorted(directory.rglob("*")):
        found = path.lstat()
        yield f"{found.st_mode:06o} {found.st_uid}:{found.st_gid} {found.st_size} {path}\n"


async def _output_of(words: Sequence[str]) -> str:
    if shutil.which(words[0]) is None:
        raise FlannelError(f"{words[0]} is not installed", hint="")
    ran = await run_program(*words)
    return f"$ {' '.join(words)}\n{ran.output}{ran.complaint}"


def _known_secrets(places: Places, process: _Process, environ: Mapping[str, str]) -> set[str]:
    """Return the secrets of this host that pyflannel uses. All occurrences of these secrets are removed."""
    variables = {**environ, **process.environ}
    given = [*variables.items(), *process.flags]
    found = {value for name, value in given if is_secret(name) and value}
    named = {Path(value) for name, value in given if value.startswith("/") and _names_keys(name)}
    own = {places.lease_key, places.wireguard_key, places.next_wireguard_key}
    for path in {*own, *named, *filter(None, [places.original_wireguard_key])}:
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_size <= _MOST_KEY_BYTES:
                found.update(secrets_in(path.read_text(errors="surrogateescape")))
    return found


_OF_OTHERS = ("log/", "events.", "leases.", "status.", "files/last-known.")
"""Prefixes of the names of parts whose text other hosts or a user of the store can influence."""


def _learned(parts: Mapping[str, str], process: _Process) -> set[str]:
    """Return the values that occur beside the names of secrets. Values that other hosts can influence are
    last, and their number is limited.
    """
    ordered = sorted(parts, key=lambda name: (name.startswith(_OF_OTHERS), name))
    texts = (*process.environ.values(), *process.arguments, *(parts[name] for name in ordered))
    learned: set[str] = set()
    for text in texts:
        for secret in named_secrets(text):
            if len(learned) == _MOST_LEARNED:
                return learned
            learned.add(secret)
    return learned


def _names_keys(name: str) -> bool:
    """Return whether the value of a flag or variable is the path of a file with a secret."""
    lowered = name.lower().replace("_", "-")
    return name == KEY_FILE or lowered.endswith(("password-file", "keyfile", "key-file", "token-file"))


def _end_of(text: str) -> str:
    return text if len(text) <= _MOST_BYTES else f"… the beginning is omitted\n{text[-_MOST_BYTES:]}"


def _write(archive: Path, directory: str, texts: Mapping[str, str]) -> None:
    try:
        descriptor = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with (
            open(descriptor, "wb") as file,
            gzip.GzipFile(fileobj=file, mode="wb", filename="") as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            for name, text in texts.items():
                content = text.encode(errors="replace")
                entry = tarfile.TarInfo(f"{directory}/{name}")
                entry.size, entry.mode = len(content), 0o600
                tar.addfile(entry, io.BytesIO(content))
    except OSError as error:
        raise FlannelError(
            f"the archive {archive} cannot be written: {in_words(error)}",
            hint="Name another file with --output.",
        ) from error
