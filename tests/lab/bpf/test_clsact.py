"""The fast path on a kernel without tcx: programs are classifiers of a clsact qdisc."""

import errno

import pytest
from msgspec.structs import replace

from pyflannel.kernel.bpf.hooks import ClsactHooks, KernelHooks
from pyflannel.model.fast_path import Role
from pyflannel.model.state import Add, Remove, Replace, State


def clsact(objects):
    return ClsactHooks()


@pytest.fixture
def classified(hosts):
    """Two hosts with the peer in the tables of their classifiers."""
    one, two = hosts
    one.heal(one.plan(two.peer()), clsact)
    two.heal(two.plan(one.peer()), clsact)
    return hosts


def test_containers_reach_each_other(classified, send_stream):
    one, two = classified

    assert one.container.ping(two.container.address)[0] == 3
    assert send_stream(one.container, two.container)


def test_applied_objects_are_read_back_by_another_process(classified):
    one, two = classified

    assert one.snapshot(one.plan(two.peer()), clsact) == one.plan(two.peer())
    assert "flannel_encap direct-action" in one.namespace.command(
        "tc", "filter", "show", "dev", "flannel0", "egress"
    )


def test_a_deleted_filter_is_detected_and_attached_again(classified, listen, make_target):
    one, two = classified
    desired = one.plan(two.peer())

    async def delete(target):
        await target.snapshot(desired)
        async with listen(target.changes()) as wakes:
            one.namespace.command("tc", "qdisc", "delete", "dev", "eth0", "clsact")
            await wakes.next()

    one.act(delete, clsact)
    restored = {operation.item for operation in one.heal(desired, clsact)}
    assert restored == {one.program(role) for role in (Role.DECAPSULATE, Role.NEXT_HOP)}
    assert one.container.ping(two.container.address)[0] == 3


def test_no_packet_is_lost_while_programs_are_replaced(classified, ping_stream):
    one, two = classified
    programs = [one.program(role) for role in Role]

    async def replace_all(target):
        for _ in range(10):
            assert await target.apply([Replace(program, program) for program in programs]) == []

    with ping_stream(one.container, two.container.address, interval_s=0.001) as stream:
        stream.wait_answered()
        one.act(replace_all, clsact)
        stream.wait_answered()

    assert stream.lost() == []


def test_the_qdisc_is_removed_with_the_last_filter_of_any_program(classified):
    one = classified[0]
    tc = ("tc", "filter", "add", "dev", "eth0", "ingress", "protocol", "all")
    one.namespace.command(*tc, "u32", "match", "u32", "0", "0")

    one.heal(State.EMPTY, clsact)

    assert one.snapshot(State.EMPTY, clsact) == State.EMPTY
    assert "clsact" in one.namespace.command("tc", "qdisc", "show", "dev", "eth0")
    assert "clsact" not in one.namespace.command("tc", "qdisc", "show", "dev", "flannel0")


def test_a_removal_of_a_missing_filter_succeeds(classified):
    one = classified[0]
    gone = [Remove(one.program(role)) for role in Role]

    assert one.act(lambda target: target.apply([*gone, *gone]), clsact) == []


def test_a_kernel_without_tcx_gets_classifiers(hosts):
    one, two = hosts

    def old_kernel(objects):
        return KernelHooks(objects, ask=lambda: ("absent", OSError(errno.EINVAL, "Invalid argument")))

    one.heal(one.plan(two.peer()), old_kernel)

    assert one.snapshot(one.plan(two.peer()), clsact) == one.plan(two.peer())


def test_nothing_is_chosen_if_tcx_cannot_be_probed(hosts):
    """If a right is missing, the answer does not show whether the kernel supports tcx."""
    one, two = hosts

    def hidden(objects):
        return KernelHooks(objects, ask=lambda: ("unknown", OSError(errno.EPERM, "Operation not permitted")))

    assert one.snapshot(one.plan(two.peer()), hidden) == State.EMPTY
    refused = one.act(lambda target: target.apply([Add(one.program(Role.LAST_HOP))]), hidden)

    assert "EPERM" in refused[0].cause
    assert one.snapshot(one.plan(two.peer()), clsact) == State.EMPTY


def test_this_kernel_gets_tcx(hosts):
    one, two = hosts

    one.heal(one.plan(two.peer()), KernelHooks)

    assert one.snapshot(one.plan(two.peer())) == one.plan(two.peer())


@pytest.mark.parametrize("place", [(), ("prio", "50000")], ids=["any", "a late one"])
def test_foreign_filters_see_packets_first(classified, place):
    """A policer or a firewall at the underlay decides about a packet before the programs carry it."""
    one, two = classified
    tc = ("tc", "filter", "add", "dev", "eth0", "ingress", "protocol", "ip", *place)
    two.namespace.command(*tc, "u32", "match", "ip", "dport", "8285", "0xffff", "classid", "1:1")

    assert one.container.ping(two.container.address, "-W", "2")[0] == 0


def test_two_programs_at_one_hook_have_the_last_priority(classified):
    """A host with two tunnels over one underlay has two programs at one hook."""
    one = classified[0]
    one.namespace.ip("link add flannel1 type veth peer name other1")
    other = replace(one.program(Role.DECAPSULATE).tunnel, device="flannel1", gro_link="")
    program = replace(one.program(Role.DECAPSULATE), tunnel=other)

    refused = one.act(lambda target: target.apply([Add(program)]), clsact)

    shown = one.namespace.command("tc", "filter", "show", "dev", "eth0", "ingress")
    assert (refused, shown.count("flannel_decap direct-action")) == ([], 2)
