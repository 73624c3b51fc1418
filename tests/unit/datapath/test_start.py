"""The start of a forwarder process by its daemon."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyflannel.datapath.forwarder import Watchdog
from pyflannel.processes.forwarder_descriptors import open_listener
from pyflannel.processes.found import FORWARDER
from pyflannel.wire.forwarder_control import (
    ForwarderState,
    FrameReader,
    Kind,
    Peer,
    Restriction,
    Settings,
    decode_state,
    decode_summary,
    encode_counters,
    encode_frame,
    encode_handed,
)

DEADLINE_S = 60.0
SETTINGS = Settings("flannel0", 0x0A640F00, 0x0A640F00, 24, 0x7F000001, 8285, 1472)
STATE = ForwarderState("0.1.0", 0, False, SETTINGS, (Peer(0x0A640100, 24, 0x7F000002, 8285),))


@contextmanager
def starting(*descriptors: int, count: int = 2) -> Iterator[tuple["subprocess.Popen[bytes]", socket.socket]]:
    """Start a process and send START."""
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    with ours, theirs:
        process = subprocess.Popen([sys.executable, "-m", FORWARDER], stdin=theirs, stderr=subprocess.PIPE)
        theirs.close()
        with process:
            start = encode_frame(Kind.START, encode_handed(count, STATE))
            socket.send_fds(ours, [start], descriptors)
            yield process, ours
            ours.close()


def answer(connection: socket.socket) -> tuple[Kind, bytes]:
    ((kind, payload),) = FrameReader().feed(connection.recv(65536))
    return kind, payload


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    with open_listener(str(tmp_path / "s")) as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        yield listener, udp


def test_the_forwarder_carries_packets_before_it_listens(
    sockets: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """A predecessor may end at this moment, and clients get the answers of a complete forwarder."""
    listener, udp = sockets
    with (
        starting(listener.fileno(), udp.fileno()) as (process, daemon),
        socket.socket(socket.AF_UNIX) as client,
    ):
        kind, payload = answer(daemon)
        assert kind is Kind.SUMMARY
        assert decode_summary(payload).restrictions >= Restriction.NO_CAPABILITIES
        with pytest.raises(ConnectionRefusedError):
            client.connect(str(tmp_path / "s"))

        daemon.sendall(encode_frame(Kind.LISTEN, encode_counters({"sent_packets": 7})))
        assert answer(daemon)[0] is Kind.DONE
        daemon.close()

        client.connect(str(tmp_path / "s"))
        client.sendall(encode_frame(Kind.READ_STATE))
        kind, payload = answer(client)
        assert decode_state(payload) == STATE._replace(pid=process.pid)
        client.sendall(encode_frame(Kind.STOP))
        assert process.wait(DEADLINE_S) == 0


def test_the_forwarder_ends_with_a_daemon_that_ends_before_it_listens(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    """No client can connect to this forwarder, and its predecessor continues."""
    listener, udp = sockets
    with starting(listener.fileno(), udp.fileno()) as (process, daemon):
        assert answer(daemon)[0] is Kind.SUMMARY
        daemon.close()

        assert process.wait(DEADLINE_S) == 0


def test_the_forwarder_notifies_the_watchdog_of_systemd(tmp_path: Path) -> None:
    """The forwarder sends three notifications in the period of the watchdog, and none if another process is
    watched.
    """
    path = str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        watchdog = Watchdog(environ)
        watchdog.sign()
        watchdog.sign()

        assert watchdog.interval_s == 1
        assert systemd.recv(100) == b"WATCHDOG=1"
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
        assert Watchdog({**environ, "WATCHDOG_PID": "1"}).interval_s is None
        assert Watchdog({}).interval_s is None


def test_a_start_without_its_descriptors_ends_with_one_line(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    listener, _ = sockets
    with starting(listener.fileno()) as (process, _):
        assert process.stderr is not None
        assert process.stderr.read().endswith(b": received 1 descriptors instead of 2\n")
        assert process.wait(DEADLINE_S) == 1
