"""flannelctl doctor names faults of containers: links, MTUs, addresses, rules, sysctls and programs."""

import os
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, ip_interface
from typing import Any, NamedTuple

import pytest

from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.documents import read_document
from testlab.overlay import Overlay
from testlab.xdp_program import ATTACH, DROP

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

WRONG = "02:00:00:00:00:99"


class Pair(NamedTuple):
    """A host with two containers, each with a process and with addresses of both families."""

    host: Host
    one: NamespaceContainer
    other: NamespaceContainer
    ipv6: IPv6Interface

    def gateways(self) -> tuple[IPv4Address, IPv6Address]:
        return self.host.gateway().ip, self.ipv6.ip

    def findings(self) -> dict[str, dict[str, Any]]:
        """Return the findings by code that are warnings or errors."""
        return {code: one for code, one in self.every_finding().items() if one["severity"] != "info"}

    def every_finding(self) -> dict[str, dict[str, Any]]:
        """Return the findings by code."""
        document = read_document(
            ["doctor"], self.host.run(["flannelctl", "--json", "doctor"], check=False).stdout
        )
        return {one["code"]: one for one in document["findings"]}


@pytest.fixture(scope="module")
def pair(overlay: Overlay) -> Pair:
    hosts = [overlay.hosts[name] for name in ("docker1", "docker2")]
    overlay.give_ipv6(*hosts)
    config = Overlay.config(
        SubnetLen=28, EnableIPv6=True, IPv6Network="fd00:5::/48", Backend={"Type": "vxlan"}
    )
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)
    together([lambda host=host: overlay.join(host) for host in hosts])
    overlay.settle(*hosts)
    host = hosts[0]
    ipv6 = IPv6Interface(host.subnet_env()["FLANNEL_IPV6_SUBNET"])
    made = []
    for number, name in enumerate("ab", start=2):
        container = host.container(name, gateway=host.gateway(), number=number, mtu=1430)
        address = IPv6Interface((ipv6.network[number], ipv6.network.prefixlen))
        host.run(["ip", "-n", name, "address", "add", str(address), "dev", "eth0", "nodad"])
        container.start_in_network(["sleep", "1000"], name=f"process in {name}")
        made.append(container)
    host.run(["ip", "address", "add", str(ipv6), "dev", "br0", "nodad"])
    for container in made:
        inside = ["ip", "-n", container.name, "-6", "route", "add", "default", "via", str(ipv6.ip)]
        host.run(inside)
    found = Pair(host, made[0], made[1], ipv6)
    overlay.wait_at_rest(host)
    return found


@pytest.fixture
def healthy(pair: Pair) -> Iterator[Pair]:
    """The containers without findings, before and after the test."""
    wait_until(lambda: pair.findings() == {}, what="doctor finds nothing", deadline_s=60.0)
    yield pair
    assert pair.findings() == {}


def mac_of(holder: Host | NamespaceContainer, link: str) -> str:
    return holder.run(["ip", "-br", "link", "show", link]).stdout.split()[2]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("of", ["the gateway", "another container"])
def test_a_wrong_permanent_neighbour_entry_in_a_container_is_named(
    healthy: Pair, family: int, of: str
) -> None:
    host = healthy.host
    gateway = healthy.gateways()[0 if family == 4 else 1]
    there = gateway if of == "the gateway" else gateway + 2
    holder = host if of == "the gateway" else healthy.other
    right = mac_of(holder, "br0" if of == "the gateway" else "eth0")
    entry = ["ip", "neighbour", "replace", str(there), "dev", "eth0", "nud", "permanent", "lladdr"]
    healthy.one.run([*entry, right])
    assert "container-neighbour" not in healthy.findings()

    healthy.one.run([*entry, WRONG])
    found = healthy.findings()["container-neighbour"]

    assert found["severity"] == "error"
    (line,) = found["evidence"]
    shown_entry = f"ip neighbour show {there} dev eth0: lladdr {WRONG} PERMANENT, but {there} has {right}"
    assert line.endswith(shown_entry)
    host.run(["sh", "-c", found["fix"]])


