"""The findings of doctor from observations."""

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from msgspec.structs import replace

from pyflannel.model.fast_path import BpfProgram, Feature, Role, Tunnel
from pyflannel.model.link import Link
from pyflannel.model.packet_filter import IptablesChain
from pyflannel.model.route import Route
from pyflannel.model.status import (
    BackendStatus,
    FastPathMode,
    FastPathStatus,
    Finding,
    ForwarderStatus,
    LeaseSigningStatus,
    LeaseStatus,
    Membership,
    NetworkStatus,
    Notice,
    ReconcileStatus,
    RefusedLease,
    RefusedPeer,
    Status,
    StoreStatus,
    StrangerStatus,
    WireguardPeerStatus,
    WireguardStatus,
)
from pyflannel.plan.doctor.daemon import RECENT_S
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import DaemonProcess, Observed, OpenFiles
from pyflannel.plan.routes import overlap_note
from testlab.healthy_host import iptables

ROOT = Path(__file__).parents[3]

NETWORK = IPv4Network("10.100.0.0/16")

NOW = 1_900_000_000.0

READY = Status(
    version="1",
    is_ready=True,
    store=StoreStatus(url="etcd://10.0.0.1:2379", is_connected=True),
    backend=BackendStatus(type="vxlan", link="flannel.1", mtu=1450),
    reconcile=ReconcileStatus(passes=3),
    peers=20,
)

HEALTHY = Observed(
    status=READY,
    claimed="flannel0",
    membership=Membership(network=NETWORK, subnet=IPv4Network("10.100.15.0/24"), underlay="eth0"),
    strict=frozenset({"lo", "flannel.1"}),
    items=(
        Route(destination=IPv4Network("10.100.16.0/24"), link="flannel.1"),
        Route(destination=NETWORK, link="", kind="blackhole"),
        IptablesChain(family=4, hook="FORWARD", device="flannel0", rules=()),
    ),
    ruleset=iptables(
        ":FORWARD DROP", "-A FORWARD -s 10.100.0.0/16 -j ACCEPT", "-A FORWARD -d 10.100.0.0/16 -j ACCEPT"
    ),
    ports={"docker0": {"veth1": 1450}},
)


def codes(seen: Observed) -> list[str]:
    return [one.code for one in findings(seen)]


def test_a_healthy_host_has_no_findings() -> None:
    """Strict filters and dropping chains that affect no packet of the network cause no finding."""
    assert codes(HEALTHY) == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (replace(READY, is_ready=False, waiting_for="a lease"), "not-ready"),
        (replace(READY, is_live=False, is_ready=False), "daemon-away"),
        (
            replace(READY, is_ready=False, store=StoreStatus(url="etcd://10.0.0.1:2379", last_error="no")),
            "store-away",
        ),
        (
            replace(READY, is_ready=False, reconcile=ReconcileStatus(held=("link flannel.1: missing",))),
            "fight",
        ),
        (
            replace(READY, is_ready=False, reconcile=ReconcileStatus(refused=("link flannel.1: missing",))),
            "refused",
        ),
        (replace(READY, warnings=("two hosts share 10.0.0.7",)), "network-warning"),
        (
            replace(READY, is_ready=False, network=NetworkStatus(trouble=Notice("waits for one"))),
            "bad-config",
        ),
        (
            replace(
                READY,
                network=NetworkStatus(text="{}", trouble=Notice("runs on")),
                warnings=("runs on",),
            ),
            "bad-config",
        ),
        (
            replace(
                READY, backend=BackendStatus(type="vxlan", notes=("checksums are not offloaded to eth0",))
            ),
            "backend-note",
        ),
        (
            replace(READY, fast_path=FastPathStatus(mode="user-space", reason="EPERM", hint="Be root.")),
            "no-fast-path",
        ),
        (
            replace(READY, fast_path=FastPathStatus(mode="uncached", reason="EPERM", hint="Be root.")),
            "no-fast-path",
        ),
        (
            replace(
                READY,
                fast_path=FastPathStatus(mode="off", remarks=(Notice("may not be read", "Be root."),)),
            ),
            "programs-left",
        ),
        (
            replace(READY, fast_path=FastPathStatus(mode="safe", remarks=(Notice("there is no room"),))),
            "fast-path-full",
        ),
        (
            replace(READY, fast_path=FastPathStatus(mode="flow", uncached=("TCP only: a sysctl is 0",))),
            "flow-not-cached",
        ),
    ],
)
def test_a_daemon_that_is_not_ready_has_one_finding_with_the_most_specific_reason(
    status: Status, code: str
) -> None:
    assert codes(replace(HEALTHY, status=status)) == [code]


