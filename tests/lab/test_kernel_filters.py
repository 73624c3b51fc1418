"""The adapters of iptables and nftables on the real kernel: rules, notifications, and their effect on
packets.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import groupby
from pathlib import Path

import pytest
from msgspec.structs import replace

from doubles.planning import pass_operations
from pyflannel.errors import TargetError
from pyflannel.kernel.filters.iptables import IptablesTarget
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.model.host import Host, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.packet_filter import FilterRule, IptablesChain, Masquerade, NftTable
from pyflannel.model.state import Operation, Refusal, State
from pyflannel.plan.diff import diff, found
from pyflannel.plan.ownership import ours
from pyflannel.plan.packet_filter import FilterOptions, plan_filter, plan_open_ports
from pyflannel.ports import Announce, ChangeChannel, Target

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

EVERYTHING = FilterOptions(masquerades=True, accepts_forwarded=True, opens_ports=True)
OURS, PEER, CLIENT, WORLD = "10.100.1.2", "10.100.2.2", "192.0.2.9", "198.51.100.7"
HOST, HOSTS_OTHER, BEHIND = "192.0.2.1", "203.0.113.1", "203.0.113.77"
RESYNC_S = 0.2


def plan(*, nftables: bool, ipv6: bool = False, options: FilterOptions = EVERYTHING) -> State:
    """Return the rules of a host with the subnet 10.100.1.0/24."""
    address = IPv4Address(HOST)
    lease = Lease(
        subnet=IPv4Network("10.100.1.0/24"),
        ipv6_subnet=IPv6Network("fd00:5:0:1::/64"),
        attributes=LeaseAttributes(public_ip=address),
    )
    config = NetworkConfig(
        network=IPv4Network("10.100.0.0/16"),
        enable_ipv6=ipv6,
        ipv6_network=IPv6Network("fd00:5::/48"),
        enable_nftables=nftables,
    )
    ipv6_address = IPv6Address("fd07:1::65")
    underlay = Underlay(
        link="eth0",
        address=address,
        mtu=1500,
        public_ip=address,
        ipv6_address=ipv6_address,
        public_ipv6=ipv6_address,
    )
    host = Host(lease=lease, underlay=underlay)
    hosts = (host, replace(host, family=6)) if ipv6 else (host,)
    rules = State.EMPTY
    for one in hosts:
        rules |= plan_filter(config, one, options) | plan_open_ports([8285], config, one, options)
    return rules


@asynccontextmanager
async def filters(resync_s: float = 60.0) -> AsyncIterator["Filters"]:
    """Return the two adapters as one target."""
    async with IptablesTarget(resync_s) as iptables, NftTarget(resync_s) as nftables:
        yield Filters(iptables, nftables)


class Filters:
    """Both adapters as one target."""

    def __init__(self, iptables: IptablesTarget, nftables: NftTarget) -> None:
        self._by_kind = {IptablesChain: iptables, NftTable: nftables}

    async def snapshot(self, desired: State) -> State:
        states = [await target.snapshot(desired) for target in self._by_kind.values()]
        return states[0] | states[1]

    async def apply(self, operations: Sequence[Operation]) -> list[Refusal]:
        refusals: list[Refusal] = []
        for kind, run in groupby(operations, key=lambda operation: type(operation.subject)):
            refusals += await self._by_kind[kind].apply(list(run))
        return refusals

    def changes(self) -> ChangeChannel:
        return ChangeChannel(*(partial(self._announce, target) for target in self._by_kind.values()))

    async def _announce(self, target: Target, announce: Announce) -> None:
        async with target.changes() as changes:
            while True:
                await changes.next()
                announce()


async def one_pass(target: Filters, desired: State) -> tuple[list[Operation], list[Refusal]]:
    """Make one pass like the reconciler; return its operations and the refusals."""
    operations = pass_operations(desired, ours(await target.snapshot(desired), desired))
    return operations, list(await target.apply(operations)) if operations else []


def settled(namespace, *plans: State) -> None:
    """Make a pass towards each plan in turn, and check that the next pass finds nothing to do."""

    async def work() -> None:
        async with filters() as target:
            for desired in plans:
                _, refused = await one_pass(target, desired)
                assert not refused
                again, _ = await one_pass(target, desired)
                assert not again, [found(operation) for operation in again]

    namespace.run(work)


def test_the_rules_of_a_family_that_no_scan_has_read_are_added(namespace) -> None:
    """A change of the plan from IPv4 alone to both families is applied without another scan."""

    async def work() -> None:
        async with filters() as target:
            before, after = plan(nftables=False), plan(nftables=False, ipv6=True)
            for _ in range(2):  # the first scan reads all families
                await one_pass(target, before)
            added = [*diff(after, before)]
            assert {one.subject.family for one in added} == {6}
            assert not await target.apply(added)
            again, _ = await one_pass(target, after)
            assert not again

    namespace.run(work)


def rules(namespace) -> list[str]:
    """Return the rules of both families as iptables lists them, in alphabetical order."""
    listed = [namespace.command(program) for program in ("iptables-save", "ip6tables-save")]
    return [line for text in listed for line in sorted(text.splitlines()) if line.startswith("-A")]


def ruleset(namespace) -> str:
    """Return all rules without their counters."""
    return namespace.command("nft", "--stateless", "list", "ruleset")


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "both families"])
@pytest.mark.parametrize("nftables", [False, True], ids=["iptables", "nftables"])
def test_one_pass_applies_a_plan_and_one_removes_it_completely(namespace, nftables: bool, ipv6: bool) -> None:
    namespace.command("iptables", "-A", "INPUT", "-s", "192.0.2.77", "-j", "DROP")
    before = ruleset(namespace)

    settled(namespace, plan(nftables=nftables, ipv6=ipv6))
    assert ruleset(namespace) != before
    settled(namespace, State.EMPTY)

    assert ruleset(namespace) == before


def test_the_port_of_the_tunnel_is_open_before_the_rules_of_other_programs(namespace) -> None:
    programs = {"iptables": f"{HOST}/32", "ip6tables": "fd07:1::65/128"}
    for program in programs:
        namespace.command(program, "-P", "INPUT", "DROP")
        namespace.command(program, "-A", "INPUT", "-p", "udp", "-j", "REJECT")

    for nftables in (False, True):
        settled(namespace, plan(nftables=nftables, ipv6=True))
        for program, address in programs.items():
            first = namespace.command(program, "-S", "INPUT").splitlines()[1]
            assert first.endswith("-j FLANNEL-INPUT")
            opened = f"-d {address} -p udp -m udp --dport 8285"
            assert opened in namespace.command(program, "-S", "FLANNEL-INPUT")


def test_switching_the_engine_leaves_nothing_of_the_other_engine(namespace) -> None:
    settled(namespace, plan(nftables=False))
    with_iptables = ruleset(namespace)
    settled(namespace, plan(nftables=True))
    with_nftables = ruleset(namespace)

    assert "FLANNEL" not in with_nftables
    settled(namespace, plan(nftables=False), plan(nftables=True))
    assert ruleset(namespace) == with_nftables
    settled(namespace, plan(nftables=False))
    assert ruleset(namespace) == with_iptables


def test_a_family_that_is_enabled_later_is_read_as_well(namespace) -> None:
    """Only planned or found families are read, which saves half of the programs."""
    both = plan(nftables=False, ipv6=True)

    settled(namespace, both)
    at_once = rules(namespace)
    settled(namespace, State.EMPTY)
    settled(namespace, plan(nftables=False), both)

    assert rules(namespace) == at_once


def test_a_disabled_option_removes_its_rules(namespace) -> None:
    for nftables in (False, True):
        settled(namespace, plan(nftables=nftables))
        settled(namespace, plan(nftables=nftables, options=replace(EVERYTHING, masquerades=False)))

        assert "masquerade" not in ruleset(namespace)
        assert "POSTRTG" not in ruleset(namespace)


def test_rules_of_the_original_are_taken_over(namespace) -> None:
    """The remains of flannel 0.20 and 0.28: chains with their names, and an inserted or appended jump."""
    namespace.command("iptables-restore", given=ORIGINAL)
    namespace.command("nft", "add", "table", "ip6", "flannel-ipv6")

    settled(namespace, plan(nftables=False, options=FilterOptions(accepts_forwarded=True)))

    assert "FLANNEL-POSTRTG" not in ruleset(namespace)
    assert "flannel-ipv6" not in ruleset(namespace)
    assert namespace.command("iptables", "-S", "FORWARD").splitlines()[1:] == [
        '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
        "-A FORWARD -i lo -j ACCEPT",
    ]


ORIGINAL = """
*nat
:FLANNEL-POSTRTG - [0:0]
-A FLANNEL-POSTRTG -s 10.9.0.0/16 -d 10.9.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FLANNEL-FWD -s 10.9.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FORWARD -i lo -j ACCEPT
COMMIT
"""


DAMAGE = {
    "nft flush ruleset": ("nft flush ruleset", 3),
    "iptables -F": ("iptables -F", 2),
    "iptables -t nat -F": ("iptables -t nat -F", 1),
    "chain deleted": ("iptables -D FORWARD 1; iptables -F FLANNEL-FWD; iptables -X FLANNEL-FWD", 1),
    "jump deleted": ("iptables -t nat -D POSTROUTING 1", 1),
    "jump moved behind a verdict": (
        "iptables -I FORWARD -j DROP; iptables -D FORWARD 2; "
        "iptables -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD",
        1,
    ),
    "a verdict before the jump": ("iptables -I FORWARD -j REJECT", 1),
    "jump twice": ("iptables -I FORWARD -j FLANNEL-FWD", 1),
    "foreign rule": ("iptables -I FLANNEL-FWD -s 10.100.2.2 -j DROP", 1),
    "rules in another order": (
        "iptables -t nat -D FLANNEL-POSTRTG 1; iptables -t nat -A FLANNEL-POSTRTG -m mark --mark "
        "0x4000/0x4000 -m comment --comment 'flanneld masq' -j RETURN",
        1,
    ),
    "table deleted": ("nft delete table ip filter", 2),
}
NFT_DAMAGE = {
    "nft flush ruleset": "nft flush ruleset",
    "chain flushed": "nft flush chain ip flannel-ipv4 postrtg",
    "chain deleted": "nft delete chain ip flannel-ipv4 forward",
    "foreign rule": "nft insert rule ip flannel-ipv4 forward drop",
    "foreign set": "nft add set ip flannel-ipv4 bad '{ type ipv4_addr; }'",
    "policy": "nft 'add chain ip flannel-ipv4 forward { policy drop; }'",
}


async def calm(wakes) -> None:
    """Wait until all notifications of own changes were received."""
    while sum([await wakes.silence() for _ in range(4)]):
        pass


async def first_repairs(target: Filters, desired: State, wakes) -> list[Operation]:
    """Make a pass at each wake-up. Return the operations of the first pass that found work."""
    while True:
        await wakes.next()
        operations, refused = await one_pass(target, desired)
        assert not refused
        if operations:
            return operations


def healed_when_announced(namespace, listen, desired: State, words: str) -> int:
    """Damage the rules of a plan. Return the number of objects that the woken pass repairs."""

    async def work() -> int:
        async with filters() as target:
            await one_pass(target, desired)
            async with listen(target.changes()) as wakes:
                await calm(wakes)
                await one_pass(target, desired)
                await asyncio.to_thread(namespace.command, "sh", "-c", words)
                operations = await first_repairs(target, desired, wakes)
                # A snapshot during the damage may contain only a part of the damage.
                async with asyncio.timeout(60):
                    while (await one_pass(target, desired))[0]:
                        await asyncio.sleep(0)
                return len(operations)

    return namespace.run(work)


@pytest.mark.parametrize(("words", "repairs"), DAMAGE.values(), ids=list(DAMAGE))
def test_damage_in_iptables_is_announced_and_repaired(namespace, listen, words: str, repairs: int) -> None:
    assert healed_when_announced(namespace, listen, plan(nftables=False), words) == repairs


@pytest.mark.parametrize("words", NFT_DAMAGE.values(), ids=list(NFT_DAMAGE))
def test_damage_in_nftables_is_announced_and_repaired(namespace, listen, words: str) -> None:
    assert healed_when_announced(namespace, listen, plan(nftables=True), words) == 1


def test_a_forward_chain_that_begins_to_drop_gets_the_accept_rules(namespace, listen) -> None:
    """The chain begins to drop packets when Docker starts after flanneld.

    With nftables, too, the accept must be in the chain that drops.
    """
    desired = plan(nftables=True)
    settled(namespace, desired)
    assert "FLANNEL" not in ruleset(namespace)

    assert healed_when_announced(namespace, listen, desired, "iptables -P FORWARD DROP") == 1
    assert "-A FORWARD" in namespace.command("iptables", "-S", "FORWARD")
    assert healed_when_announced(namespace, listen, desired, "iptables -P FORWARD ACCEPT") == 1
    assert "FLANNEL" not in ruleset(namespace)


def test_changes_of_foreign_rules_are_not_announced(namespace, listen) -> None:
    async def work() -> int:
        desired = plan(nftables=False)
        async with filters() as target:
            await one_pass(target, desired)
            async with listen(target.changes()) as wakes:
                await wakes.next()  # notifications of own changes
                await calm(wakes)
                assert not (await one_pass(target, desired))[0]
                others = (
                    "iptables -I FORWARD -i lo -j ACCEPT; iptables -t nat -N DOCKER; nft add table ip other"
                )
                await asyncio.to_thread(namespace.command, "sh", "-c", others)
                return sum([await wakes.silence() for _ in range(5)])

    assert namespace.run(work) == 0


def test_a_pass_that_concerns_other_targets_runs_no_program(namespace, monkeypatch) -> None:
    async def work() -> State:
        desired = plan(nftables=False)
        async with filters() as target:
            await one_pass(target, desired)
            before = await target.snapshot(desired)
            monkeypatch.setenv("PATH", "/nowhere")
            assert await target.snapshot(desired) == before
            return before

    assert len(namespace.run(work)) == 3


@dataclass(frozen=True)
class Packet:
    """A datagram: sender, destination, and the source that the receiver sees; None if it does not arrive."""

    sender: str
    source: str
    destination: str
    seen: str | None
    port: int = 4000


PACKETS = (
    Packet("container", OURS, PEER, OURS),
    Packet("world", PEER, OURS, PEER),
    Packet("world", CLIENT, OURS, CLIENT),
    Packet("container", OURS, WORLD, HOST),
    Packet("container", OURS, WORLD, OURS, port=4001),
    Packet("container", OURS, WORLD, HOST, port=4002),
    Packet("host", HOSTS_OTHER, PEER, HOST),
    Packet("host", HOSTS_OTHER, WORLD, HOSTS_OTHER),
    Packet("world", WORLD, BEHIND, None),
    Packet("container", BEHIND, WORLD, None),
)
PORTS = (4000, 4001, 4002)
MARKS = """
iptables -t mangle -A PREROUTING -p udp --dport 4001 -j MARK --set-mark 0x4001
iptables -t mangle -A PREROUTING -p udp --dport 4002 -j MARK --set-mark 0x8000
iptables -P FORWARD DROP
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
"""


def wire_up(host, container, world) -> None:
    """Connect a container and an external network to a host that forwards only accepted packets."""
    for name, end, addresses in (
        ("c", container, (f"{OURS}/24", f"{BEHIND}/32")),
        ("w", world, (f"{CLIENT}/24", f"{PEER}/32", f"{WORLD}/32")),
    ):
        host.ip(f"link add {name} type veth peer name eth0 netns {end.name}")
        host.ip(f"link set {name} up")
        end.ip("link set eth0 up")
        for address in addresses:
            end.ip(f"address add {address} dev eth0")
    for address, device in ((f"{HOST}/24", "w"), ("10.100.1.1/24", "c"), (f"{HOSTS_OTHER}/32", "lo")):
        host.ip(f"address add {address} dev {device}")
    for destination, gateway in (("10.100.0.0/16", CLIENT), (f"{WORLD}/32", CLIENT), (f"{BEHIND}/32", OURS)):
        host.ip(f"route add {destination} via {gateway}")
    container.ip("route add default via 10.100.1.1")
    world.ip(f"route add default via {HOST}")
    host.command("sh", "-ec", MARKS)


def bound(namespace, address: str, port: int) -> socket.socket:
    """Return a UDP socket in the namespace."""

    async def work() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, port))
        return made

    return namespace.run(work)


def seen_source(packet: Packet, places) -> str | None:
    receiver = places["container" if packet.destination in (OURS, BEHIND) else "world"]
    with (
        bound(receiver, packet.destination, packet.port) as inbox,
        bound(places[packet.sender], packet.source, 0) as outbox,
    ):
        inbox.settimeout(60 if packet.seen else 0.3)
        outbox.sendto(b"x", (packet.destination, packet.port))
        try:
            return inbox.recvfrom(16)[1][0]
        except TimeoutError:
            return None


@pytest.mark.parametrize("nftables", [False, True], ids=["iptables", "nftables"])
def test_both_engines_have_the_same_effect_on_packets(make_namespace, nftables: bool) -> None:
    places = {name: make_namespace() for name in ("host", "container", "world")}
    wire_up(*places.values())
    places["host"].settle(c="UP", w="UP")
    for name in ("container", "world"):
        places[name].settle(eth0="UP")

    settled(places["host"], plan(nftables=nftables))

    assert {packet: seen_source(packet, places) for packet in PACKETS} == {
        packet: packet.seen for packet in PACKETS
    }


def programs(directory: Path, **bodies: str) -> str:
    """Write shell programs to a directory, and return a PATH in which they are found first."""
    directory.mkdir()
    for name, body in bodies.items():
        path = directory / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


LEGACY = {
    f"{family}{part}": f'exec /usr/sbin/{family}-legacy{part.replace("_", "-")} "$@"'
    for family in ("iptables", "ip6tables")
    for part in ("", "_save", "_restore")
}


def test_legacy_iptables_is_polled(namespace, listen, tmp_path: Path, monkeypatch) -> None:
    """Legacy iptables announces no changes. The empty tables of iptables remain in the namespace."""
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", **LEGACY))
    desired = plan(nftables=False)

    async def work() -> list[Operation]:
        async with filters(RESYNC_S) as target:
            _, refused = await one_pass(target, desired)
            assert not refused
            async with listen(target.changes()) as wakes:
                await calm(wakes)
                await one_pass(target, desired)
                await asyncio.to_thread(namespace.command, "iptables-legacy", "-F", "FLANNEL-FWD")
                operations = await first_repairs(target, desired, wakes)
                assert not (await one_pass(target, desired))[0]
            await one_pass(target, State.EMPTY)
            return operations

    assert [found(operation) for operation in namespace.run(work)] == [
        "iptables chain FLANNEL-FWD in filter: 2 of 2 rules missing"
    ]
    assert "FLANNEL" not in namespace.command("iptables-legacy-save")


READ_AS_USER = """
import asyncio, os
from pyflannel.kernel.filters.iptables import read_saved
os.setgid(65534)  # after the import: another user may not be able to read this checkout
os.setuid(65534)
saved = asyncio.run(read_saved("iptables-legacy"))
print([table for table, chains in saved.items() if "FLANNEL-FWD" in chains])
"""


def test_a_user_with_capabilities_reads_legacy_iptables(namespace, tmp_path: Path) -> None:
    """The user is the user of flanneld under systemd.

    Only root may read the list of tables, so the adapter reads the owned tables one by one.
    """
    namespace.command("iptables-legacy", "-N", "FLANNEL-FWD")
    rights = ["setpriv", "--securebits=+no_setuid_fixup", "--clear-groups"]
    rights += [f"--{kind}-caps=+net_admin,+net_raw" for kind in ("inh", "ambient")]
    # A lock file that the group may open, as created by `flannelctl prepare`.
    own_run = 'mount -t tmpfs none /run && install -m 640 -g 65534 /dev/null /run/xtables.lock && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", own_run, "sh", *rights]

    said = namespace.command(*before, sys.executable, "-c", READ_AS_USER)

    assert said == "['filter']\n"


def test_an_old_iptables_gets_rules_without_random_ports(
    namespace, tmp_path: Path, monkeypatch, caplog
) -> None:
    """Before 1.6.2, iptables-restore supports neither --random-fully nor --wait.

    The adapter works without these options.
    """
    refuse = 'case "$* $(cat)" in *random-fully*|*--wait*) echo unknown option >&2; exit 2;; esac'
    restore = f'input=$(cat); echo "$input" | sh -c \'{refuse}\' x "$@" || exit; echo "$input" |'
    path = programs(
        tmp_path / "bin",
        iptables='[ "$1" = --version ] && echo iptables v1.6.1 && exit; exec /usr/sbin/iptables "$@"',
        iptables_restore=f'{restore.replace("$*", "$0 $*")} /usr/sbin/iptables-restore "$@"',
    )
    monkeypatch.setenv("PATH", path)

    settled(namespace, plan(nftables=False))

    rules = namespace.command("/usr/sbin/iptables", "-t", "nat", "-S", "FLANNEL-POSTRTG")
    assert rules.count("-j MASQUERADE") == 2
    assert "random" not in rules
    assert [record.message for record in caplog.records].count(
        "iptables v1.6.1: no random ports for masqueraded packets"
    ) == 1


def test_an_old_kernel_gets_nftables_rules_without_random_ports(
    namespace, tmp_path: Path, monkeypatch, caplog
) -> None:
    check = '[ "$1" = -c ] && echo Error: Could not process rule: Not supported >&2 && exit 1'
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", nft=f'{check}; exec /usr/sbin/nft "$@"'))

    settled(namespace, plan(nftables=True))

    assert "masquerade" in ruleset(namespace)
    assert "random" not in ruleset(namespace)
    assert "no random ports" in caplog.text


@pytest.mark.parametrize(
    ("nftables", "cause", "advice"),
    [
        (False, "iptables is not installed", "set EnableNFTables"),
        (True, "nft is not installed", "set EnableNFTables to false"),
    ],
)
def test_a_missing_program_is_named(namespace, monkeypatch, nftables: bool, cause: str, advice: str) -> None:
    """Other operations are not refused, because without iptables no program can add a rule that drops."""
    monkeypatch.setenv("PATH", "/nowhere")

    async def work() -> list[Refusal]:
        async with filters() as target:
            return (await one_pass(target, plan(nftables=nftables)))[1]

    refused = namespace.run(work)
    assert {refusal.cause for refusal in refused} == {cause}
    assert all(advice in refusal.hint for refusal in refused)
    assert all(isinstance(_item(refusal), NftTable) is nftables for refusal in refused)


def _item(refusal: Refusal) -> object:
    return getattr(refusal.operation, "item", None)


def test_a_program_that_fails_is_quoted(namespace, tmp_path: Path, monkeypatch) -> None:
    fail = "echo '# Warning: legacy tables' >&2; echo 'it is broken' >&2; exit 3"
    monkeypatch.setenv("PATH", programs(tmp_path / "iptables", iptables_restore=fail))
    work: Callable[[bool], Callable[[], Awaitable[list[Refusal]]]]

    def work(nftables: bool):
        async def run() -> list[Refusal]:
            async with filters() as target:
                return (await one_pass(target, plan(nftables=nftables)))[1]

        return run

    assert {refusal.cause for refusal in namespace.run(work(False))} == {
        "iptables-restore failed: it is broken"
    }
    monkeypatch.setenv("PATH", programs(tmp_path / "nftables", nft=fail))
    with pytest.raises(TargetError, match=r"^nft failed: it is broken$"):  # the table cannot be read either
        namespace.run(work(True))


def test_the_default_rules_choose_fully_random_ports(namespace) -> None:
    rules = [rule for item in plan(nftables=False) for rule in getattr(item, "rules", ())]
    assert sum(isinstance(rule, FilterRule) and rule.verdict == Masquerade() for rule in rules) == 2

    settled(namespace, plan(nftables=False))

    assert namespace.command("iptables", "-t", "nat", "-S").count("--random-fully") == 2
