"""The control socket of a forwarder, with clients that send garbage, do not read, or are too many."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing, suppress
from ipaddress import IPv4Network

import pytest

from pyflannel.errors import TargetError
from pyflannel.lab.waiting import wait_until
from pyflannel.model.state import Add, Remove, State
from pyflannel.processes.forwarder import ForwarderTarget
from testlab.usage import is_running, wait_ended

DEADLINE_S = 60.0


def test_another_user_is_refused(linked):
    """The socket refuses another user even if its mode allows access to all users."""
    one, two = linked
    (one.run_dir / "forwarder.sock").chmod(0o777)
    ask = (
        "import os, socket; os.setuid(65534)\n"
        "c = socket.socket(socket.AF_UNIX); c.connect('forwarder.sock')\n"
        "try: c.sendall(bytes.fromhex('7066010600000000')); print(c.recv(8))\n"
        "except (BrokenPipeError, ConnectionResetError): print(b'')"
    )

    said = subprocess.run(
        [sys.executable, "-c", ask], cwd=one.run_dir, capture_output=True, text=True, check=True
    ).stdout

    assert said == "b''\n"
    assert one.snapshot() == State.of(one.forwarder, two.peer())


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\0" * 100_000,
        b"pf\x01\x80\0\0\0\0",
        b"pf\x01\x02\0\0\0\x05hello",
        os.urandom(4096),
    ],
    ids=["http", "zeros", "an answer as request", "crooked peers", "random"],
)
def test_garbage_on_the_control_socket_ends_that_client_only(linked, data):
    one, two = linked
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(one.run_dir / "forwarder.sock"))
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(data)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""

    assert one.snapshot() == State.of(one.forwarder, two.peer())
    one.reach(two)


def test_a_client_that_does_not_read_delays_no_packet(linked):
    """After thousands of unread answers, the forwarder disconnects the client.

    The forwarder answers other clients, and every ping returns.
    """
    one, two = linked
    read_state = b"pf\x01\x01\0\0\0\0"
    with one.pinging(two, seconds=2) as pings, closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(one.run_dir / "forwarder.sock"))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(read_state * 1_000_000)
        found = one.snapshot()
        sent, received = pings()

    assert found == State.of(one.forwarder, two.peer())
    assert sent == received == 2000


def test_more_clients_than_the_maximum(linked):
    """The forwarder refuses the last clients. When other clients disconnect, the forwarder accepts new
    clients again.
    """
    one, two = linked
    clients = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for client in clients:
        client.connect(str(one.run_dir / "forwarder.sock"))
    clients[-1].settimeout(DEADLINE_S)
    assert clients[-1].recv(1) == b""
    with pytest.raises(TargetError):
        one.snapshot()
    for client in clients:
        client.close()

    def is_served() -> bool:
        with suppress(TargetError):  # until the forwarder detects that the clients disconnected
            return one.snapshot() == State.of(one.forwarder, two.peer())
        return False

    wait_until(is_served, what="an answer to a new client", deadline_s=DEADLINE_S)


def test_a_stopped_forwarder_is_distinguished_from_a_missing_forwarder(linked, monkeypatch):
    """A forwarder that does not answer causes an error with a hint. The removal of the forwarder from the
    plan kills the process.
    """
    monkeypatch.setattr("pyflannel.processes.forwarder_client.ANSWER_S", 0.3)
    one, _ = linked
    pid = one.pid
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(TargetError, match=rf"pid {pid}\) did not respond") as caught:
        one.snapshot()
    refusals = one.apply(Remove(one.forwarder))

    assert caught.value.hint
    assert not refusals
    wait_ended(pid)


def test_a_forwarder_that_is_silent_twice_is_killed(linked, monkeypatch):
    """The second of two snapshots contains no forwarder, so that the pass starts another forwarder."""
    one, two = linked
    pid = one.pid
    monkeypatch.setattr("pyflannel.processes.forwarder_client.ANSWER_S", 0.2)
    os.kill(pid, signal.SIGSTOP)

    async def look_twice():
        target = ForwarderTarget(one.run_dir)
        with pytest.raises(TargetError, match=rf"pid {pid}\) did not respond"):
            await target.snapshot(State.EMPTY)
        return await target.snapshot(State.EMPTY)

    assert one.namespace.run(look_twice) == State.EMPTY
    monkeypatch.undo()
    assert not is_running(pid)
    assert not one.apply(Add(one.forwarder), Add(two.peer()))


def test_only_forwarders_that_do_not_answer_are_ended(linked, namesake, monkeypatch):
    one, _ = linked

    async def end():
        return await ForwarderTarget(one.run_dir).end_unreachable()

    assert one.namespace.run(end) == []
    pid = one.pid
    monkeypatch.setattr("pyflannel.processes.forwarder_client.ANSWER_S", 0.2)
    os.kill(pid, signal.SIGSTOP)
    assert one.namespace.run(end) == [pid]
    assert not is_running(pid)
    assert is_running(namesake.pid)


def test_a_change_by_another_process_is_announced(linked):
    """The target announces that another process removed a peer. Changes by the target itself cause no
    announcement.
    """
    one, two = linked
    meddle = (
        "import socket, sys; c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]);"
        "c.sendall(bytes.fromhex('7066010200000000')); c.recv(8)"
    )

    async def watch():
        async with ForwarderTarget(one.run_dir) as target, target.changes() as changes:
            await changes.next()
            waiting = asyncio.ensure_future(changes.next())
            assert not await target.apply([Add(two.peer(subnet=IPv4Network("10.100.7.0/24")))])
            await target.snapshot(State.EMPTY)
            woken_by_us = waiting.done()
            await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", meddle, str(one.run_dir / "forwarder.sock")],
                check=True,
            )
            await waiting
            found = await target.snapshot(State.EMPTY)
            return woken_by_us, found

    woken_by_us, found = one.namespace.run(watch, DEADLINE_S)

    assert not woken_by_us
    assert found == State.of(one.forwarder)
