"""Events of the Node: the reason why flanneld is not ready."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from doubles.fake_clock import FakeClock
from pyflannel.engine.node_events import (
    FIRST_LOOK_S,
    LOOK_S,
    MOST_EVENTS,
    PATIENCE_S,
    RETRY_S,
    WINDOW_S,
    NodeEvents,
    PolicyWarning,
)
from pyflannel.errors import StoreError
from pyflannel.model.kubernetes_node import NodeEvent


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.created: list[NodeEvent] = []
        self.refusals = 0
        self.passed_on: list[str] = []
        self.events = NodeEvents(self.announce, self.clock)
        self.notify = self.events.notifier(self.passed_on.append)

    async def announce(self, event: NodeEvent) -> None:
        if self.refusals:
            self.refusals -= 1
            raise StoreError("forbidden", hint="Grant it.")
        self.created.append(event)

    @property
    def messages(self) -> list[str]:
        return [event.message for event in self.created]


@pytest.fixture
def on_bench() -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
    def run(check: Callable[[Bench], Awaitable[None]]) -> None:
        async def live() -> None:
            bench = Bench()
            async with bench.clock.running(bench.events.run()):
                await check(bench)

        asyncio.run(live())

    return run


def test_a_reason_that_lasts_and_its_end_cause_events(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        bench.notify("STATUS=waiting for a lease: there is no Node n1")
        await bench.clock.advance(PATIENCE_S)
        assert bench.messages == ["flanneld is waiting for a lease: there is no Node n1"]
        assert (bench.created[0].is_warning, bench.created[0].reason) == (True, "FlannelNotReady")
        bench.notify("READY=1")
        bench.notify("STATUS=lease 10.244.1.0/24, 0 peers")
        await bench.clock.settle()
        assert (bench.created[1].is_warning, bench.created[1].reason) == (False, "FlannelIsUp")
        assert bench.passed_on[1] == "READY=1"

    on_bench(check)


def test_a_start_and_a_short_failure_cause_no_events(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        bench.notify("STATUS=waiting for a lease")
        await bench.clock.advance(PATIENCE_S / 2)
        bench.notify("STATUS=lease 10.244.1.0/24, 0 peers")
        await bench.clock.advance(PATIENCE_S)
        assert bench.created == []

    on_bench(check)


def test_a_refused_event_is_created_later(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        bench.refusals = 1
        bench.notify("STATUS=waiting for the network config")
        await bench.clock.advance(PATIENCE_S)
        assert bench.created == []
        await bench.clock.advance(RETRY_S)
        await bench.clock.advance(PATIENCE_S)
        assert bench.messages == ["flanneld is waiting for the network config"]

    on_bench(check)


def test_a_reason_that_keeps_changing_creates_few_events(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        for number in range(3 * MOST_EVENTS):
            bench.notify(f"STATUS=waiting for {number}")
            await bench.clock.advance(PATIENCE_S)
        assert len(bench.created) == MOST_EVENTS
        await bench.clock.advance(WINDOW_S)
        assert bench.messages[-1] == f"flanneld is waiting for {3 * MOST_EVENTS - 1}"

    on_bench(check)


def test_network_policies_that_no_program_enforces_are_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state: dict[str, Any] = {"exist": False, "enforcer": None, "forbidden": False}
    created: list[NodeEvent] = []
    clock = FakeClock()

    async def exist() -> bool:
        if state["forbidden"]:
            raise StoreError("networkpolicies is forbidden", hint="Grant it.")
        exists: bool = state["exist"]
        return exists

    async def enforcer() -> str | None:
        name: str | None = state["enforcer"]
        return name

    async def announce(event: NodeEvent) -> None:
        created.append(event)

    async def live() -> None:
        async with clock.running(PolicyWarning(exist, enforcer, announce, clock).run()):
            await clock.advance(FIRST_LOOK_S)
            assert not created
            state["exist"] = True
            await clock.advance(2 * LOOK_S)
            assert [event.reason for event in created] == ["NetworkPolicyNotEnforced"]
            assert "no known program enforces them" in caplog.text
            state["enforcer"] = "kube-network-policies"
            await clock.advance(LOOK_S)
            state["enforcer"] = None
            await clock.advance(LOOK_S)
            assert len(created) == 2
            state["forbidden"] = True
            await clock.advance(2 * LOOK_S)
            assert caplog.text.count("networkpolicies is forbidden") == 1

    asyncio.run(live())
