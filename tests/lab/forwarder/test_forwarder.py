"""The forwarder on real devices and sockets: it carries packets in all situations."""

import asyncio
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pyflannel.errors import TargetError
from pyflannel.model.state import Add, Remove, Replace, State
from pyflannel.processes import forwarder_descriptors, forwarder_launch
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.forwarder_descriptors import open_underlay_socket
from pyflannel.processes.forwarder_launch import LOG_NAME

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


def wait_until(condition, what: str):
    """Return the condition's first true value before the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    pytest.fail(f"{what}: not within {DEADLINE_S} s")


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_ping_crosses_two_forwarders(linked):
    """Each forwarder decrements the TTL: the reply to the ping has a TTL of 62."""
    one, two = linked

    output = one.namespace.command("ping", "-c", "3", "-i", "0.1", "-W", "30", two.tunnel_address)

    assert output.count("ttl=62") == 3
    assert one.counters()["sent_packets"] == one.counters()["received_packets"] == 3


def test_each_tunnel_end_is_a_hop(linked):
    """Traceroute shows the host's tunnel address, then the peer's, then the destination."""
    one, two = linked
    hops = [
        one.namespace.attempt("ping", "-c", "1", "-W", "30", "-t", ttl, two.tunnel_address)
        for ttl in ("1", "2", "3")
    ]

    assert f"From {one.tunnel_address} icmp_seq=1 Time to live exceeded" in hops[0]
    assert f"From {two.tunnel_address} icmp_seq=1 Time to live exceeded" in hops[1]
    assert f"64 bytes from {two.tunnel_address}" in hops[2]


def test_the_sender_receives_an_error_without_a_route(linked):
    """A program that requests errors receives "network unreachable", at a limited rate."""
    one, _ = linked
    ask = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "s.setsockopt(0, 11, 1); s.settimeout(60); s.sendto(b'x', ('10.100.99.9', 9))\n"
        "try: s.recv(1)\n"
        "except OSError as error: print(error.strerror)\n"
        "f = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for _ in range(300): f.sendto(b'x', ('10.100.99.9', 9))"
    )

    started = time.monotonic()
    said = one.namespace.command(sys.executable, "-c", ask)
    counters = wait_until(lambda: (c := one.counters())["dropped_out_no_route"] >= 301 and c, "300 drops")

    assert said == "Network is unreachable\n"
    assert 1 <= counters["icmp_unreachable"] <= 50 + 100 * (time.monotonic() - started) + 1
    assert counters["icmp_unreachable"] + counters["icmp_held_back"] == counters["dropped_out_no_route"]


def test_no_packet_loops_if_a_peers_address_is_routed_into_the_tunnel(linked):
    """A ping, and one in fragments: each fragment of the tunnel datagram returns once, and is dropped."""
    one, two = linked
    looped = two.peer(address=IPv4Address("10.100.2.9"))
    assert not one.apply(Replace(two.peer(), looped))

    for size in ("56", "1444"):
        one.namespace.attempt("ping", "-c", "1", "-W", "1", "-s", size, "10.100.2.5")

    wait_until(lambda: one.counters()["dropped_out_loop"] == 3, "3 drops")
    assert int(one.namespace.command("cat", "/sys/class/net/flannel0/statistics/tx_packets")) < 10


def test_a_datagram_longer_than_the_path_mtu_is_fragmented(linked):
    """An underlay with a smaller MTU than planned causes fragments, but no packet is lost."""
    one, two = linked
    for host in linked:
        host.namespace.ip("link set eth0 mtu 1000")

    output = one.namespace.command(
        "ping", "-c", "3", "-i", "0.1", "-s", "1444", "-M", "do", "-W", "30", two.tunnel_address
    )

    assert output.count("ttl=62") == 3


def test_strangers_are_dropped_counted_and_remembered(linked):
    """Valid inner addresses do not help an unknown sender, nor a known sender invalid inner addresses."""
    one, two = linked
    one.namespace.ip("address add 10.9.0.66/24 dev eth0")
    ours, theirs, else_where = (IPv4Address(a).packed for a in ("10.100.2.9", "10.100.1.9", "10.100.3.9"))
    header = bytes.fromhex("450000140000000040110000")
    send = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0))\n"
        "s.sendto(bytes.fromhex(sys.argv[2]), ('10.9.0.2', 8285))"
    )

    def counted() -> dict[str, int]:
        """Return the number of received packets by result."""
        counts = two.counters().items()
        return {
            name: value for name, value in counts if value and ("_in_" in name or name == "received_packets")
        }

    packets = (
        ("10.9.0.66", header + theirs + ours),
        ("10.9.0.1", header + else_where + ours),
        ("10.9.0.1", header + theirs + else_where),
        ("10.9.0.1", b"\x60" + bytes(39)),
        ("10.9.0.1", b"short"),
        ("10.9.0.1", (header + theirs + ours).ljust(1473, b"x")),
        ("10.9.0.1", header + theirs + ours),
    )
    for number, (sender, packet) in enumerate(packets, start=1):
        one.namespace.command(sys.executable, "-c", send, sender, packet.hex())
        wait_until(  # the packets of two processes may arrive in another order
            lambda number=number: sum(counted().values()) == number, f"packet {number} of {len(packets)}"
        )

    assert counted() == {
        "dropped_in_impostor": 1,
        "dropped_in_stranger": 1,
        "dropped_in_not_ours": 1,
        "dropped_in_not_ipv4": 1,
        "dropped_in_short": 1,
        "dropped_in_long": 1,
        "received_packets": 1,
    }
    assert [
        (str(one.address), one.reason, one.packets, str(one.inner_source), str(one.inner_destination))
        for one in two.strangers()
    ] == [
        ("10.9.0.66", "impostor", 1, "10.100.1.9", "10.100.2.9"),
        ("10.9.0.1", "stranger", 1, "10.100.3.9", "10.100.2.9"),
        ("10.9.0.1", "not_ours", 1, "10.100.1.9", "10.100.3.9"),
    ]


def test_no_failure_of_the_underlay_or_the_device_stops_it(linked):
    """Without a route, or with the device down, packets are counted. They flow again as soon as possible."""
    one, two = linked
    for device, host, failure in (
        ("eth0", one, "send_failed_ENETUNREACH"),
        ("flannel0", two, "write_failed_EIO"),
    ):
        addresses = host.address + "/24" if device == "eth0" else host.tunnel_address + "/16"
        host.namespace.ip(f"link set {device} down")
        one.namespace.attempt("ping", "-c", "2", "-i", "0.05", "-W", "0.2", two.tunnel_address)
        wait_until(lambda h=host, f=failure: h.counters().get(f, 0) >= 2, failure)
        host.namespace.ip(f"link set {device} up")
        host.namespace.attempt("ip", "address", "add", addresses, "dev", device)
        one.reach(two)


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


def test_process_is_detached(hosts, monkeypatch):
    """It has its own session, no inherited descriptors, and no settings of the daemon in its environment."""
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


def test_forwarder_has_precedence_on_a_loaded_host(linked):
    """It has precedence on the processors, by its process and, if sessions have shares, by its session."""
    pid = linked[0].pid

    assert os.getpriority(os.PRIO_PROCESS, pid) == -10
    autogroup = Path(f"/proc/{pid}/autogroup")
    if autogroup.exists():
        assert autogroup.read_text().endswith(" nice -10\n")


def test_forwarder_needs_few_modules_and_little_memory(linked):
    """It imports neither asyncio nor ipaddress nor dataclasses, and needs at most 16 MB."""
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
    """1,000 pings a second continue while the owner and its process group end and another one takes over."""
    one, two = hosts
    assert not two.apply(Add(two.forwarder), Add(one.peer()))
    owner = one.spawn(sys.executable, "-c", OWNER, str(one.run_dir), one.tunnel_address, one.address)
    assert owner.stdout.readline() == "[]\n"
    assert not one.apply(Add(two.peer()))
    for host in hosts:
        host.settle()
    pid = one.pid

    with one.pinging(two) as pings:
        wait_until(lambda: one.counters()["received_packets"] > 500, "pings under way")
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
    """The target reports it immediately. After a restart, the state equals the plan and packets flow."""
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
    """It does not use the processor, keeps its table, and attaches to the new device."""
    one, two = linked
    detached = replace(one.forwarder, is_attached=False)

    async def live_through_a_deletion():
        async with ForwarderTarget(one.run_dir) as target, target.changes() as changes:
            await changes.next()
            await asyncio.to_thread(one.namespace.ip, "link delete flannel0")
            await changes.next()
            without = await target.snapshot(State.EMPTY)
            early = await target.apply([Replace(detached, one.forwarder)])
            before, _ = cpu_ticks(one.pid), await asyncio.sleep(0.3)
            spent = cpu_ticks(one.pid) - before
            await asyncio.to_thread(one.add_device)
            refusals = await target.apply([Replace(detached, one.forwarder)])
            found = await target.snapshot(State.EMPTY)
            return without, early, spent, refusals, found

    without, early, spent, refusals, found = one.namespace.run(live_through_a_deletion, DEADLINE_S)

    assert without == State.of(detached, two.peer())
    assert [refusal.cause for refusal in early] == ["there is no device flannel0"]
    assert "flannel0" not in early[0].hint or early[0].hint
    assert spent <= 10  # ticks of 10 ms, of the 30 in this time
    assert not refusals
    assert found == State.of(one.forwarder, two.peer())
    one.reach(two)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_another_device_with_the_same_name_is_not_used(linked):
    """flannel0 is renamed and created again: the attached device is no longer flannel0."""
    one, two = linked
    one.namespace.ip("link set flannel0 down")
    one.namespace.ip("link set flannel0 name elsewhere")
    one.add_device()

    assert one.snapshot() == State.of(replace(one.forwarder, is_attached=False), two.peer())
    assert not one.apply(Replace(replace(one.forwarder, is_attached=False), one.forwarder))
    one.reach(two)


def test_no_device_is_ever_created(hosts):
    """Without its device, the forwarder waits, and logs one line."""
    one, _ = hosts
    one.namespace.ip("link delete flannel0")

    refusals = one.apply(Add(one.forwarder))

    assert [refusal.cause for refusal in refusals] == ["there is no device flannel0"]
    assert "flannel0" not in one.namespace.ip("-o link")
    assert one.snapshot() == State.of(replace(one.forwarder, is_attached=False))


def test_a_held_device_names_its_holder(namesake, hosts):
    """Another program reads flannel0. The refusal names it."""
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
    """The first attempt meets the holder, the second does not. Nothing is refused."""
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

    wait_until(lambda: not is_running(pid), "the end of the process")
    assert one.snapshot() == State.of(smaller, two.peer())
    one.reach(two)


def test_another_device_requires_another_process(linked):
    """The old one ends first, regardless of the order of the operations."""
    one, two = linked
    one.namespace.ip("tuntap add flannel1 mode tun")
    other = replace(one.forwarder, link="flannel1")

    assert not one.apply(Add(other), Add(two.peer(link="flannel1")), Remove(one.forwarder))

    assert one.snapshot() == State.of(other, two.peer(link="flannel1"))


def test_a_terminated_forwarder_ends(linked):
    """As when a service manager ends it. The file of its socket, which belongs to the daemon, remains."""
    one, _ = linked
    pid = one.pid

    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_running(pid), "the end of the process")

    assert (one.run_dir / "forwarder.log").read_bytes() == b""
    assert one.snapshot() == State.EMPTY


def test_a_device_deleted_while_it_is_attached_to_is_not_created(hosts, monkeypatch):
    """The kernel creates a device that does not exist. The target removes it again."""
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
    """No process, no socket, no log remains. A second removal succeeds."""
    one, two = linked
    pid = one.pid

    assert not one.apply(Remove(two.peer()), Remove(one.forwarder))

    wait_until(lambda: not is_running(pid), "the end of the process")
    assert list(one.run_dir.iterdir()) == []
    assert one.snapshot() == State.EMPTY
    assert one.counters() == {}
    assert not one.apply(Remove(two.peer()), Remove(one.forwarder))


def test_a_living_forwarder_is_not_replaced_and_a_dead_one_s_socket_is(linked):
    one, two = linked
    pid = one.pid

    (refusal,) = one.apply(Add(replace(one.forwarder, link="flannel1", port=8286)))
    assert f"another forwarder, pid {pid}, answers at" in refusal.cause
    one.stop()
    wait_until(lambda: not is_running(pid), "the end of the process")
    assert (one.run_dir / "forwarder.sock").exists()

    assert not one.apply(Add(one.forwarder), Add(two.peer()))
    assert one.pid != pid


def test_another_user_is_refused(linked):
    """Even if the mode of the socket allows access to all users."""
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


def test_without_a_tun_device_file_the_error_has_a_hint(hosts):
    """In a container without /dev/net/tun, there is one line and a hint."""
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


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\0" * 100_000,
        b"pf\x01\x80\0\0\0\0",
        b"pf\x01\x02\0\0\0\x05hello",
        os.urandom(4096),
    ],
    ids=["http", "zeros", "an answer as request", "crooked peers", "random"],
)
def test_garbage_on_the_control_socket_ends_that_client_only(linked, octets):
    one, two = linked
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(one.run_dir / "forwarder.sock"))
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(octets)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""

    assert one.snapshot() == State.of(one.forwarder, two.peer())
    one.reach(two)


def test_a_client_that_does_not_read_delays_no_packet(linked):
    """After thousands of unread answers, it is disconnected.

    Other clients are served, and every ping returns.
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
    """The last ones are refused. When others disconnect, new ones are accepted again."""
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

    def found() -> State | None:
        with suppress(TargetError):  # until it has detected that they disconnected
            return one.snapshot()
        return None

    assert wait_until(found, "room again") == State.of(one.forwarder, two.peer())


