"""The fast path as a Target on the real kernel: planned, read back, repaired, and otherwise unchanged."""

import errno
import os
import socket
from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from pyflannel.errors import TargetError
from pyflannel.kernel.bpf import maps, standing
from pyflannel.kernel.bpf.hooks import TcxHooks
from pyflannel.kernel.bpf.layout import BUILD_BYTES, COUNTS, DEVICES, SHARED
from pyflannel.kernel.bpf.libbpf import Libbpf
from pyflannel.kernel.bpf.maps import NO_BATCHES, delete_entries, read_entries, update_entries
from pyflannel.kernel.bpf.objects import KernelObjects, ObjectFile, read_object
from pyflannel.kernel.bpf.standing import StandingPrograms, shared_maps
from pyflannel.model.fast_path import BpfPeer, BpfProgram, Role
from pyflannel.model.state import Add, Remove, Replace, State
from pyflannel.plan.diff import diff

OTHER = BpfPeer(
    device="flannel0", subnet=IPv4Network("10.100.30.0/24"), address=IPv4Address("10.9.0.30"), port=9999
)


def test_applied_objects_are_read_back_by_another_process(linked):
    one, two = linked

    assert one.snapshot(one.plan(two.peer())) == one.plan(two.peer())
    assert one.heal(one.plan(two.peer())) == []


@pytest.mark.parametrize("role", Role)
def test_a_detached_program_is_detected_and_attached_again(linked, role, listen, make_target):
    one, two = linked
    desired = one.plan(two.peer())
    program = one.program(role)

    async def detach_and_heal(target):
        await target.snapshot(desired)
        async with listen(target.changes()) as wakes:
            await make_target().apply([Remove(program)])
            await wakes.next()
        found = await target.snapshot(desired)
        operations = list(diff(desired, found))
        return operations, await target.apply(operations)

    assert one.act(detach_and_heal) == ([Add(program)], [])
    assert one.container.ping(two.container.address)[0] == 3


def test_changes_by_the_target_are_not_announced(linked, listen, make_target):
    one, two = linked
    desired = one.plan(two.peer())

    async def change(_):
        target = make_target(look_s=0.001)
        await target.snapshot(desired)
        async with listen(target.changes()) as wakes:
            await target.apply([Remove(one.program(Role.LAST_HOP))])
            await target.apply([Add(one.program(Role.LAST_HOP))])
            return await wakes.silence()

    assert one.act(change) == 0


def test_changed_entries_are_repaired(linked):
    one, two = linked
    desired = one.plan(two.peer(), OTHER)
    one.heal(desired)

    def damage(*operations):
        assert one.act(lambda target: target.apply(operations)) == []

    damage(Remove(two.peer()), Remove(one.container.entry))
    assert one.heal(desired) == [Add(two.peer()), Add(one.container.entry)]
    wrong = replace(two.peer(), address=IPv4Address("10.9.0.99"))
    damage(Add(wrong), Add(replace(OTHER, is_direct=False)))
    assert set(one.heal(desired)) == {
        Replace(wrong, two.peer()),
        Replace(replace(OTHER, is_direct=False), OTHER),
    }
    stranger = replace(OTHER, subnet=IPv4Network("10.100.31.0/24"))
    damage(Add(stranger))
    assert one.heal(desired) == [Remove(stranger)]
    assert one.snapshot(desired) == desired


def test_a_program_that_can_no_longer_send_is_replaced(linked):
    """Another program emptied the map of the devices to which programs send."""
    one, two = linked
    desired = one.plan(two.peer())

    async def empty(_):
        objects = KernelObjects()
        links = [index for index, _ in socket.if_nameindex()]
        found = await StandingPrograms(TcxHooks(objects), objects).find(links)
        devices = shared_maps(found, "flannel0", objects)[DEVICES.name]
        assert delete_entries(devices, list(read_entries(devices, 4, 4))) == {}

    one.act(empty)

    operations = one.heal(desired)
    assert {operation.new for operation in operations} == {one.program(role) for role in Role}
    assert one.container.ping(two.container.address)[0] == 3


def test_an_entry_of_a_removed_device_is_planned_again(linked):
    one, two = linked
    one.namespace.ip(f"link delete {one.container.link}")

    found = one.snapshot(one.plan(two.peer()))

    assert replace(one.container.entry, link="") in found


