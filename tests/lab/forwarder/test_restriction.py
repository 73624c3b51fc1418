"""Restrictions of the forwarder: code that runs inside it has access only to its packets."""

import json
import os
import shlex
from pathlib import Path

from pyflannel.model.state import Add

UID, GID = 64123, 64124
ONLY_ROOT = (
    "table ip t { chain c { type filter hook output priority 0; udp dport 8285 meta skuid != 0 drop; }; }"
)
PAYLOAD = """
import json, os, socket, sys
from pyflannel.datapath.forwarder import Forwarder

def attempt(act):
    try:
        return repr(act())
    except OSError as error:
        return error.strerror

def run(self, watchdog):
    print(json.dumps({
        "read a file": attempt(lambda: open("/etc/shadow").read(1)),
        "read its own maps": attempt(lambda: os.open("/proc/self/maps", os.O_RDONLY)),
        "execute": attempt(lambda: os.execv("/bin/true", ["true"])),
        "start a process": attempt(os.fork),
        "open a socket": attempt(socket.socket),
        "connect": attempt(lambda: self._relay._udp.connect(("127.0.0.1", 53))),
        "change an option": attempt(lambda: self._relay._udp.setsockopt(1, 25, b"lo")),
        "remove a file": attempt(lambda: os.unlink("/etc/hostname")),
        "kill": attempt(lambda: os.kill(os.getppid(), 0)),
        "executable memory": attempt(lambda: __import__("mmap").mmap(-1, 4096, prot=4)),
    }), file=sys.stderr, flush=True)
    real(self, watchdog)

real, Forwarder.run = Forwarder.run, run
import mmap
"""


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def with_user(host) -> str:
    """Return an interpreter with an /etc/passwd that contains the forwarder's user."""
    passwd = host.run_dir.with_suffix(".passwd")
    passwd.write_text(Path("/etc/passwd").read_text() + f"flannel-forwarder:x:{UID}:{GID}::/:/bin/false\n")
    act = f'mount --bind {shlex.quote(str(passwd))} /etc/passwd && exec {host.changed("")} "$@"'
    interpreter = host.run_dir.with_suffix(".user.sh")
    interpreter.write_text(f'#!/bin/sh\nexec unshare --mount sh -c {shlex.quote(act)} sh "$@"\n')
    interpreter.chmod(0o755)
    return str(interpreter)


def test_a_forwarder_with_its_own_user_has_no_right(hosts):
    """The forwarder is not root, has no group and no capability, and has a filter of system calls.

    A rule for the owner of a socket, as in the tunnel guard, matches its packets as packets of root, which
    opened the socket.
    """
    one, two = hosts
    one.namespace.command("nft", ONLY_ROOT)
    assert not one.apply(Add(one.forwarder), Add(two.peer()), python=with_user(one))
    assert not two.apply(Add(two.forwarder), Add(one.peer()))
    for host in hosts:
        host.settle()
    one.reach(two)

    status = status_of(one.pid)

    assert status["Uid"].split() == [str(UID)] * 4
    assert status["Gid"].split() == [str(GID)] * 4
    assert status["Groups"] == ""
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_a_forwarder_as_root_has_no_capability(hosts, caplog):
    """On a host without the user, uid 0 remains. The log of the daemon names the restrictions."""
    one, _ = hosts
    with caplog.at_level("INFO"):
        assert not one.apply(Add(one.forwarder))

    status = status_of(one.pid)

    assert status["Uid"].split()[0] == str(os.geteuid())
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "restrictions=no_capabilities,filtered_calls" in caplog.text


def test_code_inside_a_forwarder_has_no_access_to_files_and_processes(hosts):
    """The forwarder runs as root, which owns the files. Only the filter of system calls refuses."""
    one, two = hosts
    assert not one.apply(Add(one.forwarder), Add(two.peer()), python=one.changed(PAYLOAD))
    assert not two.apply(Add(two.forwarder), Add(one.peer()))

    results = json.loads((one.run_dir / "forwarder.log").read_text())

    assert len(results) == 10
    assert set(results.values()) == {"Operation not permitted"}
    for host in hosts:
        host.settle()
    one.reach(two)
