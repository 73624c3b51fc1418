"""Parsers of the store and of subnet.env under hostile input: each parser returns or raises its own error.

Each parser gets a thousand inputs, and many more from `scripts/test fuzz`.
"""

import json
from contextlib import suppress
from ipaddress import IPv4Network
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.hostile_inputs import (
    Parser,
    as_bytes,
    check,
    damaged,
    damaged_text,
    deep,
    golden,
    values,
    words,
)
from pyflannel.errors import ConfigError, UsageError, WireError
from pyflannel.model.store_record import Record
from pyflannel.plan.backends import backend_of
from pyflannel.stores.etcd.keys import KeySpace
from pyflannel.stores.etcd.rpc_pb2 import KeyValue
from pyflannel.stores.kubernetes.access import parse_server
from pyflannel.wire.kubeconfig import parse_kubeconfig
from pyflannel.wire.kubernetes_node import (
    lease_of_node,
    node_of,
    parse_event,
    parse_failure,
    parse_has_items,
    parse_node,
    parse_nodes,
    parse_pod_node,
    subnets_of,
)
from pyflannel.wire.lease_json import (
    parse_claim,
    parse_lease_attributes,
    parse_vtep,
    parse_wireguard,
    signed_form,
)
from pyflannel.wire.lease_record import claim_of, kept_lease, lease_of, parse_change, parse_last_known
from pyflannel.wire.lease_signature import is_authentic, is_authentic_list, parse_signed_list
from pyflannel.wire.network_config_json import format_network_config, parse_network_config
from pyflannel.wire.reach_record import (
    is_authentic_count,
    is_authentic_request,
    is_authentic_row,
    parse_count,
    parse_request,
    parse_row,
)
from pyflannel.wire.subnet_env import parse_assignments, parse_subnet_env, previous_subnet

# The store: JSON of leases, claims, configs and the file of the last known leases.


def written(
    members: dict[str, st.SearchStrategy[Any]], required: dict[str, Any] | None = None
) -> st.SearchStrategy[str]:
    """JSON of an object with some of these members, in any case, or any value in their place."""
    spelled = {
        name.swapcase() if odd else name: usual | values
        for name, usual in members.items()
        for odd in (False, True)
    }
    found = st.fixed_dictionaries({}, optional=spelled).map(lambda one: {**(required or {}), **one})
    texts = found.map(json.dumps) | found.map(lambda one: json.dumps(one, ensure_ascii=False, indent=1))
    return texts | deep | damaged_text(texts, '"{}[]:,0\\\x00\ud800é')


address_texts = st.sampled_from(
    ["10.3.0.0", "10.3.255.0", "::ffff:10.3.1.0", "fd00::1", "fe80::1%eth0", "0.0.0.0", "1.2.3", "256.1.1.1"]
)
vteps = st.fixed_dictionaries(
    {},
    optional={
        "VNI": st.integers(-1, 2**33) | values,
        "VtepMAC": st.sampled_from(["0e:00:00:00:00:01", "0E-00-00-00-00-01", "0e00.0000.0001", "x"])
        | values,
        "vtepmac": st.just("0e:00:00:00:00:02"),
        "vni": st.none() | st.just(7),
    },
)
ours = st.fixed_dictionaries(
    {},
    optional={
        "Owner": words,
        "Port": st.integers(-1, 70000),
        "Reads": st.lists(words, max_size=2),
        "Key": words | st.just("A" * 43 + "="),
    },
)
leases = written(
    {
        "PublicIP": address_texts,
        "PublicIPv6": address_texts,
        "BackendType": st.sampled_from(["vxlan", "host-gw", "udp", "x" * 65]),
        "BackendData": vteps,
        "BackendV6Data": vteps,
        "Pyflannel": ours,
    }
)
claims = written(
    {"Owner": words, "PublicIP": address_texts, "Held": st.floats(0, 9)},
    {"Owner": "a", "PublicIP": "1.2.3.4"},
)
keys = st.sampled_from(["10.5.52.0-24", "10.5.52.0-24&fd00:5:0:34::-64", "10.5.52.1-24", "0.0.0.0-0"])
SIGNED_LISTS = [
    b'{"Counter":7,"Operator":"%s","Signature":"%s","Keys":"ab host\\n"}'
    % (b"A" * 43 + b"=", b"A" * 86 + b"=="),
    b'{"Counter":0,"Operator":"%s","Signature":"","Keys":"\\ud800"}' % (b"A" * 43 + b"=",),
    b'{"Counter":7,"Operator":"AAAA","Signature":"AAAA","Keys":""}',
    b'{"Counter":0,"Operator":"%s","Signature":"%s","Keys":""}' % (b"A" * 43 + b"=", b"A" * 86 + b"=="),
    b" " * (2 << 20),
]

