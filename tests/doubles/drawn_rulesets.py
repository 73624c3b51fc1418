"""Rulesets that look like the rulesets of firewalls, Docker and Kubernetes, and packets for these rulesets.

The rulesets are inputs of the parsers of iptables-save and of nft's JSON. The rules have the forms that the
programs print, with values of a few networks, so that the packets match the rules.
"""

import json
from ipaddress import IPv4Address
from typing import Any

from hypothesis import strategies as st

from pyflannel.model.netfilter import UDP, Hook, Packet
from pyflannel.plan.netfilter import IN, OUT, THROUGH

_NEAR, _FAR, _HOST, _PEER = (IPv4Address(text) for text in ("10.3.1.2", "10.3.2.2", "192.0.2.1", "192.0.2.2"))
_TCP, _ICMP = 6, 1
PACKETS: list[tuple[Packet, tuple[Hook, ...]]] = [
    (
        Packet(
            source=_NEAR,
            destination=_FAR,
            protocol=_TCP,
            source_port=40000,
            destination_port=80,
            iif="docker0",
            oif="flannel.1",
            in_port="veth1",
        ),
        THROUGH,
    ),
    (
        Packet(
            source=_FAR,
            destination=_NEAR,
            protocol=_TCP,
            source_port=80,
            destination_port=40000,
            length=60,
            iif="flannel.1",
            oif="docker0",
            out_port="veth1",
            state="established",
        ),
        THROUGH,
    ),
    (
        Packet(
            source=_PEER,
            destination=_HOST,
            protocol=UDP,
            source_port=8285,
            destination_port=8472,
            iif="eth0",
        ),
        IN,
    ),
    (
        Packet(
            source=_HOST,
            destination=_PEER,
            protocol=UDP,
            source_port=8472,
            destination_port=8472,
            oif="eth0",
            mark=None,
        ),
        OUT,
    ),
    (
        Packet(
            source=_NEAR,
            destination=_NEAR + 1,
            protocol=_ICMP,
            icmp_type=8,
            iif="docker0",
            oif="docker0",
            in_port="veth1",
            out_port="veth2",
        ),
        (),
    ),
]

# Rulesets in the form of iptables-save.

_TABLES = {
    "raw": ["PREROUTING", "OUTPUT"],
    "mangle": ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    "nat": ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
    "filter": ["INPUT", "FORWARD", "OUTPUT"],
    "security": ["INPUT", "FORWARD", "OUTPUT"],
}
_CONDITIONS = [
    "-s 10.3.0.0/16",
    "! -s 10.3.1.0/24",
    "-d 192.0.2.1/32",
    "-i docker0",
    "! -i docker0",
    "-o flannel+",
    "-p udp -m udp --dport 8472",
    "-p tcp -m tcp --dport 80:443",
    "-p tcp -m tcp --sport 40000",
    "-p udp -m multiport --dports 53,8472,8000:9000",
    "-p udp -m multiport --sports 53,8285",
    "-p all",
    "-p 0",
    "-p icmp -m icmp --icmp-type 8",
    "-p icmp -m icmp --icmp-type any",
    "-p icmp -m icmp --icmp-type 255",
    "-p nonsense",
    "-m conntrack --ctstate RELATED,ESTABLISHED",
    "-m state --state NEW",
    "-m conntrack --ctstatus DNAT",
    "-m addrtype --dst-type LOCAL",
    "-m addrtype --src-type LOCAL",
    "-m mark --mark 0x4000/0x4000",
    "-m mark ! --mark 0x1",
    "-m iprange --src-range 10.3.1.1-10.3.1.9",
    "-m iprange --dst-range 192.0.2.1",
    '-m comment --comment "kubernetes \\"service\\" portals"',
    "-m comment --comment cali:abc",
    "-m set --match-set KUBE-CLUSTER-IP src,dst",
    "-m physdev --physdev-is-bridged",
    "-m limit --limit 3/min --limit-burst 10",
    "-m statistic --mode random --probability 0.50000000000",
    "-m mark ! --mark",
]
_TARGETS = [
    "-j ACCEPT",
    "-j DROP",
    "-j REJECT --reject-with icmp-port-unreachable",
    "-j RETURN",
    "-j NOTRACK",
    "-j CT --notrack",
    "-j CT --helper ftp",
    "-j MARK --set-xmark 0x4000/0x4000",
    "-j MARK --set-xmark 0x4000/x",
    "-j MARK --set-xmark 0x1",
    "-j MARK --or-mark 0x1",
    "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff",
    "-j CONNMARK --save-mark",
    '-j LOG --log-prefix "[UFW BLOCK] "',
    "-j TCPMSS --clamp-mss-to-pmtu",
    "-j MASQUERADE --random-fully",
    "-j SNAT --to-source 192.0.2.1",
    "-j DNAT --to-destination 10.3.1.2:80",
    "-j NFQUEUE --queue-num 1",
    "-j sub",
    "-g sub",
    "-j sub2",
    "-j",
    "",
]


