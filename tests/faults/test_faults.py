"""Faults of the parts below and beside flanneld, while containers ping each other.

Each fault occurs on the host `victim`. Each test proves that the fault had an effect, and that the victim is
ready after it.
"""

import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import testlab
from pyflannel.lab.program import Program, cgroup_of
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.overlay import SOON_S
from testlab.usage import wait_ended

DIRECTORIES = ("/run/flannel", "/var/lib/flannel")
STOPPED_S = 30.0
LATE_S, LOST_SHARE, LATE_PORT = 2.0, 0.2, 2479
FLOOD_ADDRESSES = 10_000
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), Path("libfaketimeMT.so.1"))

FILL = """
number=0
while dd if=/dev/zero bs=4k of="$0/.filler.$number" 2>/dev/null; do number=$((number + 1)); done
while touch "$0/.filler.$number" 2>/dev/null; do number=$((number + 1)); done
"""
PROTECT = """
mount --bind /run/flannel /run/flannel
for place in /run /run/flannel; do mount -o remount,bind,ro $place || exit; done
! touch /run/flannel/.probe 2>/dev/null
"""
UNPROTECT = "umount --lazy /run/flannel; mount -o remount,bind,rw /run"


@contextmanager
def full(host: Host) -> Iterator[None]:
    """Use all space and all inodes of the directories of flanneld during a block."""
    for directory in DIRECTORIES:
        host.run(["sh", "-c", FILL, directory])
    try:
        yield
    finally:
        for directory in DIRECTORIES:
            host.run(["sh", "-c", 'rm "$0"/.filler.*', directory])


@contextmanager
def read_only(host: Host) -> Iterator[None]:
    """Make /run and the run directory read-only during a block, also for later attempts to open a file."""
    host.run(["sh", "-c", PROTECT])
    try:
        yield
    finally:
        host.run(["sh", "-c", UNPROTECT])


@pytest.mark.fault("disk full")
def test_packets_flow_while_the_disk_is_full(network) -> None:
    """Run and state directory have neither space nor inodes. New peers and a new daemon still work."""
    with network.pinged("disk full"):
        mark = network.mark()
        with full(network.victim):
            network.add_peer()
            network.wait_well()
            network.wait_logged(mark, "Could not save the last known leases")
            network.daemon.kill()
            network.join(network.victim)
            network.wait_peers()
            network.wait_logged(mark, "flannelctl gets no answer")
        network.wait_well()
        network.wait_logged(mark, "Saved the last known leases")


@pytest.mark.fault("/run read-only")
def test_packets_flow_while_the_run_directory_is_read_only(network) -> None:
    """A killed daemon starts again. The daemon follows leases without its socket."""
    with network.pinged("/run read-only"):
        mark = network.mark()
        with read_only(network.victim):
            network.add_peer()
            network.wait_well()
            network.daemon.kill()
            network.join(network.victim)
            network.wait_logged(mark, "flannelctl gets no answer")
            network.add_peer()
            network.wait_peers()
        network.wait_well()


@pytest.mark.fault("descriptors exhausted")
def test_packets_flow_while_no_file_descriptor_is_free(network) -> None:
    """The daemon continues, and later performs the failed actions."""
    with network.pinged("descriptors exhausted"):
        mark = network.mark()
        with limited(network.daemon, resource.RLIMIT_NOFILE, 0):  # open descriptors stay open
            network.add_peer()
            network.victim.run(["rm", "/run/flannel/subnet.env"])
            network.wait_logged(mark, "EMFILE")
        network.wait_well()
        network.wait_subnet_env()


@pytest.mark.fault("descriptors exhausted at start")
def test_a_start_without_a_free_file_descriptor_ends_with_one_line(network) -> None:
    """The daemon ends with one line that names the reason, and its successor becomes ready."""
    with network.pinged("descriptors exhausted at start"):
        network.daemon.kill()
        mark = network.mark()
        limited_daemon = network.launch("prlimit", "--nofile=14:14")
        assert limited_daemon.wait() == 1
        (line,) = [line for line in network.log_since(mark).splitlines() if line.startswith("F")]
        assert "Too many open files" in line
        network.join(network.victim)
        network.wait_well()


