"""Networks that start and end in one daemon close everything that they opened."""

import asyncio
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from doubles.fake_store import FakeStore
from pyflannel.assembly.daemon import places_of
from pyflannel.assembly.opening import open_network
from pyflannel.assembly.options import FlanneldOptions, parse_flanneld
from pyflannel.engine.list_watch import StoreLog
from pyflannel.kernel.host.machine import BoottimeClock
from pyflannel.model.store_record import Put

SHORT, LONG = 150, 1000
"""Number of networks. A user may have 128 instances of inotify, so a leak of one instance per network
fails."""


class Timers(BoottimeClock):
    """A clock whose records never expire."""

    def call_at(self, when: float, act: object) -> None:
        """Do nothing."""


@pytest.fixture
def options(tmp_path: Path) -> FlanneldOptions:
    kept = [f"--run-dir={tmp_path}/run", f"--state-dir={tmp_path}/state", f"--subnet-file={tmp_path}/env"]
    parsed = parse_flanneld([*kept, f"--store=sqlite:///{tmp_path}/leases.db", "--iface=eth0"], {})
    assert isinstance(parsed, FlanneldOptions)
    return parsed


async def start_and_end(options: FlanneldOptions, store: FakeStore) -> None:
    """Start a network, let it acquire a lease and make a pass, and end it."""
    is_ready = asyncio.Event()
    async with open_network(
        options=options,
        places=places_of(options),
        store=store,
        store_url="",
        store_log=StoreLog(BoottimeClock()),
        notify=lambda text: is_ready.set() if "READY=1" in text else None,
        alive=lambda: None,
        audit_s=10.0,
    ) as network:
        running = asyncio.create_task(network.run())
        try:
            async with asyncio.timeout(60):
                await is_ready.wait()
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


def held() -> tuple[list[str], int, list[str]]:
    """Return open descriptors, number of tasks, and threads."""
    gc.collect()
    opened = []
    for each in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            opened.append(os.readlink(f"/proc/self/fd/{each}").split(":")[0])
    return sorted(opened), len(asyncio.all_tasks()), sorted(thread.name for thread in threading.enumerate())


@pytest.mark.usefixtures("no_forwarder_remains")
@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
def test_ended_networks_leave_no_descriptor_task_or_thread(
    namespace, options: FlanneldOptions, long_run: bool, backend: str
) -> None:
    """After a thousand starts and ends, the process uses no more resources than after a few."""
    namespace.ip("link add eth0 type veth peer name eth0r")
    namespace.ip("address add 10.7.0.1/24 dev eth0")
    namespace.ip("link set eth0r up")
    namespace.ip("link set eth0 up")
    config = f'{{"Network": "10.100.0.0/16", "Backend": {{"Type": "{backend}"}}}}'

    async def work() -> tuple[object, object]:
        # With more threads, the memory grows for a while.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        store = FakeStore(Timers())
        await store.write(Put(key="config", value=config.encode(), expected=None, ttl_s=None))
        for _ in range(3):  # objects that are created once and kept
            await start_and_end(options, store)
        before = held()
        for _ in range(LONG if long_run else SHORT):
            await start_and_end(options, store)
        return before, held()

    before, after = namespace.run(work, 1200)

    assert after == before
