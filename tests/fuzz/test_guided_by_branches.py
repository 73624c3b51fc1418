"""Inputs that the branches of the code guide (atheris): each parser raises only its own errors.

Each parser gets five seconds, or five minutes with --long. A hang, or more than a gigabyte, is a failure.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.parsers import SUBJECTS, parsers_of

TESTS = Path(__file__).parents[1]
NAMES = [parser.name for subject in SUBJECTS for parser in parsers_of(subject)]
SECONDS, SECONDS_LONG = 5, 300
LIMITS = ("-timeout=20", "-rss_limit_mb=1024", "-verbosity=0", "-print_final_stats=1")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_no_guided_input_raises_another_error(
    name: str, long_run: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    duration = f"-max_total_time={SECONDS_LONG if long_run else SECONDS}"
    done = subprocess.run(
        [sys.executable, str(TESTS / "fuzz/guided.py"), name, duration, *LIMITS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    inputs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert inputs is not None
    with capsys.disabled():
        print(f"\n  {inputs[1]:>9} inputs of {name}", end="", flush=True)