def test_changed_settings_cause_another_program(linked):
    one, two = linked
    desired = one.plan(two.peer())
    tunnel = replace(one.tunnel, port=8286)
    changed = State.of(
        *(replace(item, tunnel=tunnel) if isinstance(item, BpfProgram) else item for item in desired)
    )

    operations = one.heal(changed)

    assert [type(operation) for operation in operations] == [Replace] * len(Role)
    assert one.snapshot(changed) == changed
    assert one.heal(desired) != []
    assert one.container.ping(two.container.address)[0] == 3


def test_a_device_that_was_created_again_gets_its_programs(linked):
    """The new device has another index, which is part of the program at the underlay."""
    one, two = linked
    one.namespace.ip("link delete flannel0")
    one.namespace.ip("tuntap add flannel0 mode tun")
    one.namespace.ip("link set flannel0 mtu 1472 up")
    one.namespace.ip("address add 10.100.15.0/16 dev flannel0")
    desired = one.plan(two.peer())

    operations = one.heal(desired)

    assert {operation.item if isinstance(operation, Add) else operation.new for operation in operations} == {
        one.program(role) for role in Role
    }
    assert one.snapshot(desired) == desired
    assert one.container.ping(two.container.address)[0] == 3


def test_an_underlay_that_was_created_again_gets_its_programs(linked):
    """The new underlay has another index, which is part of the program at the device."""
    one, two = linked
    one.namespace.ip("link delete eth0")
    one.namespace.ip(f"link add eth0 type veth peer name eth0 netns {two.namespace.name}")
    for host in linked:
        host.namespace.ip(f"address add {host.address}/24 dev eth0")
        host.namespace.ip("link set eth0 up")
    for host in linked:
        host.namespace.settle(eth0="UP")

    operations = [one.heal(one.plan(two.peer())), two.heal(two.plan(one.peer()))]

    for host, done in zip(linked, operations, strict=True):
        changed = {operation.item if isinstance(operation, Add) else operation.new for operation in done}
        assert changed == {host.program(role) for role in Role}
    assert one.container.ping(two.container.address)[0] == 3


def test_programs_of_another_version_are_replaced_and_the_maps_remain(linked, make_target):
    one, two = linked
    assert one.container.ping(two.container.address)[0] == 3
    desired, before = one.plan(two.peer()), one.counts()
    newer = ObjectFile(read_object().data, bytes(BUILD_BYTES))

    async def upgrade(_):
        target = make_target(read=lambda: newer)
        found = await target.snapshot(desired)
        operations = list(diff(desired, found))
        assert await target.apply(operations) == []
        return operations, await target.snapshot(desired)

    operations, after = one.act(upgrade)

    assert {operation.new for operation in operations} == {one.program(role) for role in Role}
    assert after == desired
    assert one.counts() == before


def test_counters_with_other_outcomes_are_not_used(linked, monkeypatch):
    """A version with one more outcome would read the counters of the old version with the wrong names."""
    one, two = linked
    desired = one.plan(two.peer())
    assert one.container.ping(two.container.address)[0] == 3
    more = replace(COUNTS, most_entries=COUNTS.most_entries + 1)
    monkeypatch.setattr(standing, "SHARED", tuple(more if one is COUNTS else one for one in SHARED))

    found = one.snapshot(desired)

    counting = set(Role) - {Role.NEXT_HOP}
    stale = {replace(one.program(role), is_current=False) for role in counting}
    assert set(found) == {*stale, one.program(Role.NEXT_HOP), two.peer(), one.container.entry}


def test_no_packet_is_lost_while_programs_are_replaced(linked, ping_stream):
    one, two = linked
    desired = one.plan(two.peer())
    programs = [one.program(role) for role in Role]

    async def replace_all(target):
        await target.snapshot(desired)
        for _ in range(10):
            assert await target.apply([Replace(program, program) for program in programs]) == []

    with ping_stream(one.container, two.container.address, interval_s=0.001) as stream:
        stream.wait_answered()
        one.act(replace_all)
        stream.wait_answered()

    assert stream.lost() == []


class BlindHooks(TcxHooks):
    """Hooks that show no other programs."""

    async def programs(self, link, direction):
        return ()


