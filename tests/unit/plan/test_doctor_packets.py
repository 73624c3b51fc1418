"""The findings of doctor about packets: filter rules, routes, interfaces, addresses."""

import shlex
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Interface, InterfaceAddress, Interfaces, IpsecPolicy
from pyflannel.model.link import Link, Vxlan
from pyflannel.model.netfilter import Action, BaseChain, Hook, Match, Rule, Ruleset
from pyflannel.model.route import Route, RouteAnswer
from pyflannel.model.status import (
    BackendStatus,
    FastPathMode,
    FastPathStatus,
    Finding,
    LeaseStatus,
    Membership,
    Status,
    UnderlayStatus,
)
from pyflannel.plan.doctor.coverage import coverage
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import ContainerLink, ContainerNamespace, ContainerRoute, Observed
from pyflannel.plan.doctor.packets import mark_of
from pyflannel.wire.iptables import parse_save
from pyflannel.wire.iptables_ruleset import ruleset_of

NETWORK, OWN, PEER = (IPv4Network(text) for text in ("10.100.0.0/16", "10.100.15.0/24", "10.100.16.0/24"))
HERE, THERE = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
DOCKER_MASQUERADE = "-A POSTROUTING -s 10.100.15.0/24 ! -o docker0 -j MASQUERADE"


def interface(name: str, *addresses: str, is_up: bool = True) -> Interface:
    held = tuple(InterfaceAddress(address=IPv4Interface(one)) for one in addresses)
    return Interface(name=name, index=1, mtu=1500, is_up=is_up, addresses=held)


LINKS = (
    interface("eth0", "10.0.0.1/24"),
    interface("flannel.1", "10.100.15.0/32"),
    interface("docker0", "10.100.15.1/24"),
)
HEALTHY = Observed(
    status=Status(
        version="1",
        is_ready=True,
        backend=BackendStatus(type="vxlan", link="flannel.1", mtu=1450, port=8472),
        underlay=UnderlayStatus(link="eth0", address=HERE, public_ip=HERE, mtu=1500),
        lease=LeaseStatus(subnet=OWN),
    ),
    claimed="flannel0",
    membership=Membership(network=NETWORK, subnet=OWN, underlay="eth0", peers={PEER: THERE}),
    items=(Route(destination=PEER, link="flannel.1"),),
    interfaces=Interfaces(interfaces=LINKS),
    on_link=(IPv4Network("10.0.0.0/24"),),
    ports={"docker0": {}},
    answers=(
        RouteAnswer(way="container out", destination=PEER.network_address + 2, text="", link="flannel.1"),
    ),
)


def iptables(*lines: str, table: str = "filter") -> Ruleset:
    return ruleset_of(parse_save("\n".join([f"*{table}", *lines, "COMMIT"])), "iptables")


def found(seen: Observed) -> Finding:
    """Return the only finding."""
    (one,) = findings(seen)
    return one


def test_a_healthy_host_has_no_findings() -> None:
    assert findings(HEALTHY) == ()


def test_each_chain_that_drops_the_same_packets_is_named() -> None:
    raw = iptables(":PREROUTING ACCEPT", "-A PREROUTING -p udp --dport 8472 -j DROP", table="raw")
    filtered = iptables(":INPUT DROP")
    seen = replace(HEALTHY, ruleset=(*raw, *filtered))

    assert [(one.code, one.evidence[0]) for one in findings(seen)] == [
        ("tunnel-dropped", "iptables rule in raw PREROUTING: -p udp --dport 8472 -j DROP"),
        (
            "tunnel-dropped",
            "iptables -S INPUT: policy drop, and no rule that accepts UDP port 8472",
        ),
    ]