@pytest.mark.parametrize("mode", ["safe", "off", "user-space"])
def test_programs_without_a_daemon_that_knows_them_are_left(mode: FastPathMode) -> None:
    tunnel = Tunnel(
        device="flannel0",
        underlay="eth0",
        address=IPv4Address("10.0.0.1"),
        subnet=IPv4Network("10.100.15.0/24"),
        port=8285,
        mtu=1472,
    )
    programs = (BpfProgram(link="eth0", role=Role.DECAPSULATE, tunnel=tunnel),)
    status = replace(READY, fast_path=FastPathStatus(mode=mode, reason="EPERM"))

    found = findings(replace(HEALTHY, status=status, programs=programs))

    left = [one.evidence for one in found if one.code == "programs-left"]
    assert left == ([] if mode == "safe" else [("program flannel_decap at eth0",)])

    waiting = replace(status, reconcile=ReconcileStatus(passes=0))
    found = findings(replace(HEALTHY, status=waiting, programs=programs))
    # The first pass of the daemon removes the programs.
    assert "programs-left" not in [one.code for one in found]


def test_missing_features_of_the_fast_path_are_evidence() -> None:
    lacking = (
        Feature(name="CAP_BPF", answer="absent"),
        Feature(name="maps", answer="unknown", detail="EPERM"),
    )
    path = FastPathStatus(mode="user-space", reason="CAP_BPF: absent", hint="Be root.", lacking=lacking)

    (found,) = findings(replace(HEALTHY, status=replace(READY, fast_path=path)))

    assert found.evidence == ("CAP_BPF: absent", "maps: could not be probed, EPERM")


@pytest.mark.parametrize(("text", "severity"), [(None, "error"), ('{"Network":"10.1.0.0/16"}', "warning")])
def test_a_bad_network_config_has_a_remedy(text: str | None, severity: str) -> None:
    """A host that keeps the previous config loses no packet."""
    trouble = Notice("waits for a valid network config: SubnetLen", "Write SubnetLen as a whole number.")
    status = replace(READY, is_ready=text is not None, network=NetworkStatus(text=text, trouble=trouble))

    (found,) = findings(replace(HEALTHY, status=status))

    assert (found.severity, found.cause) == (severity, f"flanneld {trouble.text}")
    assert found.fix == trouble.hint
    assert found.evidence == (() if text is None else (f"in force: {text}",))


def test_two_conflicting_hosts_are_one_finding() -> None:
    """The fault is a warning in the status, and the reason why a peer is refused."""
    why = "lease 10.100.5.0/24 of 10.0.0.9 overlaps lease 10.100.5.0/28: ignored"
    peer = RefusedPeer(subnet=IPv4Network("10.100.5.0/24"), public_ip=IPv4Address("10.0.0.9"), reason=why)

    (found,) = findings(replace(HEALTHY, status=replace(READY, refused_peers=(peer,), warnings=(why,))))

    assert (found.code, found.evidence) == ("peers-refused", (f"10.100.5.0/24 at 10.0.0.9: {why}",))


def test_a_refused_peer_is_named_by_its_host_name() -> None:
    address = IPv4Address("10.0.0.9")
    peer = RefusedPeer(
        subnet=IPv4Network("10.100.5.0/24"), public_ip=address, reason="no", host_name="docker5"
    )

    (found,) = findings(replace(HEALTHY, status=replace(READY, refused_peers=(peer,))))

    assert found.evidence == ("10.100.5.0/24 at docker5 (10.0.0.9): no",)


