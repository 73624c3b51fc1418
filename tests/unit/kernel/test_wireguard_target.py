"""Changes of WireGuard by another program are announced each time. A new address of the host is used."""

import asyncio
import time
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from msgspec.structs import replace

from pyflannel.kernel.filters.programs import Ran
from pyflannel.kernel.wireguard import target as module
from pyflannel.kernel.wireguard.target import WireguardTarget
from pyflannel.model.item import Item, ItemMap
from pyflannel.model.network_config import Family
from pyflannel.model.state import Add, Operation, Remove, Replace, State
from pyflannel.model.store_record import Secret
from pyflannel.model.wireguard import WireguardDevice, WireguardPeer
from pyflannel.plan.diff import diff, order

OWN, PEER = "hKkG9PwcKtL6B6MdnWAsbASTyQkr88DF+WHHWMIMnzc=", "FqDGdFD1HvXfiGVm3k2sLPhRDQA3ZwrFHKuwbxFKvXo="
DEVICE = WireguardDevice(link="flannel-wg", public_key=OWN, port=51820, is_in_kernel=True)
PLAN = State.of(
    DEVICE, WireguardPeer(link="flannel-wg", public_key=PEER, allowed=(IPv4Network("10.100.5.0/24"),))
)
ALONE = f"{PEER}\t{OWN}\t51820\toff\n"
WHOLE = f"{ALONE}{PEER}\t(none)\t(none)\t10.100.5.0/24\t0\t0\t0\toff\n"


class NoUserspace:
    """A host on which the kernel encrypts."""

    def links(self) -> Collection[str]:
        return ()

    def pid(self, link: str) -> int | None:
        return None

    async def start(self, link: str) -> None:
        raise AssertionError

    async def stop(self, link: str) -> None:
        return


def test_the_same_damage_is_announced_again_after_its_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [WHOLE]

    async def run(*_: str, given: str = "") -> Ran:
        return Ran(0, shown[0], "")

    monkeypatch.setattr(module, "run_program", run)
    monkeypatch.setattr(module, "_LOOK_S", 0.0)
    monkeypatch.setattr(module, "_PER_PEER_S", 0.0)
    target = WireguardTarget(lambda _: None, NoUserspace())

    async def watch() -> None:
        assert await target.snapshot(PLAN) == PLAN
        async with asyncio.timeout(30), target.changes() as changes:
            for _ in range(2):
                shown[0] = ALONE
                await changes.next()
                shown[0] = WHOLE
                for _ in range(20):  # several scans
                    await asyncio.sleep(0)

    asyncio.run(watch())


def test_wireguard_go_sends_from_a_new_address_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current endpoint is set again, not the planned endpoint, because a handshake may have changed the
    endpoint.
    """
    ran: list[str] = []

    async def run(*words: str, given: str = "") -> Ran:
        ran.append(" ".join(words))
        return Ran(0, f"{ALONE}{PEER}\t(none)\t10.10.10.9:7\t10.100.5.0/24\t0\t0\t0\t25\n", "")

    monkeypatch.setattr(module, "run_program", run)
    target = WireguardTarget(lambda _: Secret(OWN), NoUserspace())
    before, after = (replace(DEVICE, sources=(IPv4Address(one),)) for one in ("10.10.10.1", "10.10.10.2"))

    async def change() -> None:
        assert list((await target.snapshot(State.of(before))).of_type(WireguardDevice)) == [before]
        assert not await target.apply([Replace(before, after)])
        assert list((await target.snapshot(State.of(after))).of_type(WireguardDevice)) == [after]

    asyncio.run(change())
    assert f"wg set flannel-wg peer {PEER} endpoint 10.10.10.9:7 persistent-keepalive 25" in ran


def test_the_plan_may_change_while_contacts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    plan: ItemMap[Item] = ItemMap()
    plan.add(PLAN)

    async def run(*_: str, given: str = "") -> Ran:
        plan.put(WireguardDevice(link=f"flannel-wg-{len(plan)}", public_key=OWN, port=1, is_in_kernel=True))
        return Ran(0, WHOLE, "")

    monkeypatch.setattr(module, "run_program", run)
    target = WireguardTarget(lambda _: None, NoUserspace())

    async def read() -> None:
        await target.snapshot(State(plan))
        count = len(list(State(plan).of_type(WireguardDevice)))
        assert len(await target.contacts()) == count

    asyncio.run(read())


class Device:
    """A double of the commands `wg show`, `wg addconf` and `wg set`, with the allowed IPs by key."""

    def __init__(self) -> None:
        self.allowed: dict[str, str] = {}
        self.greeted: list[str] = []
        self.handshake_at = 0

    async def run(self, *words: str, given: str = "") -> Ran:
        match words:
            case ("wg", "addconf", *_):
                for section in given.split("[Peer]\n")[1:]:
                    lines = dict(line.split(" = ") for line in section.splitlines())
                    self.allowed[lines["PublicKey"]] = lines["AllowedIPs"].replace(" ", "")
                    if "Endpoint" in lines:
                        self.greeted.append(lines["PublicKey"])
            case ("wg", "set", _, "peer", key, "remove"):
                del self.allowed[key]
            case ("wg", "set", _, "peer", key, "allowed-ips", networks):
                self.allowed[key] = networks
        peers = (
            f"{key}\t(none)\t10.10.10.9:7\t{networks or '(none)'}\t{self.handshake_at}\t0\t0\toff\n"
            for key, networks in self.allowed.items()
        )
        return Ran(0, ALONE + "".join(peers), "")


def part(family: Family, *, key: str = PEER) -> WireguardPeer:
    return WireguardPeer(
        link="flannel-wg",
        public_key=key,
        allowed=(IPv4Network("10.100.5.0/24") if family == 4 else IPv6Network("fd00:5:0:5::/64"),),
        endpoint="10.10.10.9:7",
        family=family,
        shares_device=True,
    )


def test_the_parts_of_a_peer_in_both_families_are_one_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is added and removed separately. The removal of the last part removes the peer."""
    device = Device()
    monkeypatch.setattr(module, "run_program", device.run)
    target = WireguardTarget(lambda _: None, NoUserspace())
    ipv4, ipv6 = part(4), part(6)
    steps: list[tuple[list[Operation], str | None]] = [
        ([Add(ipv4)], "10.100.5.0/24"),
        ([Add(ipv6)], "10.100.5.0/24,fd00:5:0:5::/64"),
        ([Remove(ipv4)], "fd00:5:0:5::/64"),
        ([Remove(ipv6)], None),
        ([Add(ipv6), Add(ipv4)], "10.100.5.0/24,fd00:5:0:5::/64"),
        ([Replace(replace(ipv4, keepalive_s=9), ipv4)], "10.100.5.0/24,fd00:5:0:5::/64"),
        ([Remove(ipv6), Remove(ipv4)], None),
    ]

    async def follow() -> None:
        for operations, allowed in steps:
            assert not await target.apply(operations)
            assert device.allowed.get(PEER) == allowed

    asyncio.run(follow())
    assert device.greeted == [PEER, PEER]  # one handshake for each time that the peer was new


