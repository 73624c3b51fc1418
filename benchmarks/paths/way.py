"""The kernel's report about the path of packets: evidence of the measured path."""

from dataclasses import dataclass

from paths.path import Path
from pyflannel.lab.topology import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The path of packets from the left host to the right station.

    Attributes:
        route: output of `ip route get`.
        driver: driver of the device.
        sent: packets that the device has sent.
    """

    route: str
    device: str
    driver: str
    mtu: int
    sent: int


def way_of(path: Path) -> Way:
    """Read the path from the kernel of the left host."""
    host = path.hosts[0]
    route = _first_line(host, "ip", "route", "get", str(path.right.address)).partition(" uid")[0].strip()
    device = route.partition(" dev ")[2].split()[0]
    link = next(link for link in host.links() if link["ifname"] == device)
    return Way(
        route=route,
        device=device,
        driver=_first_line(host, "ethtool", "-i", device).removeprefix("driver: "),
        mtu=link["mtu"],
        sent=int(_first_line(host, "cat", f"/sys/class/net/{device}/statistics/tx_packets")),
    )


def _first_line(host: Host, *argv: str) -> str:
    return host.run(argv).stdout.splitlines()[0].strip()
