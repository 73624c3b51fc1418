"""The kernel adapter on the real kernel: it creates the objects of a plan, as tools show them."""

import ctypes
import errno
import os
import stat
import struct
import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.model.link import Address, Link
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_LINK, Route
from pyflannel.model.state import Add, Refusal, Remove, Replace, State
from pyflannel.plan.ownership import ours
from testlab.inside import hide_directory

LINK = Link(name="flannel0", kind="tun", mtu=1472)
ADDRESS = Address(link="flannel0", address=IPv4Interface("10.100.15.0/16"))
NETWORK_ROUTE = Route(
    destination=IPv4Network("10.100.0.0/16"),
    link="flannel0",
    source=IPv4Address("10.100.15.0"),
    protocol=PROTOCOL_KERNEL,
    scope=SCOPE_LINK,
)
SEED = State.of(LINK, ADDRESS, NETWORK_ROUTE)
SEED_ROUTE = "10.100.0.0/16 dev flannel0 proto kernel scope link src 10.100.15.0"


def test_the_device_is_as_the_cookbook_shows_it(namespace, target):
    refused = target.heal(SEED)

    assert refused == []
    shown = namespace.ip("address show flannel0")
    assert "<NO-CARRIER,POINTOPOINT,MULTICAST,NOARP,UP> mtu 1472" in shown
    assert "qlen 500" in shown
    assert "link/none" in shown
    assert "inet 10.100.15.0/16 scope global flannel0" in shown
    assert "brd" not in shown
    assert "inet6" not in shown
    assert "driver: tun" in namespace.command("ethtool", "-i", "flannel0")
    details = namespace.ip("-details link show flannel0")
    assert "alias pyflannel" in details
    assert "persist on" in details
    assert "addrgenmode none" in details
    assert route_in_use(namespace) == SEED_ROUTE


@pytest.mark.parametrize("owner", ["", "0123456789abcdef" * 2])
def test_an_applied_plan_is_read_back_unchanged(target, owner):
    seed = State.of(replace(LINK, owner=owner), ADDRESS, NETWORK_ROUTE)

    target.heal(seed)

    assert target.snapshot(seed) == seed


def test_a_namespace_that_has_no_routing_table_yet_is_empty(namespace):
    async def look() -> State:
        enter_new_namespace()
        async with LinuxTarget() as target:
            return await target.snapshot(SEED)

    assert namespace.run(look) == State.EMPTY


def test_with_read_only_proc_sys_the_device_has_no_ipv6_address(namespace, target, monkeypatch):
    """/proc/sys is read-only in a container. IPv6 remains enabled, but the kernel generates no address."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pyflannel.kernel.network.links.set_ipv6", refuse)
    monkeypatch.setattr("pyflannel.kernel.network.snapshot.may_set_ipv6", lambda: False)

    refused = target.heal(SEED)

    assert refused == []
    assert target.snapshot(SEED) == SEED
    assert "inet6" not in namespace.ip("address show flannel0")
    namespace.ip("link set flannel0 addrgenmode eui64")
    assert target.snapshot(SEED) != SEED
    target.heal(SEED)
    assert target.snapshot(SEED) == SEED


def test_with_read_only_proc_sys_a_device_of_ipv6_is_complete(target, monkeypatch):
    """/proc/sys is read-only in a pod. IPv6 is enabled already, and accept_ra keeps its value."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pyflannel.kernel.network.links.set_ipv6", refuse)
    monkeypatch.setattr("pyflannel.kernel.network.snapshot.may_set_ipv6", lambda: False)
    (link,) = SEED.of_type(Link)
    wanted = State.of(replace(link, has_ipv6=True))

    assert target.heal(wanted) == []
    assert target.snapshot(wanted) == wanted


