"""Converts Nodes of the Kubernetes API to leases, and the lease of this host to changes of its Node.

The store keeps each Node as a record with the key `nodes/NAME`. The value of the record is the JSON of the
Node, without the parts that flannel does not need. The lease of a Node consists of its podCIDR and its
annotations:

    flannel.alpha.coreos.com/kube-subnet-manager: "true"
    flannel.alpha.coreos.com/backend-type: vxlan
    flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"1a:71:ad:7e:3b:3f"}'
    flannel.alpha.coreos.com/public-ip: 192.168.50.102

One more annotation contains the data that other hosts with pyflannel need (decision 0069). This annotation
exists during a change of the backend, and if the host reads more formats than the original. `BackendType` and
`BackendData` repeat the content of other annotations:

    flannel.alpha.coreos.com/pyflannel: '{"BackendType":"vxlan",…,"Also":[{…}],"Reads":["direct"]}'

Sources: flannel 0.28.9; Kubernetes API v1, NodeList and WatchEvent.
"""

import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct
from msgspec.structs import replace

from pyflannel.errors import WireError
from pyflannel.model.kubernetes_node import Node, NodeCondition, NodeEvent
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep, is_host_name
from pyflannel.model.network_config import BOTH_FAMILIES, Family
from pyflannel.model.store_record import Change, DeleteSeen, Listing, PutSeen, Record
from pyflannel.wire.json_values import parse_ipv4, parse_ipv6
from pyflannel.wire.lease_json import (
    format_backend_data,
    format_parts,
    format_public_ip,
    parse_lease_attributes,
)

NODES = "nodes/"
"""In the store, the keys of Nodes begin with this text."""

_CONDITION = "NetworkUnavailable"
_STATUSES: Mapping[str, bool | None] = {"True": True, "False": False}


# Objects of the API.


class _Metadata(Struct, rename="camel", omit_defaults=True):
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class _Spec(Struct, rename={"pod_cidr": "podCIDR", "pod_cidrs": "podCIDRs"}, omit_defaults=True):
    pod_cidr: str = ""
    pod_cidrs: list[str] | None = None


class _Condition(Struct, omit_defaults=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class _Status(Struct, omit_defaults=True):
    conditions: list[_Condition] | None = None


class _Node(Struct, omit_defaults=True):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


class _PodSpec(Struct, rename="camel"):
    node_name: str = ""


class _Pod(Struct):
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)


class _Nodes(Struct):
    metadata: _Metadata
    items: list[_Node] | None = None


class _Items(Struct):
    items: list[Raw] | None


class _Failure(Struct):
    code: int = 0
    message: str = ""
    reason: str = ""


class _Event(Struct):
    type: str
    object: Raw


_NODE = msgspec.json.Decoder(_Node)
_POD = msgspec.json.Decoder(_Pod)
_NODES = msgspec.json.Decoder(_Nodes)
_ITEMS = msgspec.json.Decoder(_Items)
_EVENT = msgspec.json.Decoder(_Event)
_FAILURE = msgspec.json.Decoder(_Failure)
_ENCODER = msgspec.json.Encoder()


class ApiFailure(Struct, frozen=True):
    """The reason why the server refused a request or ended a watch.

    Attributes:
        code: HTTP status; 0 if the answer contains no status.
        message: the server's text.
    """

    code: int
    message: str


class Bookmark(Struct, frozen=True):
    """The server has sent all changes up to this revision."""

    revision: int


def parse_nodes(text: bytes | bytearray, prefix: str) -> Listing:
    """Return the Nodes of a NodeList. The Nodes keep only the annotations with this prefix.

    Raises:
        WireError: the text is not a NodeList.
    """
    try:
        nodes = _NODES.decode(text)
        records = tuple(_record(node, prefix) for node in nodes.items or ())
        return Listing(records, _revision(nodes.metadata))
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _not("a list of Nodes", error) from error


def parse_node(text: bytes | bytearray, prefix: str) -> Record:
    """Return the record of a Node.

    Raises:
        WireError: the text is not a Node.
    """
    try:
        return _record(_NODE.decode(text), prefix)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _not("a Node", error) from error


def parse_pod_node(text: bytes | bytearray) -> str:
    """Return the name of the Node of a pod; "" if the pod has no Node.

    Raises:
        WireError: the text is not a pod.
    """
    try:
        return _POD.decode(text).spec.node_name
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _not("a pod", error) from error


def parse_has_items(text: bytes | bytearray) -> bool:
    """Return whether a list of any kind has items.

    Raises:
        WireError: the text is not a list.
    """
    try:
        return bool(_ITEMS.decode(text).items)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _not("a list", error) from error


