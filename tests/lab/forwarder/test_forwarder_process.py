"""The process of a forwarder: its start, its device and port, its replacement and its end."""

import asyncio
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from msgspec.structs import replace

from pyflannel.lab.waiting import wait_until
from pyflannel.model.state import Add, Remove, Replace, State
from pyflannel.processes import forwarder_descriptors, forwarder_launch
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.forwarder_descriptors import open_underlay_socket
from pyflannel.wire.forwarder_control import LOG_NAME
from testlab.usage import is_running, usage_of, wait_ended

DEADLINE_S = 60.0
OWNER = """
import asyncio, sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from pyflannel.model.forwarder import Forwarder
from pyflannel.model.state import Add
from pyflannel.processes.forwarder import ForwarderTarget

async def own():
    target = ForwarderTarget(Path(sys.argv[1]))
    forwarder = Forwarder(link="flannel0", tunnel_address=IPv4Address(sys.argv[2]),
        subnet=IPv4Network(sys.argv[2] + "/24"), listen_address=IPv4Address(sys.argv[3]), port=8285, mtu=1472)
    print(await target.apply([Add(forwarder)]), flush=True)
    async with target.changes() as changes:
        while True:
            await changes.next()
            print("change", flush=True)

asyncio.run(own())
"""
"""A program that starts and owns a forwarder like the daemon."""


def test_an_applied_forwarder_is_read_back_unchanged(linked):
    """A snapshot equals the plan, so that a pass has nothing to do."""
    one, two = linked

    assert one.snapshot() == State.of(one.forwarder, two.peer())


def test_peers_change_in_place(linked):
    """Addresses and ports of peers are replaced, and peers removed, while packets flow."""
    one, two = linked
    moved, third = two.peer(port=9999), two.peer(subnet=IPv4Network("10.100.3.0/24"))

    assert not one.apply(Replace(two.peer(), moved), Add(third))
    assert one.snapshot() == State.of(one.forwarder, moved, third)
    assert not one.apply(Remove(moved), Remove(third), Remove(two.peer(subnet=IPv4Network("10.9.9.0/24"))))
    assert one.snapshot() == State.of(one.forwarder)


def test_the_process_of_the_forwarder_is_detached(hosts, monkeypatch):
    """The process has its own session, no inherited descriptors, and no settings of the daemon."""
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", "secret")
    monkeypatch.setenv("ETCDCTL_PASSWORD", "secret")
    one, _ = hosts
    assert not one.apply(Add(one.forwarder))
    pid = one.pid
    proc = Path(f"/proc/{pid}")

    files = set()
    for entry in (proc / "fd").iterdir():
        with suppress(FileNotFoundError):  # the connection that reported the process may just be closed
            files.add(str(entry.readlink()))

    assert os.getsid(pid) == pid
    assert b"secret" not in (proc / "environ").read_bytes()
    assert (proc / "cwd").readlink() == Path("/")
    assert (proc / "comm").read_text().strip() == "flannel-forward"
    assert files - {
        "/dev/null",
        "/dev/net/tun",
        str(one.run_dir / "forwarder.log"),
        "anon_inode:[eventpoll]",
    } == {name for name in files if name.startswith("socket:")}
    assert (one.run_dir / "forwarder.sock").stat().st_mode & 0o777 == 0o600


def test_the_forwarder_has_a_higher_priority_on_a_loaded_host(linked):
    """The process has a higher priority, and its session too if the scheduler groups processes by session."""
    pid = linked[0].pid

    assert os.getpriority(os.PRIO_PROCESS, pid) == -10
    autogroup = Path(f"/proc/{pid}/autogroup")
    if autogroup.exists():
        assert autogroup.read_text().endswith(" nice -10\n")


