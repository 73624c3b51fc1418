"""Log lines have klog's form."""

from datetime import datetime

import pytest

from pyflannel.assembly.logs import Letter, format_klog

WHEN = datetime(2016, 10, 12, 8, 50, 54, 409928)  # noqa: DTZ001 - klog's time is local and names no zone


@pytest.mark.parametrize(
    ("letter", "when", "process", "line"),
    [
        ("I", WHEN, 25161, "I1012 08:50:54.409928   25161 daemon.py:126] Installing signal handlers"),
        ("W", WHEN, 1, "W1012 08:50:54.409928       1 daemon.py:126] Installing signal handlers"),
        ("E", WHEN, 4194304, "E1012 08:50:54.409928 4194304 daemon.py:126] Installing signal handlers"),
        (
            "F",
            WHEN.replace(month=1, day=2, microsecond=7),
            25161,
            "F0102 08:50:54.000007   25161 daemon.py:126] Installing signal handlers",
        ),
    ],
)
def test_a_line_has_letter_time_process_and_source(
    letter: Letter, when: datetime, process: int, line: str
) -> None:
    assert format_klog(letter, when, process, "daemon.py", 126, "Installing signal handlers") == line
