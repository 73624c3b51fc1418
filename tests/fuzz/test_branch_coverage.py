"""The inputs of the parser tests reach at least 90 % of the branches of each parser's module.

Only functions that the parsers call count, because the modules also write the formats. A module of fewer than
ten branches may miss one, such as the last case of a complete match.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import coverage
import pytest

import pyflannel
from doubles.hostile_inputs import Parser, check
from fuzz.parsers import SUBJECTS, parsers_of

LEAST = 0.9
SOURCE = Path(pyflannel.__file__).parent


def branches(parsers: Sequence[Parser], report: Path) -> dict[str, tuple[int, int, list[str]]]:
    """Reached branches, all branches and missed branches of the called functions, by module."""
    measured = coverage.Coverage(branch=True, data_file=None, source_pkgs=["pyflannel"], config_file=False)
    measured.set_option("run:disable_warnings", ["module-not-measured"])
    for parser in parsers:
        with measured.collect():
            check(parser, long_run=False)
    files = measured.get_data().measured_files()
    measured.json_report(
        morfs=[file for file in files if not file.endswith("/errors.py")], outfile=str(report)
    )
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
    return {module: (reached[module], total, missed[module]) for module, total in existing.items() if total}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_inputs_reach_the_branches_of_each_parser(
    subject: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = branches(parsers_of(subject), tmp_path / "coverage.json")

    with capsys.disabled():
        for module, (reached, total, missed) in sorted(found.items()):
            line = f"{reached / total:6.1%} {reached:4}/{total:<4} {module}  {'; '.join(missed)}"
            print(f"\n  {line}", end="", flush=True)
    low = [module for module, (reached, total, _) in found.items() if reached < min(LEAST * total, total - 1)]
    assert low == []
