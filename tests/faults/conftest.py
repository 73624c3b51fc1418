"""Hosts with a container each, a stream of pings between them, and the table of lost pings."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.commands.network_client import ControlClient
from pyflannel.errors import LabError, NotReadyError
from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program, read_environment_file
from pyflannel.lab.topology import LEFT, Host
from pyflannel.lab.waiting import together, wait_until
from pyflannel.wire.forwarder_control import Kind, encode_peers
from testlab.fault_table import PATHS, FaultRow, fault_rows
from testlab.overlay import SOON_S, Overlay, PingStream, run_dir

PING_INTERVAL_S = 0.001
_FLAGS = {"udp, user space": ("--fast-path=off",)}
_SMALL = "size=256k,nr_inodes=64"
_DIRECTORIES = ("/run/flannel", "/var/lib/flannel")
_rows = pytest.StashKey[list["Measured"]]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The cost of one fault on one data path."""

    fault: str
    path: str
    seconds: float
    sent: int
    lost: int
    reason: str


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name): a row of the table in docs/reliability.md")
    config.stash[_rows] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of a fault on each data path for which the table has a limit."""
    marker = metafunc.definition.get_closest_marker("fault")
    if marker is not None and "network" in metafunc.fixturenames:
        paths = tuple(fault_rows()[marker.args[0]].limits)
        metafunc.parametrize("network", paths, indirect=True, scope="module")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = sorted(config.stash[_rows], key=lambda row: row.fault)
    if rows:
        terminalreporter.section("pings during faults, 1,000 a second between two containers")
        line = "{:<42} {:<16} {:>7} {:>7} {:>6}  {}".format
        terminalreporter.write_line(line("fault", "path", "s", "pings", "lost", "reason"))
        for row in rows:
            seconds = f"{row.seconds:.1f}"
            terminalreporter.write_line(
                line(row.fault, row.path, seconds, row.sent, row.lost, row.reason if row.lost else "")
            )


class FaultNetwork:
    """Two hosts on one network, and a container on each.

    Attributes:
        victim: the host with the faults. Its run and state directories are small file systems.
        path: the data path, one of the columns of the table.
        peers: number of peers that are only leases.
    """

    def __init__(self, overlay: Overlay, path: str, measured: list[Measured]) -> None:
        self.overlay = overlay
        self.path = path
        self.kind = path.partition(",")[0]
        self.victim, self.other = overlay.hosts["docker1"], overlay.hosts["docker2"]
        self._measured = measured
        self.peers = 0
        for directory in _DIRECTORIES:
            self.victim.run(["mkdir", "-p", directory])
            self.victim.run(["mount", "-t", "tmpfs", "-o", _SMALL, "tmpfs", directory])
        overlay.set_backend(self.kind)
        together([partial(self.join, host) for host in (self.victim, self.other)])
        self.wait_well()
        overlay.settle(self.victim, self.other)
        self.source, self.target = (self._container(host) for host in (self.victim, self.other))

    @property
    def daemon(self) -> Program:
        """The flanneld of the victim."""
        return self.overlay.daemons[self.victim.name]

    def join(self, host: Host, *prefix: str, store: str = "", environment: Any = None) -> None:
        """Start flanneld by the command `prefix`, and wait until it is ready."""
        words = [*prefix, "flanneld", f"--store={store or self.overlay.etcd.url}", *_FLAGS.get(self.path, ())]
        self.overlay.daemons[host.name] = host.start_service(words, name="flanneld", environment=environment)

    def launch(self, *prefix: str, environment: Any = None) -> Program:
        """Start flanneld of the victim by the command `prefix`, without waiting."""
        words = [*prefix, "flanneld", f"--store={self.overlay.etcd.url}", *_FLAGS.get(self.path, ())]
        daemon = self.victim.start(words, name="flanneld", environment=environment)
        self.overlay.daemons[self.victim.name] = daemon
        return daemon

    def restart(self) -> None:
        """Start flanneld of the victim again, as systemd does."""
        self.daemon.wait()
        self.join(self.victim)

    def wait_well(self) -> None:
        """Wait until the victim is ready, and has each peer."""
        self.overlay.wait_status(
            self.victim, lambda status: status.is_ready and status.peers > self.peers, "is ready"
        )
        self.wait_peers()

    def is_well(self) -> bool:
        """Return whether the daemon answers that it is ready and has each peer."""
        client = ControlClient(run_dir(self.victim) / Places().control_socket.name)
        with suppress(NotReadyError):
            status = asyncio.run(client.status())
            return status.is_ready and status.peers > self.peers
        return False

    def wait_peers(self) -> None:
        """Wait until the data path of the victim has each peer, also if its daemon does not answer."""
        try:
            wait_until(self.has_peers, what="the peers in the data path", deadline_s=SOON_S)
        except LabError as error:
            pytest.fail(f"{error}; the log of {self.victim.name}:\n{self.log_since(0)[-4000:]}")

    def add_peer(self) -> None:
        """Write the lease of a further peer. `has_peers` returns whether the victim has the peer."""
        self.add_peers(1)

    def add_peers(self, count: int) -> None:
        """Write the leases of this number of further peers."""
        self.peers += count
        self.overlay.put_peers(self.kind, self.peers)

    def remove_peers(self) -> None:
        """Delete the leases of the peers that were added."""
        self.peers = 0
        first, end = (f"{PREFIX}/subnets/10.100.{third}" for third in ("128", "2"))
        self.overlay.etcd.etcdctl("del", first, end)

    def has_peers(self) -> bool:
        """Return whether the data path of the victim has each peer that was added."""
        if self.kind == "udp":
            return len(self.overlay.peers(self.victim)) > self.peers
        return len(self._peer_routes()) == self.peers

    def damage(self) -> None:
        """Delete objects of the data path that carry no ping. `has_peers` returns whether these objects
        exist.
        """
        if self.kind == "udp":
            peers = self.overlay.peers(self.victim)
            kept = [peer for peer in peers if (peer.subnet >> 8) & 255 < 128]
            self.overlay.ask_forwarder(self.victim, Kind.REPLACE_PEERS, encode_peers(kept))
            return
        lines = "".join(f"route delete {route}\n" for route in self._peer_routes())
        self.victim.run(["ip", "-batch", "-"], text=lines)

    def forwarder_pid(self) -> int:
        """Return the process ID of the victim's forwarder in the machine's namespace."""
        namespace = os.readlink(f"/proc/{self.victim.init_pid}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (process / "cmdline").read_text()
                if "pyflannel.programs.forwarder" in command and os.readlink(process / "ns/pid") == namespace:
                    return int(process.name)
        raise LabError("no forwarder runs", hint="Read its log.")

    def netlink_drops(self) -> int:
        """Return the number of notifications that the kernel could not deliver to programs of the victim."""
        lines = self.victim.run(["cat", "/proc/net/netlink"]).stdout.splitlines()
        column = lines[0].split().index("Drops")
        return sum(int(line.split()[column]) for line in lines[1:])

    def wait_subnet_env(self) -> None:
        """Wait until subnet.env exists."""
        wait_until((run_dir(self.victim) / "subnet.env").exists, what="subnet.env", deadline_s=SOON_S)

    def mark(self) -> int:
        """Return the length of the log of the victim's daemons."""
        return len(self.overlay.log(self.victim))

    def log_since(self, mark: int) -> str:
        """Return the lines logged after a mark."""
        return self.overlay.log(self.victim)[mark:]

    def wait_logged(self, mark: int, *texts: str) -> None:
        """Wait until one of the texts was logged after a mark."""
        wait_until(
            lambda: any(text in self.log_since(mark) for text in texts),
            what=f"the log of {self.victim.name} contains one of {texts}",
            deadline_s=SOON_S,
        )

    def _peer_routes(self) -> list[str]:
        routes = [route["dst"] for route in self.victim.routes() if route["dst"] != "default"]
        return [route for route in routes if int(route.split(".")[2]) >= 128 and route.startswith("10.100.")]

    @contextmanager
    def pinged(self, fault: str, *, is_limited: bool = True) -> Iterator[PingStream]:
        """Ping from container to container during a fault. The table limits the number of lost pings."""
        row: FaultRow = fault_rows()[fault]
        with PingStream(
            self.source, self.target.address, interval_s=PING_INTERVAL_S, is_urgent=True
        ) as stream:
            stream.wait_answered()
            yield stream
            stream.wait_answered()
        answers = stream.answers()
        lost = len(stream.lost())
        self._measured.append(
            Measured(
                fault=fault,
                path=self.path,
                seconds=answers[-1].at - answers[0].at,
                sent=max(answer.number for answer in answers),
                lost=lost,
                reason=row.reason,
            )
        )
        assert not is_limited or lost <= row.limits[self.path], (
            f"longest silence {stream.longest_gap_s():.3f} s"
        )

    def _container(self, host: Host) -> NamespaceContainer:
        variables = read_environment_file(host.run(["cat", "/run/flannel/subnet.env"]).stdout)
        gateway = IPv4Interface(variables["FLANNEL_SUBNET"])
        return host.container(f"c-{host.name}", gateway=gateway, mtu=int(variables["FLANNEL_MTU"]))


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> Iterator[FaultNetwork]:
    """Two hosts on the data path that is the parameter."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    path = request.param
    with Lab(f"flt{os.getpid()}-{list(PATHS).index(path)}") as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        program = etcd.start()
        etcd.etcdctl("put", f"{PREFIX}/config", json.dumps({"Network": "10.100.0.0/16"}))
        yield FaultNetwork(Overlay(lab, etcd, program), path, request.config.stash[_rows])


@pytest.fixture
def figures(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line that is visible regardless of the result of the test."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line}", end="", flush=True)

    return say
