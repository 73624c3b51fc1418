"""Each verb of flannelctl answers within 5 s of its start if flanneld and the store hang."""

import itertools
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import click
import pytest

from pyflannel.programs.flannelctl import flannelctl

ADDRESS, SUBNET = "10.100.93.7", "10.100.93.0/24"
CONFIG = '{"Network": "10.100.0.0/16"}'
VERBS = {
    "allow-list get": (),
    "allow-list publish": ("signed", "--yes"),
    "bench": (ADDRESS,),
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
    "leases release": (SUBNET, "--yes"),
    "leases reserve": (SUBNET,),
    "network create": ("blue", CONFIG),
    "network ls": (),
    "network rm": ("blue", "--yes"),
    "peers": (),
    "ping": (ADDRESS,),
    "plan": (),
    "rotate-key": (),
    "status": (),
    "trace": (ADDRESS,),
    "whois": (ADDRESS,),
}
WITHOUT_DAEMON = {"allow-list new-key", "allow-list sign", "config validate", "help", "version"}
WITH_OWN_DURATION = {"lab", "cni", "top"}
START_S = 1.0
"""Time that the start of flannelctl took, in this test."""

LIMIT_S = 30.0
"""A verb without a deadline waits for a hung part forever. On a busy machine, the 70 processes of this test
delay each other."""

RUN_EACH = """
import json, os, sys, time
from pyflannel.programs.flannelctl import run
from pyflannel.cli import allow_list, cleanup, config, diagnosis, leases, network, networks, status
from pyflannel.commands import bug_report, examination, reach, trace
from pyflannel.stores.etcd import store

os.dup2(os.open("list", os.O_WRONLY | os.O_CREAT), 1)
run(["allow-list", "new-key", "key"])
sys.stdout.flush()
run(["allow-list", "sign", "list", "--key", "key", "--output", "signed"])
calls = {}
for words in json.loads(sys.argv[1]):
    began = time.clock_gettime(time.CLOCK_BOOTTIME) - float(sys.argv[2])
    if (pid := os.fork()) == 0:
        with open(f"{os.getpid()}.txt", "w") as output:
            os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
            code = run(words, began=began)
            sys.stdout.flush()
            os._exit(code)
    calls[pid] = words, began
while calls:
    pid, status = os.wait()
    words, began = calls.pop(pid)
    took_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    text = open(f"{pid}.txt").read()
    print(json.dumps([words, took_s, os.waitstatus_to_exitcode(status), text]), file=sys.stderr)
"""


def verbs(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group) and name not in WITH_OWN_DURATION:
            yield from verbs(command, (*path, name))
        else:
            yield " ".join((*path, name))


def test_each_verb_is_tested() -> None:
    assert set(VERBS) == set(verbs(flannelctl)) - WITHOUT_DAEMON - WITH_OWN_DURATION


@pytest.mark.timeout(60)
def test_each_verb_answers_in_time_if_flanneld_and_the_store_hang(tmp_path: Path) -> None:
    """Both hang, the store hangs and flanneld does not run, or another process locks the embedded store."""
    with ExitStack() as opened:
        hung = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        store = f"etcd://127.0.0.1:{hung.getsockname()[1]}/coreos.com/network"
        (tmp_path / "hung").mkdir()
        daemon = opened.enter_context(socket.socket(socket.AF_UNIX))
        daemon.bind(str(tmp_path / "hung/flanneld.sock"))
        daemon.listen()
        environment = {**os.environ, "FLANNELD_STATE_DIR": str(tmp_path / "state"), "FLANNELD_STORE": store}
        calls = [
            [*verb.split(), *words, *(() if verb.startswith("allow-list") else ("--run-dir", run_dir))]
            for run_dir, (verb, words) in itertools.product(("hung", "absent"), VERBS.items())
            if run_dir == "hung" or not verb.startswith("allow-list")
        ]
        locked = opened.enter_context(closing(sqlite3.connect(tmp_path / "locked.db")))
        locked.execute("CREATE TABLE store (revision INTEGER)")
        locked.execute("BEGIN EXCLUSIVE")
        calls += [
            ["--store", f"sqlite:///{tmp_path}/locked.db", *verb.split(), *words]
            for verb, words in VERBS.items()
        ]
        done = subprocess.run(
            [sys.executable, "-c", RUN_EACH, json.dumps(calls), str(START_S)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
            timeout=50,
        )

    answers = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[[")]
    assert len(answers) == len(calls)
    assert [(words, took_s, text) for words, took_s, _, text in answers if took_s >= LIMIT_S] == []
    assert [(words, text) for words, _, _, text in answers if not text or "Traceback" in text] == []


@pytest.mark.parametrize("module", ["leases", "config", "network", "status", "allow_list"])
def test_a_verb_does_not_load_the_examination_of_the_host(module: str) -> None:
    """On a busy host, the start of flannelctl takes most of the 5 s."""
    code = (
        f"import sys, pyflannel.cli.{module}\n"
        "late = {'pyflannel.commands.examination', 'pyflannel.assembly.options', 'rich.table'}\n"
        "print(late & {*sys.modules})"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )

    assert done.stdout == "set()\n"
