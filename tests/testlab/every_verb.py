"""All verbs of flannelctl, run at the same time while parts of the host or the store hang."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import click

CONFIG = '{"Network": "10.100.0.0/16"}'
VERBS = {
    "allow-list get": (),
    "allow-list publish": ("signed", "--yes"),
    "bench": ("ADDRESS",),
    "bugreport": (),
    "cleanup": ("--dry-run",),
    "config diff": (),
    "config get": (),
    "config history": (),
    "config set": (CONFIG, "--yes"),
    "doctor": (),
    "events": (),
    "leases history": (),
    "leases ls": (),
    "leases release": ("SUBNET", "--yes"),
    "leases reserve": ("SUBNET",),
    "network create": ("blue", '{"Network": "10.101.0.0/16", "Backend": {"Type": "host-gw"}}'),
    "network ls": (),
    "network rm": ("red", "--yes"),
    "peers": (),
    "ping": ("ADDRESS",),
    "plan": (),
    "rotate-key": (),
    "status": (),
    "trace": ("ADDRESS",),
    "whois": ("ADDRESS",),
}
"""The verbs that use flanneld or the store, with arguments. SUBNET and ADDRESS belong to another host."""

WITHOUT_DAEMON = {"allow-list new-key", "allow-list sign", "config validate", "help", "version"}
WITH_OWN_DURATION = {"lab", "cni", "top"}

_START_S = 0.5
"""Time in seconds that the test assumes for the start of flannelctl, for the deadline of each verb."""

_RUN_EACH = """
import gc, json, os, sys, threading, time
from pyflannel.programs.flannelctl import run
from pyflannel.cli import allow_list, cleanup, config, diagnosis, events, leases
from pyflannel.cli import networks, paths, peers, rotate_key, status
from pyflannel.commands import bug_report, examination, reach, trace
from pyflannel.stores.etcd import store

calls, start_s, stdout = json.loads(sys.argv[1]), float(sys.argv[2]), os.dup(1)
os.dup2(os.open("list", os.O_WRONLY | os.O_CREAT), 1)
run(["allow-list", "new-key", "key"])
sys.stdout.flush()
for number, words in enumerate(calls):
    if "publish" in words:
        words[-2] = f"signed{number}"
        run([*words[:-3], "sign", "list", "--key", "key", "--output", words[-2]])
sys.stdout.flush()
running = {}
gc.freeze()
for words in calls:
    began = time.clock_gettime(time.CLOCK_BOOTTIME) - start_s
    if (pid := os.fork()) == 0:
        with open(f"{os.getpid()}.txt", "w") as output:
            os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
        code = run(words, began=began)
        sys.stdout.flush()
        threading._shutdown()  # as the interpreter, which would also copy all memory of the parent
        os._exit(code)
    running[pid] = words, began
while running:
    pid, status = os.wait()
    words, began = running.pop(pid)
    took_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    text = open(f"{pid}.txt").read()
    line = json.dumps([words, took_s, os.waitstatus_to_exitcode(status), text])
    os.write(stdout, line.encode() + b"\\n")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of one verb, after flannelctl has exited.

    Attributes:
        words: the arguments of flannelctl.
        took_s: time in seconds from the start of flannelctl to its end.
        text: both outputs.
    """

    words: tuple[str, ...]
    took_s: float
    code: int
    text: str

    @property
    def verb(self) -> str:
        """The name of the verb in `VERBS`."""
        line = f" {' '.join(self.words)} "
        return next(name for name in VERBS if f" {name} " in line)


def verbs(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the names of all verbs that the parser of flannelctl knows."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group) and name not in WITH_OWN_DURATION:
            yield from verbs(command, (*path, name))
        else:
            yield " ".join((*path, name))


def calls(address: str, subnet: str, names: Iterable[str] = VERBS) -> list[list[str]]:
    """Return the command lines of these verbs, with an address and the subnet of another host."""
    places = {"ADDRESS": address, "SUBNET": subnet}
    return [[*name.split(), *(places.get(word, word) for word in VERBS[name])] for name in names]


def running_each(commands: Sequence[Sequence[str]]) -> list[str]:
    """Return the command that runs all these command lines of flannelctl at the same time, in the present
    directory.
    """
    return [sys.executable, "-c", _RUN_EACH, json.dumps(commands), str(_START_S)]


def read_answers(output: str) -> list[Answer]:
    """Return the answers in the output of `running_each`."""
    lines = [json.loads(line) for line in output.splitlines()]
    return [
        Answer(words=tuple(words), took_s=took_s, code=code, text=text) for words, took_s, code, text in lines
    ]


LIMIT_S = 10.0
"""Maximum time in seconds to an answer. A part that hangs would delay the answer for 40 s or longer.
`check_answers` prints the longest time, which is less than 5 s on an idle machine."""


def check_answers(answers: Sequence[Answer]) -> None:
    """Check that each verb answered in time, and without a traceback."""
    slowest = max(answers, key=lambda one: one.took_s)
    print(f"\n  The slowest verb, {' '.join(slowest.words)}, took {slowest.took_s:.1f} s.")
    late = [one for one in answers if one.took_s >= LIMIT_S]
    assert not late, "\n".join(map(str, late))
    unclear = [one for one in answers if not one.text or "Traceback" in one.text]
    assert not unclear, "\n".join(map(str, unclear))
