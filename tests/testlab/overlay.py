"""A lab whose hosts join one flannel network on a real etcd, and streams of pings in it."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.commands.network_client import ControlClient
from pyflannel.errors import LabError, NotReadyError
from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import LEFT, Host
from pyflannel.lab.waiting import wait_until
from pyflannel.model.status import Status
from pyflannel.wire.forwarder_control import (
    SOCKET_NAME,
    ForwarderState,
    FrameReader,
    Kind,
    Peer,
    decode_state,
    encode_frame,
)

SOON_S = 60.0
"""Deadline of waits in seconds. The deadline is much longer than necessary, because the machine may be
busy."""

PINGS_SLEEP_S = 0.01
"""With a shorter interval, the program ping needs a whole processor."""

PING_OFTEN = [sys.executable, "-S", str(Path(__file__).with_name("ping_often.py"))]
"""A program that sends pings at any interval, with the options -i, -I, -c and -W of ping."""

CHANGED_FLANNELD = """
import sys
from pyflannel.engine import {module}
{module}.{constant} = {value}
from pyflannel.programs.flanneld import main
sys.exit(main())
"""
"""A flanneld with another value of a constant."""


_numbers = itertools.count(1)


class Overlay:
    """A lab whose hosts join one flannel network on a real etcd, and queries about them.

    Attributes:
        daemons: the latest flanneld of each host, by the host's name.
    """

    def __init__(self, lab: Lab, etcd: EtcdServer, etcd_program: Program) -> None:
        self.lab = lab
        self.etcd = etcd
        self.etcd_program = etcd_program
        self.hosts = lab.hosts
        self.daemons: dict[str, Program] = {}

    @staticmethod
    def config(**more: Any) -> str:
        """Return a network config with subnets from 10.100.100.0/24 to 10.100.127.0/24.

        Subnets that a test writes manually are outside this range, so that no host chooses them.
        """
        drawn = {"SubnetMin": "10.100.100.0", "SubnetMax": "10.100.127.0"}
        return json.dumps({"Network": "10.100.0.0/16", **drawn, **more})

    def join(self, host: Host) -> None:
        """Start flanneld and wait until packets can flow."""
        self.daemons[host.name] = host.start_flanneld(f"--store={self.etcd.url}")

    def join_without_audits(self, host: Host) -> None:
        """Start a flanneld that repairs only announced damage, and wait until packets can flow."""
        self.join_with(host, module="reconciler", constant="AUDIT_S", value=1e9)

    def join_with(self, host: Host, *flags: str, module: str, constant: str, value: float) -> None:
        """Start a flanneld with another value of a constant of an engine module, and wait as `join` does."""
        program = CHANGED_FLANNELD.format(module=module, constant=constant, value=value)
        daemon = [sys.executable, "-c", program, f"--store={self.etcd.url}", *flags]
        self.daemons[host.name] = host.start_service(daemon, name="flanneld")

    def set_backend(self, kind: str, **options: Any) -> None:
        """Write a network config with this backend, and with subnets of sixteen addresses."""
        config = self.config(SubnetLen=28, Backend={"Type": kind, **options})
        self.etcd.etcdctl("put", f"{PREFIX}/config", config)

    def give_ipv6(self, *hosts: Host) -> None:
        """Give the router and these hosts IPv6 addresses on their segments, and default routes."""
        router = self.lab.router
        router.run(["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1"])
        for number, segment in enumerate(("left", "right"), start=1):
            router.run(["ip", "address", "replace", f"fd07:{number}::fe/64", "dev", f"gw-{segment}", "nodad"])
        for host in hosts:
            address = ipv6_underlay(host)
            gateway = address.network[0xFE]
            batch = f"address replace {address} dev eth0 nodad\nroute replace default via {gateway}\n"
            host.run(["ip", "-batch", "-"], text=batch)
            host.run(["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1", "net.ipv4.ip_forward=1"])

    def put_peers(self, kind: str, count: int) -> None:
        """Write the leases of this number of peers that do not exist: /28s from 10.100.128.0 on.

        The first ninety have addresses on the left segment.
        """
        command = ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={self.etcd.endpoint}", "txn"]
        puts = [_put_peer(kind, number) for number in range(count)]
        for first in range(0, count, _MOST_AT_ONCE):
            some = "".join(puts[first : first + _MOST_AT_ONCE])
            self.lab.router.run(command, text=f"\n{some}\n\n")

    def delete_leases(self) -> None:
        """Delete every lease from the store."""
        self.etcd.etcdctl("del", "--prefix", f"{PREFIX}/subnets/")

    def settle(self, *hosts: Host) -> None:
        """Wait until each of these joined hosts knows the other hosts, and has no tentative address."""
        for host in hosts:
            self.wait_status(host, lambda status: status.peers >= len(hosts) - 1, "knows the others")
            self.wait_at_rest(host)

    def wait_at_rest(self, host: Host) -> None:
        """Wait until no address of the host is tentative. IPv6 takes seconds to verify an address."""
        wait_until(
            lambda: "tentative" not in host.run(["ip", "-6", "address", "show", "tentative"]).stdout,
            what=f"{host.name} is at rest",
            deadline_s=2 * SOON_S,
        )

    def status(self, host: Host) -> Status:
        """Wait until the host's daemon responds. Return the status of the daemon."""
        return self.wait_status(host, lambda _: True, "answers")

    def log(self, host: Host) -> str:
        """The log of the host's daemons."""
        log = host.directory / "log/flanneld.log"
        return log.read_text() if log.exists() else ""

    def wait_logged(self, host: Host, *parts: str, after: int = 0, deadline_s: float = SOON_S) -> str:
        """Wait until the log of the host's daemons contains each part after this number of characters.

        A repair appears in the kernel before it appears in the log.
        """
        try:
            wait_until(
                lambda: all(part in self.log(host)[after:] for part in parts),
                what=f"flanneld on {host.name} logs {parts}",
                deadline_s=deadline_s,
            )
        except LabError as error:
            pytest.fail(f"{error}; its log:\n{self.log(host)[after:]}")
        return self.log(host)[after:]

    def wait_status(
        self, host: Host, holds: Callable[[Status], bool], what: str, deadline_s: float = SOON_S
    ) -> Status:
        """Wait until `holds` is true for the status of the host's daemon. Return the status.

        The result of an action appears in the kernel before it appears in the status.
        """
        seen: list[Status] = []

        client = ControlClient(run_dir(host) / Places().control_socket.name)

        def look() -> bool:
            with contextlib.suppress(NotReadyError):
                seen.append(asyncio.run(client.status()))
                return holds(seen[-1])
            return False

        try:
            wait_until(look, what=f"{host.name} {what}", deadline_s=deadline_s)
        except LabError as error:
            pytest.fail(f"{error}; its status: {seen[-1:]}; its log:\n{self.log(host)[-2000:]}")
        return seen[-1]

    def wait_ready(self, host: Host) -> Status:
        """Wait until the host's daemon is ready. Return the status of the daemon."""
        return self.wait_status(host, lambda status: status.is_ready, "is ready")

    def forwarder(self, host: Host) -> ForwarderState | None:
        """The state of the host's forwarder; None if no forwarder responds."""
        answer = self.ask_forwarder(host, Kind.READ_STATE)
        return None if answer is None else decode_state(answer)

    def peers(self, host: Host) -> tuple[Peer, ...]:
        """Return the table of the host's forwarder; empty if no forwarder responds."""
        forwarder = self.forwarder(host)
        return () if forwarder is None else tuple(forwarder.peers)

    def ask_forwarder(self, host: Host, kind: Kind, payload: bytes = b"") -> bytes | None:
        """Send a request to the host's forwarder. Return the answer, or None if no forwarder responds."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            try:
                client.connect(str(run_dir(host) / SOCKET_NAME))
                client.sendall(encode_frame(kind, payload))
                reader = FrameReader()
                while data := client.recv(65536):
                    for answered, answer in reader.feed(data):
                        if answered is not Kind.CHANGED:
                            return answer
            except OSError:
                pass
        return None

    def forwarders(self, host: Host) -> int:
        """The number of forwarder processes on the host."""
        return sum("pyflannel.programs.forwarder" in command for command in host.commands())

    def wait_one_forwarder(self, host: Host) -> None:
        """Wait until only one forwarder runs on the host. After a hand-over, the old forwarder ends soon."""
        wait_until(
            lambda: self.forwarders(host) == 1, what=f"one forwarder on {host.name}", deadline_s=SOON_S
        )

    def state(self, host: Host) -> dict[str, Any]:
        """All objects of the host, without values that change when an equal object is created again."""
        forwarder = self.forwarder(host)
        subnet_env = run_dir(host) / "subnet.env"
        return {
            **network_state(host),
            "forwarder": forwarder and forwarder._replace(pid=0, peers=tuple(sorted(forwarder.peers))),
            "subnet.env": subnet_env.read_text() if subnet_env.exists() else None,
        }


def ipv6_underlay(host: Host) -> IPv6Interface:
    """Return the IPv6 address of a host on its segment."""
    segment = 1 if host.address in LEFT.gateway.network else 2
    return IPv6Interface(f"fd07:{segment}::{int(host.address) & 0xFF:x}/64")


def run_dir(host: Host) -> Path:
    """Return the run directory of the host's daemon, also if the host mounted a file system there."""
    return Path(f"/proc/{host.init_pid}/root/run/flannel")


