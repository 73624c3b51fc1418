"""The adapter of the tunnel guard on the real nf_tables: rules are created, read, repaired and removed."""

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from msgspec.structs import replace

from pyflannel.kernel.filters.tunnel_guard import TunnelGuardTarget
from pyflannel.model.state import Add, Operation, Remove, State
from pyflannel.model.tunnel_guard import GuardedPath, GuardedTunnel, GuardPeer, GuardTable, joined
from pyflannel.plan.diff import diff, found, order
from pyflannel.wire.netlink.nftables import TableName
from testlab.forged_packets import datagram

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
NETWORK, SUBNET = IPv4Network("10.100.0.0/16"), IPv4Network("10.100.1.0/24")
VXLAN = GuardTable(
    device="flannel0",
    underlay="eth0",
    address=IPv4Address("192.0.2.1"),
    source_length=24,
    network=NETWORK,
    subnet=SUBNET,
    path=GuardedPath(links=("flannel.1",), tunnel=GuardedTunnel(link="flannel.1", port=8472, vni=1)),
)
IPV6_NETWORK, IPV6_SUBNET = IPv6Network("fd00:5::/48"), IPv6Network("fd00:5:0:1::/64")
IPV6 = replace(
    VXLAN,
    family=6,
    address=IPv6Address("2001:db8::1"),
    source_length=64,
    network=IPV6_NETWORK,
    subnet=IPV6_SUBNET,
    path=GuardedPath(links=("flannel-v6.1",), tunnel=GuardedTunnel(link="flannel-v6.1", port=8472, vni=1)),
)
IPV6_CHANGING = replace(
    IPV6,
    path=joined(
        GuardedPath(links=(link,), tunnel=GuardedTunnel(link=link, port=port, vni=vni))
        for link, port, vni in (("flannel-v6.7", 4789, 7), ("flannel-v6.1", 8472, 1))
    ),
)
WIREGUARD = replace(IPV6, path=GuardedPath(links=("flannel-wg-v6",), refuses_clear=True))
UDP = replace(
    VXLAN,
    path=GuardedPath(links=("flannel0",), tunnel=GuardedTunnel(link="flannel0", port=8285)),
)
HOST_GW = replace(VXLAN, path=GuardedPath(links=("eth0",)))
CHANGING = replace(
    VXLAN,
    path=joined(
        replace(VXLAN.path, tunnel=GuardedTunnel(link=link, port=port, vni=vni), links=(link,))
        for link, port, vni in (("flannel.2", 8472, 2), ("flannel.1", 8472, 1), ("flannel0", 8285, None))
    ),
)
DAMAGE = {
    "table deleted": "delete table ip flannel-guard",
    "everything flushed": "flush ruleset",
    "rule deleted": "flush chain ip flannel-guard to_us",
    "foreign rule": "insert rule ip flannel-guard to_us accept",
    "foreign chain": "add chain ip flannel-guard mine",
    "policy changed": "add chain ip flannel-guard arriving { policy drop; }",
    "elements deleted": "flush set ip flannel-guard senders; flush set ip flannel-guard ends",
    "foreign element": "add element ip flannel-guard ranges { 192.0.2.66 . 0.0.0.0-255.255.255.255 }",
    "element for all addresses": "add element ip flannel-guard senders { * }",
    "another set": "delete table ip flannel-guard; add table ip flannel-guard;"
    " add set ip flannel-guard senders { type ipv4_addr; }",
}


def peer(number: int, **changes: object) -> GuardPeer:
    subnet = IPv4Network((int(NETWORK.network_address) + (number << 8), 24))
    address = IPv4Address("192.0.2.0") + number
    made = GuardPeer(device="flannel0", subnet=subnet, address=address, port=8472, sources=subnet)
    return replace(made, **changes)


def ipv6_peer(number: int, **changes: object) -> GuardPeer:
    subnet = IPv6Network((int(IPV6_NETWORK.network_address) + (number << 64), 64))
    address = IPv6Address("2001:db8::") + number
    made = GuardPeer(device="flannel0", subnet=subnet, address=address, port=8472, sources=subnet)
    return replace(made, **changes)


