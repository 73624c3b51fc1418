"""Fuzz one parser by atheris: `python tests/fuzz/guided.py NAME [options of libFuzzer]`.

Hypothesis converts the bytes of atheris to inputs of the parser's kind.
"""

import sys

import atheris
from hypothesis import given, settings

with atheris.instrument_imports(include=["pyflannel"]):
    from doubles.hostile_inputs import attempt
    from fuzz.parsers import SUBJECTS, parsers_of

PARSERS = {parser.name: parser for subject in SUBJECTS for parser in parsers_of(subject)}


def fuzz(name: str, options: list[str]) -> None:
    """Run until an option or a failure ends the process."""
    parser = PARSERS[name]

    @settings(database=None)
    @given(parser.inputs)
    def law(one: object) -> None:
        attempt(parser, one)

    atheris.Setup([sys.argv[0], *options], law.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], sys.argv[2:])