def test_a_port_that_learns_no_addresses_is_named_until_it_learns_again(healthy: Pair) -> None:
    host = healthy.host
    settings = "bridge link set dev c-b learning off; bridge fdb flush dev c-b master dynamic 2>/dev/null; "
    mac = mac_of(healthy.other, "eth0")
    forget = f"bridge fdb delete {mac} dev c-b master 2>/dev/null; true"
    host.run(["sh", "-c", settings + forget])
    flooding = healthy.findings()["port-not-learning"]
    host.run(["bridge", "link", "set", "dev", "c-b", "flood", "off"])
    silent = healthy.findings()["port-not-learning"]
    host.run(["bridge", "fdb", "add", mac, "dev", "c-b", "master", "static"])
    static = healthy.findings()
    host.run(["bridge", "fdb", "delete", mac, "dev", "c-b", "master"])

    assert (flooding["severity"], silent["severity"]) == ("warning", "error")
    (line,) = silent["evidence"]
    assert line.startswith(
        "bridge -details link show dev c-b: learning off flood off; bridge fdb show br br0:"
    )
    assert f"no entry for {mac} of " in line
    assert "port-not-learning" not in static
    assert silent["fix"] == "bridge link set dev c-b learning on"
    host.run(["sh", "-c", silent["fix"]])
    assert "port-not-learning" not in healthy.findings()
    host.run(["bridge", "link", "set", "dev", "c-b", "flood", "on"])


@pytest.mark.parametrize(
    "fault",
    [
        "ip link set c-b down",
        "ip link set c-b nomaster",
        "ip -n b link set eth0 down",
    ],
)
def test_a_container_that_is_cut_off_is_named_and_the_command_connects_it(healthy: Pair, fault: str) -> None:
    host, (gateway, ipv6_gateway) = healthy.host, healthy.gateways()
    reply = ["ping", "-c", "1", "-W", "1", str(healthy.other.address)]
    assert host.run(reply, check=False).returncode == 0
    host.run(["sh", "-c", fault])
    assert host.run(reply, check=False).returncode != 0

    found = healthy.findings()

    assert list(found) == ["port-closed"]
    for line in found["port-closed"]["evidence"]:
        assert "c-b" in line
        assert "sleep" in line
    host.run(["sh", "-c", found["port-closed"]["fix"]])
    if "-n b" in fault:  # the kernel has deleted the routes and the IPv6 address of the link
        host.run(["ip", "-n", "b", "route", "add", "default", "via", str(gateway)])
        own = f"{ipv6_gateway + 2}/{healthy.ipv6.network.prefixlen}"
        host.run(["ip", "-n", "b", "address", "add", own, "dev", "eth0", "nodad"])
        host.run(["ip", "-n", "b", "-6", "route", "replace", "default", "via", str(ipv6_gateway)])
    wait_until(
        lambda: host.run(reply, check=False).returncode == 0, what="the container answers", deadline_s=30.0
    )


@pytest.mark.parametrize(
    ("fault", "code", "is_lost"),
    [
        ("ip link set c-b mtu 576", "port-mtu", True),
        ("ip link set c-b mtu 1300; ip -n b link set eth0 mtu 1300", "mtu-small", False),
    ],
)
def test_a_wrong_mtu_on_the_way_to_a_container_is_named(
    healthy: Pair, fault: str, code: str, is_lost: bool
) -> None:
    """Packets of 1,400 bytes are lost without an error, or fragmented."""
    host, gateway = healthy.host, healthy.gateways()[0]
    ping = ["ping", "-c", "1", "-W", "0.3", "-M", "dont", "-s", "1372"]
    ways = (host, healthy.other.address), (healthy.other, gateway)
    host.run(["sh", "-c", fault])
    arrives = [way.run([*ping, str(there)], check=False).returncode == 0 for way, there in ways]

    found = healthy.findings()

    assert all(arrives) is not is_lost
    assert {one: found[one]["severity"] for one in found} == {code: "error" if is_lost else "warning"}
    host.run(["sh", "-c", found[code]["fix"]])