def test_one_copy_of_a_program_that_is_attached_twice_is_detached(linked):
    one, two = linked
    desired, program = one.plan(two.peer()), one.program(Role.ENCAPSULATE)
    assert one.act(lambda target: target.apply([Add(program)]), BlindHooks) == []

    operations = one.heal(desired)

    assert operations == [Replace(replace(program, is_current=False), program)]
    assert one.snapshot(desired) == desired
    assert one.container.ping(two.container.address)[0] == 3


def test_two_tunnels_of_one_host_are_independent(linked):
    one, two = linked
    one.namespace.ip("tuntap add flannel1 mode tun")
    tunnel = replace(one.tunnel, device="flannel1", subnet=IPv4Network("10.200.1.0/24"), port=8286)
    second = State.of(
        replace(OTHER, device="flannel1"),
        BpfProgram(link="flannel1", role=Role.ENCAPSULATE, tunnel=tunnel),
        BpfProgram(link="eth0", role=Role.DECAPSULATE, tunnel=tunnel),
    )
    first = one.plan(two.peer())

    async def attach_second(target):
        await target.snapshot(second)
        return await target.apply([Add(item) for item in second])

    assert one.act(attach_second) == []
    assert {item for item in one.snapshot(second) if "flannel1" in str(item)} == set(second)
    assert {item for item in one.snapshot(first) if "flannel1" not in str(item)} == set(first)
    assert one.container.ping(two.container.address)[0] == 3


def test_objects_that_are_no_longer_planned_are_removed(linked):
    one, two = linked

    operations = one.heal(State.EMPTY)

    assert [type(operation) for operation in operations] == [Remove] * len(Role)
    assert one.snapshot(one.plan(two.peer())) == State.EMPTY


def test_ten_thousand_peers_are_entered_and_read_back(linked, make_target):
    one = linked[0]
    peers = State.of(
        *(
            BpfPeer(
                device="flannel0",
                subnet=IPv4Network((0x0A800000 + (number << 8), 24)),
                address=IPv4Address(0x0A090000 + number),
                port=8285,
            )
            for number in range(10_000)
        )
    )
    desired = one.plan() | peers

    operations = one.heal(desired)

    assert len(operations) == 10_001  # the one existing peer is removed
    assert one.snapshot(desired) == desired