@pytest.mark.parametrize(
    ("rules", "code", "evidence", "fix"),
    [
        (
            iptables(":INPUT DROP"),
            "tunnel-dropped",
            "iptables -S INPUT: policy drop, and no rule that accepts UDP port 8472",
            "iptables -I INPUT -p udp --dport 8472 -j ACCEPT",
        ),
        (
            iptables(":PREROUTING ACCEPT", "-A PREROUTING -s 10.0.0.2/32 -j DROP", table="raw"),
            "tunnel-dropped",
            "iptables rule in raw PREROUTING: -s 10.0.0.2/32 -j DROP",
            "iptables -t raw -I PREROUTING -p udp --dport 8472 -j ACCEPT",
        ),
        (
            iptables(":INPUT DROP", ":ufw-before-input -", "-A INPUT -j ufw-before-input"),
            "tunnel-dropped",
            None,
            "ufw allow 8472/udp",
        ),
        (
            iptables(":OUTPUT ACCEPT", ":sub -", "-A OUTPUT -o eth0 -j sub", "-A sub -p udp -j REJECT"),
            "tunnel-not-sent",
            "iptables rule in filter sub: -p udp -j REJECT",
            "iptables -I OUTPUT -p udp --dport 8472 -j ACCEPT",
        ),
        (
            iptables(":FORWARD ACCEPT", "-A FORWARD -j REJECT --reject-with icmp-host-prohibited"),
            "forward-dropped",
            "iptables rule in filter FORWARD: -j REJECT --reject-with icmp-host-prohibited",
            "iptables -I FORWARD -s 10.100.0.0/16 -j ACCEPT; iptables -I FORWARD -d 10.100.0.0/16 -j ACCEPT",
        ),
        (
            iptables(":POSTROUTING ACCEPT", DOCKER_MASQUERADE, table="nat"),
            "source-changed",
            "iptables rule in nat POSTROUTING: -s 10.100.15.0/24 ! -o docker0 -j MASQUERADE",
            "iptables -t nat -D POSTROUTING -s 10.100.15.0/24 ! -o docker0 -j MASQUERADE"
            "  # Docker also needs --ip-masq=false, see mk-docker-opts",
        ),
        (
            iptables(":INPUT ACCEPT", "-A INPUT -m set --match-set bad src -j DROP"),
            "rules-unknown",
            "iptables rule in filter INPUT: -m set --match-set bad src -j DROP (--match-set bad src)",
            "flannelctl peers  # shows whether packets arrive",
        ),
    ],
)
def test_a_rule_against_the_overlay_is_named(
    rules: Ruleset, code: str, evidence: str | None, fix: str
) -> None:
    one = found(replace(HEALTHY, ruleset=rules))

    assert (one.code, one.fix) == (code, fix)
    assert evidence is None or one.evidence == (evidence,)


def bridge_rule(hook: Hook, *matches: Match) -> Ruleset:
    """Return a table of the family bridge that drops the packets that match."""
    rule = Rule(matches, Action("drop"), "the rule drop", 3)
    chain = BaseChain(
        program="nft", family="bridge", table="fw", name="c", hook=hook, priority=0, chains={"c": (rule,)}
    )
    return (chain,)


@pytest.mark.parametrize("hook", ["prerouting", "input", "forward", "output", "postrouting"])
def test_a_rule_of_the_family_bridge_against_containers_is_named(hook: Hook) -> None:
    seen = replace(HEALTHY, ports={"docker0": {"veth1": 1450, "veth2": 1450}})

    one = found(replace(seen, ruleset=bridge_rule(hook)))

    assert (one.code, one.severity) == ("forward-dropped", "error")
    assert one.evidence == ("nft rule in bridge fw c: the rule drop",)
    assert one.fix.startswith("nft insert rule bridge fw c ip saddr 10.100.0.0/16 accept; ")


def test_a_rule_against_any_port_of_the_bridge_is_named() -> None:
    """The rules are evaluated for the ports of all containers."""
    seen = replace(HEALTHY, ports={"docker0": {f"veth{number}": 1450 for number in range(4)}})

    for hook, field in (("input", "iif"), ("output", "oif")):
        assert (
            found(replace(seen, ruleset=bridge_rule(hook, Match(field, ("veth3",))))).code
            == "forward-dropped"
        )
        assert findings(replace(seen, ruleset=bridge_rule(hook, Match(field, ("veth9",))))) == ()


def test_a_rule_of_the_family_bridge_is_named_before_the_first_container_exists() -> None:
    assert found(replace(HEALTHY, ruleset=bridge_rule("input"))).code == "forward-dropped"
    assert findings(replace(HEALTHY, ruleset=bridge_rule("forward"))) == ()


@pytest.mark.parametrize(
    ("ports", "is_named"), [(("eth1",), True), (("eth1", "tap0"), True), (("tap0", "tap1"), False)]
)
def test_a_rule_against_tunnel_packets_at_a_bridge_as_underlay_is_named(
    ports: tuple[str, ...], is_named: bool
) -> None:
    """The packets pass the only port of the bridge, or the only port that is a physical device."""
    links = (*LINKS, *(replace(interface(port), kind="" if port == "eth1" else "tun") for port in ports))
    seen = replace(HEALTHY, underlay_ports=ports, interfaces=Interfaces(interfaces=links))
    rules = bridge_rule("prerouting", Match("dport", ((8472, 8472),)))

    assert [one.code for one in findings(replace(seen, ruleset=rules))] == ["tunnel-dropped"] * is_named


