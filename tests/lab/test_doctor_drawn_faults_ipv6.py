"""flannelctl doctor names faults that are drawn at random, in a network with IPv6 alone."""

import os
from collections.abc import Iterator

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.doctor import problems
from testlab.documents import read_document
from testlab.drawn_faults import End, Pair, check_each_fault, check_pairs_of_faults, give_port
from testlab.ipv6_cluster import NETWORK, SOON_S, bridge, cluster_in, give_bridge, wait_reached
from testlab.overlay import Overlay, ipv6_underlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DRAWS, DRAWS_LONG = 28, 224
PAIRS, PAIRS_LONG = 5, 110


@pytest.fixture(scope="module")
def pair(overlay: Overlay) -> Iterator[Pair]:
    """Two hosts of a vxlan network on one link, without an IPv4 address."""
    hosts = overlay.hosts["docker1"], overlay.hosts["docker2"]
    with cluster_in(overlay) as cluster:
        cluster.configure("vxlan")
        cluster.join(*hosts)
        wait_reached(*hosts)
        for host in hosts:
            give_port(host)
        yield Pair(*map(_end, hosts), network=NETWORK, device="flannel-v6.1")


def _end(host: Host) -> End:
    return End(host, ipv6_underlay(host).ip, bridge(host).network)


def test_a_peer_that_does_not_answer_neighbour_discovery_is_named(pair: Pair) -> None:
    """The fault is on the other host, so that only the probes show it."""
    here, peer = pair.here.host, pair.peer.host
    rules = [f"OUTPUT -o eth0 -p ipv6-icmp --icmpv6-type {kind} -j DROP" for kind in (135, 136)]
    peer.run(["sh", "-c", "; ".join(f"ip6tables -I {rule}" for rule in rules)])
    here.run(["ip", "-6", "neighbour", "flush", "dev", "eth0"])
    try:
        (found,) = problems(here)
    finally:
        peer.run(["sh", "-c", "; ".join(f"ip6tables -D {rule}" for rule in rules)])

    assert (found["code"], found["severity"]) == ("no-neighbour", "error")
    assert found["evidence"] == [f"ip neighbour show {pair.peer.address} dev eth0: FAILED or INCOMPLETE"]
    assert "neighbour discovery" in found["cause"]
    wait_until(lambda: problems(here) == [], what="no finding", deadline_s=SOON_S)


def test_doctor_repairs_settings_and_the_bridge_if_asked(pair: Pair) -> None:
    """The bridge gets its address again, which the kernel removes when the bridge is set down."""
    host, gateway = pair.here.host, bridge(pair.here.host)
    host.run(["sh", "-c", "sysctl -qw net.ipv6.conf.all.forwarding=0; ip link set br7 down"])

    document = read_document(["doctor"], host.flannelctl("doctor", "--fix", "--json"))

    give_bridge(host)
    assert document["ok"]
    assert document["fixed"] == [
        "sysctl -w net.ipv6.conf.all.forwarding=1",
        "ip link set br7 up",
        f"ip address add {gateway} dev br7",
    ]
    assert problems(host) == []


def test_status_shows_the_rules_and_settings_of_this_host_that_drop_ipv6_packets(pair: Pair) -> None:
    host = pair.here.host

    def dropped(do: str, undo: str) -> list[str]:
        host.run(["sh", "-c", do])
        try:
            shown = host.run(["flannelctl", "status", "--json"], check=False).stdout
        finally:
            host.run(["sh", "-c", undo])
        found: list[str] = read_document(["status"], shown)["firewall"]["drops"]
        return found

    rule = "ip6tables {} INPUT -p udp --dport 8472 -j DROP"
    setting = "sysctl -qw net.ipv6.conf.all.forwarding={}"
    assert dropped("true", "true") == []
    (line,) = dropped(rule.format("-I"), rule.format("-D"))
    assert "drops tunnel packets of peers to UDP port 8472" in line
    (line,) = dropped(setting.format(0), setting.format(1))
    assert "the host forwards no IPv6 packets" in line


@pytest.mark.timeout(3600)
def test_doctor_names_each_random_fault_and_no_other_error(pair: Pair, long_run: bool) -> None:
    check_each_fault(pair, DRAWS_LONG if long_run else DRAWS)


@pytest.mark.timeout(3600)
def test_doctor_names_both_of_two_random_faults_and_no_other_error(pair: Pair, long_run: bool) -> None:
    """Each fault alone is named by the test above. Two chains that drop the same packets are two findings."""
    check_pairs_of_faults(pair, PAIRS_LONG if long_run else PAIRS)