def test_forwarder_needs_few_modules_and_little_memory(linked):
    """The forwarder imports neither asyncio nor ipaddress nor dataclasses, and needs at most 16 MB."""
    check = (
        "import sys, pyflannel.programs.forwarder;"
        "print(sorted({'asyncio', 'ipaddress', 'dataclasses', 'logging', 'inspect'} & set(sys.modules)))"
    )

    imported = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    ).stdout
    (resident,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{linked[0].pid}/status").read_text())

    assert imported == "[]\n"
    assert int(resident) <= 16 * 1024


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_no_packet_is_lost_when_the_daemon_is_killed(hosts, blow):
    """1,000 pings a second continue while the owner and its process group end, and another owner starts."""
    one, two = hosts
    assert not two.apply(Add(two.forwarder), Add(one.peer()))
    owner = one.spawn(sys.executable, "-c", OWNER, str(one.run_dir), one.tunnel_address, one.address)
    assert owner.stdout.readline() == "[]\n"
    assert not one.apply(Add(two.peer()))
    for host in hosts:
        host.settle()
    pid = one.pid

    with one.pinging(two) as pings:
        wait_until(lambda: one.counters()["received_packets"] > 500, what="500 pings", deadline_s=DEADLINE_S)
        os.killpg(owner.pid, blow)
        owner.communicate(timeout=DEADLINE_S)
        found = one.snapshot()
        refusals = one.apply(Add(two.peer()))
        sent, received = pings()

    assert found == State.of(one.forwarder, two.peer())
    assert not refusals
    assert one.pid == pid
    assert (sent, received) == (3000, 3000)


def test_a_killed_forwarder_is_announced_and_leaves_no_zombie(linked):
    """The target reports the end immediately. After a restart, the state equals the plan and packets flow."""
    one, two = linked
    one.stop()

    async def live_through_a_kill():
        async with ForwarderTarget(one.run_dir) as target, target.changes() as changes:
            assert not await target.apply([Add(one.forwarder), Add(two.peer())])
            await changes.next()
            pid = one.pid
            os.kill(pid, signal.SIGKILL)
            await changes.next()
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.01)
            gone = await target.snapshot(State.EMPTY)
            again = await target.apply([Add(one.forwarder), Add(two.peer())])
            await changes.next()
            found = await target.snapshot(State.EMPTY)
            return gone, again, found

    gone, again, found = one.namespace.run(live_through_a_kill, DEADLINE_S)

    assert gone == State.EMPTY
    assert not again
    assert found == State.of(one.forwarder, two.peer())
    one.reach(two)


def test_a_deleted_device_is_announced_and_a_new_one_attached(linked):
    """The forwarder uses no processor time, keeps its table, and attaches to the new device."""
    one, two = linked
    detached = replace(one.forwarder, is_attached=False)

    async def live_through_a_deletion():
        async with ForwarderTarget(one.run_dir) as target, target.changes() as changes:
            await changes.next()
            await asyncio.to_thread(one.namespace.ip, "link delete flannel0")
            await changes.next()
            without = await target.snapshot(State.EMPTY)
            early = await target.apply([Replace(detached, one.forwarder)])
            before, _ = usage_of(one.pid).processor_s, await asyncio.sleep(0.3)
            spent_s = usage_of(one.pid).processor_s - before
            await asyncio.to_thread(one.add_device)
            refusals = await target.apply([Replace(detached, one.forwarder)])
            found = await target.snapshot(State.EMPTY)
            return without, early, spent_s, refusals, found

    without, early, spent_s, refusals, found = one.namespace.run(live_through_a_deletion, DEADLINE_S)

    assert without == State.of(detached, two.peer())
    assert [refusal.cause for refusal in early] == ["there is no device flannel0"]
    assert "flannel0" not in early[0].hint or early[0].hint
    assert spent_s <= 0.1  # usually a third of this time
    assert not refusals
    assert found == State.of(one.forwarder, two.peer())
    one.reach(two)


def test_another_device_with_the_same_name_is_not_used(linked):
    """flannel0 is renamed and created again: the attached device is no longer flannel0."""
    one, two = linked
    one.namespace.ip("link set flannel0 down")
    one.namespace.ip("link set flannel0 name elsewhere")
    one.add_device()

    assert one.snapshot() == State.of(replace(one.forwarder, is_attached=False), two.peer())
    assert not one.apply(Replace(replace(one.forwarder, is_attached=False), one.forwarder))
    one.reach(two)


