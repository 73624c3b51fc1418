"""What an original flannel left on a host is taken over where the plan has it, and only named where not."""

import contextlib
import json
import os
from collections.abc import Iterator

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.etcd_server import PREFIX
from pyflannel.lab.host import Host
from pyflannel.lab.program import Program
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 30.0
SUBNET = "10.100.31.0/24"
PEER = "10.100.32.0/24"
PEER_MAC = "1a:71:ad:7e:3b:3f"
PEER_LEASE = (
    f'{{"PublicIP":"10.10.10.102","PublicIPv6":null,"BackendType":"vxlan",'
    f'"BackendData":{{"VNI":1,"VtepMAC":"{PEER_MAC}"}}}}'
)
GONE = "10.100.77.0/24"
"""Of a peer that left while nobody looked."""

VXLAN = f"""
link add flannel.1 type vxlan id 1 dev eth0 local 10.10.10.101 dstport 8472 nolearning
link set flannel.1 address 36:f5:41:10:dc:86 up
address add 10.100.31.0/32 dev flannel.1
neigh add 10.100.32.0 lladdr {PEER_MAC} dev flannel.1 nud permanent
route add {PEER} via 10.100.32.0 dev flannel.1 onlink
neigh add 10.100.77.0 lladdr 1a:71:ad:7e:3b:77 dev flannel.1 nud permanent
route add {GONE} via 10.100.77.0 dev flannel.1 onlink
"""
"""As release 0.20 leaves it, but for the FDB; flannel 0.28 too."""

FDB = (
    f"fdb add {PEER_MAC} dev flannel.1 dst 10.10.10.102 self permanent\n"
    "fdb add 1a:71:ad:7e:3b:77 dev flannel.1 dst 10.10.10.77 self permanent\n"
)

OLD_VXLAN = """
link add flannel.1 type vxlan id 1 dev eth0 local 10.10.10.101 dstport 8472 nolearning l2miss l3miss
link set flannel.1 up
address add 10.100.31.0/16 dev flannel.1
"""
"""As release 0.6 leaves it: it answers what the kernel asks of unknown addresses."""

HOST_GW = f"""
route add {PEER} via 10.10.10.102 dev eth0
route add {GONE} via 10.10.10.77 dev eth0
"""

CHAINS = """
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.100.0.0/16 -d 10.100.0.0/16 -j RETURN
-A FLANNEL-POSTRTG -s 10.100.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-I FORWARD -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.100.0.0/16 -j ACCEPT
-A FLANNEL-FWD -d 10.100.0.0/16 -j ACCEPT
COMMIT
"""


@pytest.fixture
def host(overlay) -> Iterator[Host]:
    """A host with a lease that an original wrote, and one peer; clean again afterwards."""
    made = overlay.hosts["docker1"]
    overlay.wait_at_rest(made)
    own = '{"PublicIP":"10.10.10.101","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}'
    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/{SUBNET.replace('/', '-')}", own)
    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/{PEER.replace('/', '-')}", PEER_LEASE)
    yield made
    made.flannelctl("--store", overlay.etcd.url, "cleanup", check=False)
    overlay.etcd.etcdctl("del", "--prefix", f"{PREFIX}/subnets/")


def set_backend(overlay, kind: str) -> None:
    text = json.dumps({"Network": "10.100.0.0/16", "Backend": {"Type": kind}})
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", text)


def lay(host: Host, objects: str, fdb: str = "") -> None:
    """Make the objects as an original would, filter rules too."""
    host.run(["ip", "-batch", "-"], text=objects)
    if fdb:
        host.run(["bridge", "-batch", "-"], text=fdb)
    host.run(["iptables-restore", "--noflush"], text=CHAINS)


def link(host: Host, name: str) -> dict[str, object]:
    return next((one for one in host.links() if one["ifname"] == name), {})


def routes(host: Host) -> dict[str, tuple[str | None, str]]:
    """Return gateway and protocol of the routes into the network, by destination."""
    return {
        route["dst"]: (route.get("gateway"), route.get("protocol", "boot"))
        for route in host.routes()
        if route["dst"].startswith("10.100.")
    }


def wait_routes(host: Host, wanted: dict[str, tuple[str, str]]) -> None:
    """Return when these are the routes into the network: a peer may be heard of when the host is ready."""
    with contextlib.suppress(LabError):
        wait_until(lambda: routes(host) == wanted, what="its routes are there", deadline_s=DEADLINE_S)
    assert routes(host) == wanted


def fdb(host: Host) -> dict[str, str]:
    """Return the destination of each FDB entry of flannel.1, by MAC address."""
    shown = host.run(["bridge", "-json", "fdb", "show", "dev", "flannel.1"]).stdout
    return {entry["mac"]: entry["dst"] for entry in json.loads(shown or "[]") if "dst" in entry}


