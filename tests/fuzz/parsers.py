"""The parsers of the property tests, and their inputs as files for the fuzzer."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from doubles.hostile_inputs import Parser

SUBJECTS = ("store", "netlink", "packet", "host", "system")

LARGEST = 4096
"""Length of the inputs, in bytes. `test_time_of_long_inputs.py` tests longer inputs."""

INPUTS, TOKENS = "inputs", "tokens"
"""Names of the files in the directory of a parser."""

_TOKENS = 500
_NUMBERS = b"0 -1 1 7 255 256 65535 65536 2147483648 4294967295 18446744073709551616 1e999".split()
_INTEGERS = [
    b"\0\0",
    b"\0\1",
    b"\1\0",
    b"\xff\xff",
    b"\0\0\0\1",
    b"\1\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
]


def parsers_of(subject: str) -> list[Parser]:
    """Return the parsers of one file of tests."""
    found: list[Parser] = import_module(f"property.test_{subject}_parsers").PARSERS
    return found


def parser_of(name: str) -> Parser:
    """Return the parser of this name."""
    return next(parser for subject in SUBJECTS for parser in parsers_of(subject) if parser.name == name)


def write_seeds(seeds: Sequence[Any], directory: Path) -> None:
    """Write the inputs that are not too long, one file each, and their tokens."""
    (directory / INPUTS).mkdir()
    for number, data in enumerate(dict.fromkeys(map(bytes_of, seeds))):
        if len(data) <= LARGEST:
            (directory / INPUTS / f"seed-{number:04}").write_bytes(data)
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in tokens_of(seeds)]
    (directory / TOKENS).write_text("".join(lines))


def bytes_of(seed: Any) -> bytes:
    """Return an input as bytes."""
    return seed if isinstance(seed, bytes) else seed.encode("utf-8", "surrogatepass")


def text_of(data: bytes) -> str:
    """Return the text of any bytes."""
    return data.decode("utf-8", "surrogateescape")


def tokens_of(seeds: Sequence[Any]) -> list[bytes]:
    """Return boundary numbers, and the most frequent parts of the inputs: words, or fields of four bytes."""
    found: Counter[bytes] = Counter()
    for data in (bytes_of(seed)[:LARGEST] for seed in seeds):
        if data.isascii() and b"\0" not in data:
            found.update(set(re.findall(rb"[\w./+-]{2,40}|[^\w\s]{1,3}|\s{1,2}", data)))
        else:
            found.update({data[at : at + 4] for at in range(0, len(data), 4)})
    return list(dict.fromkeys([*_NUMBERS, *_INTEGERS, *(token for token, _ in found.most_common(_TOKENS))]))


def mutant(corpus: Sequence[bytes], tokens: Sequence[bytes], rand: Callable[[], float]) -> bytes:
    """Return an input of the corpus with one to four changes, in some microseconds."""
    data = corpus[int(rand() * len(corpus))]
    for _ in range(1 + int(rand() * rand() * 4)):
        at = int(rand() * (len(data) + 1))
        match int(rand() * 8):
            case 0:  # flip a bit
                changed = data[at : at + 1] or b"\0"
                data = data[:at] + bytes([changed[0] ^ 1 << int(rand() * 8)]) + data[at + 1 :]
            case 1:  # overwrite a byte
                data = data[:at] + bytes([int(rand() * 256)]) + data[at + 1 :]
            case 2:  # insert a token
                data = data[:at] + tokens[int(rand() * len(tokens))] + data[at:]
            case 3:  # overwrite with a token
                token = tokens[int(rand() * len(tokens))]
                data = data[:at] + token + data[at + len(token) :]
            case 4:  # omit a part
                data = data[:at] + data[at + 1 + int(rand() * 16) :]
            case 5:  # repeat a part
                data = data[:at] + data[at : at + 1 + int(rand() * 32)] * int(rand() * 20) + data[at:]
            case 6:  # splice two inputs
                other = corpus[int(rand() * len(corpus))]
                data = data[:at] + other[int(rand() * (len(other) + 1)) :]
            case _:  # end early
                data = data[:at]
    return data[:LARGEST]
