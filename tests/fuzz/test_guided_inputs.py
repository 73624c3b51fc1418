"""Each parser raises only its own errors for any input.

A parser first gets inputs that its branches guide: atheris keeps each input that reaches a new branch. Then
it gets random changes of the kept inputs, without the fuzzer, which would take three to six times as
long. The number of inputs is 10,000, or a million with --long, which all processors share. One line for each
parser states the number of inputs, the seconds, the share of refused inputs, the number of kept inputs, the
growth of the memory, the slowest input, and how many branches of the called functions the kept inputs reach.
"""

import ast
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import coverage
import pytest

import pyflannel
from doubles.hostile_inputs import GROWTH, Parser, allocated, deadline, seeds_of
from fuzz.parsers import INPUTS, SUBJECTS, mutant, parser_of, parsers_of, text_of, tokens_of, write_seeds

TESTS = Path(__file__).parents[1]
SOURCE = Path(pyflannel.__file__).parent
PARSERS = [parser for subject in SUBJECTS for parser in parsers_of(subject)]
DRAWN = 100
"""Number of first inputs that hypothesis generates."""

GUIDED, GUIDED_LONG, GUIDED_MOST_S = 5_000, 50_000, 120
ALL, ALL_LONG = 10_000, 1_000_000
MOST_S = 3 * 3600
"""Deadline of one parser. A slow machine must not reduce the number of inputs."""

MOST_GROWTH_MIB = 20.0
SLOWEST_S = 0.1
"""Processor time of the slowest input, of at most 4,096 bytes."""

_BATCH = 256

LEAST = 0.9
"""Share of the branches of a module that the inputs reach.

Only functions that the parsers call count, because the modules also write the formats. A module of fewer than
ten branches may miss one branch, such as the last case of a complete match.
"""


class Branches(NamedTuple):
    """The branches of the called functions of one module."""

    reached: int
    existing: int
    missed: list[str]


Measured = dict[str, coverage.CoverageData]


@pytest.fixture(scope="module")
def measured() -> Measured:
    """The lines and branches that the inputs of each parser have reached."""
    return {}


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line that is visible regardless of the result of the test."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}", end="", flush=True)

    return line


@pytest.fixture(scope="module")
def guide() -> Iterator[subprocess.Popen[str]]:
    """The fuzzer, which instruments all parsers once."""
    command = [sys.executable, str(TESTS / "fuzz/guided.py")]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}"}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.timeout(MOST_S)
@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_no_input_raises_another_error(
    parser: Parser,
    long_run: bool,
    guide: subprocess.Popen[str],
    tmp_path: Path,
    measured: Measured,
    say: Callable[[str], None],
) -> None:
    began = time.perf_counter()
    seeds = seeds_of(parser, DRAWN)
    convert = text_of if isinstance(seeds[0], str) else bytes
    write_seeds(seeds, tmp_path)
    wanted = GUIDED_LONG if long_run else GUIDED

    status = ask(guide, [parser.name, convert is text_of, str(tmp_path), wanted, GUIDED_MOST_S])

    log = (tmp_path / "log").read_text(errors="replace")
    assert status == 0, log[-6000:]
    guided = int(log.partition("stat::number_of_executed_units:")[2].split()[0])
    kept = [file.read_bytes() for file in sorted((tmp_path / INPUTS).iterdir())]
    share = partial(disturb, parser.name, convert, kept, tokens_of(seeds))
    run = shared(share, ALL_LONG - guided) if long_run else share(ALL - guided)
    seconds = time.perf_counter() - began
    measured[parser.name] = replayed(parser, convert, kept)
    modules = list(branches_of([measured[parser.name]], tmp_path / "coverage.json").values())
    reached, existing = (sum(one[number] for one in modules) for number in (0, 1))
    say(
        f"{parser.name}: {guided + run.inputs:,} inputs in {seconds:.0f} s,"
        f" {run.refused / run.inputs:.0%} refused,"
        f" {len(kept)} kept, memory {run.blocks:+,} blocks {run.mib:+.1f} MiB,"
        f" slowest {run.slowest_s * 1e3:.2f} ms ({len(run.slowest):,} bytes),"
        f" {reached} of {existing} branches"
    )
    assert run.blocks < GROWTH
    assert run.mib < MOST_GROWTH_MIB
    assert run.slowest_s < SLOWEST_S


def test_the_inputs_reach_the_branches_of_each_module(
    tmp_path: Path, measured: Measured, say: Callable[[str], None]
) -> None:
    if len(measured) < len(PARSERS):
        pytest.skip("needs the inputs of all parsers, in the same run")

    found = branches_of(list(measured.values()), tmp_path / "coverage.json")

    for module, (reached, existing, missed) in sorted(found.items()):
        say(f"{reached / existing:6.1%} {reached:4}/{existing:<4} {module}  {'; '.join(missed)}")
    low = [
        module
        for module, each in found.items()
        if each.reached < min(LEAST * each.existing, each.existing - 1)
    ]
    assert low == []


def test_each_parser_of_a_format_gets_inputs(tmp_path: Path, measured: Measured) -> None:
    if len(measured) < len(PARSERS):
        pytest.skip("needs the inputs of all parsers, in the same run")

    lines = {Path(file): set(lines) for file, lines in reached_lines(measured.values()).items()}

    forgotten = [
        f"{path.relative_to(SOURCE)}: {name}"
        for path, name, body in parsers_in(SOURCE / "wire")
        if not lines.get(path, set()) & body
    ]
    assert forgotten == []


