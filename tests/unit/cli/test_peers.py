"""flannelctl peers: the other hosts, and the reason if one is not reachable."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import pytest
from msgspec.structs import replace

from pyflannel.cli.network import _state
from pyflannel.cli.status import facts
from pyflannel.model.lease import LeaseEntry, PeerEntry
from pyflannel.model.probe import NarrowPath
from pyflannel.model.status import (
    BackendStatus,
    LeaseStatus,
    RefusedPeer,
    Status,
    StrangerStatus,
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
