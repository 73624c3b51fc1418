"""Nodes of the Kubernetes API, against the recorded annotations of the original."""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pyflannel.errors import WireError
from pyflannel.model.kubernetes_node import DEFAULT_PREFIX, IS_REMOVED, IS_UP, Node
from pyflannel.model.lease import BackendPart, LeaseAttributes, Vtep, WireguardData
from pyflannel.model.store_record import DeleteSeen, PutSeen, Record
from pyflannel.wire.kubernetes_node import (
    ApiFailure,
    Bookmark,
    annotation_prefix,
    format_annotations,
    format_condition,
    format_removal,
    lease_of_node,
    missing_annotations,
    node_of,
    parse_event,
    parse_node,
    parse_nodes,
    subnets_of,
    with_published_addresses,
)
from pyflannel.wire.lease_json import format_backend_data

ROOT = Path(__file__).parents[3]


def golden() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((ROOT / "tests/golden/kubernetes-nodes.json").read_text())[
        "cases"
    ]
    return cases


def node(cidrs: tuple[str, ...] = ("10.244.1.0/24",), name: str = "n1", **notes: str) -> Node:
    full = {DEFAULT_PREFIX + key.replace("_", "-"): text for key, text in notes.items()}
    return Node(name=name, pod_cidrs=cidrs, annotations=full)


@pytest.mark.parametrize("case", golden(), ids=lambda case: case["id"])
def test_the_annotations_of_the_original_are_read_and_written_to_the_byte(case: dict[str, Any]) -> None:
    annotations = case["annotations_after"]
    cidrs = tuple(case["podCIDRs"])
    lease = lease_of_node(Node(name="n1", pod_cidrs=cidrs, annotations=annotations), DEFAULT_PREFIX)
    assert lease is not None
    assert str(lease.subnet) == cidrs[0]
    empty = Node(name="n1", pod_cidrs=cidrs, annotations={})

    written = missing_annotations(empty, lease.attributes, DEFAULT_PREFIX)

    operators = {DEFAULT_PREFIX + "public-ip-overwrite", DEFAULT_PREFIX + "node-public-ip"}
    assert written == {key: text for key, text in annotations.items() if key not in operators}


@pytest.mark.parametrize("case", golden(), ids=lambda case: case["id"])
def test_the_condition_is_that_of_the_original(case: dict[str, Any]) -> None:
    if case["condition_after"] is None:
        return
    (condition,) = json.loads(format_condition(node(), IS_UP, "TIME"))["status"]["conditions"]
    assert condition == case["condition_after"]


def test_a_wireguard_lease_publishes_its_key() -> None:
    data = format_backend_data(WireguardData(public_key="A" * 43 + "=", port=51820))
    attributes = LeaseAttributes(
        public_ip=IPv4Address("10.99.0.11"), backend_type="wireguard", backend_data=data
    )
    missing = missing_annotations(node(), attributes, DEFAULT_PREFIX)
    assert missing[DEFAULT_PREFIX + "backend-data"] == '{"PublicKey":"' + "A" * 43 + '=","Port":51820}'


def test_only_annotations_that_differ_are_written() -> None:
    attributes = LeaseAttributes(
        public_ip=IPv4Address("10.99.0.11"), backend_type="vxlan", vtep=Vtep(mac="02:00:00:00:00:01", vni=1)
    )
    found = node(kube_subnet_manager="true", backend_type="vxlan", public_ip="10.99.0.12")
    assert json.loads(format_annotations(found, missing_annotations(found, attributes, DEFAULT_PREFIX))) == {
        "metadata": {
            "uid": "",
            "annotations": {
                DEFAULT_PREFIX + "backend-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}',
                DEFAULT_PREFIX + "public-ip": "10.99.0.11",
            },
        }
    }


VXLAN = BackendPart(backend_type="vxlan", vtep=Vtep(mac="02:00:00:00:00:01", vni=1))
BOTH = VXLAN, BackendPart(backend_type="vxlan", vtep=Vtep(mac="02:00:00:00:00:02", vni=2))
UDP = BackendPart(port=8285)


def published(part: BackendPart, *also: BackendPart, reads: tuple[str, ...] = ()) -> Node:
    """Return a Node that publishes a backend, its previous backends and the formats that its host reads."""
    own = LeaseAttributes(public_ip=IPv4Address("10.99.0.11"), reads=reads).with_backend(part, also)
    found = {name: text for name, text in written(node(), own).items() if text is not None}
    return replace(node(), annotations=found)


def written(found: Node, attributes: LeaseAttributes) -> dict[str, str | None]:
    return missing_annotations(found, attributes, DEFAULT_PREFIX)


