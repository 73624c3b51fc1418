"""The machine and this process: identity, kernel release, clocks, network settings, service manager."""

import asyncio
import contextlib
import errno
import hashlib
import hmac
import json
import logging
import os
import re
import socket
import time
import uuid
from pathlib import Path

from pyflannel.errors import TargetError, target_errors
from pyflannel.kernel.host.files import replace_file
from pyflannel.model.lease import Identity, is_host_name

log = logging.getLogger(__name__)


def notify(text: str) -> bool:
    """Send assignments such as `READY=1` to NOTIFY_SOCKET; return whether they were sent.

    Without a service manager that listens, do nothing.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.connect(address)
            manager.sendall(text.encode())
    except OSError:
        return False
    return True


def host_name() -> str | None:
    """Return the host name of this UTS namespace, or None if peers would not accept it."""
    name = os.uname().nodename
    if is_host_name(name):
        return name
    log.info("Host name is not published, because RFC 1123 does not allow it host_name=%r", name)
    return None


def watchdog_s() -> float | None:
    """Return the seconds after which the service manager treats a silent process as hanging; None for never.

    Source: sd_watchdog_enabled(3).
    """
    limit = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID") not in (None, str(os.getpid())):
        return None  # the setting is meant for the parent process
    return int(limit) / 1e6 if limit.isdecimal() and int(limit) else None


_NAP_S = 30.0
"""Maximum length of a single sleep, because the clock of the event loop stops while the host is suspended."""


class BoottimeClock:
    """A Clock on CLOCK_BOOTTIME, which also counts while the host is suspended, and which cannot be set."""

    def now(self) -> float:
        """Return the seconds since the host booted."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def utc(self) -> float:
        """Return the seconds since the epoch. This clock may step."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`, measured by `now`; with a delay of at most half a minute if the host was
        suspended.
        """
        deadline = self.now() + seconds
        await asyncio.sleep(min(seconds, _NAP_S))
        while (left := deadline - self.now()) > 0:
            await asyncio.sleep(min(left, _NAP_S))


_UBUNTUS = "/proc/version_signature"
_DEBIANS = re.compile(r"\bDebian (\d+\.\d+\.\d+)")


def kernel_release() -> str:
    """Return the release of the kernel source, `5.4.233`, or otherwise the release of uname,
    `6.1.0-18-amd64`.

    In the release of uname, Debian and Ubuntu keep the last number at 0 regardless of the applied fixes.
    """
    signature = ""
    with contextlib.suppress(OSError), open(_UBUNTUS, encoding="ascii", errors="replace") as file:
        signature = file.read()
    system = os.uname()
    return exact_release(system.release, system.version, signature)


def exact_release(release: str, version: str, signature: str) -> str:
    """Return the release in the version text of uname or in Ubuntu's signature, otherwise the release of
    uname.

    A signature is `Ubuntu 5.4.0-150.167-generic 5.4.233`, a version of Debian is `#1 SMP Debian 4.19.118-2`.
    """
    words = signature.split()
    if len(words) == 3 and words[0] == "Ubuntu":
        return words[2]
    found = _DEBIANS.search(version)
    return found[1] if found else release


_DISABLE_IPV6 = "/proc/sys/net/ipv6/conf/{link}/disable_ipv6"


def set_ipv6(link: str, is_on: bool) -> None:
    """Enable or disable IPv6 on a link. On a kernel without IPv6, IPv6 is always disabled.

    Raises:
        OSError: the setting could not be written, or IPv6 was requested and the kernel does not support it.
    """
    nothing_to_turn_off = contextlib.suppress(FileNotFoundError) if not is_on else contextlib.nullcontext()
    with nothing_to_turn_off, open(_DISABLE_IPV6.format(link=link), "w", encoding="ascii") as setting:
        setting.write("0" if is_on else "1")


def is_ipv6_on(link: str) -> bool:
    """Return whether IPv6 is enabled on a link; False if this is unknown."""
    try:
        return Path(_DISABLE_IPV6.format(link=link)).read_text().strip() == "0"
    except OSError:
        return False


def set_accept_ra(link: str, is_on: bool) -> None:
    """Set whether router advertisements on a link change the host's routes.

    Raises:
        OSError: the setting could not be written.
    """
    with open(f"/proc/sys/net/ipv6/conf/{link}/accept_ra", "w", encoding="ascii") as setting:
        setting.write("1" if is_on else "0")


def may_set_ipv6() -> bool:
    """Return whether `set_ipv6` can work, because in a container, /proc/sys is often read-only."""
    return os.access(_DISABLE_IPV6.format(link="all"), os.W_OK)


_FILE = "identity.json"
_APPLICATION = b"pyflannel lease identity"
_DIGEST_LENGTH = 16


