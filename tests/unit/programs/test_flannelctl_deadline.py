"""Each verb of flannelctl answers within 5 s of its start if flanneld and the store hang."""

import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from pyflannel.programs.flannelctl import flannelctl
from testlab.every_verb import (
    VERBS,
    WITH_OWN_DURATION,
    WITHOUT_DAEMON,
    calls,
    check_answers,
    read_answers,
    running_each,
    verbs,
)

ADDRESS, SUBNET = "10.100.93.7", "10.100.93.0/24"


def test_each_verb_is_tested() -> None:
    assert set(VERBS) == set(verbs(flannelctl)) - WITHOUT_DAEMON - WITH_OWN_DURATION


@pytest.mark.timeout(120)
def test_each_verb_answers_in_time_if_flanneld_and_the_store_hang(tmp_path: Path) -> None:
    """Either flanneld and the store hang, or another process locks the embedded store and flanneld does not
    run.
    """
    with ExitStack() as opened:
        hung = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        store = f"etcd://127.0.0.1:{hung.getsockname()[1]}/coreos.com/network"
        (tmp_path / "hung").mkdir()
        daemon = opened.enter_context(socket.socket(socket.AF_UNIX))
        daemon.bind(str(tmp_path / "hung/flanneld.sock"))
        daemon.listen()
        environment = {**os.environ, "FLANNELD_STATE_DIR": str(tmp_path / "state"), "FLANNELD_STORE": store}
        commands = [
            [*words, *(() if words[0] == "allow-list" else ("--run-dir", "hung"))]
            for words in calls(ADDRESS, SUBNET)
        ]
        locked = opened.enter_context(closing(sqlite3.connect(tmp_path / "locked.db")))
        locked.execute("CREATE TABLE store (revision INTEGER)")
        locked.execute("BEGIN EXCLUSIVE")
        commands += [
            ["--store", f"sqlite:///{tmp_path}/locked.db", *words] for words in calls(ADDRESS, SUBNET)
        ]
        done = subprocess.run(
            running_each(commands),
            cwd=tmp_path,
            env={**environment, "FLANNELD_RUN_DIR": str(tmp_path / "absent")},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=110,
        )

    answers = read_answers(done.stdout)
    assert len(answers) == len(commands)
    check_answers(answers)


@pytest.mark.parametrize("module", ["leases", "config", "peers", "status", "allow_list"])
def test_a_verb_does_not_load_the_examination_of_the_host(module: str) -> None:
    """On a busy host, the start of flannelctl takes most of the 5 s."""
    code = (
        f"import sys, pyflannel.cli.{module}\n"
        "late = {'pyflannel.commands.observations', 'pyflannel.assembly.options', 'rich.table'}\n"
        "print(late & {*sys.modules})"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )

    assert done.stdout == "set()\n"
