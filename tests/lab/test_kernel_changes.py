"""What wakes a pass on the real kernel: everything that others do to objects of ours, and nothing else."""

import asyncio
import contextlib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from pyflannel.kernel.linux import LinuxTarget
from pyflannel.kernel.netlink_socket import RequestSocket
from pyflannel.model.address import Address
from pyflannel.model.link import Link
from pyflannel.model.operation import Add
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_LINK, Route
from pyflannel.model.state import State
from pyflannel.wire.netlink.addresses import dump_addresses, parse_address_message
from pyflannel.wire.netlink.links import change_link, dump_links, parse_link

PLAN = State.of(
    Link(name="flannel0", kind="tun", mtu=1472),
    Address(link="flannel0", address=IPv4Interface("10.100.15.0/16")),
    Route(
        destination=IPv4Network("10.100.0.0/16"),
        link="flannel0",
        source=IPv4Address("10.100.15.0"),
        protocol=PROTOCOL_KERNEL,
        scope=SCOPE_LINK,
    ),
)

WAKING = {
    "link down": "link set flannel0 down",
    "link deleted": "link delete flannel0",
    "MTU": "link set flannel0 mtu 1400",
    "queue": "link set flannel0 txqueuelen 1000",
    "mark": "link set flannel0 alias mine",
    "address": "address delete 10.100.15.0/16 dev flannel0",
    "route deleted": "route delete 10.100.0.0/16",
    "route replaced": "route replace 10.100.0.0/16 dev other",
    "route on our link": "route add 10.200.0.0/16 dev flannel0",
    "route of our mark": "route add 10.201.0.0/16 dev other proto 80",
    "link renamed to a planned one": "link set spare name flannel0",
}

FOREIGN = {
    "link": "link set other mtu 1400",
    "address": "address add 10.8.0.1/24 dev other",
    "route": "route add 10.9.0.0/16 dev other",
    "route with another metric": "route add 10.100.0.0/16 dev other metric 9",
    "route in another table": "route add 10.100.0.0/16 dev other table 77",
}


class Listener:
    """A LinuxTarget with a standing plan, and the count of its wake-ups."""

    def __init__(self, target: LinuxTarget) -> None:
        self.target = target
        self.wakes = 0
        self.changed = asyncio.Event()

    async def listen(self) -> None:
        async for _ in self.target.changes():
            self.wakes += 1
            self.changed.set()

    async def next_wake(self) -> None:
        async with asyncio.timeout(5):
            await self.changed.wait()
        self.changed.clear()


def on_standing_plan(namespace, then: Callable) -> None:
    """Run `then(listener)` in the namespace with the plan in place and all wake-ups of that behind it."""
    namespace.ip("link add other type veth peer name otherend")
    namespace.ip("address add 10.7.0.1/24 dev other")
    namespace.ip("link set otherend up")
    namespace.ip("link set other up")
    namespace.ip("link add spare type bridge")

    async def run() -> None:
        target = LinuxTarget()
        listener = Listener(target)
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(listener.listen())
            try:
                assert await target.apply([Add(item) for item in PLAN]) == []
                await listener.next_wake()
                assert await target.snapshot(PLAN) == PLAN
                await settle(namespace, listener)
                await then(listener)
            finally:
                listening.cancel()
        target.close()

    with contextlib.suppress(asyncio.CancelledError):
        namespace.run(run)


async def settle(namespace, listener: Listener) -> None:
    """Return when everything announced so far was heard: a change of ours that comes after it was."""
    namespace.ip("route add 10.202.0.0/16 dev flannel0")
    await listener.next_wake()
    namespace.ip("route delete 10.202.0.0/16 dev flannel0")
    await listener.next_wake()
    listener.wakes = 0