def parse_event(line: bytes, prefix: str) -> Change | Bookmark | ApiFailure:
    """Return the change in one line of a watch.

    Raises:
        WireError: the line is not an event of a watch of Nodes.
    """
    try:
        event = _EVENT.decode(line)
        if event.type == "ERROR":
            return parse_failure(bytes(event.object))
        node = _NODE.decode(event.object)
        revision = _revision(node.metadata)
        match event.type:
            case "ADDED" | "MODIFIED":
                return PutSeen(_record(node, prefix))
            case "DELETED":
                return DeleteSeen(NODES + node.metadata.name, revision)
            case "BOOKMARK":
                return Bookmark(revision)
            case other:
                raise ValueError(f"unknown type {other!r}")
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _not("an event of a watch", error) from error


def parse_failure(text: bytes | bytearray) -> ApiFailure:
    """Return the failure in the body of an answer; the text itself if it is not a Status object."""
    try:
        failure = _FAILURE.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return ApiFailure(0, text.decode(errors="replace").strip())
    return ApiFailure(failure.code, failure.message or failure.reason)


def _record(node: _Node, prefix: str) -> Record:
    """Return the record of a Node, without the parts that flannel does not need."""
    revision = _revision(node.metadata)
    found = node.metadata.annotations or {}
    node.metadata.annotations = {name: text for name, text in found.items() if name.startswith(prefix)}
    conditions = node.status.conditions or ()
    node.status.conditions = [one for one in conditions if one.type == _CONDITION]
    return Record(key=NODES + node.metadata.name, value=_ENCODER.encode(node), revision=revision)


def _revision(metadata: _Metadata) -> int:
    """Return the revision of an object. Kubernetes guarantees that the revision is a number (KEP 5504)."""
    return int(metadata.resource_version or "0")


def _not(what: str, error: Exception) -> WireError:
    return WireError(f"not {what}: {error}", hint="Check that the URL is the URL of a Kubernetes API server.")


# Nodes and leases.


def node_of(record: Record) -> Node:
    """Return the Node of a record.

    Raises:
        WireError: the record is not the record of a Node.
    """
    try:
        found = _NODE.decode(record.value)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _not("a Node", error) from error
    cidrs = found.spec.pod_cidrs or ([found.spec.pod_cidr] if found.spec.pod_cidr else [])
    conditions = found.status.conditions or ()
    return Node(
        name=found.metadata.name,
        uid=found.metadata.uid,
        pod_cidrs=tuple(cidrs),
        annotations=found.metadata.annotations or {},
        condition=next((_condition(one) for one in conditions), None),
    )


def _condition(found: _Condition) -> NodeCondition:
    return NodeCondition(
        is_unavailable=_STATUSES.get(found.status), reason=found.reason, message=found.message
    )


class Subnets(NamedTuple):
    """The prefixes of the pods of a Node; None for a family without a prefix."""

    ipv4: IPv4Network | None
    ipv6: IPv6Network | None


def subnets_of(node: Node) -> Subnets:
    """Return the subnets of the pods of a Node: the first podCIDR of each family.

    Raises:
        WireError: a podCIDR is not a prefix.
    """
    ipv4 = ipv6 = None
    for text in node.pod_cidrs:
        try:
            subnet = ip_network(text, strict=False)
        except ValueError as error:
            raise WireError(
                f"Node {node.name}: podCIDR {text!r} is not a prefix", hint="Create the Node again."
            ) from error
        if isinstance(subnet, IPv4Network):
            ipv4 = ipv4 or subnet
        else:
            ipv6 = ipv6 or subnet
    return Subnets(ipv4, ipv6)


def lease_of_node(
    node: Node, prefix: str, revision: int = 0, families: Collection[Family] = BOTH_FAMILIES
) -> Lease | None:
    """Return the lease of a Node in a network with these families; None if the flanneld of this Node has
    published no lease.

    Raises:
        WireError: an annotation or the podCIDR is invalid; the message names the Node.
    """
    notes = {name.removeprefix(prefix): text for name, text in node.annotations.items()}
    if notes.get("kube-subnet-manager") != "true":
        return None
    subnets, port = subnets_of(node), _port(notes)
    try:
        value: dict[str, Any] = {
            "PublicIP": notes.get(
                "public-ip", "" if subnets.ipv4 is not None and 4 in families else "0.0.0.0"
            ),
            "PublicIPv6": notes.get("public-ipv6"),
            "BackendType": notes.get("backend-type", ""),
            "Pyflannel": {
                "Owner": node.name,
                "Host": node.name if is_host_name(node.name) else None,
                "Port": port,
                **_extras(notes),
            },
        }
        for name, note in (("BackendData", "backend-data"), ("BackendV6Data", "backend-v6-data")):
            if port is None and (data := notes.get(note, "null")) != "null":
                value[name] = Raw(msgspec.json.format(data, indent=-1).encode())
        attributes = parse_lease_attributes(_ENCODER.encode(value))
    except (msgspec.MsgspecError, RecursionError, WireError) as error:
        raise WireError(
            f"Node {node.name}: its annotations {prefix}… are not those of a lease: {error}",
            hint="Restart flanneld on that Node: flanneld writes the annotations again.",
        ) from error
    return leased(subnets, attributes, revision, families)