def test_wireguard_peers_that_never_answered_are_named() -> None:
    peers = (
        WireguardPeerStatus(
            subnet=IPv4Network("10.100.5.0/24"), public_key="a", handshake_age_s=7.0, sent=148
        ),
        WireguardPeerStatus(
            subnet=IPv4Network("10.100.6.0/24"), public_key="b", endpoint="10.0.0.6:51820", sent=148
        ),
        WireguardPeerStatus(subnet=IPv4Network("10.100.7.0/24"), public_key="c"),
    )
    status = replace(READY, wireguard=WireguardStatus(public_key="k", is_in_kernel=True, peers=peers))

    (found,) = findings(replace(HEALTHY, status=status))

    assert (found.code, found.severity) == ("no-handshake", "error")
    assert found.cause == "1 of 3 peers have not answered a handshake of WireGuard"
    assert found.evidence == ("10.100.6.0/24 at 10.0.0.6:51820",)


def test_errors_are_first_and_many_objects_are_counted() -> None:
    refused = tuple(
        RefusedPeer(subnet=IPv4Network((f"10.100.{n}.0", 24)), public_ip=IPv4Address("10.0.0.9"), reason="no")
        for n in range(20)
    )
    seen = replace(HEALTHY, status=replace(READY, refused_peers=refused), forwards=False)

    first, second = findings(seen)

    assert (first.code, first.severity) == ("forwarding-off", "error")
    assert second.cause == "20 of 20 peers are refused and unreachable"
    assert len(second.evidence) == 9
    assert second.evidence[-1] == "… and 12 more"


STRANGER = StrangerStatus(
    address=IPv4Address("10.9.0.66"),
    reason="stranger",
    packets=12,
    age_s=59.6,
    inner_source=IPv4Address("10.100.77.2"),
    inner_destination=IPv4Address("10.100.15.2"),
    cause="it holds no lease",
    hint="Start flanneld there.",
)


def test_rejected_senders_of_the_last_hour_are_named() -> None:
    old = replace(STRANGER, address=IPv4Address("10.9.0.67"), age_s=RECENT_S)

    (found,) = findings(replace(HEALTHY, status=replace(READY, strangers=(STRANGER, old))))

    assert found == Finding(
        code="stranger",
        severity="warning",
        cause="tunnel packets from 10.9.0.66 are dropped: it holds no lease",
        evidence=("12 packets, the latest 60 s ago from 10.100.77.2 to 10.100.15.2",),
        fix="Start flanneld there.",
    )


def test_rejected_senders_with_one_cause_are_one_finding() -> None:
    many = tuple(replace(STRANGER, address=IPv4Address(f"10.9.0.{number}")) for number in range(50))
    other = replace(STRANGER, cause="it holds another subnet")

    alike, single = findings(replace(HEALTHY, status=replace(READY, strangers=(*many, other))))

    assert alike.cause == "tunnel packets from 50 addresses are dropped: it holds no lease"
    assert alike.evidence[0].startswith("10.9.0.0: 12 packets, the latest 60 s ago")
    assert alike.evidence[-1] == "… and 42 more"
    assert single.cause == "tunnel packets from 10.9.0.66 are dropped: it holds another subnet"


def test_refused_leases_in_the_store_or_of_the_last_hour_are_named_by_fault() -> None:
    seen = RefusedLease(
        subnet=IPv4Network("10.100.9.0/24"),
        public_ip=IPv4Address("10.9.0.66"),
        fault="not_allowed",
        cause="its key is not allowed",
        hint="Compare the key.",
        times=3,
        age_s=7200.0,
    )
    recent = replace(seen, subnet=IPv4Network("10.100.8.0/24"), times=1, age_s=59.0, is_in_store=False)
    other = replace(recent, fault="replayed", cause="it is an old lease", hint="Restrict the writers.")
    old = replace(recent, age_s=RECENT_S)
    signing = LeaseSigningStatus(mode="require", allowed=2, refused=(seen, recent, other, old))

    first, second = findings(replace(HEALTHY, status=replace(READY, lease_signing=signing)))

    assert first == Finding(
        code="lease-signature",
        severity="warning",
        cause="2 leases are refused: its key is not allowed",
        evidence=(
            "10.100.9.0/24 at 10.9.0.66: written 3 times, read 7200 s ago, in the store",
            "10.100.8.0/24 at 10.9.0.66: written once, read 59 s ago, not in the store any more",
        ),
        fix="Compare the key.",
    )
    assert second.cause == "a lease is refused: it is an old lease"
    warned = replace(READY, lease_signing=replace(signing, mode="warn", refused=(seen,)))
    (only,) = findings(replace(HEALTHY, status=warned))
    assert only.cause == "a lease is accepted only because of --lease-signing=warn: its key is not allowed"


