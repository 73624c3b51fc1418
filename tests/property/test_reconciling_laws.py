"""Laws of reconciliation, on a kernel in memory. tests/lab checks these laws on a real kernel."""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.fake_kernel import FakeKernel
from doubles.strategies import DUAL_HOST, damages, items, plans
from pyflannel.model.item import Item
from pyflannel.model.link import Address, Link
from pyflannel.model.packet_filter import IptablesChain
from pyflannel.model.route import Route, route_protocol
from pyflannel.model.state import Add, Operation, Remove, Replace, State
from pyflannel.plan.diff import diff, found
from pyflannel.plan.ownership import ours, taken_links, without_links
from testlab import target_laws

Case = tuple[State, list[Operation]]


class FakeHost:
    """A host in memory."""

    def __init__(self) -> None:
        self._kernel = FakeKernel(DUAL_HOST)
        self.snapshot, self.apply = self._kernel.snapshot, self._kernel.apply

    async def damage(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if (act := target_laws.adapted(operation, self._kernel.state)) is not None:
                self._kernel.damage(act)

    async def found(self, desired: State) -> State:
        return self._kernel.state


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A plan, and operations of other programs."""
    plan = draw(plans())
    return plan, draw(damages(plan))


@given(case=cases())
def test_one_pass_repairs_any_damage(case: Case) -> None:
    asyncio.run(target_laws.check_one_pass_repairs(FakeHost(), *case))


@given(case=cases())
def test_foreign_objects_are_untouched(case: Case) -> None:
    asyncio.run(target_laws.check_foreign_objects_are_untouched(FakeHost(), *case))


@given(desired=plans())
def test_the_empty_plan_leaves_no_trace(desired: State) -> None:
    asyncio.run(target_laws.check_the_empty_plan_leaves_no_trace(FakeHost(), desired))


@given(case=cases(), cut=st.floats(0, 1))
def test_an_interrupted_pass_is_finished_by_the_next(case: Case, cut: float) -> None:
    asyncio.run(target_laws.check_a_cut_pass_is_finished(FakeHost(), *case, cut))


@given(case=cases())
def test_each_operation_has_a_text_with_its_difference(case: Case) -> None:
    """The text names the object, and differs for different objects."""
    desired, damage = case
    kernel = FakeKernel(DUAL_HOST)
    kernel.damage(*(Add(item) for item in desired), *damage)
    for operation in diff(desired, ours(kernel.state, desired)):
        match operation:
            case Add():
                assert found(operation).endswith(": missing")
            case Remove():
                assert found(operation).endswith(": not wanted")
            case Replace(old, new):
                assert old != new
                assert not found(operation).endswith(": ")


def test_a_link_of_another_kind_is_created_again() -> None:
    desired = State.of(Link(name="flannel0", kind="tun", mtu=1472))
    actual = State.of(Link(name="flannel0", kind="vxlan", mtu=1472))

    operations = list(diff(desired, actual))

    assert operations == [Replace(next(iter(actual)), next(iter(desired)))]


def test_two_daemons_on_one_host_do_not_change_each_other() -> None:
    """Each daemon has its own mark: the device of one daemon is foreign to the other daemon, planned or
    not.
    """
    mine = Link(name="flannel0", kind="tun", mtu=1472)
    theirs = Link(name="flannel1", kind="tun", mtu=1472, alias="pyflannel /run/blue")

    assert ours(State.of(mine, theirs), State.of(mine)) == State.of(mine)
    assert ours(State.of(mine, theirs), State.EMPTY, "pyflannel /run/blue") == State.of(theirs)


def test_filter_rules_belong_to_the_daemon_of_their_device() -> None:
    """A chain of flannel1 belongs to the usual daemon if another daemon started first and has flannel0."""
    theirs = Link(name="flannel0", kind="tun", mtu=1472, alias="pyflannel /run/blue")
    mine = Link(name="flannel1", kind="tun", mtu=1472)
    their_chain = IptablesChain(family=4, hook="FORWARD", device="flannel0", rules=())
    my_chain = IptablesChain(family=4, hook="FORWARD", device="flannel1", rules=())
    found = State.of(theirs, mine, their_chain, my_chain)

    assert ours(found, State.EMPTY, device="flannel1") == State.of(mine, my_chain)
    assert ours(found, State.EMPTY, "pyflannel /run/blue", "flannel0") == State.of(theirs, their_chain)
    # Objects that a dead daemon or the original left.
    assert ours(State.of(their_chain), State.EMPTY) == State.of(their_chain)


def test_routes_belong_to_the_daemon_of_their_protocol() -> None:
    """Two host-gw networks share the underlay's link: the protocol of a route identifies its owner."""
    mine, theirs = (
        Route(
            destination=IPv4Network(destination),
            link="eth0",
            gateway=IPv4Address("192.168.50.101"),
            protocol=route_protocol(device),
        )
        for destination, device in (("10.100.1.0/24", "flannel0"), ("10.101.1.0/24", "flannel1"))
    )

    assert ours(State.of(mine, theirs), State.EMPTY) == State.of(mine)
    assert ours(State.of(mine, theirs), State.EMPTY, "pyflannel /run/blue", "flannel1") == State.of(theirs)
    assert ours(State.of(mine, theirs), State.EMPTY, "pyflannel /run/blue", None) == State.EMPTY


def test_a_link_of_another_daemon_is_never_changed() -> None:
    """Two networks with one VNI: the second reports the owner of the device, and changes nothing on it."""
    wanted = Link(name="flannel.1", kind="vxlan", mtu=1450, alias="pyflannel /run/blue")
    base = Address(link="flannel.1", address=IPv4Interface("10.101.1.0/32"))
    route = Route(destination=IPv4Network("10.101.2.0/24"), link="flannel.1")
    desired = State.of(wanted, base, route)
    theirs = replace(wanted, alias="pyflannel")
    found = State.of(theirs, Address(link="flannel.1", address=IPv4Interface("10.100.1.0/32")))

    taken = taken_links(found, desired, "pyflannel /run/blue")

    assert [refusal.operation for refusal in taken.values()] == [Add(wanted)]
    assert "--run-dir=/run/flannel " in taken["flannel.1"].cause
    assert without_links(desired, taken.keys()) == State.EMPTY
    assert ours(State.of(*found, base), desired, "pyflannel /run/blue") == State.EMPTY
    assert not taken_links(found, State.of(theirs))
    assert not taken_links(
        State.of(replace(wanted, alias="another program's")), desired, "pyflannel /run/blue"
    )


@given(plans(), st.lists(items()))
def test_a_table_has_items_of_one_type(plan: State, found: list[Item]) -> None:
    """Therefore, the first item of a table shows the type of all."""
    state = plan | State.collect(found)

    for names in state.by_key.tables.values():
        assert len({type(item) for item in names.values()}) == 1
    for kind in {type(item) for item in state}:
        assert list(state.of_type(kind)) == [item for item in state if isinstance(item, kind)]
