"""The journal: one entry per object, with room for entries before a large pass."""

import asyncio
from ipaddress import IPv4Network

from doubles.fake_clock import FakeClock
from pyflannel.engine.batch_report import NAMED_AT_ONCE, ROOM, Journal
from pyflannel.model.route import Route
from pyflannel.model.state import Add, Remove
from pyflannel.model.status import JournalEntry


def route(number: int) -> Route:
    return Route(destination=IPv4Network((0x0A640000 + (number << 4), 28)), link="eth0")


def test_an_entry_contains_the_time_the_object_and_the_cause() -> None:
    async def check() -> None:
        clock = FakeClock()
        journal = Journal(clock)

        journal.note("repaired", [Add(route(1)), Remove(route(2))])
        journal.note("refused", [Add(route(3))], "no such link")

        assert journal.entries() == [
            JournalEntry(at=clock.utc(), event="repaired", found="route 10.100.0.16/28: missing"),
            JournalEntry(at=clock.utc(), event="repaired", found="route 10.100.0.32/28: not wanted"),
            JournalEntry(
                at=clock.utc(), event="refused", found="route 10.100.0.48/28: missing: no such link"
            ),
        ]

    asyncio.run(check())


def test_a_large_pass_leaves_room_for_older_entries() -> None:
    journal = Journal(FakeClock())
    journal.note("repaired", [Add(route(0))])

    journal.note("planned", [Add(route(number)) for number in range(3000)])

    entries = journal.entries()
    assert entries[0].event == "repaired"
    assert len(entries) == NAMED_AT_ONCE + 2
    assert entries[-1].found == f"and {3000 - NAMED_AT_ONCE} more"


def test_the_oldest_entries_are_removed_first() -> None:
    journal = Journal(FakeClock())

    for number in range(ROOM + 5):
        journal.note("planned", [Add(route(number))])

    entries = journal.entries()
    assert len(entries) == ROOM
    assert entries[0].found.startswith(f"route {route(5).destination}")