def leased(
    subnets: Subnets, attributes: LeaseAttributes, revision: int, families: Collection[Family]
) -> Lease | None:
    """Return the lease on the subnets of a Node in a network with these families; None without a subnet."""
    if subnets.ipv4 is not None and 4 in families:
        return Lease(subnet=subnets.ipv4, ipv6_subnet=subnets.ipv6, attributes=attributes, revision=revision)
    if subnets.ipv6 is None or 6 not in families:
        return None
    return Lease.of_ipv6(subnets.ipv6, attributes, revision)


# The data for other hosts with pyflannel. When the original starts, it overwrites its own annotations and
# keeps unknown annotations. Therefore each value contains the text of an annotation that the original writes.

_OWN = "pyflannel"


class _Extras(Struct, rename="pascal"):
    """The annotation of pyflannel. This annotation is used if its type and data equal the values of the
    other annotations.
    """

    backend_type: str
    backend_data: Raw
    also: Raw
    reads: tuple[str, ...]


class _UdpData(Struct, rename="pascal"):
    """The data of udp. The original writes null for udp, and therefore replaces these data."""

    port: Annotated[int, Meta(ge=1, le=65535)]


_EXTRAS = msgspec.json.Decoder(_Extras)
_UDP_DATA = msgspec.json.Decoder(_UdpData)


def _extras(notes: Mapping[str, str]) -> dict[str, Any]:
    """Return the previous backends of a host and the formats that it reads, if its annotation is used."""
    try:
        found = _EXTRAS.decode(notes.get(_OWN, ""))
    except (msgspec.MsgspecError, RecursionError):
        return {}
    published = notes.get("backend-type", ""), notes.get("backend-data", "null").encode()
    if (found.backend_type, bytes(found.backend_data)) != published:
        return {}
    return {"Reads": found.reads, "Also": found.also}


def _port(notes: Mapping[str, str]) -> int | None:
    """Return the port of a host with udp; None if the host publishes no port."""
    if notes.get("backend-type", "") not in _UDP:
        return None
    try:
        return _UDP_DATA.decode(notes.get("backend-data", "null")).port
    except (msgspec.MsgspecError, RecursionError):
        return None


def with_published_addresses(node: Node, attributes: LeaseAttributes, prefix: str) -> LeaseAttributes:
    """Return the attributes with the addresses that the operator has set in annotations.

    `public-ip-overwrite` has precedence over `node-public-ip`, and the same is true of the annotations for
    IPv6.

    Raises:
        WireError: the text of an annotation is not an address.
    """
    ipv4 = _demanded(node, prefix, "ip", parse_ipv4)
    ipv6 = None if attributes.public_ipv6 is None else _demanded(node, prefix, "ipv6", parse_ipv6)
    return replace(
        attributes, public_ip=ipv4 or attributes.public_ip, public_ipv6=ipv6 or attributes.public_ipv6
    )


_Address = TypeVar("_Address")


def _demanded(node: Node, prefix: str, kind: str, parse: Callable[[str], _Address]) -> _Address | None:
    for name in (f"public-{kind}-overwrite", f"node-public-{kind}"):
        if text := node.annotations.get(prefix + name):
            try:
                return parse(text)
            except ValueError as error:
                family = "IPv4" if kind == "ip" else "IPv6"
                raise WireError(
                    f"Node {node.name}: annotation {prefix}{name}={text!r} is not an {family} address",
                    hint="Correct or remove the annotation.",
                ) from error
    return None


_WRITTEN = (
    "kube-subnet-manager",
    "backend-type",
    "backend-data",
    "public-ip",
    "backend-v6-data",
    "public-ipv6",
    _OWN,
)
"""The annotations that flanneld writes."""

_UDP = ("", "udp")
"""The backend types of a lease with udp."""

_BOTH_FAMILIES = ("vxlan", "host-gw", "wireguard")
"""The backends that publish an IPv6 address."""


