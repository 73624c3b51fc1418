"""One forwarder takes over from another on real devices. No packet is lost, even if the hand-over fails."""

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import closing, nullcontext
from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from pyflannel.errors import TargetError
from pyflannel.lab.waiting import wait_until
from pyflannel.model.state import Add, Replace, State
from pyflannel.processes import forwarder_launch
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.forwarder_launch import move_forwarder
from pyflannel.wire.forwarder_control import FrameReader, Kind, decode_handed, encode_frame
from testlab.usage import wait_ended

DEADLINE_S = 60.0
NEXT = "next"
"""A version that no forwarder has before its hand-over."""

OLD = """
from pyflannel.datapath.forwarder import Forwarder
from pyflannel.errors import WireError
from pyflannel.wire.forwarder_control import Kind

answer = Forwarder._answer

def answer_as_an_old_one(self, client, kind, *rest):
    if kind in (Kind.HAND_OVER, Kind.READ_SUMMARY):
        raise WireError("it is not a request", hint="")
    return answer(self, client, kind, *rest)

Forwarder._answer = answer_as_an_old_one
"""
"""A forwarder that disconnects clients with unknown requests, like the first versions."""

FOREIGN = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[2])
listener.listen()
print("listening", flush=True)
while True:
    client, _ = listener.accept()
    client.recv(100)
    client.sendall(b"pf\\x63\\x80" + bytes(60))
"""


def hand_over(host, new=None, version=NEXT):
    """Let the host's forwarder be replaced; return the refusals."""
    new = new or host.forwarder
    return host.apply(Replace(replace(host.forwarder, is_current=False), new), version=version)


