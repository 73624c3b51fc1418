"""The containers of a host that do not answer its requests."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Network

import pytest
from msgspec.structs import replace

from pyflannel.commands import observed_containers
from pyflannel.kernel.filters.ruleset import ReadRules
from pyflannel.model.host import IpsecPolicy
from pyflannel.model.probe import Echo, EchoResult
from pyflannel.plan.doctor.observed import ContainerLink, ContainerNamespace

OWN = IPv4Network("10.100.15.0/24")
EVERY = IPv4Network("0.0.0.0/0")
POLICY = IpsecPolicy(direction="out", is_block=True, source=EVERY, destination=EVERY, priority=0)


def test_every_silent_container_is_named_and_some_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []
    filtered = {6, 8, 20}

    @contextmanager
    def programs_in_namespace_of(pid: int) -> Iterator[None]:
        entered.append(pid)
        yield

    async def send(echoes: Sequence[Echo], *, deadline_s: float) -> list[EchoResult]:
        return [EchoResult(state="silent" if int(echo.destination) % 2 else "reached") for echo in echoes]

    async def policies_in(pid: int) -> tuple[IpsecPolicy, ...]:
        return (POLICY,)

    async def has_filters(pid: int) -> bool:
        return pid in filtered

    async def read_ruleset(families: Sequence[int]) -> ReadRules:
        assert families == [4]
        return ReadRules(())

    monkeypatch.setattr(observed_containers, "send_echoes", send)
    for replacement in (policies_in, has_filters, read_ruleset, programs_in_namespace_of):
        monkeypatch.setattr(observed_containers, replacement.__name__, replacement)
    containers = tuple(
        ContainerNamespace(
            pid=number,
            process=f"nginx, pid {number}",
            addresses=frozenset({OWN[number]}),
            links=(ContainerLink(name="eth0", mtu=1450),),
        )
        for number in range(2, 22)
    )

    found = asyncio.run(observed_containers.with_answers(containers, OWN))

    assert {one.pid for one in found if one.silent} == set(range(3, 22, 2))
    assert all(one.silent <= one.addresses for one in found)
    ruled = asyncio.run(observed_containers.with_rules(found))
    assert entered == [3, 5, 7, 9]
    assert all(one.policies == (POLICY,) for one in ruled)
    entered.clear()
    asyncio.run(observed_containers.with_rules(tuple(replace(one, silent=frozenset()) for one in found)))
    assert entered == [6, 8, 20]
