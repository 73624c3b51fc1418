"""The plans of the backend udp."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from msgspec.structs import replace

from pyflannel.errors import ConfigError
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import Host, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.link import Address, Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import Route
from pyflannel.model.state import State
from pyflannel.plan.backend.udp import UdpBackend, parse
from pyflannel.plan.backends import backend_of, config_warnings

NETWORK = IPv4Network("10.100.0.0/16")
CONFIG = NetworkConfig(network=NETWORK, subnet_length=24)
OWN = Lease(
    subnet=IPv4Network("10.100.15.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("192.168.50.102"))
)
PEER = Lease(
    subnet=IPv4Network("10.100.93.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("10.10.10.101"))
)
HOST = Host(
    lease=OWN,
    underlay=Underlay(
        link="eth0",
        address=IPv4Address("192.168.50.102"),
        mtu=1500,
        public_ip=IPv4Address("203.0.113.9"),
    ),
)


def test_the_route_of_the_network_has_no_scope_link_on_a_host_that_serves_docker() -> None:
    """Docker compares a new network with routes of scope link, and would ask the plugin forever."""
    plan = UdpBackend(network=NETWORK).plan_host(replace(HOST, serves_docker=True))

    assert list(plan.of_type(Address)) == [Address(link="flannel0", address=IPv4Interface("10.100.15.0/32"))]
    assert list(plan.of_type(Route)) == [Route(destination=NETWORK, link="flannel0")]


def test_the_host_of_the_cookbook() -> None:
    """flannel0 with the base of the subnet and the network's prefix; its MTU is 28 bytes smaller."""
    plan = UdpBackend(network=NETWORK).plan_host(HOST)

    base = IPv4Address("10.100.15.0")
    assert plan == State.of(
        Link(name="flannel0", kind="tun", mtu=1472, queue_length=500, has_ipv6=False),
        Address(link="flannel0", address=IPv4Interface("10.100.15.0/16")),
        Route(destination=NETWORK, link="flannel0", source=base, protocol=2, scope=253),
        Forwarder(
            link="flannel0",
            tunnel_address=base,
            subnet=OWN.subnet,
            listen_address=IPv4Address("192.168.50.102"),
            port=8285,
            mtu=1472,
        ),
    )


def test_a_network_that_is_the_prefix_of_the_underlay_is_not_routed() -> None:
    """The route of the network would replace the route of eth0, and the host would lose gateway and store.

    The kernel would add the route with an address of that prefix, so the address is alone.
    """
    host = replace(HOST, underlay=replace(HOST.underlay, on_link=(NETWORK,)))

    plan = UdpBackend(network=NETWORK).plan_host(host)

    assert [item for item in plan if isinstance(item, Route)] == []
    assert Address(link="flannel0", address=IPv4Interface("10.100.15.0/32")) in tuple(plan)


def test_a_network_that_contains_a_prefix_of_the_underlay_is_routed() -> None:
    host = replace(HOST, underlay=replace(HOST.underlay, on_link=(IPv4Network("10.100.0.0/24"),)))

    backend = UdpBackend(network=NETWORK)

    assert backend.plan_host(host) == backend.plan_host(HOST)


def test_a_peer_is_one_entry_with_its_published_port() -> None:
    """Peers of the original publish no port, so the port of the config is used."""
    backend = UdpBackend(network=NETWORK, port=9000)
    published = replace(PEER, attributes=replace(PEER.attributes, port=7000))

    address = PEER.attributes.public_ip
    assert backend.plan_peer(PEER, HOST) == State.of(
        ForwarderPeer(link="flannel0", subnet=PEER.subnet, address=address, port=9000)
    )
    assert backend.plan_peer(published, HOST) == State.of(
        ForwarderPeer(link="flannel0", subnet=PEER.subnet, address=address, port=7000)
    )


