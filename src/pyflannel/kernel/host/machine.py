"""The machine and this process: identity, kernel release, clocks, network settings, service manager."""

import asyncio
import contextlib
import errno
import hashlib
import hmac
import itertools
import json
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

from pyflannel.errors import TargetError, target_errors
from pyflannel.kernel.filters.programs import run_program
from pyflannel.kernel.host.files import replace_file
from pyflannel.model.host import TakingFilter
from pyflannel.model.lease import Identity, is_host_name
from pyflannel.model.network_config import Family, IpAddress
from pyflannel.model.route import RouteAnswer, Way


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


_IPV4, _IPV6 = Path("/proc/sys/net/ipv4"), Path("/proc/sys/net/ipv6/conf")
_DEVICES = Path("/sys/class/net")


def forwards(family: Family) -> bool | None:
    """Return whether the host forwards packets of a family; None if the setting is unreadable."""
    value = _number(_IPV4 / "ip_forward" if family == 4 else _IPV6 / "all/forwarding")
    return None if value is None else value != 0


def unforwarded(links: Iterable[str], family: Family) -> frozenset[str]:
    """Return the links whose received packets of a family the host does not forward.

    For IPv6, only the setting of the whole host counts, and since Linux 6.17 `force_forwarding` of a link
    (ip6_forward in net/ipv6/ip6_output.c).
    """
    if family == 4:
        return frozenset(link for link in links if _number(_IPV4 / f"conf/{link}/forwarding") == 0)
    if forwards(family) is not False:
        return frozenset()
    return frozenset(link for link in links if _number(_IPV6 / f"{link}/force_forwarding") != 1)


def is_strict(link: str) -> bool:
    """Return whether the host drops packets whose return route uses another link than the link on which they
    arrived (RFC 3704).

    The greater value of the global setting and the setting of the link applies
    (Documentation/networking/ip-sysctl).
    """
    return max(_number(_IPV4 / f"conf/{name}/rp_filter") or 0 for name in ("all", link)) == 1


def lacks_arp(link: str) -> bool:
    """Return whether ARP is off on a link whose frames have MAC addresses (linux/if.h)."""
    flags = _number(_DEVICES / link / "flags") or 0
    return bool(flags & _NO_ARP) and is_ethernet(link)


def ignores_arp(link: str) -> bool:
    """Return whether the kernel answers no ARP requests for its addresses at a link (arp_ignore of
    networking/ip-sysctl.rst).
    """
    return max(_number(_IPV4 / f"conf/{name}/arp_ignore") or 0 for name in ("all", link)) == _NO_ANSWER


_NO_ANSWER = 8


def ignores_echoes(family: Family) -> bool:
    """Return whether the kernel answers no ICMP echo requests of a family."""
    return (
        _number(_IPV4 / "icmp_echo_ignore_all" if family == 4 else _IPV6.parent / "icmp/echo_ignore_all") == 1
    )


def is_ethernet(link: str) -> bool:
    """Return whether the frames of a link have MAC addresses (linux/if_arp.h)."""
    return _number(_DEVICES / link / "type") == _ETHERNET


_NO_ARP, _ETHERNET = 0x80, 1


def port_mtus(bridge: str) -> dict[str, int]:
    """Return the MTU of each port of a bridge, in bytes, by name."""
    with contextlib.suppress(OSError):
        ports = os.listdir(_DEVICES / bridge / "brif")
        return {port: mtu for port in sorted(ports) if (mtu := _number(_DEVICES / port / "mtu")) is not None}
    return {}


def silent_ports(bridge: str) -> dict[str, bool]:
    """Return the ports of a bridge that learn no MAC addresses, by name: True if frames to unknown MAC
    addresses leave through the port.
    """
    settings = {port: _DEVICES / port / "brport" for port in port_mtus(bridge)}
    return {
        port: bool(_number(path / "unicast_flood"))
        for port, path in settings.items()
        if _number(path / "learning") == 0
    }


def closed_ports(bridge: str) -> dict[str, str]:
    """Return the ports of a bridge that carry no frames, by name, with their state in words of `ip link`:
    DOWN or NO-CARRIER.
    """
    found: dict[str, str] = {}
    for port in port_mtus(bridge):
        if not (_number(_DEVICES / port / "flags") or 0) & _UP:
            found[port] = "DOWN"
        elif _number(_DEVICES / port / "carrier") == 0:
            found[port] = "NO-CARRIER"
    return found


_UP = 0x1

_REFUSED = {
    "tunnel in": (os.strerror(errno.EXDEV), os.strerror(errno.EINVAL)),
    "container in": (os.strerror(errno.EXDEV),),
    "container out": (os.strerror(errno.EXDEV),),
    "host out": (),
}
"""Error codes of the kernel for a packet whose source the reverse path filter refuses. For a packet to the
host itself, the answer may be EINVAL, which is also the answer for a blackhole."""

_KERNELS_RULES = frozenset({"0:", "32766:", "32767:"})


async def policy_rules(family: Family) -> tuple[str, ...]:
    """Return the policy rules of other programs, as `ip rule` lists them; empty if they are unreadable."""
    with contextlib.suppress(TargetError):
        return rules_in((await run_program("ip", f"-{family}", "rule")).output)
    return ()