LEASES = [
    *(text.encode() for text in golden("lease-attrs-roundtrip", "input")),
    *(text.encode() for text in golden("backend-leases", "value")),
    b'{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0E-00-00-00-00-01"}}',
    b"[" * 3000,
    b"x" * 5000,
    b"\xff",
]
SIGNED_LEASE = (
    b'{"PublicIP":"1.2.3.4","BackendType":"udp","Pyflannel":{"Counter":7,"Key":"%s","Signature":"%s"}}'
    % (b"A" * 43 + b"=", b"A" * 86 + b"==")
)
SIGNED = [SIGNED_LEASE, *LEASES]
CLAIMS = [b'{"Owner":"a","PublicIP":"1.2.3.4","Held":1}', b"{}", b"[" * 3000, b"x" * 5000]
VTEPS = [
    "{}",
    '{"VtepMAC":"0e:00:00:00:00:01","VNI":-1}',
    '{"VtepMAC":7}',
    '{"vtepmac":"x","VtepMAC":"y"}',
    "[" * 3000,
    *(
        f'{{"PublicKey":"{key}","port":{port}}}'
        for key in ("A" * 43 + "=", "?")
        for port in (0, 1, "null", 70000)
    ),
    '{"publickey":7}',
]
CHANGES = [b'{"Config":"{}","Previous":["{}"],"IsPrepared":false}', b"{}", b"7"]
SERVERS = [
    "https://10.0.0.1:6443/x",
    "[fd00::1]:6443",
    "http://h",
    "ftp://h",
    "https://h:x",
    "https://[",
    "//a@b",
    "",
]
SUBNET_KEYS = [
    *golden("subnet-keys", "input"),
    "10.5.52.0-32",
    "10.5.52.0-24&fd00::-128",
    "10.5.52.0-24&::ffff:0:0-96",
    "10.5.52.0-24&fd00:0::-64",
    "10.5.52.0-24&fd00::1-64",
    "1" * 100_000,
]
key_names = keys | damaged_text(keys, "0123456789.-&:af\n") | words
backends = st.fixed_dictionaries(
    {"Type": st.sampled_from(["udp", "vxlan", "host-gw", "alloc", "wireguard", "x", 7])},
    optional={
        "Port": st.integers(-1, 70000) | values,
        "VNI": st.integers(-1, 2**25) | values,
        "MTU": st.integers(0, 70000),
        "MacPrefix": st.sampled_from(["0E-2A", "01-00", "x"]) | values,
        "DirectRouting": st.booleans() | values,
        "unknown": values,
    },
)
config_networks = st.sampled_from(["10.3.0.0/16", "10.3.1.2/16", "fd00:3::/48", "0.0.0.0/0", "10.3.0.0/30"])
config_members: dict[str, st.SearchStrategy[Any]] = {
    "Network": config_networks,
    "SubnetLen": st.integers(-1, 40),
    "SubnetMin": address_texts,
    "SubnetMax": address_texts,
    "IPv6Network": config_networks,
    "IPv6SubnetLen": st.integers(0, 130),
    "IPv6SubnetMin": address_texts,
    "IPv6SubnetMax": address_texts,
    "EnableIPv4": st.booleans(),
    "EnableIPv6": st.booleans(),
    "EnableNFTables": st.booleans(),
    "FastPath": st.sampled_from(["safe", "off", "flow"]),
    "Backend": backends,
}
sound_members: dict[str, st.SearchStrategy[Any]] = {
    "SubnetLen": st.sampled_from([0, 17, 24, 30, 31, "24", None]),
    "SubnetMin": st.sampled_from(["10.3.1.0", "10.3.1.7", "10.4.0.0", None, 7]),
    "SubnetMax": st.sampled_from(["10.3.9.0", "10.3.0.0", "fd00::1"]),
    "IPv6SubnetLen": st.sampled_from([0, 49, 64, 126, 127]),
    "IPv6SubnetMin": st.sampled_from(["fd00:3:0:1::", "fd00:4::", "::", None]),
    "Network": st.sampled_from(["10.3.0.0/29", "10.3.0.0/28", "10.3.0.0/8", "0.0.0.0/0", "fd00::/16"]),
    "EnableIPv4": st.booleans() | st.none(),
    "FastPath": st.sampled_from(["safe", "off", "flow", 7]),
    "Later": values,
    "": values,
    "a\n": values,
    "EnableNFTables": st.booleans() | st.none(),
    "Backend": backends | st.sampled_from([None, {}, {"Type": None}, {"type": "UDP", "TYPE": "vxlan"}, []]),
}
sound_configs = st.builds(
    lambda changes, has_ipv6: json.dumps(
        {"Network": "10.3.0.0/16", "IPv6Network": "fd00:3::/48", "EnableIPv6": has_ipv6, **changes}
    ),
    st.fixed_dictionaries({}, optional=sound_members),
    st.booleans(),
) | st.sampled_from(sorted(sound_members)).flatmap(
    lambda name: sound_members[name].map(
        lambda value: json.dumps({"Network": "10.3.0.0/16", "IPv6Network": "fd00:3::/48", name: value})
    )
)
CONFIGS = golden("network-config", "input")
BAD_CONFIGS = [
    "x" * 70_000,
    "[" * 3000,
    '{"a":' * 40 + "1" + "}" * 40,
    '{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.7"}',
    '{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.1.0"}',
    '{"Network":"10.3.0.0/16","SubnetMax":"10.4.1.0"}',
    '{"Network":"10.3.0.0/16","SubnetLen":31}',
    '{"Network":"10.3.0.0/29","SubnetLen":0}',
    '{"Network":"10.3.0.0/16","FastPath":7,"":1,"a\\n":2,"' + "long" * 300 + '":3}',
    '{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"::ffff:0:0/96"}',
    '{"Network":"10.3.0.0/16","EnableIPv6":true}',
    '{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"10.3.0.0/16"}',
    '{"Network":"fd00::/64"}',
    '{"Network":"10.3.0.0/16","SubnetMin":"fd00::1"}',
    '{"Network":"10.3.0.0/16","EnableIPv4":7}',
    '{"Network":"10.3.0.0/16","SubnetLen":"24"}',
    '{"Network":"10.3.0.0/16","SubnetLen":null,"IPv6SubnetMin":null,"IPv6SubnetMax":"x"}',
    '{"EnableIPv4":false}',
    '{"Network":"10.3.0.0/16","Backend":[]}',
    '{"Network":"10.3.0.0/16","Backend":{"Type":7}}',
    '{"Network":"10.3.0.0/16","Backend":{"type":"UDP","TYPE":null}}',
    '{"Network":1e999}',
    *(
        f'{{"Network":"10.3.0.0/16","Backend":{{"Type":"vxlan","MacPrefix":"{prefix}"}}}}'
        for prefix in ("", "0E-2A", "01-00", "x", "0e2a")
    ),
    *(
        f'{{"Network":"10.3.0.0/16","Backend":{{"Type":"vxlan","{name}":{value}}}}}'
        for name, value in (("DirectRouting", 7), ("DirectRouting", "true"), ("MacPrefix", 7), ("VNI", '"x"'))
    ),
    '{"Network":"10.3.0.0/16","FastPath":"flow"}',
    '{"Network":"10.3.0.0/16","FastPath":""}',
    "[]",
    json.dumps({f"key{number}": number for number in range(1010)}),
]
many_keys = st.integers(990, 1010).map(lambda count: json.dumps({f"key{n}": n for n in range(count)}))
configs = written(config_members, {"Network": "10.3.0.0/16"}) | sound_configs | sound_configs | many_keys
kept = st.builds(
    lambda own, config, others: json.dumps({"Config": config, "Own": own, "Leases": {own: "{}", **others}}),
    keys.map(lambda key: f"subnets/{key}"),
    words,
    st.dictionaries(key_names.map(lambda key: f"subnets/{key}"), leases | words, max_size=3),
)


