"""Cables: the router's segments, and hosts plugged into them.

Every device is made directly in the sandbox where it belongs; the machine's own network sees none of them.
"""

import subprocess
from collections.abc import Iterable

from pyflannel.errors import LabError
from pyflannel.lab.sandbox import Sandbox
from pyflannel.lab.topology import HostPlace, Segment


def lay_segments(router: Sandbox, segments: Iterable[Segment]) -> None:
    """Give the router a bridge for each segment, with the gateway's address."""
    lines = []
    for segment in segments:
        lines += [
            f"link add {segment.name} type bridge",
            f"address add {segment.gateway} dev {segment.name}",
            f"link set {segment.name} up",
        ]
    _ip(router, lines)


def plug_in(router: Sandbox, host: Sandbox, place: HostPlace) -> None:
    """Lay a cable from the host's eth0 to a port of its segment, named after the host."""
    cable = f"link add eth0 netns {host.init_pid} type veth peer name {place.name} netns {router.init_pid}\n"
    done = subprocess.run(["ip", "-batch", "-"], input=cable, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"no cable for {place.name}", hint=done.stderr.strip())
    _ip(
        host,
        [
            f"address add {place.address} dev eth0",
            "link set eth0 up",
            f"route add default via {place.segment.gateway.ip}",
        ],
    )
    _ip(router, [f"link set {place.name} master {place.segment.name} up"])


def _ip(sandbox: Sandbox, lines: list[str]) -> None:
    sandbox.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")