def _saved_table(name: str) -> st.SearchStrategy[str]:
    chains = _TABLES[name]
    rules = st.builds(
        lambda chain, conditions, target: f"-A {chain} {' '.join([*conditions, target])}".rstrip(),
        st.sampled_from([*chains, *chains, "sub", "sub2"]),
        st.lists(st.sampled_from(_CONDITIONS), max_size=3),
        st.sampled_from(_TARGETS),
    )
    policies = st.lists(st.sampled_from(["ACCEPT", "DROP"]), min_size=len(chains), max_size=len(chains))
    return st.builds(
        lambda given, lines: "\n".join(
            [
                f"*{name}",
                *(f":{chain} {policy} [0:0]" for chain, policy in zip(chains, given, strict=True)),
                ":sub - [0:0]",
                ":sub2 - [0:0]",
                *lines,
                "COMMIT",
            ]
        ),
        policies,
        st.lists(rules, max_size=8),
    )


saved_rulesets = st.lists(st.sampled_from(list(_TABLES)), min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.tuples(*map(_saved_table, names)).map("\n".join)
)
SAVED_RULESETS = [
    "\n".join(
        [
            f"*{table}",
            *(f":{chain} ACCEPT" for chain in chains),
            ":sub -",
            ":sub2 -",
            *(f"-A {chain} {condition} -j sub" for chain in chains for condition in _CONDITIONS),
            *(f"-A {chain} -s 10.3.1.2/32 {target}" for chain in ("sub", *chains) for target in _TARGETS),
            "COMMIT",
        ]
    )
    for table, chains in _TABLES.items()
]
"""All conditions and all targets, in each table."""

# Rulesets in the form of nft's JSON.


def _meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def _payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def _prefix(address: str, length: int) -> dict[str, Any]:
    return {"prefix": {"addr": address, "len": length}}