def read(found: Node) -> LeaseAttributes:
    lease = lease_of_node(found, DEFAULT_PREFIX)
    assert lease is not None
    return lease.attributes


class TestOwnAnnotation:
    NAME = DEFAULT_PREFIX + "pyflannel"

    @pytest.mark.parametrize(
        ("part", "also", "reads"),
        [
            (BackendPart(backend_type="host-gw"), BOTH, ()),
            (VXLAN, (UDP, BackendPart(backend_type="host-gw")), ("direct",)),
            (UDP, (), ("partial-checksum",)),
            (VXLAN, (), ()),
            (UDP, (), ()),
        ],
    )
    def test_the_annotation_names_the_previous_backends_and_the_formats_that_the_host_reads(
        self, part: BackendPart, also: tuple[BackendPart, ...], reads: tuple[str, ...]
    ) -> None:
        found = published(part, *also, reads=reads)
        attributes = read(found)
        assert (attributes.backend_part, attributes.also, attributes.reads) == (part, also, reads)
        assert written(found, attributes) == {}
        assert (self.NAME in found.annotations) == bool(also or reads)

    def test_the_annotation_is_removed_when_it_has_no_content(self) -> None:
        found = published(VXLAN, UDP)
        patch = written(found, replace(read(found), also=()))
        assert patch == {self.NAME: None}
        assert json.loads(format_annotations(found, patch))["metadata"]["annotations"] == {self.NAME: None}

    @pytest.mark.parametrize(
        "later",
        [
            {"backend_data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}'},
            {"backend_type": "host-gw", "backend_data": "null"},
        ],
    )
    def test_the_annotation_has_no_effect_after_the_original_has_changed_the_other_annotations(
        self, later: dict[str, str]
    ) -> None:
        found = published(VXLAN, UDP, reads=("direct",))
        changed = {**found.annotations, **node(**later).annotations}
        attributes = read(replace(found, annotations=changed))
        assert (attributes.also, attributes.reads) == ((), ())

    def test_formats_of_udp_have_no_effect_after_the_original_has_started(self) -> None:
        found = published(UDP, reads=("partial-checksum",))
        changed = {**found.annotations, DEFAULT_PREFIX + "backend-data": "null"}
        attributes = read(replace(found, annotations=changed))
        assert (attributes.port, attributes.reads) == (None, ())

    @pytest.mark.parametrize("text", ["", "{", "null", "7", '{"BackendData":1,"Reads":7}', "[" * 5000, "{}"])
    def test_a_malformed_annotation_has_no_effect(self, text: str) -> None:
        found = published(VXLAN, UDP)
        attributes = read(replace(found, annotations={**found.annotations, self.NAME: text}))
        assert (attributes.backend_part, attributes.also) == (VXLAN, ())

    @pytest.mark.parametrize("data", ['{"Port":0}', '{"Port":"x"}', "{}", "7", "null"])
    def test_a_malformed_port_is_treated_as_a_missing_port(self, data: str) -> None:
        found = node(kube_subnet_manager="true", public_ip="10.99.0.11", backend_data=data)
        assert read(found).port is None


def test_a_removal_deletes_every_annotation_that_flanneld_writes() -> None:
    address = IPv6Address("2001:db8::1")
    both = replace(VXLAN, vtep_v6=Vtep(mac="02:00:00:00:00:06", vni=1))
    own = LeaseAttributes(public_ip=IPv4Address("10.99.0.11"), public_ipv6=address).with_backend(both, (UDP,))

    patch = json.loads(format_removal(DEFAULT_PREFIX, IS_REMOVED, "TIME"))

    assert patch["metadata"] == {"annotations": dict.fromkeys(written(node(), own))}
    (condition,) = patch["status"]["conditions"]
    assert (condition["status"], condition["reason"]) == ("True", "FlannelRemoved")
    assert "status" not in json.loads(format_removal(DEFAULT_PREFIX, None, "TIME"))


def test_a_node_without_the_mark_of_flannel_or_without_pod_cidr_has_no_lease() -> None:
    assert lease_of_node(node(public_ip="10.99.0.11"), DEFAULT_PREFIX) is None
    assert lease_of_node(node((), kube_subnet_manager="true", public_ip="1.2.3.4"), DEFAULT_PREFIX) is None


@pytest.mark.parametrize(
    "notes",
    [
        {"public_ip": "x"},
        {"public_ip": "fd00::1"},
        {},
        {"public_ip": "1.2.3.4", "backend_data": "{"},
        {"public_ip": "1.2.3.4", "backend_data": '{},"Pyflannel":{"Owner":"other"}'},
        {"public_ip": "1.2.3.4", "backend_data": "[" * 5000},
    ],
)
def test_invalid_annotations_are_an_error_that_names_the_node(notes: dict[str, str]) -> None:
    with pytest.raises(WireError, match="Node n1: its annotations"):
        lease_of_node(node(kube_subnet_manager="true", **notes), DEFAULT_PREFIX)


def test_the_subnet_is_the_ipv4_pod_cidr() -> None:
    both = subnets_of(node(("fd00::/64", "10.244.1.0/24")))
    assert both == (IPv4Network("10.244.1.0/24"), IPv6Network("fd00::/64"))
    assert subnets_of(node(("fd00::/64",))).ipv4 is None
    with pytest.raises(WireError, match="podCIDR 'x' is not a prefix"):
        subnets_of(node(("x",)))


def test_the_overwrite_has_precedence() -> None:
    own = LeaseAttributes(public_ip=IPv4Address("10.0.0.1"), public_ipv6=IPv6Address("fd00::1"))
    assert with_published_addresses(node(), own, DEFAULT_PREFIX) == own
    both = node(node_public_ip="10.0.0.2", public_ip_overwrite="10.0.0.3", node_public_ipv6="fd00::2")
    found = with_published_addresses(both, own, DEFAULT_PREFIX)
    assert (str(found.public_ip), str(found.public_ipv6)) == ("10.0.0.3", "fd00::2")
    without = replace(own, public_ipv6=None)
    assert with_published_addresses(both, without, DEFAULT_PREFIX).public_ipv6 is None
    with pytest.raises(WireError, match="public-ipv6-overwrite='x' is not an IPv6 address"):
        with_published_addresses(node(public_ipv6_overwrite="x"), own, DEFAULT_PREFIX)


API_NODE = {
    "kind": "Node",
    "metadata": {
        "name": "n1",
        "uid": "u",
        "resourceVersion": "7",
        "labels": {"a": "b"},
        "annotations": {DEFAULT_PREFIX + "public-ip": "10.99.0.11", "other": "x" * 1000},
    },
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00::/64"]},
    "status": {
        "images": [{"names": ["x" * 1000]}],
        "conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "NetworkUnavailable", "status": "Unknown", "reason": "r", "message": "m"},
        ],
    },
}