def test_a_container_without_address_is_named(healthy: Pair) -> None:
    host, (gateway, ipv6_gateway) = healthy.host, healthy.gateways()
    host.run(["ip", "-n", "b", "address", "flush", "dev", "eth0", "scope", "global"])

    found = healthy.findings()

    assert list(found) == ["container-address"]
    (line,) = found["container-address"]["evidence"]
    assert line.startswith("eth0 of ")
    assert "sleep" in line
    prefix = host.gateway().network.prefixlen
    host.run(["ip", "-n", "b", "address", "add", f"{healthy.other.address}/{prefix}", "dev", "eth0"])
    own = f"{ipv6_gateway + 2}/{healthy.ipv6.network.prefixlen}"
    host.run(["ip", "-n", "b", "address", "add", own, "dev", "eth0", "nodad"])
    for there in (gateway, ipv6_gateway):
        host.run(["ip", "-n", "b", f"-{there.version}", "route", "replace", "default", "via", str(there)])


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("ip neighbour replace {b} dev br0 nud permanent lladdr 02:00:00:00:00:99", "container-neighbour"),
        ("ip -n b route replace default via {unused}", "container-gateway"),
        ("ip route add {b}/32 dev eth0", "unplanned-route"),
        ("ip address del {gateway}/28 dev br0; ip address add {spare}/28 dev br0", "container-gateway"),
    ],
)
def test_the_command_repairs_the_way_to_a_container(healthy: Pair, fault: str, code: str) -> None:
    host, (gateway, _) = healthy.host, healthy.gateways()
    names = {"b": healthy.other.address, "unused": gateway + 12, "spare": gateway + 11}
    host.run(["sh", "-c", fault.format(gateway=gateway, **names)])

    found = healthy.findings()

    assert list(found) == [code]
    host.run(["sh", "-c", found[code]["fix"]])
    assert healthy.findings() == {}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("ip route add unreachable {peer}", "container-route"),
        ("ip -6 route add blackhole {peer_ipv6}", "container-route"),
        ("ip rule add from {a} to {peer} priority 99 prohibit", "container-route"),
        ("ip route add {peer} via {unused}", "container-gateway"),
        (
            "ip address add 192.0.2.5/32 dev eth0; ip route replace default via {gateway} src 192.0.2.5",
            "container-source",
        ),
    ],
)
def test_a_route_in_a_container_that_stops_packets_to_a_peer_is_named(
    overlay: Overlay, healthy: Pair, fault: str, code: str
) -> None:
    host, (gateway, _), lease = healthy.host, healthy.gateways(), overlay.hosts["docker2"].subnet_env()
    peer, peer_ipv6 = (ip_interface(lease[f"FLANNEL_{family}SUBNET"]).network for family in ("", "IPV6_"))
    names = {"a": healthy.one.address, "unused": gateway + 12, "gateway": gateway}
    healthy.one.run(["sh", "-c", fault.format(peer=peer, peer_ipv6=peer_ipv6, **names)])

    found = healthy.findings()

    assert {one: found[one]["severity"] for one in found} == {code: "warning"}
    host.run(["sh", "-c", found[code]["fix"]])
    assert healthy.findings() == {}


def test_a_route_in_the_table_local_to_a_container_of_another_host_is_named(
    overlay: Overlay, healthy: Pair
) -> None:
    """This host itself then answers the probes of the container."""
    host, there = healthy.host, overlay.hosts["docker2"].lease().network_address + 2
    host.run(["ip", "route", "add", "local", str(there), "dev", "lo", "table", "local"])

    found = healthy.findings()
    traced = host.run(["flannelctl", "trace", str(there)], check=False)
    probed = host.run(["flannelctl", "ping", str(there)], check=False)

    assert list(found) == ["overlay-address"]
    assert traced.returncode == 1
    assert f"this host takes the packets to {there} itself" in traced.stdout
    assert probed.returncode == 1
    assert f"this host receives them itself: ip -4 route get {there}" in probed.stdout
    host.run(["sh", "-c", found["overlay-address"]["fix"]])
    assert healthy.findings() == {}


@pytest.mark.parametrize("is_nft", [True, False])
def test_a_policy_rule_for_a_mark_that_a_filter_rule_sets_is_named(healthy: Pair, is_nft: bool) -> None:
    host = healthy.host
    chain = "chain c { type filter hook prerouting priority -150; iifname br0 meta mark set 0x99; }"
    rule = "PREROUTING -i br0 -j MARK --set-mark 0x99"
    do = f"nft 'table ip m7 {{ {chain}; }}'" if is_nft else f"iptables -t mangle -A {rule}"
    undo = "nft delete table ip m7" if is_nft else f"iptables -t mangle -D {rule}"
    host.run(["sh", "-c", "ip route add blackhole default table 77; ip rule add fwmark 0x99 table 77"])
    unmarked = healthy.findings()
    host.run(["sh", "-c", do])

    found = healthy.findings()

    host.run(["sh", "-c", f"{undo}; ip rule delete fwmark 0x99 table 77; ip route flush table 77"])
    assert "policy-rule" not in unmarked
    assert found["policy-rule"]["severity"] == "warning"
    assert any("mark" in line and "0x" in line for line in found["policy-rule"]["evidence"])