async def heal(target: TunnelGuardTarget, desired: State) -> list[Operation]:
    """Make one pass, and check that the next pass finds nothing to do."""
    operations = order(diff(desired, await target.snapshot(desired)), desired)
    assert not await target.apply(operations)
    again = list(diff(desired, await target.snapshot(desired)))
    assert not again, [found(operation) for operation in again]
    return operations


def passes(namespace, desired: Sequence[State]) -> list[list[Operation]]:
    async def work() -> list[list[Operation]]:
        async with TunnelGuardTarget() as target:
            return [await heal(target, state) for state in desired]

    return namespace.run(work)


@pytest.mark.parametrize(
    ("table", "peers"),
    [
        (VXLAN, [peer(2), peer(3)]),
        (UDP, [peer(2), peer(3)]),
        (HOST_GW, []),
        (CHANGING, [peer(2), peer(3)]),
        (IPV6, [ipv6_peer(2), ipv6_peer(3)]),
        (WIREGUARD, []),
        (IPV6_CHANGING, [ipv6_peer(2, other_ports=(4789,)), ipv6_peer(3)]),
    ],
    ids=[
        *("vxlan", "udp", "host-gw", "three tunnels"),
        *("vxlan over IPv6", "wireguard over IPv6", "two tunnels over IPv6"),
    ],
)
def test_one_pass_creates_the_guard_and_another_pass_removes_it(
    namespace, table: GuardTable, peers: list[GuardPeer]
) -> None:

    made, kept, removed = passes(namespace, [State.of(table, *peers), State.of(table, *peers), State.EMPTY])

    assert (len(made), kept, len(removed)) == (1 + len(peers), [], 1)
    assert namespace.command("nft", "list", "ruleset") == ""


def test_the_table_of_another_daemon_remains(namespace) -> None:
    other = replace(VXLAN, device="flannel1")
    passes(namespace, [State.of(VXLAN), State.of(VXLAN, other, peer(2, device="flannel1"))])
    before = namespace.command("nft", "list", "table", "ip", "flannel-guard-1")

    passes(namespace, [State.of(UDP, other, peer(2), peer(2, device="flannel1"))])

    assert namespace.command("nft", "list", "table", "ip", "flannel-guard-1") == before