def test_one_rule_is_one_finding_for_all_peers() -> None:
    peers = {IPv4Network((int(PEER.network_address) + 256 * n, 24)): THERE + n for n in range(10)}
    seen = replace(HEALTHY, membership=replace(HEALTHY.membership, peers=peers))

    found(replace(seen, ruleset=iptables(":INPUT DROP")))


@pytest.mark.parametrize(
    ("rule", "fix"),
    [
        ("PREROUTING -p udp --dport 8472 -j REDIRECT --to-ports 53", "iptables -t nat -D PREROUTING"),
        (
            "PREROUTING -i eth0 -p udp --dport 8000:9000 -j DNAT --to-destination 10.100.15.2",
            "iptables -t nat",
        ),
    ],
)
def test_a_rule_that_changes_the_destination_of_tunnel_packets_is_named(rule: str, fix: str) -> None:
    one = found(replace(HEALTHY, ruleset=iptables(":PREROUTING ACCEPT", f"-A {rule}", table="nat")))

    assert (one.code, one.severity) == ("tunnel-redirected", "error")
    assert one.fix.startswith(fix)


@pytest.mark.parametrize(
    "rule",
    ["-i docker0 -j DNAT --to-destination 10.100.15.9", "-s 10.100.0.0/16 -p tcp -j REDIRECT --to-ports 80"],
)
def test_a_rule_that_changes_the_destination_of_packets_of_containers_is_named(rule: str) -> None:
    nat = iptables(":PREROUTING ACCEPT", f"-A PREROUTING {rule}", table="nat")

    one = found(replace(HEALTHY, ruleset=nat))

    assert (one.code, one.severity) == ("destination-changed", "warning")
    assert one.fix.startswith(f"iptables -t nat -D PREROUTING {rule}")


def test_a_rule_that_changes_the_destination_of_other_packets_is_no_finding() -> None:
    rules = [
        "PREROUTING -p tcp --dport 8472 -j REDIRECT",
        "PREROUTING -p udp --dport 53 -j DNAT --to 10.100.15.2",
    ]
    nat = iptables(":PREROUTING ACCEPT", *(f"-A {rule}" for rule in rules), table="nat")

    assert findings(replace(HEALTHY, ruleset=nat)) == ()


def test_a_rule_after_which_routing_drops_the_packet_is_named() -> None:
    rules = iptables(":PREROUTING ACCEPT", "-A PREROUTING -i docker0 -j TTL --ttl-set 1", table="mangle")
    harmless = iptables(":PREROUTING ACCEPT", "-A PREROUTING -i docker0 -j TTL --ttl-set 64", table="mangle")

    assert found(replace(HEALTHY, ruleset=rules)).code == "rules-unknown"
    assert findings(replace(HEALTHY, ruleset=harmless)) == ()


def test_a_host_that_answers_no_requests_is_named() -> None:
    assert found(replace(HEALTHY, ignores_echoes=True)).fix == "sysctl -w net.ipv4.icmp_echo_ignore_all=0"
    assert found(replace(HEALTHY, ignores_arp=True)).code == "arp-ignored"


def crowded(peers: int, ruleset: Ruleset = ()) -> Observed:
    """Return the observations of a host with this number of peers."""
    known = {IPv4Network((int(PEER.network_address) + 256 * n, 24)): THERE + n for n in range(peers)}
    return replace(HEALTHY, membership=replace(HEALTHY.membership, peers=known), ruleset=ruleset, answers=())


def test_a_rule_against_any_of_many_peers_is_named() -> None:
    last = THERE + 199
    ruleset = iptables(":INPUT ACCEPT", f"-A INPUT -s {last} -j DROP")

    assert found(crowded(200, ruleset)).code == "tunnel-dropped"
    assert list(coverage(crowded(200, ruleset))) == []


def test_the_peers_whose_packets_are_not_evaluated_are_reported() -> None:
    many = [f"-A INPUT -s 172.16.{n // 250}.{n % 250} -j DROP" for n in range(2000)]
    (one,) = coverage(crowded(200, iptables(":INPUT ACCEPT", *many)))

    assert (one.code, one.severity) == ("examined-partly", "info")
    assert one.evidence == ("filter rules were evaluated for the packets of 4 of 200 peers",)


