"""The rules that decide which flows may bypass the firewall, on the real kernel."""

import socket
import sys
from contextlib import closing

import pytest

from pyflannel.kernel.filters.flow_permit import FlowRules


def test_veths_into_containers_may_be_skipped_unless_they_have_a_queue(make_namespace):
    host, container = make_namespace(), make_namespace()
    host.ip(f"link add veth1 type veth peer name eth0 netns {container.name}")
    host.ip("link add veth2 type veth peer name veth3")
    for link in ("veth1", "veth2", "veth3"):
        host.ip(f"link set {link} up")
    container.ip("link set eth0 up")

    async def look() -> set[str]:
        return {socket.if_indextoname(link) for link in (await rules.look()).direct_links}

    rules = FlowRules()
    with closing(rules):
        assert host.run(look) == {"veth1"}
        limit = "root tbf rate 1gbit burst 64kb latency 50ms"
        host.command("tc", "qdisc", "add", "dev", "veth1", *limit.split())
        assert host.run(look) == set()
        host.command("tc", "qdisc", "delete", "dev", "veth1", "root")
        assert host.run(look) == {"veth1"}


BY_FLOW = """
*nat
-A POSTROUTING -s 10.100.0.0/16 ! -d 10.100.0.0/16 -j MASQUERADE
-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.1.1.1:80
-A PREROUTING -p tcp -m statistic --mode nth --every 2 --packet 0 -j DNAT --to-destination 10.1.1.1:80
COMMIT
*mangle
-A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*filter
:FORWARD DROP
:DOCKER-USER -
:OTHER -
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -j OTHER
-A DOCKER-USER -p tcp -m multiport --dports 80,443 -m comment --comment x -j ACCEPT
-A DOCKER-USER -m addrtype --dst-type LOCAL -j DROP
-A FORWARD -s 10.100.0.0/16 -p tcp --dport 22 -j ACCEPT
-A FORWARD -p udp --dport 53 -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -p tcp --syn -j ACCEPT
-A FORWARD -m mark --mark 1 -j LOG
-A INPUT -m limit --limit 5/min -j LOG
COMMIT
"""

TABLE = """
table inet t {
    set s { type ipv4_addr; elements = { 1.1.1.1 } }
    set c { type ipv4_addr; counter; elements = { 1.1.1.1 } }
    set d { type ipv4_addr; flags dynamic; size 10; }
    chain y {
    }
    chain x {
        ip saddr @s accept
        ip saddr @c drop
        tcp dport { 1, 2-5 } accept
        iifname "a*" oif lo counter
    }
    chain i {
        type filter hook input priority 0
        limit rate 1/second accept
    }
    chain f {
        type filter hook forward priority 0
        ip protocol vmap { tcp: jump x }
        jump y
        ct state vmap { established: accept, related: accept, invalid: drop}
        tcp flags & (fin|syn|rst|ack) == syn drop
        ct mark set 1
        meta mark set ct mark
        fib saddr type local drop
        ip saddr . tcp dport { 1.1.1.1 . 80 } accept
        log prefix "x"
        ip saddr 10.0.0.0/8 reject
    }
}
"""


@pytest.fixture
def firewall(make_namespace):
    """A namespace with rules that decide by the flow alone."""
    namespace = make_namespace()
    namespace.command("iptables-restore", given=BY_FLOW)
    namespace.command("nft", "-f", "-", given=TABLE)
    return namespace


def look(namespace) -> tuple[str, ...]:
    rules = FlowRules()
    try:
        return namespace.run(rules.look).objections
    finally:
        rules.close()


def test_rules_of_a_docker_host_decide_by_the_flow(firewall):
    assert look(firewall) == ()


OF_IPTABLES = """
-m limit --limit 5/s -j ACCEPT
-m statistic --mode random --probability 0.5 -j DROP
-m statistic --mode nth --every 2 --packet 0 -j DROP
-m recent --name a --set -j DROP
-m connbytes --connbytes 1:2 --connbytes-dir both --connbytes-mode packets -j DROP
-m connlimit --connlimit-above 2 -j DROP
-m quota --quota 100 -j ACCEPT
-m length --length 100 -j DROP
-m ttl --ttl-eq 3 -j DROP
-p tcp --tcp-flags PSH PSH -j DROP
-p tcp --tcp-option 8 -j DROP
-m conntrack --ctexpire 1:10 -j DROP
-m hashlimit --hashlimit-above 1/s --hashlimit-name x -j DROP
-m dscp --dscp 1 -j DROP
-m u32 --u32 0=1 -j DROP
-m string --string x --algo bm -j DROP
-m time --timestart 1:00 -j DROP
-m cpu --cpu 0 -j DROP
-m physdev --physdev-in a -j DROP
-m mac --mac-source 02:00:00:00:00:01 -j DROP
-f -j DROP
-j NFQUEUE
"""

