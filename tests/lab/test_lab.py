"""The lab on the real kernel: its hosts have no access to the machine, and nothing remains of the hosts."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from pyflannel.errors import BusyError, LabError, UsageError
from pyflannel.lab.kernel_path import create_kernel_path, measure_kernel_path
from pyflannel.lab.lab import Lab, enter_host, remove_lab, standing_labs
from pyflannel.lab.lab_directory import ROOT, LabDirectory, without_removals
from pyflannel.lab.topology import LEFT, Host, HostPlace, Topology
from pyflannel.lab.traffic import ping, ping_all
from pyflannel.lab.waiting import wait_until
from testlab.faults import lossy, partitioned, paused, unplugged

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and mounts need root")

NAME = f"t{os.getpid()}"
SOON_S = 120.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab for the tests that do not change it."""
    with Lab(NAME) as lab:
        yield lab


def traces(name: str) -> list[str]:
    """Return files, control groups, processes and mounts of a lab on this machine."""
    directory = str(ROOT / name)
    found = [
        str(path)
        for path in (Path(directory), *Path("/sys/fs/cgroup").glob(f"**/flannel-lab/{name}"))
        if path.exists()
    ]
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and process.name != str(os.getpid()):
            try:
                seen = (process / "environ").read_text(errors="replace") + (process / "mountinfo").read_text()
            except (OSError, ProcessLookupError):
                continue
            if f"{directory}/" in seen:
                found.append(str(process))
    return found


