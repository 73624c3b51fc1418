"""Runs the commands and examples of the documents as printed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.topology import LEFT
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import wait_until
from testlab.console import command_blocks

ROOT = Path(__file__).parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DAEMONS = ("flanneld ", "dockerd ")
SOON_S = 60.0


def test_the_readme_gives_docker_the_leased_subnet_and_doctor_finds_no_problem(
    network_of: Callable[..., AbstractContextManager[Any]],
) -> None:
    """The host is new, etcd and Docker engine are real. `ETCD` in the README is the host name of the etcd.

    With a peer, doctor also evaluates the filter rules for packets between containers of both hosts.
    """
    blocks = command_blocks("README.md", "Run from a clone")

    with network_of("docker1", "docker3", config=None) as network:
        network.etcd.start()
        host = network.hosts["docker1"]
        host.run(["tee", "--append", "/etc/hosts"], text=f"{LEFT.gateway.ip} ETCD\n")
        host.run(["mount", "-t", "tmpfs", "tmpfs", "/usr/local/bin"])
        # scripts/setup must find everything installed, because it must not change the .venv of this run.
        host.run(["mount", "--bind", ROOT / ".venv", ROOT / ".venv"])
        host.run(["mount", "-o", "remount,bind,ro", ROOT / ".venv"])
        for number, block in enumerate(blocks):
            command = ["env", f"PATH={PATH}", "bash", "-ec", f"cd {ROOT}\n{block}"]
            if block.splitlines()[-1].startswith(DAEMONS):
                host.start_service(command, name=f"block-{number}")
            else:
                host.run(command)
        bridge = host.run(["ip", "-brief", "-4", "address", "show", "docker0"]).stdout.split()[2]
        network.hosts["docker3"].start_flanneld(f"--store={network.url}")
        wait_until(
            lambda: "answers in" in host.flannelctl("peers", check=False),
            what="docker3 answers",
            deadline_s=SOON_S,
        )

        assert bridge == str(host.gateway())
        assert "found no problem" in host.flannelctl("doctor", check=False)


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


# Connection tracking considers datagrams of a tunnel as replies to those of the other direction, so the
# rule is limited to TCP.
DROP_INPUT = {
    "nftables": """
        nft add table inet filter
        nft add chain inet filter input '{ type filter hook input priority 0; policy drop; }'
        nft add rule inet filter input ip protocol tcp ct state established accept
        """,
    "iptables": """
        iptables -P INPUT DROP
        iptables -A INPUT -p tcp -m state --state ESTABLISHED -j ACCEPT
        """,
}


def test_the_rules_of_the_ports_guide_open_hosts_that_drop_all_input(
    network_of: Callable[..., AbstractContextManager[Any]],
) -> None:
    """One host has a firewall of nftables, and the other host has a firewall of iptables. User space carries
    the packets.
    """
    firewalls = {"docker1": "nftables", "docker3": "iptables"}

    with network_of(*firewalls) as network:
        for name, engine in firewalls.items():
            network.hosts[name].run(["bash", "-ec", DROP_INPUT[engine]])
        network.lab.router.run(["bash", "-ec", DROP_INPUT["nftables"]])
        network.lab.router.run(["bash", "-ec", command_blocks("docs/guides/ports.md", "nftables")[1]])
        network.start_all("--fast-path=off")
        hosts = network.hosts.values()
        containers = [host.container("web", gateway=host.gateway(), mtu=1472) for host in hosts]
        before = [ping(one, other.address, count=1) for one, other in permutations(containers)]
        for name, engine in firewalls.items():
            network.hosts[name].run(["bash", "-ec", command_blocks("docs/guides/ports.md", engine)[0]])
        after = [ping(one, other.address, count=1) for one, other in permutations(containers)]

    assert [result.is_reached for result in before] == [False, False]
    assert [result.is_reached for result in after] == [True, True]