def test_a_stopped_forwarder_is_distinguished_from_a_missing_one(linked, monkeypatch):
    """A forwarder that does not answer is an error with a hint. For a removal, it is killed."""
    monkeypatch.setattr("pyflannel.processes.forwarder_client.ANSWER_S", 0.3)
    one, _ = linked
    pid = one.pid
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(TargetError, match=rf"pid {pid}\) did not respond") as caught:
        one.snapshot()
    refusals = one.apply(Remove(one.forwarder))

    assert caught.value.hint
    assert not refusals
    wait_until(lambda: not is_running(pid), "the end of the process")


def test_a_forwarder_whose_socket_was_deleted_is_replaced(linked):
    """It uses the port, but no process can control it."""
    one, two = linked
    pid = one.pid
    shutil.rmtree(one.run_dir)

    assert one.snapshot() == State.EMPTY
    assert not one.apply(Add(one.forwarder), Add(two.peer()))

    assert not is_running(pid)
    assert one.snapshot() == State.of(one.forwarder, two.peer())
    one.reach(two)


def test_a_forwarder_that_is_silent_twice_is_killed(linked, monkeypatch):
    """The second of two looks reports none, so that the pass starts another one."""
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


def test_another_process_s_change_is_announced(linked):
    """Another process removes a peer: the target announces it. Own changes do not wake."""
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


def test_ten_thousand_peers_in_one_request(linked):
    """They are set, read back and removed, while packets flow."""
    one, two = linked
    many = [
        two.peer(subnet=IPv4Network((0x0B000000 + (i << 8), 24)), address=IPv4Address(0x0A090100 + i))
        for i in range(10_000)
    ]

    with one.pinging(two, per_second=200, seconds=3) as pings:
        assert not one.apply(*(Add(peer) for peer in many))
        found = one.snapshot()
        assert not one.apply(*(Remove(peer) for peer in many))
        sent, received = pings()

    assert found == State.of(one.forwarder, two.peer(), *many)
    assert one.snapshot() == State.of(one.forwarder, two.peer())
    assert sent == received == 600


def test_an_unexpected_signal_is_logged_and_no_packet_is_lost(linked):
    """The log in the run directory names it. The forwarder continues with its peers."""
    one, two = linked
    pid = one.pid
    log = one.run_dir / LOG_NAME

    with one.pinging(two, seconds=1) as result:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
            wait_until(
                lambda line=f"ignored {number.name}": line in log.read_text(), f"{number.name} is logged"
            )
        sent, received = result()

    assert (sent, received) == (1000, 1000)
    assert one.pid == pid
