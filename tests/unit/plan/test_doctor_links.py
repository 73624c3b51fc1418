"""The findings of doctor about the links of the host and the kernel's tables for them."""

import json
from ipaddress import IPv4Address

import pytest
from msgspec.structs import replace

from pyflannel.kernel.host.packet_path import passthru_in
from pyflannel.model.host import Interface, Interfaces, QueueingDiscipline
from pyflannel.model.status import RefusedPeer, StrangerStatus
from pyflannel.plan.doctor.addresses import address_taken
from pyflannel.plan.doctor.findings import SAFE, findings
from pyflannel.plan.doctor.observed import LinkSetter, Observed
from testlab.healthy_host import HEALTHY, HERE, LINKS, NETWORK, OWN, PEER, THERE, found, interface


@pytest.mark.parametrize(("count", "severity"), [(900, "warning"), (999, "warning"), (1000, "error")])
def test_a_full_table_of_connections_is_named(count: int, severity: str) -> None:
    one = found(replace(HEALTHY, tracked=(count, 1000)))

    assert (one.code, one.severity) == ("conntrack-full", severity)
    assert one.evidence == (f"nf_conntrack_count = {count}, nf_conntrack_max = 1000",)
    assert one.fix.startswith("sysctl -w net.netfilter.nf_conntrack_max=262144")


def test_a_table_with_space_for_connections_is_no_finding() -> None:
    assert findings(replace(HEALTHY, tracked=(899, 1000))) == ()


def test_an_xdp_program_on_the_way_is_information() -> None:
    one = found(replace(HEALTHY, xdp_links=frozenset({"eth0", "wlan0"})))

    assert (one.code, one.severity, len(one.evidence)) == ("xdp-program", "info", 1)
    assert one.fix.startswith("ip link set dev eth0 xdp off")
    assert findings(replace(HEALTHY, xdp_links=frozenset({"wlan0"}))) == ()


def test_a_bridge_without_arp_is_named() -> None:
    one = found(replace(HEALTHY, bridges_without_arp=frozenset({"docker0"})))

    assert (one.code, one.severity, one.fix) == ("arp-off", "error", "ip link set docker0 arp on")


SETTER = LinkSetter(pid=7, process="sh, pid 7", command="sh -c while :; do ip link set docker0 down; done")

DOWN = replace(
    HEALTHY,
    interfaces=Interfaces(interfaces=(*LINKS[:2], interface("docker0", "10.100.15.1/24", is_up=False))),
)


def test_a_program_that_may_set_a_bridge_down_is_named_if_the_bridge_is_down() -> None:
    setters = {"docker0": (SETTER,)}

    one = found(replace(DOWN, link_setters=setters))

    assert (one.code, one.severity) == ("bridge-unstable", "error")
    assert one.evidence == ("ip link show docker0: state DOWN", f"sh, pid 7: {SETTER.command}")
    assert one.fix == "ip link set docker0 up  # first stop the program that sets it down: kill 7"
    assert one.code not in SAFE
    assert findings(replace(HEALTHY, link_setters=setters)) == ()
    assert found(DOWN).code == "bridge-down"


@pytest.mark.parametrize("seen", [HEALTHY, DOWN])
def test_a_bridge_that_was_set_down_during_the_examination_is_named(seen: Observed) -> None:
    one = found(replace(seen, set_down={"docker0": 3}))

    assert (one.code, one.severity) == ("bridge-unstable", "error")
    assert one.evidence == ("ip monitor link: docker0 was set down 3 times during the examination",)
    assert one.fix.startswith("ip link set docker0 up  # first stop the program")


def with_links(*links: Interface, **status: object) -> Observed:
    return replace(
        HEALTHY,
        interfaces=Interfaces(interfaces=links),
        status=replace(HEALTHY.status, peers=1, **status),
    )


def sender_of(inner: IPv4Address) -> StrangerStatus:
    """Return the peer as a sender whose packets were dropped because of their inner source."""
    return StrangerStatus(
        address=THERE,
        reason="impostor",
        packets=3,
        age_s=1.0,
        inner_source=inner,
        inner_destination=OWN[2],
        cause="it has no lease for the source",
        hint="flannelctl leases",
    )


def test_a_sender_is_no_stranger_once_its_lease_contains_the_source() -> None:
    """The packets were dropped because of an earlier state of this host or of the leases."""
    assert findings(with_links(*LINKS, strangers=(sender_of(PEER[2]),))) == ()
    assert found(with_links(*LINKS, strangers=(sender_of(NETWORK[2]),))).code == "stranger"


