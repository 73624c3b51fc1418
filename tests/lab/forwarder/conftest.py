"""Hosts with only a forwarder: a namespace, a veth, a TUN device, and the target that a daemon uses."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from msgspec.structs import replace

from pyflannel.lab.waiting import wait_until
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.state import Add, State
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.found import FORWARDER
from testlab.overlay import PING_OFTEN

DEADLINE_S = 60.0
REPLIES = re.compile(r"(\d+) packets transmitted, (\d+) received")


class Host:
    """A namespace on a veth pair, with flannel0. The subnet of the host is 10.100.NUMBER.0/24."""

    def __init__(self, namespace, number: int, run_dir: Path) -> None:
        run_dir.mkdir()
        self.namespace = namespace
        self.run_dir = run_dir
        self.address = f"10.9.0.{number}"
        self.tunnel_address = f"10.100.{number}.0"
        self.forwarder = Forwarder(
            link="flannel0",
            tunnel_address=IPv4Address(self.tunnel_address),
            subnet=IPv4Network(f"{self.tunnel_address}/24"),
            listen_address=IPv4Address(self.address),
            port=8285,
            mtu=1472,
        )

    def connect(self, other: "Host") -> None:
        self.namespace.ip(f"link add eth0 type veth peer name eth0 netns {other.namespace.name}")
        for host in (self, other):
            host.namespace.ip(f"address add {host.address}/24 dev eth0", "link set eth0 up")

    def add_device(self) -> None:
        self.namespace.ip(
            "tuntap add flannel0 mode tun",
            "link set flannel0 mtu 1472 up",
            f"address add {self.tunnel_address}/16 dev flannel0",
        )

    def settle(self) -> None:
        """Wait until the device accepts packets, a moment after a forwarder attached to it."""
        self.namespace.settle(eth0="UP", flannel0="UP")

    def reach(self, other: "Host") -> None:
        """Wait until `other` answers a ping. `other` answers a moment after its device was set up."""
        words = ["ping", "-c", "1", "-W", "1", other.tunnel_address]
        wait_until(
            lambda: " 1 received" in self.namespace.attempt(*words),
            what=f"an answer from {other.tunnel_address}",
            deadline_s=DEADLINE_S,
        )

    def changed(self, code: str) -> str:
        """Return an interpreter that runs `code`, which changes the forwarder, before the forwarder."""
        program = self.run_dir.with_suffix(".py")
        program.write_text(
            f"{code}\nimport sys\nfrom pyflannel.programs.forwarder import main\nsys.exit(main())"
        )
        interpreter = self.run_dir.with_suffix(".sh")
        interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
        interpreter.chmod(0o755)
        return str(interpreter)

    def peer(self, **changes) -> ForwarderPeer:
        """Return the peer object of this host, for the tables of other hosts."""
        ours = ForwarderPeer(
            link="flannel0", subnet=self.forwarder.subnet, address=IPv4Address(self.address), port=8285
        )
        return replace(ours, **changes)

    def apply(self, *operations, run_dir=None, python=sys.executable, version=None):
        async def act():
            return await ForwarderTarget(run_dir or self.run_dir, python, version).apply(operations)

        return self.namespace.run(act)

    def snapshot(self) -> State:
        async def act():
            return await ForwarderTarget(self.run_dir).snapshot(State.EMPTY)

        return self.namespace.run(act)

    def counters(self):
        async def act():
            return await ForwarderTarget(self.run_dir).counters()

        return self.namespace.run(act)

    def strangers(self):
        async def act():
            return await ForwarderTarget(self.run_dir).strangers()

        return self.namespace.run(act)

    @property
    def pid(self) -> int:
        """The process that listens on the control socket."""
        with closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.connect(str(self.run_dir / "forwarder.sock"))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], sys.byteorder)

    @contextmanager
    def pinging(self, other: "Host", per_second: int = 1000, seconds: float = 3):
        """Ping in the background. Yield a function that waits for the end and returns (sent, received)."""
        words = f"-i {1 / per_second} -c {int(per_second * seconds)} -W 30 {other.tunnel_address}"
        process = self.spawn(*PING_OFTEN, *words.split())

        def result() -> tuple[int, int]:
            output, _ = process.communicate(timeout=2 * DEADLINE_S)
            sent, received = REPLIES.search(output).groups()
            return int(sent), int(received)

        try:
            yield result
        finally:
            process.kill()
            process.communicate()

    def spawn(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace.name, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def spawn_forwarder(self, connection: socket.socket) -> None:
        """Start a forwarder as systemd does, with a connection as its standard input."""
        command = ["ip", "netns", "exec", self.namespace.name, sys.executable, "-m", FORWARDER]
        subprocess.Popen(command, stdin=connection)

    def stop(self) -> None:
        with suppress(OSError):
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def hosts(make_namespace, tmp_path):
    """Two hosts with devices, without a forwarder."""
    made = [Host(make_namespace(), number, tmp_path / f"run{number}") for number in (1, 2)]
    made[0].connect(made[1])
    for host in made:
        host.add_device()
    try:
        yield made
    finally:
        for host in made:
            host.stop()


@pytest.fixture
def namesake(make_namespace, tmp_path):
    """A third host, independent of the others, with a flannel0 and a port 8285."""
    host = Host(make_namespace(), 1, tmp_path / "namesake")
    host.namespace.ip(f"address add {host.address}/24 dev lo")
    host.add_device()
    try:
        assert not host.apply(Add(host.forwarder))
        yield host
    finally:
        host.stop()


@pytest.fixture
def linked(hosts):
    """Two hosts with the peer in the tables of their forwarders."""
    one, two = hosts
    assert not one.apply(Add(one.forwarder), Add(two.peer()))
    assert not two.apply(Add(two.forwarder), Add(one.peer()))
    for host in hosts:
        host.settle()
    return hosts
