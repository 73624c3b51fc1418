"""Completion of the programs in bash: what Tab adds to a command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[3] / "deploy/completion"

SCRIPT = """
compopt() { :; }
source "$1"
COMP_WORDS=("${@:3}") COMP_CWORD=$(($# - 3))
"$2" "$3"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(program: str, function: str, *words: str) -> list[str]:
    """Return the completions of the last word."""
    script = DEPLOY / f"{program}.bash"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    argv = ["bash", "-c", SCRIPT, "bash", script, function, program, *words]
    found = subprocess.run(argv, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True)
    return found.stdout.split()


@pytest.mark.parametrize(("word", "flags"), [("--etcd-en", ["--etcd-endpoints="]), ("--no-such", [])])
def test_flags_of_flanneld_are_completed(word: str, flags: list[str]) -> None:
    assert completed("flanneld", "_flanneld", word) == flags


def test_commands_of_flannelctl_are_completed() -> None:
    assert completed("flannelctl", "_flannelctl_completion", "stat") == ["status"]
