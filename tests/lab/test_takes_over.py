"""The remains of an original flannel are taken over if they are planned, and otherwise only reported."""

import contextlib
import json
import os
import re
from collections.abc import Iterator

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from pyflannel.model.link import split_alias
from testlab.faults import paused

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
SUBNET = "10.100.31.0/24"
MAC = "36:f5:41:10:dc:86"
PEER = "10.100.32.0/24"
PEER_MAC = "1a:71:ad:7e:3b:3f"
PEER_LEASE = (
    f'{{"PublicIP":"10.10.10.102","PublicIPv6":null,"BackendType":"vxlan",'
    f'"BackendData":{{"VNI":1,"VtepMAC":"{PEER_MAC}"}}}}'
)
GONE = "10.100.77.0/24"
"""The remains of a peer that left while the original was stopped."""

VXLAN = f"""
link add flannel.1 type vxlan id 1 dev eth0 local 10.10.10.101 dstport 8472 nolearning
link set flannel.1 address {MAC} up
address add 10.100.31.0/32 dev flannel.1
neigh add 10.100.32.0 lladdr {PEER_MAC} dev flannel.1 nud permanent
route add {PEER} via 10.100.32.0 dev flannel.1 onlink
neigh add 10.100.77.0 lladdr 1a:71:ad:7e:3b:77 dev flannel.1 nud permanent
route add {GONE} via 10.100.77.0 dev flannel.1 onlink
"""
"""The objects of release 0.20, except for the FDB; the objects of flannel 0.28 are equal."""

FDB = (
    f"fdb add {PEER_MAC} dev flannel.1 dst 10.10.10.102 self permanent\n"
    "fdb add 1a:71:ad:7e:3b:77 dev flannel.1 dst 10.10.10.77 self permanent\n"
)

OLD_VXLAN = f"""
link add flannel.1 type vxlan id 1 dev eth0 local 10.10.10.101 dstport 8472 nolearning%s
link set flannel.1 address {MAC} up
address add 10.100.31.0/16 dev flannel.1
"""
"""The objects of release 0.6. The address has the prefix length of the network, which adds a route to it."""

ORIGINALS = "10.100.33.0/24"
ORIGINALS_MAC = "36:f5:41:10:dc:33"
"""The peers on a host where an original runs."""

FOLLOW = r"""
etcdctl watch --prefix "$1" | while read -r word; do
    [ "$word" = PUT ] || continue
    read -r key; read -r value
    mac=$(expr "$value" : '.*"VtepMAC":"\([^"]*\)"')
    host=$(expr "$value" : '.*"PublicIP":"\([^"]*\)"')
    [ "$host" = "$2" ] && continue
    subnet=$(echo "${key##*/}" | tr - /); base=${subnet%/*}
    ip neigh replace "$base" lladdr "$mac" dev flannel.1 nud permanent
    bridge fdb replace "$mac" dev flannel.1 dst "$host" self permanent
    ip route replace "$subnet" via "$base" dev flannel.1 onlink
done
"""
"""The reaction of an original to each written lease. Arguments: prefix of the leases, its own address."""

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


CHAINS_IPV6 = """
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s fd00:5::/48 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""

NFT = """
table ip flannel-ipv4 { chain postrtg { type nat hook postrouting priority 100; meta mark 0x4000 return; }; }
table ip6 flannel-ipv6 { chain forward { type filter hook forward priority 0; }; }
"""
"""The rules of release 0.28, partly with IPv6 enabled or with nftables."""

FOREIGN_RULES = """
*nat
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 10.100.0.0/16 -d 10.200.0.0/16 -j RETURN
COMMIT
*filter
:FLANNELS -
-A FORWARD -s 10.100.0.0/16 -j ACCEPT
-A FORWARD -d 10.100.0.0/16 -j ACCEPT
-A FORWARD -j FLANNELS
COMMIT
"""
"""Rules of Docker and of an operator."""


def seed_rules(network: str) -> str:
    """Return the rules that a killed original of release 0.6 left in POSTROUTING."""
    return f"""
*nat
-A POSTROUTING -s {network} -d {network} -j RETURN
-A POSTROUTING -s {network} ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING ! -s {network} -d {network} -j MASQUERADE
COMMIT
"""


COMMENTED_RULES = """
*nat
-A POSTROUTING -s 10.99.0.0/16 -d 10.99.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A POSTROUTING -s 10.99.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE
COMMIT
*filter
-A FORWARD -s 10.99.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""
"""The rules of releases before 0.20, for another network than the current network."""

