"""The stored results of the examination of eBPF programs."""

import asyncio

import pytest

from pyflannel.kernel.bpf import standing
from pyflannel.kernel.bpf.objects import KernelObjects
from pyflannel.kernel.bpf.standing import StandingPrograms
from pyflannel.model.fast_path import Direction


class Hooks:
    """Hooks of one link, to which programs are attached and from which they are detached."""

    def __init__(self) -> None:
        self.identifiers: tuple[int, ...] = ()

    def close(self) -> None:
        raise NotImplementedError

    async def programs(self, link: int, direction: Direction) -> tuple[int, ...]:
        return self.identifiers if direction is Direction.INGRESS else ()

    async def attach(self, link: int, direction: Direction, program: int) -> None:
        raise NotImplementedError

    async def replace(self, link: int, direction: Direction, old: int, program: int) -> None:
        raise NotImplementedError

    async def detach(self, link: int, direction: Direction, old: int) -> None:
        raise NotImplementedError


def test_a_program_is_examined_once_and_forgotten_after_its_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    """If results were never deleted, a daemon would keep a result for each program that other programs ever
    attached and removed.
    """
    read: list[int] = []
    monkeypatch.setattr(standing, "_read_program", lambda _, identifier: read.append(identifier))
    hooks = Hooks()
    programs = StandingPrograms(hooks, KernelObjects())

    async def live() -> None:
        for identifiers in ((1,), (1, 2), (2,), (1, 2)):
            hooks.identifiers = identifiers
            await programs.look([7])
            await programs.find([])  # which does not contain programs at other links

    asyncio.run(live())

    assert read == [1, 2, 1]
