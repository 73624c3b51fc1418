"""Cables: the router's segments, and hosts plugged into them.

Every device is made directly in the sandbox where it belongs; the machine's own network sees none of them.
"""

import subprocess
from collections.abc import Iterable

from pyflannel.errors import LabError
from pyflannel.lab.sandboxes.sandbox import Sandbox
from pyflannel.lab.topology import HostPlace, Segment


def lay_segments(router: Sandbox, segments: Iterable[Segment]) -> None:
    """Make a switch for each segment, and plug the router into it with the gateway's address.

    The switch is a bridge beside the router's port, not the port itself: what the kernel routes out of a
    bridge device is segmented in software when it is a tunnel's, and tunnels would seem half as fast.
    """
    lines = []
    for segment in segments:
        port = f"gw-{segment.name}"
        lines += [
            f"link add {segment.name} type bridge",
            f"link add {port} type veth peer name sw-{segment.name}",
            f"link set sw-{segment.name} master {segment.name} up",
            # Else it answers for the gateway too, with an address that changes when a host is plugged in.
            f"link set {segment.name} arp off up",
            f"address add {segment.gateway} dev {port}",
            f"link set {port} up",
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
