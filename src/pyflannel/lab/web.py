"""A web server of one page, and who fetches it: what a user runs in a container."""

from ipaddress import IPv4Address

from pyflannel.errors import LabError
from pyflannel.lab.container import Container
from pyflannel.lab.waiting import wait_until

PORT = 80
_ANSWER_DEADLINE_S = 10.0
_SERVE = 'mkdir -p "$0" && printf "%s" "$1" >"$0/index.html" && exec busybox httpd -f -p "$2" -h "$0"'


def serving(page: str, *, name: str, port: int = PORT) -> list[str]:
    """Return the command of a web server that answers every request for / with `page`."""
    return ["busybox", "sh", "-c", _SERVE, f"/run/www/{name}", page, str(port)]


def fetch(container: Container, address: IPv4Address, *, port: int = PORT) -> str:
    """Fetch the page at an address from within a container; a server that just starts has time to.

    Raises:
        LabError: no page came within some seconds.
    """
    page = ""

    def comes() -> bool:
        nonlocal page
        got = container.run(
            ["busybox", "wget", "-q", "-T", "2", "-O", "-", f"http://{address}:{port}/"], check=False
        )
        page = got.stdout
        return got.returncode == 0

    wait_until(
        comes, what=f"{container.name} fetches http://{address}:{port}/", deadline_s=_ANSWER_DEADLINE_S
    )
    if not page:
        raise LabError(f"the page at {address} is empty", hint="Look at the web server's log.")
    return page
