"""A hop of the underlay carries less than the interfaces of the hosts: routes carry the MTU of the path."""

import json
import os

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.overlay import Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 30.0
HOP_MTU = 1400
VLAN = 4
"""Bytes above the MTU that the kernel accepts on a link, for a VLAN tag."""


@pytest.fixture(scope="module")
def pair(overlay: Overlay) -> list[Host]:
    """Two hosts on two segments. The router drops large packets that it receives from the second segment.

    It answers to large packets that it would send there, if they may not be fragmented.
    """
    overlay.lab.router.run(["ip", "link", "set", "gw-right", "mtu", str(HOP_MTU)])
    return [overlay.hosts["docker1"], overlay.hosts["docker3"]]


def mtu_to(host: Host, other: Host) -> int:
    """Return the MTU of the route to the containers of another host; 0 without one."""
    shown = host.run(["ip", "-json", "-details", "route", "show", str(other.lease())]).stdout
    metrics = [entry for route in json.loads(shown or "[]") for entry in route.get("metrics", [])]
    return next((int(entry["mtu"]) for entry in metrics), 0)


def answers(host: Host, other: Host, size: int, *flags: str) -> str:
    """Return the output of pings of this size from the containers' bridge of a host to the other."""
    command = ["ping", "-n", "-c1", "-W1", *flags, "-s", str(size - 28), "-I", str(host.gateway().ip)]
    ran = host.run([*command, str(other.gateway().ip)], check=False)
    return ran.stdout + ran.stderr


@pytest.mark.parametrize(("kind", "overhead"), [("vxlan", 50), ("udp", 28)])
def test_routes_carry_the_mtu_of_the_path(
    overlay: Overlay, pair: list[Host], kind: str, overhead: int, long_run: bool
) -> None:
    """Packets of the planned size are fragmented before the tunnel, or refused with the MTU of the path."""
    if kind == "udp" and not long_run:
        pytest.skip("needs --long")
    for host in pair:
        if host.name in overlay.daemons:
            overlay.daemons[host.name].kill()
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", Overlay.config(Backend={"Type": kind}))
    together(
        [
            lambda host=host: overlay.join_with(
                host, module="peer_probes", constant="SILENT_S = peer_probes.PAUSE_S", value=1.0
            )
            for host in pair
        ]
    )
    for host in pair:
        if kind == "vxlan":
            batch = f"link add br7 type bridge\nlink set br7 up\naddress add {host.gateway()} dev br7\n"
            host.run(["ip", "-batch", "-"], text=batch)
    ends = ((*pair, HOP_MTU - overhead), (*pair[::-1], HOP_MTU + VLAN - overhead))

    for host, other, wanted in ends:
        wait_until(
            lambda host=host, other=other, wanted=wanted: mtu_to(host, other) == wanted,
            what=f"{host.name} has the MTU of the path to {other.name}",
            deadline_s=SOON_S,
        )

    for host, other, wanted in ends:
        for size in (wanted, wanted + 1, 1500 - overhead, 1500 - overhead + 200):
            assert " 0% packet loss" in answers(host, other, size, "-M", "dont"), (size, host.name)
        assert f"mtu={wanted}" in answers(host, other, wanted + 1, "-M", "do")
        notes = overlay.status(host).backend.notes
        assert (
            f"The paths to these peers carry less than {1500 - overhead} bytes, so their routes have a"
            f" smaller MTU: {other.lease()} {wanted}"
        ) in notes