FIRST_RULES = """
*nat
:FLANNEL -
-A FLANNEL -d 10.100.0.0/16 -j ACCEPT
-A FLANNEL ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING -s 10.100.0.0/16 -j FLANNEL
COMMIT
"""
"""The rules of releases before 0.6."""


@pytest.fixture
def host(overlay) -> Iterator[Host]:
    """A host with a lease that an original wrote, and one peer. Everything is removed afterwards."""
    made = overlay.hosts["docker1"]
    overlay.wait_at_rest(made)
    put_lease(overlay, SUBNET, "10.10.10.101", MAC)
    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/{PEER.replace('/', '-')}", PEER_LEASE)
    yield made
    made.flannelctl("--store", overlay.etcd.url, "cleanup", check=False)
    overlay.etcd.etcdctl("del", "--prefix", f"{PREFIX}/subnets/")


def put_lease(overlay, subnet: str, address: str, mac: str) -> None:
    """Write a lease as the original does."""
    value = (
        f'{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan",'
        f'"BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}'
    )
    overlay.etcd.etcdctl("put", f"{PREFIX}/subnets/{subnet.replace('/', '-')}", value)


def published_mac(overlay, subnet: str) -> str:
    """Return the VtepMAC in a lease."""
    key = f"{PREFIX}/subnets/{subnet.replace('/', '-')}"
    mac: str = json.loads(overlay.etcd.etcdctl("get", "--print-value-only", key))["BackendData"]["VtepMAC"]
    return mac


def set_backend(overlay, kind: str) -> None:
    """Write a network config with this backend; foreign FDB entries are not learned."""
    text = overlay.config(SubnetMin="10.100.31.0", SubnetMax="10.100.63.0", Backend={"Type": kind})
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", text)


def create_objects(host: Host, objects: str, fdb: str = "") -> None:
    """Create the objects of an original, including filter rules."""
    host.run(["ip", "-batch", "-"], text=objects)
    if fdb:
        host.run(["bridge", "-batch", "-"], text=fdb)
    host.run(["iptables-restore", "--noflush"], text=CHAINS)
    host.run(["ip6tables-restore", "--noflush"], text=CHAINS_IPV6)
    host.run(["nft", "-f", "-"], text=NFT)


def create_device(host: Host, address: str, subnet: str, mac: str, *peers: tuple[str, str, str]) -> None:
    """Create the device of an original on this host, and the entries of peers: subnet, address, VtepMAC."""
    lines = [
        f"link add flannel.1 type vxlan id 1 dev eth0 local {address} dstport 8472 nolearning",
        f"link set flannel.1 address {mac} up",
        f"address add {base(subnet)}/32 dev flannel.1",
    ]
    for other, _, vtep in peers:
        lines.append(f"neigh add {base(other)} lladdr {vtep} dev flannel.1 nud permanent")
        lines.append(f"route add {other} via {base(other)} dev flannel.1 onlink")
    entries = [f"fdb add {vtep} dev flannel.1 dst {place} self permanent" for _, place, vtep in peers]
    host.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")
    host.run(["bridge", "-batch", "-"], text="\n".join(entries) + "\n")


def base(subnet: str) -> str:
    return subnet.partition("/")[0]


def link(host: Host, name: str) -> dict[str, object]:
    return next((one for one in host.links() if one["ifname"] == name), {})


def routes(host: Host) -> dict[str, tuple[str | None, str]]:
    """Return gateway and protocol of the routes into the network by destination."""
    return {
        route["dst"]: (route.get("gateway"), route.get("protocol", "boot"))
        for route in host.routes()
        if route["dst"].startswith("10.100.")
    }


def wait_routes(host: Host, wanted: dict[str, tuple[str, str]]) -> None:
    """Wait until these are the routes into the network. A peer may be added after the host is ready."""
    with contextlib.suppress(LabError):
        wait_until(lambda: routes(host) == wanted, what="the routes", deadline_s=DEADLINE_S)
    assert routes(host) == wanted