def test_the_peers_and_containers_that_are_not_examined_are_reported() -> None:
    held = frozenset({OWN.network_address + 2})
    box = ContainerNamespace(
        pid=7, process="nginx, pid 7", addresses=held, links=(ContainerLink(name="eth0", mtu=1450),)
    )
    elsewhere = replace(box, addresses=frozenset({IPv4Address("172.17.0.2")}), links=())
    seen = replace(
        crowded(40),
        answers=HEALTHY.answers,
        containers=(*[box] * 30, *[replace(box, links=())] * 10, elsewhere),
    )

    (one,) = coverage(seen)

    assert one.evidence == (
        "the MTU of 30 of 40 containers was read",
        "the kernel was asked for the routes to 1 of 40 peers",
    )
    assert list(coverage(HEALTHY)) == []


def test_rules_for_other_packets_are_no_finding() -> None:
    """The firewall accepts the tunnel and the network."""
    rules = iptables(
        ":INPUT DROP",
        ":FORWARD DROP",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -p tcp -m multiport --dports 22,80 -j ACCEPT",
        "-A INPUT -s 10.0.0.0/24 -p udp -m udp --dport 8472 -j ACCEPT",
        "-A INPUT -j REJECT",
        "-A FORWARD -i docker0 -o flannel.1 -j ACCEPT",
        "-A FORWARD -i flannel.1 -o docker0 -j ACCEPT",
    )

    assert findings(replace(HEALTHY, ruleset=rules)) == ()


def policy(
    direction: Literal["in", "out", "forward"], source: str, destination: str, **more: object
) -> IpsecPolicy:
    made = IpsecPolicy(
        direction=direction,
        source=IPv4Network(source),
        destination=IPv4Network(destination),
        priority=100,
        is_block=True,
    )
    return replace(made, **more)


def with_policies(*policies: IpsecPolicy) -> Observed:
    return replace(HEALTHY, interfaces=Interfaces(interfaces=LINKS, policies=policies))


ANY = "0.0.0.0/0"


@pytest.mark.parametrize(
    ("one", "evidence", "fix"),
    [
        (
            policy("out", "10.0.0.1/32", "10.0.0.2/32", protocol=17, port=8472, port_mask=0xFFFF),
            "src 10.0.0.1/32 dst 10.0.0.2/32 proto udp dport 8472 dir out action block priority 100",
            "ip xfrm policy delete src 10.0.0.1/32 dst 10.0.0.2/32 proto udp dport 8472 dir out",
        ),
        (
            policy("in", "10.0.0.2/32", ANY),
            "src 10.0.0.2/32 dst 0.0.0.0/0 dir in action block priority 100",
            "ip xfrm policy delete src 10.0.0.2/32 dst 0.0.0.0/0 dir in",
        ),
        (
            policy("forward", "10.100.0.0/16", "10.100.0.0/16", protocol=6),
            "src 10.100.0.0/16 dst 10.100.0.0/16 proto tcp dir fwd action block priority 100",
            "ip xfrm policy delete src 10.100.0.0/16 dst 10.100.0.0/16 proto tcp dir fwd",
        ),
        (
            policy("out", ANY, ANY, priority=1 << 32),
            "ip xfrm policy getdefault: out: block",
            "ip xfrm policy setdefault out accept",
        ),
    ],
)
def test_an_ipsec_policy_that_drops_packets_is_named(one: IpsecPolicy, evidence: str, fix: str) -> None:
    finding = found(with_policies(one))

    assert (finding.code, finding.severity) == ("ipsec-block", "error")
    assert evidence in finding.evidence[0]
    assert finding.fix.startswith(fix)


ENCRYPTED = policy("out", "10.0.0.1/32", "10.0.0.2/32", is_block=False, ends=(THERE,))


def test_a_policy_whose_security_association_does_not_exist_is_named() -> None:
    seen = replace(with_policies(ENCRYPTED), associations=frozenset())

    one = found(seen)

    assert (one.code, one.severity) == ("ipsec-no-association", "error")
    assert one.evidence == (
        "ip xfrm policy: src 10.0.0.1/32 dst 10.0.0.2/32 dir out action allow priority 100",
        "ip xfrm state: no entry with dst 10.0.0.2",
    )
    assert one.fix.startswith("ip xfrm policy delete src 10.0.0.1/32 dst 10.0.0.2/32 dir out  #")


@pytest.mark.parametrize(
    ("one", "associations"),
    [
        (ENCRYPTED, frozenset({THERE})),
        (ENCRYPTED, None),  # unreadable
        (replace(ENCRYPTED, ends=()), frozenset()),
        (replace(ENCRYPTED, ends=(IPv4Address("0.0.0.0"),)), frozenset({THERE})),
        (replace(ENCRYPTED, destination=IPv4Network("10.0.0.3/32")), frozenset()),
        (replace(ENCRYPTED, direction="in"), frozenset()),
    ],
)
def test_a_policy_that_the_kernel_can_fulfil_is_no_finding(
    one: IpsecPolicy, associations: frozenset[IPv4Address] | None
) -> None:
    """In transport mode, the policy names no other end: it is the destination of the packet."""
    assert findings(replace(with_policies(one), associations=associations)) == ()


