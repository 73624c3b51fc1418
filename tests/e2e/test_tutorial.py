"""Each command of the tutorial runs and prints the output that the tutorial shows."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab.lab import Lab
from pyflannel.lab.sandbox import Sandbox
from testlab.console import outputs_in_time, read_steps, shape

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"

# The subnets that the tutorial shows. Each run has other subnets.
SHOWN = {"10.100.112": "docker1", "10.100.81": "docker4"}


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


def test_each_command_of_the_tutorial_prints_the_shown_output(lab: Lab) -> None:
    sandboxes: dict[str, Sandbox] = {"router": lab.router, **lab.hosts}

    steps = list(read_steps(TUTORIAL.read_text()))

    assert len(steps) > 30
    for step in steps:
        command = as_in_this_run(step.command, lab)
        expected = [shape(line) for line in step.output]
        outputs = outputs_in_time(sandboxes[step.host], command, expected)
        assert outputs[-1] == expected, f"{step.host}# {command}\nfirst output: {outputs[0]}"