def fdb(host: Host) -> dict[str, str]:
    """Return the destination of each FDB entry of flannel.1 by MAC address."""
    shown = host.run(["bridge", "-json", "fdb", "show", "dev", "flannel.1"]).stdout
    return {entry["mac"]: entry["dst"] for entry in json.loads(shown or "[]") if "dst" in entry}


def neighbours(host: Host) -> dict[str, str]:
    shown = host.run(["ip", "-json", "neigh", "show", "dev", "flannel.1", "nud", "permanent"]).stdout
    return {entry["dst"]: entry["lladdr"] for entry in json.loads(shown or "[]")}


def chains(host: Host) -> list[str]:
    """Return all chains and tables with a name of the original."""
    shown = host.run(["sh", "-c", "iptables-save; ip6tables-save; nft list tables"]).stdout
    return [
        line for line in shown.splitlines() if "FLANNEL" in line or re.match("table ip6? flannel-ipv", line)
    ]


def test_a_vxlan_device_is_kept_with_all_valid_entries(overlay, host: Host) -> None:
    """The index of the device does not change.

    flanneld removes the objects of the peer that left, and the unwanted rules.
    """
    set_backend(overlay, "vxlan")
    create_objects(host, VXLAN, FDB)
    index = link(host, "flannel.1")["ifindex"]

    overlay.join(host)
    wait_routes(host, {PEER: ("10.100.32.0", "80")})

    found = link(host, "flannel.1")
    mark, _ = split_alias(found["ifalias"])
    assert (found["ifindex"], mark, found["mtu"]) == (index, "pyflannel", 1450)
    assert found["address"] == published_mac(overlay, SUBNET) == MAC
    assert str(host.lease()) == SUBNET
    assert neighbours(host) == {"10.100.32.0": PEER_MAC}
    assert fdb(host) == {PEER_MAC: "10.10.10.102"}
    assert not any("POSTRTG" in line for line in chains(host))
    assert not any("fd00:5::" in line or "flannel-ipv" in line for line in chains(host))
    assert overlay.status(host).reconcile.repairs == 0


def test_no_packet_is_lost_when_a_vxlan_device_is_taken_over(overlay, host: Host, ping_stream) -> None:
    """Peers with pyflannel and with the original lose no packet, during the start and afterwards."""
    set_backend(overlay, "vxlan")
    overlay.etcd.etcdctl("del", f"{PREFIX}/subnets/{PEER.replace('/', '-')}")
    joined, original = overlay.hosts["docker2"], overlay.hosts["docker4"]
    put_lease(overlay, ORIGINALS, "192.168.50.102", ORIGINALS_MAC)
    overlay.join(joined)
    peer = (str(joined.lease()), "10.10.10.102", published_mac(overlay, str(joined.lease())))
    create_device(host, "10.10.10.101", SUBNET, MAC, peer, (ORIGINALS, "192.168.50.102", ORIGINALS_MAC))
    create_device(original, "192.168.50.102", ORIGINALS, ORIGINALS_MAC, peer, (SUBNET, "10.10.10.101", MAC))
    watch = ["env", "ETCDCTL_API=3", f"ETCDCTL_ENDPOINTS={overlay.etcd.endpoint}", "sh", "-c", FOLLOW, "sh"]
    follower = original.start([*watch, f"{PREFIX}/subnets/", "192.168.50.102"], name="follower")
    streams = [ping_stream(one, base(SUBNET), interval_s=0.001) for one in (joined, original)]
    for stream in streams:
        stream.wait_answered()

    overlay.join(host)
    wait_routes(host, {peer[0]: (base(peer[0]), "80"), ORIGINALS: (base(ORIGINALS), "80")})
    for stream in streams:
        stream.wait_answered()
        stream.stop()

    lost = [stream.lost() for stream in streams]
    follower.kill()
    original.run(["ip", "link", "delete", "flannel.1"])
    joined.flannelctl("--store", overlay.etcd.url, "cleanup")
    assert lost == [[], []]
    assert link(host, "flannel.1")["address"] == published_mac(overlay, SUBNET) == MAC


