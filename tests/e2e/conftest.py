"""Real programs for the end-to-end tests, each with its own loopback ports and directory."""

import asyncio
import base64
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.commands.network_client import ControlClient, live_status
from pyflannel.errors import LabError, NotReadyError
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import COOKBOOK, LEFT, Host, Topology
from pyflannel.lab.waiting import together, wait_until
from pyflannel.wire.control_json import format_status
from testlab.overlay import run_dir
from testlab.pinging import Pings, pinging

START_S = 60
SOON_S = 60.0
"""Deadline of waits in seconds. The deadline is much longer than necessary, because the machine may be
busy."""

NETWORK_CONFIG = '{"Network":"10.100.0.0/16"}'
_labs = count(1)
_ports = iter(random.sample(range(10_000, 30_000), k=20_000))


def free_port() -> int:
    """Return an unused port of loopback, each port only once.

    The ports that the kernel assigns to clients are excluded: a client could use the port before the server
    starts, or between two starts.
    """
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@pytest.fixture(name="free_port", scope="session")
def _free_port() -> Callable[[], int]:
    """Return a function that finds an unused port of loopback."""
    return free_port


class Etcd:
    """A real etcd of one member, on free loopback ports. The data of etcd remain after `kill`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._peer_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        with (self.directory / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "etcd",
                    f"--data-dir={self.directory}/data",
                    "--unsafe-no-fsync",  # the data need not survive a failure of the machine
                    f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster=default={peer}",
                    "--bcrypt-cost=4",  # the passwords in tests are not secret
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while self.ctl("--dial-timeout=500ms", "endpoint", "health", check=False).returncode != 0:
            if time.monotonic() > deadline or self._process.poll() is not None:
                pytest.fail(f"etcd did not start: {(self.directory / 'etcd.log').read_text()[-2000:]}")

    def ctl(self, *arguments: str, text: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                "etcdctl",
                f"--endpoints={self.endpoint}",
                "--dial-timeout=20s",
                "--command-timeout=30s",
                *arguments,
            ],
            env=os.environ | {"ETCDCTL_API": "3"},
            input=text,
            capture_output=True,
            text=True,
            check=check,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal. After SIGSTOP, return when all threads have stopped."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd that several tests share. Each test changes only keys below its own prefix."""
    etcd = Etcd(tmp_path_factory.mktemp("etcd"))
    etcd.start()
    yield etcd
    etcd.kill()


@pytest.fixture
def new_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Etcd]]:
    """Yield a function that creates an etcd for one test. The function does not start the etcd."""
    made: list[Etcd] = []

    def make() -> Etcd:
        made.append(Etcd(tmp_path_factory.mktemp("etcd")))
        return made[-1]

    yield make
    for etcd in made:
        etcd.kill()