KEPT = [
    json.dumps(
        {
            "Config": "{}",
            "Own": own,
            "Leases": dict.fromkeys((own, "subnets/10.5.53.0-24"), '{"PublicIP":"192.0.2.1"}'),
        }
    ).encode()
    for own in (
        "subnets/10.5.52.0-24",
        "subnets/10.5.52.0-24&fd00:5:0:34::-64",
        "subnets/&fd00:5:0:34::-64",
        "subnets/&fd00:5:0:34::1-64",
    )
]

KEYS = KeySpace("/net")


def read_config(text: str | bytes) -> None:
    config = parse_network_config(text)
    format_network_config(config)
    backend_of(config)


def read_record(data: bytes) -> None:
    found = KeyValue.FromString(data)
    record = KEYS.record(found)
    for read in (lease_of, claim_of):
        with suppress(WireError):
            read(record)


etcd_records = st.builds(
    lambda key, value: KeyValue(
        key=b"/net/" + key, value=value, mod_revision=4, create_revision=2
    ).SerializeToString(),
    key_names.map(lambda key: f"subnets/{key}".encode(errors="surrogatepass")) | st.binary(max_size=20),
    as_bytes(leases),
)


def read_kept(data: bytes) -> None:
    for record in parse_last_known(data).records:
        kept_lease(record)