_SADDR, _DADDR = _payload("ip", "saddr"), _payload("ip", "daddr")
_DPORT, _STATE = _payload("udp", "dport"), {"ct": {"key": "state"}}
_ADDRESSES = [
    "10.3.1.2",
    _prefix("10.3.0.0", 16),
    {"range": ["10.3.1.1", "10.3.1.9"]},
    {"set": ["10.3.1.2", _prefix("192.0.2.0", 24)]},
    {"set": [{"elem": {"val": "10.3.1.2", "timeout": 60}}]},
    "@known",
    "@none",
    True,
]
_PORTS = [80, 8472, {"range": [8000, 9000]}, {"set": [53, 8472]}, {"set": 8472}, "ssh", "@known"]
_NAMES = ["docker0", "eth0", "flannel*", "veth1", {"set": ["docker0", "eth0"]}]
_NUMBERS = [0, 1, 0x4000, {"set": [1, 2]}]
_FIELDS: list[tuple[Any, list[Any]]] = [
    *((left, _ADDRESSES) for left in (_SADDR, _DADDR, _payload("ip6", "saddr"), _payload("arp", "saddr ip"))),
    (_payload("ip", "protocol"), ["tcp", "udp", "icmp", 6, {"set": ["tcp", "udp"]}, "nonsense"]),
    (_payload("ip", "length"), [60, {"range": [0, 100]}]),
    (_payload("ip", "ttl"), [1]),
    *(
        (_payload(protocol, field), _PORTS)
        for protocol in ("tcp", "udp", "th", "sctp")
        for field in ("sport", "dport", "flags")
    ),
    (_payload("icmp", "type"), ["echo-request", 8, {"set": ["echo-reply", "time-exceeded"]}, "nonsense"]),
    (_payload("icmp", "code"), [0]),
    ({"payload": {"base": "nh", "offset": 96, "len": 32}}, [0x0A030102, 7]),
    ({"payload": {"base": "th", "offset": 32, "len": 16}}, [8]),
    (_payload("icmpv6", "type"), ["nd-neighbor-solicit"]),
    (_payload("ether", "type"), ["ip", "arp", 2048, {"set": ["arp", "ip"]}]),
    (_payload("ether", "saddr"), ["02:42:0a:64:0f:02"]),
    (_payload("vlan", "id"), [5]),
    *((_meta(key), _NAMES) for key in ("iifname", "oifname", "iif", "oif", "ibrname", "obrname")),
    (_meta("l4proto"), ["tcp", "udp", {"set": ["tcp", "icmp"]}, 17]),
    (_meta("mark"), _NUMBERS),
    (_meta("length"), [60, {"range": [0, 100]}]),
    *((_meta(key), ["ipv4", "ipv6", "ip"]) for key in ("nfproto", "protocol")),
    (_meta("skuid"), [1000]),
    ({"&": [_meta("mark"), 0x4000]}, _NUMBERS),
    (_STATE, ["new", "established", ["established", "related"], {"set": ["new", "untracked"]}]),
    ({"ct": {"key": "status"}}, ["dnat", "none"]),
    ({"ct": {"key": "mark"}}, [1]),
    *(
        ({"fib": {"result": "type", "flags": flags}}, ["local", "unicast"])
        for flags in ("daddr", ["daddr"], "saddr", ["saddr"], ["saddr", "iif"])
    ),
    (
        {"concat": [_SADDR, _DPORT]},
        [{"set": [{"concat": ["10.3.1.2", 80]}, {"concat": ["192.0.2.2"]}]}, {"set": []}],
    ),
    ("unknown", [7]),
]
_MATCHES = [
    *({"match": {"op": "==", "left": left, "right": right}} for left, rights in _FIELDS for right in rights),
    *(
        {"match": {"op": operator, "left": left, "right": right}}
        for left, right in ((_DPORT, 8472), (_DPORT, {"set": [53, 80]}), (_SADDR, "@known"), (_STATE, "new"))
        for operator in ("!=", "in", "<", ">", "<=", ">=", "~")
    ),
]
_VERDICTS: list[dict[str, Any]] = [
    {"accept": None},
    {"drop": None},
    {"reject": {"type": "icmpx", "expr": "admin-prohibited"}},
    {"return": None},
    {"continue": None},
    {"notrack": None},
    {"jump": {"target": "sub"}},
    {"goto": {"target": "sub"}},
    {"masquerade": None},
    {"snat": {"addr": "192.0.2.1"}},
    {"dnat": {"addr": "10.3.1.2", "port": 80}},
    {"queue": {"num": 1}},
    {"mangle": {"key": _meta("mark"), "value": 1}},
    {"mangle": {"key": _meta("mark"), "value": {"ct": {"key": "mark"}}}},
    {"mangle": {"key": {"ct": {"key": "mark"}}, "value": 1}},
    *({"xt": {"type": "target", "name": name}} for name in ("REJECT", "LOG", "TPROXY")),
    {"vmap": {"key": _DPORT, "data": {"set": [[53, {"accept": None}], [8472, {"drop": None}]]}}},
    {"vmap": {"key": _STATE, "data": {"set": [["established", {"jump": {"target": "sub"}}]]}}},
    {
        "vmap": {
            "key": {"concat": [_SADDR, _DPORT]},
            "data": {"set": [[{"elem": {"val": {"concat": ["10.3.1.2", 80]}}}, {"drop": None}]]},
        }
    },
    {"vmap": {"key": _meta("iifname"), "data": {"set": [["*", {"foo": None}], ["eth0", {"accept": None}]]}}},
    {"vmap": {"key": _DPORT, "data": "@verdicts"}},
]
_OTHERS: list[dict[str, Any]] = [
    {"counter": {"packets": 1, "bytes": 2}},
    {"log": {"prefix": "dropped"}},
    {"limit": {"rate": 5, "per": "second"}},
    {"xt": {"type": "match", "name": "comment"}},
    {"xt": {"type": "match", "name": "set"}},
    {"flow": {"op": "add", "flowtable": "@f"}},
]
_SETS: list[dict[str, Any]] = [
    {"set": {"name": "known", "elem": ["10.3.1.2", _prefix("192.0.2.0", 24)]}},
    {"set": {"name": "empty"}},
    {"map": {"name": "verdicts", "elem": [[8472, {"drop": None}], [80, {"jump": {"target": "sub"}}]]}},
]
_HOOKS = ["ingress", "prerouting", "input", "forward", "output", "postrouting", "egress"]
_CHAINS = st.builds(
    lambda hook, kind, priority, policy, device: {
        "name": "base",
        "type": kind,
        "hook": hook,
        "prio": priority,
        **({"policy": policy} if policy else {}),
        **({"dev": device} if device else {}),
    },
    st.sampled_from(_HOOKS),
    st.sampled_from(["filter", "filter", "nat", "route"]),
    st.sampled_from([-300, -150, 0, 100]),
    st.sampled_from([None, "accept", "drop"]),
    st.sampled_from([None, None, "eth0", "veth1", ["eth0", "docker0"]]),
)
_EXPRESSIONS = st.builds(
    lambda matches, others, verdicts: [*matches, *others, *verdicts],
    st.lists(st.sampled_from(_MATCHES), max_size=3),
    st.lists(st.sampled_from(_OTHERS), max_size=2),
    st.lists(st.sampled_from(_VERDICTS), max_size=2),
)


