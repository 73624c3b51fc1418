"""flannelctl events: the times of --since, and the new events of --follow."""

import re
from datetime import datetime

import pytest

from pyflannel.cli.events import begin_of, later
from pyflannel.errors import UsageError
from pyflannel.model.status import JournalEntry

NOW = 1_900_000_000.0
ONE, TWO = (JournalEntry(at=float(at), event="repaired", found="route") for at in (1, 2))
FOUR = JournalEntry(at=2.0, event="planned", found="link")


@pytest.mark.parametrize(
    ("text", "ago_s"), [("30s", 30), ("10min", 600), (" 2h ", 7200), ("1 d", 86400), ("0s", 0)]
)
def test_a_duration_is_counted_from_now(text: str, ago_s: int) -> None:
    assert begin_of(text, NOW) == NOW - ago_s


def test_a_time_is_local_unless_it_names_a_zone() -> None:
    assert begin_of("2026-11-30T19:00:00+00:00", NOW) == 1_796_065_200.0
    assert begin_of("2026-11-30T19:00", NOW) == datetime(2026, 11, 30, 19).astimezone().timestamp()


@pytest.mark.parametrize("text", ["", "yesterday", "10", "10 weeks", "-5s", "99999-01-01"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--since {text!r} is neither a duration nor a time")):
        begin_of(text, NOW)


def test_new_events_are_the_events_after_the_last_printed_event() -> None:
    assert later([], [ONE, TWO]) == [ONE, TWO]
    assert later([ONE, TWO], [ONE, TWO]) == []
    assert later([ONE, TWO], [TWO, FOUR]) == [FOUR]


def test_after_a_restart_of_flanneld_all_events_are_new() -> None:
    assert later([ONE, TWO], [FOUR]) == [FOUR]
    assert later([ONE], []) == []
