"""Laws of the heart: whatever a host looks like, one pass makes it what the plan says, and no more."""

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from doubles.fake_kernel import FakeKernel
from doubles.strategies import drifted, items, plans
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item
from pyflannel.model.link import Address, Link
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.route import FdbEntry, Neighbour, Route, route_protocol
from pyflannel.model.state import Add, Remove, Replace, State
from pyflannel.plan.describe import found
from pyflannel.plan.diff import diff, order
from pyflannel.plan.ownership import ours, taken_links, without_links

Case = tuple[State, State]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A plan, and what a pass towards it may find."""
    plan = draw(plans())
    return plan, draw(drifted(plan))


def one_pass(kernel: FakeKernel, desired: State) -> list[object]:
    """Make one pass as the reconciler does; return what was refused."""

    async def run() -> list[object]:
        operations = order(diff(desired, ours(await kernel.snapshot(desired), desired)))
        return list(await kernel.apply(operations)) if operations else []

    return asyncio.run(run())


@given(case=cases())
def test_one_pass_heals_any_drift(case: Case) -> None:
    """Whatever happened to the kernel, one pass restores the plan, and nothing in it is refused."""
    desired, found_state = case
    kernel = FakeKernel(found_state)

    refused = one_pass(kernel, desired)

    assert not refused
    assert ours(kernel.state, desired) == desired
    assert not list(diff(desired, ours(kernel.state, desired)))


@given(case=cases())
def test_foreign_objects_are_untouched(case: Case) -> None:
    """What is not ours is the same after a pass as before it."""
    desired, found_state = case
    kernel = FakeKernel(found_state)
    marked = {item.name for item in found_state if isinstance(item, Link) and item.alias == "pyflannel"}
    links = {*marked, *(item.name for item in desired if isinstance(item, Link))}
    devices = {*links, "flannel0"}  # the name that the daemon claims
    foreign = [
        item
        for item in found_state
        if item.key not in desired.by_key
        and (
            (isinstance(item, Link) and item.name not in links)
            or (isinstance(item, Address | Neighbour | FdbEntry) and item.link not in links)
            or (isinstance(item, Route) and item.link not in links and item.protocol != 80)
            or (isinstance(item, IptablesChain | NftTable) and item.device not in devices)
            or isinstance(item, HostFile)
        )
    ]

    one_pass(kernel, desired)

    assert all(item in kernel.state for item in foreign)


@given(desired=plans())
def test_a_plan_can_be_taken_away_without_trace(desired: State) -> None:
    """The empty plan removes all that a plan made, but for the file, which nobody owns without a plan."""
    kernel = FakeKernel()
    one_pass(kernel, desired)

    refused = one_pass(kernel, State.EMPTY)

    assert not refused
    assert {item.key[0] for item in kernel.state} == {"file"}


@given(case=cases(), data=st.data())
def test_a_pass_killed_anywhere_is_finished_by_the_next(case: Case, data: st.DataObject) -> None:
    """A batch that ended after any of its operations leaves nothing that the next pass does not mend."""
    desired, found_state = case
    kernel = FakeKernel(found_state)
    operations = order(diff(desired, ours(found_state, desired)))
    done = operations[: data.draw(st.integers(0, len(operations)))]
    asyncio.run(kernel.apply(done))

    refused = one_pass(kernel, desired)

    assert not refused
    assert ours(kernel.state, desired) == desired


@given(case=cases())
def test_each_operation_says_what_was_found(case: Case) -> None:
    """The words name the object, and differ for things that differ."""
    desired, found_state = case
    for operation in diff(desired, ours(found_state, desired)):
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


def test_two_daemons_on_one_host_leave_each_other_alone() -> None:
    """Each has its own mark: one's device is foreign to the other, whether it is planned or stray."""
    mine = Link(name="flannel0", kind="tun", mtu=1472)
    theirs = Link(name="flannel1", kind="tun", mtu=1472, alias="pyflannel /run/blue")

    assert ours(State.of(mine, theirs), State.of(mine)) == State.of(mine)
    assert ours(State.of(mine, theirs), State.EMPTY, "pyflannel /run/blue") == State.of(theirs)


def test_filter_rules_belong_to_the_daemon_of_their_device() -> None:
    """Also where the usual daemon has flannel1, because another was first."""
    theirs = Link(name="flannel0", kind="tun", mtu=1472, alias="pyflannel /run/blue")
    mine = Link(name="flannel1", kind="tun", mtu=1472)
    their_chain = IptablesChain(family=4, table="filter", device="flannel0", rules=())
    my_chain = IptablesChain(family=4, table="filter", device="flannel1", rules=())
    found = State.of(theirs, mine, their_chain, my_chain)

    assert ours(found, State.EMPTY, device="flannel1") == State.of(mine, my_chain)
    assert ours(found, State.EMPTY, "pyflannel /run/blue", "flannel0") == State.of(theirs, their_chain)
    # What a dead daemon, or the original, left.
    assert ours(State.of(their_chain), State.EMPTY) == State.of(their_chain)


def test_routes_belong_to_the_daemon_of_their_protocol() -> None:
    """Two host-gw networks share the underlay's link: a route says by its protocol whose it is."""
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


def test_a_link_of_another_daemon_is_never_fought_over() -> None:
    """Two networks with one VNI: the second says whose the device is, and leaves all that is on it."""
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
    assert not taken_links(State.of(replace(wanted, alias="somebody's")), desired, "pyflannel /run/blue")


@given(plans(), st.lists(items()))
def test_a_table_has_items_of_one_type_alone(plan: State, found: list[Item]) -> None:
    """Whoever wants those of a type looks at the first of each table."""
    state = plan | State.collect(found)

    for names in state.by_key.tables.values():
        assert len({type(item) for item in names.values()}) == 1
    for kind in {type(item) for item in state}:
        assert list(state.of_type(kind)) == [item for item in state if isinstance(item, kind)]
