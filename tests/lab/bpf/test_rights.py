"""The requirements of the fast path: rights, and a bpffs if a right is missing."""

import json
import os
import pickle
import subprocess
import sys

import pytest
from msgspec.structs import replace

from pyflannel.kernel.bpf.pins import remove_pin_directory
from pyflannel.model.fast_path import Role
from pyflannel.model.state import State

# Makes a pass on an empty host like a daemon with the given rights, and prints operations and refusals.
DAEMON = """
import asyncio, json, pickle, sys
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.plan.diff import diff
from pyflannel.plan.diff import order

async def make_pass(desired):
    async with BpfTarget(FastPath(sys.argv[1])) as target:
        operations = order(diff(desired, await target.snapshot(desired)), desired)
        refused = await target.apply(operations)
        notices = [[notice.text, notice.hint] for notice in target.notices("flannel0")]
        return [len(operations), [[refusal.cause, refusal.hint] for refusal in refused], notices]

print(json.dumps(asyncio.run(make_pass(pickle.load(sys.stdin.buffer)))))
"""


def run_daemon(host, desired, rights: str, pins="") -> list:
    done = subprocess.run(
        [
            *("ip", "netns", "exec", host.namespace.name, "setpriv"),
            *(f"--bounding-set=-all{rights}", f"--inh-caps=-all{rights}"),
            *(sys.executable, "-c", DAEMON, str(pins)),
        ],
        input=pickle.dumps(desired),
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture
def bpffs(tmp_path):
    """A bpffs in which programs can be pinned."""
    directory = tmp_path / "bpf"
    directory.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", directory], check=True)
    try:
        yield directory
    finally:
        remove_pin_directory(str(directory))


def test_without_the_right_to_use_bpf_each_operation_is_refused(hosts):
    one, two = hosts
    desired = one.plan(two.peer())

    operations, refused, _ = run_daemon(one, desired, ",+net_admin")

    assert operations == len(refused) == len(desired)
    assert all("EPERM" in cause and "CAP_BPF" in hint for cause, hint in refused)


def test_without_pins_a_daemon_that_could_not_replace_its_programs_attaches_none(hosts, tmp_path):
    one, two = hosts

    _, refused, _ = run_daemon(one, one.plan(two.peer()), ",+bpf,+net_admin", tmp_path)

    assert len(refused) == len(Role)
    assert all("EPERM" in cause and "bpffs" in hint for cause, hint in refused)
    assert one.snapshot(one.plan(two.peer())) == State.EMPTY


def test_with_pins_two_rights_are_enough(hosts, bpffs):
    one, two = hosts
    two.heal(two.plan(one.peer()))
    desired = one.plan(two.peer())

    assert run_daemon(one, desired, ",+bpf,+net_admin", bpffs) == [len(desired), [], []]
    assert run_daemon(one, desired, ",+bpf,+net_admin", bpffs) == [0, [], []]
    assert one.container.ping(two.container.address)[0] == 3


def test_programs_that_cannot_be_inspected_are_reported(linked, tmp_path):
    """A daemon with all rights attached the programs, and the programs still carry packets."""
    one, two = linked
    desired = one.plan(two.peer())

    _, refused, notices = run_daemon(one, desired, ",+bpf,+net_admin", tmp_path)

    ((text, hint),) = notices
    assert len(refused) == len(Role)
    assert all(place in text for place in ("flannel0 egress", "eth0 ingress", "docker0 egress"))
    assert "CAP_SYS_ADMIN" in text
    assert "flannelctl pins" in hint
    assert "flannelctl cleanup" in hint
    assert one.snapshot(desired) == desired
    assert one.container.ping(two.container.address)[0] == 3


def test_a_bpffs_without_the_pins_of_programs_causes_no_endless_retry(linked, bpffs):
    """The existing programs have no pins.

    The daemon attaches its own programs once, behind the existing programs, and reports the existing
    programs.
    """
    one, two = linked
    desired = one.plan(two.peer())
    rights = ",+bpf,+net_admin"

    first, again = (run_daemon(one, desired, rights, bpffs) for _ in range(2))

    assert first[:2] == [len(desired), []]
    assert again[:2] == [0, []]
    assert [len(notices) for _, _, notices in (first, again)] == [1, 1]
    assert one.container.ping(two.container.address)[0] == 3


def test_foreign_programs_at_other_links_are_ignored(hosts, tmp_path):
    one, two = hosts
    one.heal(State.of(one.program(Role.DECAPSULATE), two.peer()))

    _, _, notices = run_daemon(one, State.EMPTY, ",+bpf,+net_admin", tmp_path)

    assert notices == []


def test_pins_are_removed_with_their_objects(hosts, bpffs):
    one, two = hosts
    rights = ",+bpf,+net_admin"
    empty = sorted(os.listdir(bpffs))
    run_daemon(one, one.plan(two.peer()), rights, bpffs)
    names = os.listdir(bpffs)
    others = [replace(one.program(role), tunnel=replace(one.tunnel, port=9)) for role in Role]

    run_daemon(one, State.of(*others) | one.plan(two.peer()), rights, bpffs)

    assert len(os.listdir(bpffs)) == len(names)

    run_daemon(one, State.EMPTY, rights, bpffs)
    assert sorted(os.listdir(bpffs)) == empty


def test_the_directory_of_pins_is_removed_with_its_mount(bpffs):
    subprocess.run(["mount", "-t", "bpf", "bpf", bpffs], check=True)

    assert remove_pin_directory(str(bpffs))
    assert not bpffs.exists()
    assert not remove_pin_directory(str(bpffs))


def test_programs_remain_if_the_pins_are_removed(hosts, bpffs):
    one, two = hosts
    two.heal(two.plan(one.peer()))
    run_daemon(one, one.plan(two.peer()), ",+bpf,+net_admin", bpffs)

    for pin in bpffs.glob("*-*"):
        pin.unlink()

    assert one.container.ping(two.container.address)[0] == 3