def test_an_adopted_device_keeps_its_address_when_it_is_created_again(overlay, host: Host) -> None:
    """The test deletes the device while the daemon runs, before a start, and before a start without store."""
    known = host.directory / "var/lib/flannel/last-known.json"

    def is_there() -> bool:
        return link(host, "flannel.1").get("address") == MAC

    set_backend(overlay, "vxlan")
    create_objects(host, VXLAN, FDB)
    overlay.join(host)
    for _ in range(2):
        host.run(["ip", "link", "delete", "flannel.1"])
        wait_until(is_there, what="the device is there, with its address", deadline_s=DEADLINE_S)
        overlay.daemons[host.name].kill()
        host.run(["ip", "link", "delete", "flannel.1"])

        overlay.join(host)

        assert link(host, "flannel.1")["address"] == published_mac(overlay, SUBNET) == MAC
    wait_until(lambda: known.exists() and MAC in known.read_text(), what="a copy", deadline_s=DEADLINE_S)
    overlay.daemons[host.name].kill()
    host.run(["ip", "link", "delete", "flannel.1"])
    with paused(overlay.etcd_program):
        overlay.join(host)
        wait_until(is_there, what="the device is there, with its address", deadline_s=DEADLINE_S)


@pytest.mark.parametrize(("asks", "is_kept"), [("", True), (" l2miss l3miss", False)])
def test_a_device_of_release_0_6_gets_a_route_to_each_peer(
    overlay, host: Host, asks: str, is_kept: bool
) -> None:
    """The device is created again, because its requests for unknown addresses cannot be disabled."""
    set_backend(overlay, "vxlan")
    create_objects(host, OLD_VXLAN % asks)
    host.run(["sysctl", "-qw", "net/ipv4/neigh/flannel.1/app_solicit=3"])
    index = link(host, "flannel.1")["ifindex"]

    overlay.join(host)
    wait_routes(host, {PEER: ("10.100.32.0", "80")})

    assert (link(host, "flannel.1")["ifindex"] == index) == is_kept
    addresses = json.loads(host.run(["ip", "-json", "-4", "address", "show", "flannel.1"]).stdout)
    assert [(one["local"], one["prefixlen"]) for one in addresses[0]["addr_info"]] == [("10.100.31.0", 32)]
    assert neighbours(host) == {"10.100.32.0": PEER_MAC}
    assert link(host, "flannel.1")["address"] == MAC


def test_routes_of_host_gw_are_adopted_and_unknown_ones_remain(overlay, host: Host) -> None:
    """Any program may have added a route without mark that is not planned. Only cleanup removes this
    route.
    """
    set_backend(overlay, "host-gw")
    overlay.etcd.etcdctl(
        "put",
        f"{PREFIX}/subnets/{PEER.replace('/', '-')}",
        '{"PublicIP":"10.10.10.102","BackendType":"host-gw"}',
    )
    before = host.routes()
    create_objects(host, HOST_GW)

    overlay.join(host)

    wait_routes(host, {PEER: ("10.10.10.102", "80"), GONE: ("10.10.10.77", "boot")})
    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")
    assert host.routes() == before
    assert f"removed route {GONE} (left by the original flannel)" in said
    assert chains(host) == []


def test_no_packet_is_lost_when_routes_of_host_gw_are_adopted(overlay, host: Host, ping_stream) -> None:
    """Each route is replaced in place by a route with the mark."""
    set_backend(overlay, "host-gw")
    overlay.etcd.etcdctl("del", f"{PREFIX}/subnets/{PEER.replace('/', '-')}")
    peer = overlay.hosts["docker2"]
    overlay.join(peer)
    subnet = peer.lease()
    bridge = f"link add br7 type bridge\nlink set br7 up\naddress add {peer.gateway()} dev br7\n"
    peer.run(["ip", "-batch", "-"], text=bridge)
    host.run(["ip", "route", "add", str(subnet), "via", "10.10.10.102", "dev", "eth0"])
    stream = ping_stream(host, subnet.network_address + 1, interval_s=0.001)
    stream.wait_answered()

    overlay.join(host)
    wait_routes(host, {str(subnet): ("10.10.10.102", "80")})
    stream.wait_answered()
    stream.stop()

    peer.run(["ip", "link", "delete", "br7"])
    peer.flannelctl("--store", overlay.etcd.url, "cleanup")
    assert stream.lost() == []


