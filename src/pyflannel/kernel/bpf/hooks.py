"""The places of a link at which programs can stand, whichever sort the kernel has."""

from typing import Protocol

from pyflannel.model.bpf_program import Direction


class Hooks(Protocol):
    """Hooks of links, by the links' indexes; a program that was attached stays when this process ends."""

    def close(self) -> None:
        """Let go of what was opened; programs stay."""

    async def programs(self, link: int, direction: Direction) -> tuple[int, ...]:
        """Return the identifiers of the programs, in the order in which they see packets.

        Raises:
            OSError: ENODEV, there is no such link.
        """

    async def attach(self, link: int, direction: Direction, program: int) -> None:
        """Put a program, given by descriptor, behind the others.

        Raises:
            OSError: the kernel refused.
        """

    async def replace(self, link: int, direction: Direction, old: int, program: int) -> None:
        """Put a program, given by descriptor, into the place of that with the identifier `old`, at once.

        Raises:
            OSError: the kernel refused, or the old one is not there any more.
        """

    async def detach(self, link: int, direction: Direction, old: int) -> None:
        """Take the program with the identifier `old` away.

        Raises:
            OSError: ENOENT, it is not there any more.
        """