def test_an_address_of_a_peer_at_an_interface_is_the_only_finding() -> None:
    """The refused peer and its dropped packets are consequences."""
    refused = RefusedPeer(subnet=PEER, public_ip=THERE, reason=f"{THERE} is an address of this host")
    stranger = sender_of(NETWORK[2])
    held = interface("eth0", "10.0.0.1/24", f"{THERE}/32")

    one = found(with_links(held, *LINKS[1:], refused_peers=(refused,), strangers=(stranger,)))

    assert (one.code, one.severity) == ("peer-address", "error")
    assert one.evidence == (
        "eth0 has 10.0.0.2/32, the address of a peer",
        "consequence: 10.100.16.0/24 at 10.0.0.2 is refused",
    )
    assert one.fix == "ip address delete 10.0.0.2/32 dev eth0"


def test_a_peer_that_publishes_the_address_of_this_host_is_no_wrong_address() -> None:
    peers = {PEER: HERE}
    refused = RefusedPeer(subnet=PEER, public_ip=HERE, reason="two living hosts share an address")
    seen = with_links(*LINKS, refused_peers=(refused,))

    one = found(replace(seen, membership=replace(seen.membership, peers=peers)))

    assert one.code == "peers-refused"


def test_a_host_with_the_address_of_this_host_is_named_by_its_mac_address() -> None:
    one = address_taken("eth0", HERE, "02:00:00:00:00:02")

    assert one.evidence == ("02:00:00:00:00:02 answers an ARP probe for 10.0.0.1 at eth0",)
    assert one.fix.startswith("ip -br link | grep -i 02:00:00:00:00:02  #")


@pytest.mark.parametrize(
    ("link", "kind", "drops", "code", "severity"),
    [
        ("eth0", "tbf", 7, "underlay-shaped", "info"),
        ("eth0", "blackhole", 7, "underlay-shaped", "warning"),
        ("docker0", "tbf", 7, "link-shaped", "info"),
        ("flannel.1", "red", 7, "link-shaped", "info"),
        ("veth7", "blackhole", 7, "link-shaped", "warning"),
        ("docker0", "tbf", 0, None, None),
        ("eth0", "fq_codel", 7, None, None),
        ("elsewhere", "tbf", 7, None, None),
    ],
)
def test_a_queueing_discipline_of_an_operator_that_dropped_packets_is_named(
    link: str, kind: str, drops: int, code: str | None, severity: str | None
) -> None:
    """The disciplines that the kernel gives to a link also drop packets while the link is busy."""
    one = QueueingDiscipline(link=link, kind=kind, drops=drops)

    named = findings(replace(HEALTHY, ports={"docker0": {"veth7": 1450}}, disciplines=(one,)))

    assert [(one.code, one.severity) for one in named] == ([(code, severity)] if code else [])
    for one in named:
        assert one.evidence == (f"tc -statistics qdisc show dev {link}: {kind} has dropped 7 packets",)
        assert one.fix == f"tc qdisc delete dev {link} root  # if no program needs it"


def test_a_link_that_takes_the_frames_of_the_underlay_is_named() -> None:
    one = found(replace(HEALTHY, passthru_links={"passthru0": "eth0", "tap0": "eth1"}))

    assert (one.code, one.severity) == ("frames-taken", "error")
    assert one.evidence == ("ip -details link show passthru0: above eth0, mode passthru",)
    assert one.fix == "ip link delete passthru0"


def test_a_link_with_another_mode_or_above_another_link_takes_no_frames_of_the_overlay() -> None:
    assert findings(replace(HEALTHY, passthru_links={"tap0": "eth1"})) == ()


def test_the_mode_of_a_link_is_read() -> None:
    links = [
        {"ifname": name, "link": "eth0", "linkinfo": {"info_kind": "macvlan", "info_data": {"mode": mode}}}
        for name, mode in (("one", "passthru"), ("two", "bridge"))
    ]
    elsewhere = {"ifname": "moved", "link_index": 7, "linkinfo": {"info_data": {"mode": "passthru"}}}

    assert passthru_in(json.dumps([*links, elsewhere, {"ifname": "eth0"}])) == {"one": "eth0"}
    assert passthru_in("") == {}
