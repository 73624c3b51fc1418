"""Parsers of the kernel's files, of the host's programs and of state files under hostile input.

Each parser returns or raises its own error. Each parser gets a thousand inputs, and many more from
`scripts/test fuzz`. The kernel writes its files in a fixed form, but users choose names of links, mounts and
cgroups in them.
"""

import json
from contextlib import suppress
from ipaddress import IPv4Address

import pytest
from hypothesis import strategies as st

from doubles.hostile_inputs import Parser, as_bytes, check, damaged, damaged_text, deep
from pyflannel.errors import WireError
from pyflannel.kernel.bpf.pins import mounts_in
from pyflannel.kernel.host.lease_key import key_in
from pyflannel.kernel.host.machine import exact_release, identity_in
from pyflannel.kernel.host.packet_path import rules_in
from pyflannel.model.packet_filter import SavedRules
from pyflannel.plan.doctor.docker import docker_drops
from pyflannel.processes.containers import addresses_in, ipv6_addresses_in, ipv6_routes_in, routes_in
from pyflannel.processes.found import inodes_at
from pyflannel.processes.systemd import service_in
from pyflannel.wire.iptables import parse_save

SPECIAL = "\t \r\x0b\x1c\x85\u2028\\/:-é"
"""Characters that a user may write into a name. The kernel escapes a newline, or refuses it."""

MOUNTS = [
    b"24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    b"31 24 0:27 / /sys/fs/bpf rw shared:9 - bpf bpf rw,mode=700\n"
    b"77 24 0:50 / /home/a/b\\040c rw - fuse.x fs rw,user_id=1000\n",
    b"77 24 0:50 / /home/a\rb rw - fuse.x fs rw\n",
    b"- bpf\n",
]

ROUTE_HEAD = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
route_tables = st.builds(
    lambda names: (
        ROUTE_HEAD
        + "".join(f"{name}\t0001030A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0   \n" for name in names)
    ),
    st.lists(
        st.text(SPECIAL.replace("\t", "").replace(" ", "").replace("\r", "") + "eth0", max_size=15),
        max_size=4,
    ),
)
ROUTE_TABLES = [
    ROUTE_HEAD
    + "eth0\t00000000\t010A0A0A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    + "*\t0000030A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0\n",
    "",
]

CGROUPS = [
    b"0::/system.slice/flanneld.service\n",
    b"12:cpu,cpuacct:/\n1:name=systemd:/system.slice/a\\x2db.service\n0::/\n",
    b"0::/user.slice/a\r0::/ssh.service\r/b\n",
]
UDP_TABLES = [
    "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "  12: 0A0A0A0A:205D 00000000:0000 07 00000000:00000000 00:00000000 00000000  0  0 4711 2 0 0\n"
    "  13: 00000000:205D 00000000:0000 07 00000000:00000000 00:00000000 00000000  0  0 4712 2 0 0\n",
    "",
]
TRIES = [
    "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.3.1.1\n        /32 host LOCAL\n"
    "Local:\n     |-- 10.3.1.0\n        /24 link UNICAST\n"
]

RULES = [
    "0:\tfrom all lookup local\n99:\tfrom 10.3.0.0/16 iif a lookup 100\n32766:\tfrom all lookup main\n",
    "99:\tfrom all iif a\x1c lookup 7\n",
    "\n",
]
DOCKER_TABLE = """table ip docker-bridges {
	chain filter-forward-in__docker0 {
		ct state established,related counter accept
		counter packets 0 bytes 0 drop comment "UNPUBLISHED PORT DROP"
	}
	chain raw-PREROUTING {
		ip daddr 172.17.0.2 iifname != "docker0" counter drop comment "DROP DIRECT ACCESS"
		ip daddr 172.17.0.3 iifname != { "docker0", "eth1" } drop comment "DROP DIRECT ACCESS"
	}
}
"""
DOCKER_RULES = (
    """*raw
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
-A PREROUTING -d 172.17.0.2/32 -j ACCEPT
*filter
-A DOCKER ! -i br-1 -o br-1 -j DROP
-A DOCKER ! -i br-1 -o br-2 -j DROP
COMMIT
\0"""
    + DOCKER_TABLE
)
LONG_RULE = f"*raw\n-A PREROUTING {'-d 10.3.1.2/32 ! -i a ' * 9}-j ACCEPT\n"
LONG_LIST = "\0 iifname != { " + '"eth1", ' * 30 + '} drop comment "DROP DIRECT ACCESS"\n'
RELEASES = ["Ubuntu 5.4.0-150.167-generic 5.4.233", "#1 SMP Debian 4.19.118-2", "Ubuntu"]
IDENTITIES = [
    '{"Owner": "a", "Machine": "0123"}\n',
    '{"Owner": "", "Machine": ""}',
    "7",
    '{"Owner": "\\ud800"}',
]
LEASE_KEYS = [
    json.dumps({"Owner": "a", "Private": "0f" * 32, "Public": "f0" * 32}).encode(),
    b'{"Owner": "a", "Private": "0f", "Public": "0"}',
    b'{"Owner": "a", "Private": "0f", "Public": "0f"}',
    b'{"Owner": "a"}',
    b"7",
]


