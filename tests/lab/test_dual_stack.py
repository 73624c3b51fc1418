"""Networks with both families: containers of three hosts reach each other by IPv4 and by IPv6."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from ipaddress import IPv6Interface, IPv6Network, ip_network
from typing import Any

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import LEFT, Host, plug_in
from pyflannel.lab.waiting import together, wait_until
from testlab.documents import read_document
from testlab.ipv6_cluster import create_bridge
from testlab.overlay import Overlay, PingStream, ipv6_underlay
from testlab.pinging import wait_each_reaches

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

HEALED_S = 1.0
"""Deadline in seconds for the repair of an object."""

ANNOUNCED_S = 3.0
"""Deadline in seconds for the peers of a moved address, shorter than the time until the next packet of the
host."""

SOON_S = 30.0
NETWORK = ip_network("fd00:5::/48")
NAMES = ("docker1", "docker2", "docker3")


@pytest.fixture(scope="module")
def hosts(overlay: Overlay) -> list[Host]:
    """Two hosts on one segment and one host behind the router, with addresses of both families."""
    found = [overlay.hosts[name] for name in NAMES]
    overlay.give_ipv6(*found)
    for host in found:
        create_bridge(host)
    return found


@pytest.fixture(scope="module")
def vxlan_hosts(overlay: Overlay, hosts: list[Host]) -> list[Host]:
    """The hosts in a vxlan network with both families. If an earlier test started flanneld, it runs on."""
    if not overlay.daemons:
        set_config(overlay)
        join(overlay, hosts)
        configure_bridges(hosts)
        wait_reached(hosts)
    return hosts


@pytest.fixture(scope="module")
def wireguard_hosts(overlay: Overlay, vxlan_hosts: list[Host]) -> list[Host]:
    """The hosts in a wireguard network with both families."""
    for host in vxlan_hosts:
        stop(overlay, host)
    set_config(overlay, "wireguard")
    join(overlay, vxlan_hosts)
    configure_bridges(vxlan_hosts)
    wait_reached(vxlan_hosts)
    return vxlan_hosts


def set_config(
    overlay: Overlay, kind: str = "vxlan", *, nftables: bool = False, ipv6: bool = True, **options: str
) -> None:
    backend = {"Type": kind, **options}
    config = Overlay.config(
        EnableIPv6=ipv6, IPv6Network=str(NETWORK), EnableNFTables=nftables, Backend=backend
    )
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)


def join(overlay: Overlay, hosts: list[Host], *flags: str) -> None:
    """Start flanneld on the hosts."""

    def start(host: Host) -> None:
        overlay.daemons[host.name] = host.start_flanneld(f"--store={overlay.etcd.url}", *flags)

    together([lambda host=host: start(host) for host in hosts])


def stop(overlay: Overlay, host: Host) -> None:
    """Stop flanneld on a host, whose next start does not continue with the present backend.

    The third host has no path by host-gw, so the previous backend would stay.
    """
    overlay.daemons[host.name].kill()
    host.run(["rm", "-f", "/var/lib/flannel/last-known.json"])


def configure_bridges(hosts: list[Host]) -> None:
    """Give each host a bridge with its addresses of subnet.env, as a container runtime does."""
    for host in hosts:
        env = host.subnet_env()
        batch = f"address flush dev br7 scope global\naddress add {env['FLANNEL_SUBNET']} dev br7\n"
        if "FLANNEL_IPV6_SUBNET" in env:
            batch += f"address add {env['FLANNEL_IPV6_SUBNET']} dev br7 nodad\n"
        host.run(["ip", "-batch", "-"], text=batch)


def bridge(host: Host) -> IPv6Interface:
    """Return the IPv6 address of the bridge."""
    return IPv6Interface(host.subnet_env()["FLANNEL_IPV6_SUBNET"])


def reaches(host: Host, other: Host) -> bool:
    """Return whether the bridges of two hosts reach each other in both families."""
    pairs = ((host.gateway().ip, other.gateway().ip), (bridge(host).ip, bridge(other).ip))
    return all(
        host.run(["ping", "-n", "-c1", "-W1", "-I", str(source), str(target)], check=False).returncode == 0
        for source, target in pairs
    )


def wait_reached(hosts: list[Host], deadline_s: float = SOON_S) -> None:
    wait_each_reaches(hosts, reaches, deadline_s)


def objects(host: Host) -> list[str]:
    """Return the objects of IPv6 on the tunnel device, and the size of the tunnel guard."""
    script = (
        "ip -6 -o address show dev flannel-v6.1 scope global; ip -6 route show dev flannel-v6.1 proto 80;"
        " ip -6 neigh show dev flannel-v6.1 nud permanent; bridge fdb show dev flannel-v6.1;"
        " cat /proc/sys/net/ipv6/conf/flannel-v6.1/accept_ra; nft list table ip6 flannel-guard | wc -l"
    )
    shown = host.run(["sh", "-c", script], check=False)
    return sorted(line.split(" ", 1)[-1] if "inet6" in line else line for line in shown.stdout.splitlines())


def test_ipv6_joins_a_running_network(overlay: Overlay, hosts: list[Host]) -> None:
    """The hosts keep their IPv4 subnets, and no packet between them is lost."""
    set_config(overlay, ipv6=False)
    join(overlay, hosts)
    configure_bridges(hosts)
    subnets = [host.lease() for host in hosts]

    with PingStream(hosts[2], hosts[0].gateway().ip, interval_s=0.01) as stream:
        stream.wait_answered()
        set_config(overlay)
        for host in hosts:
            wait_until(
                lambda host=host: "FLANNEL_IPV6_SUBNET" in host.subnet_env(),
                what=f"{host.name} has an IPv6 subnet",
                deadline_s=SOON_S,
            )
        stream.wait_answered()

    assert stream.lost() == []
    assert [host.lease() for host in hosts] == subnets
    configure_bridges(hosts)


def test_hosts_reach_each_other_in_both_families(overlay: Overlay, vxlan_hosts: list[Host]) -> None:
    """Each lease has one key for both subnets, in the format of the original."""
    wait_reached(vxlan_hosts)
    for host in vxlan_hosts:
        env = host.subnet_env()
        subnet, ipv6 = host.lease(), bridge(host).network
        assert env["FLANNEL_IPV6_NETWORK"] == str(NETWORK)
        assert env["FLANNEL_MTU"] == "1430"
        assert ipv6.subnet_of(IPv6Network(NETWORK))
        key = f"{PREFIX}/subnets/{subnet.network_address}-24&{ipv6.network_address}-64"
        value = json.loads(overlay.etcd.etcdctl("get", "--print-value-only", key))
        assert value["PublicIPv6"] == str(ipv6_underlay(host).ip)
        assert value["BackendData"]["VNI"] == value["BackendV6Data"]["VNI"] == 1
        assert value["BackendData"]["VtepMAC"] != value["BackendV6Data"]["VtepMAC"]
        status = overlay.wait_ready(host)
        assert status.lease is not None
        assert status.lease.ipv6_subnet == ipv6


def test_the_bytes_from_a_peer_are_those_of_both_families(hosts: list[Host]) -> None:
    one, other, _ = hosts

    def received() -> int:
        document = read_document(["peers"], one.flannelctl("peers", other.name, "--no-probe", "--json"))
        size: int = document["peers"][0]["received_bytes"]
        return size

    ends = (other.gateway().ip, one.gateway().ip), (bridge(other).ip, bridge(one).ip)
    for source, target in ends:
        before = received()
        other.run(["ping", "-nq", "-c20", "-i0.01", "-s900", "-I", str(source), str(target)])
        assert received() - before >= 20 * 900


def findings(host: Host) -> list[tuple[str, str]]:
    """Return code and severity of each finding of doctor that is a warning or an error."""
    document = read_document(["doctor"], host.run(["flannelctl", "--json", "doctor"], check=False).stdout)
    found = [(one["code"], one["severity"]) for one in document["findings"]]
    return [one for one in found if one[1] != "info"]


def drops(host: Host) -> list[str]:
    """Return the rules and settings of a host that drop packets, as status shows them."""
    shown = host.run(["flannelctl", "status", "--json"], check=False).stdout
    found: list[str] = read_document(["status"], shown)["firewall"]["drops"]
    return found


def traced(host: Host, address: object) -> tuple[bool, list[str]]:
    """Return whether trace finds no fault on the way to an address, and the steps."""
    report = read_document(
        ["trace"], host.run(["flannelctl", "trace", "--json", str(address)], check=False).stdout
    )
    return report["ok"], [step["name"] for step in report["steps"]]


@pytest.mark.parametrize(
    ("do", "undo", "found", "fails"),
    [
        ("ip6tables -I INPUT -p udp --dport 8472", "", ["tunnel-dropped"], {6}),
        ("iptables -I INPUT -p udp --dport 8472", "", ["tunnel-dropped"], {4}),
        ("ip6tables -I FORWARD -o br7", "", ["forward-dropped"], set()),
        ("ip6tables -I INPUT -i eth0 -p ipv6-icmp --icmpv6-type 135", "", ["neighbour-dropped"], set()),
        (
            "nft 'table inet fw { chain c { type filter hook output priority 0; udp dport 8472 drop; }; }'",
            "nft delete table inet fw",
            ["tunnel-not-sent"],
            {4, 6},
        ),
        (
            "nft 'table inet fw { chain c { type filter hook forward priority 0; policy drop; }; }'",
            "nft delete table inet fw",
            ["forward-dropped"] * 2,
            set(),
        ),
        (
            "sysctl -qw net.ipv6.conf.all.forwarding=0",
            "sysctl -qw net.ipv6.conf.all.forwarding=1",
            ["forwarding-off"],
            set(),
        ),
        ("ip link set br7 down", None, ["bridge-down"], set()),
    ],
    ids=str,
)
def test_doctor_and_trace_examine_each_family(
    vxlan_hosts: list[Host], do: str, undo: str | None, found: list[str], fails: set[int]
) -> None:
    """A rule of one family is named once, also by status, and trace passes in the other family."""
    first, second, _ = vxlan_hosts
    if not undo and undo is not None:
        do, undo = f"{do} -j DROP", f"{do} -j DROP".replace("-I", "-D")
    assert findings(first) == []
    ends = {4: second.gateway().ip, 6: bridge(second).ip}
    assert all(traced(first, end)[0] for end in ends.values())

    first.run(["sh", "-c", do])
    try:
        named, shown = findings(first), drops(first)
        failing = {family for family, end in ends.items() if not traced(first, end)[0]}
    finally:
        first.run(["sh", "-c", undo or "ip link set br7 up"])
        configure_bridges([first])

    assert named == [(code, "error") for code in found]
    assert len(shown) == len(found)
    assert failing == fails
    assert (findings(first), drops(first)) == ([], [])


def pinged(host: Host, name: object, *, exit_code: int = 0) -> dict[str, Any]:
    ran = host.run(["flannelctl", "ping", str(name), "--json"], check=False)
    assert ran.returncode == exit_code, ran.stdout + ran.stderr
    return read_document(["ping"], ran.stdout)


def parts(report: dict[str, Any]) -> list[tuple[int, str, str]]:
    return [(step["family"], step["name"], step["state"]) for step in report["steps"]]


PATH = ("underlay", "tunnel", "container")


def test_ping_probes_a_host_in_each_family_and_a_container_in_its_own(vxlan_hosts: list[Host]) -> None:
    first, second, third = vxlan_hosts
    for name in (
        second.name,
        second.address,
        ipv6_underlay(second).ip,
        second.lease(),
        bridge(second).network,
    ):
        report = pinged(first, name)
        assert parts(report) == [(family, part, "reached") for family in (4, 6) for part in PATH]
        assert [step["mtu"] for step in report["steps"]] == [1500, 1430, 1430] * 2
        assert (report["ok"], report["subnet"]) == (True, str(second.lease()))
    shown = first.flannelctl("ping", second.name)
    for family in (4, 6):
        assert f"IPv{family} tunnel" in shown
    for container, family in ((third.gateway().ip, 4), (bridge(third).ip, 6)):
        report = pinged(first, container)
        assert parts(report) == [(family, part, "reached") for part in PATH]
        assert report["steps"][-1]["destination"] == str(container)
        measured = read_document(["bench"], first.flannelctl("bench", str(container), "--json"))
        assert {line["destination"] for line in measured["lines"]} >= {str(container)}
    missing = first.run(["flannelctl", "ping", "fd00:9::1"], check=False)
    assert (missing.returncode, "no lease contains fd00:9::1" in missing.stderr) == (1, True)


@pytest.mark.parametrize(
    ("programs", "named"),
    [(("ip6tables",), "IPv6"), (("iptables",), "IPv4"), (("iptables", "ip6tables"), "IPv4 and IPv6")],
    ids=str,
)
def test_ping_peers_and_status_name_the_family_that_fails(
    vxlan_hosts: list[Host], programs: tuple[str, ...], named: str
) -> None:
    first, second, _ = vxlan_hosts
    drop = "-p udp --dport 8472 -j DROP"

    for program in programs:
        second.run(["sh", "-c", f"{program} -I INPUT {drop}"])
    try:
        report = pinged(first, second.name, exit_code=1)
        entries = read_document(["peers"], first.flannelctl("peers", "--json"))["peers"]
        shown = first.flannelctl("peers")
        summary = first.run(["flannelctl", "status"], check=False).stdout.splitlines()[0]
    finally:
        for program in programs:
            second.run(["sh", "-c", f"{program} -D INPUT {drop}"])

    reached = {4: "iptables" not in programs, 6: "ip6tables" not in programs}
    assert report["stops"] == "tunnel"
    assert report["cause"].startswith(
        f"{named}: {second.name} ({second.address}) answers on the underlay"
    ) or (
        named == "IPv6"
        and report["cause"].startswith(
            f"IPv6: {second.name} ({ipv6_underlay(second).ip}) answers on the underlay"
        )
    )
    tunnels = {step["family"]: step["state"] for step in report["steps"] if step["name"] == "tunnel"}
    assert {family: state == "reached" for family, state in tunnels.items()} == reached
    found = {entry["subnet"]: (entry["is_reached"], entry["ipv6"]["is_reached"]) for entry in entries}
    assert found.pop(str(second.lease())) == (reached[4], reached[6])
    assert [*found.values()] == [(True, True)]
    (line,) = [line for line in shown.splitlines() if str(second.lease()) in line]
    if len(programs) == 2:
        assert f"no answer: run flannelctl ping {second.address}" in line
        assert "IPv6 no answer" not in line
    else:
        assert f"{named} no answer" in line
        assert f"IPv{4 if reached[4] else 6} answers in" in line
    assert "does not answer" in summary or "do not answer" in summary, summary


@pytest.mark.parametrize(
    "damage",
    [
        "ip link delete flannel-v6.1",
        "ip -6 address flush dev flannel-v6.1 scope global",
        "ip -6 route flush dev flannel-v6.1 proto 80",
        "ip -6 neigh flush dev flannel-v6.1 nud permanent",
        "bridge fdb show dev flannel-v6.1 | while read mac rest; do"
        " bridge fdb delete $mac dev flannel-v6.1; done",
        "ip link set flannel-v6.1 down",
        "nft delete table ip6 flannel-guard",
        "nft flush chain ip6 flannel-guard to_us",
    ],
)
def test_each_object_is_repaired(overlay: Overlay, vxlan_hosts: list[Host], damage: str) -> None:
    """A notification of the kernel causes the repair."""
    host = vxlan_hosts[0]
    wanted = objects(host)
    assert len(wanted) == 1 + 3 * (len(vxlan_hosts) - 1) + 2

    host.run(["sh", "-c", damage])

    wait_until(lambda: objects(host) == wanted, what=f"repair of: {damage}", deadline_s=HEALED_S)


def test_a_rebuild_of_the_guard_loses_no_packet_of_a_member(
    overlay: Overlay, vxlan_hosts: list[Host]
) -> None:
    first, second = vxlan_hosts[0], vxlan_hosts[2]
    wanted = objects(first)

    with PingStream(second, bridge(first).ip, interval_s=0.01) as stream:
        stream.wait_answered()
        for damage in ("delete table ip6 flannel-guard", "flush set ip6 flannel-guard ends"):
            first.run(["nft", damage])
            wait_until(lambda: objects(first) == wanted, what=f"repair of: {damage}", deadline_s=SOON_S)
        stream.wait_answered()

    assert stream.lost() == []


def guard_handles(host: Host) -> str:
    """Return the rules of the guard with their numbers, which are new if a rule is written again."""
    listed = host.run(["nft", "--handle", "--stateless", "list", "table", "ip6", "flannel-guard"]).stdout
    return "\n".join(line for line in listed.splitlines() if "# handle" in line)


def test_a_restart_loses_no_packet(overlay: Overlay, vxlan_hosts: list[Host]) -> None:
    """The restarted daemon adopts the tunnel guard."""
    first, second = vxlan_hosts[0], vxlan_hosts[2]
    key, guard = (first.lease(), bridge(first)), guard_handles(first)

    with PingStream(second, bridge(first).ip, interval_s=0.01) as stream:
        stream.wait_answered()
        overlay.daemons[first.name].kill()
        overlay.join(first)
        stream.wait_answered()

    assert stream.lost() == []
    assert (first.lease(), bridge(first)) == key
    assert guard_handles(first) == guard


def check_moves(
    overlay: Overlay, host: Host, other: Host, moves: Iterable[tuple[int, str, str, tuple[str, str]]]
) -> None:
    """Move an address of one family to another address and link, and check the lease and both families.

    The lease has the new address within two seconds, and the peers reach this address within five seconds.
    The other family loses no packet.
    """
    ends = {4: host.gateway().ip, 6: bridge(host).ip}
    gateways = {4: LEFT.gateway.ip, 6: ipv6_underlay(host).network[0xFE]}
    for family, before, after, links in moves:
        with (
            PingStream(other, ends[family], interval_s=0.05) as moving,
            PingStream(other, ends[10 - family], interval_s=0.05) as staying,
        ):
            for stream in (moving, staying):
                stream.wait_answered()
            first = max(answer.number for answer in staying.answers())
            batch = (
                f"address delete {before} dev {links[0]}\n"
                f"address add {after} dev {links[1]}{' nodad' if family == 6 else ''}\n"
                f"route replace default via {gateways[family]} dev {links[1]}\n"
            )
            host.run(["ip", "-batch", "-"], text=batch)
            began = time.monotonic()
            wait_until(
                lambda after=after: after.partition("/")[0] in published(overlay, host),
                what=f"the lease has {after}",
                deadline_s=2.0,
            )
            moving.wait_answered(deadline_s=began + 5.0 - time.monotonic())
            staying.wait_answered()
        assert [number for number in staying.lost() if number > first] == [], after


def test_a_changed_address_of_one_family_loses_no_packet_of_the_other_family(
    overlay: Overlay, vxlan_hosts: list[Host]
) -> None:
    """The addresses of both families change in turn, and then change back."""
    host, other, _ = vxlan_hosts
    configure_bridges(vxlan_hosts)
    link = ("eth0", "eth0")
    old, new = str(host.place.address), "10.10.10.111/24"
    old_ipv6, new_ipv6 = str(ipv6_underlay(host)), "fd07:1::6f/64"

    check_moves(
        overlay,
        host,
        other,
        (
            (4, old, new, link),
            (6, old_ipv6, new_ipv6, link),
            (4, new, old, link),
            (6, new_ipv6, old_ipv6, link),
        ),
    )


def test_a_move_of_one_family_to_another_interface_loses_no_packet_of_the_other_family(
    overlay: Overlay, vxlan_hosts: list[Host]
) -> None:
    """The address and the default route move to eth5, and back, first in IPv4 and then in IPv6."""
    host, other, _ = vxlan_hosts
    configure_bridges(vxlan_hosts)
    router = overlay.lab.router
    cable = f"eth5 netns {host.init_pid} type veth peer name dual5 netns {router.init_pid}"
    subprocess.run(["ip", "link", "add", *cable.split()], check=True)
    router.run(["ip", "link", "set", "dual5", "master", LEFT.name, "up"])
    host.run(["ip", "link", "set", "eth5", "up"])
    away, back = ("eth0", "eth5"), ("eth5", "eth0")
    old, new = str(host.place.address), "10.10.10.121/24"
    old_ipv6, new_ipv6 = str(ipv6_underlay(host)), "fd07:1::79/64"

    check_moves(
        overlay,
        host,
        other,
        (
            (4, old, new, away),
            (4, new, old, back),
            (6, old_ipv6, new_ipv6, away),
            (6, new_ipv6, old_ipv6, back),
        ),
    )
    host.run(["ip", "link", "delete", "eth5"])


def published(overlay: Overlay, host: Host) -> list[str]:
    """Return the addresses in the lease of a host."""
    prefix = f"{PREFIX}/subnets/{host.lease().network_address}-"
    value = json.loads(overlay.etcd.etcdctl("get", "--prefix", "--print-value-only", prefix))
    return [value["PublicIP"], value["PublicIPv6"]]


def test_peers_reach_a_host_whose_addresses_moved_to_another_nic(
    overlay: Overlay, vxlan_hosts: list[Host]
) -> None:
    """The peers know the previous MAC address of the host, and at first the host sends the peers only the
    announcements.
    """
    host, other, _ = vxlan_hosts
    configure_bridges(vxlan_hosts)
    ends = (host.gateway().ip, bridge(host).ip)
    with ExitStack() as stack:
        streams = [stack.enter_context(PingStream(other, end, interval_s=0.05)) for end in ends]
        for stream in streams:
            stream.wait_answered()
        address = ipv6_underlay(host)
        host.run(["ip", "link", "delete", "eth0"])
        plug_in(overlay.lab.router, host, host.place)
        batch = f"address add {address} dev eth0 nodad\nroute add default via {address.network[0xFE]}\n"
        host.run(["ip", "-batch", "-"], text=batch)

        began = time.monotonic()
        for stream in streams:
            stream.wait_answered(deadline_s=began + ANNOUNCED_S - time.monotonic())


@pytest.mark.parametrize("has_nftables", [False, True], ids=["iptables", "nftables"])
def test_host_gw_and_the_filter_rules_have_both_families(
    overlay: Overlay, vxlan_hosts: list[Host], has_nftables: bool
) -> None:
    """Packets that leave the network get the address of the host in both families."""
    pair = vxlan_hosts[:2]
    for host in pair:
        stop(overlay, host)
    set_config(overlay, "host-gw", nftables=has_nftables)
    join(overlay, pair, "--ip-masq")
    configure_bridges(pair)

    wait_reached(pair)
    first, second = pair
    routes = first.run(["ip", "-6", "route", "show", "proto", "80"]).stdout
    assert f"{bridge(second).network} via {ipv6_underlay(second).ip} dev eth0" in routes
    assert first.subnet_env()["FLANNEL_MTU"] == "1500"
    assert not any(link["ifname"].startswith("flannel") for link in first.links())
    router = str(ipv6_underlay(first).network[0xFE])
    # The router has no route to the overlay, so the router answers only the host.
    first.run(["ping", "-n", "-c1", "-W5", "-I", str(bridge(first).ip), router])
    rules = first.run(["nft", "list", "ruleset"]).stdout
    saved = first.run(["ip6tables-save"]).stdout
    if has_nftables:
        assert "table ip6 flannel-ipv6" in rules
        assert "FLANNEL-POSTRTG" not in saved
    else:
        assert f"-A FLANNEL-POSTRTG -s {NETWORK} ! -d ff00::/8" in saved


def test_wireguard_carries_both_families(wireguard_hosts: list[Host]) -> None:
    """Each family has a device. While a device is missing, no packet leaves unencrypted."""
    first, second, _ = wireguard_hosts
    endpoints = first.run(["wg", "show", "flannel-wg-v6", "endpoints"]).stdout
    assert f"[{ipv6_underlay(second).ip}]:51821" in endpoints
    assert (
        f"blackhole {NETWORK} dev lo proto 80 metric 4294967295"
        in first.run(["ip", "-6", "route", "show", str(NETWORK)]).stdout
    )
    first.run(["ip", "link", "delete", "flannel-wg-v6"])
    wait_reached(wireguard_hosts)


_SNIFFER = """
import signal, socket, sys
sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # sent ones too: ETH_P_ALL
sniffer.bind(("eth0", 3))
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
print("sniffing", flush=True)
seen = set()
while True:
    packet, source = sniffer.recvfrom(65536)
    if source[1] == 0x0800 and b"\\n\\x64" in (packet[12:14], packet[16:18]):
        line = "clear"
    elif source[1] == 0x86dd and bytes.fromhex("fd0000050000") in (packet[8:14], packet[24:30]):
        line = "clear"
    elif source[1] == 0x86dd and packet[6] == 17 and packet[42:44] == (51820).to_bytes(2, "big"):
        line = "encrypted"
    else:
        continue
    if line not in seen:
        seen.add(line)
        print(line, flush=True)