@pytest.mark.parametrize("words", WAKING.values(), ids=WAKING.keys())
def test_what_touches_ours_wakes(namespace, words: str) -> None:
    async def then(listener: Listener) -> None:
        if "spare" in words:
            namespace.ip("link delete flannel0")
            await listener.next_wake()
            await listener.target.snapshot(PLAN)
        namespace.ip(words)
        await listener.next_wake()

    on_standing_plan(namespace, then)


@pytest.mark.parametrize("words", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_is_foreign_does_not_wake(namespace, words: str) -> None:
    async def then(listener: Listener) -> None:
        namespace.ip(words)
        await settle_without_counting(namespace, listener)
        assert listener.wakes == 2

    async def settle_without_counting(namespace, listener: Listener) -> None:
        namespace.ip("route add 10.203.0.0/16 dev flannel0")
        await listener.next_wake()
        namespace.ip("route delete 10.203.0.0/16 dev flannel0")
        await listener.next_wake()

    on_standing_plan(namespace, then)


def test_our_own_routes_do_not_wake(namespace) -> None:
    async def then(listener: Listener) -> None:
        route = Route(destination=IPv4Network("10.210.0.0/16"), link="flannel0")
        assert await listener.target.apply([Add(route)]) == []
        namespace.ip("route add 10.203.0.0/16 dev flannel0")
        await listener.next_wake()
        assert listener.wakes == 1

    on_standing_plan(namespace, then)


def test_a_burst_is_one_wake_up_or_few(namespace) -> None:
    async def then(listener: Listener) -> None:
        batch = "\n".join(f"route add 10.150.{n}.0/24 dev flannel0" for n in range(250))
        namespace.command("ip", "-batch", "-", given=batch)
        await listener.next_wake()
        assert listener.wakes < 25

    on_standing_plan(namespace, then)


def test_lost_notifications_are_a_wake_up(namespace) -> None:
    """Nobody reads while thousands of changes overflow the buffer; what was lost may have been ours."""

    async def run() -> None:
        target = LinuxTarget()
        try:
            await target.snapshot(PLAN)
            namespace.ip("link add other type veth peer name otherend")
            namespace.ip("link set otherend up")
            namespace.ip("link set other up")
            churn = "\n".join(
                f"route {verb} 172.16.{n // 256}.{n % 256}/32 dev other"
                for n in range(15_000)
                for verb in ("add", "delete")
            )
            namespace.command("ip", "-batch", "-", given=churn)
            async with asyncio.timeout(5):
                await anext(target.changes())
        finally:
            target.close()

    namespace.run(run)


def test_questions_from_several_tasks_do_not_mix(namespace) -> None:
    namespace.ip("link add other type veth peer name otherend")
    namespace.ip("address add 10.7.0.1/24 dev other")

    async def run() -> None:
        requests = RequestSocket()
        try:
            async with asyncio.TaskGroup() as tasks:
                links = [tasks.create_task(requests.dump(dump_links(), parse_link)) for _ in range(20)]
                addresses = [
                    tasks.create_task(requests.dump(dump_addresses(), parse_address_message))
                    for _ in range(20)
                ]
                changes = [
                    tasks.create_task(
                        requests.transact([change_link(1, mtu=mtu), change_link(999_999, mtu=mtu)])
                    )
                    for mtu in range(60_000, 60_020)
                ]
        finally:
            requests.close()
        assert {len(task.result()) for task in links} == {3}
        assert {tuple(one.address for one in task.result()) for task in addresses} == {
            tuple(one.address for one in addresses[0].result())
        }
        assert {tuple(answer.errno for answer in task.result()) for task in changes} == {(0, 19)}

    namespace.run(run)


def test_a_dump_that_is_broken_off_does_not_hinder_the_next(namespace) -> None:
    async def run() -> None:
        requests = RequestSocket()
        try:
            for _ in range(3):
                broken = asyncio.ensure_future(requests.dump(dump_links(), parse_link))
                await asyncio.sleep(0)
                broken.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await broken
                assert [link.name for link in await requests.dump(dump_links(), parse_link)] == ["lo"]
        finally:
            requests.close()

    namespace.run(run)
