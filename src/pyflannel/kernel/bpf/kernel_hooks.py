"""The hooks that this kernel has: tcx, or else a clsact qdisc."""

from collections.abc import Callable

from pyflannel.kernel.bpf.clsact import ClsactHooks
from pyflannel.kernel.bpf.hooks import Hooks
from pyflannel.kernel.bpf.objects import KernelObjects
from pyflannel.kernel.bpf.tcx import TcxHooks, ask_tcx
from pyflannel.model.bpf_program import Direction
from pyflannel.model.feature import Answer


class KernelHooks:
    """Hooks of whichever sort there is, found out when they are first asked for.

    Every method raises:
        OSError: the kernel refused; ENOSYS where it has no bpf(2), EPERM without the right to ask.
        TargetError: it did not answer.
    """

    def __init__(
        self, objects: KernelObjects, ask: Callable[[], tuple[Answer, OSError | None]] = ask_tcx
    ) -> None:
        self._objects = objects
        self._ask = ask
        self._chosen: Hooks | None = None

    def close(self) -> None:
        """Let go of what was opened; programs stay."""
        if self._chosen is not None:
            self._chosen.close()

    async def programs(self, link: int, direction: Direction) -> tuple[int, ...]:
        """Return the identifiers of the programs, in the order in which they see packets."""
        return await (await self._hooks()).programs(link, direction)

    async def attach(self, link: int, direction: Direction, program: int) -> None:
        """Put a program, given by descriptor, where there are perhaps others."""
        await (await self._hooks()).attach(link, direction, program)

    async def replace(self, link: int, direction: Direction, old: int, program: int) -> None:
        """Put a program, given by descriptor, into the place of that with the identifier `old`, at once."""
        await (await self._hooks()).replace(link, direction, old, program)

    async def detach(self, link: int, direction: Direction, old: int) -> None:
        """Take the program with the identifier `old` away."""
        await (await self._hooks()).detach(link, direction, old)

    async def _hooks(self) -> Hooks:
        if self._chosen is None:
            answer, error = self._ask()
            if answer == "unknown" and error is not None:
                raise error
            self._chosen = ClsactHooks() if answer == "absent" else TcxHooks(self._objects)
        return self._chosen
