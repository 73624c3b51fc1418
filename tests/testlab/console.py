"""The commands in the documents, and the comparison of their output with the document."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyflannel.lab.sandbox import Sandbox

DEADLINE_S = 60.0
ROOT = Path(__file__).parents[2]


def command_blocks(document: str, section: str = "") -> list[str]:
    """Return the blocks of commands of a section of a document, or of the whole document.

    A block with a language, such as `json`, contains no commands and is omitted.
    """
    text = (ROOT / document).read_text()
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [
        block
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if not language
    ]


def task_commands(task: str) -> list[str]:
    """Return the commands of the README that follow the text `**task**`."""
    _, found, text = (ROOT / "README.md").read_text().partition(f"\n**{task}**")
    assert found, task
    return text.partition("\n```\n")[2].partition("\n```")[0].splitlines()


@dataclass(frozen=True, slots=True)
class Step:
    """A command, the host on which it runs (or several, with commas), and the lines of its output."""

    host: str
    command: str
    output: tuple[str, ...]


def read_steps(document: str) -> Iterator[Step]:
    """Yield the commands of the console blocks, except those that run outside the lab and have no host."""
    for block in re.findall(r"^```console\n(.*?)^```", document, flags=re.DOTALL | re.MULTILINE):
        for typed in re.split(r"^(?=[\w,]*# )", block, flags=re.MULTILINE)[1:]:
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
    line = re.sub(r"\s+", " ", line).strip()
    # A peer has a time of its last change only if its state changed after the first probe.
    return re.sub(r" # k?B # k?B (-|# ago) answers", " # # # answers", line)


def outputs_in_time(sandbox: Sandbox, command: str, expected: list[str]) -> list[list[str]]:
    """Run the command until its output is as expected, or the deadline ends. Return all outputs."""
    outputs: list[list[str]] = []
    end = time.monotonic() + DEADLINE_S
    while expected not in outputs and (not outputs or time.monotonic() < end):
        done = sandbox.run(["bash", "-c", command], check=False)
        outputs.append([shape(line) for line in (done.stdout + done.stderr).splitlines()])
    return outputs
