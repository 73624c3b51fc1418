"""The witness for stalls of the machine, and silences of a stream of pings."""

import os
import signal
import time

import pytest

from pyflannel.lab.waiting import wait_until
from testlab.overlay import Answer, longest_silence_s
from testlab.stalls import LEAST_S, Stall, StallWitness, overlap_s


def silence_s(answers: list[Answer], stalls: list[Stall]) -> float:
    return longest_silence_s(answers, lambda start, end: overlap_s(stalls, start, end))


LOST = [Answer(at, number, at) for at, number in ((100.0, 1), (100.1, 2), (142.2, 40_000), (142.3, 40_001))]


def test_a_silence_during_a_stall_of_the_machine_does_not_count() -> None:
    assert silence_s(LOST, [Stall(100.2, 142.1)]) == pytest.approx(0.2)


@pytest.mark.parametrize("stalls", [[], [Stall(50.0, 99.0)], [Stall(150.0, 190.0)]])
def test_a_silence_without_a_stall_counts(stalls: list[Stall]) -> None:
    assert silence_s(LOST, stalls) == pytest.approx(42.1)


def test_a_longer_silence_than_the_stall_counts() -> None:
    assert silence_s(LOST, [Stall(100.2, 130.2)]) == pytest.approx(12.1)


def test_the_witness_reports_the_time_for_which_it_did_not_run() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: real-time priority")
    with StallWitness() as witness:
        os.kill(witness.pid, signal.SIGSTOP)
        stopped = time.time()
        wait_until(lambda: time.time() > stopped + LEAST_S + 0.1, what="a long stall", deadline_s=5)
        os.kill(witness.pid, signal.SIGCONT)

    assert LEAST_S < witness.longest_s < 5
    assert witness.stalled_s(stopped, time.time()) >= LEAST_S