class Network:
    """Hosts of a separate lab, on one real store that contains the network config.

    Attributes:
        url: URL of the store for `--store`.
        etcd: the server; unused with the embedded store.
    """

    def __init__(self, lab: Lab, *, store: str) -> None:
        self.lab = lab
        self.hosts = lab.hosts
        self.etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        self.url = self.etcd.url if store == "etcd" else lab.sqlite_url

    def start(self, name: str, *flags: str) -> Program:
        """Start flanneld on a host and return when it has sent READY=1."""
        return self.hosts[name].start_flanneld("--store", self.url, *flags)

    def launch(self, name: str, *flags: str) -> Program:
        """Start flanneld on a host without waiting."""
        return self.hosts[name].launch_flanneld("--store", self.url, *flags)

    def start_all(self, *flags: str) -> list[Program]:
        """Start flanneld on all hosts at the same time; return when all have sent READY=1."""
        return together([partial(self.start, name, *flags) for name in self.hosts])

    def etcdctl(self, *argv: str) -> str:
        """Run etcdctl beside the server and return its output."""
        return self.etcd.etcdctl(*argv)

    def put(self, key: str, value: str, *flags: str) -> None:
        """Write a key below flannel's prefix."""
        self.etcdctl("put", *flags, f"{PREFIX}/{key}", value)

    def record(self, key: str) -> dict[str, Any] | None:
        """Return the record of etcd at a key below flannel's prefix, including its value and `lease`."""
        found = json.loads(self.etcdctl("get", "--write-out=json", f"{PREFIX}/{key}")).get("kvs")
        return None if not found else found[0] | {"value": base64.b64decode(found[0]["value"]).decode()}

    def lease_key(self, name: str) -> str:
        """Return the key of a host's lease, from the subnet in its subnet.env."""
        return f"subnets/{str(self.hosts[name].lease()).replace('/', '-')}"

    def overlay(self, name: str) -> str:
        """Return the address of a host's flannel0."""
        return str(self.hosts[name].lease().network_address)

    def status(self, name: str) -> dict[str, Any]:
        """Return the status of flanneld on a host when it responds."""
        return self.wait_status(name, lambda status: True, "answers")

    def leases_known(self, name: str) -> set[str]:
        """Return the subnets of all leases that flanneld on a host knows. The store is not read.

        The result is empty if flanneld does not respond in time.
        """
        try:
            return {str(entry.subnet) for entry in asyncio.run(ControlClient(self._socket(name)).leases())}
        except NotReadyError:
            return set()

    def log(self, name: str) -> str:
        """Return the log of flanneld on a host."""
        log = self.hosts[name].directory / "log/flanneld.log"
        return log.read_text() if log.exists() else ""

    def wait_logged(self, name: str, text: str, *, times: int = 1, deadline_s: float = SOON_S) -> None:
        """Wait until flanneld on a host has logged `text` this number of times."""
        try:
            wait_until(
                lambda: self.log(name).count(text) >= times,
                what=f"flanneld on {name} logs {text!r}",
                deadline_s=deadline_s,
            )
        except LabError as error:
            pytest.fail(f"{error}; its log:\n{self.log(name)}")

    def wait_status(
        self, name: str, holds: Callable[[dict[str, Any]], bool], what: str, *, deadline_s: float = SOON_S
    ) -> dict[str, Any]:
        """Wait until `holds` is true for the status of flanneld on a host. Return the document that
        flannelctl prints for this status, but without probes of peers and without the firewall.

        No flannelctl starts, because repeated starts would need most of the processor time of this level.
        """
        seen: list[dict[str, Any]] = []

        def look() -> bool:
            with suppress(NotReadyError):
                seen.append(json.loads(format_status(asyncio.run(live_status(self._socket(name))))))
                return holds(seen[-1])
            return False

        try:
            wait_until(look, what=f"{name} {what}", deadline_s=deadline_s)
        except LabError as error:
            pytest.fail(f"{error}; its status: {seen[-1:]}; its log:\n{self.log(name)}")
        return seen[-1]

    def _socket(self, name: str) -> Path:
        """Return the control socket of flanneld on a host."""
        return run_dir(self.hosts[name]) / Places().control_socket.name

    def wait_ready(self, name: str) -> dict[str, Any]:
        """Wait until a host is ready. Return the status of the daemon."""
        return self.wait_status(name, lambda status: bool(status["is_ready"]), "is ready")


@pytest.fixture(scope="session")
def network_of() -> Callable[..., AbstractContextManager[Network]]:
    """Create a network for the duration of a block. The store of the network runs and contains the config; no
    flanneld runs.

    Arguments: the names of the hosts, `store="etcd"` or `"sqlite"`, and the `config`. If `config` is None, no
    etcd runs.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces and mounts")

    @contextmanager
    def make(*names: str, store: str = "etcd", config: str | None = NETWORK_CONFIG) -> Iterator[Network]:
        places = tuple(place for place in COOKBOOK.hosts if place.name in names)
        with Lab(f"e{os.getpid()}-{next(_labs)}", Topology(COOKBOOK.segments, places)) as lab:
            network = Network(lab, store=store)
            if config is not None and store == "etcd":
                network.etcd.start()
                network.put("config", config)
            elif config is not None:
                network.hosts[names[0]].flannelctl("--store", network.url, "config", "set", config)
            yield network

    return make


@pytest.fixture
def new_network(
    network_of: Callable[..., AbstractContextManager[Network]],
) -> Iterator[Callable[..., Network]]:
    """Create networks like `network_of`, which are removed after the test."""
    with ExitStack() as stack:
        yield lambda *names, **settings: stack.enter_context(network_of(*names, **settings))


@pytest.fixture(name="pinging")
def _pinging() -> Callable[[Host, str], AbstractContextManager[Pings]]:
    """Ping an address from a host for the duration of a block."""
    return pinging
