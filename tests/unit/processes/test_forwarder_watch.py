"""The watch for a new forwarder."""

import asyncio
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pyflannel.model.forwarder import Forwarder
from pyflannel.model.state import State
from pyflannel.processes import forwarder as module
from pyflannel.processes.forwarder import ForwarderTarget

FORWARDER = Forwarder(
    link="flannel0",
    tunnel_address=IPv4Address("10.100.15.0"),
    subnet=IPv4Network("10.100.15.0/24"),
    listen_address=IPv4Address("192.168.50.102"),
    port=8285,
    mtu=1472,
)


def test_an_unplanned_forwarder_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another backend, an idle daemon would otherwise wake up every second."""
    looks = 0
    real = module.connected

    def counted(path: Path) -> object:
        nonlocal looks
        looks += 1
        return real(path)

    monkeypatch.setattr(module, "connected", counted)
    monkeypatch.setattr(module, "_LOOK_AGAIN_S", 0.001)

    async def watch() -> tuple[int, int]:
        target = ForwarderTarget(tmp_path)

        async with target.changes():
            await target.snapshot(State.EMPTY)
            for _ in range(100):
                await asyncio.sleep(0.001)
            idle = looks
            await target.snapshot(State.of(FORWARDER))
            async with asyncio.timeout(30):
                while looks < idle + 20:
                    await asyncio.sleep(0.001)
            return idle, looks

    idle, _ = asyncio.run(watch())
    assert idle <= 3  # the first check of each watch, and one check that had begun
