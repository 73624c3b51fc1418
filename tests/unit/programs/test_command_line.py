"""A password on the command line is hidden from the process list."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pyflannel.programs.own_process import hide_on_command_line
from pyflannel.model.store_record import Secret
print(hide_on_command_line(Secret(sys.argv[1])), sys.argv[2:])
sys.stdout.flush()
sys.stdin.read()
"""


def shown(secret: str, *words: str) -> tuple[str, list[str]]:
    """Return the output of the program, and its words in /proc after the first four."""
    command = [sys.executable, "-c", SCRIPT, "given by the test", *words]
    command[3] = secret
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        seen = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().split("\0")[4:-1]
        process.communicate("")
    return said, seen


@pytest.mark.parametrize(
    ("secret", "words", "seen"),
    [
        ("hunter2", ["--etcd-password=hunter2", "--v=1"], ["--etcd-password=*******", "--v=1"]),
        ("hunter2", ["-etcd-password", "hunter2", "-v=1"], ["-etcd-password", "*******", "-v=1"]),
        ("hunter2", ["-p=hunter2", "-p=hunter2"], ["-p=*******", "-p=*******"]),
        ("p=ä", ["--etcd-password=p=ä"], ["--etcd-password=****"]),
        ("hunter2", ["--node-id=hunter22", "xhunter2"], ["--node-id=hunter22", "xhunter2"]),
    ],
)
def test_the_process_list_shows_asterisks_and_the_process_keeps_the_password(
    secret: str, words: list[str], seen: list[str]
) -> None:
    assert shown(secret, *words) == (f"True {words}", seen)
