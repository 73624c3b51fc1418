"""vxlan devices, their neighbours, FDB entries and routes, and the routes of host-gw, on the real kernel."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.planning import pass_operations
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.link import Address, Link, Vxlan
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Remove, Replace, State
from pyflannel.plan.ownership import ours
from pyflannel.wire.netlink.neighbours import dump_neighbours

DEADLINE_S = 10.0
ROUNDS = 5

VXLAN = Vxlan(vni=1, port=8472, parent="eth0", local=IPv4Address("10.7.0.1"))
DEVICE = Link(name="flannel.1", kind="vxlan", mtu=1450, queue_length=0, mac="0e:11:22:33:44:55", vxlan=VXLAN)
AS_FLANNEL = {
    "id": 1,
    "local": "10.7.0.1",
    "link": "eth0",
    "port_range": {"low": 0, "high": 0},
    "port": 8472,
    "learning": False,
}
"""The output of ip(8) for the device."""
ADDRESS = Address(link="flannel.1", address=IPv4Interface("10.100.15.0/32"))


def peer_items(number: int, device: str = "flannel.1") -> tuple[Neighbour, FdbEntry, Route]:
    """Return the objects for a peer with the subnet 10.100.<number>.0/24."""
    base, mac = IPv4Address(f"10.100.{number}.0"), f"0e:00:00:00:00:{number:02x}"
    return (
        Neighbour(link=device, address=base, mac=mac),
        FdbEntry(link=device, mac=mac, destination=IPv4Address(f"10.7.0.{number}")),
        Route(destination=IPv4Network((base, 24)), link=device, gateway=base, is_onlink=True),
    )


NEIGHBOUR, ENTRY, ROUTE = peer_items(2)
DIRECT = Route(destination=IPv4Network("10.100.9.0/24"), link="eth0", gateway=IPv4Address("10.7.0.9"))
BLACKHOLE = Route(destination=IPv4Network("10.100.0.0/16"), link="", kind="blackhole")
PLAN = State.of(DEVICE, ADDRESS, NEIGHBOUR, ENTRY, ROUTE, *peer_items(3), DIRECT, BLACKHOLE)

NEIGHBOUR_2 = "neigh {} 10.100.2.0 dev flannel.1"
ENTRY_2 = "fdb {} 0e:00:00:00:00:02 dev flannel.1"


@pytest.fixture
def underlay(namespace) -> None:
    """Add eth0 and eth1 to the namespace. The other ends of their veth pairs are also in the namespace."""
    # IPv6 sends notifications seconds after a link was set up, when its addresses proved unique.
    namespace.command("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")
    for number, name in enumerate(("eth0", "eth1")):
        make_cable(namespace, name)
        namespace.ip(f"address add 10.{7 + number}.0.1/24 dev {name}")
    namespace.command("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=0")
    namespace.settle(eth0="UP", eth1="UP")


def make_cable(namespace, name: str) -> None:
    namespace.ip(f"link add {name} type veth peer name {name}r")
    namespace.ip(f"link set {name}r up")
    namespace.ip(f"link set {name} up")


def do(perform: Callable[..., str], words: str) -> None:
    """Run ip(8), bridge(8), ethtool(8) or sysctl(8)."""
    if words.startswith("fdb"):
        perform("bridge", *words.split())
    elif words.startswith("net/"):
        perform("sysctl", "-q", "-w", words)
    elif words.startswith("-K"):
        perform("ethtool", *words.split())
    else:
        perform("ip", *words.split())


@pytest.mark.usefixtures("underlay")
def test_the_device_and_its_peers_equal_those_of_flannel(namespace, target):
    refused = target.heal(PLAN)

    assert refused == []
    details = namespace.ip("-details link show flannel.1")
    assert "<BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue" in details
    assert "qlen" not in details
    assert "link/ether 0e:11:22:33:44:55" in details
    assert "alias pyflannel" in details
    (link,) = json.loads(namespace.ip("-details -json link show flannel.1"))
    vxlan = link["linkinfo"]["info_data"]
    assert {name: vxlan[name] for name in AS_FLANNEL} == AS_FLANNEL
    assert "gbp" not in vxlan
    assert "inet6" not in namespace.ip("address show flannel.1")
    assert shown(namespace, "ip", "neigh show dev flannel.1") == [
        "10.100.2.0 lladdr 0e:00:00:00:00:02 PERMANENT",
        "10.100.3.0 lladdr 0e:00:00:00:00:03 PERMANENT",
    ]
    assert shown(namespace, "bridge", "fdb show dev flannel.1") == [
        "0e:00:00:00:00:02 dst 10.7.0.2 self permanent",
        "0e:00:00:00:00:03 dst 10.7.0.3 self permanent",
    ]
    assert shown(namespace, "ip", "route show proto 80") == [
        "10.100.2.0/24 via 10.100.2.0 dev flannel.1 onlink",
        "10.100.3.0/24 via 10.100.3.0 dev flannel.1 onlink",
        "10.100.9.0/24 via 10.7.0.9 dev eth0",
        "blackhole 10.100.0.0/16",
    ]


@pytest.mark.usefixtures("underlay")
def test_the_next_attempt_completes_a_partly_created_device(namespace, target):
    """The kernel refuses an MTU of 70,000 after the device was created."""

    async def make_attempts() -> list[int]:
        async with LinuxTarget() as adapter:
            return [len(await adapter.apply([Add(link)])) for link in (replace(DEVICE, mtu=70_000), DEVICE)]

    assert namespace.run(make_attempts) == [1, 0]
    assert DEVICE in target.snapshot(PLAN)


@pytest.mark.usefixtures("underlay")
@pytest.mark.parametrize(
    "vxlan",
    [
        replace(VXLAN, has_gbp=True),
        replace(VXLAN, learns=True),
        replace(VXLAN, reports_misses=True),
        replace(VXLAN, offloads_checksums=False),
        replace(VXLAN, local=None),
        replace(VXLAN, parent=""),
        replace(VXLAN, parent="eth1", port=4789, vni=2**24 - 1),
        replace(VXLAN, group=IPv4Address("239.1.1.1")),
    ],
)
def test_an_applied_plan_is_read_back_unchanged(target, vxlan: Vxlan) -> None:
    plan = State.of(replace(DEVICE, vxlan=vxlan, mtu=1400), ADDRESS, *peer_items(2))

    assert target.heal(plan) == []

    left = [item for item in ours(target.snapshot(plan), plan) if item not in plan]
    assert left == default_destination(vxlan)
    assert [item for item in plan if item not in target.snapshot(plan)] == []


def default_destination(vxlan: Vxlan) -> list[FdbEntry]:
    """Return the FDB entry that the kernel creates for a group."""
    if vxlan.group is None:
        return []
    return [FdbEntry(link="flannel.1", mac="00:00:00:00:00:00", destination=vxlan.group, is_plain=False)]


DAMAGE = {
    "device deleted": ["link delete flannel.1"],
    "device down": ["link set flannel.1 down"],
    "device down and up": ["link set flannel.1 down", "link set flannel.1 up"],
    "MAC": ["link set flannel.1 address 0e:99:99:99:99:99"],
    "MTU": ["link set flannel.1 mtu 1300"],
    "queue": ["link set flannel.1 txqueuelen 1000"],
    "mark": ["link set flannel.1 alias mine"],
    "learning": ["link set flannel.1 type vxlan id 1 learning"],
    "source": ["link set flannel.1 type vxlan id 1 local 10.8.0.1"],
    "no source": ["link set flannel.1 type vxlan id 1 local 0.0.0.0"],
    "parent": ["link set flannel.1 type vxlan id 1 dev eth1"],
    "checksums": ["-K flannel.1 tx-checksum-ip-generic off"],
    "IPv6 turned on": ["net/ipv6/conf/flannel.1/disable_ipv6=0"],
    "another port": ["link delete flannel.1", "link add flannel.1 type vxlan id 1 dstport 4789 dev eth0"],
    "another VNI": ["link delete flannel.1", "link add flannel.1 type vxlan id 9 dstport 8472 dev eth0"],
    "another kind": ["link delete flannel.1", "link add flannel.1 type bridge"],
    "a group": [
        "link delete flannel.1",
        "link add flannel.1 type vxlan id 1 dstport 8472 dev eth0 group 239.1.1.1",
    ],
    "address deleted": ["address delete 10.100.15.0/32 dev flannel.1"],
    "address added": ["address add 10.100.77.1/24 dev flannel.1"],
    "neighbour deleted": [NEIGHBOUR_2.format("delete")],
    "neighbours flushed": ["neigh flush dev flannel.1 nud permanent"],
    "neighbour replaced": [NEIGHBOUR_2.format("replace") + " lladdr 0e:99:99:99:99:99 nud permanent"],
    "neighbour that expires": [NEIGHBOUR_2.format("replace") + " lladdr 0e:00:00:00:00:02 nud reachable"],
    "neighbour that failed": [NEIGHBOUR_2.format("replace") + " nud failed"],
    "neighbour added": ["neigh add 10.100.2.7 lladdr 0e:00:00:00:00:02 dev flannel.1 nud permanent"],
    "entry deleted": [ENTRY_2.format("delete")],
    "entries flushed": ["fdb flush dev flannel.1"],
    "entry replaced": [ENTRY_2.format("replace") + " dst 10.7.0.99 self permanent"],
    "entry that expires": [ENTRY_2.format("replace") + " dst 10.7.0.2 self dynamic"],
    "entry by another port": [ENTRY_2.format("replace") + " dst 10.7.0.2 port 99 self permanent"],
    "entry by next hops": [
        "nexthop add id 5 via 10.7.0.2 fdb",
        "nexthop add id 10 group 5 fdb",
        ENTRY_2.format("delete"),
        ENTRY_2.format("add") + " nhid 10 self permanent",
    ],
    "entry by another VNI": [ENTRY_2.format("replace") + " dst 10.7.0.2 vni 99 self permanent"],
    "entry added": ["fdb append 0e:00:00:00:00:77 dev flannel.1 dst 10.7.0.77 self permanent"],
    "default entries added": [
        "fdb append 00:00:00:00:00:00 dev flannel.1 dst 10.7.0.77 self permanent",
        "fdb append 00:00:00:00:00:00 dev flannel.1 dst 10.7.0.78 self permanent",
    ],
    "route deleted": ["route delete 10.100.2.0/24"],
    "routes flushed": ["route flush proto 80"],
    "route replaced": ["route replace 10.100.2.0/24 via 10.7.0.2 dev eth0"],
    "route not onlink": [
        "address add 10.100.2.9/24 dev flannel.1 noprefixroute",
        "route add 10.100.2.0/32 dev flannel.1",
        "route replace 10.100.2.0/24 via 10.100.2.0 dev flannel.1 proto 80",
    ],
    "route shadowed": ["route prepend 10.100.2.0/24 dev eth1"],
    "route of host-gw deleted": ["route delete 10.100.9.0/24"],
    "route of host-gw replaced": ["route replace 10.100.9.0/24 via 10.7.0.8 dev eth0"],
    "route of host-gw by another link": ["route replace 10.100.9.0/24 via 10.8.0.9 dev eth1"],
    "route of host-gw by a mark of another": ["route replace 10.100.9.0/24 via 10.7.0.9 proto boot"],
    "blackhole deleted": ["route delete blackhole 10.100.0.0/16"],
    "blackhole replaced": ["route replace 10.100.0.0/16 dev eth1"],
    "underlay down and up": ["link set eth0 down", "link set eth0 up"],
}


@pytest.mark.usefixtures("underlay")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_starts_a_pass_that_repairs_the_damage(namespace, target, listen, damage: list[str]) -> None:
    target.heal(PLAN)
    before = all_shown(namespace)

    async def work() -> None:
        async with LinuxTarget() as linux:
            async with listen(linux.changes()) as wakes:
                assert ours(await linux.snapshot(PLAN), PLAN) == PLAN
                await wakes.silence()
                for words in damage:
                    do(namespace.command, words)
                assert all_shown(namespace) != before
                await wakes.next()
                found = ours(await linux.snapshot(PLAN), PLAN)
                assert found != PLAN
                assert await linux.apply(pass_operations(PLAN, found)) == []
                assert ours(await linux.snapshot(PLAN), PLAN) == PLAN

    namespace.run(work)

    assert all_shown(namespace) == before


@pytest.mark.usefixtures("underlay")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (DAMAGE["neighbour that expires"], replace(NEIGHBOUR, is_permanent=False)),
        (DAMAGE["entry that expires"], replace(ENTRY, is_permanent=False)),
        (DAMAGE["entry by another port"], replace(ENTRY, is_plain=False)),
        (DAMAGE["entry by next hops"], replace(ENTRY, destination=IPv4Address(0), is_plain=False)),
        (
            DAMAGE["default entries added"],
            FdbEntry(
                link="flannel.1",
                mac="00:00:00:00:00:00",
                destination=IPv4Address("10.7.0.77"),
                others=(IPv4Address("10.7.0.78"),),
            ),
        ),
        (DAMAGE["route of host-gw by a mark of another"], replace(DIRECT, protocol=3)),
        (DAMAGE["source"], replace(DEVICE, vxlan=replace(VXLAN, local=IPv4Address("10.8.0.1")))),
        (DAMAGE["checksums"], replace(DEVICE, vxlan=replace(VXLAN, offloads_checksums=False))),
    ],
)
def test_a_snapshot_contains_foreign_objects_at_planned_keys(namespace, target, words, found) -> None:
    target.heal(PLAN)
    for each in words:
        do(namespace.command, each)

    assert found in target.snapshot(PLAN)


@given(st.lists(st.sampled_from([words for damage in DAMAGE.values() for words in damage]), max_size=5))
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
@pytest.mark.usefixtures("underlay")
def test_one_pass_repairs_any_combined_damage(namespace, target, damage: list[str]) -> None:
    """Any damage in any order. Some damage is impossible after other damage."""
    namespace.ip("link set eth0 up")
    assert target.heal(PLAN) == []
    before = all_shown(namespace)
    for words in damage:
        do(namespace.attempt, words)
    namespace.ip("link set eth0 up")  # without the underlay, no owned object can exist

    assert target.heal(PLAN) == []

    assert all_shown(namespace) == before


async def agree(linux: LinuxTarget) -> bool:
    """Return whether a target and a new target read the same objects."""
    async with LinuxTarget() as new:
        for _ in range(10):
            if await linux.snapshot(PLAN) == await new.snapshot(PLAN):
                return True
    return False


@pytest.mark.usefixtures("underlay")
def test_a_scan_does_not_depend_on_earlier_scans(namespace, target) -> None:
    """Items of earlier snapshots only make a snapshot faster."""

    async def work() -> None:
        async with LinuxTarget() as linux:
            for damage in (*DAMAGE.values(), *DAMAGE.values()):
                for words in damage:
                    do(namespace.attempt, words)
                assert await agree(linux)
                if "link delete flannel.1" in damage:
                    found = ours(await linux.snapshot(PLAN), PLAN)
                    assert await linux.apply(pass_operations(PLAN, found)) == []

    target.heal(PLAN)
    namespace.run(work)


def entries(first: int, count: int) -> list[Neighbour | FdbEntry]:
    """Return the neighbours and the FDB entries of this number of peers."""
    numbers = [
        (number, f"0e:00:00:00:{number >> 8:02x}:{number & 255:02x}")
        for number in range(first, first + count)
    ]
    return [
        *(
            Neighbour(link="flannel.1", address=IPv4Address("10.99.0.0") + number, mac=mac)
            for number, mac in numbers
        ),
        *(
            FdbEntry(link="flannel.1", mac=mac, destination=IPv4Address("10.7.128.0") + number)
            for number, mac in numbers
        ),
    ]


@pytest.mark.usefixtures("underlay")
def test_a_scan_finds_all_entries_while_other_entries_come_and_go(namespace, target) -> None:
    """The kernel lists entries by their position, and each change of another entry may move them."""
    remaining, others = entries(0, 1000), entries(1000, 500)
    plan = State.of(DEVICE, ADDRESS, *remaining)

    async def work() -> None:
        async with LinuxTarget() as linux, LinuxTarget() as other:
            for _ in range(ROUNDS):
                for change in (Add, Remove):
                    read, refused = await asyncio.gather(
                        linux.snapshot(plan), other.apply([change(item) for item in others])
                    )
                    assert refused == []
                    assert [item for item in remaining if item.key not in read.by_key] == []

    target.heal(plan)
    namespace.run(work)


@pytest.mark.usefixtures("underlay")
@pytest.mark.parametrize("link", ["eth0", "eth1"], ids=["under planned routes", "elsewhere"])
def test_items_contain_the_new_name_of_a_renamed_link(namespace, target, link: str) -> None:
    target.heal(PLAN)
    namespace.ip(f"route replace 10.100.2.0/24 dev {link}")

    async def work() -> None:
        async with LinuxTarget() as linux:
            assert (await linux.snapshot(PLAN)).by_key[ROUTE.key].link == link
            namespace.attempt("ip", "link", "set", link, "name", "renamed")
            if "renamed" not in namespace.ip("link show"):
                pytest.skip("the kernel renames no link that is up")
            assert (await linux.snapshot(PLAN)).by_key[ROUTE.key].link == "renamed"

    namespace.run(work)


@pytest.mark.usefixtures("underlay")
def test_an_unchanged_object_is_not_parsed_again(namespace, target) -> None:
    """Each snapshot contains the item of the previous snapshot, although the kernel counts the age of
    entries.
    """
    target.heal(PLAN)
    namespace.ip("neighbour add 10.100.77.0 lladdr 0e:00:00:00:00:77 dev flannel.1 nud permanent")

    async def work() -> None:
        async with LinuxTarget() as linux:
            with contextlib.closing(RequestSocket()) as requests:
                first = await linux.snapshot(PLAN)
                ages = await requests.dump(dump_neighbours(0), bytes)
                async with asyncio.timeout(DEADLINE_S):
                    while await requests.dump(dump_neighbours(0), bytes) == ages:
                        await asyncio.sleep(0.01)
            second = await linux.snapshot(PLAN)
        foreign = Neighbour(link="flannel.1", address=IPv4Address("10.100.77.0"), mac="0e:00:00:00:00:77")
        assert first.by_key[foreign.key] == foreign
        assert first.by_key[foreign.key] is second.by_key[foreign.key]

    namespace.run(work)


@pytest.mark.usefixtures("underlay")
def test_an_unchanged_object_is_the_identical_item_of_the_plan(namespace, target) -> None:
    """Thousands of items then need memory only once, and their comparison is fast."""

    async def work() -> None:
        async with LinuxTarget() as linux:
            first = await linux.snapshot(PLAN)
            assert (
                await linux.apply([Replace(ROUTE, replace(ROUTE, gateway=IPv4Address("10.100.7.0")))]) == []
            )
            second = await linux.snapshot(PLAN)
        hanging = [key for key, item in PLAN.by_key.items() if isinstance(item, Neighbour | FdbEntry | Route)]
        assert all(first.by_key[key] is PLAN.by_key[key] for key in hanging)
        assert [key for key in hanging if second.by_key[key] is not PLAN.by_key[key]] == [ROUTE.key]

    target.heal(PLAN)
    namespace.run(work)


@pytest.mark.usefixtures("underlay")
def test_the_refusal_of_a_used_vni_contains_the_kernels_reason(namespace, target) -> None:
    namespace.ip("link add foreign type vxlan id 1 dstport 8472 dev eth0")

    (refused,) = target.apply(Add(DEVICE))

    assert refused.cause == "EEXIST: File exists (A VXLAN device with the specified VNI already exists)"
    assert "ip -d link" in refused.hint


def shown(namespace, program: str, words: str) -> list[str]:
    """Return the sorted lines of a program's output, without those that a new start changes."""
    text = re.sub(r" (state \S+|linkdown)", "", namespace.command(program, *words.split()))
    return sorted(" ".join(line.split()) for line in text.splitlines() if line.strip())


def all_shown(namespace) -> list[list[str]]:
    """Return all objects that a pass may touch, as tools show them."""
    everywhere = [
        # Without the entries that the kernel adds for multicast groups.
        [line for line in shown(namespace, "ip", "neigh show nud all") if "NOARP" not in line],
        shown(namespace, "bridge", "fdb show"),
        shown(namespace, "ip", "route show table main"),
    ]
    if "flannel.1" not in namespace.ip("link show"):
        return everywhere
    return [
        *everywhere,
        [re.sub(r"^\d+: ", "", namespace.ip("-details link show flannel.1"))],
        shown(namespace, "ip", "-brief address show dev flannel.1"),
        shown(namespace, "ethtool", "--show-features flannel.1"),
        shown(namespace, "sysctl", "net/ipv6/conf/flannel.1/disable_ipv6"),
    ]
