"""The plans of the backends host-gw and alloc."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from pyflannel.errors import ConfigError
from pyflannel.model.host import Host, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import Route
from pyflannel.model.state import State
from pyflannel.model.wireguard import UNKNOWN
from pyflannel.plan.backend.alloc import AllocBackend
from pyflannel.plan.backend.host_gw import HostGwBackend
from pyflannel.plan.backends import backend_of

CONFIG = NetworkConfig(network=IPv4Network("10.100.0.0/16"), subnet_length=24, backend_type="host-gw")
OWN = Lease(
    subnet=IPv4Network("10.100.15.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("192.168.50.102"))
)
UNDERLAY = Underlay(
    link="eth0",
    address=IPv4Address("192.168.50.102"),
    mtu=1500,
    public_ip=IPv4Address("192.168.50.102"),
    on_link=(IPv4Network("192.168.50.0/24"), IPv4Network("172.16.0.0/12")),
)
HOST = Host(lease=OWN, underlay=UNDERLAY)


def peer(address: str, backend_type: str = "host-gw") -> Lease:
    return Lease(
        subnet=IPv4Network("10.100.93.0/24"),
        attributes=LeaseAttributes(public_ip=IPv4Address(address), backend_type=backend_type),
    )


class TestHostGw:
    def test_a_peer_is_one_route_with_its_address_as_gateway(self) -> None:
        assert HostGwBackend().plan_host(HOST) == State.EMPTY
        assert HostGwBackend().plan_peer(peer("192.168.50.101"), HOST) == State.of(
            Route(
                destination=IPv4Network("10.100.93.0/24"),
                gateway=IPv4Address("192.168.50.101"),
                link="eth0",
                protocol=80,
            )
        )

    def test_packets_have_no_overhead(self) -> None:
        assert HostGwBackend().mtu(HOST) == 1500

    @pytest.mark.parametrize(
        ("refused", "reason"),
        [
            (
                peer("10.10.10.101"),
                "10.10.10.101 is not on the link of this host, which host-gw needs: without a gateway eth0"
                " reaches"
                " 192.168.50.0/24, 172.16.0.0/12",
            ),
            (peer("192.168.50.101", ""), "Ignoring non-host-gw subnet: type="),
            (peer("192.168.50.101", "vxlan"), "Ignoring non-host-gw subnet: type=vxlan"),
            (peer("192.168.50.102"), "192.168.50.102 is an address of this host"),
            (
                peer("172.31.255.255"),
                "172.31.255.255 is not the address of a host: it is reserved in 172.16.0.0/12",
            ),
            (peer("0.0.0.0"), "0.0.0.0 is not the address of a host"),
            (
                replace(peer("192.168.50.101"), subnet=IPv4Network("192.168.50.0/24")),
                "192.168.50.0/24 is the prefix of eth0 itself: it is not routed to the overlay,"
                " because this host would lose the underlay",
            ),
        ],
    )
    def test_a_peer_that_cannot_be_the_next_hop_is_refused_by_name(self, refused: Lease, reason: str) -> None:
        assert HostGwBackend().objection(refused, HOST) == reason
        assert HostGwBackend().plan_peer(refused, HOST) == State.EMPTY

    def test_both_addresses_of_a_link_with_two_addresses_are_hosts(self) -> None:
        host = replace(HOST, underlay=replace(UNDERLAY, on_link=(IPv4Network("192.168.50.102/31"),)))

        assert len(HostGwBackend().plan_peer(peer("192.168.50.103"), host)) == 1

    def test_a_host_behind_a_nat_waits_and_reports_the_nat(self) -> None:
        behind = replace(UNDERLAY, public_ip=IPv4Address("203.0.113.9"))

        assert HostGwBackend().obstacle(UNDERLAY, UNKNOWN) is None
        said = HostGwBackend().obstacle(behind, UNKNOWN) or ""
        assert (
            "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is not"
            " supported by host-gw backend (203.0.113.9 is not 192.168.50.102 of eth0)"
        ) in said


class TestAlloc:
    def test_the_backend_alloc_plans_no_objects(self) -> None:
        backend = AllocBackend()

        assert backend.plan_host(HOST) == State.EMPTY
        assert backend.plan_peer(peer("10.10.10.101", "vxlan"), HOST) == State.EMPTY
        assert backend.objection(peer("10.10.10.101", "vxlan"), HOST) is None
        assert backend.mtu(HOST) == 1500


@pytest.mark.parametrize(("name", "backend"), [("host-gw", HostGwBackend), ("alloc", AllocBackend)])
def test_both_backends_are_found_by_their_types_and_have_no_keys(
    name: str, backend: type[HostGwBackend | AllocBackend]
) -> None:
    config = replace(CONFIG, backend_type=name)

    assert backend_of(config) == backend()
    odd = backend_of(replace(config, backend={"Type": name, "Port": 1}))
    assert odd.notes(HOST) == (f"Backend.Port has no effect: the {name} backend knows only Type",)
    alone = replace(config, enable_ipv4=False, enable_ipv6=True)
    with pytest.raises(ConfigError, match="EnableIPv4=false"):
        backend_of(alone)
    assert backend_of(replace(alone, is_assigned=True)) == backend()
