"""A web server of one page, and who fetches it: what a user runs in a container."""

import time
from ipaddress import IPv4Address

from pyflannel.errors import LabError
from pyflannel.lab.containers.container import Container

PORT = 80
_ANSWER_DEADLINE_S = 30.0
_SERVE = 'mkdir -p "$0" && printf "%s" "$1" >"$0/index.html" && exec busybox httpd -f -p "$2" -h "$0"'


def serving(page: str, *, name: str, port: int = PORT) -> list[str]:
    """Return the command of a web server that answers every request for / with `page`."""
    return ["busybox", "sh", "-c", _SERVE, f"/run/www/{name}", page, str(port)]


def fetch(container: Container, address: IPv4Address, *, port: int = PORT) -> str:
    """Fetch the page at an address from within a container; a server that just starts has time to.

    Raises:
        LabError: no page came within some seconds.
    """
    url = f"http://{address}:{port}/"
    # Not by wget's own -T: with it the static busybox 1.35 of Debian 12 crashes.
    command = ["busybox", "timeout", "3", "busybox", "wget", "-q", "-O", "-", url]
    end = time.monotonic() + _ANSWER_DEADLINE_S
    while (got := container.run(command, check=False)).returncode != 0:
        if time.monotonic() >= end:
            raise LabError(f"{container.name} got nothing from {url}: {got.stderr.strip()}", hint="Ping it.")
    return got.stdout