@pytest.mark.fault("memory limit")
def test_packets_flow_while_no_memory_is_free(network) -> None:
    """Allocations fail. The daemon continues, or ends and starts again."""
    with network.pinged("memory limit"):
        mark = network.mark()
        pages = int(Path(f"/proc/{network.daemon.pid}/statm").read_text().split()[0])
        with limited(network.daemon, resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE")):
            network.add_peers(40)
            network.wait_logged(mark, "lost", "MemoryError", "Traceback", "Cannot allocate", "ENOMEM")
        wait_until(
            lambda: network.daemon.exit_code is not None or network.is_well(),
            what="the daemon ends or continues",
            deadline_s=SOON_S,
        )
        if network.daemon.exit_code is not None:
            network.restart()
        network.wait_well()


@pytest.mark.fault("daemon stopped for 30 s")
def test_packets_flow_while_the_daemon_is_stopped(network) -> None:
    """The data path does not change. After the stop, the daemon repairs damage and reads missed changes."""
    with network.pinged("daemon stopped for 30 s") as pings:
        network.daemon.pause()
        network.add_peer()
        network.damage()
        pings.wait_s(STOPPED_S)
        assert not network.has_peers()
        network.daemon.go_on()
        network.wait_well()


@pytest.mark.fault("forwarder stopped for 30 s")
def test_a_stopped_forwarder_is_replaced(network) -> None:
    """The daemon detects that the forwarder does not respond, and replaces it."""
    before = network.forwarder_pid()
    with network.pinged("forwarder stopped for 30 s") as pings:
        with stopped(before):
            pings.wait_s(STOPPED_S)
        network.wait_well()
        assert network.forwarder_pid() != before


@pytest.mark.fault("OOM kill of the daemon")
def test_packets_flow_after_the_kernel_killed_the_daemon(network) -> None:
    with network.pinged("OOM kill of the daemon"):
        killed_for_memory(network, network.daemon.pid, network.add_peer)
        network.restart()
        network.wait_well()


@pytest.mark.fault("OOM kill of the forwarder")
def test_a_forwarder_that_the_kernel_killed_is_replaced(network) -> None:
    """The daemon starts another forwarder immediately."""
    before = network.forwarder_pid()
    with network.pinged("OOM kill of the forwarder"):
        killed_for_memory(network, before, lambda: network.add_peers(40))
        network.wait_well()
        assert network.forwarder_pid() != before


@pytest.mark.fault("clock steps by +25 h and -2 h")
def test_a_step_of_the_clock_has_no_effect_on_leases(network) -> None:
    """No lease expires because of a step of the clock, and a daemon that starts with a wrong clock keeps its
    subnet.
    """
    clock = network.victim.directory / "run/faketime"
    clock.write_text("+0\n")
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": "/run/faketime",
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with network.pinged("clock steps by +25 h and -2 h"):
        network.daemon.kill()
        network.join(network.victim, environment=faked)
        lease = network.overlay.status(network.victim).lease
        for hours in (25, -2):
            mark = network.mark()
            stepped = clock.with_name("faketime.new")
            stepped.write_text(f"{hours:+}h\n")
            stepped.rename(clock)
            network.add_peer()
            network.wait_well()
            assert logs_with_clock(network.log_since(mark), hours)
            network.daemon.kill()
            network.join(network.victim, environment=faked)
            network.wait_well()
            assert network.overlay.status(network.victim).lease.subnet == lease.subnet
        network.daemon.kill()
        network.join(network.victim)
        network.wait_well()


@pytest.mark.fault("etcd 2 s late, a fifth of its answers lost")
def test_peers_are_read_from_a_late_etcd(network) -> None:
    """A daemon starts with a late etcd, and reads new peers."""
    script = Path(testlab.__file__).with_name("late_etcd.py")
    port = re.search(r":(\d+)/", network.overlay.etcd.url)
    words = [sys.executable, script, LATE_PORT, "127.0.0.1", port[1], LATE_S, LOST_SHARE]
    late_etcd = network.overlay.lab.router.start_service([str(word) for word in words], name="late-etcd")
    with network.pinged("etcd 2 s late, a fifth of its answers lost"):
        network.daemon.kill()
        network.join(network.victim, store=network.overlay.etcd.url.replace(port[1], str(LATE_PORT)))
        network.add_peer()
        network.wait_well()
        network.daemon.kill()
        network.join(network.victim)
        network.wait_well()
    late_etcd.kill()


@pytest.mark.fault("netlink overrun")
def test_damage_without_a_notification_is_repaired(network) -> None:
    """Damage without a notification is also repaired."""
    network.add_peer()
    network.wait_well()
    with network.pinged("netlink overrun"):
        dropped = network.netlink_drops()
        network.daemon.pause()
        addresses = [f"172.31.{number >> 8}.{number & 255}/32" for number in range(FLOOD_ADDRESSES)]
        flood = "".join(f"address add {one} dev lo\naddress delete {one} dev lo\n" for one in addresses)
        network.victim.run(["ip", "-batch", "-"], text=flood)
        network.damage()
        assert network.netlink_drops() > dropped
        network.daemon.go_on()
        network.wait_well()


def logs_with_clock(log: str, hours: int) -> bool:
    """Return whether the time in a line of the log is this number of hours ahead of the clock."""
    ahead = datetime.now(UTC).astimezone() + timedelta(hours=hours)
    minutes = {f"{ahead - timedelta(minutes=number):%m%d %H:%M}" for number in range(5)}
    return any(line[1:11] in minutes for line in log.splitlines())


@contextmanager
def limited(program: Program, kind: int, limit: int) -> Iterator[None]:
    """Set the soft limit of a running program during a block."""
    soft, hard = resource.prlimit(program.pid, kind)
    resource.prlimit(program.pid, kind, (limit, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(program.pid, kind, (soft, hard))


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process during a block, unless something kills it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


def killed_for_memory(network, pid: int, make_it_allocate: Callable[[], None]) -> None:
    """Move a process into a control group with too little memory, and wait until the kernel kills it."""
    group = memory_group(network.victim.directory)
    limits = [group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists()]
    if not limits:
        pytest.skip("needs control groups with a limit of memory")
    (group / "cgroup.procs").write_text(str(pid))
    limits[0].write_text("0")
    make_it_allocate()
    wait_ended(pid, SOON_S)
    events = (group / "memory.oom_control", group / "memory.events")
    counts = [path.read_text() for path in events if path.exists()]
    assert re.search(r"oom_kill [1-9]", "".join(counts))


def memory_group(directory: Path) -> Path:
    """Create a control group below the control group of the sandbox in `directory`. The lab removes the
    group.
    """
    roots = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")]
    root = next(root for root in roots if (root / "cgroup.procs").exists())
    parent = root / cgroup_of(directory)
    parent.mkdir(parents=True, exist_ok=True)
    for group in (*reversed(parent.parents), parent):
        # The file exists in version 2, where a group has no limit by default.
        control = group / "cgroup.subtree_control"
        if control.exists() and "memory" in (group / "cgroup.controllers").read_text().split():
            control.write_text("+memory")
    return Path(tempfile.mkdtemp(dir=parent))
