"""Programs of the host that are run for their answer: iptables, nft."""

import asyncio
import os
from dataclasses import dataclass

from pyflannel.errors import TargetError

_DEADLINE_S = 10.0


class MissingProgramError(TargetError):
    """The program is not installed."""

    def __init__(self, program: str, *, hint: str = "Install it, or put it on the PATH.") -> None:
        super().__init__(f"{program} is not installed", hint=hint)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended, and what it printed."""

    status: int
    output: str
    complaint: str

    @property
    def cause(self) -> str:
        """What it said of its failure, in one line."""
        lines = [line.strip() for line in self.complaint.splitlines()]
        said = [line for line in lines if line and not line.startswith("#")]
        return said[0] if said else f"exit status {self.status}"


async def run_program(*words: str, given: str = "") -> Ran:
    """Run a program with `given` as its input, to its end; cancelled or too slow, it is killed.

    Raises:
        MissingProgramError: it is not installed.
        TargetError: it cannot be started, or did not end within its deadline.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},  # we look for words in what it says
        )
    except FileNotFoundError as error:
        raise MissingProgramError(words[0]) from error
    except OSError as error:
        raise TargetError(
            f"{words[0]} cannot be started: {error.strerror}", hint="Look at the file, and who may run it."
        ) from error
    try:
        async with asyncio.timeout(_DEADLINE_S):
            output, complaint = await process.communicate(given.encode(errors="surrogateescape"))
    except TimeoutError as error:
        raise TargetError(
            f"{words[0]} did not end within {_DEADLINE_S:.0f} s", hint="See what it waits for: ps, dmesg."
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ran(process.returncode or 0, _text(output), _text(complaint))


def _text(octets: bytes) -> str:
    return octets.decode(errors="surrogateescape")