def test_cleanup_removes_the_remains_of_an_original(overlay, host: Host) -> None:
    """The host may be one where pyflannel has never run."""
    before = overlay.state(host)
    create_objects(host, VXLAN + HOST_GW.replace("32.0", "33.0").replace("77.0", "78.0"), FDB)
    host.run(["ip", "tuntap", "add", "mode", "tun", "name", "flannel0"])
    env = "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.31.1/24\n"
    host.run(["sh", "-c", "mkdir -p /run/flannel; cat >/run/flannel/subnet.env"], text=env)

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    assert overlay.state(host) == before
    for name in ("link flannel.1", "link flannel0", "route 10.100.33.0/24", "route 10.100.78.0/24"):
        assert f"removed {name} (left by the original flannel)" in said
    assert "removed iptables chain FLANNEL-FWD in filter" in said


VXLAN_IPV6 = """
link add flannel-v6.1 type vxlan id 1 dev eth0 local fd07:1::65 dstport 8472 nolearning udp6zerocsumrx
link set flannel-v6.1 address 2e:19:0b:6f:58:01 up
address add fd00:5:0:1f::/128 dev flannel-v6.1
neigh add fd00:5:0:20:: lladdr 2e:19:0b:6f:58:02 dev flannel-v6.1 nud permanent
route add fd00:5:0:20::/64 via fd00:5:0:20:: dev flannel-v6.1 onlink
"""
"""The IPv6 objects of an original with both families and the backend vxlan."""

HOST_GW_IPV6 = """
route add fd00:5:0:21::/64 via fd07:1::66 dev eth0
route add fd00:5:0:4e::/64 via fd07:1::4d dev eth0
"""

OPERATORS_ROUTES = """
route add fd00:5:0:21:1::/80 via fd07:1::66 dev eth0
route add fd00:6::/64 via fd07:1::66 dev eth0
"""
"""Routes of an operator: to a part of a subnet, and outside the network."""


@pytest.mark.parametrize(
    ("families", "env"),
    [
        (
            (4, 6),
            "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.31.1/24\n"
            "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:1f::1/64\n",
        ),
        ((6,), "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:1f::1/64\n"),
    ],
    ids=["dual", "IPv6 alone"],
)
def test_cleanup_removes_the_remains_of_an_original_in_each_family(
    overlay, host: Host, families: tuple[int, ...], env: str
) -> None:
    """Routes of an operator remain, also inside the IPv6 network."""
    overlay.give_ipv6(host)
    host.run(["ip", "-batch", "-"], text=OPERATORS_ROUTES)
    before = overlay.state(host)
    if 4 in families:
        host.run(["ip", "-batch", "-"], text=VXLAN + HOST_GW.replace("32.0", "33.0").replace("77.0", "78.0"))
    host.run(["ip", "-batch", "-"], text=VXLAN_IPV6 + HOST_GW_IPV6)
    host.run(["ip", "-6", "route", "add", "blackhole", "fd00:5:0:1f::/64"])
    host.run(["ip6tables-restore", "--noflush"], text=CHAINS_IPV6)
    host.run(["sh", "-c", "mkdir -p /run/flannel; cat >/run/flannel/subnet.env"], text=env)
    wanted = [
        "link flannel-v6.1",
        "route fd00:5:0:21::/64 metric 1024",
        "route fd00:5:0:4e::/64 metric 1024",
        "route fd00:5:0:1f::/64 metric 1024",
    ]
    if 4 in families:
        wanted += ["link flannel.1", "route 10.100.33.0/24", "route 10.100.78.0/24"]

    preview = host.flannelctl("--store", overlay.etcd.url, "cleanup", "--dry-run")
    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    assert overlay.state(host) == before
    for name in wanted:
        assert f"{name} (left by the original flannel)" in preview
        assert f"removed {name} (left by the original flannel)" in said
    assert "removed ip6tables chain FLANNEL-FWD in filter" in said
    for route in OPERATORS_ROUTES.splitlines()[1:]:
        host.run(["ip", *route.replace("add", "delete").split()])


def rules(host: Host, program: str = "iptables") -> list[str]:
    """Return rules and chains without counters."""
    lines = host.run([f"{program}-save"]).stdout.splitlines()
    return [line.split(" [")[0] for line in lines if not line.startswith("#")]


def write_subnet_env(host: Host) -> None:
    text = "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.31.1/24\n"
    host.run(["sh", "-c", "mkdir -p /run/flannel; cat >/run/flannel/subnet.env"], text=text)


