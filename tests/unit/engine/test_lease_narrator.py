"""What the log and the status say of the store, from what the lease protocol reports."""

import pytest

from pyflannel.engine.lease_narrator import LeaseNarrator
from pyflannel.model.lease_protocol import StoreAway, StoreBack
from pyflannel.testing.fake_clock import FakeClock


def test_a_store_that_is_away_is_logged_once_and_its_last_cause_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first try may say no more than that the connection was lost; why it stays so comes later."""
    narrator = LeaseNarrator(FakeClock(), lambda _: None)

    narrator.tell(StoreAway("the connection was lost", 0.1))
    narrator.tell(StoreAway("our certificate expired", 0.2))

    assert narrator.store_error == "our certificate expired"
    assert [record.getMessage() for record in caplog.records] == [
        "Store is away, trying again in 0.1 s, the data path stays: the connection was lost"
    ]


def test_a_store_that_came_back_is_logged_again_when_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    narrator = LeaseNarrator(FakeClock(), lambda _: None)

    narrator.tell(StoreAway("one", 0.1))
    narrator.tell(StoreBack())
    is_away_between = narrator.is_store_away
    narrator.tell(StoreAway("two", 0.1))

    assert not is_away_between
    assert narrator.is_store_away
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
