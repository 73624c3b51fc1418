"""Changes of WireGuard that another program made are announced, each time they are made."""

import asyncio
from collections.abc import Collection
from ipaddress import IPv4Network

import pytest

from pyflannel.kernel.filters.programs import Ran
from pyflannel.kernel.wireguard import target as module
from pyflannel.kernel.wireguard.target import WireguardTarget
from pyflannel.model.state import State
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