OF_NFTABLES = """
numgen random mod 2 0 drop
jhash ip saddr mod 2 0 drop
limit rate 1/second accept
quota over 1 mbytes drop
ct bytes > 5 drop
ct count over 3 drop
meta length > 100 drop
meta cpu 1 drop
meta random 1 drop
meta priority set 1:1
meta hour 1 drop
ip ttl 3 drop
ip id 5 drop
ip dscp set 3
tcp flags psh drop
tcp flags & (syn|psh) == psh drop
tcp option maxseg size set 1000
update @d { ip saddr limit rate 1/second } accept
@th,0,64 5 drop
@ih,0,8 5 drop
"""


def test_each_rule_that_counts_or_reads_more_is_an_objection(firewall):
    """Rules that the kernel or the programs of this machine do not support are omitted."""
    supported, unnoticed = [], []
    for rules, add, flush in (
        (OF_IPTABLES, "iptables -A OTHER {}", "iptables -F OTHER"),
        (OF_NFTABLES, "nft 'add rule inet t y {}'", "nft flush chain inet t y"),
    ):
        for rule in rules.strip().splitlines():
            if "added" in firewall.attempt("sh", "-c", f"{add.format(rule)} 2>/dev/null && echo added"):
                supported.append(rule)
                unnoticed += [] if look(firewall) else [rule]
            firewall.command(*flush.split())

    assert unnoticed == []
    assert look(firewall) == ()
    assert len(supported) > 30


def test_an_element_with_a_limit_is_an_objection(firewall):
    firewall.command("nft", "add set inet t l { type ipv4_addr; limit rate 1/second; }")
    firewall.command("nft", "add element inet t l { 1.1.1.1 }")
    firewall.command("nft", "add rule inet t y ip saddr @l drop")

    assert len(look(firewall)) == 1

    firewall.command("nft", "flush", "chain", "inet", "t", "y")
    firewall.command("nft", "delete", "set", "inet", "t", "l")


@pytest.mark.parametrize(
    ("table", "objection"),
    [
        ("table bridge b { chain c { type filter hook forward priority 0; }; }", "bridge"),
        (
            'table netdev n { chain c { type filter hook ingress device "lo" priority 0; }; }',
            "netdev",
        ),
        ('table inet g { chain c { type filter hook ingress device "lo" priority 0; }; }', "ingress"),
    ],
)
def test_chains_that_packets_would_bypass_are_an_objection(firewall, table, objection):
    firewall.command("nft", table)
    assert objection in " ".join(look(firewall))
    firewall.command("nft", "delete", *table.split()[:3])


def test_tables_of_iptables_legacy_prevent_caching(make_namespace):
    namespace = make_namespace()
    namespace.command("iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT")

    assert "iptables-legacy" in " ".join(look(namespace))


def test_a_process_with_another_time_gives_no_permit(make_namespace):
    """In a time namespace, the end of a permit could be days later than it should be."""
    look_there = (
        "import asyncio; from pyflannel.kernel.filters.flow_permit import FlowRules;"
        "print(asyncio.run(FlowRules().look()).objections)"
    )
    command = ["unshare", "--time", "--fork", "--boottime", "1000", sys.executable, "-c", look_there]

    assert "time namespace" in make_namespace().command(*command)


def test_tcp_is_cached_only_if_connection_tracking_permits_gaps(make_namespace):
    namespace = make_namespace()
    rules = FlowRules()
    setting = "net.netfilter.nf_conntrack_tcp_be_liberal"
    namespace.command("sysctl", "-qw", f"{setting}=0")
    assert setting in namespace.run(rules.look).tcp_objection

    namespace.command("sysctl", "-qw", f"{setting}=1")
    assert namespace.run(rules.look).tcp_objection == ""
    rules.close()
