"""The containers of a host that do not answer its requests."""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Network

import pytest

from pyflannel.commands import observed_containers
from pyflannel.model.probe import Echo, EchoResult
from pyflannel.plan.doctor.observed import ContainerNamespace

OWN = IPv4Network("10.100.15.0/24")


def test_every_silent_container_is_named_and_some_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    async def send(echoes: Sequence[Echo], *, deadline_s: float) -> list[EchoResult]:
        return [EchoResult(state="silent" if int(echo.destination) % 2 else "reached") for echo in echoes]

    async def with_rules(container: ContainerNamespace) -> ContainerNamespace:
        read.append(container.pid)
        return container

    monkeypatch.setattr(observed_containers, "send_echoes", send)
    monkeypatch.setattr(observed_containers, "_with_rules", with_rules)
    containers = tuple(
        ContainerNamespace(pid=number, process=f"nginx, pid {number}", addresses=frozenset({OWN[number]}))
        for number in range(2, 22)
    )

    found = asyncio.run(observed_containers.with_answers(containers, OWN))

    assert {one.pid for one in found if one.silent} == set(range(3, 22, 2))
    assert all(one.silent <= one.addresses for one in found)
    assert read == [3, 5, 7, 9]