def missing_annotations(node: Node, attributes: LeaseAttributes, prefix: str) -> dict[str, str | None]:
    """Return the annotations that the Node must change to publish these attributes.

    None removes an annotation.
    """
    kind = attributes.backend_type
    data = _data(attributes.backend_data, attributes.vtep)
    if attributes.port is not None and kind in _UDP:
        data = _ENCODER.encode(_UdpData(attributes.port)).decode()
    wanted: dict[str, str | None] = {
        "backend-data": data,
        "backend-type": kind,
        "kube-subnet-manager": "true",
        "public-ip": format_public_ip(attributes),
    }
    if kind == "vxlan" and wanted["backend-data"] == "null":
        del wanted["backend-data"], wanted["public-ip"]
    if attributes.public_ipv6 is not None and kind in _BOTH_FAMILIES:
        data_v6 = _data(attributes.backend_v6_data, attributes.vtep_v6)
        if kind == "host-gw" or data_v6 != "null":
            wanted |= {"backend-v6-data": data_v6, "public-ipv6": str(attributes.public_ipv6)}
    wanted[_OWN] = _format_extras(attributes, data)
    return {
        prefix + name: text for name, text in wanted.items() if node.annotations.get(prefix + name) != text
    }


def _format_extras(attributes: LeaseAttributes, data: str) -> str | None:
    if not attributes.also and not attributes.reads:
        return None
    extras = _Extras(
        backend_type=attributes.backend_type,
        backend_data=Raw(data),
        also=format_parts(attributes.also),
        reads=attributes.reads,
    )
    return _ENCODER.encode(extras).decode()


def _data(text: str | None, vtep: Vtep | None) -> str:
    if text is not None:
        return text
    return "null" if vtep is None else format_backend_data(vtep)


def format_annotations(node: Node, annotations: Mapping[str, str | None]) -> bytes:
    """Return the patch that gives a Node these annotations, and keeps all other annotations. None removes an
    annotation.

    The server refuses the patch if the Node was deleted and created again.
    """
    return _ENCODER.encode({"metadata": {"uid": node.uid, "annotations": annotations}})


def rfc3339(utc: float) -> str:
    """Return a time, given in seconds since the epoch, in the format of the API."""
    return datetime.fromtimestamp(utc, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_condition(node: Node, condition: NodeCondition, now: str) -> bytes:
    """Return the patch that gives a Node this condition NetworkUnavailable at time `now` (RFC 3339).

    The server refuses the patch if the Node was deleted and created again.
    """
    status = {"conditions": [_condition_value(condition, now)]}
    return _ENCODER.encode({"metadata": {"uid": node.uid}, "status": status})


def format_removal(prefix: str, condition: NodeCondition | None, now: str) -> bytes:
    """Return the patch that removes the annotations of flanneld from a Node and sets this condition.

    The annotations of operators remain.
    """
    patch: dict[str, Any] = {"metadata": {"annotations": {prefix + name: None for name in _WRITTEN}}}
    if condition is not None:
        patch["status"] = {"conditions": [_condition_value(condition, now)]}
    return _ENCODER.encode(patch)


def _condition_value(condition: NodeCondition, now: str) -> dict[str, str]:
    return {
        "type": _CONDITION,
        "status": str(condition.is_unavailable),
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
        "reason": condition.reason,
        "message": condition.message,
    }


_LONGEST_MESSAGE = 1024
"""Maximum length of the message of an Event, in bytes. Source: Kubernetes API v1, Event."""


def format_event(node: str, event: NodeEvent, now: str, number: int) -> bytes:
    """Return an Event of a Node at time `now` (RFC 3339). `number` makes the name of the Event unique.

    Events of Nodes are in the namespace `default`. Like Events of the kubelet, Events of flanneld contain the
    name of the Node as its uid.
    """
    value = {
        "metadata": {"namespace": "default", "name": f"{node}.{number:x}"},
        "involvedObject": {"kind": "Node", "name": node, "uid": node},
        "type": "Warning" if event.is_warning else "Normal",
        "reason": event.reason,
        "message": event.message.encode()[:_LONGEST_MESSAGE].decode(errors="ignore"),
        "source": {"component": "flanneld", "host": node},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    return _ENCODER.encode(value)


# The prefix of annotations.

_PREFIX = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?/[a-z0-9_-]*", re.ASCII
)


def annotation_prefix(text: str) -> str:
    """Return the start of the names of annotations for a value of `--kube-annotation-prefix`.

    Raises:
        WireError: the value is not a valid prefix.
    """
    if text.count("/") > 1:
        raise WireError(
            "subnet/kube: prefix can contain at most single slash", hint="Write flannel.alpha.coreos.com."
        )
    prefix = text if "/" in text else f"{text}/"
    if prefix[-1] not in "/-":
        prefix += "-"
    if not _PREFIX.fullmatch(prefix):
        raise WireError(
            "subnet/kube: prefix must be in a format: fqdn/[0-9a-z-_]*",
            hint="Write flannel.alpha.coreos.com.",
        )
    return prefix