def network_state(host: Host) -> dict[str, Any]:
    """Return the network of a host with filters, but without indexes, which are new for a new link."""
    *shown, others = host.run(["sh", "-c", _SHOW]).stdout.split("\n", maxsplit=5)
    links, addresses, routes, routes6, rules = (json.loads(line or "[]") for line in shown)
    for entry in (*links, *addresses):
        entry.pop("ifindex")
        entry.pop("link_index", None)
    return {
        "links": {link["ifname"]: link for link in links},
        "addresses": {link["ifname"]: link["addr_info"] for link in addresses},
        "routes": sorted(json.dumps(route) for route in (*routes, *routes6)),
        "rules": rules,
        "IPv6 and filters": [line for line in others.splitlines() if not line.startswith("#")],
    }


_SHOW = (
    "ip -json -details link; ip -json address; ip -json -4 route show table all;"
    " ip -json -6 route show table all; ip -json rule;"
    " grep -H . /proc/sys/net/ipv6/conf/*/disable_ipv6; iptables-save; ip6tables-save;"
    " nft list table inet decoy 2>/dev/null || true"
)


_MOST_AT_ONCE = 100
"""Operations of a transaction, of which etcd allows at most 128."""


def _put_peer(kind: str, number: int) -> str:
    """Return the line with which etcdctl writes a peer's lease."""
    subnet = IPv4Address("10.100.128.0") + 16 * number
    address = IPv4Address("10.10.10.2") + number if number < 90 else IPv4Address("172.16.0.0") + number
    lease: dict[str, Any] = {"PublicIP": str(address)}
    if kind != "udp":
        lease["BackendType"] = kind
    if kind == "vxlan":
        mac = f"0e:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        lease["BackendData"] = {"VNI": 1, "VtepMAC": mac}
    return f"put {PREFIX}/subnets/{subnet}-28 {json.dumps(json.dumps(lease))}\n"