def test_the_forwarder_never_creates_a_device(hosts):
    """Without its device, the forwarder waits, and logs one line."""
    one, _ = hosts
    one.namespace.ip("link delete flannel0")

    refusals = one.apply(Add(one.forwarder))

    assert [refusal.cause for refusal in refusals] == ["there is no device flannel0"]
    assert "flannel0" not in one.namespace.ip("-o link")
    assert one.snapshot() == State.of(replace(one.forwarder, is_attached=False))


def test_a_held_device_names_its_holder(namesake, hosts):
    """Another program reads flannel0. The error names this program."""
    one, _ = hosts
    hold = (
        "import fcntl, os, signal, struct; fd = os.open('/dev/net/tun', os.O_RDWR);"
        "fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', b'flannel0', 0x1001));"
        "print('held', flush=True); signal.pause()"
    )
    with one.spawn(sys.executable, "-c", hold) as holder:
        assert holder.stdout.readline() == "held\n"
        (refusal,) = one.apply(Add(one.forwarder))
        holder.kill()

    assert refusal.cause == f"flannel0 is in use by {Path(sys.executable).name}, pid {holder.pid}"
    assert refusal.hint


def test_a_port_in_use_names_its_holder(namesake, hosts):
    """No process remains, and the next attempt succeeds when the port is free."""
    one, two = hosts
    hold = (
        "import signal, socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "s.bind(('0.0.0.0', 8285)); print('held', flush=True); signal.pause()"
    )
    bystander = one.spawn(sys.executable, "-c", hold.replace("8285", "8286"))
    assert bystander.stdout.readline() == "held\n"
    with bystander, one.spawn(sys.executable, "-c", hold) as holder:
        assert holder.stdout.readline() == "held\n"
        refusals = one.apply(Add(one.forwarder), Add(two.peer()), Remove(one.peer()))
        bystander.kill()
        holder.kill()

    name = Path(sys.executable).name
    assert refusals[0].cause == f"UDP port 8285 of 10.9.0.1 is in use by {name}, pid {holder.pid}"
    assert "Backend.Port" in refusals[0].hint
    assert [refusal.operation for refusal in refusals[1:]] == [Add(two.peer())]
    assert one.snapshot() == State.EMPTY
    assert not one.apply(Add(one.forwarder), Add(two.peer()))


def test_a_port_whose_holder_ended_meanwhile_is_used_immediately(hosts, monkeypatch):
    """The first attempt fails because of the holder, the second attempt succeeds. No operation is refused."""
    one, two = hosts
    attempts = []

    def open_second_time(*address):
        attempts.append(address)
        if len(attempts) == 1:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return open_underlay_socket(*address)

    monkeypatch.setattr(forwarder_launch, "open_underlay_socket", open_second_time)

    assert not one.apply(Add(one.forwarder), Add(two.peer()))

    assert attempts == [(one.address, 8285)] * 2
    assert one.snapshot() == State.of(one.forwarder, two.peer())


def test_a_missing_address_is_reported(hosts):
    one, _ = hosts

    (refusal,) = one.apply(Add(replace(one.forwarder, listen_address=IPv4Address("10.9.0.77"))))

    assert refusal.cause == "the host has no address 10.9.0.77 to listen on"


def test_settings_change_by_a_new_process_with_the_same_peers(linked):
    one, two = linked
    pid, smaller = one.pid, replace(one.forwarder, mtu=1400)

    assert not one.apply(Replace(one.forwarder, smaller))

    wait_ended(pid)
    assert one.snapshot() == State.of(smaller, two.peer())
    one.reach(two)