def ask_for_everything(host) -> socket.socket:
    """Return a connection on which the forwarder offered its state, but no successor took over."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE_S)
    client.connect(str(host.run_dir / "forwarder.sock"))
    client.sendall(encode_frame(Kind.HAND_OVER))
    data, descriptors, _, _ = socket.recv_fds(client, 65536, 8)
    for descriptor in descriptors:
        os.close(descriptor)
    ((kind, payload),) = FrameReader().feed(data)
    assert kind is Kind.HANDED
    assert decode_handed(payload)[0] == len(descriptors) == 3
    return client


@pytest.mark.timeout(300)
def test_no_ping_is_lost(linked, long_run):
    """A forwarder replaces another at 1,000 pings a second: once with 1,000 pings, or twenty times with 5,000
    by --long.
    """
    one, two = linked
    seconds = 5 if long_run else 1
    counted = 0
    for number in range(20 if long_run else 1):
        pid = one.pid
        with one.pinging(two, seconds=seconds) as pings:
            wait_until(
                lambda so_far=counted: one.counters()["received_packets"] > so_far + 200,
                what="pings under way",
                deadline_s=DEADLINE_S,
            )
            refusals = hand_over(one, version=f"{NEXT}{number}")
            sent, received = pings()
        counted += received

        assert not refusals
        assert (sent, received) == (1000 * seconds, 1000 * seconds)
        assert one.pid != pid
        wait_ended(pid)
        assert one.counters()["sent_packets"] == one.counters()["received_packets"] == counted


def test_the_complete_state_is_handed_over(linked):
    """The state is peers, device, port and control socket. The control socket exists all the time."""
    one, two = linked

    assert not hand_over(one)

    assert one.snapshot() == State.of(replace(one.forwarder, is_current=False), two.peer())
    assert (one.run_dir / "forwarder.log").read_bytes() == b""
    assert not one.apply(Replace(two.peer(), two.peer(port=9999)))
    assert not hand_over(one, version=None)
    assert one.snapshot() == State.of(one.forwarder, two.peer(port=9999))


@pytest.mark.parametrize("failures", [1, 3])
def test_a_forwarder_of_root_that_cannot_be_replaced_is_killed(linked, monkeypatch, failures: int):
    """The new forwarder may start too late on a busy host. A flanneld of another user cannot use the old
    forwarder.
    """
    one, two = linked
    pid, attempts = one.pid, []
    monkeypatch.setattr(forwarder_launch, "_as_user", lambda uid, gid: nullcontext())
    monkeypatch.setattr(forwarder_launch, "_refuses", lambda *_: asyncio.sleep(0, True))

    def connect(_: str) -> socket.socket:
        attempts.append(1)
        ours, its = socket.socketpair()
        with its:
            if len(attempts) > failures:
                one.spawn_forwarder(its)
        ours.setblocking(False)
        return ours

    monkeypatch.setattr(forwarder_launch, "connect_to_new", connect)

    async def move() -> str:
        try:
            return str(await move_forwarder(one.run_dir, 0, 0))
        except TargetError as error:
            return str(error)

    moved = one.namespace.run(move)

    wait_ended(pid)
    if failures == 1:
        assert moved == "True"
        one.reach(two)
    else:
        assert "was not replaced, and was killed" in moved
        assert len(attempts) == 3


@pytest.mark.parametrize(
    "changes", [{"mtu": 1400}, {"tunnel_address": IPv4Address("10.100.1.1")}], ids=["MTU", "tunnel address"]
)
def test_no_ping_is_lost_when_settings_change(linked, changes):
    """Device and port are kept, and so are their queues."""
    one, two = linked
    changed = replace(one.forwarder, **changes)

    with one.pinging(two, seconds=1) as pings:
        assert not one.apply(Replace(one.forwarder, changed))
        found = one.snapshot()
        sent, received = pings()

    assert found == State.of(changed, two.peer())
    assert (sent, received) == (1000, 1000)


def test_another_port_is_bound_before_the_old_one_is_closed(linked):
    one, two = linked
    moved = replace(one.forwarder, port=8286)

    assert not one.apply(Replace(one.forwarder, moved))
    assert not two.apply(Replace(one.peer(), one.peer(port=8286)))

    assert one.snapshot() == State.of(moved, two.peer())
    one.reach(two)
    ports = {line.split()[3].rpartition(":")[2] for line in one.namespace.command("ss", "-Hlun").splitlines()}
    assert ports == {"8286"}


def test_with_an_unavailable_port_the_old_forwarder_continues(linked):
    """The new forwarder exits before it takes over, because its port is unavailable."""
    one, two = linked
    pid = one.pid
    words = (
        "import socket; s = socket.socket(type=2); s.bind(('10.9.0.1', 8286)); print(1, flush=True); input()"
    )
    other = subprocess.Popen(
        ["ip", "netns", "exec", one.namespace.name, sys.executable, "-c", words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        other.stdout.readline()
        (refusal,) = one.apply(Replace(one.forwarder, replace(one.forwarder, port=8286)))
    finally:
        other.communicate(b"\n")

    assert "UDP port 8286 of 10.9.0.1 is in use by" in refusal.cause
    assert one.pid == pid
    assert one.snapshot() == State.of(one.forwarder, two.peer())
    one.reach(two)


def test_a_successor_that_ends_before_it_takes_over_changes_nothing(linked):
    """Packets flow during the attempt.

    The forwarder refuses changes, because the successor would not get them. After the attempt, the forwarder
    accepts changes again.
    """
    one, two = linked
    with closing(ask_for_everything(one)) as successor:
        one.namespace.command("ping", "-c", "3", "-i", "0.05", "-W", "30", two.tunnel_address)
        (refusal,) = one.apply(Replace(two.peer(), two.peer(port=9999)))
        (second,) = hand_over(one)
        successor.shutdown(socket.SHUT_RDWR)
    assert "handed over to another process" in refusal.cause
    assert "already being handed over to another process" in second.cause

    def is_taken() -> bool:
        return not one.apply(Replace(two.peer(), two.peer()))

    wait_until(is_taken, what="the end of the hand-over", deadline_s=DEADLINE_S)
    assert one.snapshot() == State.of(one.forwarder, two.peer())
    one.reach(two)


def test_without_the_device_the_rest_is_handed_over(linked):
    """The device was deleted. The successor attaches to the next device."""
    one, two = linked
    one.namespace.ip("link delete flannel0")
    detached = replace(one.forwarder, is_attached=False)
    wait_until(
        lambda: one.snapshot() == State.of(detached, two.peer()), what="no device", deadline_s=DEADLINE_S
    )

    (refusal,) = hand_over(one, version=None)
    found = one.snapshot()
    one.add_device()
    assert not one.apply(Replace(detached, one.forwarder))

    assert refusal.cause == "there is no device flannel0"
    assert found == State.of(detached, two.peer())
    one.reach(two)


def test_a_forwarder_without_hand_over_is_stopped_and_started_again(hosts, caplog):
    """Packets are lost for a moment, and the log reports this. The peers remain."""
    one, two = hosts
    assert not two.apply(Add(two.forwarder), Add(one.peer()))
    assert not one.apply(Add(one.forwarder), Add(two.peer()), python=one.changed(OLD), version="0.0.1")
    pid, found = one.pid, one.snapshot()

    assert not one.apply(Replace(replace(one.forwarder, is_current=False), one.forwarder))

    wait_ended(pid)
    assert found == State.of(replace(one.forwarder, is_current=False), two.peer())
    assert "the hand-over of the forwarder" in caplog.text
    assert one.snapshot() == State.of(one.forwarder, two.peer())
    one.reach(two)


def test_a_forwarder_without_summaries_is_asked_once(hosts):
    """The forwarder is older than its reported version. One pass fails. Later passes read the whole table."""
    one, two = hosts
    assert not one.apply(Add(one.forwarder), Add(two.peer()), python=one.changed(OLD))

    async def watch():
        target = ForwarderTarget(one.run_dir)
        first = await target.snapshot(State.EMPTY)
        with pytest.raises(TargetError, match="the connection to the forwarder ended"):
            await target.snapshot(State.EMPTY)
        return first, *[await target.snapshot(State.EMPTY) for _ in range(3)]

    found = one.namespace.run(watch)

    assert set(map(len, found)) == {2}
    assert all(state == State.of(one.forwarder, two.peer()) for state in found)


def test_a_forwarder_with_another_protocol_is_replaced(hosts):
    """The target replaces the forwarder after two requests, and only if the process is a forwarder."""
    one, _ = hosts
    path = one.run_dir / "forwarder.sock"

    def ask_twice(*name: str):
        process = one.spawn(sys.executable, "-c", FOREIGN, *name, str(path))
        assert process.stdout.readline() == "listening\n"

        async def act():
            target = ForwarderTarget(one.run_dir)
            with pytest.raises(TargetError, match=r"uses another protocol.*version 99"):
                await target.snapshot(State.EMPTY)
            return await target.snapshot(State.EMPTY)

        try:
            return one.namespace.run(act)
        finally:
            process.kill()
            process.communicate()
            path.unlink()

    assert ask_twice("pyflannel.programs.forwarder") == State.EMPTY
    with pytest.raises(TargetError, match="another protocol"):
        ask_twice("another.program")


def test_an_unchanged_table_is_not_read_again(linked):
    """After a change of the table by any process, the next snapshot shows the change."""
    one, two = linked
    other = two.peer(subnet=IPv4Network("10.100.3.0/24"))

    async def watch():
        target, somebody = ForwarderTarget(one.run_dir), ForwarderTarget(one.run_dir)
        await target.snapshot(State.EMPTY)
        first = await target.snapshot(State.EMPTY)
        again = await target.snapshot(State.EMPTY)
        assert not await somebody.apply([Add(other)])
        changed = await target.snapshot(State.EMPTY)
        assert not await somebody.apply([Replace(one.forwarder, replace(one.forwarder, mtu=1400))])
        return first, again, changed, await target.snapshot(State.EMPTY)

    first, again, changed, handed = one.namespace.run(watch)

    assert again is first
    assert first == State.of(one.forwarder, two.peer())
    assert changed == State.of(one.forwarder, two.peer(), other)
    assert handed == State.of(replace(one.forwarder, mtu=1400), two.peer(), other)


def test_a_lost_device_is_detected_with_an_unchanged_table(linked):
    one, two = linked

    async def watch():
        target = ForwarderTarget(one.run_dir)
        for _ in range(3):
            before = await target.snapshot(State.EMPTY)
        one.namespace.ip("link delete flannel0")
        return before, await target.snapshot(State.EMPTY)

    before, after = one.namespace.run(watch)

    assert before == State.of(one.forwarder, two.peer())
    assert after == State.of(replace(one.forwarder, is_attached=False), two.peer())
