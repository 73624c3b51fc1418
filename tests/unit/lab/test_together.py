"""Several things at the same time."""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pyflannel.lab.waiting import together


def test_results_come_in_order_and_the_one_failure_as_it_was() -> None:
    assert together([lambda: "first", lambda: "second"]) == ["first", "second"]
    assert together([]) == []
    with pytest.raises(ZeroDivisionError):
        together([lambda: 1, lambda: 1 // 0])


@pytest.fixture
def _hearing() -> Iterator[None]:
    """Whoever runs the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_hearing")
def test_an_interrupt_that_comes_just_before_the_wait_is_heard() -> None:
    """No system call is broken off by it; the call under way is left to itself."""
    is_over, heard = threading.Event(), []

    def interrupt_and_go_on() -> None:
        main = threading.main_thread().ident
        while sys._current_frames()[main or 0].f_code.co_name != "wait":
            time.sleep(0.001)
        time.sleep(0.05)  # in which it has begun to wait; if it has not, it hears all the sooner
        _thread.interrupt_main()
        heard.append(is_over.wait(30))

    with pytest.raises(KeyboardInterrupt):
        together([interrupt_and_go_on])

    assert heard == []
    is_over.set()