def read_docker_rules(text: str) -> None:
    """The output of iptables-save, a null character, and Docker's table of nft."""
    saved, _, table = text.partition("\0")
    chains: dict[str, dict[str, tuple[str, ...]]] = {}
    with suppress(WireError):
        for name, found in parse_save(saved).items():
            chains[name] = {chain: one.rules for chain, one in found.items()}
    docker_drops([SavedRules(program="iptables", family=4, chains=chains)], table)


_ADDRESS, _ZERO = "fd000005000000070000000000000002", "0" * 32
IPV6_ROUTES = [f"{_ADDRESS} 80 {_ZERO} 00 {_ZERO} 00000400 00000001 00000000 00000003     eth0\n"]
IPV6_ADDRESSES = [f"{_ADDRESS} 02 40 00 80     eth0\n"]


PARSERS = [
    Parser(
        "mounts in /proc",
        lambda data: list(mounts_in(data)),
        damaged(st.sampled_from(MOUNTS)),
        (),
        MOUNTS,
    ),
    Parser(
        "routes in /proc",
        lambda text: list(routes_in(text)),
        route_tables | damaged_text(route_tables, SPECIAL + "0F"),
        (),
        ROUTE_TABLES,
    ),
    Parser("unit in /proc", service_in, damaged(st.sampled_from(CGROUPS)), (), CGROUPS),
    Parser(
        "IPv6 routes in /proc",
        lambda text: list(ipv6_routes_in(text)),
        damaged_text(st.sampled_from(IPV6_ROUTES), SPECIAL + "0f"),
        (),
        IPV6_ROUTES,
    ),
    Parser(
        "IPv6 addresses in /proc",
        lambda text: list(ipv6_addresses_in(text)),
        damaged_text(st.sampled_from(IPV6_ADDRESSES), SPECIAL + "0f"),
        (),
        IPV6_ADDRESSES,
    ),
    Parser(
        "UDP sockets in /proc",  # this file contains no text that users choose
        lambda text: list(inodes_at(text, IPv4Address("10.10.10.10"), 0x205D)),
        damaged_text(st.sampled_from(UDP_TABLES), "0F: \n"),
        (ValueError, IndexError),
        UDP_TABLES,
    ),
    Parser(
        "addresses in /proc",  # this file contains no text that users choose
        lambda text: list(addresses_in(text)),
        damaged_text(st.sampled_from(TRIES), "0./ \n"),
        (ValueError,),
        TRIES,
    ),
    Parser("rules of ip", rules_in, damaged_text(st.sampled_from(RULES), SPECIAL + "\n"), (), RULES),
    Parser(
        "rules of Docker",
        read_docker_rules,
        damaged_text(st.just(DOCKER_RULES), SPECIAL + '"{}\n'),
        (),
        [DOCKER_RULES, DOCKER_TABLE, LONG_RULE, LONG_LIST],
    ),
    Parser(
        "release of the kernel",
        lambda text: exact_release("6.1.0-18-amd64", text, text),
        damaged_text(st.sampled_from(RELEASES), SPECIAL + "0."),
        (),
        RELEASES,
    ),
    Parser(
        "identity", identity_in, damaged_text(st.sampled_from(IDENTITIES), '"{}:\\') | deep, (), IDENTITIES
    ),
    Parser("key of a lease", key_in, damaged(st.sampled_from(LEASE_KEYS)) | as_bytes(deep), (), LEASE_KEYS),
]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_a_parser_raises_no_error_but_its_own(parser: Parser) -> None:
    check(parser)
