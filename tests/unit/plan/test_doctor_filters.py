"""The findings of doctor about filter rules."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Interfaces
from pyflannel.model.netfilter import Action, BaseChain, Hook, Match, Rule, Ruleset
from pyflannel.model.route import Route
from pyflannel.model.status import (
    BackendStatus,
    FastPathMode,
    FastPathStatus,
)
from pyflannel.plan.doctor.coverage import coverage
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import ContainerLink, ContainerNamespace, Observed
from testlab.healthy_host import HEALTHY, LINKS, OWN, PEER, THERE, found, interface, iptables

DOCKER_MASQUERADE = "-A POSTROUTING -s 10.100.15.0/24 ! -o docker0 -j MASQUERADE"


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
            "iptables -t filter -D INPUT -m set --match-set bad src -j DROP  # if nothing needs the rules;"
            " 'flannelctl ping CONTAINER-ADDRESS' on 10.0.0.2 shows whether packets arrive",
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

    # The rule also drops packets of containers to this port.
    codes = [one.code for one in findings(replace(seen, ruleset=rules))]
    assert codes == ["tunnel-dropped" if is_named else "single-dropped"]


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
    [
        "-i docker0 -j DNAT --to-destination 10.100.15.9",
        "-i docker0 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 3128",
        "-s 10.100.15.0/24 -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.9",
        "-s 10.100.0.0/16 -p tcp -j REDIRECT --to-ports 80",
    ],
)
def test_a_rule_that_changes_the_destination_of_packets_of_containers_is_named(rule: str) -> None:
    nat = iptables(":PREROUTING ACCEPT", f"-A PREROUTING {rule}", table="nat")

    one = found(replace(HEALTHY, ruleset=nat))

    assert (one.code, one.severity) == ("destination-changed", "warning")
    assert one.fix.startswith(f"iptables -t nat -D PREROUTING {rule}")


def test_a_rule_that_changes_the_destination_of_other_packets_is_no_finding() -> None:
    rules = [
        "PREROUTING -d 10.0.0.1/32 -p tcp --dport 80 -j REDIRECT --to-ports 3128",
        "PREROUTING -i eth0 -p udp --dport 53 -j DNAT --to 10.100.15.2",
        "PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 80 -j DNAT --to 10.100.15.2",
    ]
    nat = iptables(":PREROUTING ACCEPT", *(f"-A {rule}" for rule in rules), table="nat")

    assert findings(replace(HEALTHY, ruleset=nat)) == ()


@pytest.mark.parametrize("chain", ["PREROUTING", "FORWARD", "POSTROUTING"])
def test_a_rule_after_which_a_router_drops_the_packet_is_named(chain: str) -> None:
    rules = iptables(f":{chain} ACCEPT", f"-A {chain} -d 10.100.16.0/24 -j TTL --ttl-set 1", table="mangle")

    one = found(replace(HEALTHY, ruleset=rules))

    assert (one.code, one.severity) == ("forward-dropped", "error")
    assert "so low that the next router drops them" in one.cause
    assert one.fix.startswith(f"iptables -t mangle -I {chain} -s 10.100.0.0/16 -j ACCEPT")


@pytest.mark.parametrize(
    "rule",
    [
        "PREROUTING -i docker0 -j TTL --ttl-set 64",
        "PREROUTING -i docker0 -j TTL --ttl-dec 1",
        "PREROUTING -i eth0 -j TTL --ttl-set 1",
    ],
)
def test_a_rule_that_lets_packets_of_the_overlay_reach_their_end_is_no_finding(rule: str) -> None:
    """The host itself receives the tunnel packets that arrive at eth0."""
    rules = iptables(":PREROUTING ACCEPT", f"-A {rule}", table="mangle")

    assert findings(replace(HEALTHY, ruleset=rules)) == ()


def test_a_possible_expiry_is_unknown() -> None:
    rule = "-A PREROUTING -i docker0 -m statistic --mode random --probability 0.5 -j TTL --ttl-set 1"

    seen = replace(HEALTHY, ruleset=iptables(":PREROUTING ACCEPT", rule, table="mangle"))

    assert found(seen).code == "rules-unknown"


@pytest.mark.parametrize(
    ("rule", "severity", "text"),
    [
        ("-o flannel.1 -j SNAT --to-source 192.0.2.7", "error", "replies do not return"),
        ("-s 10.100.0.0/16 -j SNAT --to-source 10.0.0.1", "warning", "between containers"),
        ("-p udp --dport 8472 -j SNAT --to-source 192.0.2.7:400-500", "error", "tunnel packets"),
    ],
)
def test_a_rule_that_changes_the_source_is_an_error_if_replies_are_lost(
    rule: str, severity: str, text: str
) -> None:
    nat = iptables(":POSTROUTING ACCEPT", f"-A POSTROUTING {rule}", table="nat")

    one = found(replace(HEALTHY, ruleset=nat))

    assert (one.code, one.severity) == ("source-changed", severity)
    assert text in one.cause
    assert one.fix.startswith(f"iptables -t nat -D POSTROUTING {rule}")


@pytest.mark.parametrize("target", ["MASQUERADE", "SNAT --to-source 10.0.0.1"])
def test_a_rule_that_keeps_the_source_of_tunnel_packets_is_no_finding(target: str) -> None:
    nat = iptables(":POSTROUTING ACCEPT", f"-A POSTROUTING -o eth0 -j {target}", table="nat")

    assert findings(replace(HEALTHY, ruleset=nat)) == ()


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


def test_rules_for_other_packets_are_no_finding() -> None:
    """The firewall accepts the tunnel, the network and ICMP echo requests."""
    rules = iptables(
        ":INPUT DROP",
        ":FORWARD DROP",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -p tcp -m multiport --dports 22,80 -j ACCEPT",
        "-A INPUT -p icmp -m icmp --icmp-type 8 -j ACCEPT",
        "-A INPUT -s 10.0.0.0/24 -p udp -m udp --dport 8472 -j ACCEPT",
        "-A INPUT -j REJECT",
        "-A FORWARD -i docker0 -o flannel.1 -j ACCEPT",
        "-A FORWARD -i flannel.1 -o docker0 -j ACCEPT",
    )

    assert findings(replace(HEALTHY, ruleset=rules)) == ()


@pytest.mark.parametrize(("mode", "severity"), [("safe", "warning"), ("off", "error")])
def test_the_fast_path_receives_tunnel_packets_before_the_rules(mode: FastPathMode, severity: str) -> None:
    backend = BackendStatus(type="udp", link="flannel.1", mtu=1472, port=8285)
    status = replace(HEALTHY.status, backend=backend, fast_path=FastPathStatus(mode=mode))

    assert found(replace(HEALTHY, status=status, ruleset=iptables(":INPUT DROP"))).severity == severity


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
    (many,) = coverage(replace(HEALTHY, containers=(box,) * 65))
    assert many.evidence == ("64 of 65 addresses of containers were probed",)


@pytest.mark.parametrize(
    ("rule", "code", "kind"),
    [
        ("-p icmp -m icmp --icmp-type 8 -j DROP", "echo-ignored", "echo-request"),
        ("-m conntrack --ctstate NEW -p icmp -j DROP", "echo-ignored", "echo-request"),
        ("-p icmp -m icmp --icmp-type 0 -j DROP", "probe-dropped", "echo-reply"),
        ("-i eth0 -p icmp -j REJECT", "probe-dropped", "echo-reply"),
        ("-i flannel.1 -j DROP", "probe-dropped", "echo-reply"),
    ],
)
def test_a_rule_against_probes_is_named_once(rule: str, code: str, kind: str) -> None:
    one = found(replace(HEALTHY, ruleset=iptables(":INPUT ACCEPT", f"-A INPUT {rule}")))

    assert (one.code, one.severity) == (code, "warning")
    assert one.evidence == (f"iptables rule in filter INPUT: {rule}",)
    assert one.fix == f"iptables -I INPUT -p icmp --icmp-type {kind} -j ACCEPT"


def test_the_command_for_unknown_rules_names_a_container() -> None:
    rules = iptables(":FORWARD ACCEPT", "-A FORWARD -m hashlimit --hashlimit-above 1/sec -j DROP")
    container = ContainerNamespace(
        pid=7, process="nginx, pid 7", addresses=frozenset({OWN.network_address + 9})
    )

    unknown = [one for one in findings(replace(HEALTHY, ruleset=rules)) if one.code == "rules-unknown"]
    known = [
        one
        for one in findings(replace(HEALTHY, ruleset=rules, containers=(container,)))
        if one.code == "rules-unknown"
    ]

    command = "iptables -t filter -D FORWARD -m hashlimit --hashlimit-above 1/sec -j DROP"
    for address, found_ in (("CONTAINER-ADDRESS", unknown[0]), ("10.100.15.9", known[0])):
        assert found_.fix == (
            f"{command}  # if nothing needs the rules; 'flannelctl ping {address}' on 10.0.0.2 shows whether"
            " packets arrive"
        )


NETWORK = "10.100.0.0/16"


@pytest.mark.parametrize(
    ("rule", "effect"),
    [
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", f"drops new TCP connections of {NETWORK}"),
        ("-p udp -j REJECT", f"rejects UDP packets and replies to UDP packets of {NETWORK}"),
        ("-p icmp -m icmp --icmp-type 0 -j DROP", f"drops replies to pings of {NETWORK}"),
        (
            "-m conntrack --ctstate ESTABLISHED -j DROP",
            f"drops replies to new TCP connections, TCP data of clients, TCP data of servers, replies to UDP"
            f" packets and replies to pings of {NETWORK}",
        ),
        (
            "-m length --length 1000:1500 -j DROP",
            f"drops TCP data of clients, TCP data of servers and replies to UDP packets of {NETWORK}",
        ),
        ("-d 10.100.0.0/16 -j DROP", f"drops packets of {NETWORK}"),
        (
            "-p tcp -m statistic --mode random --probability 0.2 -m tcp --dport 20000:30000 -j DROP",
            f"drops a part of new TCP connections and TCP data of clients of {NETWORK}",
        ),
    ],
)
def test_the_kinds_of_packets_that_a_rule_drops_are_named(rule: str, effect: str) -> None:
    one = found(replace(HEALTHY, ruleset=iptables(":FORWARD ACCEPT", f"-A FORWARD {rule}")))

    text = "iptables chain FORWARD in filter " + effect
    assert one.code == "forward-dropped"
    assert one.cause.removesuffix(", even if another chain accepts them") == text
    assert one.severity == ("warning" if "pings" in effect and "TCP" not in effect else "error")


def test_a_rule_against_large_tunnel_packets_is_named() -> None:
    rule = "-A INPUT -p udp -m length --length 1000:1500 -j DROP"

    one = found(replace(HEALTHY, ruleset=iptables(":INPUT ACCEPT", rule)))

    assert one.code == "tunnel-dropped"
    assert one.cause == (
        "iptables chain INPUT in filter drops large tunnel packets of peers to UDP port 8472"
    )


def test_a_rule_against_one_of_several_peers_is_named_with_its_kinds() -> None:
    """The first peers are not concerned."""
    membership = HEALTHY.membership
    peers = {IPv4Network(f"10.100.{n}.0/24"): IPv4Address(f"10.0.0.{n}") for n in range(30, 36)}
    rule = "-A FORWARD -s 10.100.35.0/24 -j DROP"
    seen = replace(
        HEALTHY, ruleset=iptables(":FORWARD ACCEPT", rule), membership=replace(membership, peers=peers)
    )

    assert f"drops packets of {NETWORK}" in found(seen).cause


def test_a_random_verdict_behind_an_unknown_condition_is_unknown() -> None:
    rule = "-A FORWARD -m set --match-set bad src -m statistic --mode random --probability 0.5 -j DROP"

    assert found(replace(HEALTHY, ruleset=iptables(":FORWARD ACCEPT", rule))).code == "rules-unknown"


@pytest.mark.parametrize(
    ("match", "is_named"),
    [
        (Match("back_link", ("eth0", "flannel.1", "docker0"), is_negated=True), False),
        (Match("back_iif", ("",)), False),
        (Match("back_link", ("docker0",), is_negated=True), True),
        (Match("back_link", ("",)), False),
    ],
)
def test_rules_about_the_route_to_the_source_are_evaluated(match: Match, is_named: bool) -> None:
    routes = (
        route("10.100.15.0/24", "docker0"),
        route(str(THERE), "flannel.1"),
        route("10.0.0.0/24", "eth0"),
    )
    rules = {"c": (Rule((match,), Action("drop"), "fib saddr …", 7),)}
    chain = BaseChain(
        program="nft", family="inet", table="t", name="c", hook="prerouting", priority=-300, chains=rules
    )

    seen = replace(HEALTHY, items=(*HEALTHY.items, *routes), ruleset=(chain,))

    codes = [one.code for one in findings(seen)]
    assert ("forward-dropped" in codes) is is_named
    assert "rules-unknown" not in codes


def route(destination: str, link: str) -> Route:
    return Route(destination=IPv4Network(destination), link=link)


@pytest.mark.parametrize(
    "rule",
    [
        "-A FORWARD -p tcp -m tcp --dport 80 -j DROP",
        "-A FORWARD -s 10.100.15.9/32 -p udp -m udp --dport 53 -j REJECT",
        f"-A FORWARD -d {PEER.network_address + 200}/32 -j DROP",
        "-A FORWARD -p udp -m length --length 500:600 -j DROP",
        f"-A FORWARD -d {PEER[9]}/32 -p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK -j DROP",
        f"-A FORWARD -s {PEER[9]}/32 -m conntrack --ctstate ESTABLISHED -j DROP",
        f"-A FORWARD -d {PEER[9]}/32 -p tcp -m tcp ! --tcp-flags SYN,ACK SYN -j DROP",
    ],
)
def test_a_rule_against_single_packets_of_containers_is_named(rule: str) -> None:
    one = found(replace(HEALTHY, ruleset=iptables(":FORWARD ACCEPT", rule)))

    assert (one.code, one.severity) == ("single-dropped", "warning")
    text = rule.removeprefix("-A FORWARD ")
    assert one.evidence == (f"iptables rule in filter FORWARD: {text}",)
    assert one.fix == f"iptables -t filter -D FORWARD {text}  # if nothing needs the rules"


@pytest.mark.parametrize(
    "rules",
    [
        ["-A FORWARD -s 10.9.0.0/16 -j DROP"],
        ["-A FORWARD -i docker0 -o docker0 -j DROP"],
        ["-A FORWARD -m conntrack --ctstate INVALID -j DROP"],
        ["-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT", "-A FORWARD -p tcp -m tcp --dport 80 -j DROP"],
        ["-A FORWARD -j cali-fw", "-A cali-fw -p tcp -m tcp --dport 80 -j DROP"],
    ],
)
def test_a_rule_that_drops_no_packet_between_containers_is_no_finding(rules: list[str]) -> None:
    assert findings(replace(HEALTHY, ruleset=iptables(":FORWARD ACCEPT", ":cali-fw -", *rules))) == ()


def test_a_translation_of_one_address_and_port_is_named() -> None:
    target = "-j DNAT --to-destination 10.1.1.1:90"
    rule = f"-A PREROUTING -d {PEER.network_address + 5}/32 -p tcp -m tcp --dport 80 {target}"

    one = found(replace(HEALTHY, ruleset=iptables(":PREROUTING ACCEPT", rule, table="nat")))

    assert one.code == "destination-changed"


def test_an_unknown_rule_that_names_addresses_of_the_network_is_a_warning() -> None:
    rule = "-A FORWARD -s 10.100.15.0/24 -m mac ! --mac-source 02:42:aa:bb:cc:dd -j DROP"

    one = found(replace(HEALTHY, ruleset=iptables(":FORWARD ACCEPT", rule)))

    assert (one.code, one.severity) == ("rules-unknown", "warning")


def test_a_rule_against_pings_of_all_is_named_once() -> None:
    rule = "-A PREROUTING -p icmp -m icmp --icmp-type 8 -j DROP"

    one = found(replace(HEALTHY, ruleset=iptables(":PREROUTING ACCEPT", rule, table="raw")))

    assert one.code == "echo-ignored"


def test_a_rule_against_large_packets_of_all_kinds_is_one_error() -> None:
    rule = "-A PREROUTING -p udp -m length --length 1000:65535 -j DROP"

    one = found(replace(HEALTHY, ruleset=iptables(":PREROUTING ACCEPT", rule, table="raw")))

    assert one.code == "tunnel-dropped"


def test_a_rule_against_one_port_at_a_port_of_the_bridge_is_named() -> None:
    port = Match("dport", ((80, 80),))
    rules = bridge_rule("prerouting", Match("iif", ("veth*",)), Match("protocol", ((6, 6),)), port)

    assert found(replace(HEALTHY, ruleset=rules)).code == "single-dropped"