@pytest.mark.parametrize("program", ["iptables", "iptables-legacy"])
def test_rules_of_every_release_are_removed_and_all_others_remain(overlay, host: Host, program: str) -> None:
    """The rules are in both kinds of iptables: the kind in use, and the kind that was used before."""
    restore = [f"{program}-restore", "--noflush"]
    host.run(restore, text=FOREIGN_RULES)
    before = rules(host, program)
    for left in (seed_rules("10.100.0.0/16"), COMMENTED_RULES, FIRST_RULES, CHAINS):
        host.run(restore, text=left)
    write_subnet_env(host)

    (found,) = [
        one
        for one in json.loads(host.flannelctl("--json", "doctor", check=False))["findings"]
        if one["code"] == "left-by-original"
    ]
    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    assert f"{program} rule in nat POSTROUTING: -s 10.100.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE" in str(found)
    assert f"removed {program} chain FLANNEL in nat (left by the original flannel)" in said
    assert (
        f"removed {program} rule in filter FORWARD: -s 10.99.0.0/16"
        ' -m comment --comment "flanneld forward" -j ACCEPT (left by the original flannel)'
    ) in said
    assert rules(host, program) == before
    assert f"kept {program} rule in filter FORWARD: -s 10.100.0.0/16 -j ACCEPT (may belong to" in said
    host.run([program, "-F"])
    host.run([program, "-X"])
    host.run([program, "-t", "nat", "-F"])


def test_doubtful_rules_are_removed_only_on_request(overlay, host: Host) -> None:
    """The rules are for a network that no other object of this host mentions."""
    host.run(["iptables-restore", "--noflush"], text=FOREIGN_RULES)
    before = rules(host)
    host.run(["iptables-restore", "--noflush"], text=seed_rules("10.55.0.0/16"))
    with_them = rules(host)

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")
    assert rules(host) == with_them
    assert (
        "kept iptables rule in nat POSTROUTING: -s 10.55.0.0/16 -d 10.55.0.0/16 -j RETURN (may belong" in said
    )

    host.flannelctl("--store", overlay.etcd.url, "cleanup", "--doubtful-rules")
    assert rules(host) == before
    host.run(["iptables", "-F"])
    host.run(["iptables", "-X"])
    host.run(["iptables", "-t", "nat", "-F"])


def test_a_blackhole_of_the_original_is_reported_and_removed(overlay, host: Host) -> None:
    """A blackhole of another subnet remains."""
    before = host.routes()
    write_subnet_env(host)
    host.run(["sh", "-c", "echo half >/run/flannel/.subnet.env"])
    host.run(["ip", "route", "add", "blackhole", SUBNET])
    host.run(["ip", "route", "add", "blackhole", "10.100.200.0/24"])

    doctor = host.flannelctl("doctor", check=False)
    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    assert f"route {SUBNET} proto 3" in doctor
    assert f"removed route {SUBNET} (left by the original flannel)" in said
    assert "removed file /run/flannel/.subnet.env" in said
    host.run(["ip", "route", "delete", "blackhole", "10.100.200.0/24"])
    assert host.routes() == before


def test_objects_of_a_running_original_are_not_touched(overlay, host: Host) -> None:
    """The original may use another network of the same host."""
    set_backend(overlay, "host-gw")
    host.run(["ip", "-batch", "-"], text=VXLAN.partition("neigh")[0])
    host.run(["iptables-restore", "--noflush"], text=COMMENTED_RULES)
    host.run(["install", "-D", "/dev/stdin", "/run/flannel/subnet.env"], text=f"FLANNEL_SUBNET={SUBNET}\n")
    with running_original(host):
        preview = host.flannelctl("--store", overlay.etcd.url, "cleanup", "--dry-run")
        said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

        assert "kept link flannel.1 (in use by the original flanneld, pid" in said
        assert "-j RETURN (in use by the original flanneld, pid" in said
        for each in preview, said:
            assert "kept file /run/flannel/subnet.env (in use by the original flanneld, pid" in each
        assert (host.directory / "run/flannel/subnet.env").exists()
        assert link(host, "flannel.1")
    host.flannelctl("--store", overlay.etcd.url, "cleanup")
    assert not link(host, "flannel.1")
    assert not rules(host)


class running_original:
    """A process whose program name is flanneld, for the duration of a block."""

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