def test_a_record_contains_only_the_parts_that_flannel_needs() -> None:
    record = parse_node(json.dumps(API_NODE).encode(), DEFAULT_PREFIX)
    assert (record.key, record.revision) == ("nodes/n1", 7)
    assert len(record.value) < 400
    found = node_of(record)
    assert found.pod_cidrs == ("10.244.1.0/24", "fd00::/64")
    assert found.annotations == {DEFAULT_PREFIX + "public-ip": "10.99.0.11"}
    assert found.condition is not None
    assert found.condition.is_unavailable is None


def test_a_listing_and_the_events_of_a_watch_are_read() -> None:
    text = json.dumps({"metadata": {"resourceVersion": "9"}, "items": [API_NODE]}).encode()
    listing = parse_nodes(text, DEFAULT_PREFIX)
    assert (listing.revision, len(listing.records)) == (9, 1)

    def event(kind: str, document: object) -> object:
        return parse_event(json.dumps({"type": kind, "object": document}).encode(), DEFAULT_PREFIX)

    assert isinstance(event("ADDED", API_NODE), PutSeen)
    assert event("DELETED", API_NODE) == DeleteSeen("nodes/n1", 7)
    assert event("BOOKMARK", {"metadata": {"resourceVersion": "8"}}) == Bookmark(8)
    assert event("ERROR", {"code": 410, "message": "old"}) == ApiFailure(410, "old")


@pytest.mark.parametrize("text", [b"", b"<html>", b"[]", b'{"metadata":{"resourceVersion":"x"}}'])
def test_an_answer_of_another_server_is_an_error(text: bytes) -> None:
    with pytest.raises(WireError, match="not a list of Nodes"):
        parse_nodes(text, DEFAULT_PREFIX)
    with pytest.raises(WireError, match="not an event"):
        parse_event(b'{"type":"ADDED","object":' + text + b"}", DEFAULT_PREFIX)


def test_a_record_of_another_form_is_an_error() -> None:
    with pytest.raises(WireError, match="not a Node"):
        node_of(Record(key="nodes/n1", value=b"[]", revision=1))


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
        ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/"),
        ("example.org/blue", "example.org/blue-"),
        ("example.org/blue-", "example.org/blue-"),
    ],
)
def test_a_prefix_is_completed(text: str, prefix: str) -> None:
    assert annotation_prefix(text) == prefix


@pytest.mark.parametrize("text", ["a/b/c", "Example.org", "example.org/Blue", "", "-a.org"])
def test_an_invalid_prefix_is_refused(text: str) -> None:
    with pytest.raises(WireError, match="subnet/kube: prefix"):
        annotation_prefix(text)
