"""Running hosts follow their underlay: another address, another MTU, another interface."""

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Interface
from typing import Any

import pytest

from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.topology import LEFT, Host, HostPlace, Topology
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 60.0

BACKENDS = ("udp", "vxlan", "host-gw", "wireguard")
OVERHEAD = {"udp": 28, "vxlan": 50, "host-gw": 0, "wireguard": 80}
NUMBERS = itertools.count(120)

THREE = Topology(
    (LEFT,),
    tuple(HostPlace(f"docker{n}", LEFT, IPv4Interface(f"10.10.10.{100 + n}/24")) for n in (1, 2, 3)),
)


def connect(overlay: Any, host: Host, link: str, address: IPv4Interface, mac: str) -> None:
    """Connect a new interface of the host to its segment, and move the default route to it."""
    port, router = f"p{next(NUMBERS)}", overlay.lab.router
    ends = f"{link} address {mac} netns {host.init_pid} type veth peer name {port} netns {router.init_pid}"
    cable = f"link add {ends}\n"
    subprocess.run(["ip", "-batch", "-"], input=cable, text=True, check=True)
    router.run(["ip", "link", "set", port, "master", LEFT.name, "up"])
    batch = f"address add {address} dev {link}\nlink set {link} up\n"
    batch += f"route replace default via {LEFT.gateway.ip} dev {link}\n"
    host.run(["ip", "-batch", "-"], text=batch)


class Changes:
    """Changes of a host's underlay. Each method returns the new address and the new MTU."""

    def __init__(self, overlay: Any, host: Host) -> None:
        self._overlay = overlay
        self._host = host
        self._link = "eth0"
        self._address = host.place.address
        self._mac = ""

    def address(self) -> tuple[str, int]:
        old, self._address = self._address, self._next()
        self._host.run(
            ["ip", "-batch", "-"],
            text=f"address delete {old} dev {self._link}\naddress add {self._address} dev {self._link}\n"
            f"route replace default via {LEFT.gateway.ip} dev {self._link}\n",
        )
        return str(self._address.ip), 1500

    def mtu(self) -> tuple[str, int]:
        self._host.run(["ip", "link", "set", self._link, "mtu", "1400"])
        return str(self._address.ip), 1400

    def interface(self) -> tuple[str, int]:
        """The default route moves to another interface, and the old interface loses its connection."""
        old, self._link = self._link, f"eth{next(NUMBERS)}"
        self._address = self._next()
        self._mac = f"0e:00:00:00:00:{next(NUMBERS):02x}"
        connect(self._overlay, self._host, self._link, self._address, self._mac)
        self._host.run(["ip", "link", "set", old, "down"])
        return str(self._address.ip), 1500

    def index(self) -> tuple[str, int]:
        """The interface is removed and created again, for example because its driver is loaded again."""
        self._host.run(["ip", "link", "delete", self._link])
        connect(self._overlay, self._host, self._link, self._address, self._mac)
        return str(self._address.ip), 1500

    def _next(self) -> IPv4Interface:
        return IPv4Interface(f"10.10.10.{next(NUMBERS)}/24")


@pytest.fixture(scope="module")
def network(make_overlay) -> Iterator[tuple[Any, Changes]]:
    with Lab(f"follows-{os.getpid()}", THREE) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        overlay = make_overlay(lab, etcd, etcd.start())
        overlay.set_backend("udp")

        def join(host: Host) -> None:
            overlay.join(host)
            bridge = f"link add docker0 type bridge\naddress add {host.gateway()} dev docker0\n"
            host.run(["ip", "-batch", "-"], text=bridge + "link set docker0 up\n")

        lab.each(join)
        overlay.settle(*lab.hosts.values())
        yield overlay, Changes(overlay, lab.hosts["docker1"])


def lease_of(overlay: Any, host: Host) -> dict[str, Any]:
    key = f"{PREFIX}/subnets/{str(host.lease()).replace('/', '-')}"
    return dict(json.loads(overlay.etcd.etcdctl("get", "--print-value-only", key)))


def reaches(source: Host, destination: Host) -> bool:
    command = ["ping", "-c1", "-W1", "-I", str(source.gateway().ip), str(destination.gateway().ip)]
    return source.run(command, check=False).returncode == 0


def reach_each_other(overlay: Any, host: Host) -> bool:
    others = [other for other in overlay.hosts.values() if other is not host]
    return all(reaches(host, other) and reaches(other, host) for other in others)


@pytest.mark.parametrize("kind", BACKENDS)
def test_the_overlay_follows_the_underlay(
    network: tuple[Any, Changes], figures: Callable[[str], None], kind: str
) -> None:
    """The lease is published again, the subnet stays, and all hosts reach each other."""
    overlay, changes = network
    host = overlay.hosts["docker1"]
    overlay.set_backend(kind)
    wait_until(
        lambda: lease_of(overlay, host).get("BackendType", "udp") == kind, what=kind, deadline_s=SOON_S
    )
    wait_until(lambda: reach_each_other(overlay, host), what=f"{kind} works", deadline_s=SOON_S)
    subnet = host.lease()
    for change in (changes.address, changes.mtu, changes.interface, changes.index):
        address, mtu = change()
        began = time.monotonic()
        wait_until(
            lambda address=address: lease_of(overlay, host)["PublicIP"] == address,
            what=f"{change.__name__}: the lease has {address}",
            deadline_s=SOON_S,
        )
        published_s = time.monotonic() - began
        wait_until(
            lambda: reach_each_other(overlay, host),
            what=f"{change.__name__}: all reach it",
            deadline_s=SOON_S,
        )
        reached_s = time.monotonic() - began
        wanted = str(mtu - OVERHEAD[kind])
        wait_until(
            lambda wanted=wanted: host.subnet_env()["FLANNEL_MTU"] == wanted,
            what=f"{change.__name__}: subnet.env has MTU {wanted}",
            deadline_s=SOON_S,
        )
        assert host.lease() == subnet
        figures(f"{kind}, {change.__name__}: published {published_s:.2f} s, all reached {reached_s:.2f} s")
