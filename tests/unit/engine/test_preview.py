"""The changes of the next pass are shown, and no target is changed."""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from doubles.planning import SUBNET_FILE, by_subnet
from pyflannel.engine.condition import Inputs
from pyflannel.engine.planner import Planner
from pyflannel.engine.preview import preview
from pyflannel.engine.world import PlanOptions
from pyflannel.model.host import Underlay
from pyflannel.model.item import Item
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.link import Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import Route
from pyflannel.model.state import Operation, Refusal, Replaced, State
from pyflannel.model.status import PlanPreview
from pyflannel.plan.backend.host_gw import HostGwBackend
from pyflannel.ports import ChangeChannel

NETWORK = IPv4Network("10.100.0.0/16")
ADDRESS = IPv4Address("172.16.0.99")
OPTIONS = PlanOptions(subnet_file=SUBNET_FILE)
OWN = Lease(subnet=IPv4Network("10.100.15.0/24"), attributes=LeaseAttributes(public_ip=ADDRESS))
PEER = Lease(
    subnet=IPv4Network("10.100.16.0/24"),
    attributes=LeaseAttributes(public_ip=IPv4Address("172.16.0.1"), backend_type="host-gw"),
)
INPUTS = Inputs(
    config=NetworkConfig(network=NETWORK, subnet_length=24),
    backend=HostGwBackend(),
    lease=OWN,
    leases=by_subnet([OWN, PEER]),
    underlay=Underlay(
        link="eth0", address=ADDRESS, mtu=1500, public_ip=ADDRESS, on_link=(IPv4Network("172.16.0.0/24"),)
    ),
)


class Readable:
    """A target with a fixed state, which must not be changed."""

    kinds = (Route,)

    def __init__(self, state: State) -> None:
        self.state = state

    async def snapshot(self, desired: State) -> State:
        return self.state

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        raise AssertionError(operations)

    def changes(self) -> ChangeChannel:
        raise AssertionError


def planned() -> State:
    result = Planner(OPTIONS).update(INPUTS)
    assert isinstance(result, Replaced)
    return result.plan


def shown(*items: Item, inputs: Inputs = INPUTS) -> PlanPreview:
    return asyncio.run(preview(inputs, OPTIONS, [Readable(State.collect(items))]))


def test_the_preview_for_a_host_as_planned_contains_no_changes() -> None:
    assert shown(*planned()) == PlanPreview()


def test_missing_changed_and_surplus_objects_are_shown_in_the_order_of_a_pass() -> None:
    plan = list(planned())
    (route,) = (item for item in plan if isinstance(item, Route) and item.destination == PEER.subnet)
    others = [item for item in plan if item is not route]
    moved = replace(route, gateway=IPv4Address("172.16.0.7"))
    surplus = replace(route, destination=IPv4Network("10.100.17.0/24"))

    (added,) = shown(*others).changes
    assert (added.action, added.kind) == ("add", "route")
    assert added.text == "route 10.100.16.0/24 via 172.16.0.1 dev eth0 proto 80"

    (changed,) = shown(*others, moved).changes
    assert changed.action == "change"
    assert changed.text == "route 10.100.16.0/24: gateway 172.16.0.7, wanted 172.16.0.1"

    (removed,) = shown(*plan, surplus).changes
    assert (removed.action, removed.text) == (
        "remove",
        "route 10.100.17.0/24 via 172.16.0.1 dev eth0 proto 80",
    )


def test_foreign_objects_are_not_shown() -> None:
    link = Link(name="docker0", kind="bridge", mtu=1500, alias="")

    assert shown(*planned(), link) == PlanPreview()


def test_without_a_lease_the_host_has_no_plan() -> None:
    found = shown(inputs=replace(INPUTS, lease=None))

    assert found.waits_for == "its lease, its interface or a network config"
    assert found.changes == ()