def ask(guide: subprocess.Popen[str], request: list[object]) -> int:
    """Return the exit status of a run of the fuzzer."""
    assert guide.stdin is not None
    assert guide.stdout is not None
    guide.stdin.write(json.dumps(request) + "\n")
    guide.stdin.flush()
    return int(guide.stdout.readline())


class Run(NamedTuple):
    """The result of many inputs.

    Attributes:
        refused: number of inputs for which the parser raised its own error.
        blocks: memory blocks of Python that remained allocated. The first tenth of the inputs does not count.
        mib: growth of the memory of the process, without the first tenth of the inputs.
    """

    inputs: int
    refused: int
    blocks: int
    mib: float
    slowest_s: float
    slowest: bytes


Convert = Callable[[bytes], bytes | str]


def shared(share: Callable[[int, int], Run], inputs: int) -> Run:
    """Return the result of many inputs that all processors share; the largest growth of one process."""
    count = os.cpu_count() or 1
    with ProcessPoolExecutor(count, get_context("fork")) as processes:
        runs = list(processes.map(share, [-(-inputs // count)] * count, range(count)))
    worst = max(runs, key=lambda run: run.slowest_s)
    return Run(
        sum(run.inputs for run in runs),
        sum(run.refused for run in runs),
        max(run.blocks for run in runs),
        max(run.mib for run in runs),
        worst.slowest_s,
        worst.slowest,
    )


def disturb(
    name: str, convert: Convert, kept: Sequence[bytes], tokens: Sequence[bytes], inputs: int, seed: int = 0
) -> Run:
    """Pass this number of random changes of the kept inputs to a parser."""
    parser = parser_of(name)
    rand, clock = random.Random(f"{name} {seed}").random, time.perf_counter
    parse, errors = parser.parse, parser.errors
    refused = number = 0
    longest_s, slowest = 0.0, b""
    memory: tuple[int, float] | None = None
    while number < inputs:
        if memory is None and number >= inputs // 10:
            memory = allocated(), resident_mib()
        with deadline():
            for _ in range(_BATCH):
                data = mutant(kept, tokens, rand)
                given = convert(data)
                start = clock()
                try:
                    parse(given)
                except errors:
                    refused += 1
                if (took := clock() - start) > longest_s:
                    longest_s, slowest = took, data
        number += _BATCH
    blocks, mib = memory or (allocated(), resident_mib())
    growth = allocated() - blocks, resident_mib() - mib
    again_s = min(repeated_s(parser, convert(slowest)) for _ in range(3))
    return Run(number, refused, *growth, again_s, slowest)


def repeated_s(parser: Parser, given: bytes | str) -> float:
    """Return the processor time of an input, without the delays of a loaded machine."""
    gc.collect()
    start = time.process_time()
    with suppress(*parser.errors):
        parser.parse(given)
    return time.process_time() - start


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def replayed(parser: Parser, convert: Convert, kept: Iterable[bytes]) -> coverage.CoverageData:
    """Return the branches that the kept inputs reach."""
    one = coverage.Coverage(branch=True, data_file=None, include=[f"{SOURCE}/*"], config_file=False)
    with one.collect():
        for data in kept:
            with suppress(*parser.errors):
                parser.parse(convert(data))
    return one.get_data()


def branches_of(parts: Sequence[coverage.CoverageData], report: Path) -> dict[str, Branches]:
    """Return the branches of the functions that were called, by module."""
    whole = coverage.Coverage(branch=True, data_file=None, include=[f"{SOURCE}/*"], config_file=False)
    for part in parts:
        whole.get_data().update(part)
    files = [file for file in whole.get_data().measured_files() if not file.endswith("/errors.py")]
    whole.json_report(morfs=files, outfile=str(report))
    reached: Counter[str] = Counter()
    existing: Counter[str] = Counter()
    missed: dict[str, list[str]] = {}
    for file, entry in json.loads(report.read_text())["files"].items():
        module = str(Path(file).resolve().relative_to(SOURCE))
        for name, function in entry["functions"].items():
            if name and function["summary"]["covered_lines"]:
                reached[module] += function["summary"]["covered_branches"]
                existing[module] += function["summary"]["num_branches"]
                missed.setdefault(module, []).extend(
                    f"{name} {pair}" for pair in function["missing_branches"]
                )
    return {
        module: Branches(reached[module], total, missed[module])
        for module, total in existing.items()
        if total
    }


def reached_lines(parts: Sequence[coverage.CoverageData]) -> dict[str, set[int]]:
    """Return the reached lines by file."""
    found: dict[str, set[int]] = {}
    for part in parts:
        for file in part.measured_files():
            found.setdefault(file, set()).update(part.lines(file) or ())
    return found


def parsers_in(directory: Path) -> Iterator[tuple[Path, str, set[int]]]:
    """Yield the file, the name and the lines of each public function that parses a format."""
    for path in sorted(directory.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith(("parse_", "decode_", "read_")):
                yield path, node.name, set(range(node.body[0].lineno + 1, (node.end_lineno or 0) + 1))
