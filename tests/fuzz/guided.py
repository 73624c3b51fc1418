"""Fuzz parsers by atheris: each line of standard input is a request, each line of output an exit status.

A request is `[NAME, TEXT, DIRECTORY, INPUTS, SECONDS]` in JSON; TEXT is true if the parser expects text.
libFuzzer changes the inputs in DIRECTORY/inputs at random, with the tokens in DIRECTORY/tokens and with
values that the code compares, and adds each input that reaches a new branch. The fuzzer stops after INPUTS
inputs or SECONDS seconds. The output of the fuzzer is in DIRECTORY/log. Each request has a process of its
own, because a run never returns.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pyflannel"]):
    from fuzz.parsers import INPUTS, LARGEST, SUBJECTS, TOKENS, parser_of, parsers_of, text_of

    for subject in SUBJECTS:
        parsers_of(subject)  # the call imports the modules of the parsers

LIMITS = ("-timeout=20", "-rss_limit_mb=1024", "-verbosity=0", "-reload=0", "-print_final_stats=1")


def fuzz(name: str, has_text: bool, directory: Path, inputs: int, seconds: float) -> None:
    """Run until a limit or a failure ends the process."""
    parser = parser_of(name)
    parse, errors = parser.parse, parser.errors

    def one(data: bytes) -> None:
        with suppress(*errors):
            parse(text_of(data) if has_text else data)

    options = [f"-runs={inputs}", f"-max_total_time={seconds:.0f}", f"-max_len={LARGEST}", *LIMITS]
    options += [f"-dict={directory / TOKENS}", f"-artifact_prefix={directory}/"]
    atheris.Setup([sys.argv[0], *options, str(directory / INPUTS)], one)
    atheris.Fuzz()


def main() -> None:
    for line in sys.stdin:
        name, has_text, directory, inputs, seconds = json.loads(line)
        if (child := os.fork()) == 0:
            log = os.open(Path(directory, "log"), os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            fuzz(name, has_text, Path(directory), inputs, seconds)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