def test_the_policies_of_both_directions_of_a_forwarded_packet_are_named_at_once() -> None:
    finding = found(
        with_policies(*(policy(one, "10.100.0.0/16", "10.100.0.0/16") for one in ("forward", "out")))
    )

    assert [line.partition(" dir ")[2].split()[0] for line in finding.evidence] == ["fwd", "out"]
    assert " dir fwd; ip xfrm policy delete " in finding.fix


@pytest.mark.parametrize(
    "policies",
    [
        (policy("out", ANY, "10.0.0.2/32", is_block=False),),
        (policy("out", ANY, "10.0.0.3/32"),),
        (policy("out", ANY, "10.0.0.2/32", protocol=17, port=8473, port_mask=0xFFFF),),
        (policy("out", ANY, "10.0.0.2/32", protocol=17, source_port=53, source_port_mask=0xFFFF),),
        (policy("out", ANY, "10.0.0.2/32", link=7),),
        (policy("out", ANY, "10.0.0.2/32", mark=5, mark_mask=0xFF),),
        (policy("out", ANY, ANY), policy("out", ANY, ANY, priority=99, is_block=False)),
        (policy("out", ANY, ANY), policy("out", ANY, ANY, is_block=False)),
        (
            policy("out", ANY, ANY, priority=1 << 32),
            policy("out", ANY, ANY, priority=1 << 31, is_block=False),
        ),
    ],
    ids=[
        "not block",
        "another peer",
        "port",
        "source port",
        "interface",
        "mark",
        "priority",
        "the older",
        "default",
    ],
)
def test_an_ipsec_policy_that_drops_no_packet_is_no_finding(policies: tuple[IpsecPolicy, ...]) -> None:
    """Of two policies with the same priority, the kernel uses the older policy, which the kernel lists
    last.
    """
    assert findings(with_policies(*policies)) == ()


@pytest.mark.parametrize(("mode", "severity"), [("safe", "warning"), ("off", "error")])
def test_the_fast_path_receives_tunnel_packets_before_the_rules(mode: FastPathMode, severity: str) -> None:
    backend = BackendStatus(type="udp", link="flannel.1", mtu=1472, port=8285)
    status = replace(HEALTHY.status, backend=backend, fast_path=FastPathStatus(mode=mode))

    assert found(replace(HEALTHY, status=status, ruleset=iptables(":INPUT DROP"))).severity == severity


def answer(**more: Any) -> RouteAnswer:
    return replace(
        RouteAnswer(way="container out", destination=PEER.network_address + 2, text="the answer"), **more
    )


def test_a_refused_source_is_named_with_its_interface() -> None:
    refused = answer(way="tunnel in", destination=HERE, refused_at="eth0")

    one = found(replace(HEALTHY, answers=(refused, refused)))

    assert (one.code, one.evidence) == ("source-refused", ("the answer", "the answer"))
    assert one.fix == "sysctl -w net/ipv4/conf/all/rp_filter=2 net/ipv4/conf/eth0/rp_filter=2"


@pytest.mark.parametrize(
    ("rule", "saved", "link", "is_named"),
    [
        (
            "90: from all fwmark 0x99 lookup 77",
            "-A PREROUTING -j MARK --set-xmark 0x99/0xffffffff",
            None,
            True,
        ),
        (
            "90: from all fwmark 0x99 lookup 77",
            "-A PREROUTING -j MARK --set-xmark 0x98/0xffffffff",
            None,
            False,
        ),
        (
            "90: from all fwmark 0x99 lookup 77",
            "-A PREROUTING -j MARK --set-xmark 0x99/0xffffffff",
            "flannel.1",
            False,
        ),
    ],
)
def test_a_policy_rule_for_a_mark_is_named_if_a_filter_rule_sets_the_mark(
    rule: str, saved: str, link: str | None, is_named: bool
) -> None:
    rules = iptables(":PREROUTING ACCEPT", saved, table="mangle")
    seen = replace(HEALTHY, ruleset=rules, marked_answers=(answer(link=link, rules=(rule,)),))

    named = [one for one in findings(seen) if one.code == "policy-rule"]

    assert [one.severity for one in named] == (["warning"] if is_named else [])
    for one in named:
        assert one.evidence[0] == f"ip rule: {rule}"
        assert saved.removeprefix("-A PREROUTING ") in one.evidence[1]


