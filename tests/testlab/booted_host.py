"""A host that systemd has booted, with flanneld and Docker: its processes, rights, units and settings."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import wait_until
from testlab.booted_system import BootedSystem

SOON_S = 60.0
FORWARDER_UNIT = r"flannel-forwarder@[\w.-]+\.service"

PAYLOAD = """
import json, os, socket, sys

def connect(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)

def is_possible(act):
    try:
        act()
    except OSError:
        return False
    return True

def attempt():
    possible = {
        "read /etc/shadow": is_possible(lambda: open("/etc/shadow").read()),
        "reach systemd": is_possible(lambda: connect("/run/systemd/private")),
        "reach the message bus": is_possible(lambda: connect("/run/dbus/system_bus_socket")),
        "reach Docker": is_possible(lambda: connect("/run/docker.sock")),
        "write to /etc": is_possible(lambda: open("/etc/payload", "w").close()),
        "become root": is_possible(lambda: os.setuid(0)),
        "start a process": is_possible(lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)),
        "open a socket": is_possible(lambda: socket.socket(socket.AF_INET).close()),
    }
    print("payload", json.dumps([name for name in possible if possible[name]]), file=sys.stderr, flush=True)
"""
"""`attempt()` tries actions of an attacker in a process, and prints those that are possible."""


@dataclass(frozen=True)
class Booted:
    """docker1, booted by systemd, and its network.

    Attributes:
        container: the address of a container of Docker on docker1.
        elsewhere: a container on docker2.
    """

    network: Any
    system: BootedSystem
    container: str
    elsewhere: Any
    docker_began_early: bool
    said_while_waiting: str

    @property
    def main_pid(self) -> str:
        return self.system.show("flanneld", "MainPID")

    def wait_another_daemon(self, pid: str) -> None:
        """Wait until a daemon other than `pid` is ready."""
        self.wait(lambda: self.main_pid not in (pid, "0"), "another flanneld")
        self.wait(lambda: self.system.show("flanneld", "ActiveState") == "active", "it is ready")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, what=what, deadline_s=SOON_S)

    def forwarders(self) -> list[str]:
        said = self.system.run(["pgrep", "--exact", "flannel-forward"], check=False).stdout
        return said.split()

    def wireguard_go(self) -> list[str]:
        """The process IDs of wireguard-go."""
        return self.system.run(["pgrep", "--exact", "wireguard-go"], check=False).stdout.split()

    def backend(self) -> str:
        """The backend for which the host is ready; "" without one."""
        status = json.loads(self.system.run(["flannelctl", "status", "--json"], check=False).stdout)
        return status["backend"]["type"] if status["is_ready"] else ""

    def programs(self) -> set[str]:
        """The pins of the fast path's programs, with the identifiers of the kernel."""
        listed = self.system.run(["ls", "/run/flannel/.bpf"], check=False).stdout.split()
        return {name for name in listed if name.startswith("program-")}

    def cgroup(self, pid: str) -> str:
        return self.system.run(["cat", f"/proc/{pid}/cgroup"]).stdout

    def start_forwarder_of_root(self) -> str:
        """Run flanneld as root, without the fast path; return the process ID of its forwarder."""
        before = self.forwarders()
        self.change("User=root\nEnvironment=FLANNELD_FAST_PATH=off")
        self.system.run(["kill", *before])
        forwarder = self.wait_another_forwarder(before)
        self.wait(lambda: ping(self.elsewhere, self.container).is_reached, "packets flow")
        self.wait_in_unit(forwarder, FORWARDER_UNIT)
        return forwarder

    def rights(self, pid: str) -> tuple[str, int]:
        """The user of a process, and all capabilities that it has or could get."""
        lines = self.system.run(["cat", f"/proc/{pid}/status"]).stdout.splitlines()
        status = {name: value for name, _, value in (line.partition(":") for line in lines)}
        (uid,) = set(status["Uid"].split())
        user = self.system.run(["id", "--name", "--user", uid]).stdout.strip()
        sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        assert status["NoNewPrivs"].strip() == "1"
        return user, reduce(or_, (int(status[name], 16) for name in sets))

    def time_of(self, event: str) -> int:
        """The time in microseconds of flanneld's latest event of this kind."""
        return int(self.system.show("flanneld", f"{event}TimestampMonotonic"))

    def wait_alive_for(self, time: int) -> str:
        """Wait for a daemon that has sent watchdog messages for this number of microseconds. Return the
        process ID of the daemon.

        systemd restarts a daemon without processor time here, like a hanging one.
        """
        began, sign = (f"{event}TimestampMonotonic" for event in ("ActiveEnter", "Watchdog"))
        facts: dict[str, str] = {}

        def has_lived() -> bool:
            said = self.system.systemctl("show", f"--property=MainPID,ActiveState,{began},{sign}", "flanneld")
            facts.update({name: value for name, _, value in (line.partition("=") for line in said.split())})
            return facts["ActiveState"] == "active" and int(facts[sign]) - int(facts[began]) > time

        self.wait(has_lived, f"signs for {time} µs")
        return facts["MainPID"]

    def remove_links(self) -> None:
        """Remove the links, as a boot does, because the network namespace is not booted."""
        for link in ("flannel0", "docker0"):
            self.network.hosts["docker1"].run(["ip", "link", "delete", link])

    def wait_another_forwarder(self, pids: list[str]) -> str:
        """Wait until the only forwarder is none of `pids`. Return the process ID of the forwarder."""
        found: list[str] = []

        def is_another() -> bool:
            found[:] = self.forwarders()
            return len(found) == 1 and found[0] not in pids

        self.wait(is_another, "another forwarder")
        return found[0]

    def wait_in_unit(self, pid: str, unit: str) -> None:
        """Wait until the process is in a unit of systemd whose name matches the pattern `unit`."""
        self.wait(lambda: re.search(unit, self.cgroup(pid), re.MULTILINE) is not None, f"{pid} is in {unit}")

    def wait_logged(self, text: str) -> None:
        """Wait until the journal of flanneld contains the text."""
        self.wait(lambda: text in self.system.journal("flanneld.service"), f"{text!r} is in the journal")

    def units(self, program: str = "forwarder") -> list[str]:
        """The units in which systemd started this program."""
        pattern = f"flannel-{program}@*"
        listed = self.system.systemctl("list-units", "--all", "--no-legend", "--plain", pattern)
        return [line.split()[0] for line in listed.splitlines()]

    def networkd_action(self, link: str) -> str:
        """Return networkd's action for a device: the last column of its line."""
        listed = self.system.run(["networkctl", "--no-legend", "--no-pager", "list"]).stdout
        return next((line.split()[-1] for line in listed.splitlines() if line.split()[1] == link), "")

    def attempted(self, unit: str) -> list[str]:
        """Run code inside the processes of a unit, and return its successful attempts."""
        said: list[str] = []

        def has_run() -> bool:
            said[:] = re.findall(r"^payload (.+)$", self.system.journal(unit), re.MULTILINE)
            return bool(said)

        self.wait(has_run, f"code has run in {unit}")
        found: list[str] = json.loads(said[-1])
        return found

    @contextmanager
    def running(self, program: str, unit: str = "flanneld.service") -> Iterator[None]:
        """Run another program in the unit with all its restrictions, for the duration of a block."""
        path = f"/opt/{unit.partition('.')[0]}.py"
        self.system.run(["tee", path], text=PAYLOAD + program)
        with self.changed(f"ExecStart=\nExecStart={sys.executable} -P {path}", unit):
            yield

    @contextmanager
    def changed(self, setting: str, unit: str = "flanneld.service") -> Iterator[None]:
        """Run flanneld with another setting in [Service] of a unit, for the duration of a block."""
        self.change(setting, unit)
        try:
            yield
        finally:
            self.change("", unit)

    def change(self, setting: str, unit: str = "flanneld.service") -> None:
        """Run flanneld with this setting, which replaces the previous setting of a test."""
        drop_in = f"/run/systemd/system/{unit}.d/test.conf"
        self.system.run(["mkdir", "-p", str(Path(drop_in).parent)])
        self.system.run(["tee", drop_in], text=f"[Service]\n{setting}\n")
        self._restart()

    def _restart(self) -> None:
        self.system.systemctl("daemon-reload")
        self.system.systemctl("restart", "flanneld")

    def gateway(self) -> str:
        """The address of the bridge in subnet.env."""
        text = self.system.run(["cat", "/run/flannel/subnet.env"]).stdout
        return str(re.findall(r"^FLANNEL_SUBNET=(.+)$", text, re.MULTILINE)[0])

    def bridge_address(self) -> str:
        said = self.system.run(["ip", "-brief", "address", "show", "docker0"]).stdout
        return said.split()[2]