def read_identity(
    state_dir: str,
    run_dir: str,
    machine_id_file: str,
    node_id: str | None = None,
    *,
    standing: str | None = None,
) -> Identity:
    """Return this host's identity, which is created and saved at the first start.

    Without a state directory, the identity is in the run directory, where the previous flanneld of this boot
    and network namespace saved it. The caller holds the lock of the run directory, so the previous flanneld
    has exited. If the run directory contains no identity, `standing` is used: the identity on the device in
    this network namespace, or None if it is missing or the previous flanneld may still run.

    A disk that was cloned to another machine contains the identity of the first machine. On a cloned disk, a
    new identity is created, and a warning is logged. If `node_id` is given, this value is the owner, and
    nothing is saved.

    Raises:
        TargetError: the identity cannot be saved in `state_dir` or `run_dir`.
    """
    machine = machine_digest(machine_id_file)
    if node_id:
        return Identity(owner=node_id, machine=machine)
    path = os.path.join(state_dir, _FILE)
    kept = _read(path) or _left_in(run_dir, machine) or _standing(standing, machine)
    if kept is None:
        return new_identity(state_dir, run_dir, machine_id_file)
    if machine and kept.machine and machine != kept.machine:
        log.warning(
            "Found the identity of another machine, created a new identity owner=%s path=%s", kept.owner, path
        )
        return new_identity(state_dir, run_dir, machine_id_file)
    identity = Identity(owner=kept.owner, machine=machine or kept.machine)
    _keep(state_dir, run_dir, identity)
    return identity


def new_identity(state_dir: str, run_dir: str, machine_id_file: str) -> Identity:
    """Return a new random identity, and save it in place of the previous identity, which another host uses.

    Raises:
        TargetError: the identity cannot be saved in `state_dir` or `run_dir`.
    """
    identity = Identity(owner=uuid.uuid4().hex, machine=machine_digest(machine_id_file))
    _keep(state_dir, run_dir, identity)
    return identity


def machine_digest(machine_id_file: str) -> str:
    """Return 16 hexadecimal digits that distinguish machines; "" if the machine-id is unknown.

    The machine-id itself is confidential and must not leave the host (machine-id(5)).
    """
    try:
        with open(machine_id_file, encoding="ascii", errors="replace") as file:
            machine_id = file.read(256).strip()
    except OSError:
        return ""
    if machine_id in ("", "uninitialized"):
        return ""
    return hmac.new(_APPLICATION, machine_id.encode(), hashlib.sha256).hexdigest()[:_DIGEST_LENGTH]


def _read(path: str) -> Identity | None:
    """Return the saved identity, or None. A damaged file is renamed, and treated as missing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed("read from", path, error) from error
    if (identity := identity_in(text)) is not None:
        return identity
    aside = f"{path}.corrupt"
    try:
        os.rename(path, aside)
    except OSError as error:
        raise _failed(f"read, and its damaged file cannot be renamed to {aside} from", path, error) from error
    log.warning("Found a damaged identity file, renamed it path=%s", aside)
    return None


def identity_in(text: str) -> Identity | None:
    """Return the identity in the text of a file; None if the text contains no identity."""
    try:
        match json.loads(text):
            case {"Owner": str(owner), "Machine": str(machine)} if owner:
                return Identity(owner=owner, machine=machine)
            case _:
                return None
    except (ValueError, RecursionError):
        return None


def _left_in(run_dir: str, machine: str) -> Identity | None:
    """Return the identity that the previous flanneld saved here; None if it may belong to another host."""
    try:
        text = Path(run_dir, _FILE).read_text(encoding="utf-8", errors="replace")
        identity = identity_in(text)
        if identity is None or identity.machine != machine or text != _run_text(identity):
            return None
    except OSError:
        return None
    log.info("Using the identity of the previous flanneld of this boot and network namespace")
    return identity


def _standing(owner: str | None, machine: str) -> Identity | None:
    if owner is None:
        return None
    log.info("Using the identity on the device in this network namespace owner=%s", owner)
    return Identity(owner=owner, machine=machine)


def _keep(state_dir: str, run_dir: str, identity: Identity) -> None:
    _write(os.path.join(state_dir, _FILE), _text(identity))
    with target_errors("boot and network namespace are unknown", hint="Mount /proc."):
        text = _run_text(identity)
    _write(os.path.join(run_dir, _FILE), text)


def _text(identity: Identity, **more: str) -> str:
    return json.dumps({"Owner": identity.owner, "Machine": identity.machine} | more) + "\n"


def _run_text(identity: Identity) -> str:
    """Return the text of the identity in the run directory.

    The text contains the boot and the network namespace. A copy of the file in another boot or namespace has
    another text.
    """
    namespace = os.stat("/proc/self/ns/net")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return _text(identity, Boot=boot, Namespace=f"{namespace.st_dev}:{namespace.st_ino}")


def _write(path: str, text: str) -> None:
    try:
        if Path(path).read_text(encoding="utf-8", errors="replace") == text:
            return
    except OSError:
        pass  # the write of the file below may also report the error
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise _failed("kept in", path, error) from error


def _failed(what: str, path: str, error: OSError) -> TargetError:
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    return TargetError(
        f"the identity cannot be {what} {path}: {name}: {error.strerror}",
        hint="Run as root, set another --state-dir and --run-dir, or set --node-id.",
    )


_COUNTERS = Path("/proc/self/net/dev")
_RECEIVED_BYTES, _SENT_BYTES = 0, 8
"""Columns of /proc/net/dev after the name of the device (net/core/net-procfs.c)."""


def device_bytes(link: str) -> tuple[int, int] | None:
    """Return the bytes that a device has received and sent; None if the device does not exist."""
    wanted = os.fsencode(link)
    with contextlib.suppress(OSError):
        for line in _COUNTERS.read_bytes().split(b"\n"):
            name, _, columns = line.partition(b":")
            if name.lstrip(b" ") == wanted:
                counts = columns.split()
                return int(counts[_RECEIVED_BYTES]), int(counts[_SENT_BYTES])
    return None
