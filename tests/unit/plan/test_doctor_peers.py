"""The conclusions from probes."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

import pytest
from msgspec.structs import replace

from pyflannel.commands.losses import Losses
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.probe import (
    SILENT,
    EchoResult,
    Loss,
    NarrowPath,
    PeerReach,
    PingStep,
    ProbeState,
    StepName,
)
from pyflannel.model.route import RouteAnswer
from pyflannel.model.status import BackendStatus, Finding, RefusedPeer, Status, StoreStatus
from pyflannel.plan.doctor.host_routes import HostRoutes, detour
from pyflannel.plan.doctor.losses import large_loss_findings, large_losses, loss_findings
from pyflannel.plan.doctor.observed import BadNeighbour
from pyflannel.plan.doctor.peers import (
    is_cut_off,
    with_peers,
)
from pyflannel.plan.doctor.ping import joined, judged

STATUS = Status(version="1", backend=BackendStatus(type="vxlan", link="flannel.1", mtu=1450, port=8472))
PEER = LeaseEntry(
    subnet=IPv4Network("10.100.16.0/24"), public_ip=IPv4Address("10.0.0.2"), host_name="docker2"
)
REACHED = EchoResult(state="reached", rtt_s=0.001)
AWAY = Finding(code="daemon-away", severity="error", cause="flanneld does not respond", fix="start it")
DROPPED = Finding(code="forward-dropped", severity="error", cause="a rule drops it", fix="delete it")


def step(name: StepName, state: ProbeState, mtu: int | None = None, text: str = "") -> PingStep:
    return PingStep(
        name=name, family=4, destination=IPv4Address("10.100.16.0"), state=state, mtu=mtu, text=text
    )


def path(underlay: ProbeState, tunnel: ProbeState, container: ProbeState, mtu: int = 1450) -> list[PingStep]:
    return [step("underlay", underlay), step("tunnel", tunnel, mtu), step("container", container)]


def stop(
    steps: list[PingStep], *, is_container: bool = False, local: tuple[Finding, ...] = ()
) -> tuple[str | None, str | None]:
    report = judged(PEER, steps, is_container=is_container, status=STATUS, local=local)
    assert report.ok == (report.stops is None)
    return report.stops, report.cause


@pytest.mark.parametrize(
    ("steps", "place"),
    [
        (path("reached", "reached", "reached"), None),
        (path("silent", "reached", "silent"), None),
        (path("reached", "reached", "silent", mtu=1400), "tunnel"),
        (path("reached", "silent", "silent"), "tunnel"),
        (path("reached", "rejected", "silent"), "tunnel"),
        (path("silent", "silent", "silent"), "underlay"),
        (path("reached", "unsent", "unsent"), "this host"),
    ],
)
def test_a_host_is_reached_if_its_tunnel_address_answers(steps: list[PingStep], place: str | None) -> None:
    assert stop(steps)[0] == place


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "stops", "names"),
    [
        ("reached", "reached", None, None),
        ("silent", "reached", "tunnel", "IPv4: docker2"),
        ("reached", "silent", "tunnel", "IPv6: docker2"),
        ("silent", "silent", "tunnel", "IPv4 and IPv6: docker2"),
        ("silent", "unsent", "tunnel", "IPv4: docker2"),
    ],
)
def test_the_report_names_the_family_whose_packets_stop(
    ipv4: ProbeState, ipv6: ProbeState, stops: str | None, names: str | None
) -> None:
    reports = {
        family: judged(PEER, path("reached", state, state), is_container=False, status=STATUS, local=())
        for family, state in ((4, ipv4), (6, ipv6))
    }

    found = joined(reports)

    assert (found.ok, found.stops, len(found.steps)) == (stops is None, stops, 6)
    assert found.cause is None if names is None else str(found.cause).startswith(names)
    assert joined({4: reports[4]}) == reports[4]


def test_an_error_about_packets_of_containers_is_shown_although_the_probes_arrive() -> None:
    """This host sends the probes itself, so the rules for forwarded packets do not apply."""
    steps = path("reached", "reached", "reached")
    warning = replace(DROPPED, severity="warning")
    reports = {
        family: judged(PEER, steps, is_container=False, status=STATUS, local=local)
        for family, local in ((4, (AWAY, warning)), (6, (AWAY, DROPPED)))
    }

    assert [one.containers for one in reports.values()] == [None, "a rule drops it"]
    assert joined(reports).ok
    assert joined(reports).containers == "a rule drops it"
    stopped = judged(
        PEER, path("reached", "silent", "silent"), is_container=False, status=STATUS, local=(DROPPED,)
    )
    assert (stopped.cause, stopped.containers) == ("a rule drops it", None)


def test_an_address_of_a_container_is_reached_only_if_it_answers() -> None:
    assert stop(path("reached", "reached", "silent"), is_container=True)[0] == "container"
    assert stop(path("reached", "reached", "rejected"), is_container=True)[0] == "peer"


def test_without_a_tunnel_the_answer_of_the_container_shows_whether_the_host_is_reached() -> None:
    """The backend host-gw has no tunnel."""
    assert stop([step("underlay", "reached"), step("container", "reached")])[0] is None
    assert stop([step("underlay", "silent"), step("container", "silent")])[0] == "underlay"
    assert stop([step("underlay", "reached"), step("container", "silent")])[0] == "container"


def test_a_fault_of_this_host_on_the_path_explains_the_loss() -> None:
    lost = path("reached", "silent", "silent")

    assert stop(lost, local=(AWAY, DROPPED)) == ("this host", "a rule drops it")
    assert stop(lost, local=(AWAY,))[0] == "tunnel"
    assert stop(path("reached", "reached", "reached"), local=(DROPPED,))[0] is None


def test_a_refused_peer_is_explained_by_the_refusal() -> None:
    refused = RefusedPeer(subnet=PEER.subnet, public_ip=PEER.public_ip, reason="another backend")
    status = Status(version="1", refused_peers=(refused,))

    report = judged(
        PEER, path("silent", "silent", "silent"), is_container=False, status=status, local=(DROPPED,)
    )

    assert report.cause == "this host does not send to docker2 (10.0.0.2): another backend"


def reach(number: int, underlay: EchoResult, tunnel: EchoResult, mtu: int | None = 1450) -> PeerReach:
    return PeerReach(
        subnet=IPv4Network(f"10.100.{number}.0/24"),
        public_ip=IPv4Address(f"10.0.0.{number}"),
        underlay=underlay,
        tunnel=tunnel,
        path_mtu=mtu,
    )


@pytest.mark.parametrize(
    ("results", "codes"),
    [
        ([reach(1, REACHED, REACHED), reach(2, SILENT, REACHED)], []),
        ([reach(1, REACHED, SILENT, None)], [("tunnel-blocked", "error")]),
        ([reach(1, REACHED, REACHED), reach(2, SILENT, SILENT, None)], [("peers-silent", "warning")]),
        ([reach(2, SILENT, SILENT, None)], [("peers-silent", "error")]),
        ([reach(1, REACHED, REACHED, 84)], [("path-mtu", "error")]),
        ([reach(1, REACHED, EchoResult(state="skipped"), None)], []),
    ],
)
def test_silent_peers_are_a_finding(results: list[PeerReach], codes: list[tuple[str, str]]) -> None:
    assert [(one.code, one.severity) for one in with_peers((), results, STATUS)] == codes


def narrow(number: int, measured: int, *, is_routed: bool = True, is_ipv6: bool = False) -> NarrowPath:
    return NarrowPath(
        subnet=IPv4Network(f"10.100.{number}.0/24"),
        ipv6_subnet=IPv6Network(f"fd00:5:0:{number}::/64") if is_ipv6 else None,
        planned=1450,
        measured=measured,
        since_s=60.0,
        is_routed=is_routed,
    )


@pytest.mark.parametrize(
    ("arrived", "paths", "found"),
    [
        (1350, [narrow(1, 1350)], [("info", "10.100.1.0/24: 1350 of 1450 bytes arrive")]),
        # Packets of 1450 bytes arrive only as fragments.
        (1450, [narrow(1, 1350)], [("info", "10.100.1.0/24: 1350 of 1450 bytes arrive")]),
        (84, [narrow(1, 1350)], [("error", "10.100.1.0/24 at 10.0.0.1: 84 bytes arrive")]),
        (400, [narrow(1, 400, is_routed=False)], [("error", "10.100.1.0/24 at 10.0.0.1: 400 bytes arrive")]),
        (
            1450,
            [narrow(1, 1200, is_routed=False, is_ipv6=True), narrow(2, 1300, is_ipv6=True)],
            [
                ("error", "fd00:5:0:1::/64: 1200 of 1450 bytes arrive"),
                ("info", "fd00:5:0:2::/64: 1300 of 1450 bytes arrive"),
            ],
        ),
    ],
)
def test_a_narrow_path_is_an_error_unless_the_route_has_its_mtu(
    arrived: int, paths: list[NarrowPath], found: list[tuple[str, str]]
) -> None:
    status = replace(STATUS, path_mtus=tuple(paths))

    findings = with_peers((), [reach(1, REACHED, REACHED, arrived)], status)

    assert {one.code for one in findings} == {"path-mtu"}
    assert [(one.severity, line) for one in findings for line in one.evidence] == found


def test_a_fault_of_this_host_does_not_explain_a_narrow_path() -> None:
    status = replace(STATUS, path_mtus=(narrow(1, 1350),))

    found = with_peers((DROPPED,), [reach(1, REACHED, REACHED, 1350)], status)

    assert [(one.code, one.severity) for one in found] == [("forward-dropped", "error"), ("path-mtu", "info")]
    assert found[0].evidence == ()


def test_packets_of_the_mtu_of_the_route_are_sufficient_for_a_ping() -> None:
    steps = path("reached", "reached", "reached", mtu=1350)

    for paths, place in (((), "tunnel"), ((narrow(16, 1350),), None), ((narrow(16, 1400),), "tunnel")):
        status = replace(STATUS, path_mtus=paths)
        report = judged(PEER, steps, is_container=False, status=status, local=())
        assert report.stops == place


def test_peers_to_which_the_host_has_no_route_are_named_with_the_reason() -> None:
    reason = "this host has no usable route to the destination"
    lost = PeerReach(
        subnet=PEER.subnet,
        public_ip=PEER.public_ip,
        underlay=EchoResult(state="unsent", text=reason),
        tunnel=SILENT,
    )

    (one,) = with_peers([], [lost], STATUS)

    assert (one.code, one.severity) == ("underlay-unsent", "error")
    assert one.cause.endswith(reason)
    assert one.fix.startswith("ip -4 route show match 10.0.0.2  #")


@pytest.mark.parametrize(
    ("answer", "rules", "tables", "line", "fix"),
    [
        (
            {},
            ["100: from 10.0.0.1 to 10.0.0.2 lookup 125"],
            {"125": ["blackhole default"]},
            "ip rule: 100: from 10.0.0.1 to 10.0.0.2 lookup 125",
            "ip rule delete priority 100 from 10.0.0.1 to 10.0.0.2 lookup 125",
        ),
        (
            {},
            ["50: from all lookup 7", "60: from 10.0.0.9 blackhole", "100: from all iif lo unreachable"],
            {"7": []},
            "ip rule: 100: from all iif lo unreachable",
            "ip rule delete priority 100 from all iif lo unreachable",
        ),
        (
            {"link": "eth0", "gateway": IPv4Address("10.0.0.240")},
            [],
            {"main": ["10.0.0.2 via 10.0.0.240 dev eth0 onlink", "10.0.0.0/24 dev eth0 scope link"]},
            "ip -4 route show match 10.0.0.2: 10.0.0.2 via 10.0.0.240 dev eth0 onlink",
            "ip -4 route delete 10.0.0.2 via 10.0.0.240 dev eth0 onlink",
        ),
        (
            {},
            ["100: from all lookup 7"],
            {"local": ["prohibit 10.0.0.2"], "7": ["default dev eth1"]},
            "ip -4 route show table local: prohibit 10.0.0.2",
            "ip -4 route delete prohibit 10.0.0.2 table local",
        ),
    ],
)
def test_the_route_or_rule_that_diverts_packets_of_this_host_is_named(
    answer: dict[str, Any], rules: list[str], tables: dict[str, list[str]], line: str, fix: str
) -> None:
    asked = RouteAnswer(way="host out", destination=PEER.public_ip, text="the answer", **answer)
    routes = HostRoutes(source=IPv4Address("10.0.0.1"), link="eth0", answer=asked, rules=rules, tables=tables)

    found = detour(routes)

    assert found is not None
    assert (found.lines[0], found.lines[-1], found.fix) == (line, "the answer", fix)
    for state, code in (("unsent", "underlay-unsent"), ("silent", "peers-silent")):
        lost = replace(reach(2, SILENT, SILENT, None), underlay=EchoResult(state=state))
        (one,) = with_peers([], [lost], STATUS, detours={lost.public_ip: found})
        assert (one.code, one.evidence[0], one.fix) == (code, line, fix)
    entry = neighbour("10.0.0.240", "FAILED")
    peers = {IPv4Address("10.0.0.2"): entry}
    (one,) = with_peers([], [reach(2, SILENT, SILENT, None)], STATUS, peers, None, {PEER.public_ip: found})
    assert (one.code, one.evidence) == ("no-neighbour", (*found.lines, "10.0.0.240 FAILED"))
    assert one.fix == fix


def test_a_gateway_to_a_peer_on_another_link_is_no_detour() -> None:
    asked = RouteAnswer(
        way="host out", destination=PEER.public_ip, text="", link="eth0", gateway=IPv4Address("10.9.0.1")
    )
    tables = {"main": ["default via 10.9.0.1 dev eth0"]}
    routes = HostRoutes(source=IPv4Address("10.9.0.2"), link="eth0", answer=asked, rules=(), tables=tables)

    assert detour(routes) is None
    assert detour(routes._replace(answer=replace(asked, link=None, gateway=None), tables={})) is None


def test_a_route_to_one_peer_by_a_silent_gateway_is_a_detour_only_beside_another_route() -> None:
    """Without another route, the deletion does not help. A gateway that answers may be the right one."""
    gateway = IPv4Address("10.9.0.240")
    asked = RouteAnswer(way="host out", destination=PEER.public_ip, text="", link="eth0", gateway=gateway)
    alone = f"{PEER.public_ip} via {gateway} dev eth0 onlink"
    routes = HostRoutes(
        source=IPv4Address("10.9.0.2"),
        link="eth0",
        answer=asked,
        rules=(),
        tables={"main": [alone, "default via 10.9.0.1 dev eth0"]},
        is_silent=True,
    )

    found = detour(routes)

    assert found is not None
    assert found.fix == f"ip -4 route delete {alone}"
    assert detour(routes._replace(is_silent=False)) is None
    assert detour(routes._replace(tables={"main": [alone]})) is None
    assert detour(routes._replace(tables={"main": [f"10.0.0.0/24 via {gateway} dev eth0"]})) is None


def test_silent_peers_are_a_consequence_of_a_fault_of_this_host() -> None:
    results = [reach(1, REACHED, SILENT, None)]

    (whole,) = with_peers((DROPPED,), results, STATUS)

    assert whole.code == "forward-dropped"
    assert whole.evidence[0].startswith("consequence: 1 of 1 probed peers answers on the underlay, but not")
    assert [one.code for one in with_peers((AWAY,), results, STATUS)] == ["daemon-away", "tunnel-blocked"]


@pytest.mark.parametrize(
    ("code", "explains_tunnel", "explains_underlay"),
    [
        ("tunnel-dropped", True, True),
        ("forward-dropped", True, False),
        ("bridge-down", True, False),
        ("forwarding-off", False, False),
        ("port-closed", False, False),
        ("port-mtu", False, False),
        ("container-neighbour", False, False),
        ("neighbour-set", False, True),
    ],
)
def test_a_fault_explains_only_the_packets_that_it_may_stop(
    code: str, explains_tunnel: bool, explains_underlay: bool
) -> None:
    fault = replace(DROPPED, code=code)
    blocked, silent = [reach(1, REACHED, SILENT, None)], [reach(1, SILENT, SILENT, None)]

    assert (len(with_peers((fault,), blocked, STATUS)) == 1) is explains_tunnel
    assert (len(with_peers((fault,), silent, STATUS)) == 1) is explains_underlay
    assert (stop(path("reached", "silent", "silent"), local=(fault,))[0] == "this host") is explains_tunnel
    assert (stop(path("silent", "silent", "silent"), local=(fault,))[0] == "this host") is explains_underlay


@pytest.mark.parametrize(
    ("noun", "explains"),
    [("tunnel packets to UDP port 8472 of peers", True), ("packets of 10.100.0.0/16", False)],
)
def test_an_ipsec_policy_for_the_overlay_does_not_explain_silence_on_the_underlay(
    noun: str, explains: bool
) -> None:
    fault = replace(DROPPED, code="ipsec-block", cause=f"IPsec policies drop {noun}")

    found = with_peers((fault,), [reach(1, SILENT, SILENT, None)], STATUS)

    assert (len(found) == 1) is explains


def test_two_faults_have_the_consequences_that_each_explains() -> None:
    results = [reach(1, REACHED, SILENT, None), reach(2, SILENT, SILENT, None)]

    found = with_peers((DROPPED, replace(DROPPED, code="tunnel-dropped")), results, STATUS)

    assert [(one.code, len(one.evidence)) for one in found] == [("forward-dropped", 1), ("tunnel-dropped", 1)]


def neighbour(address: str, state: str, *, is_set: bool = False) -> BadNeighbour:
    return BadNeighbour(address=IPv4Address(address), link="eth0", text=f"{address} {state}", is_set=is_set)


def test_the_neighbour_entry_of_a_gateway_is_named() -> None:
    """The entry was set manually, or the gateway does not answer ARP."""
    results = [reach(1, REACHED, REACHED), *(reach(number, SILENT, SILENT, None) for number in (2, 3))]
    peers = [IPv4Address(f"10.0.0.{number}") for number in (2, 3)]

    wrong = neighbour("10.0.0.254", "lladdr 02:00:00:00:00:99 PERMANENT", is_set=True)
    (found,) = with_peers((), results, STATUS, dict.fromkeys(peers, wrong))
    assert (found.code, found.severity) == ("neighbour-set", "warning")
    assert found.cause == (
        "the MAC address of 10.0.0.254, the gateway to 2 of 3 probed peers, was set manually"
    )
    assert found.evidence == ("10.0.0.254 lladdr 02:00:00:00:00:99 PERMANENT",)
    assert found.fix.startswith("ip neighbour delete 10.0.0.254 dev eth0")

    lost = dict.fromkeys(peers, neighbour("10.0.0.254", "FAILED"))
    (found,) = with_peers((), results, STATUS, lost)
    assert found.code == "no-neighbour"
    assert found.cause.startswith("10.0.0.254, the gateway to 2 of 3 probed peers, does not answer ARP")


def test_a_host_whose_link_is_cut_has_one_finding() -> None:
    """Neither the gateway nor a peer on the same link answers ARP."""
    results = [reach(number, SILENT, SILENT, None) for number in (2, 3)]
    entries = {
        IPv4Address("10.0.0.2"): neighbour("10.0.0.2", "FAILED"),
        IPv4Address("10.0.0.3"): neighbour("10.0.0.254", "FAILED"),
    }

    (found,) = with_peers((), results, STATUS, entries)

    assert (found.code, found.severity) == ("no-neighbour", "error")
    assert found.cause.endswith("eth0 is cut off, or ARP does not pass")
    assert found.evidence == ("10.0.0.2 FAILED", "10.0.0.254 FAILED")


def test_a_neighbour_entry_that_was_set_for_a_peer_is_named() -> None:
    entry = neighbour("10.0.0.2", "lladdr 02:00:00:00:00:99 PERMANENT", is_set=True)

    (found,) = with_peers((), [reach(2, SILENT, SILENT, None)], STATUS, {IPv4Address("10.0.0.2"): entry})

    assert (found.code, found.severity) == ("neighbour-set", "error")
    assert found.cause.startswith("1 of 1 probed peers do not answer")


def test_silent_peers_without_a_mac_address_are_named_by_their_neighbour_entries() -> None:
    """A host that is off is a warning while other peers answer."""
    lost = [reach(number, SILENT, SILENT, None) for number in (2, 3)]
    entries = {IPv4Address(text): neighbour(text, "FAILED") for text in ("10.0.0.2", "10.0.0.9")}

    found = with_peers((), lost, STATUS, entries)

    assert [(one.code, one.severity) for one in found] == [
        ("no-neighbour", "error"),
        ("peers-silent", "warning"),
    ]
    assert found[0].evidence == ("10.0.0.2 FAILED",)
    found = with_peers((), [reach(1, REACHED, REACHED), lost[0]], STATUS, entries)
    assert [(one.code, one.severity) for one in found] == [("no-neighbour", "warning")]
    assert with_peers((), [reach(2, SILENT, REACHED)], STATUS, entries) == ()


def test_a_single_silent_peer_may_be_isolated_from_this_host() -> None:
    """Other peers answer, so the link of this host works."""
    alone = reach(2, SILENT, SILENT, None)
    (one,) = with_peers((), [alone, reach(1, REACHED, REACHED)], STATUS)
    (every,) = with_peers((), [alone], STATUS)

    assert one.fix.startswith("flannelctl peers --matrix  # if other hosts reach ")
    assert "the underlay between this host and 10.0.0.2 drops all packets: port isolation" in one.fix
    assert every.fix.startswith("flannelctl ping 10.0.0.2  # ")
    assert "the port of the switch" in every.fix


def test_of_many_silent_peers_the_rest_is_counted() -> None:
    (found,) = with_peers((), [reach(number, SILENT, SILENT, None) for number in range(20)], STATUS)

    assert len(found.evidence) == 9
    assert found.evidence[-1] == "… and 12 more"


@pytest.mark.parametrize(("lost", "is_named"), [(2, False), (3, True), (19, True)])
def test_a_path_that_loses_packets_is_named(lost: int, is_named: bool) -> None:
    found = list(loss_findings({PEER: Loss(20, lost)}, 4))

    assert [(one.code, one.severity) for one in found] == ([("packets-lost", "warning")] if is_named else [])
    assert all("1 of 4 probed peers" in one.cause for one in found)
    assert all(f"{lost} of 20 probes lost" in line for one in found for line in one.evidence)


@pytest.mark.parametrize(("lost", "is_named"), [(4, False), (5, True), (29, True)])
def test_a_path_that_loses_large_packets_is_named(lost: int, is_named: bool) -> None:
    """Nothing is known about the MTU of the path."""
    found = list(large_loss_findings({PEER: Loss(30, lost)}, STATUS, 4))

    assert [(one.code, one.severity) for one in found] == ([("packets-lost", "warning")] if is_named else [])
    for one in found:
        assert one.cause.startswith("a part of the large packets to 1 of 4 probed peers is lost")
        assert one.evidence == (
            f"10.100.16.0/24 at docker2 (10.0.0.2): {lost} of 30 probes of 1450 bytes lost",
        )
        assert one.fix.startswith("ping -c 100 -i 0.1 -s 1422 10.0.0.2  #")


@pytest.mark.parametrize(
    ("passing", "expected"), [(frozenset({PEER.subnet}), 1400), (frozenset[IpNetwork](), 84)]
)
def test_a_path_has_the_mtu_of_large_packets_that_arrive_sometimes(
    passing: frozenset[IpNetwork], expected: int
) -> None:
    status = replace(STATUS, path_mtus=(narrow(16, 1400),))

    corrected = Losses((), passing).corrected(reach(16, REACHED, REACHED, 84), status)

    assert corrected.path_mtu == expected


@pytest.mark.parametrize(
    ("small", "large", "is_named"),
    [
        (None, Loss(30, 19), True),
        (Loss(20, 1), Loss(30, 19), True),
        (Loss(20, 3), Loss(30, 19), False),
        (None, Loss(30, 30), False),
    ],
)
def test_few_lost_small_packets_do_not_hide_the_loss_of_large_packets(
    small: Loss | None, large: Loss, is_named: bool
) -> None:
    losses = large_losses({} if small is None else {PEER: small}, {PEER: large})

    assert losses == ({PEER: large} if is_named else {})


def test_a_path_that_loses_packets_has_no_measured_mtu() -> None:
    """A lost probe of flanneld looks like a packet that is too large."""
    paths = (narrow(1, 90, is_routed=False), narrow(2, 90, is_routed=False), narrow(3, 90, is_routed=False))
    status = replace(STATUS, path_mtus=paths)
    one, two, three = (path.subnet for path in paths)
    losses = Losses(passing=frozenset({one, two}), lossy=frozenset({one, three}))

    assert losses.of_status(status).path_mtus == paths[1:]
    assert Losses().of_status(status) == status


def test_silent_peers_are_a_consequence_of_a_rule_that_drops_the_replies_to_probes() -> None:
    fault = replace(DROPPED, code="probe-dropped", severity="warning")

    for results in ([reach(1, SILENT, SILENT, None)], [reach(1, REACHED, SILENT, None)]):
        (one,) = with_peers((fault,), results, STATUS)
        assert (one.code, one.severity) == ("probe-dropped", "warning")
        assert one.evidence[-1].startswith("consequence: ")


@pytest.mark.parametrize(
    ("is_connected", "results", "expected"),
    [
        (False, [reach(1, SILENT, SILENT, None), reach(2, SILENT, SILENT, None)], True),
        (True, [reach(1, SILENT, SILENT, None)], False),
        (False, [reach(1, SILENT, SILENT, None), reach(2, REACHED, SILENT, None)], False),
        (False, [reach(1, SILENT, REACHED)], False),
        (False, [], False),
    ],
)
def test_a_host_is_cut_off_if_neither_the_store_nor_a_peer_answers(
    is_connected: bool, results: list[PeerReach], expected: bool
) -> None:
    store = StoreStatus(url="etcd://10.0.0.9:2379", is_connected=is_connected)

    assert is_cut_off(results, replace(STATUS, store=store)) is expected


def test_an_xdp_program_is_a_warning_if_packets_to_peers_are_lost() -> None:
    program = Finding(code="xdp-program", severity="info", cause="a program", fix="ip link …")

    def severity(results: list[PeerReach]) -> str:
        return next(
            one.severity for one in with_peers((program,), results, STATUS) if one.code == program.code
        )

    assert severity([reach(1, REACHED, REACHED)]) == "info"
    assert severity([reach(1, REACHED, EchoResult(state="silent"))]) == "warning"
