"""The echo requests of flanneld while it can open no files."""

import subprocess
import sys

_SCRIPT = """
import asyncio, resource
from pyflannel.assembly.opening import _send_echoes
from pyflannel.errors import TargetError

async def send():
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        await _send_echoes([])
    except TargetError as error:
        print(error)

asyncio.run(send())
"""


def test_a_module_that_cannot_be_read_does_not_end_flanneld() -> None:
    """The module of echo requests is imported when the first peer is known."""
    ran = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("cannot receive ICMP messages: ")
