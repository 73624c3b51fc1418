"""The observations of a host without faults, for tests of doctor."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from pyflannel.model.host import Interface, InterfaceAddress, Interfaces
from pyflannel.model.netfilter import Ruleset
from pyflannel.model.route import Route, RouteAnswer
from pyflannel.model.status import (
    BackendStatus,
    Finding,
    LeaseStatus,
    Membership,
    Status,
    UnderlayStatus,
)
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import DockerEngine, Observed
from pyflannel.wire.iptables import parse_save
from pyflannel.wire.iptables_ruleset import ruleset_of

NETWORK, OWN, PEER = (IPv4Network(text) for text in ("10.100.0.0/16", "10.100.15.0/24", "10.100.16.0/24"))

HERE, THERE = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")


def interface(name: str, *addresses: str, is_up: bool = True) -> Interface:
    held = tuple(InterfaceAddress(address=IPv4Interface(one)) for one in addresses)
    return Interface(name=name, index=1, mtu=1500, is_up=is_up, addresses=held)


LINKS = (
    interface("eth0", "10.0.0.1/24"),
    interface("flannel.1", "10.100.15.0/32"),
    interface("docker0", "10.100.15.1/24"),
)

HEALTHY = Observed(
    status=Status(
        version="1",
        is_ready=True,
        backend=BackendStatus(type="vxlan", link="flannel.1", mtu=1450, port=8472),
        underlay=UnderlayStatus(link="eth0", address=HERE, public_ip=HERE, mtu=1500),
        lease=LeaseStatus(subnet=OWN),
    ),
    claimed="flannel0",
    membership=Membership(network=NETWORK, subnet=OWN, underlay="eth0", peers={PEER: THERE}),
    items=(Route(destination=PEER, link="flannel.1"),),
    interfaces=Interfaces(interfaces=LINKS),
    on_link=(IPv4Network("10.0.0.0/24"),),
    ports={"docker0": {}},
    docker=DockerEngine(pid=40),
    answers=(
        RouteAnswer(way="container out", destination=PEER.network_address + 2, text="", link="flannel.1"),
    ),
)


def iptables(*lines: str, table: str = "filter") -> Ruleset:
    return ruleset_of(parse_save("\n".join([f"*{table}", *lines, "COMMIT"])), "iptables")


def found(seen: Observed) -> Finding:
    """Return the only finding."""
    (one,) = findings(seen)
    return one