def rules_in(output: str) -> tuple[str, ...]:
    """Return the policy rules of other programs in the output of `ip rule`."""
    rules = (line.split() for line in output.split("\n"))
    return tuple(" ".join(words) for words in rules if words and words[0] not in _KERNELS_RULES)


_SHAPERS = frozenset({"tbf", "htb", "hfsc", "cake", "netem"})


async def shapers(link: str) -> tuple[str, ...]:
    """Return the queueing disciplines of a link that limit its rate, delay or drop packets, and that have
    dropped packets; empty if they are unreadable.
    """
    with contextlib.suppress(TargetError, ValueError, KeyError, TypeError):
        ran = await run_program("tc", "-json", "-statistics", "qdisc", "show", "dev", link)
        return tuple(
            f"{one['kind']} has dropped {one['drops']} packets"
            for one in json.loads(ran.output)
            if one["kind"] in _SHAPERS and one["drops"]
        )
    return ()


async def taking_filters(links: Mapping[str, str]) -> tuple[TakingFilter, ...]:
    """Return the filters of traffic control at links that have dropped or redirected packets; empty if they
    are unreadable. Only the first _PLACES_ASKED places with filters are read.

    eBPF programs are not examined, because the kernel shows no actions of a program.

    Args:
        links: the kind of every link of the host, by name.
    """
    with contextlib.suppress(TargetError, ValueError, KeyError, TypeError):
        qdiscs = json.loads((await run_program("tc", "-json", "qdisc", "show")).output)
        places = [
            (one["dev"], direction)
            for one in qdiscs
            if one["dev"] in links
            for direction in _FILTERED.get(one["kind"], ())
        ][:_PLACES_ASKED]
        words = ("tc", "-json", "-statistics", "filter", "show", "dev")
        shown = await asyncio.gather(*(run_program(*words, *place) for place in places))
        return tuple(
            one
            for (link, direction), ran in zip(places, shown, strict=True)
            for one in taking_in(ran.output, link, direction, links)
        )
    return ()


_PLACES_ASKED = 32
"""Maximum number of links and directions whose filters are read. `tc` needs about 10 ms for each."""


_FILTERED = {"clsact": ("ingress", "egress"), "ingress": ("ingress",)}
"""The directions in which the filters of a queueing discipline may drop packets."""

_TAKING = frozenset({"drop", "stolen"})


def taking_in(output: str, link: str, direction: str, links: Mapping[str, str]) -> Iterator[TakingFilter]:
    """Yield the filters in the output of `tc -json -statistics filter show` whose actions took packets.

    A redirection to an ifb device loses no packets, because the device returns them.
    """
    for one in json.loads(output or "[]"):
        for action in one.get("options", {}).get("actions", ()):
            there = action.get("to_dev", "")
            stats = action.get("stats", {})
            packets = stats.get("drops", 0) if action["kind"] == "police" else stats.get("packets", 0)
            is_taking = action.get("control_action", {}).get("type") in _TAKING
            if is_taking and packets and links.get(there) != "ifb":
                yield TakingFilter(
                    link=link,
                    direction=direction,
                    priority=one["pref"],
                    text=f"{one['kind']} {f'redirects to {there}' if there else 'drops'}",
                    packets=packets,
                )


_NFT_FAMILIES: Mapping[Family, str] = {4: "ip", 6: "ip6"}


async def docker_table(family: Family) -> str:
    """Return the rules of Docker's nftables engine for a family as nft prints them; "" if this engine is not
    in use.
    """
    with contextlib.suppress(TargetError):
        ran = await run_program("nft", "list", "table", _NFT_FAMILIES[family], "docker-bridges")
        return "" if ran.status else ran.output
    return ""


async def ask_route(
    way: Way,
    destination: IpAddress,
    *,
    source: IpAddress | None = None,
    arrives_at: str | None = None,
    rules: tuple[str, ...] = (),
    mark: int = 0,
) -> RouteAnswer | None:
    """Return the answer of the kernel about the route of a packet; None if the kernel cannot be asked."""
    question = ["ip", f"-{destination.version}", "route", "get", str(destination)]
    question += [] if source is None else ["from", str(source)]
    question += [] if arrives_at is None else ["iif", arrives_at]
    question += [] if not mark else ["mark", hex(mark)]
    try:
        ran = await run_program(*question)
    except TargetError:
        return None
    answer = " ".join(ran.output.split("\n")[0].split()) if not ran.status else ran.cause
    words = [] if ran.status else answer.split()
    after = dict(itertools.pairwise(words))
    is_ipv4 = destination.version == 4  # the kernel has no reverse path filter for IPv6
    is_refused = is_ipv4 and ran.status and any(one in ran.complaint for one in _REFUSED[way])
    return RouteAnswer(
        way=way,
        destination=destination,
        text=f"{' '.join(question)}: {answer}",
        link=after.get("dev"),
        gateway=_address(after.get("via")),
        is_local=words[:1] == ["local"],
        refused_at=arrives_at if is_refused else None,
        rules=rules,
    )


def _address(text: str | None) -> IpAddress | None:
    """Return the address; None for the word `inet6`, which precedes the IPv6 gateway of an IPv4 route."""
    with contextlib.suppress(ValueError):
        return None if text is None else ip_address(text)
    return None


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"), 0)
    return None


log = logging.getLogger(__name__)

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
