"""The explanation of rejected senders by the leases."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import pytest
from msgspec.structs import replace

from pyflannel.model.forwarder import Stranger, StrangerReason
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.plan.strangers import explain

OWN = IPv4Network("10.100.20.0/24")


def lease(subnet: str, public_ip: str, host_name: str | None = None) -> Lease:
    attributes = LeaseAttributes(public_ip=IPv4Address(public_ip), host_name=host_name)
    return Lease(subnet=IPv4Network(subnet), attributes=attributes)


def dual_lease(subnet: str, ipv6_subnet: str, public_ip: str, public_ipv6: str) -> Lease:
    one = lease(subnet, public_ip)
    attributes = replace(one.attributes, public_ipv6=ip_address(public_ipv6))
    return replace(one, ipv6_subnet=IPv6Network(ipv6_subnet), attributes=attributes)


LEASES = [
    lease("10.100.15.0/24", "10.9.0.15"),
    lease("10.100.20.0/24", "10.9.0.20"),
    lease("10.100.30.0/24", "10.9.0.30"),
    lease("10.100.30.128/25", "10.9.0.31"),
    lease("10.100.50.0/24", "10.9.0.50", "docker5"),
    dual_lease("10.100.60.0/24", "fd00:5:0:60::/64", "10.9.0.60", "2001:db8::60"),
    dual_lease("10.100.70.0/24", "fd00:5:0:70::/64", "10.9.0.70", "2001:db8::70"),
]


def stranger(
    address: str, reason: StrangerReason, source: str, destination: str = "10.100.20.2", packets: int = 1
) -> Stranger:
    return Stranger(
        address=ip_address(address),
        reason=reason,
        packets=packets,
        age_s=3.0,
        inner_source=ip_address(source),
        inner_destination=ip_address(destination),
    )


@pytest.mark.parametrize(
    ("seen", "cause", "hint"),
    [
        (
            stranger("10.9.0.66", "stranger", "10.100.77.2"),
            "it holds no lease, and no host has the inner source 10.100.77.2",
            "If the sender is a host of the network, start flanneld there; if not, stop its program"
            " (ip neigh show to 10.9.0.66). This host drops its packets.",
        ),
        (
            stranger("10.9.0.15", "stranger", "10.100.77.2"),
            "it holds 10.100.15.0/24, and no host has the inner source 10.100.77.2",
            "Give the containers of that host only addresses in 10.100.15.0/24: run mk-docker-opts there, "
            "then restart Docker.",
        ),
        (
            stranger("10.9.0.66", "impostor", "10.100.30.2"),
            "it holds no lease, and the inner source 10.100.30.2 is in 10.100.30.0/24 of 10.9.0.30",
            "If the sender is that host, set this address there (--public-ip, --iface); if not, stop its "
            "program (ip neigh show to 10.9.0.66). This host drops its packets.",
        ),
        (
            stranger("10.9.0.15", "impostor", "10.100.30.200"),
            "it holds 10.100.15.0/24, and the inner source 10.100.30.200 is in 10.100.30.128/25 of 10.9.0.31",
            "Give the containers of that host only addresses in 10.100.15.0/24: run mk-docker-opts there, "
            "then restart Docker.",
        ),
        (
            stranger("2001:db8::66", "impostor", "fd00:5:0:60::2"),
            "it holds no lease, and the inner source fd00:5:0:60::2 is in 10.100.60.0/24 fd00:5:0:60::/64 of"
            " 10.9.0.60",
            "If the sender is that host, set this address there (--public-ip, --iface); if not, stop its "
            "program (ip neigh show to 2001:db8::66). This host drops its packets.",
        ),
        (
            stranger("2001:db8::60", "stranger", "fd00:5:0:77::2"),
            "it holds fd00:5:0:60::/64, and no host has the inner source fd00:5:0:77::2",
            "Give the containers of that host only addresses in fd00:5:0:60::/64: run mk-docker-opts "
            "there, then restart Docker.",
        ),
        (
            stranger("10.9.0.50", "stranger", "10.100.77.2"),
            "docker5 holds 10.100.50.0/24, and no host has the inner source 10.100.77.2",
            "Give the containers of that host only addresses in 10.100.50.0/24: run mk-docker-opts there, "
            "then restart Docker.",
        ),
        (
            stranger("10.9.0.15", "impostor", "10.100.50.2"),
            "it holds 10.100.15.0/24, and the inner source 10.100.50.2 is in 10.100.50.0/24"
            " of docker5 (10.9.0.50)",
            "Give the containers of that host only addresses in 10.100.15.0/24: run mk-docker-opts there, "
            "then restart Docker.",
        ),
        (
            stranger("10.9.0.66", "impostor", "10.100.40.2"),  # whose lease no longer exists
            "it holds no lease, and the inner source 10.100.40.2 is in another host's subnet",
            "If the sender is a host of the network, start flanneld there; if not, stop its program"
            " (ip neigh show to 10.9.0.66). This host drops its packets.",
        ),
        (
            stranger("10.9.0.15", "not_ours", "10.100.15.2", "10.100.99.2"),
            "it holds 10.100.15.0/24, and the inner destination 10.100.99.2 is not in 10.100.20.0/24",
            "Compare flannelctl leases on both hosts: the sender may use the old address of a host.",
        ),
        (
            stranger("10.9.0.66", "not_ours", "10.100.15.2", "10.100.99.2"),
            "it holds no lease, and the inner destination 10.100.99.2 is not in 10.100.20.0/24",
            "Compare flannelctl leases on both hosts: the sender may use the old address of a host; if not,"
            " stop its program"
            " (ip neigh show to 10.9.0.66). This host drops its packets.",
        ),
    ],
)
def test_a_sender_is_explained_by_its_lease_and_that_of_the_inner_source(
    seen: Stranger, cause: str, hint: str
) -> None:
    (explained,) = explain([seen], LEASES, OWN)

    assert (explained.cause, explained.hint) == (cause, hint)
    assert (explained.address, explained.reason, explained.packets) == (seen.address, seen.reason, 1)


def test_senders_of_the_most_packets_are_first() -> None:
    few, many = (stranger("10.9.0.66", "stranger", "10.1.1.1", packets=n) for n in (2, 900))

    assert [one.packets for one in explain([few, many], LEASES, OWN)] == [900, 2]