def entries_of_peers(count: int) -> list[BpfPeer]:
    """Return this number of peers with different subnets."""
    return [
        BpfPeer(
            device="flannel0",
            subnet=IPv4Network((0x0B000000 + (number << 4), 28)),
            address=IPv4Address(0x0A090000 + number),
            port=8285,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("code", [NO_BATCHES, errno.EINVAL])
def test_without_batches_each_entry_is_read_singly(linked, monkeypatch, code):
    """A trie supports batches since Linux 5.13. Before Linux 5.6, the kernel does not have the command."""
    one, two = linked
    call = maps.call_bpf

    def refuse_batches(command, attributes):
        if command.name.endswith("_BATCH"):
            raise OSError(code, os.strerror(code))
        return call(command, attributes)

    monkeypatch.setattr(maps, "call_bpf", refuse_batches)
    desired = one.plan(two.peer(), OTHER)

    assert one.heal(desired) == [Add(OTHER)]
    assert one.snapshot(desired) == desired
    assert one.heal(one.plan(two.peer())) == [Remove(OTHER)]


def test_peers_beyond_the_size_of_the_table_use_user_space(linked, heal):
    """The target does not retry the entries of these peers, and still repairs other objects.

    When other peers leave, the remaining peers get entries.
    """
    one = linked[0]
    peers = entries_of_peers(65_536 + 3)
    moved = [replace(peers[0], port=9), *peers[1:]]

    async def fill(target):
        await heal(target, one.plan(*peers))
        assert await heal(target, one.plan(*peers)) == []
        notices = target.notices("flannel0")
        changes = [len(await heal(target, one.plan(*moved))), len(await heal(target, one.plan(*moved)))]
        await heal(target, one.plan(*moved[:-4]))
        return notices, changes, target.notices("flannel0"), await target.snapshot(one.plan(*moved))

    (notice,), changes, later, found = one.act(fill)

    assert notice.text.startswith("the fast path has room for 65536 peers: packets to 3 more go")
    assert changes == [1, 0]
    assert later == ()
    assert len(one.plan(*moved)) - len(found) == 4


def test_in_a_full_table_a_wrong_entry_is_removed_before_its_replacement(linked, monkeypatch):
    """A trie of an older kernel does not replace an entry in a full table."""
    one, two = linked
    moved = replace(two.peer(), address=IPv4Address("10.9.0.99"))

    def refuse_existing(descriptor, keys, values):
        there = read_entries(descriptor, 8, 8)
        full = OSError(errno.ENOSPC, "No space left on device")
        refused = {place: full for place, key in enumerate(keys) if key in there}
        free = [place for place in range(len(keys)) if place not in refused]
        assert update_entries(descriptor, [keys[one] for one in free], [values[one] for one in free]) == {}
        return refused

    monkeypatch.setattr(maps, "update_entries", refuse_existing)
    one.heal(one.plan(moved))

    assert moved in one.snapshot(one.plan(moved))


def test_containers_beyond_the_size_of_the_table_use_the_bridge(linked, heal):
    one, two = linked
    entries = [
        replace(one.container.entry, address=IPv4Address(0x0A800000 + number)) for number in range(4096)
    ]
    desired = one.plan(two.peer()) | State.of(*entries)

    async def fill(target):
        await heal(target, desired)
        return await heal(target, desired), target.notices("flannel0")

    operations, (notice,) = one.act(fill)

    assert operations == []
    assert (
        notice.text == "the fast path has room for 4096 containers: packets to 1 more pass through the bridge"
    )
    assert one.container.ping(two.container.address)[0] == 3


def test_a_missing_link_is_refused_and_the_rest_is_applied(linked):
    one, two = linked
    nowhere = replace(one.program(Role.LAST_HOP), link="docker9")
    lost = replace(one.container.entry, address=IPv4Address("10.100.15.9"), link="veth9")

    refused = one.act(lambda target: target.apply([Add(nowhere), Add(lost), Add(OTHER)]))

    assert [refusal.operation.item for refusal in refused] == [nowhere, lost]
    assert "ENODEV" in refused[0].cause
    assert OTHER in one.snapshot(one.plan(two.peer(), OTHER))


def test_a_removal_of_missing_objects_succeeds(linked):
    one, two = linked
    gone = [Remove(item) for item in one.plan(two.peer())]

    assert one.act(lambda target: target.apply([*gone, *gone])) == []


class NoHooks(TcxHooks):
    """The answers of a kernel without eBPF."""

    async def programs(self, link, direction):
        raise OSError(errno.ENOSYS, "Function not implemented")


def test_a_kernel_without_ebpf_is_reported(hosts):
    one, two = hosts
    operations = [Add(item) for item in one.plan(two.peer())]

    assert one.snapshot(one.plan(two.peer()), NoHooks) == State.EMPTY
    refused = one.act(lambda target: target.apply(operations), NoHooks)

    assert [refusal.operation for refusal in refused] == operations
    assert all("CONFIG_BPF_SYSCALL" in refusal.hint for refusal in refused)


def test_a_missing_library_is_reported(linked):
    with pytest.raises(TargetError, match="libbpf-missing") as raised:
        Libbpf("libbpf-missing.so.1")

    assert "Install libbpf" in raised.value.hint


def test_the_message_of_the_verifier_is_reported_with_the_version_of_the_kernel(linked, make_target):
    """Another program of the same object remains attached."""
    one, two = linked
    pull_data, nothing = b"\x85\0\0\0\x27\0\0\0", b"\x85\0\0\0\x0f\x27\0\0"
    wrong = ObjectFile(read_object().data.replace(pull_data, nothing), bytes(BUILD_BYTES))
    program = one.program(Role.DECAPSULATE)

    async def replace_it(_):
        return await make_target(read=lambda: wrong).apply([Replace(program, program)])

    (refused,) = one.act(replace_it)

    assert f"kernel {os.uname().release} refused the program flannel_decap: EINVAL" in refused.cause
    assert "its verifier said: " in refused.cause
    assert refused.cause.endswith("invalid func unknown#9999")
    assert "Report this defect" in refused.hint
    assert one.container.ping(two.container.address)[0] == 3


def test_a_damaged_object_is_refused(linked, make_target):
    one = linked[0]
    spoilt = ObjectFile(read_object().data[:5000], bytes(BUILD_BYTES))

    async def apply(_):
        return await make_target(read=lambda: spoilt).apply([Add(one.program(Role.LAST_HOP))])

    (refused,) = one.act(apply)

    assert "is damaged" in refused.cause