@pytest.mark.parametrize(
    ("rule", "mark"),
    [
        ("90: from all fwmark 0x99 lookup 77", 0x99),
        ("90: from all fwmark 0x80000/0xff0000 unreachable", 0x80000),
        ("90: not from all fwmark 0xca6c lookup 51820", 0),
        ("90: from all lookup 77", 0),
    ],
)
def test_the_mark_of_a_policy_rule_is_read(rule: str, mark: int) -> None:
    assert mark_of(rule) == mark


def test_a_policy_rule_is_named_if_packets_leave_the_route_of_the_main_table() -> None:
    rule = "100: from all to 10.100.0.0/16 lookup 77"

    one = found(replace(HEALTHY, answers=(answer(link="eth0", rules=(rule,)),)))

    assert (one.code, one.evidence) == ("policy-rule", (f"ip rule: {rule}", "the answer"))
    assert findings(replace(HEALTHY, answers=(answer(link="flannel.1", rules=(rule,)),))) == ()


@pytest.mark.parametrize(
    ("links", "code", "fix"),
    [
        (
            (*LINKS[:2], interface("docker0", "10.100.15.1/24", is_up=False)),
            "bridge-down",
            "ip link set docker0 up",
        ),
        (
            (*LINKS, interface("eth1", "10.100.16.9/24")),
            "overlay-address",
            "ip address delete 10.100.16.9/24 dev eth1",
        ),
        (
            (interface("eth0", "10.0.0.7/24"), *LINKS[1:]),
            "address-gone",
            "ip address add 10.0.0.1/PREFIX dev eth0",
        ),
    ],
)
def test_a_fault_of_an_interface_is_named(links: tuple[Interface, ...], code: str, fix: str) -> None:
    one = found(replace(HEALTHY, interfaces=Interfaces(interfaces=links)))

    assert (one.code, one.fix) == (code, fix)


def test_a_route_in_the_table_local_to_an_address_of_another_host_is_named() -> None:
    there = PEER.network_address + 2
    taken = answer(is_local=True, link="lo", text=f"local {there} dev lo table local")
    unreached = replace(taken, is_local=False)

    one = found(replace(HEALTHY, answers=(taken,)))

    assert (one.code, one.severity, one.evidence) == ("overlay-address", "error", (taken.text,))
    assert one.fix.startswith(f"ip -4 route delete local {there} table local  #")
    assert findings(replace(HEALTHY, answers=(unreached,))) == ()


def test_an_address_of_another_host_at_an_interface_is_one_finding() -> None:
    there = PEER.network_address + 2
    links = (*LINKS, interface("eth1", f"{there}/32"))

    one = found(
        replace(HEALTHY, interfaces=Interfaces(interfaces=links), answers=(answer(is_local=True, link="lo"),))
    )

    assert one.fix == f"ip address delete {there}/32 dev eth1"


@pytest.mark.parametrize(("link", "is_named"), [("docker0", True), ("flannel.1", True), ("eth0", False)])
def test_a_link_of_the_way_whose_packets_are_not_forwarded_is_named(link: str, is_named: bool) -> None:
    found = findings(replace(HEALTHY, unforwarded=frozenset({link})))

    assert [one.code for one in found] == (["forwarding-off"] if is_named else [])
    for one in found:
        assert one.evidence == (f"net.ipv4.conf.{link}.forwarding = 0",)
        assert one.fix == f"sysctl -w net/ipv4/conf/{link}/forwarding=1"


@pytest.mark.parametrize(("prefix", "severity"), [("10.100.16.0/25", "error"), ("10.100.0.0/17", "warning")])
def test_an_unplanned_route_that_takes_packets_of_a_peer_is_an_error(prefix: str, severity: str) -> None:
    """A wider route takes no packets, because the kernel prefers the route of the peer."""
    other = Route(destination=IPv4Network(prefix), link="eth0", gateway=IPv4Address("10.0.0.9"), protocol=3)

    (found,) = findings(replace(HEALTHY, items=(*HEALTHY.items, other)))

    assert (found.code, found.severity) == ("unplanned-route", severity)


GATEWAY = OWN.network_address + 1
LOCAL = ContainerRoute(destination=OWN)
DEFAULT = ContainerRoute(destination=IPv4Network("0.0.0.0/0"), gateway=GATEWAY)


