"""The rejected senders that the forwarder remembers."""

import pytest

from pyflannel.datapath import forwarding
from pyflannel.datapath.forwarding import REMEMBERED, Drop, Strangers
from pyflannel.wire.forwarder_control import Stranger


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A list of times for the clock of the forwarder. The last entry is the current time."""
    times = [100.0]
    monkeypatch.setattr(forwarding, "monotonic", lambda: times[-1])
    return times


def test_a_sender_has_one_entry_per_reason_with_the_latest_inner_addresses(clock):
    strangers = Strangers()
    strangers.note("10.9.0.3", Drop.IMPOSTOR, 1, 2)
    strangers.note("10.9.0.66", Drop.STRANGER, 3, 4)
    clock.append(101.5)
    strangers.note("10.9.0.3", Drop.NOT_OURS, 5, 6)
    strangers.note("10.9.0.3", Drop.IMPOSTOR, 7, 8)
    clock.append(102.0)

    assert strangers.all() == [
        Stranger(0x0A090042, "stranger", 1, 2000, 3, 4),
        Stranger(0x0A090003, "not_ours", 1, 500, 5, 6),
        Stranger(0x0A090003, "impostor", 2, 500, 7, 8),
    ]


def test_the_least_recent_sender_is_forgotten():
    strangers = Strangers()
    for number in range(REMEMBERED):
        strangers.note(f"10.9.{number >> 8}.{number & 255}", Drop.STRANGER, 1, 2)
    strangers.note("10.9.0.0", Drop.STRANGER, 1, 2)
    strangers.note("10.8.0.1", Drop.STRANGER, 1, 2)

    addresses = [stranger.address for stranger in strangers.all()]
    assert len(addresses) == REMEMBERED
    assert 0x0A090001 not in addresses
    assert addresses[-2:] == [0x0A090000, 0x0A080001]
