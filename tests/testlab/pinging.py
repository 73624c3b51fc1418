"""A stream of pings during a change, and the number of lost pings."""

import itertools
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host
from pyflannel.lab.traffic import Station
from pyflannel.lab.waiting import wait_until

_ANSWER_DEADLINE_S = 60.0
_numbers = itertools.count(1)


class Pings:
    """A stream of 100 pings per second.

    Attributes:
        lost: number of unanswered pings between the first and the last answer, set at the end of the block.
    """

    def __init__(self, program: Program) -> None:
        self.lost = 0
        self._program = program

    @property
    def answered(self) -> list[int]:
        """The sequence numbers of the answered pings so far."""
        assert self._program.log is not None
        lines = re.findall(r"bytes from .* icmp_seq=(\d+) ", self._program.log.read_text())
        return [int(number) for number in lines]

    def wait_answered(self, more: int = 1) -> None:
        """Wait for this number of further answers."""
        goal = len(self.answered) + more
        wait_until(lambda: len(self.answered) >= goal, what="answered pings", deadline_s=_ANSWER_DEADLINE_S)


@contextmanager
def pinging(source: Station, address: str) -> Iterator[Pings]:
    """Ping an address for the duration of a block."""
    program = source.start_in_network(["ping", "-n", "-i", "0.01", address], name=f"ping-{next(_numbers)}")
    pings = Pings(program)
    pings.wait_answered()
    yield pings
    pings.wait_answered(more=5)
    program.send(signal.SIGINT)
    program.wait()
    answered = pings.answered
    pings.lost = max(answered) - min(answered) + 1 - len(set(answered))


def wait_each_reaches(
    hosts: Sequence[Host], reaches: Callable[[Host, Host], bool], deadline_s: float
) -> None:
    """Wait until each of the hosts reaches each of the other hosts."""
    for host, other in itertools.permutations(hosts, 2):
        wait_until(
            partial(reaches, host, other), what=f"{host.name} reaches {other.name}", deadline_s=deadline_s
        )
