"""The time of each parser grows in proportion to the length of its input, not with a higher power."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from doubles.hostile_inputs import Parser, seeds_of
from fuzz.parsers import SUBJECTS, parsers_of

PARSERS = [parser for subject in SUBJECTS for parser in parsers_of(subject)]
DRAWN, SEEDS = 20, 12
SHORT, FACTOR = 1 << 14, 4
MOST = 8.0
"""Maximum ratio of the times of a long input and a short input: 4 is proportional, 16 is quadratic."""

NEGLIGIBLE_S = 0.03
ATTEMPTS = 20
_PIECES = (1, 2, 5, 9, 24, 80)


def stretched(seed: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield forms of an input: its start, a piece to repeat, and its end."""
    empty = seed[:0]
    yield empty, seed, empty
    for number, size in enumerate(_PIECES):
        at = len(seed) * (number + 1) // (len(_PIECES) + 1)
        piece = seed[at : at + size]
        yield seed[:at], piece, seed[at + len(piece) :]


def duration_s(parser: Parser, given: Any) -> float:
    """Return the processor time of one input."""
    start = time.process_time()
    with suppress(*parser.errors):
        parser.parse(given)
    return time.process_time() - start


def grows_too_fast(parser: Parser, short: Any, long: Any) -> bool:
    """Return whether a long input takes too long. A loaded machine may delay some attempts."""
    short_s = long_s = float("inf")
    for _ in range(ATTEMPTS):
        short_s, long_s = min(short_s, duration_s(parser, short)), min(long_s, duration_s(parser, long))
        if long_s < max(NEGLIGIBLE_S, MOST * short_s):
            return False
    return True


@pytest.mark.timeout(600)
@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_the_time_is_proportional_to_the_length(parser: Parser) -> None:
    seeds = [seed for seed in seeds_of(parser, DRAWN) if 0 < len(seed) < SHORT // FACTOR]

    slow = [
        (start, piece, end)
        for seed in seeds[:: max(1, len(seeds) // SEEDS)]
        for start, piece, end in stretched(seed)
        if piece
        and grows_too_fast(
            parser,
            start + piece * (SHORT // len(piece)) + end,
            start + piece * (SHORT * FACTOR // len(piece)) + end,
        )
    ]

    assert slow == []
