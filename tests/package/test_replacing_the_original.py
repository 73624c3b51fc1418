"""The guide from the original to the package and back, on a system that systemd boots.

The original is imitated from recordings of it, because no package of it exists for Debian.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.topology import COOKBOOK, LEFT, Host, Topology
from pyflannel.lab.waiting import wait_until
from testlab import imitated_original
from testlab.booted_system import BootedSystem
from testlab.debian_systems import NEEDS_DEBIAN_SYSTEMS, bootable_system, install, package_of
from testlab.pinging import pinging

GUIDE = (Path(__file__).parents[2] / "docs/guides/taking-over.md").read_text()
TO_VXLAN, TO_UDP, BACK = re.findall(r"^```console\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)
RELEASE = "13"
SUBNET = IPv4Network("10.100.31.0/24")
GATEWAY = IPv4Interface("10.100.31.1/24")
MAC = "36:f5:41:10:dc:86"
KEY = f"{PREFIX}/subnets/{str(SUBNET).replace('/', '-')}"
SOON_S = 60.0
PINGS_PER_S = 100
GAP_S = 5
"""Maximum time in seconds without packets with the backend udp. On an idle machine, a twentieth of this time
was measured."""

pytestmark = NEEDS_DEBIAN_SYSTEMS


@dataclass(frozen=True)
class Replaced:
    """A system on which the original runs, and a container on it that reaches a container of a peer."""

    backend: str
    etcd: EtcdServer
    system: BootedSystem
    container: NamespaceContainer
    peers: NamespaceContainer

    def lease(self) -> dict[str, object]:
        lease: dict[str, object] = json.loads(self.etcd.etcdctl("get", "--print-value-only", KEY))
        return lease

    def has_subnet_env(self) -> bool:
        return self.system.run(["grep", str(GATEWAY), "/run/flannel/subnet.env"], check=False).returncode == 0


@pytest.fixture(params=["vxlan", "udp"])
def replaced(request: pytest.FixtureRequest) -> Iterator[Replaced]:
    backend = str(request.param)
    places = tuple(place for place in COOKBOOK.hosts if place.segment == LEFT)
    with Lab(f"r{os.getpid()}", Topology(COOKBOOK.segments, places)) as lab:
        host, peer = lab.hosts.values()
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        config = {"Network": "10.100.0.0/16", "Backend": {"Type": backend}}
        etcd.etcdctl("put", f"{PREFIX}/config", json.dumps(config))
        peer.start_flanneld(f"--etcd-endpoints={etcd.endpoint}")
        system = BootedSystem(host, bootable_system(RELEASE))
        system.install()
        system.boot()
        system.wait_up()
        start_original(system, backend, etcd, host, peer)
        container = host.container("c", gateway=GATEWAY, mtu=1400)
        peers = peer.container("c", gateway=peer.gateway(), mtu=1400)
        yield Replaced(backend, etcd, system, container, peers)


def start_original(system: BootedSystem, backend: str, etcd: EtcdServer, host: Host, peer: Host) -> None:
    """Write the lease of an original, and start its imitation as a unit."""
    lease: dict[str, object] = {"PublicIP": str(host.address), "BackendType": backend}
    match backend:
        case "vxlan":
            record = etcd.etcdctl("get", "--print-value-only", "--prefix", f"{PREFIX}/subnets/")
            lease["BackendData"] = {"VNI": 1, "VtepMAC": MAC}
            device = (f"{SUBNET.network_address}/32", MAC)
            peers = (peer.lease(), peer.address, json.loads(record)["BackendData"]["VtepMAC"])
            words, script = (host.address, *device, *peers), imitated_original.VXLAN
        case _:
            words = (host.address, f"{SUBNET.network_address}/16", peer.lease(), peer.address)
            script = imitated_original.UDP
    etcd.etcdctl("put", KEY, json.dumps(lease))
    program = "/opt/flannel/flanneld"
    system.run(["install", "-D", "/usr/bin/python3.13", program])
    system.run(["tee", "/opt/flannel/imitation.py"], text=script)
    unit = f"""
        [Service]
        Environment=PYTHONHOME=/usr
        RuntimeDirectory=flannel
        RuntimeDirectoryPreserve=yes
        ExecStartPre=sh -c "echo FLANNEL_SUBNET={GATEWAY} >/run/flannel/subnet.env"
        ExecStart={program} -u /opt/flannel/imitation.py {" ".join(map(str, words))}
        [Install]
        WantedBy=multi-user.target
    """
    system.run(["tee", "/etc/systemd/system/flannel.service"], text=unit)
    system.systemctl("daemon-reload")
    system.systemctl("enable", "--now", "flannel")


def test_the_guide_replaces_the_original_and_returns_to_it(replaced: Replaced, dist: Path) -> None:
    """The host keeps its subnet in both directions. With vxlan, the change to the package loses no ping."""
    system = replaced.system
    to_the_package = TO_VXLAN if replaced.backend == "vxlan" else TO_UDP

    with pinging(replaced.container, str(replaced.peers.address)) as pings:
        install(system, package_of(dist, RELEASE))
        system.run(
            ["tee", "/etc/default/flanneld"], text=f"FLANNELD_ETCD_ENDPOINTS={replaced.etcd.endpoint}\n"
        )
        pings.wait_answered()
        system.run(["sh", "-ec", to_the_package])
        wait_until(
            lambda: ", ready" in system.run(["flannelctl", "status"], check=False).stdout,
            what="flanneld is ready",
            deadline_s=SOON_S,
        )
        pings.wait_answered()

    assert pings.lost <= (0 if replaced.backend == "vxlan" else GAP_S * PINGS_PER_S)
    assert replaced.has_subnet_env()
    assert replaced.lease()["PublicIP"] == "10.10.10.101"
    states = [system.systemctl("is-enabled", unit, check=False).strip() for unit in ("flannel", "flanneld")]
    assert states == ["disabled", "enabled"]

    with pinging(replaced.container, str(replaced.peers.address)) as pings:
        system.run(["sh", "-ec", BACK])
        pings.wait_answered()

    assert pings.lost <= GAP_S * PINGS_PER_S
    assert replaced.has_subnet_env()
    assert replaced.lease()["PublicIP"] == "10.10.10.101"
    assert system.show("flannel", "ActiveState") == "active"
    assert system.show("flanneld", "ActiveState") == "inactive"
    assert system.systemctl("is-enabled", "flanneld", check=False).strip() == "disabled"
