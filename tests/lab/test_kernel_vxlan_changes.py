"""Changes that start a pass of a vxlan host on the real kernel; storms of changes, and lost notifications."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from doubles.planning import pass_operations
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.model.item import Item
from pyflannel.model.link import Address, Link, Vxlan
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Remove, Replace, State
from pyflannel.plan.ownership import ours

DEVICE = Link(
    name="flannel.1",
    kind="vxlan",
    mtu=1450,
    queue_length=0,
    mac="0e:11:22:33:44:55",
    vxlan=Vxlan(vni=1, port=8472, parent="eth0", local=IPv4Address("10.7.0.1")),
)


def peer_items(number: int, destination: str = "10.7.1.1") -> tuple[Item, ...]:
    """Return the objects for a peer with the subnet 10.100.<number>.0/24."""
    base, mac = IPv4Address(f"10.100.{number}.0"), f"0e:00:00:00:00:{number:02x}"
    return (
        Neighbour(link="flannel.1", address=base, mac=mac),
        FdbEntry(link="flannel.1", mac=mac, destination=IPv4Address(destination)),
        Route(destination=IPv4Network((base, 24)), link="flannel.1", gateway=base, is_onlink=True),
    )


PLAN = State.of(
    DEVICE,
    Address(link="flannel.1", address=IPv4Interface("10.100.15.0/32")),
    *peer_items(2),
    *peer_items(3),
    Route(destination=IPv4Network("10.100.9.0/24"), link="eth0", gateway=IPv4Address("10.7.0.9")),
)

FOREIGN = {
    "neighbour of the underlay": "ip neigh add 10.7.0.9 lladdr 0e:00:00:00:00:09 dev eth0 nud permanent",
    "unplanned neighbour that expires": (
        "ip neigh add 10.100.2.7 lladdr 0e:00:00:00:00:02 dev flannel.1 nud reachable"
    ),
    "unplanned entry that expires": (
        "bridge fdb add 0e:00:00:00:00:77 dev flannel.1 dst 10.7.0.77 self dynamic"
    ),
    "entry of another device": "bridge fdb add 0e:00:00:00:00:02 dev vxother dst 10.7.0.77 self permanent",
    "neighbour of another device": (
        "ip neigh add 10.100.2.0 lladdr 0e:00:00:00:00:02 dev vxother nud permanent"
    ),
    "device": "ip link add another type bridge",
    "device of another daemon": "ip link set vxblue mtu 1400",
    "neighbour of another daemon": (
        "ip neigh add 10.101.2.0 lladdr 0e:00:00:00:00:02 dev vxblue nud permanent"
    ),
    "entry of another daemon": "bridge fdb add 0e:00:00:00:00:77 dev vxblue dst 10.7.0.77 self permanent",
    "route of another daemon": "ip route add 10.101.2.0/24 via 10.101.2.0 dev vxblue onlink proto 101",
    "route of the underlay": "ip route add 10.99.0.0/16 via 10.7.0.9 dev eth0",
}


@pytest.fixture
def ready(namespace) -> None:
    """Add eth0 to the namespace, a foreign vxlan device, and the device of another daemon."""
    # IPv6 sends notifications seconds after a link was set up, when its addresses proved unique.
    namespace.command("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")
    namespace.ip("link add eth0 type veth peer name eth0r")
    namespace.ip("link set eth0r up")
    namespace.ip("link set eth0 up")
    namespace.ip("address add 10.7.0.1/16 dev eth0")
    namespace.ip("link add vxother type vxlan id 77 dstport 8472 dev eth0")
    namespace.ip("link set vxother up")
    namespace.ip("link add vxblue type vxlan id 78 dstport 8472 dev eth0")
    namespace.command("ip", "link", "set", "vxblue", "up", "alias", "pyflannel /run/blue")
    namespace.settle(eth0="UP", eth0r="UP")


@asynccontextmanager
async def applied(listen, plan: State = PLAN, **options) -> AsyncIterator:
    """Yield a target with the plan in effect, and its wake-ups after all notifications were read."""
    async with LinuxTarget(**options) as linux:
        assert await make_pass(linux, plan) == []
        async with listen(linux.changes()) as wakes:
            assert ours(await linux.snapshot(plan), plan) == plan
            await wakes.silence()
            yield linux, wakes


async def make_pass(linux: LinuxTarget, plan: State = PLAN) -> list:
    return list(await linux.apply(pass_operations(plan, ours(await linux.snapshot(plan), plan))))


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("words", FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_objects_are_neither_announced_nor_changed(namespace, listen, words: str) -> None:
    async def work() -> None:
        async with applied(listen) as (linux, wakes):
            namespace.command(*words.split())
            assert await wakes.silence() == 0
            with_it = shown(namespace)
            assert await make_pass(linux) == []
            assert shown(namespace) == with_it

    namespace.run(work)


@pytest.mark.usefixtures("ready")
def test_changes_of_peers_by_the_target_are_not_announced(namespace, listen) -> None:
    """The last snapshot may be older than the peers, because a change of single peers needs no snapshot."""
    moved, plan = peer_items(4, "10.7.1.2"), State.collect(PLAN)

    async def work() -> None:
        async with applied(listen, plan) as (linux, wakes):
            plan.by_key.add(peer_items(4))
            assert await linux.apply([Add(item) for item in peer_items(4)]) == []
            assert await wakes.silence() == 0
            for item in moved:
                plan.by_key.put(item)
            changes = [Replace(*pair) for pair in zip(peer_items(4), moved, strict=True)]
            assert await linux.apply(changes) == []
            assert await wakes.silence() == 0
            assert shown(namespace)["fdb"].count("dst 10.7.1.2 ") == 1
            for item in moved:
                plan.by_key.discard(item.key)
            assert await linux.apply([Remove(item) for item in moved]) == []
            assert await wakes.silence() == 0

    namespace.run(work)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(
    "words",
    [
        "ip neigh delete 10.100.4.0 dev flannel.1",
        "bridge fdb delete 0e:00:00:00:00:04 dev flannel.1",
        "bridge fdb replace 0e:00:00:00:00:04 dev flannel.1 dst 10.7.1.9 self permanent",
        "ip route delete 10.100.4.0/24",
        "ip route replace 10.100.8.0/24 via 10.7.0.7 dev eth0",
    ],
)
def test_damage_to_a_peer_that_joined_after_the_last_scan_is_announced(namespace, listen, words: str) -> None:
    direct = Route(destination=IPv4Network("10.100.8.0/24"), link="eth0", gateway=IPv4Address("10.7.0.8"))
    plan = State.collect(PLAN)

    async def work() -> None:
        async with applied(listen, plan) as (linux, wakes):
            plan.by_key.add((*peer_items(4), direct))
            assert await linux.apply([Add(item) for item in (*peer_items(4), direct)]) == []
            await wakes.silence()
            namespace.command(*words.split())
            await wakes.next()

    namespace.run(work)


@pytest.mark.usefixtures("ready")
def test_damage_on_a_new_device_is_announced_before_the_next_scan(namespace, listen) -> None:
    async def work() -> None:
        async with LinuxTarget() as linux:
            assert await make_pass(linux) == []
            async with listen(linux.changes()) as wakes:
                await wakes.silence()
                namespace.ip("neigh delete 10.100.2.0 dev flannel.1")
                await wakes.next()

    namespace.run(work)


@pytest.mark.usefixtures("ready")
def test_an_underlay_that_is_removed_and_added_is_announced_and_followed(namespace, listen) -> None:
    """The kernel deletes a vxlan device with its parent. The new parent has another index."""
    plan = State.of(*(item for item in PLAN if not (isinstance(item, Route) and item.link == "eth0")))

    async def work() -> None:
        async with applied(listen, plan) as (linux, wakes):
            namespace.ip("link delete eth0")
            await wakes.next()
            refused = await make_pass(linux, plan)
            assert "ENODEV: No such device (eth0)" in [each.cause for each in refused]
            await wakes.silence()
            for words in (
                "link add eth0 type veth peer name eth0r",
                "link set eth0r up",
                "link set eth0 up",
                "address add 10.7.0.1/16 dev eth0",
            ):
                namespace.ip(words)
            await wakes.next()
            assert await make_pass(linux, plan) == []
            assert ours(await linux.snapshot(plan), plan) == plan

    namespace.run(work)


FAR_HOST = (
    "link add flannel.1 address 0e:00:00:00:00:02 type vxlan id 1 dstport 8472 local 10.7.1.1 nolearning",
    "link set flannel.1 up",
    "address add 10.100.2.0/32 dev flannel.1",
    "address add 10.100.2.1/32 dev lo",
    "neighbour add 10.100.15.0 lladdr 0e:11:22:33:44:55 dev flannel.1 nud permanent",
    "route add 10.100.15.0/24 via 10.100.15.0 dev flannel.1 onlink",
)


@pytest.mark.usefixtures("ready")
def test_another_address_of_the_device_loses_no_packet(namespace, make_namespace) -> None:
    """A link loses routes and neighbours with its last IPv4 address, so the new address is added first."""
    far = make_namespace()
    namespace.ip(f"link set eth0r netns {far.name}")
    far.ip("address add 10.7.1.1/16 dev eth0r")
    far.ip("link set eth0r up")
    for words in FAR_HOST:
        far.ip(words)
    far.command(*["bridge", "fdb", "add", "0e:11:22:33:44:55", "dev", "flannel.1", "dst", "10.7.0.1"])
    namespace.ip("address add 10.100.15.1/32 dev lo")
    other = Address(link="flannel.1", address=IPv4Interface("10.100.77.0/32"))
    plan = State.collect(other if isinstance(item, Address) else item for item in PLAN)

    async def work() -> None:
        async with LinuxTarget() as linux:
            assert await make_pass(linux) == []
            command = ["ping", "-n", "-i", "0.002", "-I", "10.100.15.1", "10.100.2.1"]
            pings = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            assert pings.stdout is not None
            while b"bytes from" not in await pings.stdout.readline():
                pass
            assert await make_pass(linux, plan) == []
            assert ours(await linux.snapshot(plan), plan) == plan
            for _ in range(50):
                assert b"bytes from" in await pings.stdout.readline()
            pings.send_signal(signal.SIGINT)
            left, _ = await pings.communicate()
            assert b" 0% packet loss" in left

    namespace.run(work, timeout_s=10.0)


@pytest.mark.usefixtures("ready")
def test_lost_notifications_cause_one_announcement(namespace, listen) -> None:
    """More notifications arrived than the buffer holds. One snapshot finds any damage."""
    churn = "\n".join(
        f"route {verb} 10.150.{number}.0/24 dev eth0"  # irrelevant changes
        for number in range(250)
        for verb in ("add", "delete")
    )

    async def work() -> None:
        async with applied(listen, notification_bytes=1 << 14) as (linux, wakes):
            namespace.command("ip", "-batch", "-", given=churn)
            namespace.ip("route delete 10.100.2.0/24")
            assert await wakes.silence() == 1
            assert await make_pass(linux) == []
            assert ours(await linux.snapshot(PLAN), PLAN) == PLAN

    namespace.run(work)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("notification_bytes", [1 << 12, 4 << 20], ids=["lossy", "lossless"])
def test_a_storm_of_changes_does_not_stop_other_work(namespace, notification_bytes: int) -> None:
    """A program damages routes constantly. The target still makes passes, and peers join and leave."""
    storm = "\n".join(
        f"route {verb} 10.100.2.0/24 via 10.100.2.0 dev flannel.1 onlink proto {protocol}"
        for _ in range(150)
        for verb, protocol in (("replace", "boot"), ("replace", "80"), ("replace", "static"))
    )

    async def work() -> None:
        async with LinuxTarget(notification_bytes) as linux, LinuxTarget() as onlooker:
            assert await make_pass(linux) == []
            passes, turns, is_over = 0, 0, threading.Event()

            async def keep_making_passes() -> None:
                nonlocal passes
                async with linux.changes() as changes:
                    while True:
                        await changes.next()
                        await make_pass(linux)
                        passes += 1

            keeper = asyncio.ensure_future(keep_making_passes())
            weather = asyncio.ensure_future(asyncio.to_thread(damage_routes, namespace, storm, is_over))
            while turns < 20 or passes < 3:
                await asyncio.sleep(0.005)
                assert await linux.apply([Add(item) for item in peer_items(4)]) == []
                assert await linux.apply([Remove(item) for item in peer_items(4)]) == []
                turns += 1
            is_over.set()
            await weather
            async with asyncio.timeout(60):
                while ours(await onlooker.snapshot(PLAN), PLAN) != PLAN:
                    await asyncio.sleep(0.01)
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper

    namespace.run(work)


def damage_routes(namespace, storm: str, is_over: threading.Event) -> None:
    while not is_over.is_set():
        namespace.command("ip", "-batch", "-", given=storm)


def shown(namespace) -> dict[str, str]:
    """Return all objects that a pass could touch, as tools show them."""
    return {
        "links": namespace.ip("-brief link show"),
        "routes": namespace.ip("route show table all"),
        "neighbours": namespace.ip("neigh show nud permanent"),
        "fdb": namespace.command("bridge", "fdb", "show"),
    }