def test_another_device_requires_another_process(linked):
    """The old process ends first, regardless of the order of the operations."""
    one, two = linked
    one.namespace.ip("tuntap add flannel1 mode tun")
    other = replace(one.forwarder, link="flannel1")

    assert not one.apply(Add(other), Add(two.peer(link="flannel1")), Remove(one.forwarder))

    assert one.snapshot() == State.of(other, two.peer(link="flannel1"))


def test_a_terminated_forwarder_ends(linked):
    """A service manager ends a forwarder by SIGTERM. The file of the socket belongs to the daemon, and
    remains.
    """
    one, _ = linked
    pid = one.pid

    os.kill(pid, signal.SIGTERM)
    wait_ended(pid)

    assert (one.run_dir / "forwarder.log").read_bytes() == b""
    assert one.snapshot() == State.EMPTY


def test_a_device_deleted_while_it_is_attached_to_is_not_created(hosts, monkeypatch):
    """The kernel creates a device that does not exist. The target removes the created device again."""
    one, _ = hosts
    attach = forwarder_descriptors._attach

    def delete_and_attach(descriptor, link):
        one.namespace.ip("link delete flannel0")
        attach(descriptor, link)

    monkeypatch.setattr(forwarder_descriptors, "_attach", delete_and_attach)

    async def try_to_attach():
        with pytest.raises(OSError, match="was replaced"):
            forwarder_descriptors.attach_device("flannel0")

    one.namespace.run(try_to_attach)
    assert "flannel0" not in one.namespace.ip("-o link")


def test_a_removal_leaves_nothing(linked):
    """No process, no socket and no log remains. A second removal succeeds."""
    one, two = linked
    pid = one.pid

    assert not one.apply(Remove(two.peer()), Remove(one.forwarder))

    wait_ended(pid)
    assert list(one.run_dir.iterdir()) == []
    assert one.snapshot() == State.EMPTY
    assert one.counters() == {}
    assert not one.apply(Remove(two.peer()), Remove(one.forwarder))


def test_a_running_forwarder_is_kept_and_the_socket_of_an_ended_one_is_replaced(linked):
    one, two = linked
    pid = one.pid

    (refusal,) = one.apply(Add(replace(one.forwarder, link="flannel1", port=8286)))
    assert f"another forwarder, pid {pid}, answers at" in refusal.cause
    one.stop()
    wait_ended(pid)
    assert (one.run_dir / "forwarder.sock").exists()

    assert not one.apply(Add(one.forwarder), Add(two.peer()))
    assert one.pid != pid


def test_without_a_tun_device_file_the_error_has_a_hint(hosts):
    """In a container without /dev/net/tun, the error is one line with a hint."""
    one, _ = hosts
    # The owner starts in a mount namespace without the file.
    owner = one.spawn(
        *("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"),
        *(sys.executable, "-c", OWNER, str(one.run_dir), one.tunnel_address, one.address),
    )
    try:
        said = owner.stdout.readline()
    finally:
        owner.kill()
        owner.communicate()

    assert "cause='ENOENT: No such file or directory (/dev/net/tun)'" in said
    assert "modprobe tun" in said


def test_a_forwarder_whose_socket_was_deleted_is_replaced(linked):
    """A forwarder without the file of its socket uses the port, but no process can control it."""
    one, two = linked
    pid = one.pid
    shutil.rmtree(one.run_dir)

    assert one.snapshot() == State.EMPTY
    assert not one.apply(Add(one.forwarder), Add(two.peer()))

    assert not is_running(pid)
    assert one.snapshot() == State.of(one.forwarder, two.peer())
    one.reach(two)


def test_an_unexpected_signal_is_logged_and_no_packet_is_lost(linked):
    """The log in the run directory names the signal. The forwarder continues with its peers."""
    one, two = linked
    pid = one.pid
    log = one.run_dir / LOG_NAME

    with one.pinging(two, seconds=1) as result:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
            wait_until(
                lambda line=f"ignored {number.name}": line in log.read_text(),
                what=f"{number.name} in the log",
                deadline_s=DEADLINE_S,
            )
        sent, received = result()

    assert (sent, received) == (1000, 1000)
    assert one.pid == pid