def test_an_unusable_allow_list_and_one_without_this_host_are_named() -> None:
    trouble = Notice(
        "/etc/flannel/lease-keys: the file contains no key", "Write a file with one key per line."
    )
    signing = LeaseSigningStatus(mode="require", allowed=2, trouble=trouble, is_own_key_allowed=False)

    first, second = findings(replace(HEALTHY, status=replace(READY, lease_signing=signing)))

    assert first == Finding(
        code="allow-list",
        severity="warning",
        cause="flanneld keeps the last valid allow-list: /etc/flannel/lease-keys: the file contains no key",
        evidence=("in force: 2 keys",),
        fix="Write a file with one key per line.",
    )
    assert second.code == "own-key-not-allowed"
    without = replace(READY, lease_signing=replace(signing, allowed=0, is_own_key_allowed=None))
    (only,) = findings(replace(HEALTHY, status=without))
    assert only.severity == "error"
    assert only.cause.startswith("flanneld refuses all other hosts: /etc/flannel/lease-keys")


def test_rules_with_the_original_s_names_belong_to_a_present_daemon() -> None:
    """On a host without this daemon, rules with the original's names are from an original."""
    status = replace(READY, is_live=False, is_ready=False)

    assert codes(replace(HEALTHY, status=status)) == ["daemon-away"]
    rules = tuple(item for item in HEALTHY.items if isinstance(item, IptablesChain))
    elsewhere = replace(HEALTHY, status=status, claimed=None, items=rules)
    assert codes(elsewhere) == ["daemon-away", "left-by-original"]


def test_a_remedy_names_systemctl_only_if_a_unit_exists() -> None:
    seen = replace(HEALTHY, status=replace(READY, is_live=False, is_ready=False))

    fixes = [findings(replace(seen, has_unit=has_unit))[0].fix for has_unit in (True, False)]

    assert fixes == ["systemctl start flanneld", "Start flanneld."]


@pytest.mark.parametrize(
    ("process", "has_unit", "cause", "fix"),
    [
        (DaemonProcess(pid=7, is_stopped=True), True, "flanneld (pid 7) is stopped: ", "kill -CONT 7"),
        (
            DaemonProcess(pid=7),
            True,
            "flanneld (pid 7) runs, but does not respond: ",
            "systemctl restart flanneld  # read its log first",
        ),
        (
            DaemonProcess(pid=7),
            False,
            "flanneld (pid 7) runs, but does not respond: ",
            "kill -KILL 7  # read its log first, and start flanneld again",
        ),
    ],
)
def test_a_daemon_that_hangs_is_not_started_a_second_time(
    process: DaemonProcess, has_unit: bool, cause: str, fix: str
) -> None:
    seen = replace(HEALTHY, status=replace(READY, is_live=False, is_ready=False), daemon=process)

    (found,) = findings(replace(seen, has_unit=has_unit))

    assert (found.code, found.fix) == ("daemon-away", fix)
    assert found.cause.startswith(cause)


@pytest.mark.parametrize("is_live", [True, False])
@pytest.mark.parametrize(
    ("most", "fix"),
    [
        (4096, "prlimit --pid 7 --nofile=4096"),
        (5, "prlimit --pid 7 --nofile=524288 || systemctl restart flanneld"),
    ],
)
def test_a_daemon_that_can_open_no_file_is_named_with_its_limit(most: int, fix: str, is_live: bool) -> None:
    """That the daemon does not respond is a consequence."""
    process = DaemonProcess(pid=7, files=OpenFiles(23, 5, most))
    seen = replace(HEALTHY, status=replace(READY, is_live=is_live, waiting_for="an answer"), daemon=process)

    (found,) = findings(seen)

    assert (found.code, found.severity) == ("files-exhausted", "error")
    assert found.evidence[:2] == ("/proc/7/limits: Max open files 5", "ls /proc/7/fd | wc -l: 23")
    assert found.evidence[2:] == (() if is_live else ("consequence: flanneld does not respond: an answer",))
    assert found.fix == fix


