"""A batch that ends anywhere, as by SIGKILL: the next pass finishes it, and keeps all foreign objects."""

import asyncio
import itertools
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from doubles.fake_kernel import FakeKernel
from doubles.planning import pass_operations
from pyflannel.model.host import Host, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep
from pyflannel.model.link import Address, Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.packet_filter import IptablesChain
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Operation, State
from pyflannel.plan.backends import backend_of
from pyflannel.plan.ownership import ours
from pyflannel.plan.packet_filter import FilterOptions, plan_filter

UNDERLAY = IPv4Network("172.16.0.0/16")
BASE = IPv4Address("10.100.0.0")
KINDS = ("udp", "vxlan", "host-gw")
SWITCHES = list(itertools.product(KINDS, KINDS))
"""Changes from each backend to each backend, including itself."""

EVERY_CUT = 25
"""Number of peers for which every cut is tried. The work grows with the cube of this number."""

FOREIGN = State.of(
    Link(name="eth0", kind="", mtu=1500, alias=""),
    Address(link="eth0", address=IPv4Interface("172.16.0.1/16")),
    Route(destination=UNDERLAY, link="eth0", protocol=2),
    Route(
        destination=IPv4Network("0.0.0.0/0"), link="eth0", gateway=IPv4Address("172.16.255.254"), protocol=16
    ),
    # This route is in the network, and has pyflannel's metric. It is neither marked nor planned, so pyflannel
    # does not own the route.
    Route(
        destination=IPv4Network("10.100.250.0/24"), link="eth0", gateway=IPv4Address("172.16.9.9"), protocol=3
    ),
    Route(
        destination=IPv4Network("10.101.1.0/24"), link="eth0", gateway=IPv4Address("172.16.9.9"), protocol=101
    ),
    Neighbour(link="eth0", address=IPv4Address("172.16.255.254"), mac="0e:00:00:00:00:01"),
    Link(name="flannel.7", kind="vxlan", mtu=1450, alias="pyflannel /run/blue"),
    FdbEntry(link="flannel.7", mac="0e:00:00:00:00:07", destination=IPv4Address("172.16.9.9")),
    IptablesChain(family=4, hook="FORWARD", device="flannel1", rules=()),
)
"""Objects of other programs, including another pyflannel daemon."""


def lease(number: int, kind: str, generation: int) -> Lease:
    """Return the lease of one host. In another generation, it has another address and MAC address."""
    attributes = LeaseAttributes(
        public_ip=UNDERLAY[256 + 2 * number + generation],
        backend_type="" if kind == "udp" else kind,
        vtep=Vtep(mac=f"0e:00:00:{generation:02x}:{number >> 8:02x}:{number & 255:02x}", vni=1),
    )
    return Lease(subnet=IPv4Network((BASE + 16 * (number + 16), 28)), attributes=attributes)


def plan(kind: str, peers: dict[int, int]) -> State:
    """Return the whole plan of a host with these peers, each given by number and generation."""
    config = NetworkConfig(network=IPv4Network((BASE, 16)), subnet_length=28, backend_type=kind)
    own = Lease(
        subnet=IPv4Network((BASE, 28)), attributes=LeaseAttributes(public_ip=IPv4Address("172.16.0.1"))
    )
    host = Host(
        lease=own,
        owner="f00d",
        underlay=Underlay(
            link="eth0",
            address=IPv4Address("172.16.0.1"),
            mtu=1500,
            public_ip=IPv4Address("172.16.0.1"),
            on_link=(UNDERLAY,),
        ),
    )
    backend = backend_of(config)
    state = backend.plan_host(host) | plan_filter(config, host, FilterOptions(accepts_forwarded=True))
    for number, generation in peers.items():
        state |= backend.plan_peer(lease(number, kind, generation), host)
    return state


def before_and_after(kinds: tuple[str, str], count: int) -> tuple[State, State]:
    """Return the actual and the desired state: peers were added, removed and changed without the daemon."""
    old, new = kinds
    left, changed = count // 4, count // 2
    was = dict.fromkeys(range(count - left), 0)
    now = {number: int(number < changed) for number in range(left, count)}
    return plan(old, was), plan(new, now)


def batch(desired: State, kernel: FakeKernel) -> list[Operation]:
    return pass_operations(desired, ours(kernel.state, desired))


def killed_at(standing: State, desired: State, cuts: Iterator[int]) -> Iterator[FakeKernel]:
    """Yield the kernel in which a batch ended after each of the rising numbers of operations `cuts`."""
    kernel = FakeKernel(standing | FOREIGN)
    operations = batch(desired, kernel)
    done = 0
    for cut in cuts:
        assert not asyncio.run(kernel.apply(operations[done:cut]))
        done = cut
        yield FakeKernel(kernel.state)


def assert_finished(kernel: FakeKernel, desired: State) -> None:
    """Perform the pass of the next run, and check that only the plan and the foreign objects exist."""
    assert not asyncio.run(kernel.apply(batch(desired, kernel)))
    assert kernel.state == desired | FOREIGN
    assert not batch(desired, kernel)


def test_the_plans_have_the_expected_objects() -> None:
    """Three objects per peer with vxlan, one object with host-gw. Nothing is refused."""
    host_only = {kind: len(plan(kind, {})) for kind in KINDS}
    sizes = {kind: len(plan(kind, dict.fromkeys(range(1000), 0))) - host_only[kind] for kind in KINDS}
    assert sizes == {"udp": 1000, "vxlan": 3000, "host-gw": 1000}


@pytest.mark.parametrize("kinds", SWITCHES, ids="-".join)
def test_the_next_pass_finishes_a_batch_that_ended_anywhere(kinds: tuple[str, str], long_run: bool) -> None:
    """The batch ends after each of its operations in turn. At the end, the empty plan removes everything."""
    standing, desired = before_and_after(kinds, 10 * EVERY_CUT if long_run else EVERY_CUT)
    size = len(batch(desired, FakeKernel(standing | FOREIGN)))

    for kernel in killed_at(standing, desired, iter(range(size + 1))):
        cleaned = FakeKernel(kernel.state)
        assert_finished(kernel, desired)
        assert_finished(cleaned, State.EMPTY)


def test_the_next_pass_finishes_a_batch_of_a_thousand_peers_that_ended_anywhere(long_run: bool) -> None:
    """The test tries some of three thousand cuts, because all cuts would take an hour."""
    standing, desired = before_and_after(("vxlan", "vxlan"), 1000)
    size = len(batch(desired, FakeKernel(standing | FOREIGN)))

    for kernel in killed_at(
        standing, desired, iter(range(size // 7, size, size // (100 if long_run else 2)))
    ):
        assert_finished(kernel, desired)
