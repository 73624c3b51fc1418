"""Log lines in klog's form: `I1012 08:50:54.409928   25161 daemon.py:126] message`.

Source: flannel 0.28.9, whose lines are klog's: letter, month and day, time, process id in 7 columns.
"""

from datetime import datetime
from typing import Literal

Letter = Literal["I", "W", "E", "F"]
"""Info, warning, error, fatal: the severities that klog knows."""


def format_klog(letter: Letter, when: datetime, process: int, file: str, line: int, message: str) -> str:
    """Return one log line, without a newline at its end; `when` is local time, as klog's is."""
    return f"{letter}{when:%m%d %H:%M:%S.%f} {process:7d} {file}:{line}] {message}"