def read_signed_lease(value: bytes) -> None:
    with suppress(WireError):
        signed_form(value)
    with suppress(WireError):
        lease = lease_of(Record(key="subnets/10.5.52.0-24", value=value, revision=4, lease_id=1))
        is_authentic("/net", lease, value)


def read_signed_list(value: bytes) -> None:
    is_authentic_list("/net", parse_signed_list(value))


def read_backend_data(text: str) -> None:
    parse_vtep(text)
    parse_wireguard(text)


def read_claim(value: bytes) -> None:
    parse_claim(value, IPv4Network("10.5.52.0/24"), 4)


def read_reach_request(value: bytes) -> None:
    parse_request(value)
    is_authentic_request(value, "/net", bytes(32))


def read_reach_row(value: bytes) -> None:
    parse_row(value)
    is_authentic_row(value, "/net", bytes(32))


def read_count(value: bytes) -> None:
    parse_count(value)
    is_authentic_count(value, "/net", bytes(32))


COUNTS = [
    b'{"Id":"5d0f","Host":"10.5.52.0/24","Received":12,"Signature":"Wg=="}',
    b'{"Id":"5d0f","Host":"10.5.52.0/24","Received":null}',
    b'{"Id":"5d0f","Host":"10.5.52.1/24","Received":-1}',
    b"{" * 3000,
]
REACH_REQUESTS = [
    b'{"Id":"5d0f","Asker":"10.5.52.0/24","Hosts":["10.5.52.0/24","fd00:5::/64"],"Signature":"Wg=="}',
    b'{"Id":"","Asker":"10.5.52.1/24","Hosts":["10.5.52.0/24"]}',
    b'{"Id":"5d0f","Asker":"x","Hosts":["a","b"]}',
    b"\xff",
]
REACH_ROWS = [
    b'{"Id":"5d0f","Host":"10.5.52.0/24","Answers":["skipped",0.25,1,"silent"],"Signature":"Wg=="}',
    b'{"Id":"5d0f","Host":"10.5.52.1/24","Answers":[]}',
    b'{"Id":"5d0f","Host":"10.5.52.0/24","Answers":["x"]}',
    b"[" * 3000,
]


def read_key(key: str) -> None:
    for prefix in ("subnets/", "claims/", "other/"):
        record = Record(key=prefix + key, value=b'{"PublicIP":"1.2.3.4","Owner":"a"}', revision=4, lease_id=1)
        for read in (lease_of, claim_of):
            with suppress(WireError):
                read(record)


