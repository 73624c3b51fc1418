"""Each command of the tutorial runs and prints the output that the tutorial shows."""

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

# The subnets that the tutorial shows. Each run picks others.
SHOWN = {"10.100.112": "docker1", "10.100.81": "docker4"}


@dataclass(frozen=True, slots=True)
class Step:
    """A command, the host on which it runs, and the lines of its output."""

    host: str
    command: str
    output: tuple[str, ...]


def read_steps(document: str) -> Iterator[Step]:
    """Yield the commands of the console blocks, except those that run outside the lab and have no host."""
    for block in re.findall(r"^```console\n(.*?)^```", document, flags=re.DOTALL | re.MULTILINE):
        for typed in re.split(r"^(?=\w*# )", block, flags=re.MULTILINE)[1:]:
            first, *output = typed.splitlines()
            host, command = first.split("# ", 1)
            if host:
                yield Step(host, command, tuple(output))


def shape(line: str) -> str:
    """Return the line without values that depend on the run, the kernel or the version of Docker."""
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


def outputs_in_time(sandbox: Sandbox, command: str, expected: list[str]) -> list[list[str]]:
    """Run the command until its output is as expected, or the deadline ends. Return all outputs."""
    outputs: list[list[str]] = []
    end = time.monotonic() + DEADLINE_S
    while expected not in outputs and (not outputs or time.monotonic() < end):
        done = sandbox.run(["bash", "-c", command], check=False)
        outputs.append([shape(line) for line in (done.stdout + done.stderr).splitlines()])
    return outputs


def test_each_command_of_the_tutorial_prints_the_shown_output(lab: Lab) -> None:
    sandboxes: dict[str, Sandbox] = {"router": lab.router, **lab.hosts}

    steps = list(read_steps(TUTORIAL.read_text()))

    assert len(steps) > 30
    for step in steps:
        command = as_in_this_run(step.command, lab)
        expected = [shape(line) for line in step.output]
        outputs = outputs_in_time(sandboxes[step.host], command, expected)
        assert outputs[-1] == expected, f"{step.host}# {command}\nfirst output: {outputs[0]}"