@pytest.mark.parametrize("left", ["10.100.5.0/24,fd00:5:0:5::/64", "fd00:5:0:5::/64", ""])
def test_a_damaged_peer_of_both_families_is_repaired(monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    device = Device()
    device.allowed[PEER] = left
    monkeypatch.setattr(module, "run_program", device.run)
    target = WireguardTarget(lambda _: None, NoUserspace())
    plan = State.of(DEVICE, part(4), part(6))

    async def repair() -> None:
        found = await target.snapshot(plan)
        assert not await target.apply(order(diff(plan, found), plan))
        assert await target.snapshot(plan) == plan

    asyncio.run(repair())


def test_a_learned_endpoint_stays_until_the_plan_has_another_endpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new plan is compared with the state of the device, for example after a change of the mode."""
    device = Device()
    device.allowed[PEER] = "10.100.5.0/24"
    device.handshake_at = int(time.time())
    monkeypatch.setattr(module, "run_program", device.run)
    target = WireguardTarget(lambda _: None, NoUserspace())
    learned, other = (replace(part(4), endpoint=one) for one in ("192.0.2.1:7", "[fd07::1]:7"))

    async def look(planned: WireguardPeer) -> bool:
        """Return whether the device is as planned."""
        plan = State.of(DEVICE, planned)
        return await target.snapshot(plan) == plan

    async def follow() -> None:
        assert await look(learned)
        assert not await look(other)
        assert not await target.apply([Replace(learned, other)])
        assert await look(other)  # the peer sends from an address of the other family
        assert not await look(learned)

    asyncio.run(follow())


def test_an_endpoint_of_the_other_family_is_not_learned_if_the_mode_has_one_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer that has not changed its mode yet sends from the other family."""
    device = Device()
    device.allowed[PEER] = "10.100.5.0/24"
    device.handshake_at = int(time.time())
    monkeypatch.setattr(module, "run_program", device.run)
    target = WireguardTarget(lambda _: None, NoUserspace())
    planned = replace(part(4), endpoint="[fd07::1]:7", keeps_family=True)

    async def follow() -> None:
        assert not await target.apply([Add(planned)])
        found = await target.snapshot(State.of(DEVICE, planned))
        assert [one.endpoint for one in found.of_type(WireguardPeer)] == ["10.10.10.9:7"]
        same_family = replace(planned, endpoint="192.0.2.1:7")
        assert not await target.apply([Replace(planned, same_family)])
        plan = State.of(DEVICE, same_family)
        assert await target.snapshot(plan) == plan

    asyncio.run(follow())


def test_a_peer_that_is_not_planned_is_removed_with_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    device.allowed[PEER] = "10.100.5.0/24,fd00:5:0:5::/64"
    monkeypatch.setattr(module, "run_program", device.run)
    target = WireguardTarget(lambda _: None, NoUserspace())
    plan = State.of(DEVICE)

    async def remove() -> None:
        found = await target.snapshot(plan)
        assert not await target.apply(order(diff(plan, found), plan))

    asyncio.run(remove())
    assert not device.allowed
