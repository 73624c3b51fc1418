"""flannelctl peers: the other hosts, and the reason if one is not reachable."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import click
import pytest
from msgspec.structs import replace

from pyflannel.cli.peers import _loss, _print_matrix, _print_peers, _probed, _state
from pyflannel.cli.status import facts
from pyflannel.commands.reach import family_reach
from pyflannel.model.lease import FamilyReach, LeaseEntry, PeerEntry
from pyflannel.model.probe import EchoResult, Loss, NarrowPath, PeerReach
from pyflannel.model.reach_matrix import Matrix, MatrixCell, MatrixRow
from pyflannel.model.status import (
    BackendStatus,
    LeaseStatus,
    RefusedPeer,
    Status,
    StrangerStatus,
    WireguardPeerStatus,
    WireguardStatus,
    peer_entries,
)
from pyflannel.wire.control_json import format_peers, format_status, parse_status
from testlab.documents import read_document


def entry(number: int, owner: str | None = None, host_name: str | None = None) -> LeaseEntry:
    return LeaseEntry(
        subnet=IPv4Network(f"10.100.{number}.0/24"),
        public_ip=IPv4Address(f"192.168.50.{number}"),
        backend_type="host-gw",
        owner=owner,
        host_name=host_name,
    )


def refused(number: int, reason: str = "it is not on the link of this host") -> RefusedPeer:
    return RefusedPeer(
        subnet=IPv4Network(f"10.100.{number}.0/24"),
        public_ip=IPv4Address(f"192.168.50.{number}"),
        reason=reason,
    )


STATUS = Status(
    version="0.1.0",
    is_ready=True,
    lease=LeaseStatus(subnet=IPv4Network("10.100.15.0/24")),
    backend=BackendStatus(type="vxlan", link="flannel.1", mtu=1450, notes=("checksums are made here",)),
    peers=2,
    refused_peers=(refused(9),),
)


def test_peers_are_the_leases_of_others_with_the_reason_of_a_refusal() -> None:
    found = peer_entries(STATUS, [entry(9), entry(15), entry(20, "f00d", "docker4")])

    assert found == [
        PeerEntry(
            subnet=IPv4Network("10.100.9.0/24"),
            public_ip=IPv4Address("192.168.50.9"),
            backend_type="host-gw",
            refused="it is not on the link of this host",
        ),
        PeerEntry(
            subnet=IPv4Network("10.100.20.0/24"),
            public_ip=IPv4Address("192.168.50.20"),
            backend_type="host-gw",
            owner="f00d",
            host_name="docker4",
        ),
    ]
    document = read_document(["peers"], format_peers(found).decode())
    assert document["peers"][0]["refused"] == "it is not on the link of this host"


def test_refused_peers_and_notes_are_received_unchanged() -> None:
    assert parse_status(format_status(STATUS)) == STATUS


def test_narrow_paths_are_shown_with_their_peer() -> None:
    ipv4 = NarrowPath(
        subnet=IPv4Network("10.100.20.0/24"), planned=1450, measured=1350, since_s=61.0, is_routed=True
    )
    ipv6 = replace(ipv4, ipv6_subnet=IPv6Network("fd00:5:0:20::/64"), measured=1200, is_routed=False)
    status = replace(STATUS, path_mtus=(ipv4, ipv6))

    found = peer_entries(status, [entry(9), entry(20)])

    assert [one.path_mtus for one in found] == [(), (ipv4, ipv6)]
    assert _state(replace(found[1], is_reached=True, path_mtu=1450)) == (
        "answers, mtu 1450, mtu of the route 1350, mtu of the path of IPv6 1200"
    )
    document = read_document(["peers"], format_peers(found).decode())
    assert document["peers"][1]["path_mtus"][1] == {
        "subnet": "10.100.20.0/24",
        "ipv6_subnet": "fd00:5:0:20::/64",
        "planned": 1450,
        "measured": 1200,
        "since_s": 61.0,
        "is_routed": False,
    }
    assert parse_status(format_status(status)) == status
    assert [text for name, text in facts(status) if name == "path mtu"] == [
        "10.100.20.0/24: 1350 of 1450 bytes, on the route for 1 min 1 s",
        "fd00:5:0:20::/64: 1200 of 1450 bytes, larger packets are lost for 1 min 1 s",
    ]


@pytest.mark.parametrize(
    "addresses",
    [("192.0.2.9", "10.100.2.2", "10.100.3.2"), ("2001:db8::9", "fd00:5:0:2::2", "fd00:5:0:3::2")],
)
def test_strangers_of_both_families_are_received_unchanged(addresses: tuple[str, str, str]) -> None:
    address, source, destination = map(ip_address, addresses)
    one = StrangerStatus(
        address=address,
        reason="impostor",
        packets=6,
        age_s=1.0,
        inner_source=source,
        inner_destination=destination,
        cause="it holds no lease",
        hint="",
    )
    status = replace(STATUS, strangers=(one,))

    assert parse_status(format_status(status)) == status


WIREGUARD = WireguardStatus(
    public_key="k",
    is_in_kernel=True,
    peers=(
        WireguardPeerStatus(
            subnet=IPv4Network("10.100.20.0/24"),
            public_key="p",
            handshake_age_s=5.0,
            received=1_234_567,
            sent=890,
        ),
    ),
)


def test_the_bytes_and_the_last_change_of_a_peer_are_shown_if_they_are_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = replace(STATUS, wireguard=WIREGUARD)
    first, second = peer_entries(status, [entry(9), replace(entry(20), change_age_s=61.0)])

    assert (first.received_bytes, first.sent_bytes, first.change_age_s) == (None, None, None)
    assert (second.received_bytes, second.sent_bytes, second.change_age_s) == (1_234_567, 890, 61.0)

    reached = replace(second, is_reached=True, rtt_ms=0.25, probes_sent=10, probes_lost=3)
    _print_peers([first, reached], is_wide=False)

    headings, _, line = capsys.readouterr().out.splitlines()
    assert headings.split() == (
        ["SUBNET", "HOST", "PUBLIC", "IP", "BACKEND", "LOSS", "IN", "OUT", "CHANGED", "STATE"]
    )
    assert line.split()[4:12] == ["30", "%", "1.2", "MB", "890", "B", "1", "min"]


def test_a_narrow_terminal_gets_a_block_of_lines_for_each_peer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = peer_entries(STATUS, [entry(9), entry(20, host_name="docker4")])
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    _print_peers(peers, is_wide=False)

    blocks = click.unstyle(capsys.readouterr().out).split("\n\n")
    assert [block.splitlines()[0].split() for block in blocks] == [
        ["SUBNET", "10.100.9.0/24"],
        ["SUBNET", "10.100.20.0/24"],
    ]
    assert all(len(line) <= 60 for block in blocks for line in block.splitlines())


def test_a_matrix_has_a_letter_for_each_pair_and_names_unreached_hosts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    subnets = [IPv4Network(f"10.100.{number}.0/24") for number in (1, 2, 3)]

    def row(number: int, *states: str, failure: str | None = None) -> MatrixRow:
        others = [subnet for subnet in subnets if subnet != subnets[number - 1]]
        cells = [MatrixCell(subnet=one, state=state) for one, state in zip(others, states, strict=False)]
        return MatrixRow(
            subnet=subnets[number - 1],
            public_ip=IPv4Address(f"192.168.50.{number}"),
            host_name=f"docker{number}" if number != 3 else None,
            failure=failure,
            cells=tuple(cells),
        )

    rows = row(1, "reached", "rejected"), row(2, "silent", "skipped"), row(3, failure="no answer within 3 s")
    matrix = Matrix(rows=rows, silent=(subnets[2],), left_out=4)

    _print_matrix(matrix)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["#", "HOST", "SUBNET", "123"],
        ["1", "docker1", "10.100.1.0/24", ".+x"],
        ["2", "docker2", "10.100.2.0/24", "x.-"],
        ["3", "192.168.50.3", "10.100.3.0/24", "??."],
    ]
    assert lines[5:] == [
        "docker1 does not reach 192.168.50.3",
        "docker2 does not reach docker1",
        "192.168.50.3: no answer within 3 s",
        "4 more hosts are not in the matrix: name the hosts to compare",
    ]
    document = read_document(["peers", "--matrix"], format_peers([], matrix).decode())
    assert document["matrix"]["rows"][0]["cells"][1] == {
        "subnet": "10.100.3.0/24",
        "state": "rejected",
        "rtt_ms": None,
    }


def test_a_peer_that_answers_only_some_probes_counts_as_reached() -> None:
    (first, _) = peer_entries(STATUS, [entry(9), entry(20)])
    silent = EchoResult(state="silent")
    reach = PeerReach(subnet=first.subnet, public_ip=first.public_ip, underlay=silent, tunnel=silent)

    assert [family_reach(reach, loss).is_reached for loss in (Loss(10, 9), Loss(10, 10), None)] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "loss", "state"),
    [
        (True, True, "0 %", "answers in 0.2 ms, mtu 1430"),
        (True, False, "0 %, IPv6 100 %", "IPv4 answers in 0.2 ms, mtu 1430, IPv6 no answer: run {}"),
        (False, True, "100 %, IPv6 0 %", "IPv4 no answer, IPv6 answers in 0.2 ms, mtu 1430: run {}"),
        (False, False, "100 %", "no answer: run {}"),
    ],
)
def test_the_families_of_a_peer_are_named_if_their_results_differ(
    ipv4: bool, ipv6: bool, loss: str, state: str
) -> None:
    (_, first) = peer_entries(STATUS, [entry(9), entry(20)])
    results = {
        True: FamilyReach(is_reached=True, rtt_ms=0.2, path_mtu=1430, probes_sent=10, probes_lost=0),
        False: FamilyReach(is_reached=False, probes_sent=10, probes_lost=10),
    }

    found = _probed(first, results[ipv4], results[ipv6])

    assert (_loss(found), _state(found)) == (loss, state.format(f"flannelctl ping {first.public_ip}"))
    document = read_document(["peers"], format_peers([found]).decode())
    assert document["peers"][0]["ipv6"]["is_reached"] is ipv6
    assert _probed(first, None, None) == first