@pytest.mark.parametrize("family", ["ip", "ip6"])
@pytest.mark.parametrize("words", DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_announced_and_repaired(namespace, words: str, family: str) -> None:
    """Both families have a table of the same name, and only the damaged table is repaired."""
    desired = State.of(VXLAN, peer(2), peer(3), IPV6, ipv6_peer(2), ipv6_peer(3))
    if family == "ip6":
        words = words.replace(" ip ", " ip6 ").replace("ipv4", "ipv6").replace("192.0.2.66", "2001:db8::66")
        words = words.replace("0.0.0.0-255.255.255.255", f"::-{IPv6Network('::/0').broadcast_address}")

    async def work() -> None:
        async with TunnelGuardTarget() as target, target.changes() as changes:
            await heal(target, desired)
            namespace.command("nft", words)
            async with asyncio.timeout(DEADLINE_S):
                await changes.next()
            repairs = await heal(target, desired)
            is_whole = words == "flush ruleset"
            assert {repair.subject.family for repair in repairs} == (
                {4, 6} if is_whole else {6 if family == "ip6" else 4}
            )

    namespace.run(work)


@pytest.mark.parametrize("family", [4, 6])
def test_peers_are_added_moved_and_removed(namespace, family: int) -> None:
    table, two, three = (VXLAN, peer(2), peer(3)) if family == 4 else (IPV6, ipv6_peer(2), ipv6_peer(3))
    anybody = IPv4Network("0.0.0.0/0") if family == 4 else IPv6Network("::/0")
    moved = replace(two, address=two.address + 90)
    shared = replace(three, address=moved.address, port=9000)

    passes(
        namespace,
        [
            State.of(table, two),
            State.of(table, two, three),
            State.of(table, moved, three),
            State.of(table, moved, shared),
            State.of(table, shared),
            State.of(table, replace(shared, sources=anybody)),
            State.of(replace(table, source_length=0), replace(shared, sources=anybody)),
            State.of(table, shared),
            State.of(table),
        ],
    )
    listed = namespace.command("nft", "list", "table", "ip" if family == 4 else "ip6", "flannel-guard")
    assert "elements" not in listed


@pytest.mark.parametrize("changes", [{}, {"address": IPv4Address("192.0.2.2")}, {"port": 9000}])
def test_a_removed_peer_leaves_the_elements_of_other_peers(namespace, changes: dict[str, object]) -> None:
    """A peer shares its port with most peers, and its address with the hosts behind the same NAT."""
    stays, leaves = peer(2), peer(3, **changes)

    async def work() -> None:
        async with TunnelGuardTarget() as target:
            await heal(target, State.of(VXLAN, stays, leaves))
            assert not await target.apply([Remove(leaves)])
            assert await heal(target, State.of(VXLAN, stays)) == []

    namespace.run(work)


class ChangedWhileLooking(TunnelGuardTarget):
    """A guard that performs one operation as soon as a scan has read the first set."""

    operation: Operation | None = None

    async def _take_found(self, table: TableName, name: str, missing: set[bytes]) -> set[bytes]:
        found = await super()._take_found(table, name, missing)
        if (operation := self.operation) is not None:
            self.operation = None
            assert not await self.apply([operation])
        return found


def differences(read: State) -> list[str]:
    return [one for table in read.of_type(GuardTable) for one in table.differences]


@pytest.mark.parametrize("change", [Add(peer(3)), Remove(peer(3))], ids=["added", "removed"])
def test_a_peer_that_changes_during_a_scan_is_not_reported_as_a_difference(
    namespace, change: Operation
) -> None:
    """The plan of the scan does not contain the peer, but the scan finds some elements of the peer."""
    planned, other = State.of(VXLAN, peer(2)), State.of(VXLAN, peer(2), peer(3))

    async def work() -> None:
        async with ChangedWhileLooking() as target:
            await heal(target, planned if isinstance(change, Add) else other)
            target.operation = change
            assert differences(await target.snapshot(planned)) == []
            assert target.operation is None
            assert await heal(target, other if isinstance(change, Add) else planned) == []

    namespace.run(work)


@pytest.mark.parametrize("is_planned_before", [True, False], ids=["for long", "since the latest scan"])
def test_a_peer_that_left_the_plan_is_found_until_an_operation_removes_it(
    namespace, is_planned_before: bool
) -> None:
    """The table is not rebuilt for the elements of such a peer."""
    left, before = State.of(VXLAN, peer(2)), State.of(VXLAN, peer(2), peer(3))

    async def work() -> None:
        async with TunnelGuardTarget() as target:
            await heal(target, before if is_planned_before else left)
            if not is_planned_before:
                assert not await target.apply([Add(peer(3))])
            for _ in range(2):
                assert list(diff(left, await target.snapshot(left))) == [Remove(peer(3))]
            assert not await target.apply([Remove(peer(3))])
            assert list(diff(left, await target.snapshot(left))) == []

    namespace.run(work)


class Incomplete(TunnelGuardTarget):
    """A guard whose first answer for each set lacks an element, as while the kernel resizes the set."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[object] = set()

    async def _take_found(self, table: TableName, name: str, missing: set[bytes]) -> set[bytes]:
        before = set(missing)
        others = await super()._take_found(table, name, missing)
        if name not in self.read:
            self.read.add(name)
            missing.update(sorted(before - missing)[:1])
        return others


def test_an_incomplete_answer_of_the_kernel_is_not_reported_as_a_difference(namespace) -> None:
    desired = State.of(VXLAN, *(peer(number) for number in range(2, 6)))

    async def work() -> None:
        async with TunnelGuardTarget() as target:
            await heal(target, desired)
        async with Incomplete() as target:
            assert await heal(target, desired) == []
            assert target.read == {"senders", "ranges", "ends", "ports"}

    namespace.run(work)


@pytest.mark.parametrize("deleted", ["senders", "ends", "ports"])
def test_a_lost_element_of_a_peer_does_not_rebuild_the_table(namespace, deleted: str) -> None:
    one, two = peer(2), peer(3, address=IPv4Address("192.0.2.2"))  # both peers have one underlay address
    desired = State.of(VXLAN, one, two)

    async def work() -> list[Operation]:
        async with TunnelGuardTarget() as target:
            await heal(target, desired)
            namespace.command("nft", f"flush set ip flannel-guard {deleted}")
            return await heal(target, desired)

    assert namespace.run(work) == [Add(one), Add(two)]


def test_a_change_of_the_rules_keeps_the_elements(namespace) -> None:
    operations = passes(
        namespace, [State.of(VXLAN, peer(2)), State.of(replace(VXLAN, underlay="eth1"), peer(2))]
    )[1]

    assert [found(operation) for operation in operations] == [
        "nftables table flannel-guard: rules differ in to_us"
    ]


PREFIXES = {
    "whole bytes": ("10.100.0.0/16", "10.100.1.0/24", "10.100.2.1", "10.101.1.1"),
    "subnet with a mask": ("10.100.0.0/16", "10.100.1.64/26", "10.100.1.1", "10.101.1.65"),
    "network with a mask": ("10.96.0.0/12", "10.100.1.0/24", "10.111.1.1", "10.112.1.1"),
    "both with a mask": ("10.96.0.0/12", "10.100.16.0/20", "10.100.32.1", "10.84.16.1"),
    "subnet of a former, larger network": ("10.100.0.0/24", "10.100.16.0/20", "10.100.0.1", "10.100.1.1"),
    "IPv6, whole bytes": ("fd00:5::/48", "fd00:5:0:1::/64", "fd00:5:0:2::1", "fd00:5:1:1::1"),
    "IPv6, both with a mask": ("fd00:5::/45", "fd00:5:0:8::/61", "fd00:5:7:10::1", "fd00:5:8:8::1"),
}


@pytest.mark.parametrize("prefixes", PREFIXES.values(), ids=list(PREFIXES))
def test_only_packets_of_other_hosts_containers_from_another_link_are_dropped(
    namespace, prefixes: tuple[str, str, str, str]
) -> None:
    network, subnet, forged, outside = prefixes
    base = VXLAN if "." in network else IPV6
    one = type(base.network)
    table = replace(base, network=one(network), subnet=one(subnet))
    links = (*base.path.links, "stranger")
    for link in links:
        namespace.command("ip", "link", "add", f"to-{link[-4:]}", "type", "veth", "peer", "name", link)
        namespace.command("ip", "link", "set", f"to-{link[-4:]}", "up")
        namespace.command("ip", "link", "set", link, "up")

    def send(link: str, source: object) -> None:
        mac = json.loads(namespace.command("ip", "-json", "link", "show", link))[0]["address"]
        protocol = 0x0800 if base.family == 4 else 0x86DD
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
            packet = datagram(source, base.address, 9, b"")
            sock.sendto(packet, (f"to-{link[-4:]}", protocol, 0, 0, bytes.fromhex(mac.replace(":", ""))))

    def dropped() -> int:
        family = "ip" if base.family == 4 else "ip6"
        listed = namespace.command("nft", "--json", "list", "chain", family, "flannel-guard", "arriving")
        rules = [one["rule"] for one in json.loads(listed)["nftables"] if "rule" in one]
        (counted,) = [step["counter"] for rule in rules for step in rule["expr"] if "counter" in step]
        return counted["packets"]

    async def work() -> None:
        async with TunnelGuardTarget() as target:
            await heal(target, State.of(table))
        for link, source in ((links[0], forged), (links[1], table.subnet[1]), (links[1], outside)):
            send(link, source)
        send(links[1], forged)
        async with asyncio.timeout(DEADLINE_S):
            while not dropped():
                await asyncio.sleep(0.01)
        assert dropped() == 1

    namespace.run(work)


def test_many_peers_are_sent_in_several_transactions(namespace) -> None:
    """A socket of a process without rights over the whole machine accepts about 200,000 bytes at once."""
    peers = [
        peer(2, subnet=IPv4Network((int(NETWORK.network_address) + 16 * number, 28)), address=address)
        for number in range(3000)
        for address in [IPv4Address("198.18.0.0") + number]
    ]
    passes(namespace, [State.of(VXLAN, *peers), State.of(VXLAN, *peers[::2])])


def test_without_the_right_the_error_names_the_capability(namespace) -> None:
    async def work() -> None:
        async with TunnelGuardTarget() as target:
            os.seteuid(65534)
            try:
                operations = order(
                    diff(State.of(VXLAN), await target.snapshot(State.of(VXLAN))), State.of(VXLAN)
                )
                (refusal,) = await target.apply(operations)
            finally:
                os.seteuid(0)
            assert "EPERM" in refusal.cause
            assert refusal.is_permanent

    namespace.run(work)
