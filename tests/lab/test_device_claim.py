"""One daemon can hold the name of a device, and users without rights cannot."""

import errno
import os
import signal
import socket
import subprocess
import sys
from itertools import repeat

import pytest

from pyflannel.errors import BusyError
from pyflannel.kernel.host import locks
from pyflannel.kernel.host.locks import DeviceClaim

NAMES = ("flannel0", "flannel1")
TABLE = "pyflannel-device-flannel0"

HOLD = """
import signal
from pyflannel.kernel.host.locks import DeviceClaim
claim = DeviceClaim(["flannel0"])
print("held", flush=True)
signal.pause()
"""

SQUAT = """
import os, signal, socket
os.setgid(65534), os.setuid(65534)
held = []
for number in range(300):
    held.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    held[-1].bind(f"\\0pyflannel/device/flannel{number}")
print("held", flush=True)
signal.pause()
"""


def start(namespace, script: str) -> subprocess.Popen[str]:
    """Start a program in the namespace and wait until it holds its names."""
    command = ["ip", "netns", "exec", namespace.name, sys.executable, "-c", script]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "held\n"
    return program


def end(program: subprocess.Popen[str]) -> None:
    program.send_signal(signal.SIGKILL)
    program.communicate()


def test_a_claimed_name_is_free_after_its_release(namespace) -> None:
    async def check() -> None:
        one, other = DeviceClaim(NAMES), DeviceClaim(NAMES)
        assert (one.name, other.name) == NAMES

        one.close()
        again = DeviceClaim(NAMES)

        assert again.name == NAMES[0]
        with pytest.raises(BusyError):
            DeviceClaim(repeat(NAMES[0]))
        again.close()
        other.close()

    namespace.run(check)
    assert "pyflannel-device" not in namespace.command("nft", "list", "tables")


def test_each_namespace_has_separate_names(namespace, make_namespace) -> None:
    async def claim() -> DeviceClaim:
        return DeviceClaim(NAMES)

    here, there = namespace.run(claim), make_namespace().run(claim)

    assert (here.name, there.name) == (NAMES[0], NAMES[0])
    here.close()
    there.close()


def test_a_claim_is_removed_only_when_its_holder_ends(namespace) -> None:
    """Neither nft as root nor a flush of all rules removes the claim. SIGKILL to the holder removes the
    claim.
    """

    async def claim() -> str:
        claim = DeviceClaim(NAMES)
        claim.close()
        return claim.name

    holder = start(namespace, HOLD)
    try:
        assert namespace.run(claim) == NAMES[1]
        refused = subprocess.run(
            ["ip", "netns", "exec", namespace.name, "nft", "delete", "table", "ip", TABLE],
            stderr=subprocess.PIPE,
            text=True,
        )
        namespace.command("nft", "flush", "ruleset")
        assert "Operation not permitted" in refused.stderr
        assert TABLE in namespace.command("nft", "list", "tables")
        assert namespace.run(claim) == NAMES[1]
    finally:
        end(holder)

    assert namespace.run(claim) == NAMES[0]


def test_a_user_without_rights_cannot_claim_a_name(namespace) -> None:
    """A user without rights may bind any number of abstract sockets in the network namespace of the host."""

    async def claim() -> str:
        claim = DeviceClaim(f"flannel{number}" for number in range(256))
        claim.close()
        return claim.name

    squatter = start(namespace, SQUAT)
    try:
        assert namespace.run(claim) == NAMES[0]
    finally:
        end(squatter)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT, errno.EPERM])
def test_without_owned_tables_a_unix_socket_claims_the_name(
    namespace, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A kernel before 5.12 has no owned tables. The result is the same
    without the right to own tables.
    """

    def refuse(names: object) -> tuple[str, socket.socket]:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks, "_claim_by_table", refuse)

    async def check() -> None:
        one, other = DeviceClaim(NAMES), DeviceClaim(NAMES)
        assert (one.name, other.name) == NAMES
        one.close()
        other.close()

    namespace.run(check)


def test_without_the_right_to_own_tables_a_unix_socket_claims_the_name(namespace) -> None:
    """The kernel also answers EPERM if another socket owns the table."""
    # Drop the rights after the import, because another user may not be able to read this checkout.
    script = HOLD.replace("claim =", "import os; os.setgid(65534), os.setuid(65534)\nclaim =", 1)
    holder = start(namespace, script)
    try:
        shown = namespace.command("cat", "/proc/net/unix")
        assert "@pyflannel/device/flannel0" in shown
        assert "pyflannel-device" not in namespace.command("nft", "list", "tables")
    finally:
        end(holder)
