"""All flags of flanneld, including those of the original with the same names and defaults, and the text of
--help.

Source: the flags of flannel 0.6.2, 0.20.2 and 0.28.9 together.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping

from pyflannel.assembly.directories import DOCKER_SOCKET
from pyflannel.assembly.kubernetes import KUBERNETES_FLAGS
from pyflannel.assembly.store_flags import STORE_FLAGS
from pyflannel.model.lease import LEASE_TTL_S
from pyflannel.wire.go_flags import Flag

_LEASE_FLAGS = (
    Flag(
        name="subnet-lease-renew-margin",
        kind="integer",
        default="60",
        meaning="flanneld renews the lease this number of minutes before its end, 1 to 1439; limited to half"
        " of the lease time",
    ),
    Flag(
        name="subnet-lease-ttl",
        kind="integer",
        default=str(LEASE_TTL_S),
        meaning="lease time in seconds, 5 to 31622400",
    ),
    Flag(
        name="on-subnet-lost",
        default="keep",
        meaning="action if another host holds this host's subnet: keep (continue to use it), or "
        "renumber (lease another subnet)",
    ),
    Flag(name="node-id", meaning="identity of this host, instead of the identity kept in state-dir"),
    Flag(name="machine-id-file", default="/etc/machine-id", meaning="path of the machine-id"),
    Flag(name="networks", meaning="names of several networks that flanneld joins, separated by commas"),
    Flag(
        name="watch-networks",
        kind="boolean",
        meaning="join each network in the store, or each network in --networks, when its config appears; "
        "leave the network when its config is deleted",
    ),
)

_UNDERLAY_FLAGS = (
    Flag(
        name="iface",
        meaning="name or address of the interface to the other hosts; may be repeated. Without one of the"
        " three iface flags, flanneld uses the interface of the default route",
    ),
    Flag(
        name="iface-regex",
        meaning="regular expression that selects the interface by its addresses, and otherwise by its "
        "name; may be repeated",
    ),
    Flag(name="iface-can-reach", meaning="use the interface by which the kernel reaches this address"),
    Flag(
        name="public-ip",
        meaning="IPv4 address that the other hosts use, for a host behind NAT; default: the address of the"
        " interface",
    ),
    Flag(
        name="public-ipv6",
        meaning="IPv6 address that the other hosts use; default: an address of the interface that is neither"
        " temporary nor deprecated",
    ),
)

_BACKEND_FLAGS = (
    Flag(
        name="fast-path",
        default="auto",
        meaning="how the udp backend forwards packets: safe (eBPF programs in the kernel), flow (known flows"
        " also bypass the firewall for a second; also with vxlan), off (user space), or auto (FastPath of the"
        " config)",
    ),
    Flag(
        name="fast-path-gro",
        default="auto",
        meaning="coalesce received TCP segments: on, off, or auto (on if the underlay is a network card)",
    ),
)

_FIREWALL_FLAGS = (
    Flag(name="ip-masq", kind="boolean", meaning="masquerade packets that leave the network"),
    Flag(
        name="guard",
        default="strict",
        meaning="accept tunnel packets only from peers, and only with an inner source in the peer's subnet "
        "(strict); from peers, with any inner source (peer); or from any sender (off)",
    ),
    Flag(
        name="require-encryption",
        kind="boolean",
        meaning="refuse every backend that sends packets unencrypted, regardless of the network config",
    ),
    Flag(
        name="lease-signing",
        default="off",
        meaning="sign the lease of this host; refuse leases of other hosts without an acceptable "
        "signature (require), only report them (warn), or neither sign nor check (off)",
    ),
    Flag(
        name="lease-keys",
        meaning="file with the keys of the hosts whose leases are accepted; default: accept the first key "
        "of each owner",
    ),
    Flag(
        name="lease-operators",
        meaning="file with the keys of the operators who may sign the allow-list in the store, instead of"
        " lease-keys",
    ),
    Flag(
        name="ip-masq-fully-random-disable",
        kind="boolean",
        meaning="do not randomise the source ports of masqueraded packets",
    ),
    Flag(
        name="iptables-forward-rules",
        kind="boolean",
        default="true",
        meaning="accept forwarded packets from and to the network",
    ),
    Flag(
        name="open-ports",
        kind="boolean",
        meaning="accept tunnel packets of peers in the chain INPUT of iptables; requires the tunnel guard",
    ),
    Flag(
        name="iptables-resync",
        kind="integer",
        default="5",
        meaning="interval in seconds between checks of the filter rules, 1 or more; most changes are detected"
        " immediately",
    ),
    Flag(
        name="ip-blackhole-route",
        kind="boolean",
        meaning="drop packets to this host's subnet that no local bridge accepts",
    ),
)

_DOCKER_FLAGS = (
    Flag(
        name="docker-plugin",
        kind="boolean",
        meaning="serve the network plugin for Docker: docker network create -d flannel --ipam-driver flannel",
    ),
    Flag(
        name="docker-plugin-socket",
        default=str(DOCKER_SOCKET),
        meaning="socket of the network plugin; if it is in another directory, "
        "/etc/docker/plugins/flannel.spec must contain its path",
    ),
)

_OPERATION_FLAGS = (
    Flag(
        name="subnet-file",
        default="/run/flannel/subnet.env",
        meaning="file in which flanneld writes subnet, MTU and masquerading for other programs",
    ),
    Flag(
        name="subnet-dir",
        default="/run/flannel/networks",
        meaning="directory of the subnet files of several networks: NAME.env",
    ),
    Flag(
        name="run-dir",
        default="/run/flannel",
        meaning="directory of the control sockets and the lock file; for another etcd-prefix, a subdirectory",
    ),
    Flag(
        name="state-dir",
        default="/var/lib/flannel",
        meaning="directory of the host's identity and the last known leases; for another etcd-prefix, a "
        "subdirectory",
    ),
    Flag(
        name="http",
        meaning="address and port for the page, health checks and metrics, for example 127.0.0.1:8471;"
        " default: none",
    ),
    Flag(
        name="http-token-file",
        meaning="file with the token that the page requires; required for the page if http is not a loopback"
        " address",
    ),
    Flag(name="healthz-ip", default="0.0.0.0", meaning="IP address for health checks"),
    Flag(name="healthz-port", kind="integer", default="0", meaning="port for health checks; default: none"),
    Flag(name="log-format", default="klog", meaning="format of the log lines: klog (text) or json"),
    Flag(name="v", kind="integer", default="0", meaning="log level; 1 or more adds debug lines"),
    Flag(name="version", kind="boolean", meaning="print the version and exit", from_environment=False),
    Flag(name="help", kind="boolean", meaning="print this help and exit", from_environment=False),
    Flag(name="h", kind="boolean", meaning="print this help and exit", from_environment=False),
)

LATER_FLAGS = (
    Flag(name="listen", meaning="address on which to serve leases to other hosts"),
    Flag(name="remote", meaning="address of the server to get leases from"),
    Flag(name="remote-keyfile", meaning="private key for TLS of listen and remote"),
    Flag(name="remote-certfile", meaning="certificate for TLS of listen and remote"),
    Flag(name="remote-cafile", meaning="certificate authority for TLS of listen and remote"),
    Flag(name="vmodule", meaning="log level of single source files"),
    Flag(name="log_backtrace_at", meaning="source line at which a backtrace is logged"),
)
"""Known flags without an implementation. Only the values "", 0 and false are accepted."""

_IDLE_FLAGS = (
    Flag(name="logtostderr", kind="boolean", default="true", meaning="the log is always on stderr"),
    Flag(name="alsologtostderr", kind="boolean", meaning="the log is always on stderr"),
    Flag(name="stderrthreshold", meaning="the log is always on stderr"),
    Flag(name="log_dir", meaning="the log is always on stderr"),
)
"""Flags that are accepted with any value, because the log of the original is always on stderr too."""

_GROUPS: Mapping[str, tuple[Flag, ...]] = {
    "Store": STORE_FLAGS,
    "Kubernetes": KUBERNETES_FLAGS,
    "Leases": _LEASE_FLAGS,
    "Underlay": _UNDERLAY_FLAGS,
    "Backend": _BACKEND_FLAGS,
    "Firewall": _FIREWALL_FLAGS,
    "Docker": _DOCKER_FLAGS,
    "Operation": _OPERATION_FLAGS,
    "Accepted without effect": _IDLE_FLAGS,
    "Not supported yet": LATER_FLAGS,
}
"""The flags by subject, in the order of --help."""

FLAGS = tuple(flag for group in _GROUPS.values() for flag in group)

_WIDTH = 79
_INDENT = " " * 6

_INTRODUCTION = """\
flanneld joins this host to a flannel network: it leases a subnet in the store
and connects this subnet to the subnets of the other hosts. flanneld runs until
SIGTERM or SIGINT.