@pytest.mark.parametrize(
    "command",
    [
        "iptables -A INPUT -j DROP",
        "iptables-legacy -P OUTPUT DROP",
        "ip6tables -A INPUT -j REJECT",
        "nft 'table inet fw { chain in { type filter hook input priority 0; policy drop; }; }'",
        "ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir in action block",
        "ip xfrm policy setdefault out block",
        "ip xfrm policy add dir out src 0.0.0.0/0 dst 10.100.0.0/16 proto tcp action block",
        "iptables -A OUTPUT -p tcp -j DROP",
    ],
)
def test_a_rule_inside_a_container_that_drops_packets_is_named(healthy: Pair, command: str) -> None:
    healthy.one.run(["sh", "-c", command])

    found = healthy.findings()

    assert set(found) == {"container-filter"}
    line, *_ = found["container-filter"]["evidence"]
    assert "sleep" in line
    healthy.host.run(["sh", "-c", found["container-filter"]["fix"]])


def test_a_paused_container_is_named(healthy: Pair) -> None:
    """The kernel still answers pings for it."""
    host = healthy.host
    place = "g=/sys/fs/cgroup/freezer; [ -d $g ] || g=/sys/fs/cgroup; "
    move = "for pid in $(ip netns pids b); do echo $pid > $to/cgroup.procs; done; "
    freeze = (
        "cd $to; if [ -e freezer.state ]; then echo FROZEN > freezer.state; else echo 1 > cgroup.freeze; fi"
    )
    host.run(["sh", "-ec", f"{place} to=$g/paused-b; mkdir $to; {move} {freeze}"])

    found = healthy.findings()
    host.run(["sh", "-c", found["container-paused"]["fix"]])

    assert list(found) == ["container-paused"]
    assert healthy.findings() == {}
    host.run(["sh", "-ec", f"{place} to=$g; {move} rmdir $g/paused-b"])


def test_sysctls_inside_a_container_that_stop_its_packets_are_named(healthy: Pair) -> None:
    """One command per finding repairs the sysctl. IPv6 addresses and routes are lost with IPv6."""
    host, (_, ipv6_gateway) = healthy.host, healthy.gateways()
    changes = ["net.ipv4.ip_local_reserved_ports=32768-60999", "net.ipv4.ip_default_ttl=1"]
    changes += ["net.ipv6.conf.eth0.hop_limit=5", "net.ipv6.conf.eth0.disable_ipv6=1"]
    healthy.other.run(["sysctl", "-qw", *changes])

    ran = host.run(["flannelctl", "--json", "doctor"], check=False)

    found = [one for one in read_document(["doctor"], ran.stdout)["findings"] if one["severity"] != "info"]
    assert {one["code"] for one in found} == {"container-setting"}
    assert sorted(one["severity"] for one in found) == ["error", "error", "warning", "warning"]
    for one in found:
        host.run(["sh", "-c", one["fix"]])
    own = f"{ipv6_gateway + 2}/{healthy.ipv6.network.prefixlen}"
    host.run(["ip", "-n", "b", "address", "add", own, "dev", "eth0", "nodad"])
    host.run(["ip", "-n", "b", "-6", "route", "replace", "default", "via", str(ipv6_gateway)])


def test_programs_inside_a_container_that_drop_packets_are_named(healthy: Pair) -> None:
    host, place = healthy.host, "dev eth0 ingress"
    healthy.one.run([sys.executable, "-c", ATTACH, "eth0", DROP])
    program = healthy.findings()
    host.run(["sh", "-c", program["container-program"]["fix"]])
    redirect = "u32 match u32 0 0 action mirred egress redirect dev sink"
    script = f"""
        ip link add sink type veth peer name knis && ip link set sink up
        tc qdisc add dev eth0 clsact && tc filter add {place} pref 7 protocol ip {redirect}
    """
    healthy.one.run(["sh", "-c", script])

    taken = healthy.findings()

    assert list(program) == ["container-program"]
    assert list(taken) == ["container-filter"]
    (line,) = taken["container-filter"]["evidence"]
    assert f"tc filter show {place}: pref 7 u32 redirects to sink, " in line
    host.run(["sh", "-c", taken["container-filter"]["fix"]])
    healthy.one.run(["ip", "link", "delete", "sink"])


def test_a_container_that_ignores_echo_requests_is_information(healthy: Pair) -> None:
    setting = "sysctl -qw net.ipv4.icmp_echo_ignore_all"
    healthy.other.run(["sh", "-c", f"{setting}=1"])

    found = healthy.every_finding()

    assert found["container-silent"]["severity"] == "info"
    (line,) = found["container-silent"]["evidence"]
    assert line.startswith(f"{healthy.host.gateway().ip + 2}, ")
    healthy.other.run(["sh", "-c", f"{setting}=0"])