def test_a_container_that_refuses_packets_for_other_hosts_is_named() -> None:
    address = OWN.network_address + 2
    refused = ContainerRoute(destination=NETWORK, is_refused=True)
    container = ContainerNamespace(
        pid=7, process="nginx, pid 7", addresses=frozenset({address}), routes=(LOCAL, DEFAULT, refused)
    )

    one = found(replace(HEALTHY, containers=(container,)))

    assert one.code == "container-route"
    assert one.evidence == ("10.100.15.2, nginx, pid 7, refuses packets to 10.100.0.0/16",)
    assert one.fix.startswith("nsenter --net --target 7 ip -4 route  #")


def test_a_container_with_a_wrong_gateway_is_named() -> None:
    """A gateway outside the subnet, and another container as the gateway, may be intended."""
    address, other = OWN.network_address + 2, OWN.network_address + 3
    held = (InterfaceAddress(address=IPv4Interface(f"{GATEWAY}/24")),)
    bridge = Interface(name="docker0", index=9, mtu=1450, addresses=held, kind="bridge")
    wrong = ContainerNamespace(
        pid=7,
        process="nginx, pid 7",
        addresses=frozenset({address}),
        routes=(LOCAL, replace(DEFAULT, gateway=OWN.network_address + 77)),
    )
    right = replace(wrong, pid=8, addresses=frozenset({other}), routes=(LOCAL, DEFAULT))
    by_container = replace(wrong, pid=9, routes=(replace(DEFAULT, gateway=other),))
    outside = replace(wrong, pid=10, routes=(replace(DEFAULT, gateway=IPv4Address("172.17.0.1")),))
    seen = replace(HEALTHY, interfaces=Interfaces(interfaces=(*LINKS, bridge)), ports={"docker0": {}})

    one = found(replace(seen, containers=(wrong, right, by_container, outside)))

    assert (one.code, one.severity) == ("container-gateway", "warning")
    assert one.evidence == ("nginx, pid 7: 0.0.0.0/0 via 10.100.15.77",)
    assert one.fix == "nsenter --net --target 7 ip -4 route replace 0.0.0.0/0 via 10.100.15.1"


def test_a_container_without_a_route_to_other_hosts_is_named() -> None:
    address = OWN.network_address + 2
    lost = ContainerNamespace(pid=7, process="nginx, pid 7", addresses=frozenset({address}), routes=(LOCAL,))
    routed = replace(lost, pid=8, process="web, pid 8", routes=(LOCAL, DEFAULT))
    elsewhere = replace(lost, pid=9, addresses=frozenset({IPv4Address("172.17.0.2")}))

    (found,) = findings(replace(HEALTHY, containers=(lost, routed, elsewhere)))

    assert (found.code, found.severity) == ("container-route", "info")
    assert found.evidence == ("10.100.15.2, nginx, pid 7",)


def test_a_container_with_a_prefix_that_contains_other_hosts_is_named() -> None:
    """It asks for the MAC address of the other container, which no container at the bridge has."""
    address, whole = OWN.network_address + 2, ContainerRoute(destination=NETWORK)
    wide = ContainerNamespace(
        pid=7,
        process="nginx, pid 7",
        addresses=frozenset({address}),
        routes=(whole, DEFAULT),
    )
    right = replace(wide, pid=8, process="web, pid 8", routes=(LOCAL, DEFAULT))
    routed = replace(wide, pid=9, process="api, pid 9", routes=(replace(whole, gateway=GATEWAY),))

    one = found(replace(HEALTHY, containers=(wide, right, routed)))

    assert (one.code, one.evidence) == ("container-prefix", ("nginx, pid 7: 10.100.0.0/16 is on the link",))


def test_a_container_with_a_larger_mtu_than_its_port_is_named() -> None:
    container = ContainerNamespace(
        pid=7, process="nginx, pid 7", links=(ContainerLink(name="eth0", mtu=9000),)
    )
    seen = replace(HEALTHY, containers=(container,))

    one = found(seen)

    assert (one.code, one.evidence) == ("container-mtu", ("eth0 of nginx, pid 7 has MTU 9000",))
    assert one.fix == "nsenter --net --target 7 ip link set eth0 mtu 1450"
    large = found(replace(seen, ports={"docker0": {"veth1": 9000}}))
    assert large.evidence == ("veth1 has MTU 9000",)


def test_an_underlay_without_arp_is_named() -> None:
    """There is no finding if an operator has set the MAC addresses of the peers on the link."""
    seen = replace(HEALTHY, lacks_arp=True)

    one = found(seen)

    assert (one.code, one.severity, one.fix) == ("arp-off", "error", "ip link set eth0 arp on")
    assert one.evidence == ("ip link show eth0: NOARP", "10.0.0.2: no MAC address")
    assert findings(replace(seen, set_neighbours=frozenset({THERE}))) == ()
    assert findings(replace(seen, on_link=())) == ()