@pytest.mark.parametrize(("backend_type", "is_peer"), [("", True), ("udp", True), ("vxlan", False)])
def test_peers_of_another_backend_are_refused(backend_type: str, is_peer: bool) -> None:
    """The original leaves the type empty."""
    peer = replace(PEER, attributes=replace(PEER.attributes, backend_type=backend_type))

    assert bool(len(UdpBackend(network=NETWORK).plan_peer(peer, HOST))) == is_peer


@pytest.mark.parametrize("key", ["Port", "port", "PORT"])
def test_the_port_is_read_from_the_config(key: str) -> None:
    assert parse(replace(CONFIG, backend={"Type": "udp", key: 9000})).port == 9000
    assert parse(replace(CONFIG, backend={"Type": "udp", key: None})).port == 8285


@pytest.mark.parametrize("port", [0, -1, 65536, "8285", 8285.5, True])
def test_a_bad_port_is_named(port: object) -> None:
    with pytest.raises(ConfigError, match=r"Backend\.Port is "):
        parse(replace(CONFIG, backend={"Type": "udp", "Port": port}))


def test_a_network_with_ipv6_alone_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="EnableIPv4=false: the udp backend carries IPv4 only") as caught:
        parse(replace(CONFIG, enable_ipv4=False, enable_ipv6=True, is_assigned=True))

    assert "vxlan, host-gw or wireguard" in caught.value.hint


@pytest.mark.parametrize(("name", "later"), [("ipip", " (not yet supported)"), ("nonsense", "")])
def test_an_unknown_backend_is_named(name: str, later: str) -> None:
    with pytest.raises(ConfigError, match="unknown backend type: ") as caught:
        backend_of(replace(CONFIG, backend_type=name))

    assert str(caught.value) == f"unknown backend type: {name}{later}"


def test_a_config_with_keys_of_the_original_causes_only_warnings() -> None:
    assert config_warnings(CONFIG) == ()
    assert "ipip" in " ".join(config_warnings(replace(CONFIG, backend_type="ipip")))
    with pytest.raises(ConfigError, match="unknown backend type"):
        config_warnings(replace(CONFIG, backend_type="carrier-pigeon"))


def test_a_key_without_effect_is_named() -> None:
    backend = backend_of(replace(CONFIG, backend={"Type": "udp", "VNI": 7}))

    assert backend.notes(HOST) == ("Backend.VNI has no effect: the udp backend knows Port",)
    assert config_warnings(replace(CONFIG, backend={"Type": "udp", "port": 7})) == ()


def test_many_backend_keys_without_effect_are_counted_after_the_first() -> None:
    """Any number of keys causes one line of limited length."""
    keys = ["K0", *(f"K{number}" + "x" * 100 for number in range(1, 500))]

    (note,) = config_warnings(replace(CONFIG, backend={"Type": "udp"} | dict.fromkeys(keys, 1)))

    assert note.startswith("Backend.K0, Backend.K1xxx")
    assert note.endswith("xxx… and 492 more have no effect: the udp backend knows Port")
    assert len(note) < 1000


def test_keys_of_the_network_config_without_effect_are_named() -> None:
    """Unknown keys share one line, with the known keys. Keys of the original have their own line."""
    unknown = backend_of(replace(CONFIG, unread=("SubnetLne", "b"))).notes(HOST)
    assert unknown == (
        "SubnetLne, b have no effect: the network config knows Network, SubnetLen, SubnetMin, SubnetMax,"
        " EnableIPv4, EnableIPv6, IPv6Network, IPv6SubnetLen, IPv6SubnetMin, IPv6SubnetMax, EnableNFTables,"
        " FastPath, Backend",
    )
    assert config_warnings(replace(CONFIG, unread=("Networks",))) == (
        "Networks has no effect: it is a key of flannel 0.20 that this version does not support",
    )
    many = tuple(f"key{number}" for number in range(10))
    assert " key7 and 2 more have no effect" in config_warnings(replace(CONFIG, unread=many))[0]
    assert len(config_warnings(replace(CONFIG, backend_type="ipip", unread=("a",)))) == 2
