"""The programs of the udp backend at the hooks, and the entries of their tables."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Literal

import pytest
from msgspec.structs import replace

from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram, Role
from pyflannel.model.host import (
    Bridge,
    BridgedContainer,
    GroChoice,
    Host,
    IpsecPolicy,
    Surroundings,
    Underlay,
)
from pyflannel.model.lease import PARTIAL_CHECKSUM, Lease, LeaseAttributes
from pyflannel.model.link import Link, Veth
from pyflannel.model.state import State
from pyflannel.plan.backend.udp import UdpBackend

BACKEND = UdpBackend(network=IPv4Network("10.100.0.0/16"), port=8285)
HOST = Host(
    lease=Lease(
        subnet=IPv4Network("10.100.15.0/24"),
        attributes=LeaseAttributes(public_ip=IPv4Address("192.168.50.102")),
    ),
    underlay=Underlay(
        link="eth0",
        address=IPv4Address("192.168.50.102"),
        mtu=1500,
        public_ip=IPv4Address("192.168.50.102"),
        driver="veth",
    ),
    has_fast_path=True,
)
DOCKER0 = Bridge(
    name="docker0",
    addresses=(IPv4Interface("10.100.15.1/24"),),
    containers=(
        BridgedContainer(address=IPv4Address("10.100.15.2"), mac="02:42:0a:64:0f:02", port="veth1"),
        BridgedContainer(address=IPv4Address("172.17.0.2"), mac="02:42:ac:11:00:02", port="veth2"),
    ),
)


def peer(*reads: str) -> Lease:
    return Lease(
        subnet=IPv4Network("10.100.93.0/24"),
        attributes=LeaseAttributes(public_ip=IPv4Address("10.10.10.101"), reads=reads),
    )


def programs(state: State) -> list[tuple[str, Role]]:
    return [(item.link, item.role) for item in state if isinstance(item, BpfProgram)]


def test_in_mode_flow_each_veth_of_a_container_has_a_program() -> None:
    host = replace(HOST, caches_flows=True)

    state = BACKEND.plan_bridges((DOCKER0,), host)

    assert programs(state) == [("docker0", Role.LAST_HOP), ("veth1", Role.SHORTCUT)]
    assert all(item.tunnel.caches_flows for item in state if isinstance(item, BpfProgram))


def bpf(state: State) -> list[object]:
    return [item for item in state if isinstance(item, BpfProgram | BpfPeer | BpfContainer)]


def test_a_program_at_each_end_of_the_tunnel() -> None:
    planned = BACKEND.plan_host(HOST)

    assert programs(planned) == [
        ("flannel0", Role.ENCAPSULATE),
        ("eth0", Role.DECAPSULATE),
        ("eth0", Role.NEXT_HOP),
    ]
    tunnel = next(item.tunnel for item in planned if isinstance(item, BpfProgram))
    assert (tunnel.device, tunnel.underlay, tunnel.subnet, tunnel.port) == (
        "flannel0",
        "eth0",
        HOST.lease.subnet,
        8285,
    )


@pytest.mark.parametrize(
    ("driver", "gro", "has_gro_link"),
    [
        ("e1000e", "auto", True),
        ("veth", "auto", False),
        ("", "auto", False),
        ("veth", "on", True),
        ("e1000e", "off", False),
    ],
)
def test_tcp_that_hardware_delivers_in_segments_is_coalesced(
    driver: str, gro: GroChoice, has_gro_link: bool
) -> None:
    planned = BACKEND.plan_host(replace(HOST, underlay=replace(HOST.underlay, driver=driver), gro=gro))

    ends = [(item.name, item.veth, item.alias) for item in planned if isinstance(item, Link) and item.veth]
    tunnels = {item.tunnel.gro_link for item in planned if isinstance(item, BpfProgram)}
    if has_gro_link:
        assert ends == [
            ("flannel0-gro", Veth(peer="flannel0-rx", has_gro=True), "pyflannel"),
            ("flannel0-rx", Veth(peer="flannel0-gro", has_gro=True), "pyflannel"),
        ]
        assert programs(planned)[3:] == [("flannel0-rx", Role.REJOIN)]
        assert tunnels == {"flannel0-gro"}
    else:
        assert ends == []
        assert Role.REJOIN not in [role for _, role in programs(planned)]
        assert tunnels == {""}


def test_without_fast_path_nothing_is_coalesced() -> None:
    planned = BACKEND.plan_host(replace(HOST, has_fast_path=False, gro="on"))

    assert [item.name for item in planned if isinstance(item, Link)] == ["flannel0"]


@pytest.mark.parametrize(
    ("driver", "reads", "is_direct"),
    [
        ("veth", (), False),
        ("veth", (PARTIAL_CHECKSUM,), True),
        ("", (), False),
        ("e1000e", (), True),
    ],
)
def test_the_original_on_a_virtual_underlay_is_reached_through_user_space(
    driver: str, reads: tuple[str, ...], is_direct: bool
) -> None:
    host = replace(HOST, underlay=replace(HOST.underlay, driver=driver))

    assert bpf(BACKEND.plan_peer(peer(*reads), host)) == [
        BpfPeer(
            device="flannel0",
            subnet=IPv4Network("10.100.93.0/24"),
            address=IPv4Address("10.10.10.101"),
            port=8285,
            is_direct=is_direct,
        )
    ]


def test_a_bridge_and_containers_of_the_own_subnet_have_programs_and_entries() -> None:
    planned = BACKEND.plan_bridges([DOCKER0], HOST)

    assert programs(planned) == [("docker0", Role.LAST_HOP)]
    assert bpf(planned)[1:] == [
        BpfContainer(
            device="flannel0",
            address=IPv4Address("10.100.15.2"),
            mac="02:42:0a:64:0f:02",
            link="veth1",
        )
    ]


@pytest.mark.parametrize(
    "bridge",
    [
        replace(DOCKER0, obstacles=("it filters VLANs",)),
        replace(DOCKER0, addresses=(IPv4Interface("172.17.0.1/16"),)),
    ],
    ids=["it does more than carry", "it is of another network"],
)
def test_any_other_bridge_is_left_alone(bridge: Bridge) -> None:
    assert BACKEND.plan_bridges([bridge], HOST) == State.EMPTY


def test_without_a_fast_path_no_program_or_entry_is_planned() -> None:
    host = replace(HOST, has_fast_path=False)

    assert bpf(BACKEND.plan_host(host)) == bpf(BACKEND.plan_peer(peer(), host)) == []
    assert BACKEND.plan_bridges([DOCKER0], host) == State.EMPTY


EVERYBODY = IPv4Network("0.0.0.0/0")


def secured(*policies: IpsecPolicy) -> Host:
    return replace(HOST, surroundings=Surroundings(policies=policies))


def policy(direction: Literal["in", "out", "forward"] = "out", **more: object) -> IpsecPolicy:
    made = IpsecPolicy(direction=direction, source=EVERYBODY, destination=EVERYBODY)
    return replace(made, **more)


PEER, OWN = IPv4Network("10.10.10.101/32"), IPv4Network("192.168.50.102/32")


@pytest.mark.parametrize(
    "concerning",
    [
        policy(),
        policy("in"),
        policy(source=OWN, destination=PEER, protocol=17, port=8285, port_mask=0xFFFF),
        policy("in", source=PEER, destination=OWN, protocol=17, port=8285, port_mask=0xFFFF),
        policy(destination=IPv4Network("10.10.0.0/16"), port=0x2000, port_mask=0xF000),
    ],
)
def test_a_peer_with_an_ipsec_policy_takes_user_space(concerning: IpsecPolicy) -> None:
    planned = BACKEND.plan_peer(peer(PARTIAL_CHECKSUM), secured(concerning))

    assert bpf(planned) == []
    assert planned


@pytest.mark.parametrize(
    "other",
    [
        policy(protocol=6),
        policy(destination=IPv4Network("10.10.10.99/32")),
        policy(source=IPv4Network("192.168.50.99/32")),
        policy(protocol=17, port=500, port_mask=0xFFFF),
        policy("in", destination=PEER, source=OWN),
    ],
)
def test_a_policy_about_other_packets_changes_nothing(other: IpsecPolicy) -> None:
    assert bpf(BACKEND.plan_peer(peer(PARTIAL_CHECKSUM), secured(other)))


def test_a_policy_of_ipsec_is_noted() -> None:
    assert BACKEND.notes(HOST) == ()
    assert BACKEND.notes(secured(policy(destination=PEER), policy(protocol=6))) == (
        "IPsec policies may concern the tunnel: packets of peers in 10.10.10.101/32 take user space",
    )
