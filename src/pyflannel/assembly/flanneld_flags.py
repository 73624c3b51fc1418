"""Every flag of flanneld: those of the original under their names and defaults, and ours.

Source: flannel 0.6.2, 0.20.2 and 0.28.9, the union of their flags.
"""

from collections.abc import Mapping

from pyflannel.assembly.store_flags import STORE_FLAGS
from pyflannel.model.lease import LEASE_TTL_S
from pyflannel.wire.go_flags import Flag, Value

WORKING_FLAGS = (
    *STORE_FLAGS,
    Flag(name="iface", meaning="name or address of the interface to other hosts; may be repeated"),
    Flag(
        name="iface-regex",
        meaning="regular expression on the addresses, then the names of interfaces; may be repeated",
    ),
    Flag(name="iface-can-reach", meaning="take the interface by which the kernel reaches this address"),
    Flag(
        name="public-ip", meaning="the IPv4 address that other hosts use; that of the interface if not given"
    ),
    Flag(
        name="subnet-file",
        default="/run/flannel/subnet.env",
        meaning="where subnet, MTU and masquerading are written for other programs",
    ),
    Flag(name="subnet-dir", default="/run/flannel/networks", meaning="the same for each of several networks"),
    Flag(
        name="subnet-lease-renew-margin",
        kind="integer",
        default="60",
        meaning="minutes before its end at which the lease is renewed, 1 to 1439",
    ),
    Flag(
        name="subnet-lease-ttl",
        kind="integer",
        default=str(LEASE_TTL_S),
        meaning="seconds that the lease lasts unless it is renewed, from 5",
    ),
    Flag(name="ip-masq", kind="boolean", meaning="masquerade what leaves the network"),
    Flag(
        name="ip-masq-fully-random-disable",
        kind="boolean",
        meaning="do not draw the ports of masqueraded packets",
    ),
    Flag(
        name="iptables-forward-rules",
        kind="boolean",
        default="true",
        meaning="accept forwarded packets from and to the network",
    ),
    Flag(
        name="iptables-resync",
        kind="integer",
        default="5",
        meaning="seconds between two looks at the filter rules; most changes are noticed at once",
    ),
    Flag(
        name="ip-blackhole-route",
        kind="boolean",
        meaning="drop what goes to our own subnet and no bridge of this host takes",
    ),
    Flag(name="v", kind="integer", default="0", meaning="verbosity of the log; debug lines from 1"),
    Flag(name="version", kind="boolean", meaning="print the version and exit", from_environment=False),
    Flag(name="help", kind="boolean", meaning="print this text and exit", from_environment=False),
    Flag(name="h", kind="boolean", meaning="print this text and exit", from_environment=False),
    Flag(name="run-dir", default="/run/flannel", meaning="directory of the sockets and the lock"),
    Flag(
        name="state-dir",
        default="/var/lib/flannel",
        meaning="directory of the host's identity and the last known leases",
    ),
    Flag(name="node-id", meaning="identity of the host, instead of the one kept in state-dir"),
    Flag(name="machine-id-file", default="/etc/machine-id", meaning="where the machine-id is read"),
    Flag(name="log-format", default="klog", meaning="form of the log lines: klog or json"),
    Flag(name="healthz-ip", default="0.0.0.0", meaning="address of the health endpoint"),
    Flag(name="healthz-port", kind="integer", default="0", meaning="port of the health endpoint; 0 for none"),
    Flag(
        name="http",
        meaning="address and port, as in 127.0.0.1:8471, of health and metrics; none if not given",
    ),
    Flag(name="networks", meaning="names of several networks, separated by commas"),
    Flag(name="watch-networks", kind="boolean", meaning="follow networks as they come and go"),
    Flag(
        name="fast-path",
        default="auto",
        meaning="how the udp backend moves packets: safe, by programs in the kernel; off, through user space;"
        " auto, as the network config says",
    ),
    Flag(
        name="fast-path-gro",
        default="auto",
        meaning="whether the programs have TCP joined that arrives in segments: on, off, or auto, where the"
        " underlay is a network card",
    ),
    Flag(
        name="on-subnet-lost",
        default="keep",
        meaning="when another host took our subnet: keep running on it, or renumber",
    ),
)

LATER_FLAGS = (
    Flag(name="public-ipv6", meaning="the IPv6 address that other hosts use"),
    Flag(name="listen", meaning="serve leases to other hosts on this address"),
    Flag(name="remote", meaning="take leases from the server at this address"),
    Flag(name="remote-keyfile", meaning="TLS of listen and remote: private key"),
    Flag(name="remote-certfile", meaning="TLS of listen and remote: certificate"),
    Flag(name="remote-cafile", meaning="TLS of listen and remote: certificate authority"),
    Flag(name="kube-subnet-mgr", kind="boolean", meaning="leases in Kubernetes instead of etcd"),
    Flag(name="kube-api-url", meaning="URL of the Kubernetes API"),
    Flag(name="kubeconfig-file", meaning="file that says how to reach the Kubernetes API"),
    Flag(
        name="kube-annotation-prefix",
        default="flannel.alpha.coreos.com",
        meaning="how the annotations of a Kubernetes node begin",
    ),
    Flag(
        name="net-config-path",
        default="/etc/kube-flannel/net-conf.json",
        meaning="file of the network config in Kubernetes",
    ),
    Flag(
        name="set-node-network-unavailable",
        kind="boolean",
        default="true",
        meaning="keep the Kubernetes node's network condition",
    ),
    Flag(name="vmodule", meaning="verbosity by source file"),
    Flag(name="log_backtrace_at", meaning="source line whose log line carries a backtrace"),
)
"""Known, but what they ask for is not there yet: only a value of IDLE_VALUES is taken."""

IDLE_VALUES: Mapping[str, tuple[Value, ...]] = {
    "kube-annotation-prefix": ("flannel.alpha.coreos.com", ""),
    "net-config-path": ("/etc/kube-flannel/net-conf.json", ""),
    "set-node-network-unavailable": (True, False),
}
"""Values that ask for nothing, where these are not the empty text, 0 or false."""

IDLE_FLAGS = (
    Flag(name="logtostderr", kind="boolean", default="true", meaning="no effect: the log is on stderr"),
    Flag(name="alsologtostderr", kind="boolean", meaning="no effect: the log is on stderr"),
    Flag(name="stderrthreshold", meaning="no effect: the log is on stderr"),
    Flag(name="log_dir", meaning="no effect: the log is on stderr"),
)
"""Taken with any value, as the original's log is always on stderr, too."""

FLAGS = (*WORKING_FLAGS, *LATER_FLAGS, *IDLE_FLAGS)
