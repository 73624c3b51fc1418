"""The measurement of paths counts replies, and compares each path with the underlay."""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

import pytest

from pyflannel.commands import reach
from pyflannel.commands.reach import BenchName, _Run, _take_turns
from pyflannel.model.probe import SILENT, Echo, EchoResult

TIMES_S = {"10.0.0.1": 0.001, "10.1.0.0": 0.003}


def run_of(name: BenchName, address: str) -> _Run:
    destination = IPv4Address(address)
    return _Run(name, destination, Echo(destination=destination))


def measured(monkeypatch: pytest.MonkeyPatch, *runs: _Run) -> list[list[str]]:
    """Measure paths without sending packets, and return the destinations of each call."""
    calls = []

    async def answer(echoes: Sequence[Echo], **_: Any) -> list[EchoResult]:
        calls.append([str(echo.destination) for echo in echoes])
        times = [TIMES_S.get(str(echo.destination)) for echo in echoes]
        return [SILENT if rtt is None else EchoResult(state="reached", rtt_s=rtt) for rtt in times]

    monkeypatch.setattr(reach, "send_echoes", answer)
    monkeypatch.setattr(reach, "_GAP_S", 0)
    monkeypatch.setattr(reach, "_ROUNDS", 3)
    asyncio.run(_take_turns(runs))
    return calls


def test_the_paths_are_measured_in_turn_and_a_silent_one_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = run_of("underlay", "10.0.0.1"), run_of("tunnel", "10.1.0.0")
    silent = run_of("container", "10.1.0.1")

    calls = measured(monkeypatch, near, far, silent)

    assert calls == [
        ["10.0.0.1", "10.1.0.0", "10.1.0.1"],
        *([one] for one in ("10.0.0.1", "10.1.0.0", "10.1.0.1")),
        *([one] for _ in range(2) for one in ("10.0.0.1", "10.1.0.0")),
    ]
    assert (near.sent, len(near.times), silent.sent, silent.text) == (3, 3, 1, "no answer")


def test_the_ratio_is_that_of_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far, silent = (
        run_of("underlay", "10.0.0.1"),
        run_of("tunnel", "10.1.0.0"),
        run_of("container", "10.1.0.1"),
    )
    measured(monkeypatch, near, far, silent)

    assert [one.line(near.median).ratio for one in (near, far, silent)] == [None, 3.0, None]
    assert far.line(None).ratio is None