def test_a_forwarder_that_can_open_no_file_is_named_with_its_limit() -> None:
    status = replace(READY, forwarder=ForwarderStatus(pid=8))

    (found,) = findings(replace(HEALTHY, status=status, forwarder_files=OpenFiles(9, 9, 9)))

    assert found.cause.startswith("the forwarder (pid 8) has reached its limit of 9 open files")
    assert findings(replace(HEALTHY, status=status, forwarder_files=OpenFiles(8, 9, 9))) == ()


def test_a_user_without_permission_learns_that_the_problems_are_unknown() -> None:
    seen = replace(HEALTHY, status=replace(READY, is_live=False, is_ready=False), may_ask=False)

    (found,) = findings(seen)

    assert (found.code, found.severity) == ("daemon-away", "error")
    assert found.cause.startswith("this user has no permission to ask flanneld")
    assert found.fix == "Run flannelctl as root, or as the user of flanneld."


@pytest.mark.parametrize(
    "trace",
    [
        Link(name="flannel.7", kind="vxlan", mtu=1450, alias="pyflannel /run/flannel/blue"),
        Route(destination=IPv4Network("10.100.20.0/24"), link="eth0", protocol=80),
    ],
)
def test_rules_of_a_daemon_with_another_run_directory_are_no_leftovers(trace: Link | Route) -> None:
    status = replace(READY, is_live=False, is_ready=False)
    seen = replace(HEALTHY, status=status, claimed=None, items=(*HEALTHY.items, trace))

    assert "left-by-original" not in codes(seen)


def test_objects_of_a_running_original_are_not_to_be_deleted() -> None:
    link = Link(name="flannel0", kind="tun", mtu=1472, alias="")

    (left,) = findings(replace(HEALTHY, items=(link,)))
    (runs,) = findings(replace(HEALTHY, items=(link,), original=77))

    assert (left.code, left.fix) == ("left-by-original", "ip link delete flannel0")
    assert (runs.code, runs.evidence) == ("original-runs", ("link flannel0",))
    assert runs.fix.startswith("kill 77 ")
    # The original may be in another network, and affects no packet of this network.
    assert codes(replace(HEALTHY, original=77)) == []


def test_a_network_without_a_free_subnet_is_named_with_the_remedy() -> None:
    """The exhausted network is the reason why the host is not ready, so both are one finding."""
    trouble = Notice("no /24 is free in 10.100.0.0/16", "Widen Network.")
    status = replace(
        READY, is_ready=False, waiting_for="a lease: no free /24", lease=LeaseStatus(trouble=trouble)
    )

    (found,) = findings(replace(HEALTHY, status=status))

    assert (found.code, found.severity) == ("no-free-subnet", "error")
    assert found.cause == "flanneld has no lease: no /24 is free in 10.100.0.0/16"
    assert found.fix == "Widen Network."


