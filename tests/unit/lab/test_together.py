"""Concurrent calls."""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pyflannel.lab.waiting import together


def test_results_are_ordered_and_a_single_failure_is_raised_unchanged() -> None:
    assert together([lambda: "first", lambda: "second"]) == ["first", "second"]
    assert together([]) == []
    with pytest.raises(ZeroDivisionError):
        together([lambda: 1, lambda: 1 // 0])


@pytest.fixture
def _hearing() -> Iterator[None]:
    """Background jobs of a shell ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_hearing")
def test_an_interrupt_just_before_the_wait_is_handled() -> None:
    """The signal interrupts no system call, and the running call continues."""
    is_over, heard = threading.Event(), []

    def interrupt_and_go_on() -> None:
        main = threading.main_thread().ident
        while sys._current_frames()[main or 0].f_code.co_name != "wait":
            time.sleep(0.001)
        time.sleep(0.05)  # long enough for the wait to begin; otherwise the signal is handled earlier
        _thread.interrupt_main()
        heard.append(is_over.wait(30))

    with pytest.raises(KeyboardInterrupt):
        together([interrupt_and_go_on])

    assert heard == []
    is_over.set()
