"""Hostile inputs for parsers, made by damage to valid inputs, and the test of a parser with these inputs.

A parser is tested with its corpus, which contains known inputs, and with generated inputs. Random bytes alone
would fail the first check of most parsers. Therefore the generated inputs are damaged valid inputs, or have
the right structure with any values. Every input is one text or one sequence of bytes. If a parser has several
arguments, the tested function splits the input into the arguments. Therefore every parser can also be tested
by the coverage-guided fuzzer (tests/fuzz).
"""

import gc
import json
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyflannel.errors import WireError

DRAWN = 40
"""Number of inputs for each parser that hypothesis generates."""

INPUTS = 1000
"""Number of inputs for each parser, including variants of the generated inputs."""

WARM = 200
GROWTH = 20_000
"""Blocks of memory that may remain allocated, because caches fill. The first inputs do not count."""

LONGEST_S = 20.0
"""Maximum processor time in seconds for one input. Usually, an input takes far less than a millisecond."""


class Parser(NamedTuple):
    """A parser of bytes or of text, its inputs, and the errors that it may raise."""

    name: str
    parse: Callable[[Any], object]
    inputs: st.SearchStrategy[Any]
    errors: tuple[type[Exception], ...] = (WireError,)
    corpus: Sequence[Any] = ()


def golden(name: str, field: str) -> list[str]:
    """A field of all cases of a file of golden answers."""
    cases = json.loads((Path(__file__).parents[1] / "golden" / f"{name}.json").read_text())["cases"]
    return [case[field] for case in cases if case.get(field) is not None]


@contextmanager
def deadline() -> Iterator[None]:
    """Fail if a block takes too much processor time. The load of the machine does not count."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError(f"the parser has not ended within {LONGEST_S} s")

    before = signal.signal(signal.SIGPROF, fail)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# Damage: bytes or characters that are overwritten, removed, inserted or repeated.

Edits = list[tuple[str, int, Any]]


def damaged(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(damage, valid, edits(st.binary(min_size=1, max_size=4)))


def damaged_text(valid: st.SearchStrategy[str], special: str) -> st.SearchStrategy[str]:
    return st.builds(damage, valid, edits(st.text(special, min_size=1, max_size=4)))


def edits(new: st.SearchStrategy[Any]) -> st.SearchStrategy[Edits]:
    how = st.sampled_from(["overwrite", "overwrite", "insert", "omit", "end", "repeat"])
    return st.lists(st.tuples(how, st.integers(0, 1 << 16), new), max_size=3)


def damage(text: Any, changes: Edits) -> Any:
    for how, place, new in changes:
        at = place % (len(text) + 1)
        match how:
            case "overwrite":
                text = text[:at] + new + text[at + len(new) :]
            case "insert":
                text = text[:at] + new + text[at:]
            case "omit":
                text = text[:at] + text[at + len(new) :]
            case "end":
                text = text[:at]
            case _:  # repeat
                text = text[:at] + text[at : at + 32] * 20 + text[at:]
    return text


def seeds_of(parser: Parser, drawn: int) -> list[Any]:
    """Return the corpus of a parser and generated inputs. The parser returns or raises one of its errors."""
    seeds: list[Any] = list(parser.corpus)

    @settings(max_examples=drawn, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(parser.inputs)
    def law(given: Any) -> None:
        attempt(parser, given)
        seeds.append(given)

    for one in parser.corpus:
        attempt(parser, one)
    law()
    return seeds


def check(parser: Parser) -> None:
    """Test a parser with its corpus, with generated inputs and with variants of both."""
    seeds = seeds_of(parser, DRAWN)
    chance = random.Random(parser.name)
    before = 0
    for number in range(INPUTS - len(seeds)):
        if number == WARM:
            before = allocated()
        attempt(parser, disturbed(chance.choice(seeds), chance))
    assert allocated() - before < GROWTH


def allocated() -> int:
    """Return the number of memory blocks that the interpreter uses, without garbage."""
    gc.collect()
    return sys.getallocatedblocks()


def attempt(parser: Parser, given: Any) -> None:
    with deadline(), suppress(*parser.errors):
        parser.parse(given)


def disturbed(given: Any, chance: random.Random) -> Any:
    """Return an input with random damage. This function is many times as fast as hypothesis."""
    how = ("overwrite", "overwrite", "insert", "omit", "end", "repeat")
    data = chance.randbytes(chance.randrange(1, 5))
    new = data if isinstance(given, bytes) else data.decode("latin-1")
    places = range(chance.randrange(1, 4))
    return damage(given, [(chance.choice(how), chance.randrange(1 << 16), new) for _ in places])


def joined(parts: Iterable[bytes]) -> bytes:
    """Return several arguments as one input. The length of each argument precedes it."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def separated(data: bytes) -> list[bytes]:
    """Return the parts of an input. The last part ends at the end of the input at the latest."""
    parts, at = [], 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        parts.append(data[at + 2 : end])
        at = end
    return parts


def as_bytes(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return texts.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=40)


# Texts and values of JSON.

characters = st.characters(codec="utf-8")
words = st.text(characters, max_size=8)
deep = st.sampled_from(["[", '{"a":', "[[1,"]).map(lambda opened: opened * 3000)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