class Answer(NamedTuple):
    """An answer to a ping with its number. Times are seconds since the epoch.

    Attributes:
        at: arrival of the answer.
        sent_at: when the ping was sent.
    """

    at: float
    number: int
    sent_at: float


class PingStream:
    """Continuous pings with numbers, from a host or a container to an address of the overlay."""

    def __init__(
        self,
        source: Host | NamespaceContainer,
        destination: IPv4Address | IPv6Address,
        *,
        interval_s: float,
        is_urgent: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        """Start pinging. An urgent stream gets up to a fifth of a processor, even on a busy machine.

        `options` are further options of ping.
        """
        program = ["ping", "-n", "-D"] if is_urgent or interval_s >= PINGS_SLEEP_S else PING_OFTEN
        command = [*program, "-i", str(interval_s), *options, str(destination)]
        if is_urgent:
            command = [*_A_FIFTH_OF_A_PROCESSOR, *command]
        self._program = source.start_in_network(command, name=f"ping-{next(_numbers)}")
        assert self._program.log is not None
        self._log = self._program.log

    def answers(self) -> list[Answer]:
        """Return the answers so far in the order of arrival. The numbers of the answers continue after a
        restart.
        """
        return _without_restarts(_answers(self._log.read_text()))

    def _latest(self) -> list[Answer]:
        """Return the last answer, without reading tens of thousands of earlier answers."""
        with self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            return _answers(log.read().decode())

    def wait_answered(self, deadline_s: float = SOON_S) -> None:
        """Wait until a ping that is sent after this call is answered."""
        now = time.time()
        wait_until(
            lambda: any(answer.sent_at > now for answer in self._latest()),
            what=f"an answer to {self._program.name}",
            deadline_s=deadline_s,
        )

    def wait_s(self, seconds: float) -> None:
        """Wait until pings were sent for this number of seconds, answered or not."""
        time.sleep(seconds)

    def __enter__(self) -> "PingStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no further pings. The last pings may still be in transit."""
        self._program.send(signal.SIGINT)
        self._program.wait()

    def is_silent_for(self, seconds: float) -> bool:
        """Return whether there was no answer for this time in seconds."""
        return time.time() - max((answer.at for answer in self._latest()), default=0.0) > seconds

    def lost(self) -> list[int]:
        """Return the numbers of unanswered pings before the last answered ping."""
        numbers = {answer.number for answer in self.answers()}
        return sorted(set(range(1, max(numbers, default=0))) - numbers)

    def longest_gap_s(self, since: float = 0.0) -> float:
        """Return the longest time between two successive answers after `since`."""
        times = [answer.at for answer in self.answers() if answer.at >= since]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)


