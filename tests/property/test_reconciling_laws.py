"""Laws of the heart: whatever a host looks like, one pass makes it what the plan says, and no more."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.model.link import Link
from pyflannel.model.operation import Add, Remove, Replace
from pyflannel.model.state import State
from pyflannel.plan.describe import found
from pyflannel.plan.diff import diff
from pyflannel.plan.order import order
from pyflannel.plan.ownership import ours
from pyflannel.testing.fake_kernel import FakeKernel
from pyflannel.testing.strategies import kernel_states, udp_plans


def one_pass(kernel: FakeKernel, desired: State) -> list[object]:
    """Make one pass as the reconciler does; return what was refused."""

    async def run() -> list[object]:
        operations = order(diff(desired, ours(await kernel.snapshot(desired), desired)))
        return list(await kernel.apply(operations)) if operations else []

    return asyncio.run(run())


@given(desired=udp_plans(), drifted=kernel_states())
def test_one_pass_heals_any_drift(desired: State, drifted: State) -> None:
    """Whatever happened to the kernel, one pass restores the plan, and nothing in it is refused."""
    kernel = FakeKernel(drifted)

    refused = one_pass(kernel, desired)

    assert not refused
    assert ours(kernel.state, desired) == desired
    assert not list(diff(desired, ours(kernel.state, desired)))


@given(desired=udp_plans(), drifted=kernel_states())
def test_foreign_objects_are_untouched(desired: State, drifted: State) -> None:
    """What is not ours is the same after a pass as before it, unless it hung on a link that was made anew."""
    kernel = FakeKernel(drifted)
    mine = ours(drifted, desired)
    foreign = [item for item in drifted if item.key not in mine.by_key]

    one_pass(kernel, desired)

    assert all(item in kernel.state for item in foreign)


@given(desired=udp_plans())
def test_a_plan_can_be_taken_away_without_trace(desired: State) -> None:
    """The empty plan removes all that a plan made, but for the file, which nobody owns without a plan."""
    kernel = FakeKernel()
    one_pass(kernel, desired)

    refused = one_pass(kernel, State.EMPTY)

    assert not refused
    assert {item.key[0] for item in kernel.state} == {"file"}


@given(desired=udp_plans(), drifted=kernel_states(), data=st.data())
def test_a_pass_killed_anywhere_is_finished_by_the_next(
    desired: State, drifted: State, data: st.DataObject
) -> None:
    """A batch that ended after any of its operations leaves nothing that the next pass does not mend."""
    kernel = FakeKernel(drifted)
    operations = order(diff(desired, ours(drifted, desired)))
    done = operations[: data.draw(st.integers(0, len(operations)))]
    asyncio.run(kernel.apply(done))

    refused = one_pass(kernel, desired)

    assert not refused
    assert ours(kernel.state, desired) == desired


@given(desired=udp_plans(), drifted=kernel_states())
def test_each_operation_says_what_was_found(desired: State, drifted: State) -> None:
    """The words name the object, and differ for things that differ."""
    for operation in diff(desired, ours(drifted, desired)):
        match operation:
            case Add():
                assert found(operation).endswith(": missing")
            case Remove():
                assert found(operation).endswith(": not wanted")
            case Replace(old, new):
                assert old != new
                assert not found(operation).endswith(": ")


def test_a_link_of_another_kind_is_made_anew_with_all_that_hangs_on_it() -> None:
    """A vxlan device called flannel0 is in our way: the address and route of the plan are missing then."""
    desired = State.of(Link(name="flannel0", kind="tun", mtu=1472))
    actual = State.of(Link(name="flannel0", kind="vxlan", mtu=1472))

    operations = list(diff(desired, actual))

    assert operations == [Replace(next(iter(actual)), next(iter(desired)))]
