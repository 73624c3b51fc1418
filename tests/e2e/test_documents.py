"""Commands and examples of the documents, run as they are printed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.topology import LEFT

ROOT = Path(__file__).parents[2]
SECTION = "Run it on real hosts"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DAEMONS = ("flanneld ", "dockerd ")


def command_blocks(section: str) -> list[str]:
    """Return the code blocks of a section of the README; each is typed in a terminal of its own."""
    text = (ROOT / "README.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_the_readme_gives_docker_the_leased_subnet(
    network_of: Callable[..., AbstractContextManager[Any]],
) -> None:
    """A fresh host, a real etcd and a real Docker engine; `ETCD` in the README is the name of the etcd."""
    blocks = command_blocks(SECTION)

    with network_of("docker1", config=None) as network:
        network.etcd.start()
        host = network.hosts["docker1"]
        host.run(["tee", "--append", "/etc/hosts"], text=f"{LEFT.gateway.ip} ETCD\n")
        host.run(["mount", "-t", "tmpfs", "tmpfs", "/usr/local/bin"])
        for number, block in enumerate(blocks):
            command = ["env", f"PATH={PATH}", "bash", "-ec", f"cd {ROOT}\n{block}"]
            if block.splitlines()[-1].startswith(DAEMONS):
                host.start_service(command, name=f"block-{number}")
            else:
                host.run(command)
        bridge = host.run(["ip", "-brief", "-4", "address", "show", "docker0"]).stdout.split()[2]

        assert bridge == str(host.gateway())


def test_the_example_of_the_lab_guide_shows_the_partition() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces and mounts")
    (example,) = re.findall(
        r"^```python\n(.*?)^```",
        (ROOT / "docs/guides/lab.md").read_text(),
        flags=re.DOTALL | re.MULTILINE,
    )

    done = subprocess.run(
        [sys.executable, "-c", example.replace('"mine"', f'"mine-{os.getpid()}"')],
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.splitlines()[-1] == "[('docker1', 'docker3'), ('docker3', 'docker1')]"
