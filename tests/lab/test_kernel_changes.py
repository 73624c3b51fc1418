"""The changes that start a pass on the real kernel: all changes by other programs to owned objects, and no
others.
"""

import asyncio
import contextlib
import fcntl
import os
import struct
import sys
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.kernel.network.netlink_socket import NotificationSocket, RequestSocket
from pyflannel.model.link import Address, Link
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_LINK, Route
from pyflannel.model.state import Add, Remove, State
from pyflannel.plan.ownership import ours
from pyflannel.wire.netlink import routes
from pyflannel.wire.netlink.addresses import dump_addresses, parse_address_message
from pyflannel.wire.netlink.links import change_link, dump_links, parse_link
from pyflannel.wire.netlink.message import PORT_AT, Message
from pyflannel.wire.netlink.routes import RouteRecord

IPV4_ROUTES = 0x40
"""RTMGRP_IPV4_ROUTE (linux/rtnetlink.h)."""

DEADLINE_S = 10.0

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
    Route(destination=IPv4Network("10.50.0.0/16"), link="eth0", gateway=IPv4Address("10.7.0.9")),
    Route(destination=IPv4Network("10.51.0.0/16"), link="plain", scope=SCOPE_LINK),
)

WAKING = {
    "link down": "link set flannel0 down",
    "link deleted": "link delete flannel0",
    "MTU": "link set flannel0 mtu 1400",
    "queue": "link set flannel0 txqueuelen 1000",
    "mark": "link set flannel0 alias mine",
    "address": "address delete 10.100.15.0/16 dev flannel0",
    "route deleted": "route delete 10.100.0.0/16",
    "route replaced": "route replace 10.100.0.0/16 dev foreign",
    "route on an owned link": "route add 10.200.0.0/16 dev flannel0",
    "route with the mark": "route add 10.201.0.0/16 dev foreign proto 80",
    "link under a route down": "link set eth0 down",
    "link under a route renamed": "link set plain name another",
    "IPv6 turned on": "netns exec {name} sysctl -q -w net.ipv6.conf.flannel0.disable_ipv6=0",
    "address under a route": "address delete 10.7.0.1/24 dev eth0",
}

FOREIGN = {
    "link": "link set foreign mtu 1400",
    "link made": "link add another type bridge",
    "address": "address add 10.8.0.1/24 dev foreign",
    "route": "route add 10.9.0.0/16 dev foreign",
    "route with another metric": "route add 10.100.0.0/16 dev foreign metric 9",
    "route in another table": "route add 10.100.0.0/16 dev foreign table 77",
}

_NAMES = ("eth0", "eth0r", "plain", "plainr", "foreign", "foreignr")


@pytest.fixture
def applied(namespace, listen):
    """Run `then(target, wakes)` with the plan in effect, after all its notifications were read."""
    # IPv6 sends notifications seconds after a link was set up, when its addresses proved unique.
    namespace.command("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")
    for name in ("eth0", "plain", "foreign"):
        namespace.ip(f"link add {name} type veth peer name {name}r")
        namespace.ip(f"link set {name}r up")
        namespace.ip(f"link set {name} up")
    namespace.ip("address add 10.7.0.1/24 dev eth0")

    def run(then) -> None:
        async def work() -> None:
            async with LinuxTarget() as target:
                assert await target.apply([Add(item) for item in PLAN]) == []
                attached = attach("flannel0")
                namespace.settle(**dict.fromkeys(_NAMES, "UP"), flannel0="UP")
                async with listen(target.changes()) as wakes:
                    assert ours(await target.snapshot(PLAN), PLAN) == PLAN
                    await wakes.silence()
                    await then(target, wakes)
                os.close(attached)

        namespace.run(work)

    return run