Write a flag as -NAME=VALUE, --NAME=VALUE or --NAME VALUE. Write a flag
without a type as --NAME or --NAME=false.
"""

_CONCLUSION = """\
Environment variables:
  A flag that is not on the command line is read from FLANNELD_ and its name
  in capitals, with _ for -: FLANNELD_ETCD_ENDPOINTS for --etcd-endpoints.
  An empty variable is ignored. --help and --version have no variable.

Exit codes:
  0  a signal stopped flanneld, or flanneld printed the requested text
  1  flanneld cannot run on this host
  2  a flag, a variable or an argument is invalid

Examples:
  flanneld --etcd-endpoints=http://10.0.0.1:2379,http://10.0.0.2:2379
  flanneld --etcd-endpoints=https://10.0.0.1:2379 --etcd-cafile=/etc/etcd/ca.pem
  flanneld --store=sqlite:///var/lib/flannel/leases.db --iface=eth1 --ip-masq
  FLANNELD_ETCD_PREFIX=/blue flanneld --http=127.0.0.1:8471
  NODE_NAME=n1 flanneld --kube-subnet-mgr --kubeconfig-file=/etc/flannel.conf
"""


def format_help(program: str) -> str:
    """Return the text of --help: all flags by subject, variables, exit codes and examples."""
    groups = [f"{title}:\n{_format_group(flags)}" for title, flags in _GROUPS.items()]
    return "\n".join([f"Usage: {program} [OPTION]...\n", _INTRODUCTION, *groups, _CONCLUSION])


def _format_group(flags: Iterable[Flag]) -> str:
    return "".join(f"{line}\n" for flag in flags for line in _format_flag(flag))


def _format_flag(flag: Flag) -> Iterator[str]:
    value = {"boolean": "", "integer": "=INTEGER"}.get(flag.kind, "=TEXT")
    yield f"  {'-' if len(flag.name) == 1 else '--'}{flag.name}{value}"
    default = f" (default {flag.default})" if flag.default not in ("", "false", "0") else ""
    yield from textwrap.wrap(
        flag.meaning + default,
        _WIDTH,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
