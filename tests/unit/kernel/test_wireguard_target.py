"""Changes of WireGuard by another program are announced each time. A new address of the host is used."""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.kernel.filters.programs import Ran
from pyflannel.kernel.wireguard import target as module
from pyflannel.kernel.wireguard.target import WireguardTarget
from pyflannel.model.item import Item, ItemMap
from pyflannel.model.state import Replace, State
from pyflannel.model.store_record import Secret
from pyflannel.model.wireguard import WireguardDevice, WireguardPeer

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
                for _ in range(20):  # several looks
                    await asyncio.sleep(0)

    asyncio.run(watch())


def test_wireguard_go_sends_from_a_new_address_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint of the moment is set again, not the planned one: a handshake may have shown another."""
    ran: list[str] = []

    async def run(*words: str, given: str = "") -> Ran:
        ran.append(" ".join(words))
        return Ran(0, f"{ALONE}{PEER}\t(none)\t10.10.10.9:7\t10.100.5.0/24\t0\t0\t0\t25\n", "")

    monkeypatch.setattr(module, "run_program", run)
    target = WireguardTarget(lambda _: Secret(OWN), NoUserspace())
    before, after = (replace(DEVICE, source=IPv4Address(one)) for one in ("10.10.10.1", "10.10.10.2"))

    async def change() -> None:
        assert list((await target.snapshot(State.of(before))).of_type(WireguardDevice)) == [before]
        assert not await target.apply([Replace(before, after)])
        assert list((await target.snapshot(State.of(after))).of_type(WireguardDevice)) == [after]

    asyncio.run(change())
    assert f"wg set flannel-wg peer {PEER} endpoint 10.10.10.9:7 persistent-keepalive 25" in ran


def test_a_change_of_the_plan_while_contacts_are_read_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
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