def attach(name: str) -> int:
    """Attach to a TUN device as a forwarder does. Without an attachment, the device has no carrier."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("=16sH22x", name.encode(), 0x1001))  # TUNSETIFF
    return descriptor


@pytest.mark.parametrize("words", WAKING.values(), ids=WAKING.keys())
def test_changes_of_owned_objects_are_announced(namespace, applied, words: str) -> None:
    async def then(_, wakes) -> None:
        namespace.ip(words.format(name=namespace.name))
        await wakes.next()

    applied(then)


def test_a_new_link_with_a_planned_name_is_announced(namespace, applied) -> None:
    async def then(target, wakes) -> None:
        namespace.ip("link add spare type bridge")
        namespace.ip("link delete flannel0")
        await wakes.next()
        await target.snapshot(PLAN)
        await wakes.silence()
        namespace.ip("link set spare name flannel0")
        await wakes.next()

    applied(then)


@pytest.mark.parametrize("words", FOREIGN.values(), ids=FOREIGN.keys())
def test_changes_of_foreign_objects_are_not_announced(namespace, applied, words: str) -> None:
    async def then(_, wakes) -> None:
        namespace.ip(words)
        assert await wakes.silence() == 0

    applied(then)


def test_the_kernel_drops_messages_that_are_ignored(namespace) -> None:
    """The ignored messages have one port, or are about routes of one protocol. A start of the daemon may
    cause ten thousand messages about its own changes.
    """

    async def work() -> list[tuple[bool, int]]:
        heard: list[tuple[bool, int]] = []
        with (
            contextlib.closing(RequestSocket()) as ours,
            contextlib.closing(NotificationSocket(IPV4_ROUTES)) as notifications,
        ):
            route = RouteRecord(destination=IPv4Network("10.11.0.0/16"), index=1, protocol=80)

            def concerns(message: Message) -> bool:
                heard.append((message.port == ours.port, routes.protocol_of(message.body)))
                return heard[-1][1] == 99

            port = ours.port.to_bytes(4, sys.byteorder)
            for ignored in (None, [(PORT_AT, (port,))], routes.fields_of(80)):
                if ignored is not None:
                    notifications.ignore(ignored)
                assert (await ours.transact([routes.put_route(route)]))[0].errno == 0
                for protocol in (80, 99):
                    namespace.ip(f"route add 10.{protocol}.0.0/16 dev lo protocol {protocol}")
                async with asyncio.timeout(DEADLINE_S):
                    await notifications.wait(concerns)
                for protocol in (80, 99):
                    namespace.ip(f"route delete 10.{protocol}.0.0/16")
                notifications.drain()
        return heard

    assert namespace.run(work) == [
        (True, 80),
        (False, 80),
        (False, 99),
        (False, 80),
        (False, 99),
        (False, 99),
    ]


def test_repairs_by_the_target_are_not_announced(applied) -> None:
    async def then(target, wakes) -> None:
        route = Route(destination=IPv4Network("10.210.0.0/16"), link="flannel0")
        address = Address(link="flannel0", address=IPv4Interface("10.211.0.1/32"))
        assert await target.apply([Add(address), Add(route), Remove(route), Remove(address)]) == []
        assert await wakes.silence() == 0

    applied(then)


def test_a_burst_of_changes_causes_few_announcements(namespace, applied) -> None:
    async def then(_, wakes) -> None:
        batch = "\n".join(f"route add 10.150.{n}.0/24 dev flannel0" for n in range(250))
        namespace.command("ip", "-batch", "-", given=batch)
        assert 1 <= await wakes.silence() <= 5

    applied(then)


def test_lost_notifications_are_announced_as_a_change(namespace) -> None:
    """Thousands of changes overflow the buffer. A lost notification may concern owned objects."""

    async def run() -> None:
        async with LinuxTarget() as target:
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
            async with asyncio.timeout(100), target.changes() as changes:
                await changes.next()

    namespace.run(run)


def test_requests_of_several_tasks_get_their_own_answers(namespace) -> None:
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


def test_an_aborted_dump_does_not_affect_the_next(namespace) -> None:
    """The kernel sends a long dump in parts, and does not start another dump before its end."""
    many = "\n".join(f"address add 10.7.{n // 256}.{n % 256}/32 dev lo" for n in range(3000))
    namespace.command("ip", "-batch", "-", given=many)

    async def run() -> None:
        requests = RequestSocket()
        try:
            broken = asyncio.ensure_future(requests.dump(dump_addresses(), parse_address_message))
            await asyncio.sleep(0)
            broken.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await broken
            assert len(await requests.dump(dump_addresses(), parse_address_message)) > 3000
        finally:
            requests.close()

    namespace.run(run)