def longest_silence_s(answers: Iterable[Answer], stalled_s: Callable[[float, float], float]) -> float:
    """Return the longest time between two successive answers between which pings were lost.

    `stalled_s` returns the seconds between two times for which the whole machine was stalled. These seconds
    do not count.
    """
    return max(map(partial(_silence_s, stalled_s), itertools.pairwise(answers)), default=0.0)


def _silence_s(stalled_s: Callable[[float, float], float], pair: tuple[Answer, Answer]) -> float:
    earlier, later = pair
    if later.number <= earlier.number + 1:
        return 0.0
    return later.at - earlier.at - stalled_s(earlier.at, later.at)


def _answers(text: str) -> list[Answer]:
    return [
        Answer(float(at), int(number), float(at) - float(took_ms) / 1e3)
        for at, number, took_ms in _ANSWER.findall(text)
    ]


def _without_restarts(answers: list[Answer]) -> list[Answer]:
    """Return the answers with the number of the ping since the first. ICMP counts to 65,535."""
    counted, rounds, last = [], 0, 0
    for answer in answers:
        if answer.number < last - _ICMP_NUMBERS // 2:
            rounds += 1
        elif answer.number > last + _ICMP_NUMBERS // 2:
            rounds -= 1
        last = answer.number
        counted.append(answer._replace(number=answer.number + rounds * _ICMP_NUMBERS))
    return counted


_ICMP_NUMBERS = 1 << 16

_A_FIFTH_OF_A_PROCESSOR = (
    *("chrt", "--deadline", "--sched-runtime=200000"),
    *("--sched-deadline=1000000", "--sched-period=1000000", "0"),
)
"""With a plain real-time priority, ping could stop the machine, because it polls while it has no route."""

_TAIL = 4000
_ANSWER = re.compile(r"^\[(\d+\.\d+)\] .*icmp_seq=(\d+) ttl=\d+ time=([\d.]+) ms", re.MULTILINE)


@contextmanager
def overlay_in(name: str) -> Iterator[Overlay]:
    """Create a lab with an etcd that contains the network config. No flanneld runs."""
    with Lab(f"{name}-{os.getpid()}") as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        program = etcd.start()
        etcd.etcdctl("put", f"{PREFIX}/config", Overlay.config())
        yield Overlay(lab, etcd, program)
