"""The README's commands for real hosts, run as they are printed."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pyflannel.lab.topology import LEFT

ROOT = Path(__file__).parents[2]
SECTION = "Run it on real hosts"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DAEMONS = ("flanneld ", "dockerd ")


def command_blocks(section: str) -> list[str]:
    """Return the code blocks of a section of the README; each is typed in a terminal of its own."""
    text = (ROOT / "README.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_docker_gets_the_leased_subnet(network_of: Callable[..., AbstractContextManager[Any]]) -> None:
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