def neighbours(host: Host) -> dict[str, str]:
    shown = host.run(["ip", "-json", "neigh", "show", "dev", "flannel.1", "nud", "permanent"]).stdout
    return {entry["dst"]: entry["lladdr"] for entry in json.loads(shown or "[]")}


def chains(host: Host) -> list[str]:
    return [line for line in host.run(["iptables-save"]).stdout.splitlines() if "FLANNEL" in line]


def test_a_vxlan_device_is_kept_with_all_that_still_holds(overlay, host: Host) -> None:
    """Its index stays; the peer that left meanwhile leaves nothing, and rules nobody asked for go."""
    set_backend(overlay, "vxlan")
    lay(host, VXLAN, FDB)
    index = link(host, "flannel.1")["ifindex"]

    overlay.join(host)
    wait_routes(host, {PEER: ("10.100.32.0", "80")})

    found = link(host, "flannel.1")
    assert (found["ifindex"], found["ifalias"], found["mtu"]) == (index, "pyflannel", 1450)
    assert str(host.lease()) == SUBNET
    assert neighbours(host) == {"10.100.32.0": PEER_MAC}
    assert fdb(host) == {PEER_MAC: "10.10.10.102"}
    assert not any("POSTRTG" in line for line in chains(host))
    assert overlay.status(host).reconcile.repairs == 0


def test_a_device_of_release_0_6_is_made_anew(overlay, host: Host) -> None:
    """It cannot be told to stop asking for unknown addresses."""
    set_backend(overlay, "vxlan")
    lay(host, OLD_VXLAN)
    index = link(host, "flannel.1")["ifindex"]

    overlay.join(host)
    wait_routes(host, {PEER: ("10.100.32.0", "80")})

    assert link(host, "flannel.1")["ifindex"] != index
    addresses = json.loads(host.run(["ip", "-json", "-4", "address", "show", "flannel.1"]).stdout)
    assert [(one["local"], one["prefixlen"]) for one in addresses[0]["addr_info"]] == [("10.100.31.0", 32)]


def test_host_gw_s_routes_are_taken_over_and_strange_ones_stay(overlay, host: Host) -> None:
    """A route without mark that nobody planned may be anybody's: only cleanup takes it."""
    set_backend(overlay, "host-gw")
    overlay.etcd.etcdctl(
        "put",
        f"{PREFIX}/subnets/{PEER.replace('/', '-')}",
        '{"PublicIP":"10.10.10.102","BackendType":"host-gw"}',
    )
    before = host.routes()
    lay(host, HOST_GW)

    overlay.join(host)

    wait_routes(host, {PEER: ("10.10.10.102", "80"), GONE: ("10.10.10.77", "boot")})
    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")
    assert host.routes() == before
    assert f"removed route {GONE}, which the original flannel left" in said
    assert chains(host) == []


def test_cleanup_removes_what_an_original_left(overlay, host: Host) -> None:
    """On a host where none of ours ever ran, too."""
    before = overlay.state(host)
    lay(host, VXLAN + HOST_GW.replace("32.0", "33.0").replace("77.0", "78.0"), FDB)
    host.run(["ip", "tuntap", "add", "mode", "tun", "name", "flannel0"])
    env = "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.31.1/24\n"
    host.run(["sh", "-c", "mkdir -p /run/flannel; cat >/run/flannel/subnet.env"], text=env)

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    assert overlay.state(host) == before
    for name in ("link flannel.1", "link flannel0", "route 10.100.33.0/24", "route 10.100.78.0/24"):
        assert f"removed {name}, which the original flannel left" in said
    assert "removed iptables chain FLANNEL-FWD in filter" in said


def test_what_an_original_uses_is_left_to_it(overlay, host: Host) -> None:
    """It runs beside us in another network, say."""
    set_backend(overlay, "host-gw")
    host.run(["ip", "-batch", "-"], text=VXLAN.partition("neigh")[0])
    with running_original(host):
        said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

        assert "kept link flannel.1 of the flanneld with pid" in said
        assert link(host, "flannel.1")
    host.flannelctl("--store", overlay.etcd.url, "cleanup")
    assert not link(host, "flannel.1")


class running_original:
    """A program of its own whose name is flanneld, for the length of a block."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def __enter__(self) -> None:
        self._host.run(["sh", "-c", "mkdir -p /run/original; cp /bin/sleep /run/original/flanneld"])
        self._program: Program = self._host.start(["/run/original/flanneld", "1000"], name="original")
        seen = ["sh", "-c", "ls -l /proc/*/exe | grep -q /run/original/flanneld"]
        wait_until(
            lambda: self._host.run(seen, check=False).returncode == 0,
            what="the original runs",
            deadline_s=DEADLINE_S,
        )

    def __exit__(self, *_: object) -> None:
        self._program.kill()
        self._host.run(["rm", "-r", "/run/original"])