def start_script(body: str, *into: str) -> subprocess.Popen[str]:
    """Start a program that opens a lab, reports it, and keeps it until the program is ended."""
    script = f"import sys, time\nfrom pyflannel.lab.lab import Lab\n{body}\n"
    hearing = ["env", "--default-signal=INT"]  # background jobs of a shell ignore SIGINT
    return subprocess.Popen(
        [*into, *hearing, sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hold(name: str) -> subprocess.Popen[str]:
    # Short sleeps, because a signal that arrives just before a sleep is handled after it.
    body = f"with Lab({name!r}) as lab:\n    print('up', flush=True)\n    while True: time.sleep(0.05)"
    program = start_script(body)
    assert program.stdout is not None
    assert program.stdout.readline() == "up\n"
    return program


def test_hosts_reach_each_other_across_the_router(lab: Lab) -> None:
    results = ping_all(lab.hosts.values())

    assert len(results) == 12
    assert all(result.is_reached for result in results.values())
    assert results["docker1", "docker2"].ttl == 64
    assert results["docker1", "docker4"].ttl == 63


def test_hosts_have_the_networks_of_the_cookbook(lab: Lab) -> None:
    for host in lab.hosts.values():
        (default,) = host.routes("default")
        assert (default["gateway"], default["dev"]) == (str(host.place.segment.gateway.ip), "eth0")
    addresses = [str(host.address) for host in lab.hosts.values()]
    assert addresses == ["10.10.10.101", "10.10.10.102", "192.168.50.101", "192.168.50.102"]


def test_each_host_is_a_separate_machine(lab: Lab) -> None:
    """Names, IDs, files and processes of a host differ from those of other hosts and of the machine."""
    one, other = lab.hosts["docker1"], lab.hosts["docker4"]
    ids = {host.run(["cat", "/etc/machine-id"]).stdout for host in lab.hosts.values()}

    one.run(["sh", "-c", "mkdir -p /run/flannel /etc/default && touch /run/flannel/here /etc/default/here"])

    assert one.run(["hostname"]).stdout == "docker1\n"
    assert len(ids) == 4
    assert other.run(["ls", "/run/flannel/here"], check=False).returncode != 0
    assert not Path("/run/flannel/here").exists()
    assert not Path("/etc/default/here").exists()
    assert (one.directory / "run/flannel/here").exists()
    assert one.run(["cat", "/proc/1/comm"]).stdout == "bash\n"
    assert one.run(["ls", "/sys/class/net"]).stdout.split() == ["eth0", "lo"]
    assert one.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "1\n"


def test_programs_inherit_no_settings_of_the_caller(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELD_IFACE", "wrong0")
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere")

    variables = lab.hosts["docker1"].run(["env"]).stdout

    assert "FLANNELD_" not in variables
    assert "DOCKER_" not in variables


def test_the_machine_has_no_device_and_no_mount_of_a_lab() -> None:
    """A program that creates a lab has no additional device and mount, neither during the lab nor after it.

    A mount may disappear: the kernel removes it in all namespaces when its mount point is deleted.
    """
    body = (
        "import json, os\n"
        "def machine():\n"
        "    return [line for file in ('mountinfo', 'net/dev') for line in open(f'/proc/self/{file}')]\n"
        "before = machine()\n"
        f"with Lab({NAME + '-clean'!r}): during = machine()\n"
        "print(json.dumps([before, during, machine()]))"
    )
    program = start_script(
        body, "unshare", "--net", "--mount"
    )  # a namespace without changes by other programs

    said, complained = program.communicate(timeout=SOON_S)

    assert complained == ""
    before, during, after = map(set, json.loads(said))
    assert (during - before, after - before) == (set(), set())
    assert traces(f"{NAME}-clean") == []


def test_an_exception_removes_the_lab() -> None:
    def fail() -> None:
        with Lab(f"{NAME}-raise") as lab:
            lab.hosts["docker1"].start(["sleep", "1000"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert traces(f"{NAME}-raise") == []


def test_ctrl_c_removes_the_lab() -> None:
    program = hold(f"{NAME}-int")

    program.send_signal(signal.SIGINT)
    program.communicate(timeout=SOON_S)

    assert traces(f"{NAME}-int") == []


def test_the_next_run_removes_the_remains_of_a_killed_run() -> None:
    name = f"{NAME}-kill"
    program = hold(name)
    with without_removals():
        program.kill()
        program.communicate(timeout=SOON_S)
        left = traces(name)
        state = {lab.name: lab.state for lab in standing_labs()}

    with Lab(name) as lab:
        still = set(left) & set(traces(name)) - {str(lab.directory)}
        reached = ping(lab.hosts["docker1"], lab.hosts["docker4"].address)

    assert len(left) > 5
    assert still == set()
    assert state[name] == "remains"
    assert reached.is_reached
    assert traces(name) == []


def test_any_lab_removes_the_remains_of_a_killed_run(lab: Lab) -> None:
    """A user of tests or the demo does not need to know the names of earlier runs."""
    name = f"{NAME}-any"
    program = hold(name)
    program.kill()
    program.communicate(timeout=SOON_S)
    with Lab(f"{NAME}-stays") as kept:
        kept.keep()

    with Lab(f"{NAME}-other"):
        left = traces(name)
        others = {lab.name: lab.state for lab in standing_labs()}
    remove_lab(f"{NAME}-stays")

    assert left == []
    assert others[f"{NAME}-stays"] == "kept"
    assert others[lab.name] == "in use"


def test_a_failure_contains_the_ends_of_the_logs() -> None:
    def fail() -> None:
        with Lab(f"{NAME}-words") as lab:
            lab.hosts["docker2"].start(["sh", "-c", "echo famous last words"], name="talker").wait()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fail()

    assert "docker2/log/talker.log ends:\n  famous last words" in caught.value.__notes__[0]


def test_a_lab_can_be_kept_entered_and_removed() -> None:
    name = f"{NAME}-keep"
    with Lab(name) as lab:
        lab.keep()

    (found,) = [lab for lab in standing_labs() if lab.name == name]
    said = enter_host(name, "docker3").run(["hostname"]).stdout
    with pytest.raises(LabError, match="no host docker9"):
        enter_host(name, "docker9")
    remove_lab(name)

    assert found.state == "kept"
    assert found.hosts == ("docker1", "docker2", "docker3", "docker4", "router")
    assert said == "docker3\n"
    assert traces(name) == []
    with pytest.raises(LabError, match="there is no lab"):
        remove_lab(name)


def test_a_lab_with_a_frozen_process_is_removed() -> None:
    """A paused container of Docker is frozen."""
    name, hierarchies = f"frozen-{os.getpid()}", Path("/sys/fs/cgroup")
    has_freezer = (hierarchies / "freezer").is_dir()
    group = (hierarchies / "freezer" if has_freezer else hierarchies) / "flannel-lab" / name / "paused"
    with Lab(name, Topology((LEFT,), (HostPlace("docker1", LEFT, IPv4Interface("10.10.10.101/24")),))) as lab:
        lab.hosts["docker1"].start(["sleep", "98765"], name="sleeper")
        wait_until(lambda: bool(_sleepers()), what="the process", deadline_s=60.0)
        group.mkdir(parents=True, exist_ok=True)
        (pid,) = _sleepers()
        (group / "cgroup.procs").write_text(pid)
        if has_freezer:
            (group / "freezer.state").write_text("FROZEN")
        else:
            (group / "cgroup.freeze").write_text("1")

    assert not group.exists()
    assert _sleepers() == []


def _sleepers() -> list[str]:
    found = subprocess.run(["pgrep", "-x", "-f", "sleep 98765"], capture_output=True, text=True, check=False)
    return found.stdout.split()


def test_a_briefly_locked_lab_is_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that removes remains locks every lab for a moment."""
    monkeypatch.setattr("pyflannel.lab.lab.PATIENCE_S", SOON_S)
    monkeypatch.setattr("pyflannel.lab.lab.lab_names", lambda: [f"{NAME}-looked"])
    home = LabDirectory(f"{NAME}-looked")
    home.acquire()
    home.mark_kept()
    looker = threading.Timer(0.1, home.release)
    looker.start()

    (found,) = standing_labs()

    looker.join()
    remove_lab(home.name)
    assert found.state == "kept"


def test_a_kept_lab_is_removed_when_its_block_fails() -> None:
    def fail() -> None:
        with Lab(f"{NAME}-kept") as lab:
            lab.keep()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert traces(f"{NAME}-kept") == []


def test_a_lab_in_use_is_not_removed(lab: Lab) -> None:
    assert {one.name: one.state for one in standing_labs()}[NAME] == "in use"
    with pytest.raises(BusyError, match="in use by another program"):
        Lab(NAME).__enter__()
    with pytest.raises(BusyError, match="in use by another program"):
        remove_lab(NAME)

    assert ping(lab.hosts["docker1"], lab.hosts["docker2"].address).is_reached


def test_two_labs_are_independent(lab: Lab) -> None:
    """Both labs have the same addresses, and only one lab has this neighbour."""
    with Lab(f"{NAME}-two") as second:
        lab.hosts["docker1"].run(["ip", "address", "add", "10.10.10.99/24", "dev", "eth0"])
        try:
            assert ping(lab.hosts["docker2"], "10.10.10.99", count=1).is_reached
            assert not ping(second.hosts["docker2"], "10.10.10.99", count=1).is_reached
            assert ping(second.hosts["docker1"], second.hosts["docker4"].address).is_reached
        finally:
            lab.hosts["docker1"].run(["ip", "address", "delete", "10.10.10.99/24", "dev", "eth0"])


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "1a", "a" * 21])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid name for a lab"):
        Lab(name)


def test_a_disconnected_host_reconnects(lab: Lab) -> None:
    one, other = lab.hosts["docker1"], lab.hosts["docker4"]

    with unplugged(lab, one):
        is_cut = not ping(one, other.address, count=1).is_reached
        wait_until(lambda: has_no_carrier(one), what="the kernel reports it", deadline_s=SOON_S)

    assert is_cut
    wait_until(lambda: ping(one, other.address, count=1).is_reached, what="an answer", deadline_s=SOON_S)


def has_no_carrier(host: Host) -> bool:
    return any(link["ifname"] == "eth0" and "NO-CARRIER" in link["flags"] for link in host.links())


def test_a_partition_separates_only_two_hosts(lab: Lab) -> None:
    hosts = lab.hosts

    with (
        partitioned(lab, hosts["docker1"], hosts["docker2"]),
        partitioned(lab, hosts["docker1"], hosts["docker3"]),
    ):
        before = [echoes_heard(hosts[name]) for name in ("docker1", "docker2")]
        ping(hosts["docker1"], hosts["docker2"].address, count=1)
        ping(hosts["docker2"], hosts["docker1"].address, count=1)
        after = [echoes_heard(hosts[name]) for name in ("docker1", "docker2")]
        apart = ping_all(hosts.values(), count=1)
    together = ping_all(hosts.values(), count=1)

    assert {pair for pair, result in apart.items() if not result.is_reached} == {
        ("docker1", "docker2"),
        ("docker2", "docker1"),
        ("docker1", "docker3"),
        ("docker3", "docker1"),
    }
    assert all(result.is_reached for result in together.values())
    assert after == before


def echoes_heard(host: Host) -> int:
    names, values = (
        line.split() for line in host.run(["cat", "/proc/net/snmp"]).stdout.splitlines() if "Icmp:" in line
    )
    return int(values[names.index("InEchos")])


def test_packet_loss_loses_some_packets(lab: Lab) -> None:
    one, other = lab.hosts["docker1"], lab.hosts["docker2"]

    with lossy(lab, one, percent=50):
        result = ping(one, other.address, count=20)

    assert 0 < result.received < result.sent


THREADS = "import threading as t; [t.Thread(target=t.Event().wait).start() for _ in range(30)]; print('up')"


def test_a_ping_with_a_late_last_answer_succeeds(lab: Lab) -> None:
    """Each answer may take a second, even if the first arrived immediately."""
    one, other = lab.hosts["docker1"], lab.hosts["docker2"]
    assert ping(one, other.address).is_reached  # now each host knows the MAC address of the other
    slow = "root tbf rate 2kbit burst 100 latency 10s"

    one.run(["tc", "qdisc", "add", "dev", "eth0", *slow.split()])
    result = ping(one, other.address)
    one.run(["tc", "qdisc", "delete", "dev", "eth0", "root"])

    assert result.is_reached


def test_a_program_can_be_paused_continued_and_ended(lab: Lab) -> None:
    """Each of its threads stops, because a running thread could still answer a request."""
    program = lab.hosts["docker1"].start([sys.executable, "-u", "-c", THREADS])
    wait_until(lambda: "up" in program.last_words(), what="the threads run", deadline_s=SOON_S)

    for _ in range(5):
        with paused(program):
            states = states_of(program.pid)
        assert states == ["T"] * 31
        wait_until(lambda: states_of(program.pid) == ["S"] * 31, what="running threads", deadline_s=SOON_S)

    assert program.stop() == -signal.SIGTERM or program.exit_code == 128 + signal.SIGTERM


def states_of(pid: int) -> list[str]:
    """Return the state of each thread of a process."""
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [stat.rpartition(")")[2].split()[0] for stat in stats]


def test_the_lab_waits_until_a_service_is_ready(lab: Lab) -> None:
    tell = "import os, socket, time; s = socket.socket(1, 2); s.connect(os.environ['NOTIFY_SOCKET'])"
    wait = "s.send(b'STATUS=soon'); time.sleep(0.2); open('/run/was-late', 'x')"
    script = f"{tell}; {wait}; s.send(b'STATUS=now\\nREADY=1'); time.sleep(1000)"

    service = lab.hosts["docker1"].start_service([sys.executable, "-c", script], name="ready")

    assert service.exit_code is None
    assert lab.hosts["docker1"].run(["ls", "/run/was-late"]).stdout
    service.kill()


def test_a_service_that_ends_is_reported_with_the_end_of_its_log(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"status 3 before it was ready.*\n.*no such thing"):
        lab.hosts["docker1"].start_service(["sh", "-c", "echo no such thing; exit 3"], name="bad")


def test_a_service_that_is_silent_is_reported(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"not ready within 0\.3 s"):
        lab.hosts["docker1"].start_service(["sleep", "1000"], name="silent", deadline_s=0.3)


def test_a_command_that_fails_or_hangs_is_reported(lab: Lab) -> None:
    host = lab.hosts["docker2"]

    with pytest.raises(LabError, match=r"status 1: .*No such file"):
        host.run(["cat", "/no/such/file"])
    with pytest.raises(LabError, match=r"did not exit within 0\.3 s"):
        host.run(["sleep", "54321"], timeout_s=0.3)

    assert not any("54321" in command for command in host.commands())


def test_an_interrupt_does_not_wait_for_running_calls() -> None:
    """Ctrl-C ends the lab immediately, while the test waits for services on all hosts."""
    name = f"{NAME}-busy"
    program = start_script(
        f"with Lab({name!r}) as lab:\n"
        "    print('up', flush=True)\n"
        "    lab.each(lambda host: host.start_service(['sleep', '1000'], deadline_s=600))"
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "up\n"
    wait_until(
        lambda: len(list(ROOT.glob(f"{name}/*/log/sleep.log"))) == 4, what="four calls", deadline_s=SOON_S
    )

    program.send_signal(signal.SIGINT)
    program.communicate(timeout=SOON_S)

    assert traces(name) == []


def test_the_path_of_the_kernel_is_verified(lab: Lab) -> None:
    with Lab(f"{NAME}-vxlan") as other:
        path = create_kernel_path(other)

        result = measure_kernel_path(path, seconds=1)
        path.left_host.run(["ip", "tuntap", "add", "overlay0", "mode", "tun"])
        with pytest.raises(LabError, match="has a device of pyflannel"):
            measure_kernel_path(path, seconds=1)

    assert result.gbit_s > 0
    assert result.received_bytes > 0


def test_a_lab_of_a_thread_is_removed_too() -> None:
    """Only the main thread receives signals, and defers them."""
    name = f"{NAME}-thread"

    def visit() -> None:
        with Lab(name):
            pass

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join(SOON_S)

    assert traces(name) == []