def document(family: str, chain: dict[str, Any], rules: list[list[Any]], sub: list[list[Any]]) -> str:
    """Return the document of one table with a base chain and another chain."""
    place = {"family": family, "table": "fw"}
    numbered = [*(("base", one) for one in rules), *(("sub", one) for one in sub)]
    entries = [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": family, "name": "fw", "handle": 1}},
        *({kind: {**place, **value}} for one in _SETS for kind, value in one.items()),
        {"chain": {**place, **chain}},
        {"chain": {**place, "name": "sub", "handle": 2}},
        *(
            {"rule": {**place, "chain": name, "handle": handle, "expr": expression}}
            for handle, (name, expression) in enumerate(numbered, 3)
        ),
    ]
    return json.dumps({"nftables": entries})


nft_rulesets = st.builds(
    document,
    st.sampled_from(["ip", "inet", "netdev", "bridge"]),
    _CHAINS,
    st.lists(_EXPRESSIONS, max_size=4),
    st.lists(_EXPRESSIONS, max_size=2),
)


def own_match(left: Any, right: Any, operator: str = "==") -> dict[str, Any]:
    """Return a condition in the form in which pyflannel writes it."""
    return {"match": {"op": operator, "left": left, "right": right}}


_NETWORK, _OTHER = _prefix("10.3.0.0", 16), _prefix("10.4.0.0", 16)
_HERE = own_match({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
_PORT = own_match(_payload("tcp", "dport"), 8080)
_TRANSLATED = own_match({"ct": {"key": "status"}}, "dnat", "in")
_OWN_RULES: list[list[Any]] = [
    *(
        [*before, here, _PORT, {"dnat": {"addr": address, "port": 80}}]
        for before in ([], [own_match(_DADDR, "192.0.2.1")], [own_match(_DADDR, _NETWORK)])
        for here in (_HERE, _PORT)
        for address in ("10.3.1.2", "nothing")
    ),
    [_HERE, {"dnat": {"addr": "10.3.1.2", "port": 80}}],
    *(
        [own_match(_SADDR, source), own_match(_DADDR, _NETWORK), _TRANSLATED, {"masquerade": None}]
        for source in (_NETWORK, "@known")
    ),
    *(
        [first, own_match(field, to), {"drop": None}]
        for first in (
            own_match(_meta("iifname"), "lo", "!="),
            own_match(_meta("iifname"), "docker0"),
            own_match(_SADDR, _NETWORK),
            own_match(_SADDR, "@known"),
        )
        for field in (_SADDR, _DADDR)
        for to in (_prefix("127.0.0.0", 8), _OTHER, "10.3.1.2")
    ),
]
_MARKING = {"mangle": {"key": _meta("mark"), "value": {"meta": {"key": "mark"}}}}
"""Verdicts after which the next rule is also evaluated for the packet."""

_TOGETHER = 8
"""Number of rules in a document, which must not be longer than an input of the fuzzer."""


def divided(rules: list[list[Any]]) -> list[list[list[Any]]]:
    """Return the rules in groups."""
    return [rules[at : at + _TOGETHER] for at in range(0, len(rules), _TOGETHER)]


NFT_RULESETS = [
    *(
        document(
            family, {"name": "base", "type": "filter", "hook": hook, "prio": 0, "policy": "drop"}, rules, []
        )
        for family, hook in (("inet", "input"), ("bridge", "output"))
        for rules in divided([*([match, _MARKING] for match in _MATCHES), *([one] for one in _OTHERS)])
    ),
    *(
        document(
            "ip",
            {"name": "base", "type": kind, "hook": hook, "prio": -300, "policy": "accept", "dev": "eth0"},
            [[verdict]],
            [[{"drop": None}]],
        )
        for hook, kind in (("input", "filter"), ("postrouting", "nat"))
        for verdict in _VERDICTS
    ),
    *(
        document(
            "ip",
            {"name": "base", "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"},
            rules,
            [],
        )
        for rules in divided(_OWN_RULES)
    ),
]
"""All conditions, each verdict, and the rules of pyflannel's own tables."""
