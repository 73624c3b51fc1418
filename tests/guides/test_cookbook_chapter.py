"""Each command of docs/cookbook.md runs on four booted systems and prints the shown output.

Docker's program is the program of Debian's docker.io, at the path that docker-ce uses. The images of the
chapter are replaced by busybox with a web server.
"""

import base64
import io
import json
import os
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pyflannel import VERSION
from pyflannel.lab.containers import write_image
from pyflannel.lab.lab import Lab
from pyflannel.lab.waiting import together
from testlab.booted_system import BootedSystem
from testlab.console import outputs_in_time, read_steps, shape

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/cookbook.md"
TARBALL = f"pyflannel-{VERSION}"
IN_TARBALL = ("deploy", "src", "mk-docker-opts.sh")
IMAGES = ("web_server_1", "web_server_2")
SERVER = "mkdir /www; echo This is {} >/www/index.html; exec httpd -f -h /www"

ON_A_TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"

# The subnets that the page shows. Each run has other subnets.
SHOWN = {"10.100.112": "docker1", "10.100.81": "docker4"}

missing = BootedSystem.missing() or (
    None if shutil.which("dockerd") else "dockerd: Debian's docker.io has it"
)
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=f"no {missing}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and mounts"),
]


def tarball() -> str:
    """Return the parts of the source tarball that the page uses, in base64."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in IN_TARBALL:
            archive.add(
                ROOT / name,
                f"{TARBALL}/{name}",
                filter=lambda one: None if "__pycache__" in one.name else one,
            )
    return base64.b64encode(content.getvalue()).decode()


def prepare(system: BootedSystem, archive: str) -> None:
    """Boot a system with the tarball and the images."""
    system.install()
    system.write("/etc/hostname", system.name)
    system.boot()
    system.wait_up()
    system.run(["sh", "-c", f"base64 -d >/root/{TARBALL}.tar.gz"], text=archive)
    system.run(["ln", "-sfn", shutil.which("dockerd") or "", "/usr/bin/dockerd"])
    write_image(system.directory / "docker/image.tar")


@pytest.fixture
def systems() -> Iterator[dict[str, BootedSystem]]:
    """The four hosts of the chapter."""
    with Lab(f"book-{os.getpid()}") as lab:
        systems = {name: BootedSystem(host) for name, host in lab.hosts.items()}
        archive = tarball()
        together([partial(prepare, system, archive) for system in systems.values()])
        yield systems
        together([system.power_off for system in systems.values()])


def as_in_this_run(text: str, systems: dict[str, BootedSystem]) -> str:
    for shown, name in SHOWN.items():
        if f"{shown}." in text:
            env = systems[name].run(["cat", "/run/flannel/subnet.env"]).stdout
            own = env.partition("FLANNEL_SUBNET=")[2].rpartition(".1/24")[0]
            text = text.replace(f"{shown}.", f"{own}.")
    return text


def import_images(system: BootedSystem) -> None:
    for image in IMAGES:
        command = json.dumps(["sh", "-c", SERVER.format(image)])
        changes = [f"--change=CMD {command}", "--change=EXPOSE 80"]
        system.run(["docker", "import", *changes, "/var/lib/docker/image.tar", image])


def test_each_command_of_the_page_prints_the_shown_output(systems: dict[str, BootedSystem]) -> None:
    directory, has_images = "/root", False

    for step in read_steps(PAGE.read_text()):
        if step.command.startswith("cd "):
            directory = f"{directory}/{step.command.removeprefix('cd ')}"
            continue
        if step.command.startswith("docker run") and not has_images:
            together([partial(import_images, system) for system in systems.values()])
            has_images = True
        command = as_in_this_run(step.command, systems)
        if " -it " in command:  # needs a terminal
            command = f"python3 -c {shlex.quote(ON_A_TERMINAL)} {command}"
        expected = [shape(line) for line in as_in_this_run("\n".join(step.output), systems).splitlines()]
        hosts = list(systems) if step.host == "each" else step.host.split(",")
        for name in hosts:
            outputs = outputs_in_time(systems[name], f"cd {directory}; {command}", expected)
            assert outputs[-1] == expected, f"{name}# {command}\nfirst output: {outputs[0]}"