DAMAGE = {
    "link down": ["link set flannel0 down"],
    "link down and up": ["link set flannel0 down", "link set flannel0 up"],
    "MTU": ["link set flannel0 mtu 1400"],
    "MTU too small for IPv6": ["link set flannel0 mtu 1000"],
    "queue": ["link set flannel0 txqueuelen 1000"],
    "mark": ["link set flannel0 alias mine"],
    "link deleted": ["link delete flannel0"],
    "link of another kind": ["link delete flannel0", "link add flannel0 type bridge"],
    "TAP with the planned name": ["link delete flannel0", "tuntap add flannel0 mode tap"],
    "address deleted": ["address delete 10.100.15.0/16 dev flannel0"],
    "address of another length": [
        "address delete 10.100.15.0/16 dev flannel0",
        "address add 10.100.15.0/32 dev flannel0",
    ],
    "address with a peer": [
        "address delete 10.100.15.0/16 dev flannel0",
        "address add 10.100.15.0 peer 10.100.0.1/16 dev flannel0",
    ],
    "address added": ["address add 10.5.5.5/24 dev flannel0"],
    "addresses flushed": ["address flush dev flannel0"],
    "route deleted": ["route delete 10.100.0.0/16"],
    "route replaced": ["route replace 10.100.0.0/16 dev other"],
    "route refused": ["route replace blackhole 10.100.0.0/16"],
    "route shadowed": ["route prepend 10.100.0.0/16 dev other"],
    "route shadowed by another gateway": ["route prepend 10.100.0.0/16 via 10.7.0.9 dev other"],
    "route shadowed twice": [
        "route prepend 10.100.0.0/16 dev other",
        "route prepend 10.100.0.0/16 via 10.7.0.9 dev other",
    ],
    "multipath route": [
        "route replace 10.100.0.0/16 nexthop via 10.7.0.8 dev other nexthop via 10.7.0.9 dev other"
    ],
    "route added on an owned link": ["route add 10.200.0.0/16 dev flannel0"],
    "route with the mark elsewhere": ["route add 10.201.0.0/16 dev other proto 80"],
    "IPv6 route on an owned link": [
        "net.ipv6.conf.flannel0.disable_ipv6=0",
        "-6 route add fd00:1::/64 dev flannel0",
    ],
    "IPv6 turned on": ["net.ipv6.conf.flannel0.disable_ipv6=0"],
    "everything": [
        "link set flannel0 down mtu 1400",
        "address flush dev flannel0",
        "route add 10.100.0.0/16 dev other",
    ],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_one_pass_repairs_the_damage(namespace, target, damage):
    with_another_link(namespace)
    target.heal(SEED)
    for words in damage:
        do(namespace.command, words)

    assert_one_pass_heals(namespace, target)


@given(st.lists(st.sampled_from([words for damage in DAMAGE.values() for words in damage]), max_size=6))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
def test_one_pass_repairs_any_combined_damage(namespace, target, damage):
    """Any damage in any order. Some damage is impossible after other damage."""
    if "other" not in namespace.ip("link show"):
        with_another_link(namespace)
    target.heal(SEED)
    for words in damage:
        do(namespace.attempt, words)

    assert_one_pass_heals(namespace, target)


def do(perform, words: str) -> None:
    command = ["sysctl", "-q", "-w"] if words.startswith("net.") else ["ip"]
    perform(*command, *words.split())


def assert_one_pass_heals(namespace, target) -> None:
    refused = target.heal(SEED)

    assert refused == []
    assert ours(target.snapshot(SEED), SEED) == SEED
    assert route_in_use(namespace) == SEED_ROUTE
    assert "link/none" in namespace.ip("address show flannel0")
    assert namespace.ip("-oneline address show flannel0").count("inet") == 1
    assert len(namespace.ip("route show dev flannel0").splitlines()) == 1
    assert namespace.ip("-6 route show dev flannel0") == ""
    assert namespace.ip("route show proto 80") == ""


@pytest.mark.parametrize(
    "words",
    [
        "route append 10.100.0.0/16 dev other",  # the kernel's look-up never uses this route
        "route add 10.100.0.0/16 tos 0x10 dev other",
        "route add 10.100.0.0/16 dev other metric 7",
        "route add 10.100.0.0/16 dev other table 77",
        "route add 10.100.0.0/17 dev other",
        "link add fl type bridge",
        "address add 10.100.15.0/16 dev other",
    ],
)
def test_similar_foreign_objects_are_not_owned(namespace, target, words):
    with_another_link(namespace)
    target.heal(SEED)
    namespace.ip(words)
    before = namespace.ip("route show table all dev other"), namespace.ip("address show dev other")

    assert target.heal(SEED) == []
    assert target.snapshot(SEED) == SEED
    assert (namespace.ip("route show table all dev other"), namespace.ip("address show dev other")) == before


def test_foreign_objects_remain(namespace, target):
    with_another_link(namespace)
    namespace.ip("route add 10.3.0.0/16 dev other")
    namespace.ip("route add 10.100.0.0/16 dev other metric 7")
    before = namespace.ip("route show dev other")

    target.heal(SEED)

    assert namespace.ip("route show dev other") == before
    assert all(item in SEED for item in target.snapshot(SEED))


def test_an_empty_plan_removes_all_objects_with_the_mark(namespace, target):
    with_another_link(namespace)
    before = namespace.ip("address show"), namespace.ip("route show table all")
    target.heal(SEED)
    namespace.ip("route add 10.201.0.0/16 via 10.7.0.9 proto 80")

    refused = target.heal(State.EMPTY)

    assert refused == []
    assert (namespace.ip("address show"), namespace.ip("route show table all")) == before


def test_a_removal_of_a_missing_object_succeeds(target):
    assert target.apply(Remove(NETWORK_ROUTE), Remove(ADDRESS), Remove(LINK)) == []


def test_a_removal_of_a_missing_object_on_an_existing_link_succeeds(target):
    target.heal(State.of(LINK))

    assert target.apply(Remove(NETWORK_ROUTE), Remove(ADDRESS)) == []


def test_only_the_owned_one_of_two_routes_with_one_key_is_removed(namespace, target):
    with_another_link(namespace)
    target.heal(SEED)
    namespace.ip("route prepend 10.100.0.0/16 dev other")

    target.apply(Remove(NETWORK_ROUTE))

    assert route_in_use(namespace) == "10.100.0.0/16 dev other scope link"


def test_an_ipv6_route_moves_to_the_device_whose_gateway_it_contains(namespace, target):
    """A change from host-gw to vxlan: the kernel finds the old route if it searches the new gateway."""
    for link in ("eth7", "flannel-v6.1"):
        namespace.ip(f"link add {link} type bridge")
        namespace.ip(f"link set {link} up")
    namespace.ip("address add fd07:1::65/64 dev eth7 nodad")
    subnet = IPv6Network("fd00:10:100:ec::/64")
    old = Route(destination=subnet, link="eth7", gateway=IPv6Address("fd07:1::66"), metric=1024)
    new = replace(old, link="flannel-v6.1", gateway=subnet.network_address, is_onlink=True)
    assert target.apply(Add(old)) == []

    assert target.apply(Replace(old, new)) == []

    assert [one.link for one in target.snapshot(State.EMPTY).of_type(Route) if one.key == new.key] == [
        new.link
    ]


def test_a_refusal_contains_the_kernels_reason_and_stops_no_other_operation(namespace, target):
    unreachable = Route(
        destination=IPv4Network("10.8.0.0/16"), link="flannel0", gateway=IPv4Address("192.0.2.1")
    )
    elsewhere = Route(destination=IPv4Network("10.9.0.0/16"), link="nowhere")

    refused = target.apply(Add(LINK), Add(unreachable), Add(elsewhere), Add(ADDRESS))

    assert [refusal.operation for refusal in refused] == [Add(elsewhere), Add(unreachable)]
    assert refused[0].cause == "ENODEV: No such device (nowhere)"
    assert refused[1].cause.endswith("(Nexthop has invalid gateway)")
    assert all(refusal.hint for refusal in refused)
    assert route_in_use(namespace) == SEED_ROUTE


def test_a_link_is_set_up_although_one_setting_is_refused(namespace, target):
    refused = target.apply(Add(replace(LINK, mtu=100_000)), Add(ADDRESS))

    assert target.snapshot(SEED) == State.of(replace(LINK, mtu=1500), ADDRESS, NETWORK_ROUTE)

    assert [refusal.cause for refusal in refused] == [
        "EINVAL: Invalid argument (mtu greater than device maximum)"
    ]


def test_the_error_names_the_missing_capability(namespace, target):
    async def without_rights() -> list[Refusal]:
        async with LinuxTarget() as target:
            drop_capabilities()
            return list(await target.apply([Add(replace(ADDRESS, link="flannel1")), Add(LINK)]))

    target.heal(State.of(replace(LINK, name="flannel1")))

    address, link = namespace.run(without_rights)

    assert address.cause.startswith("EPERM")
    assert link.cause.startswith("EPERM")
    assert "CAP_NET_ADMIN" in address.hint
    assert "CAP_NET_ADMIN" in link.hint


def test_the_error_names_the_command_that_creates_the_device_file(namespace):
    async def without_device_file() -> list[Refusal]:
        hide_directory("/dev/net")
        async with LinuxTarget() as target:
            return list(await target.apply([Add(LINK)]))

    (refused,) = namespace.run(without_device_file)

    assert refused.cause == "ENOENT: No such file or directory (/dev/net/tun)"
    assert "modprobe tun" in refused.hint
    assert "--device /dev/net/tun" in refused.hint


def test_the_error_names_the_missing_right_to_the_device_file(namespace):
    async def without_right() -> list[Refusal]:
        hide_directory("/dev/net")
        os.mknod("/dev/net/tun", stat.S_IFCHR | 0o600, os.makedev(10, 200))
        os.chown("/dev/net/tun", 65534, 65534)
        drop_capabilities()  # root without rights does not count as the owner
        async with LinuxTarget() as target:
            return list(await target.apply([Add(LINK)]))

    (refused,) = namespace.run(without_right)

    assert refused.cause == "EACCES: Permission denied (/dev/net/tun)"
    assert "--device /dev/net/tun" in refused.hint
    assert "CAP_NET_ADMIN" in refused.hint


def test_a_device_created_meanwhile_by_another_program_is_not_used(namespace, target):
    namespace.ip("tuntap add flannel0 mode tun")

    (refused,) = target.apply(Add(LINK))

    assert refused.cause == "EBUSY: Device or resource busy"


def test_thousands_of_routes_are_added_and_read_back(namespace, target):
    """The test usually takes less than a second. The limit allows for other programs on the machine."""
    wanted = State.collect(
        Route(destination=IPv4Network((0x0A640000 + (number << 8), 24)), link="flannel0")
        for number in range(5000)
    )
    target.heal(State.of(LINK, replace(ADDRESS, address=IPv4Interface("192.0.2.1/32"))))

    started = time.monotonic()
    refused = target.apply(*(Add(route) for route in wanted))
    applied = time.monotonic() - started
    found = target.snapshot(wanted)

    assert refused == []
    assert all(route in found for route in wanted)
    assert applied < 20.0


def test_thousands_of_foreign_routes_are_cheap_and_ignored(namespace, target):
    with_another_link(namespace)
    batch = "\n".join(
        f"route add 172.{16 + n // 65536}.{n // 256 % 256}.{n % 256}/32 dev other" for n in range(20_000)
    )
    namespace.command("ip", "-batch", "-", given=batch)
    target.heal(SEED)

    async def look_often() -> tuple[State, float]:
        async with LinuxTarget() as target:
            started = time.process_time()
            for _ in range(3):
                found = await target.snapshot(SEED)
            return found, (time.process_time() - started) / 3

    found, cpu_s = namespace.run(look_often)

    assert found == SEED
    assert cpu_s < 2.0


def route_in_use(namespace) -> str:
    """Return the route to the network that the kernel uses, as `ip` prints it."""
    found = namespace.ip("route show 10.100.0.0/16 metric 0").replace(" linkdown", "").splitlines()
    return found[0].strip() if found else ""


def with_another_link(namespace) -> None:
    # IPv6 sends notifications seconds after a link was set up, when its addresses proved unique.
    namespace.command("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")
    namespace.ip("link add other type veth peer name otherend")
    namespace.ip("address add 10.7.0.1/24 dev other")
    namespace.ip("link set otherend up")
    namespace.ip("link set other up")
    namespace.command("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=0")
    namespace.settle(other="UP", otherend="UP")


def drop_capabilities() -> None:
    """Remove all capabilities from the calling thread: capset(2) with empty sets."""
    header = struct.pack("=Ii", 0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")


def enter_new_namespace() -> None:
    """Move the calling thread to a new, unused network namespace."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "unshare")