def test_containers_of_docker_outside_the_subnet_are_named() -> None:
    """There is no finding if docker0 has no container, or another bridge is in the subnet."""
    docker0 = interface("docker0", "172.17.0.1/16")
    seen = replace(
        HEALTHY, ports={}, docker0_ports=2, interfaces=Interfaces(interfaces=(*LINKS[:2], docker0))
    )

    one = found(seen)

    assert (one.code, one.severity) == ("bridge-subnet", "warning")
    assert one.evidence == ("docker0 has 172.17.0.1/16, and 2 containers",)
    assert findings(replace(seen, docker0_ports=0)) == ()
    assert findings(replace(seen, ports={"cni0": {}})) == ()


def test_docker0_with_a_former_subnet_is_repaired_with_the_options_of_docker() -> None:
    docker0 = interface("docker0", "10.100.77.1/24")

    one = found(replace(HEALTHY, ports={}, interfaces=Interfaces(interfaces=(*LINKS[:2], docker0))))

    assert one.code == "overlay-address"
    assert one.fix.startswith("mk-docker-opts -c")


@pytest.mark.parametrize(
    ("public", "code"),
    [("10.0.2.15", "nat-address"), ("10.0.0.99", "public-address"), ("203.0.113.7", None)],
)
def test_a_public_address_that_peers_cannot_use_is_named(public: str, code: str | None) -> None:
    """An address outside the prefix of the underlay may be the address of a NAT."""
    underlay = UnderlayStatus(link="eth0", address=HERE, public_ip=IPv4Address(public), mtu=1500)
    seen = replace(HEALTHY, status=replace(HEALTHY.status, underlay=underlay))

    assert [one.code for one in findings(seen)] == ([] if code is None else [code])


def test_a_vxlan_device_without_its_published_mac_address_is_named_while_no_daemon_runs() -> None:
    vxlan = Vxlan(vni=1, port=8472, parent="eth0", local=HERE)
    device = Link(name="flannel.1", kind="vxlan", mtu=1450, mac="02:00:00:00:00:01", vxlan=vxlan)
    live = replace(HEALTHY, items=(*HEALTHY.items, device), published_mac="02:00:00:00:00:02")
    dead = replace(live, status=replace(HEALTHY.status, is_live=False))

    assert findings(live) == ()
    assert [one.code for one in findings(replace(dead, published_mac=device.mac))] == ["daemon-away"]
    (one,) = [one for one in findings(dead) if one.code != "daemon-away"]
    assert (one.code, one.severity) == ("vtep-mac", "error")
    assert one.fix == "ip link set flannel.1 address 02:00:00:00:00:02"


NAME = "$(reboot)'`x`;#"


def test_a_name_that_a_container_chose_is_one_word_of_a_command() -> None:
    """An operator copies the command into a shell of root."""
    container = ContainerNamespace(pid=7, process="nginx, pid 7", links=(ContainerLink(name=NAME, mtu=9000),))

    one = found(replace(HEALTHY, containers=(container,)))

    assert shlex.split(one.fix, comments=True)[-3:] == [NAME, "mtu", "1450"]
    assert one.evidence == (f"{NAME} of nginx, pid 7 has MTU 9000",)


@pytest.mark.parametrize(
    ("seen", "last"),
    [
        (
            replace(
                HEALTHY,
                ports={NAME: {}},
                interfaces=Interfaces(interfaces=(*LINKS, interface(NAME, "10.100.15.1/24", is_up=False))),
            ),
            [NAME, "up"],
        ),
        (
            replace(HEALTHY, ports={NAME: {}}, unforwarded=frozenset({NAME})),
            ["-w", f"net/ipv4/conf/{NAME}/forwarding=1"],
        ),
        (
            replace(HEALTHY, interfaces=Interfaces(interfaces=(*LINKS, interface(NAME, "10.100.16.9/24")))),
            ["dev", NAME],
        ),
        (
            replace(HEALTHY, answers=(answer(way="tunnel in", destination=HERE, refused_at=NAME),)),
            ["net/ipv4/conf/all/rp_filter=2", f"net/ipv4/conf/{NAME}/rp_filter=2"],
        ),
    ],
    ids=["bridge", "forwarding", "address", "reverse path"],
)
def test_a_name_of_a_link_is_one_word_of_a_command(seen: Observed, last: list[str]) -> None:
    one = found(seen)

    assert shlex.split(one.fix, comments=True)[-2:] == last
