"""Each command of the Compose guide runs on hosts with Docker engines and prints the shown output."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab.containers import write_image
from pyflannel.lab.lab import Lab
from pyflannel.lab.topology import Host
from testlab.console import outputs_in_time, read_steps, shape

PAGE = Path(__file__).parents[2] / "docs/guides/compose.md"
CONFIG = '{"Network":"10.100.0.0/16"}'

# The subnets that the guide shows. Each run has other subnets.
SHOWN = {"10.100.62.": "docker3", "10.100.81.": "docker4"}

missing = next((name for name in ("dockerd", "docker-compose") if shutil.which(name) is None), None)
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=f"no {missing}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and mounts"),
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Hosts with flanneld and Docker. Docker on docker3 has no options, as the second method of the guide
    requires.
    """
    with Lab(f"compose-{os.getpid()}") as lab:
        write_image(lab.directory / "busybox.tar")
        lab.hosts["docker1"].flannelctl("--store", lab.sqlite_url, "config", "set", CONFIG)

        def start(host: Host) -> None:
            host.start_flanneld(f"--store={lab.sqlite_url}", "--ip-masq")
            options = "" if host.name == "docker3" else " --bip=${FLANNEL_SUBNET} --mtu=${FLANNEL_MTU}"
            host.engine.start(f"dockerd{options}", environment_file=Path("/run/flannel/subnet.env"))
            host.engine.import_image(lab.directory / "busybox.tar")

        lab.each(start)
        yield lab


def as_in_this_run(text: str, lab: Lab) -> str:
    for shown, name in SHOWN.items():
        if shown in text:
            text = text.replace(shown, str(lab.hosts[name].lease().network_address).removesuffix("0"))
    return text


def test_each_command_of_the_guide_prints_the_shown_output(lab: Lab) -> None:
    page = PAGE.read_text()
    for path, content in re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for host in lab.hosts.values():
            host.run(["mkdir", "-p", f"/run/{Path(path).parent}"])
            host.run(["tee", f"/run/{path}"], text=content)

    for step in read_steps(page):
        command = as_in_this_run(step.command, lab)
        expected = [shape(line) for line in as_in_this_run("\n".join(step.output), lab).splitlines()]
        outputs = outputs_in_time(lab.hosts[step.host], f"cd /run; {command}", expected)
        assert outputs[-1] == expected, f"{step.host}# {command}\nfirst output: {outputs[0]}"
