"""What the kernel says of the way that packets take: the proof of what was measured."""

from dataclasses import dataclass

from paths.path import Path
from pyflannel.lab.topology import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How packets leave the left host towards the right station.

    Attributes:
        route: as `ip route get` shows it.
        driver: of the device.
        sent: packets that the device sent so far.
    """

    route: str
    device: str
    driver: str
    mtu: int
    sent: int


def way_of(path: Path) -> Way:
    """Ask the kernel of the left host."""
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