"""
"""Reports packets on eth0 with an outer address of the overlay, and datagrams of WireGuard over IPv6."""


def make_public(overlay: Overlay, *hosts: Host) -> dict[str, IPv6Interface]:
    """Give the hosts public IPv6 addresses, and deprecate their unique local addresses; return the new
    addresses.
    """
    found = {}
    for number, segment in enumerate(("left", "right"), start=1):
        gateway = f"2001:db8:{number}::fe/64"
        overlay.lab.router.run(["ip", "address", "add", gateway, "dev", f"gw-{segment}", "nodad"])
    for host in hosts:
        before = ipv6_underlay(host)
        after = IPv6Interface(str(before).replace("fd07:", "2001:db8:", 1))
        batch = f"address change {before} dev eth0 preferred_lft 0\naddress add {after} dev eth0 nodad\n"
        host.run(["ip", "-batch", "-"], text=batch)
        found[host.name] = after
    return found


def test_one_wireguard_device_carries_both_families(overlay: Overlay, wireguard_hosts: list[Host]) -> None:
    """Running hosts change the mode. In the mode ipv6, the tunnel uses IPv6 for both families.

    The mode auto uses IPv6 if the IPv6 addresses of both hosts are public.
    """
    first, second, _ = wireguard_hosts
    sniffer = first.start([sys.executable, "-c", _SNIFFER], name="sniffer")
    log = first.directory / "log/sniffer.log"
    wait_until(lambda: "sniffing" in log.read_text(), what="a sniffer", deadline_s=SOON_S)

    def wait_endpoint(endpoint: str, mode: str) -> None:
        # Until a peer changes the mode, it sends to the previous endpoint, and this host accepts its packets.
        for host in wireguard_hosts:
            overlay.wait_status(
                host,
                lambda status: status.network is not None and f'"Mode": "{mode}"' in str(status.network.text),
                f"has the mode {mode}",
            )
        wait_until(
            lambda: (
                endpoint in first.run(["wg", "show", "flannel-wg", "endpoints"], check=False).stdout
                and "flannel-wg-v6" not in [link["ifname"] for link in first.links()]
            ),
            what=f"the endpoint of the mode {mode}",
            deadline_s=SOON_S,
        )
        wait_reached(wireguard_hosts)

    for mode, endpoint in (
        ("auto", f"{second.address}:51820"),  # the IPv6 addresses are not public
        ("ipv4", f"{second.address}:51820"),
        ("ipv6", f"[{ipv6_underlay(second).ip}]:51820"),
    ):
        set_config(overlay, "wireguard", Mode=mode)
        wait_endpoint(endpoint, mode)

    # Until a peer changes the mode, it sends over IPv4, and the endpoint follows its packets.
    wait_until(
        lambda: reaches(first, second) and "encrypted" in log.read_text(),
        what="an encrypted packet over IPv6",
        deadline_s=SOON_S,
    )
    assert log.read_text().splitlines() == ["sniffing", "encrypted"]
    sniffer.stop()
    public = make_public(overlay, *wireguard_hosts)
    wait_endpoint(f"[{public[second.name].ip}]:51820", "ipv6")
    set_config(overlay, "wireguard", Mode="auto")
    wait_endpoint(f"[{public[second.name].ip}]:51820", "auto")
    allowed = first.run(["wg", "show", "flannel-wg", "allowed-ips"]).stdout
    assert f"{second.lease()} {bridge(second).network}" in allowed
    subnet = second.lease()
    key = f"{PREFIX}/subnets/{subnet.network_address}-24&{bridge(second).network.network_address}-64"
    value = json.loads(overlay.etcd.etcdctl("get", "--print-value-only", key))
    assert value["BackendData"] == value["BackendV6Data"]
    overlay.daemons[first.name].kill()
    first.run(["wg", "set", "flannel-wg", "peer", value["BackendData"]["PublicKey"], "remove"])
    overlay.join(first)
    wait_reached(wireguard_hosts)


def test_unencrypted_packets_from_outside_are_not_delivered(
    overlay: Overlay, wireguard_hosts: list[Host]
) -> None:
    """The host would answer an echo that it receives."""
    host, router = wireguard_hosts[0], overlay.lab.router
    router.run(["ip", "route", "add", str(bridge(host).network), "via", str(ipv6_underlay(host).ip)])

    found = router.run(["ping", "-n", "-c20", "-i0.01", "-W1", str(bridge(host).ip)], check=False).stdout

    assert "20 packets transmitted, 0 received" in found
    dropped = host.run(["nft", "list", "chain", "ip6", "flannel-guard", "in_clear"]).stdout
    assert "counter packets 20" in dropped
    wait_reached(wireguard_hosts[:2])


def test_a_cleanup_removes_the_objects_of_both_families(
    overlay: Overlay, wireguard_hosts: list[Host]
) -> None:
    """The fence of the network stays while a bridge of containers has a part of it."""
    host = wireguard_hosts[0]
    subnet = host.lease()
    overlay.daemons[host.name].kill()
    host.run(["ip", "link", "delete", "br7"])

    host.flannelctl("cleanup", "--yes", f"--store={overlay.etcd.url}")

    assert not overlay.etcd.etcdctl(
        "get", "--prefix", "--keys-only", f"{PREFIX}/subnets/{subnet.network_address}-"
    )
    assert not [link["ifname"] for link in host.links() if link["ifname"].startswith("flannel")]
    assert not host.run(["ip", "-6", "route", "show", "proto", "80"]).stdout
    assert "flannel" not in host.run(["ip6tables-save"]).stdout.lower()
    assert "flannel" not in host.run(["nft", "list", "tables"]).stdout
