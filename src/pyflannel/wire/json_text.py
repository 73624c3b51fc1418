"""JSON text, read and written as the original does it (Go, encoding/json)."""

import json
import math
import re
from collections.abc import Iterator

_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TO_ESCAPE = re.compile("[<>&\u2028\u2029]")


def fold(key: str) -> str:
    """Return the form of a key in which all its spellings are equal: case does not matter.

    The names of our keys are ASCII. Under Unicode simple folding two other characters match letters of
    theirs: U+017F (long s) matches s, U+212A (the Kelvin sign) matches k.
    """
    return key.replace("\u017f", "s").lower()


def escape(document: str) -> str:
    """Return a JSON document with <, >, & and the line separators escaped; they can stand in strings only."""
    return _TO_ESCAPE.sub(lambda found: _ESCAPES[found.group()], document)


def decode(text: str) -> object:
    """Return the document that the text is. Of a key that comes twice, the last place and value remain.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number that is too large.
    """
    try:
        document = json.loads(
            text, object_pairs_hook=_last_of_each, parse_float=_finite, parse_constant=_finite
        )
        # JSON can spell half of a surrogate pair, which no output can carry; the original reads U+FFFD.
        return json.loads(_LONE_SURROGATE.sub("\ufffd", json.dumps(document, ensure_ascii=False)))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def members(text: str) -> Iterator[tuple[str, str]]:
    """Yield each member of the object that the text is: its key, and its value as it stands in the text.

    The text must be one that `decode` takes for an object.
    """
    decoder = json.JSONDecoder()
    at = _skip(text, _skip(text, 0) + len("{"))
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + len(":"))
        _, at = decoder.raw_decode(text, start)
        yield key, text[start:at]
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + len(","))


def _skip(text: str, at: int) -> int:
    """Return where the white space that begins at `at` ends."""
    found = _WHITE_SPACE.match(text, at)
    return found.end() if found else at


def _last_of_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    last: dict[str, object] = {}
    for key, value in pairs:
        # Put back at the end: among spellings of one key, too, the last in order is the last written.
        last.pop(key, None)
        last[key] = value
    return last


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number