annotations = st.fixed_dictionaries(
    {},
    optional={
        "p/kube-subnet-manager": st.just("true") | words,
        "p/public-ip": address_texts,
        "p/backend-type": st.sampled_from(["vxlan", "wireguard", "x" * 65]),
        "p/backend-data": vteps.map(json.dumps) | words | deep,
        "p/backend-v6-data": words | deep,
    },
)
nodes = st.fixed_dictionaries(
    {
        "metadata": st.builds(
            lambda notes: {"name": "n", "resourceVersion": "7", "annotations": notes}, annotations
        )
    },
    optional={
        "spec": st.fixed_dictionaries(
            {}, optional={"podCIDR": address_texts, "podCIDRs": st.lists(config_networks | values)}
        ),
        "status": st.fixed_dictionaries(
            {},
            optional={
                "conditions": st.lists(st.just({"type": "NetworkUnavailable", "status": "x"}) | values)
            },
        ),
    },
)
events = st.builds(
    lambda kind, found: json.dumps({"type": kind, "object": found}),
    st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "x"]),
    nodes | values,
)
NODES = [
    b'{"metadata":{"name":"n","resourceVersion":"7","annotations":{"p/kube-subnet-manager":"true",'
    b'"p/public-ip":"1.2.3.4","p/backend-data":"{}"}},"spec":{"podCIDRs":["10.3.1.0/24"]}}',
    b'{"metadata":{"resourceVersion":"' + b"9" * 5000 + b'"}}',
    *(
        json.dumps(
            {
                "metadata": {
                    "name": "n",
                    "resourceVersion": "7",
                    "annotations": {
                        "p/kube-subnet-manager": "true",
                        "p/public-ip": "1.2.3.4",
                        "p/backend-type": "udp",
                        "p/backend-data": data,
                        "p/pyflannel": own,
                    },
                },
                "spec": {"podCIDRs": ["10.3.1.0/24", "fd00::/64", "10.3.2.0/24"]},
            }
        ).encode()
        for data in ('{"Port":8285}', '{"Port":0}')
        for own in (
            "",
            *(
                f'{{"BackendType":"udp","BackendData":{{"Port":{port}}},"Also":[],"Reads":[]}}'
                for port in (8285, 1)
            ),
        )
    ),
]
EVENTS = [
    *(b'{"type":"%s","object":%s}' % (kind, NODES[0]) for kind in (b"ADDED", b"DELETED", b"BOOKMARK", b"x")),
    b'{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"too old"}}',
]
KUBECONFIGS = [
    '{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"k","user":"u"}}],'
    '"clusters":[{"name":"k","cluster":{"server":"https://h"}}],'
    '"users":[{"name":"u","user":{"token":"t"}}]}',
    "current-context: c\ncontexts: [{name: c, context: {cluster: k}}]\n"
    "clusters: [{name: k, cluster: {server: x}}]",
    "a: 2001-99-99\nb: !!int x\nc: [1, ~, on]\n? [k]\n: v\ncurrent-context: c",
    "a: &a [1]\nb: *a",
    'a: "\\U00110000"',
    "[]",
    "contexts: [",
    "contexts: " + "[ " * 400,
    "{}",
    *(
        json.dumps(
            {
                "current-context": "c",
                "contexts": ["x", {"name": "d"}, {"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": cluster}],
                "users": [{"name": "u", "user": user}],
            }
        )
        for cluster, user in (
            ({"server": 7}, {}),
            ({"server": "https://h", "certificate-authority-data": "WA=="}, {"tokenFile": "/t"}),
            ({"server": "https://h", "certificate-authority-data": "?"}, {}),
            ({"server": "https://h", "certificate-authority": "/ca"}, {"exec": {"command": "x"}}),
            (7, {}),
        )
    ),
]


LISTS = [
    b'{"metadata":{"resourceVersion":"9"},"items":[%s]}' % NODES[0],
    b'{"spec":{"nodeName":"n"},"items":null}',
    b'{"kind":"Status","code":410,"reason":"Expired","message":"too old"}',
    b'{"code":"x"}',
    b"\xff",
    b"[" * 3000,
]


def read_document(text: bytes) -> None:
    """A list of Nodes, a pod, any list, or a failure."""
    for read in (lambda one: parse_nodes(one, "p/"), parse_pod_node, parse_has_items):
        with suppress(WireError):
            read(text)
    parse_failure(text)


def read_node(text: bytes) -> None:
    node = node_of(parse_node(text, "p/"))
    for read in (subnets_of, lambda found: lease_of_node(found, "p/")):
        with suppress(WireError):
            read(node)


