"""The tutorial is true: every command in it runs, and answers as it says."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyflannel.lab.lab import Lab
from pyflannel.lab.sandbox import Sandbox

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"
DEADLINE_S = 60.0

# The subnets of the run that the tutorial shows; every run draws others.
SHOWN = {"10.100.112": "docker1", "10.100.81": "docker4"}


@dataclass(frozen=True, slots=True)
class Step:
    """A command, where it is typed, and the lines that it answers."""

    host: str
    command: str
    answer: tuple[str, ...]


def read_steps(document: str) -> Iterator[Step]:
    """Take the console blocks apart; what is typed outside of the lab has no host and is left out."""
    for block in re.findall(r"^```console\n(.*?)^```", document, flags=re.DOTALL | re.MULTILINE):
        for typed in re.split(r"^(?=\w*# )", block, flags=re.MULTILINE)[1:]:
            first, *answer = typed.splitlines()
            host, command = first.split("# ", 1)
            if host:
                yield Step(host, command, tuple(answer))


def shape(line: str) -> str:
    """The line without what differs from run to run, from kernel to kernel, or from Docker to Docker."""
    line = re.sub(r"([0-9a-f]{2}:){5}[0-9a-f]{2}|[0-9a-f]{32,}", "#", line)
    line = re.sub(r"qdisc \w+", "qdisc #", line)
    line = line.replace("[::]:", ":::")
    line = re.sub(r"\d+(\.\d+)*", "#", line)
    line = re.sub(r"# (s|min|h)\b( # (s|min|h)\b)*", "#", line)
    return re.sub(r"\s+", " ", line).strip()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(f"tutorial-{os.getpid()}") as lab:
        yield lab


def as_in_this_run(command: str, lab: Lab) -> str:
    for shown, name in SHOWN.items():
        if shown in command:
            own = str(lab.hosts[name].lease().network_address).rpartition(".")[0]
            command = command.replace(shown, own)
    return command


def answers_in_time(sandbox: Sandbox, command: str, expected: list[str]) -> list[list[str]]:
    """Run the command until it answers as is expected, or time is up; return the shapes of all answers."""
    answers: list[list[str]] = []
    end = time.monotonic() + DEADLINE_S
    while expected not in answers and (not answers or time.monotonic() < end):
        said = sandbox.run(["bash", "-c", command], check=False)
        answers.append([shape(line) for line in (said.stdout + said.stderr).splitlines()])
    return answers


def test_every_command_of_the_tutorial_answers_as_it_says(lab: Lab) -> None:
    sandboxes: dict[str, Sandbox] = {"router": lab.router, **lab.hosts}

    steps = list(read_steps(TUTORIAL.read_text()))

    assert len(steps) > 30
    for step in steps:
        command = as_in_this_run(step.command, lab)
        expected = [shape(line) for line in step.answer]
        answers = answers_in_time(sandboxes[step.host], command, expected)
        assert answers[-1] == expected, f"{step.host}# {command}\nat first: {answers[0]}"
