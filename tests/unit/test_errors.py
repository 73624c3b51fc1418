"""How an error is shown: its message and its hint, as sentences."""

import pytest

from pyflannel.errors import TargetError, sentences


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("no route to 10.0.0.1", "no route to 10.0.0.1. Add one."),
        ("is 10.0.0.1 a copy of this host?", "is 10.0.0.1 a copy of this host? Add one."),
        ("Device or resource busy.", "Device or resource busy. Add one."),
        ("it goes on …", "it goes on … Add one."),
        ("nft: syntax error!\n", "nft: syntax error! Add one."),
        ("nft: syntax error\n", "nft: syntax error. Add one."),
    ],
)
def test_message_and_hint_are_joined_by_one_mark(message: str, shown: str) -> None:
    """A message may quote another program, whose text ends as it likes."""
    assert sentences(message, "Add one.") == shown
    assert TargetError(message, hint="Add one.").in_full == shown


def test_without_a_hint_the_message_stays_as_it_is() -> None:
    assert sentences("is it a copy?", "") == "is it a copy?"
    assert sentences("no route", "") == "no route"
