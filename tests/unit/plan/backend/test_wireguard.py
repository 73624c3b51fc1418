"""The plans of the backend wireguard."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from msgspec.structs import replace

from pyflannel.errors import ConfigError
from pyflannel.model.host import Host, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes, WireguardData
from pyflannel.model.link import Address, Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import SCOPE_LINK, Route
from pyflannel.model.state import State
from pyflannel.model.store_record import Secret
from pyflannel.model.wireguard import UNKNOWN, WireguardDevice, WireguardFacts, WireguardPeer
from pyflannel.plan.backend.wireguard import WireguardBackend, parse
from pyflannel.plan.backends import backend_of
from pyflannel.wire.lease_json import format_backend_data, parse_wireguard

OWN_KEY = "hKkG9PwcKtL6B6MdnWAsbASTyQkr88DF+WHHWMIMnzc="
PEER_KEY = "FqDGdFD1HvXfiGVm3k2sLPhRDQA3ZwrFHKuwbxFKvXo="
NEXT_KEY = "uMECOej34HzTVXtNGC3C8j9AQnDlqRa1VigTQK8D01w="
PSK = "pNmrd3Fb+REOszVXyYCjYEOs3QqhHEFA9OO8TRK98Hc="

NETWORK = IPv4Network("10.100.0.0/16")
CONFIG = NetworkConfig(network=NETWORK, subnet_length=24, backend_type="wireguard")
FACTS = WireguardFacts(key=OWN_KEY, published=OWN_KEY)
OWN = Lease(
    subnet=IPv4Network("10.100.15.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("192.168.50.102"))
)
UNDERLAY = Underlay(
    link="eth0",
    address=IPv4Address("192.168.50.102"),
    mtu=1500,
    public_ip=IPv4Address("192.168.50.102"),
    on_link=(IPv4Network("192.168.50.0/24"),),
)
HOST = Host(lease=OWN, underlay=UNDERLAY, wireguard=FACTS)
PEER = Lease(
    subnet=IPv4Network("10.100.93.0/24"),
    attributes=LeaseAttributes(
        public_ip=IPv4Address("203.0.113.7"),
        backend_type="wireguard",
        wireguard=WireguardData(public_key=PEER_KEY, port=7000),
    ),
)


def backend(**keys: object) -> WireguardBackend:
    return parse(replace(CONFIG, backend={"Type": "wireguard", **keys}))


def peer_item(plan: State) -> WireguardPeer:
    (item,) = plan.of_type(WireguardPeer)
    return item


DUAL_CONFIG = replace(
    CONFIG, enable_ipv6=True, ipv6_network=IPv6Network("fd00:5::/48"), backend={"Type": "wireguard"}
)
DUAL = replace(
    HOST,
    lease=replace(OWN, ipv6_subnet=IPv6Network("fd00:5:0:15::/64")),
    underlay=replace(UNDERLAY, ipv6_address=IPv6Address("fd07::102"), public_ipv6=IPv6Address("fd07::102")),
    family=6,
)
DUAL_PEER = replace(
    PEER,
    ipv6_subnet=IPv6Network("fd00:5:0:93::/64"),
    attributes=replace(
        PEER.attributes,
        public_ipv6=IPv6Address("fd08::7"),
        wireguard_v6=WireguardData(public_key=PEER_KEY, port=7001),
    ),
)


class TestIpv6:
    """The mode `separate`: each family has a device, which uses the same key."""

    def test_the_host_has_a_device_of_its_own_for_ipv6(self) -> None:
        plan = parse(DUAL_CONFIG).plan_host(DUAL)

        (link,) = plan.of_type(Link)
        assert (link.name, link.mtu, link.has_ipv6) == ("flannel-wg-v6", 1420, True)
        (device,) = plan.of_type(WireguardDevice)
        assert (device.port, device.sources, device.public_key) == (
            51821,
            (IPv6Address("fd07::102"),),
            OWN_KEY,
        )
        network = IPv6Network("fd00:5::/48")
        assert set(plan.of_type(Route)) == {
            Route(destination=network, link="flannel-wg-v6", metric=1024),
            Route(destination=network, link="", kind="blackhole", metric=2**32 - 1),
        }

    def test_a_peer_is_reached_by_its_ipv6_address(self) -> None:
        item = peer_item(parse(DUAL_CONFIG).plan_peer(DUAL_PEER, DUAL))

        assert (item.link, item.endpoint) == ("flannel-wg-v6", "[fd08::7]:7001")
        assert item.allowed == (IPv6Network("fd00:5:0:93::/64"),)

    def test_a_peer_without_a_key_for_ipv6_is_reached_by_ipv4_alone(self) -> None:
        bare = replace(DUAL_PEER, attributes=replace(DUAL_PEER.attributes, wireguard_v6=None))
        backend = parse(DUAL_CONFIG)

        assert backend.objection(bare, DUAL) == "its BackendV6Data has no PublicKey of WireGuard"
        assert backend.objection(bare, replace(DUAL, family=4)) is None

    def test_the_lease_contains_the_port_of_each_device(self) -> None:
        ports = [parse(DUAL_CONFIG).lease_data("me", FACTS, family).port for family in (4, 6)]

        assert ports == [51820, 51821]

    def test_ipv6_needs_a_larger_mtu(self) -> None:
        underlay = replace(DUAL.underlay, mtu=1359)

        assert (
            parse(DUAL_CONFIG).obstacle(underlay, FACTS) == "an MTU of 1360 or more on eth0, which has 1359"
        )


def one_device(mode: str) -> WireguardBackend:
    return parse(replace(DUAL_CONFIG, backend={"Type": "wireguard", "Mode": mode, "ListenPortV6": 7}))


def addresses(host: Host, ipv4: str, ipv6: str | None) -> Host:
    """Return the host with these public addresses."""
    address = None if ipv6 is None else IPv6Address(ipv6)
    return replace(
        host,
        underlay=replace(
            UNDERLAY,
            public_ip=IPv4Address(ipv4),
            ipv6_address=DUAL.underlay.ipv6_address,
            public_ipv6=address,
        ),
    )


class TestOneDevice:
    """The modes `auto`, `ipv4` and `ipv6`: one device carries both families."""

    @pytest.mark.parametrize("mode", ["auto", "ipv4", "ipv6"])
    def test_both_families_plan_the_same_device(self, mode: str) -> None:
        one = one_device(mode)
        plans = [one.plan_host(replace(DUAL, family=family)) for family in (4, 6)]

        assert [list(plan.of_type(Link)) for plan in plans[:1]] == [list(plans[1].of_type(Link))]
        ((device,), (same,)) = (plan.of_type(WireguardDevice) for plan in plans)
        assert device == same
        assert (device.link, device.port) == ("flannel-wg", 51820)
        assert [one.guarded_path(replace(DUAL, family=family)).links for family in (4, 6)] == [
            ("flannel-wg",)
        ] * 2
        (link,) = plans[0].of_type(Link)
        assert link.has_ipv6
        assert [str(each.address) for plan in plans for each in plan.of_type(Address)] == [
            "10.100.15.0/32",
            "fd00:5:0:15::/128",
        ]
        assert [str(each.destination) for plan in plans for each in plan.of_type(Route) if each.link] == [
            "10.100.0.0/16",
            "fd00:5::/48",
        ]

    def test_the_lease_contains_the_port_of_the_device_in_both_families(self) -> None:
        """The original publishes ListenPortV6 for IPv6, but receives nothing on this port."""
        assert [one_device("auto").lease_data("me", FACTS, family).port for family in (4, 6)] == [51820] * 2

    def test_the_parts_of_a_peer_have_one_endpoint(self) -> None:
        for mode, endpoint in (("ipv4", "203.0.113.7:7000"), ("ipv6", "[fd08::7]:7000")):
            parts = [
                peer_item(one_device(mode).plan_peer(DUAL_PEER, replace(DUAL, family=family)))
                for family in (4, 6)
            ]

            assert [part.endpoint for part in parts] == [endpoint] * 2
            assert [str(part.allowed[0]) for part in parts] == ["10.100.93.0/24", "fd00:5:0:93::/64"]
            assert len({part.key for part in parts}) == 2
            assert all(part.shares_device for part in parts)
            assert all(part.keeps_family for part in parts)

    def test_the_mode_auto_permits_endpoints_of_both_families(self) -> None:
        """Two hosts may choose different families, because the choice also depends on the own addresses."""
        assert not peer_item(one_device("auto").plan_peer(DUAL_PEER, DUAL)).keeps_family

    @pytest.mark.parametrize(
        ("ipv4", "ipv6", "own_ipv6", "is_ipv6"),
        [
            ("203.0.113.7", "2001:db8::7", "2001:db8::1", False),
            ("192.168.50.7", "2001:db8::7", "2001:db8::1", True),
            ("172.31.0.7", "2001:db8::7", "2001:db8::1", True),
            ("10.0.0.7", "2001:db8::7", "fd07::1", False),
            ("10.0.0.7", "fd07::7", "2001:db8::1", False),
            ("10.0.0.7", None, "2001:db8::1", False),
            ("10.0.0.7", "2001:db8::7", None, False),
        ],
    )
    def test_the_mode_auto_prefers_public_addresses(
        self, ipv4: str, ipv6: str | None, own_ipv6: str | None, is_ipv6: bool
    ) -> None:
        attributes = replace(
            DUAL_PEER.attributes,
            public_ip=IPv4Address(ipv4),
            public_ipv6=None if ipv6 is None else IPv6Address(ipv6),
        )
        host = replace(addresses(DUAL, "192.168.50.102", own_ipv6), family=4)

        item = peer_item(one_device("auto").plan_peer(replace(DUAL_PEER, attributes=attributes), host))

        assert item.endpoint == (f"[{ipv6}]:7000" if is_ipv6 else f"{ipv4}:7000")

    def test_the_mode_ipv6_needs_ipv6_addresses(self) -> None:
        one, bare = (
            one_device("ipv6"),
            replace(DUAL_PEER, attributes=replace(DUAL_PEER.attributes, public_ipv6=None)),
        )

        assert one.obstacle(UNDERLAY, FACTS) == "an IPv6 address of the host"
        assert one.obstacle(DUAL.underlay, FACTS) is None
        assert one.objection(bare, replace(DUAL, family=4)) == (
            "it has no IPv6 address, which Backend.Mode ipv6 needs"
        )
        with pytest.raises(ConfigError, match=r"Backend\.Mode ipv6 needs EnableIPv6"):
            backend(Mode="ipv6")

    def test_the_address_of_the_tunnel_is_examined(self) -> None:
        """Without this check, the host would send packets to itself."""
        attributes = replace(DUAL_PEER.attributes, public_ipv6=DUAL.underlay.ipv6_address)
        copy = replace(DUAL_PEER, attributes=attributes)

        why = one_device("ipv6").objection(copy, replace(DUAL, family=4))

        assert why == "fd07::102 is an address of this host"


class TestHost:
    def test_the_network_is_routed_to_the_device_and_otherwise_dropped(self) -> None:
        assert backend().plan_host(HOST) == State.of(
            Link(name="flannel-wg", kind="tun", mtu=1420),
            Address(link="flannel-wg", address=IPv4Interface("10.100.15.0/32")),
            WireguardDevice(
                link="flannel-wg",
                public_key=OWN_KEY,
                port=51820,
                is_in_kernel=False,
                sources=(HOST.underlay.address,),
            ),
            Route(destination=NETWORK, link="flannel-wg", scope=SCOPE_LINK),
            Route(destination=NETWORK, link="", kind="blackhole", metric=2**32 - 1),
        )

    def test_the_kernels_wireguard_is_used_if_it_exists(self) -> None:
        plan = backend().plan_host(replace(HOST, wireguard=replace(FACTS, is_in_kernel=True)))

        assert [link.kind for link in plan.of_type(Link)] == ["wireguard"]
        assert [device.is_in_kernel for device in plan.of_type(WireguardDevice)] == [True]

    def test_a_second_daemon_has_another_device(self) -> None:
        plan = backend().plan_host(replace(HOST, device="flannel1"))

        assert [link.name for link in plan.of_type(Link)] == ["flannel-wg1"]

    @pytest.mark.parametrize(
        ("keys", "mtu"), [({}, 1420), ({"MTU": 1400}, 1320), ({"MTU": 9000}, 1420), ({"mtu": None}, 1420)]
    )
    def test_the_overhead_of_the_tunnel_is_80_bytes(self, keys: dict[str, object], mtu: int) -> None:
        assert backend(**keys).mtu(HOST) == mtu

    def test_a_network_that_is_the_prefix_of_the_underlay_is_not_routed(self) -> None:
        host = replace(HOST, underlay=replace(UNDERLAY, on_link=(NETWORK,)))

        assert not list(backend().plan_host(host).of_type(Route))
        assert any("the prefix of eth0" in note for note in backend().notes(host))

    def test_missing_wireguard_and_a_small_mtu_are_obstacles(self) -> None:
        narrow = replace(UNDERLAY, mtu=147)

        assert backend().obstacle(UNDERLAY, FACTS) is None
        assert backend().obstacle(UNDERLAY, replace(FACTS, problem="wg is not installed")) == (
            "wg is not installed"
        )
        assert backend().obstacle(UNDERLAY, UNKNOWN) is not None
        assert "eth0, which has 147" in (backend().obstacle(narrow, FACTS) or "")

    def test_during_a_rotation_the_device_has_the_new_key_and_the_lease_the_old_key(self) -> None:
        facts = WireguardFacts(key=NEXT_KEY, published=OWN_KEY)
        host = replace(HOST, wireguard=facts)

        (device,) = backend().plan_host(host).of_type(WireguardDevice)
        data = backend(ListenPort=7000).lease_data("f00d", facts)

        assert device.public_key == NEXT_KEY
        assert format_backend_data(data) == f'{{"PublicKey":"{OWN_KEY}","Port":7000}}'


class TestPeer:
    def test_a_peer_is_its_key_subnet_and_endpoint(self) -> None:
        assert backend().plan_peer(PEER, HOST) == State.of(
            WireguardPeer(
                link="flannel-wg",
                public_key=PEER_KEY,
                allowed=(PEER.subnet,),
                endpoint="203.0.113.7:7000",
                keeps_family=True,
            )
        )

    def test_a_peer_without_a_published_port_has_the_hosts_port(self) -> None:
        attributes = replace(PEER.attributes, wireguard=WireguardData(public_key=PEER_KEY))

        item = peer_item(backend(ListenPort=5555).plan_peer(replace(PEER, attributes=attributes), HOST))

        assert item.endpoint == "203.0.113.7:5555"

    def test_all_peers_have_the_preshared_key_and_the_keepalive(self) -> None:
        item = peer_item(backend(PSK=PSK, PersistentKeepaliveInterval=7).plan_peer(PEER, HOST))

        assert item.preshared_key == Secret(PSK)
        assert item.keepalive_s == 7

    def test_a_host_behind_a_nat_keeps_its_mapping_alive(self) -> None:
        host = replace(HOST, underlay=replace(UNDERLAY, public_ip=IPv4Address("198.51.100.1")))

        assert peer_item(backend().plan_peer(PEER, host)).keepalive_s == 25

    @pytest.mark.parametrize(
        ("attributes", "reason"),
        [
            ({"backend_type": "vxlan"}, "Ignoring non-wireguard subnet: type=vxlan"),
            ({"wireguard": None}, "its BackendData has no PublicKey of WireGuard"),
            (
                {"wireguard": WireguardData(public_key="A" * 43 + "=")},
                "its BackendData has no PublicKey of WireGuard",
            ),
            (
                {"wireguard": WireguardData(public_key=OWN_KEY)},
                f"its PublicKey {OWN_KEY} is that of this host: is the peer a copy of this host?",
            ),
            ({"public_ip": IPv4Address("192.168.50.102")}, "192.168.50.102 is an address of this host"),
            ({"public_ip": IPv4Address("127.0.0.1")}, "127.0.0.1 is not the address of a host"),
        ],
    )
    def test_a_peer_that_cannot_be_encrypted_for_is_refused(
        self, attributes: dict[str, Any], reason: str
    ) -> None:
        refused = replace(PEER, attributes=replace(PEER.attributes, **attributes))

        assert backend().objection(refused, HOST) == reason
        assert backend().plan_peer(refused, HOST) == State.EMPTY

    def test_of_two_peers_with_one_key_the_first_publisher_stays(self) -> None:
        first = replace(PEER, since=3)
        second = replace(PEER, subnet=IPv4Network("10.100.7.0/24"), since=9)

        assert list(backend().outranked([second, first], HOST)) == [second.subnet]


class TestConfig:
    @pytest.mark.parametrize("mode", ["separate", "auto", "ipv6"])
    def test_only_the_mode_ipv4_needs_ipv4(self, mode: str) -> None:
        alone = replace(DUAL_CONFIG, enable_ipv4=False, is_assigned=True)

        found = parse(replace(alone, backend={"Type": "wireguard", "Mode": mode}))

        assert (found.mode, found.network) == (mode, None)
        assert found.tunnel_port == (51821 if mode == "separate" else 51820)
        with pytest.raises(ConfigError, match="Mode ipv4 needs EnableIPv4"):
            parse(replace(alone, backend={"Type": "wireguard", "Mode": "ipv4"}))

    @pytest.mark.parametrize(("mode", "ports"), [("separate", (51820, 51821)), ("ipv6", (51820, 51820))])
    def test_each_family_has_the_port_of_its_device(self, mode: str, ports: tuple[int, int]) -> None:
        found = parse(replace(DUAL_CONFIG, backend={"Type": "wireguard", "Mode": mode}))

        assert (found.tunnel_port_in(4), found.tunnel_port_in(6)) == ports

    @pytest.mark.parametrize("mode", ["separate", "auto", "ipv4", None])
    def test_modes_with_ipv4_are_accepted(self, mode: str | None) -> None:
        assert backend(Mode=mode).udp_port == 51820

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"Mode": "x"}, "no valid Mode configured"),
            ({"ListenPort": 0}, r"Backend\.ListenPort is 0"),
            ({"ListenPortV6": "1"}, r"Backend\.ListenPortV6 is "),
            ({"PersistentKeepaliveInterval": -1}, r"Backend\.PersistentKeepaliveInterval is -1"),
            ({"MTU": 20}, r"Backend\.MTU is 20"),
            ({"PSK": PSK[:-5]}, "Backend.PSK is not a key of 32 bytes in base64: it has 39 characters"),
        ],
    )
    def test_a_bad_value_is_named(self, keys: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            backend(**keys)

    def test_no_message_repeats_the_preshared_key(self) -> None:
        with pytest.raises(ConfigError) as error:
            backend(PSK=PSK[:-5])

        assert PSK[:8] not in error.value.in_full
        assert PSK not in repr(backend(PSK=PSK))

    def test_the_backend_is_registered(self) -> None:
        assert isinstance(backend_of(CONFIG), WireguardBackend)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (f'{{"PublicKey":"{PEER_KEY}","Port":51820}}', WireguardData(public_key=PEER_KEY, port=51820)),
        (f'{{"PublicKey":"{PEER_KEY}"}}', WireguardData(public_key=PEER_KEY)),
        (f'{{"publickey":"{PEER_KEY}","Port":0,"More":1}}', WireguardData(public_key=PEER_KEY)),
        (f'{{"PublicKey":"{PEER_KEY}","Port":"1"}}', None),
        (f'{{"PublicKey":"{PEER_KEY}","Port":70000}}', None),
        ('{"PublicKey":"short"}', None),
        ('{"VNI":1}', None),
        ("null", None),
        ("[", None),
    ],
)
def test_the_data_of_a_lease_is_read(text: str, data: WireguardData | None) -> None:
    assert parse_wireguard(text) == data