class TestNetworkThatOverlapsTheUnderlay:
    """Packets to hosts of the underlay, including the gateway, may enter the overlay."""

    WITH = replace(HEALTHY, on_link=(IPv4Network("10.0.0.0/8"),), strict=frozenset())
    CAPTURING = Route(destination=NETWORK, link="flannel0", protocol=2)

    @pytest.mark.parametrize(
        ("on_link", "cause"),
        [
            ("10.100.0.0/16", "Network 10.100.0.0/16 is the prefix of eth0 itself"),
            ("10.0.0.0/8", "Network 10.100.0.0/16 is a part of 10.0.0.0/8, the prefix of eth0"),
            ("10.100.7.0/24", "Network 10.100.0.0/16 contains 10.100.7.0/24, the prefix of eth0"),
        ],
    )
    def test_an_overlap_is_a_warning(self, on_link: str, cause: str) -> None:
        (found,) = findings(replace(HEALTHY, on_link=(IPv4Network(on_link),), items=()))

        assert (found.code, found.severity) == ("network-overlaps-underlay", "warning")
        assert found.cause.startswith(cause)
        assert found.fix.startswith("flannelctl config set FILE")

    def test_the_prefix_of_an_unplanned_route_is_no_second_finding(self) -> None:
        """A route without a gateway adds its prefix to the prefixes on the link."""
        prefix = IPv4Network("10.100.16.2/32")
        route = Route(destination=prefix, link="eth0", protocol=3)

        (found,) = findings(replace(HEALTHY, on_link=(prefix,), items=(route,), strict=frozenset()))

        assert found.code == "unplanned-route"

    @pytest.mark.parametrize("destination", ["10.100.0.0/16", "10.100.7.0/24", "10.100.7.1/32"])
    @pytest.mark.parametrize("link", ["flannel.1", "eth0"])
    def test_an_overlap_is_an_error_if_a_route_redirects_packets_of_the_underlay(
        self, destination: str, link: str
    ) -> None:
        """An original or a killed flanneld may have created the route. With host-gw, the link is eth0."""
        taking = Route(destination=IPv4Network(destination), link=link)
        seen = replace(self.WITH, items=(taking,))

        (found,) = findings(seen)

        assert (found.code, found.severity) == ("network-overlaps-underlay", "error")
        assert found.evidence == (f"route {destination} dev {link} proto 80",)

    def test_routes_of_the_underlay_and_of_the_bridge_redirect_nothing(self) -> None:
        """A longer route by eth0 belongs to the underlay. This host's subnet is local."""
        routes = (
            Route(destination=IPv4Network("10.100.8.0/24"), link="eth0", protocol=2),
            Route(destination=IPv4Network("10.100.15.0/24"), link="docker0", protocol=2),
            Route(destination=IPv4Network("172.17.0.0/16"), link="docker0", protocol=2),
        )

        (found,) = findings(replace(self.WITH, items=routes))

        assert (found.severity, found.evidence) == ("warning", ())

    def test_a_route_of_another_program_that_overlaps_is_a_warning(self) -> None:
        """A route that redirects packets for peers has its own finding."""
        bridge = Route(destination=IPv4Network("10.100.8.0/24"), link="br9", protocol=2)
        static = Route(destination=IPv4Network("10.100.9.0/24"), link="eth1", protocol=4)
        notes = tuple(overlap_note(NETWORK, route) for route in (bridge, static))
        status = replace(READY, backend=BackendStatus(type="vxlan", link="flannel.1", notes=notes))
        seen = replace(HEALTHY, status=status, items=(bridge, static), strict=frozenset())

        found = findings(seen)

        assert [(one.code, one.severity) for one in found] == [
            ("unplanned-route", "warning"),
            ("network-overlaps-host", "warning"),
        ]
        assert found[1].cause == notes[0]

    def test_the_note_of_the_backend_is_not_repeated(self) -> None:
        note = (
            "Network 10.100.0.0/16 is a part of 10.0.0.0/8, the prefix of eth0: it is not routed to the"
            " overlay, because this host would lose hosts and gateways of the underlay"
        )
        status = replace(READY, backend=BackendStatus(type="vxlan", link="flannel.1", notes=(note, "other")))

        found = findings(replace(self.WITH, status=status, items=()))

        assert [one.code for one in found] == ["network-overlaps-underlay", "backend-note"]
        assert found[0].cause == note


@pytest.mark.parametrize("document", ["docs/guides/troubleshooting.md", "docs/reference/flannelctl.md"])
def test_the_documents_explain_every_code(document: str) -> None:
    package = ROOT / "src/pyflannel"
    sources = [
        *package.glob("plan/doctor/*.py"),
        package / "commands/examination.py",
        package / "commands/observations.py",
    ]
    known = {code for source in sources for code in re.findall(r'code="([\w-]+)"', source.read_text())}
    known |= {"tunnel-dropped", "tunnel-not-sent", "forward-dropped"}

    text = (ROOT / document).read_text()

    assert len(known) > 20
    assert [code for code in sorted(known) if f"`{code}`" not in text] == []


def test_many_warnings_are_one_finding() -> None:
    """A client of the store can cause a warning for each lease."""
    many = replace(READY, warnings=tuple(f"lease {number} overlaps another" for number in range(1000)))

    (found,) = [one for one in findings(replace(HEALTHY, status=many)) if one.code == "network-warning"]

    assert found.cause == "flanneld has 1000 warnings about the network"
    assert found.evidence[0] == "lease 0 overlaps another"
    assert found.evidence[-1] == "… and 992 more"
