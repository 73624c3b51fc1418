"""Completion in zsh and fish, by the files that the packages install. For bash, see tests/unit/programs."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testlab.control_socket import serving_leases

DEPLOY = Path(__file__).parents[2] / "deploy/completion"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

DEADLINE_S = 120

# The widget at Ctrl-G writes the command line, as it is after Tab, to the file $OUT, and ends the shell.
ZSHRC = """
fpath=("$DEPLOY" $fpath)
autoload -U compinit && compinit -u -d "$ZDOTDIR/dump"
finish() { print -r -- "$BUFFER" >"$OUT"; exit }
zle -N finish
bindkey '^G' finish
bindkey '^I' complete-word
PROMPT='ready> '
"""


def completed_in_zsh(tmp_path: Path, line: str) -> str:
    """Return the command line after Tab."""
    (tmp_path / ".zshrc").write_text(ZSHRC)
    out = tmp_path / "line"
    variables = {
        "ZDOTDIR": str(tmp_path),
        "DEPLOY": str(DEPLOY),
        "OUT": str(out),
        "PATH": PATH,
        "TERM": "dumb",
    }
    master, slave = pty.openpty()
    try:
        shell = subprocess.Popen(
            ["zsh", "-i"], stdin=slave, stdout=slave, stderr=slave, env=os.environ | variables
        )
        os.close(slave)
        read_until(master, b"ready> ")
        os.write(master, line.encode() + b"\t\x07")
        shell.wait(DEADLINE_S)
    finally:
        os.close(master)
    return out.read_text().strip()


def read_until(terminal: int, text: bytes) -> None:
    """Read the output of a shell until it contains the text. A shell discards keys before its prompt."""
    deadline, output = time.monotonic() + DEADLINE_S, b""
    while text not in output:
        assert select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0], output
        output += os.read(terminal, 4096)


def completed_in_fish(tmp_path: Path, line: str) -> list[str]:
    """Return the completions of the last word."""
    sources = "".join(f"source {DEPLOY}/{program}.fish; " for program in ("flanneld", "flannelctl"))
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"{sources}complete -C {line!r}"],
        env=os.environ | {"PATH": PATH, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [found.partition("\t")[0] for found in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_completes_commands_flags_and_host_names(tmp_path: Path) -> None:
    with serving_leases(tmp_path, "docker1", "web-7"):
        leases = f"flannelctl leases --run-dir {tmp_path}"

        assert completed_in_zsh(tmp_path, f"{leases} do") == f"{leases} docker1"
    assert completed_in_zsh(tmp_path, "flannelctl stat") == "flannelctl status"
    assert completed_in_zsh(tmp_path, "flanneld --etcd-endp") == "flanneld --etcd-endpoints="


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes_commands_flags_and_host_names(tmp_path: Path) -> None:
    with serving_leases(tmp_path, "docker1", "web-7"):
        assert completed_in_fish(tmp_path, f"flannelctl leases --run-dir {tmp_path} do") == ["docker1"]
    assert completed_in_fish(tmp_path, "flannelctl stat") == ["status"]
    assert "--etcd-endpoints=" in completed_in_fish(tmp_path, "flanneld --etcd-endp")