STORE = [
    Parser(
        "Node", read_node, as_bytes(nodes.map(json.dumps)) | damaged(st.sampled_from(NODES)), corpus=NODES
    ),
    Parser("document of the API server", read_document, damaged(st.sampled_from(LISTS)), (), LISTS),
    Parser("event of a watch", lambda line: parse_event(line, "p/"), as_bytes(events | deep), corpus=EVENTS),
    Parser(
        "kubeconfig",
        parse_kubeconfig,
        damaged_text(st.sampled_from(KUBECONFIGS), "{}[]:,\n'"),
        corpus=KUBECONFIGS,
    ),
    Parser(
        "network config",
        read_config,
        configs | damaged_text(st.sampled_from(CONFIGS), '"{}[]:,0\\'),
        (ConfigError,),
        CONFIGS + BAD_CONFIGS,
    ),
    Parser(
        "lease", parse_lease_attributes, as_bytes(leases) | damaged(st.sampled_from(LEASES)), corpus=LEASES
    ),
    Parser("allow-list", read_signed_list, damaged(st.sampled_from(SIGNED_LISTS)), corpus=SIGNED_LISTS),
    Parser("signed lease", read_signed_lease, as_bytes(leases) | damaged(st.just(SIGNED_LEASE)), (), SIGNED),
    Parser(
        "request for rows of the matrix",
        read_reach_request,
        damaged(st.sampled_from(REACH_REQUESTS)),
        corpus=REACH_REQUESTS,
    ),
    Parser("bytes of a peer", read_count, damaged(st.sampled_from(COUNTS)), corpus=COUNTS),
    Parser("row of the matrix", read_reach_row, damaged(st.sampled_from(REACH_ROWS)), corpus=REACH_ROWS),
    Parser("claim", read_claim, as_bytes(claims), corpus=CLAIMS),
    Parser("key", read_key, key_names, (), SUBNET_KEYS),
    Parser("data of a backend", read_backend_data, vteps.map(json.dumps) | words | deep, (), VTEPS),
    Parser(
        "configs of a change", parse_change, damaged(st.sampled_from(CHANGES)) | as_bytes(deep), (), CHANGES
    ),
    Parser(
        "URL of an API server",
        lambda url: parse_server(url, "x"),
        damaged_text(st.sampled_from(SERVERS), ":/?#@[]%.0"),
        (UsageError,),
        SERVERS,
    ),
    Parser("etcd's record", read_record, damaged(etcd_records), (DecodeError,)),
    Parser(
        "last known leases",
        read_kept,
        damaged(kept.map(str.encode) | st.sampled_from(KEPT)) | as_bytes(kept | deep),
        corpus=KEPT,
    ),
]

# subnet.env, as read by pyflannel and by Docker's script.

lines = st.sampled_from(
    [
        "FLANNEL_NETWORK=10.3.0.0/16",
        "FLANNEL_SUBNET=10.3.1.1/24",
        "FLANNEL_SUBNET=10.3.1.1/24,10.3.2.1/24",
        "export FLANNEL_MTU=1450 # bytes",
        "FLANNEL_IPMASQ='true'",
        'A="b \\" $ c"',
        "FLANNEL_SUBNET=10.3.1.1/33",
        "A=~/x:~",
        "A=b;B=`c`",
        "if true; then",
        "# a comment",
        "A=$(b)\\",
        "export A",
        "A=b command",
    ]
)
ENV_FILES = [
    *golden("mk-docker-opts", "input"),
    *golden("subnet-env", "bytes"),
    "FLANNEL_SUBNET=10.3.1.1/33",
    "FLANNEL_SUBNET=10.3.1.1",
    "FLANNEL_SUBNET=10.3.1.1/24,10.3.2.1/24",
    "no assignment",
    "export A",
    "export 1=2",
    "A=~",
    "A=b\\\nc ;;",
    "A='b",
]
env_files = st.lists(lines, max_size=5).map("\n".join)
env_texts = damaged_text(env_files, "\"'\\$`;#=~\n\r \t&|<>()\x00é/,") | words


def read_env(text: str) -> None:
    for read in (parse_assignments, parse_subnet_env, previous_subnet):
        with suppress(WireError):
            read(text)


PARSERS = [*STORE, Parser("subnet.env", read_env, env_texts, (), ENV_FILES)]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_a_parser_raises_no_error_but_its_own(parser: Parser) -> None:
    check(parser)


@given(as_bytes(leases) | st.sampled_from(LEASES))
def test_the_attributes_of_a_lease_depend_on_its_signed_form_only(value: bytes) -> None:
    """No other spelling or order of a signed lease has another meaning."""
    try:
        attributes = parse_lease_attributes(value)
    except WireError:
        return

    form = signed_form(value)

    same = parse_lease_attributes(form)
    assert replace(attributes, signature=None) == same
    assert (attributes.counter, attributes.wireguard) == (same.counter, same.wireguard)
    assert signed_form(form) == form
