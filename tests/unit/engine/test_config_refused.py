"""A network config that would disconnect the host is refused, and the last valid config stays in force."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network

import pytest

from doubles.host_bench import HELD, HostBench
from pyflannel.model.link import Link
from pyflannel.model.route import Route
from pyflannel.model.store_record import Put

GOOD = '{"Network":"10.100.0.0/16"}'
BAD = '{"Network":"10.96.0.0/11","SubnetLen":24}'
STORE = IPv4Address("10.99.0.1")
"""An address in the second network, behind the gateway."""

NETWORK = IPv4Network("10.100.0.0/16")
STATIC = Route(destination=IPv4Network("10.100.0.0/16"), link="eth0", gateway=HELD.network[7], protocol=4)
"""A route to the complete first network."""

WHY = "10.96.0.0/11 contains 10.99.0.1, an address of the store, which this host would lose"


def lived(story: Callable[[HostBench], Awaitable[None]]) -> None:
    """Run a host, and perform these steps."""

    async def live() -> None:
        bench = HostBench()
        bench.store.reached_at = (STORE,)
        running = asyncio.ensure_future(bench.supervisor.run())
        try:
            await story(bench)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    asyncio.run(live())


async def put(bench: HostBench, config: str) -> None:
    bench.store.change(Put(key="config", value=config.encode(), ttl_s=None, expected=None))
    await bench.clock.advance(20)


def devices(bench: HostBench) -> list[str]:
    return [item.name for item in bench.kernel.state if isinstance(item, Link)]


def errors(caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    return (record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR)


def test_at_a_first_start_the_plan_is_empty(caplog: pytest.LogCaptureFixture) -> None:
    """The host waits, logs the reason once, and uses the next config."""

    async def story(bench: HostBench) -> None:
        await put(bench, BAD)
        assert bench.supervisor.waiting_for == f"a network config without conflicting routes: {WHY}"
        assert not devices(bench)
        await bench.clock.advance(100)
        await put(bench, GOOD)
        assert bench.supervisor.waiting_for is None
        assert bench.supervisor.condition.config.trouble is None

    lived(story)

    (said,) = errors(caplog)
    assert WHY in said


def test_the_last_good_config_stays_in_force(caplog: pytest.LogCaptureFixture) -> None:
    async def story(bench: HostBench) -> None:
        await put(bench, GOOD)
        before = bench.kernel.state
        await put(bench, BAD)
        assert bench.supervisor.waiting_for is None
        assert bench.kernel.state == before
        trouble = bench.supervisor.condition.config.trouble
        assert trouble is not None
        assert WHY in trouble.text
        await put(bench, GOOD)
        assert bench.supervisor.condition.config.trouble is None

    lived(story)

    (said,) = errors(caplog)
    assert said.startswith("Refused the network config, keeping the last valid one")


def test_a_config_is_used_after_the_conflicting_route_is_removed() -> None:
    """The host's routes are read before a config is used, and again when they change."""

    async def story(bench: HostBench) -> None:
        bench.interfaces.route(STATIC)
        await put(bench, GOOD)
        assert "route 10.100.0.0/16 via 192.168.50.7 dev eth0" in (bench.supervisor.waiting_for or "")
        bench.interfaces.route()
        await bench.clock.advance(20)
        assert bench.supervisor.waiting_for is None
        assert devices(bench) == ["flannel0"]

    lived(story)


def test_the_subnet_of_this_host_avoids_routes_of_other_programs() -> None:
    """All subnets except one have routes of other programs."""

    async def story(bench: HostBench) -> None:
        others = list(NETWORK.subnets(new_prefix=18))[1:]
        bench.interfaces.route(*(Route(destination=one, link="br9", protocol=2) for one in others))
        await put(bench, '{"Network":"10.100.0.0/16","SubnetLen":18,"SubnetMin":"10.100.0.0"}')
        held = bench.supervisor.condition.held
        assert held is not None
        assert held.lease.subnet == IPv4Network("10.100.0.0/18")
        notes = bench.supervisor.planner.notes
        assert len([note for note in notes if "routed by another program (route" in note]) == len(others)

    lived(story)


def test_a_planned_route_that_another_program_replaced_is_repaired() -> None:
    """The route was planned first, so its replacement is damage and not an obstacle."""

    async def story(bench: HostBench) -> None:
        await put(bench, GOOD)
        bench.interfaces.route(STATIC)
        await bench.clock.advance(20)
        assert not any("another program" in note for note in bench.supervisor.planner.notes)
        assert STATIC.key in (bench.supervisor.planner.plan or ()).by_key

    lived(story)
