"""The findings of doctor about settings of the kernel: TTL, memory for fragments."""

from ipaddress import IPv4Address

import pytest
from msgspec.structs import replace

from pyflannel.model.status import BackendStatus, FastPathStatus
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import Observed
from testlab.healthy_host import HEALTHY, PEER, found

FAR = replace(HEALTHY, membership=replace(HEALTHY.membership, peers={PEER: IPv4Address("10.9.0.2")}))
"""A host whose peer is behind a router."""


@pytest.mark.parametrize(
    ("seen", "severity", "cause", "line", "fix"),
    [
        (
            replace(FAR, own_ttl=1),
            "error",
            "the first router drops packets of this host, because their TTL is 1",
            "net.ipv4.ip_default_ttl = 1",
            "sysctl -w net.ipv4.ip_default_ttl=64",
        ),
        (
            replace(FAR, own_ttl=64, tunnel_ttl=3),
            "error",
            "a path of 3 routers loses packets of this host, because their TTL is 3",
            "ip -details link show dev flannel.1: ttl 3",
            "ip link set dev flannel.1 type vxlan ttl auto",
        ),
        (
            replace(FAR, own_ttl=1, tunnel_ttl=64),
            "warning",
            "the first router drops packets of this host, because their TTL is 1",
            "net.ipv4.ip_default_ttl = 1",
            "sysctl -w net.ipv4.ip_default_ttl=64",
        ),
        (
            replace(FAR, own_ttl=31),
            "warning",
            "a path of 31 routers loses packets of this host, because their TTL is 31",
            "net.ipv4.ip_default_ttl = 31",
            "sysctl -w net.ipv4.ip_default_ttl=64",
        ),
        (
            replace(HEALTHY, own_ttl=1),
            "warning",
            "the first router drops packets of this host, because their TTL is 1",
            "net.ipv4.ip_default_ttl = 1",
            "sysctl -w net.ipv4.ip_default_ttl=64",
        ),
    ],
)
def test_a_small_ttl_of_the_host_or_of_its_tunnel_is_named(
    seen: Observed, severity: str, cause: str, line: str, fix: str
) -> None:
    """It is an error if tunnel packets expire on the way to a peer behind a router."""
    one = found(seen)

    assert (one.code, one.severity, one.cause) == ("ttl-low", severity, cause)
    assert one.evidence[0] == line
    assert one.fix == fix


@pytest.mark.parametrize(("ttl", "severity"), [(1, "error"), (2, "error"), (3, "warning")])
def test_a_ttl_that_expires_in_the_tunnel_of_udp_is_an_error(ttl: int, severity: str) -> None:
    """The tunnel drops all packets of the host itself, also to peers on the same link."""
    backend = BackendStatus(type="udp", link="flannel0", mtu=1472, port=8285)

    one = found(replace(HEALTHY, status=replace(HEALTHY.status, backend=backend), own_ttl=ttl))

    assert (one.code, one.severity) == ("ttl-low", severity)
    assert one.cause.startswith("the tunnel drops") is (severity == "error")


@pytest.mark.parametrize(
    ("limit", "severity"), [(0, "error"), (65535, "error"), (65536, "warning"), (262143, "warning")]
)
def test_little_memory_for_fragments_is_named(limit: int, severity: str) -> None:
    one = found(replace(HEALTHY, fragment_memory={"net.ipv4.ipfrag_high_thresh": limit}))

    assert (one.code, one.severity) == ("fragments-dropped", severity)
    assert one.evidence == (f"net.ipv4.ipfrag_high_thresh = {limit}",)
    assert one.fix == "sysctl -w net.ipv4.ipfrag_high_thresh=4194304"


def test_only_the_small_limits_for_fragments_are_named() -> None:
    limits = {"net.ipv6.ip6frag_high_thresh": 1 << 22, "net.netfilter.nf_conntrack_frag6_high_thresh": 0}

    assert findings(replace(HEALTHY, fragment_memory=dict.fromkeys(limits, 262144))) == ()
    one = found(replace(HEALTHY, fragment_memory=limits))
    assert one.fix == "sysctl -w net.netfilter.nf_conntrack_frag6_high_thresh=4194304"


@pytest.mark.parametrize("mode", ["safe", "flow"])
def test_the_programs_of_the_fast_path_do_not_use_the_ttl_of_the_host(mode: str) -> None:
    backend = BackendStatus(type="udp", link="flannel0", mtu=1472, port=8285)
    status = replace(FAR.status, backend=backend, fast_path=FastPathStatus(mode=mode))

    (one,) = [one for one in findings(replace(FAR, status=status, own_ttl=3)) if one.code == "ttl-low"]

    assert one.severity == "warning"


@pytest.mark.parametrize("own_ttl", [None, 32, 64, 255])
def test_a_usual_ttl_is_no_finding(own_ttl: int | None) -> None:
    assert findings(replace(FAR, own_ttl=own_ttl, tunnel_ttl=None)) == ()
