"""The findings of doctor about sysctls and programs inside containers."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Interface, InterfaceAddress, Interfaces, IpsecPolicy, TakingFilter
from pyflannel.model.route import Route
from pyflannel.model.status import Membership
from pyflannel.plan.doctor import containers, inside
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import (
    ContainerLink,
    ContainerNamespace,
    ContainerRoute,
    NamespaceSettings,
    Observed,
)
from testlab.healthy_host import HEALTHY, LINKS, OWN, iptables

ADDRESS = IPv4Address("10.100.15.2")

USUAL = range(32768, 61000)

LINK = ContainerLink(name="eth0", mtu=1450, peer=11, addresses=frozenset({ADDRESS}), hop_limit=64)

CONTAINER = ContainerNamespace(
    pid=7,
    process="web, pid 7",
    addresses=frozenset({ADDRESS}),
    links=(LINK,),
    routes=(ContainerRoute(destination=IPv4Network("0.0.0.0/0"), gateway=IPv4Address("10.100.15.1")),),
    settings=NamespaceSettings(ports=USUAL, reserved=(range(8080, 8081), range(40000, 50000))),
)


def with_container(link: ContainerLink = LINK, **changes: object) -> Observed:
    """Return a healthy host with one container at docker0."""
    held = (InterfaceAddress(address=IPv4Interface("10.100.15.1/24")),)
    docker0 = Interface(name="docker0", index=3, mtu=1450, kind="bridge", addresses=held)
    veth = Interface(name="veth1", index=11, mtu=1450, kind="veth")
    return replace(
        HEALTHY,
        interfaces=Interfaces(interfaces=(*LINKS[:2], docker0, veth)),
        ports={"docker0": {"veth1": 1450}},
        items=(*HEALTHY.items, Route(destination=OWN, link="docker0", protocol=2)),
        containers=(replace(CONTAINER, links=(link,), **changes),),
    )


def in_ipv6(seen: Observed) -> Observed:
    """Return the view of the other family of a network with both families."""
    membership = Membership(
        network=IPv6Network("fd00::/48"), subnet=IPv6Network("fd00:0:0:1::/64"), underlay="eth0", peers={}
    )
    return replace(seen, family=6, membership=membership, is_first=False)


def found(seen: Observed) -> list[tuple[str, str, tuple[str, ...], str]]:
    return [
        (one.code, one.severity, one.evidence, one.fix)
        for check in (*inside.CHECKS, *containers.CHECKS)
        for one in check(seen)
    ]


def test_a_healthy_container_is_no_finding() -> None:
    assert findings(with_container()) == ()
    assert found(in_ipv6(with_container())) == []


@pytest.mark.parametrize(
    ("ports", "reserved", "shown", "command"),
    [
        (USUAL, (range(1, 65536),), "1-65535", "net.ipv4.ip_local_reserved_ports="),
        (
            USUAL,
            (range(39000, 65536), range(32000, 40000), range(80, 81)),
            "39000-65535,32000-39999,80",
            "net.ipv4.ip_local_reserved_ports=",
        ),
        (range(900, 902), (range(900, 902),), "900-901", "'net.ipv4.ip_local_port_range=32768 60999'"),
    ],
)
def test_a_container_whose_local_ports_are_all_reserved_is_named(
    ports: range, reserved: tuple[range, ...], shown: str, command: str
) -> None:
    seen = with_container(settings=NamespaceSettings(ports=ports, reserved=reserved))

    ((code, severity, (line,), fix),) = found(seen)

    assert (code, severity) == ("container-setting", "error")
    assert line == (
        f"web, pid 7: net.ipv4.ip_local_port_range = {ports.start} {ports.stop - 1},"
        f" net.ipv4.ip_local_reserved_ports = {shown}"
    )
    assert fix == f"nsenter --net --target 7 sysctl -w {command}"
    assert found(in_ipv6(seen)) == []


@pytest.mark.parametrize(
    "reserved", [(range(1, 32768),), (range(32769, 65536),), (range(1, 40000), range(40001, 65536))]
)
def test_a_container_with_a_free_local_port_is_no_finding(reserved: tuple[range, ...]) -> None:
    assert found(with_container(settings=NamespaceSettings(ports=USUAL, reserved=reserved))) == []


@pytest.mark.parametrize(
    ("ttl", "severities"), [(1, ["error"]), (2, ["error"]), (3, ["warning"]), (7, ["warning"]), (8, [])]
)
def test_a_small_ttl_in_a_container_is_named_in_its_family(ttl: int, severities: list[str]) -> None:
    """Two hosts forward a packet to a container of another host."""
    ipv4 = with_container(settings=NamespaceSettings(ports=USUAL, ttl=ttl))
    ipv6 = with_container(replace(LINK, hop_limit=ttl))

    assert [severity for _, severity, _, _ in found(ipv4)] == severities
    assert [severity for _, severity, _, _ in found(in_ipv6(ipv6))] == severities
    assert found(in_ipv6(ipv4)) == found(ipv6) == []
    for _, _, _, fix in found(ipv4):
        assert fix == "nsenter --net --target 7 sysctl -w net.ipv4.ip_default_ttl=64"
    for _, _, _, fix in found(in_ipv6(ipv6)):
        assert fix == "nsenter --net --target 7 sysctl -w net/ipv6/conf/eth0/hop_limit=64"


def test_a_container_without_ipv6_at_a_bridge_with_ipv6_is_named() -> None:
    """The missing address is a consequence. Below an MTU of 1280, the kernel itself turns IPv6 off."""
    seen = with_container(replace(LINK, has_ipv6=False, addresses=frozenset()))

    ((code, severity, evidence, fix),) = found(in_ipv6(seen))

    assert (code, severity) == ("container-setting", "warning")
    assert evidence == ("web, pid 7: net/ipv6/conf/eth0/disable_ipv6 = 1",)
    assert fix.startswith("nsenter --net --target 7 sysctl -w net/ipv6/conf/eth0/disable_ipv6=0  # ")
    small = with_container(replace(LINK, has_ipv6=False, mtu=1279))
    assert found(in_ipv6(small)) == []
    assert found(replace(in_ipv6(seen), ports={})) == []


@pytest.mark.parametrize(
    ("frozen", "container_id", "command"),
    [
        ("/sys/fs/cgroup/freezer/docker/1/freezer.state", "0b20cc2d451d", "docker unpause 0b20cc2d451d"),
        (
            "/sys/fs/cgroup/m.slice/libpod-1.scope/cgroup.events",
            "0b20cc2d451d",
            "podman unpause 0b20cc2d451d",
        ),
        (
            "/sys/fs/cgroup/freezer/a b/freezer.state",
            "",
            "echo THAWED > '/sys/fs/cgroup/freezer/a b/freezer.state'",
        ),
        ("/sys/fs/cgroup/web/cgroup.events", "", "echo 0 > /sys/fs/cgroup/web/cgroup.freeze"),
    ],
)
def test_a_paused_container_is_named(frozen: str, container_id: str, command: str) -> None:
    ((code, severity, evidence, fix),) = found(with_container(frozen=frozen, container_id=container_id))

    assert (code, severity) == ("container-paused", "warning")
    assert evidence == (f"web, pid 7: {frozen} says that the control group is frozen",)
    assert fix == command
    assert found(with_container(frozen=frozen, addresses=frozenset())) == []


EVERY = IPv4Network("0.0.0.0/0")
BLOCK = IpsecPolicy(direction="out", is_block=True, source=EVERY, destination=EVERY, priority=0, protocol=6)


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"policies": (BLOCK,)}, "ip xfrm policy delete src 0.0.0.0/0 dst 0.0.0.0/0 proto tcp dir out"),
        ({"ruleset": iptables(":OUTPUT ACCEPT", "-A OUTPUT -p tcp -j DROP")}, "iptables -t filter -D OUTPUT"),
        ({"ruleset": iptables(":INPUT DROP", "-A INPUT -p icmp -j ACCEPT")}, "iptables -t filter -P INPUT"),
    ],
)
def test_a_rule_that_drops_tcp_in_a_container_that_answers_is_named(
    changes: dict[str, object], command: str
) -> None:
    ((code, severity, (line, *_), fix),) = found(with_container(**changes))

    assert (code, severity) == ("container-filter", "warning")
    assert line.startswith("10.100.15.2, web, pid 7: ")
    assert fix.startswith(f"nsenter --net --target 7 {command}")


@pytest.mark.parametrize(
    "rules",
    [
        (":INPUT DROP", "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT"),
        (":OUTPUT ACCEPT", "-A OUTPUT -p tcp --syn -j DROP"),
        (":INPUT ACCEPT", "-A INPUT -p tcp --dport 22 -j DROP"),
    ],
)
def test_a_firewall_that_keeps_established_connections_is_no_finding(rules: tuple[str, ...]) -> None:
    assert found(with_container(ruleset=iptables(*rules))) == []


TAKEN = TakingFilter(link="eth0", direction="ingress", priority=5, text="u32 drops", packets=3)


def test_a_filter_of_traffic_control_in_a_container_is_named() -> None:
    """It explains why the container is silent."""
    seen = with_container(taking_filters=(TAKEN,), silent=frozenset({ADDRESS}))

    assert found(seen) == [
        (
            "container-filter",
            "warning",
            ("web, pid 7: tc filter show dev eth0 ingress: pref 5 u32 drops, 3 packets",),
            "nsenter --net --target 7 tc filter delete dev eth0 ingress pref 5",
        )
    ]


@pytest.mark.parametrize(
    ("link", "command"),
    [
        (replace(LINK, xdp="xdp"), "ip link set dev eth0 xdp off"),
        (replace(LINK, xdp="xdpgeneric"), "ip link set dev eth0 xdpgeneric off"),
        (replace(LINK, programs=("egress",)), "tc filter delete dev eth0 egress"),
    ],
)
@pytest.mark.parametrize("is_silent", [True, False])
def test_a_program_in_a_container_is_a_warning_only_if_the_container_is_silent(
    link: ContainerLink, command: str, is_silent: bool
) -> None:
    seen = with_container(link, silent=frozenset({ADDRESS} if is_silent else ()))

    ((code, severity, _, fix),) = found(seen)

    assert (code, severity) == ("container-program", "warning" if is_silent else "info")
    assert fix == f"nsenter --net --target 7 {command}  # if no program needs it"
    silent_ipv6 = replace(seen.containers[0], silent=frozenset({IPv6Address("fd00:0:0:1::2")}))
    assert found(in_ipv6(replace(seen, containers=(silent_ipv6,))))[0][1] == "warning"
