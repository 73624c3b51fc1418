"""The plans of the backend vxlan."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any

import pytest
from msgspec.structs import replace

from pyflannel.errors import ConfigError
from pyflannel.model.fast_path import BpfContainer, BpfProgram, Role, Tunnel
from pyflannel.model.host import Bridge, BridgedContainer, Host, IpsecPolicy, Surroundings, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep
from pyflannel.model.link import Address, Link, Vxlan
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import State
from pyflannel.model.wireguard import UNKNOWN
from pyflannel.plan.backend.vxlan import VxlanBackend, parse, vtep_mac
from pyflannel.plan.backends import backend_of
from pyflannel.plan.generations import Generation, basis_of

CONFIG = NetworkConfig(network=IPv4Network("10.100.0.0/16"), subnet_length=24, backend_type="vxlan")
OWN = Lease(
    subnet=IPv4Network("10.100.15.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("203.0.113.9"))
)
MAC = "0e:2a:00:00:00:01"
HOST = Host(
    lease=OWN,
    owner="f00d",
    kernel="6.1.0",
    underlay=Underlay(
        link="eth0",
        address=IPv4Address("192.168.50.102"),
        mtu=1500,
        public_ip=IPv4Address("203.0.113.9"),
        on_link=(IPv4Network("192.168.50.0/24"),),
    ),
)


def peer(
    subnet: str = "10.100.93.0/24",
    address: str = "10.10.10.101",
    mac: str = MAC,
    *,
    vni: int | None = 1,
    revision: int = 1,
    since: int = 1,
) -> Lease:
    attributes = LeaseAttributes(
        public_ip=IPv4Address(address), backend_type="vxlan", vtep=Vtep(mac=mac, vni=vni)
    )
    return Lease(subnet=IPv4Network(subnet), attributes=attributes, revision=revision, since=since)


def configured(**backend: object) -> VxlanBackend:
    return parse(replace(CONFIG, backend={"Type": "vxlan", **backend}))


def device(backend: VxlanBackend, host: Host = HOST) -> Link:
    return next(item for item in backend.plan_host(host) if isinstance(item, Link))


def vtep(backend: VxlanBackend, host: Host = HOST) -> Vxlan:
    found = device(backend, host).vxlan
    assert found is not None
    return found


DUAL = replace(
    HOST,
    lease=replace(OWN, ipv6_subnet=IPv6Network("fd00:5:0:15::/64")),
    underlay=replace(
        HOST.underlay,
        on_link=(IPv4Network("192.168.50.0/24"), IPv6Network("fd07::/64")),
        ipv6_address=IPv6Address("fd07::102"),
        public_ipv6=IPv6Address("fd07::102"),
    ),
    family=6,
)
MAC_V6 = "0e:2a:00:00:00:06"


def dual_peer(address: str | None = "fd08::101", mac: str | None = MAC_V6, **changes: Any) -> Lease:
    """Return a peer with an IPv6 part: its address and its VTEP."""
    known = peer(**changes)
    attributes = replace(
        known.attributes,
        public_ipv6=None if address is None else IPv6Address(address),
        vtep_v6=None if mac is None else Vtep(mac=mac, vni=1),
    )
    return replace(known, ipv6_subnet=IPv6Network("fd00:5:0:93::/64"), attributes=attributes)


class TestIpv6:
    """The device, the tunnel and the routes of IPv6 are separate from the IPv4 device, tunnel and routes."""

    def test_the_host_has_a_device_of_its_own_for_ipv6(self) -> None:
        """The outer IPv6 header is 20 bytes longer. IPv6 needs no search for duplicate addresses on this
        device.
        """
        found = device(VxlanBackend(), DUAL)

        assert (found.name, found.mtu, found.has_ipv6, found.accepts_routers) == (
            "flannel-v6.1",
            1430,
            True,
            False,
        )
        assert vtep(VxlanBackend(), DUAL).local == IPv6Address("fd07::102")
        assert found.mac == vtep_mac("f00d", family=6) != vtep_mac("f00d")
        assert Address(link="flannel-v6.1", address=IPv6Interface("fd00:5:0:15::/128")) in list(
            VxlanBackend().plan_host(DUAL)
        )

    def test_a_peer_has_the_same_three_objects_for_ipv6(self) -> None:
        base = IPv6Address("fd00:5:0:93::")

        assert VxlanBackend().plan_peer(dual_peer(), DUAL) == State.of(
            FdbEntry(link="flannel-v6.1", mac=MAC_V6, destination=IPv6Address("fd08::101")),
            Neighbour(link="flannel-v6.1", address=base, mac=MAC_V6),
            Route(
                destination=IPv6Network("fd00:5:0:93::/64"),
                gateway=base,
                link="flannel-v6.1",
                metric=1024,
                is_onlink=True,
            ),
        )

    def test_a_peer_on_the_link_is_routed_directly(self) -> None:
        assert VxlanBackend(routes_directly=True).plan_peer(dual_peer("fd07::5"), DUAL) == State.of(
            Route(
                destination=IPv6Network("fd00:5:0:93::/64"),
                gateway=IPv6Address("fd07::5"),
                link="eth0",
                metric=1024,
            )
        )

    @pytest.mark.parametrize(
        ("known", "reason"),
        [
            (peer(), "its lease has no IPv6 subnet or no PublicIPv6, so that only IPv4 reaches it"),
            (dual_peer(None), "its lease has no IPv6 subnet or no PublicIPv6, so that only IPv4 reaches it"),
            (dual_peer(mac=None), "error decoding subnet lease JSON: no VtepMAC in BackendV6Data None"),
            (
                dual_peer("fe80::1"),
                "fe80::1 is a link-local address, which is ambiguous",
            ),
            (dual_peer("ff02::1"), "ff02::1 is not the address of a host"),
            (dual_peer("fd07::102"), "fd07::102 is an address of this host"),
            (dual_peer(mac=vtep_mac("f00d", family=6)), "is that of this host: is the peer a copy"),
        ],
    )
    def test_a_peer_without_a_usable_ipv6_part_is_reached_by_ipv4_alone(
        self, known: Lease, reason: str
    ) -> None:
        backend = VxlanBackend()

        assert reason in (backend.objection(known, DUAL) or "")
        assert backend.plan_peer(known, DUAL) == State.EMPTY
        assert len(backend.plan_peer(known, replace(DUAL, family=4))) == 3

    @pytest.mark.parametrize(
        ("mtu", "outer", "obstacle"),
        [
            (1350, None, None),
            (1349, None, "an MTU of 1350 or more on eth0, which has 1349"),
            (1500, 1349, "a Backend.MTU of 1350 or more, which IPv6 needs, instead of 1349"),
        ],
    )
    def test_ipv6_needs_a_larger_mtu(self, mtu: int, outer: int | None, obstacle: str | None) -> None:
        underlay = replace(DUAL.underlay, mtu=mtu)

        assert VxlanBackend(outer_mtu=outer).obstacle(underlay, UNKNOWN) == obstacle

    def test_of_two_peers_with_one_mac_address_the_first_keeps_the_address(self) -> None:
        first = dual_peer("fd08::1", since=1)
        other = replace(dual_peer("fd08::2", subnet="10.100.94.0/24", since=2))

        outranked = VxlanBackend().outranked([other, first], DUAL)

        assert list(outranked) == [other.subnet]


def test_the_host_has_one_device_with_the_address_of_its_interface() -> None:
    """Packets have this source address also behind a NAT."""
    assert VxlanBackend().plan_host(HOST) == State.of(
        Link(
            name="flannel.1",
            kind="vxlan",
            mtu=1450,
            queue_length=0,
            mac=vtep_mac("f00d"),
            vxlan=Vxlan(vni=1, port=8472, parent="eth0", local=IPv4Address("192.168.50.102")),
        ),
        Address(link="flannel.1", address=IPv4Interface("10.100.15.0/32")),
    )


def test_a_peer_is_a_neighbour_an_fdb_entry_and_a_route() -> None:
    base = IPv4Address("10.100.93.0")

    assert VxlanBackend().plan_peer(peer(), HOST) == State.of(
        Neighbour(link="flannel.1", address=base, mac=MAC),
        FdbEntry(link="flannel.1", mac=MAC, destination=IPv4Address("10.10.10.101")),
        Route(
            destination=IPv4Network("10.100.93.0/24"),
            gateway=base,
            link="flannel.1",
            is_onlink=True,
            protocol=80,
        ),
    )


FLOW = replace(HOST, has_fast_path=True, caches_flows=True)
BRIDGE = Bridge(
    name="docker0",
    addresses=(IPv4Interface("10.100.15.1/24"),),
    containers=(BridgedContainer(address=IPv4Address("10.100.15.2"), mac="02:42:0a:64:0f:02", port="veth1"),),
)
ANY = IPv4Network("0.0.0.0/0")


def programs(state: State) -> list[tuple[str, Role]]:
    return [(item.link, item.role) for item in state if isinstance(item, BpfProgram)]


def planned(host: Host, **backend: object) -> State:
    vxlan = configured(**backend)
    return vxlan.plan_host(host) | vxlan.plan_bridges((BRIDGE,), host)


def test_mode_flow_has_programs_at_the_underlay_the_bridge_and_the_veths_of_containers() -> None:
    state = planned(FLOW, VNI=7, Port=4789)

    assert set(programs(state)) == {
        ("eth0", Role.DECAPSULATE),
        ("eth0", Role.NEXT_HOP),
        ("docker0", Role.LAST_HOP),
        ("veth1", Role.SHORTCUT),
    }
    assert {item.tunnel for item in state.of_type(BpfProgram)} == {
        Tunnel(
            device="flannel0",
            underlay="eth0",
            address=IPv4Address("192.168.50.102"),
            subnet=IPv4Network("10.100.15.0/24"),
            port=4789,
            mtu=1450,
            caches_flows=True,
            vxlan_link="flannel.7",
            vni=7,
        )
    }
    assert [item.link for item in state.of_type(BpfContainer)] == ["veth1"]
    assert ("link", "flannel.7") in next(iter(state.of_type(BpfProgram))).requires


def policy(direction: str, port: int) -> Surroundings:
    source, destination = (ANY, ANY)
    found = IpsecPolicy(
        direction=direction,
        source=source,
        destination=destination,
        protocol=17,
        port=port,
        port_mask=0xFFFF,
    )
    return Surroundings(policies=(found,))


@pytest.mark.parametrize(
    "host",
    [
        HOST,
        replace(FLOW, caches_flows=False),
        replace(FLOW, has_fast_path=False),
        replace(FLOW, surroundings=policy("in", 8472)),
        replace(FLOW, surroundings=policy("out", 8472)),
        replace(FLOW, kernel="5.6.0"),
    ],
    ids=["mode off", "mode safe", "kernel refuses", "IPsec in", "IPsec out", "inner checksums in software"],
)
def test_no_program_is_planned(host: Host) -> None:
    assert not list(planned(host).of_type(BpfProgram))
    assert not list(planned(host).of_type(BpfContainer))


def test_the_ipv6_part_has_no_program() -> None:
    dual = replace(DUAL, has_fast_path=True, caches_flows=True)

    assert not list(planned(dual).of_type(BpfProgram))


def test_a_note_names_policies_that_end_caching() -> None:
    secured = replace(FLOW, surroundings=policy("in", 8472))

    assert "IPsec policies may concern the tunnel" in " ".join(configured().notes(secured))
    assert "IPsec" not in " ".join(configured().notes(replace(secured, has_fast_path=False)))
    assert "IPsec" not in " ".join(configured().notes(replace(FLOW, surroundings=policy("in", 4789))))


def test_during_a_change_of_the_backend_vxlan_has_no_program() -> None:
    """The programs of a host share their tables."""
    other = replace(CONFIG, backend={"Type": "vxlan", "VNI": 2})
    backends = configured(), configured(VNI=2)
    generations = [Generation(CONFIG, backends[0]), Generation(other, backends[1])]

    alone = basis_of(generations[:1], FLOW, backends[0])
    both = basis_of(generations, FLOW, backends[1])

    assert [view.host.has_fast_path for view in alone.views] == [True]
    assert [view.host.has_fast_path for view in both.views] == [False, False]


def test_the_device_keeps_its_mac_address_and_the_lease_contains_it() -> None:
    backend = VxlanBackend(vni=7)

    assert backend.lease_data("f00d", UNKNOWN) == Vtep(mac=device(backend).mac, vni=7)
    assert device(backend, replace(HOST, owner="beef")).mac != device(backend).mac


def leased(mac: str, *, vni: int | None = 1, owner: str | None = "f00d") -> Host:
    attributes = replace(OWN.attributes, owner=owner, vtep=Vtep(mac=mac, vni=vni))
    return replace(HOST, lease=replace(OWN, attributes=attributes))


def test_the_device_has_the_mac_address_of_the_lease() -> None:
    """The original created the device with this MAC address."""
    assert device(VxlanBackend(), leased("36:f5:41:10:dc:86")).mac == "36:f5:41:10:dc:86"
    assert VxlanBackend().objection(peer(), leased(MAC)) is not None
    assert VxlanBackend().objection(peer(mac=vtep_mac("f00d")), leased(MAC)) is None


def test_an_unsuitable_mac_address_in_the_lease_is_not_used() -> None:
    own = vtep_mac("f00d")

    assert device(VxlanBackend(), leased(MAC, vni=2)).mac == own
    assert device(VxlanBackend(), leased(MAC, owner="beef")).mac == own
    assert device(VxlanBackend(), leased("ff:ff:ff:ff:ff:ff")).mac == own
    prefixed = configured(MacPrefix="0E-2A")
    assert device(prefixed, leased("36:f5:41:10:dc:86")).mac == vtep_mac("f00d", b"\x0e\x2a")
    assert device(prefixed, leased("0e:2a:00:00:00:01")).mac == "0e:2a:00:00:00:01"


class TestDirectRouting:
    def test_a_host_receives_packets_without_the_tunnel_once_it_publishes_this(self) -> None:
        """The guard of a host that does not know the config yet drops these packets. The original has no
        guard.
        """
        near = peer(address="192.168.50.101")
        backend = VxlanBackend(routes_directly=True)

        counts = [
            len(backend.plan_peer(replace(near, attributes=replace(near.attributes, **published)), HOST))
            for published in ({}, {"owner": "a"}, {"owner": "a", "reads": ("direct",)})
        ]

        assert counts == [1, 3, 1]
        assert (backend.reads, VxlanBackend().reads) == (("direct",), ())

    def test_a_peer_on_the_link_is_one_route_with_its_address_as_gateway(self) -> None:
        near = peer(address="192.168.50.101")

        assert VxlanBackend(routes_directly=True).plan_peer(near, HOST) == State.of(
            Route(destination=near.subnet, gateway=IPv4Address("192.168.50.101"), link="eth0")
        )

    def test_no_route_to_a_peer_replaces_that_of_the_underlay(self) -> None:
        near = peer("192.168.50.0/24", "192.168.50.101")

        assert VxlanBackend(routes_directly=True).plan_peer(near, HOST) == State.EMPTY

    def test_a_peer_behind_a_router_uses_the_tunnel(self) -> None:
        assert len(VxlanBackend(routes_directly=True).plan_peer(peer(), HOST)) == 3

    def test_without_direct_routing_all_peers_use_the_tunnel(self) -> None:
        assert len(VxlanBackend().plan_peer(peer(address="192.168.50.101"), HOST)) == 3


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (replace(peer(), attributes=replace(peer().attributes, backend_type="udp")), "type=udp"),
        (
            replace(peer(), attributes=replace(peer().attributes, vtep=None)),
            "error decoding subnet lease JSON",
        ),
        (peer(vni=2), "its VNI is 2, not 1"),
        (peer(mac="ff:ff:ff:ff:ff:ff"), "ff:ff:ff:ff:ff:ff is not the address of one device"),
        (peer(mac="01:00:5e:00:00:01"), "not the address of one device"),
        (peer(mac="00:00:00:00:00:00"), "not the address of one device"),
        (peer(mac=vtep_mac("f00d")), "is that of this host"),
        (peer(address="0.0.0.0"), "0.0.0.0 is not the address of a host"),
        (peer(address="127.0.0.1"), "not the address of a host"),
        (peer(address="224.0.0.1"), "not the address of a host"),
        (peer(address="255.255.255.255"), "not the address of a host"),
        (peer(address="192.168.50.255"), "reserved in 192.168.50.0/24"),
        (peer(address="192.168.50.102"), "an address of this host"),
        (peer("192.168.50.0/24"), "192.168.50.0/24 is the prefix of eth0 itself: it is not routed"),
    ],
)
def test_an_invalid_peer_is_refused_with_a_reason(refused: Lease, reason: str) -> None:
    backend = VxlanBackend()

    assert reason in (backend.objection(refused, HOST) or "")
    assert backend.plan_peer(refused, HOST) == State.EMPTY


@pytest.mark.parametrize(("vni", "published"), [(1, None), (70000, 4464), (70000, 70000)])
def test_leases_of_old_releases_are_understood(vni: int, published: int | None) -> None:
    """Release 0.6 publishes no VNI, and release 0.20 only its lower 16 bits."""
    assert VxlanBackend(vni=vni).objection(peer(vni=published), HOST) is None


class TestOneMacAddressTwice:
    OLD = peer("10.100.94.0/24", "10.10.10.101", revision=12, since=4)
    NEW = peer("10.100.93.0/24", "10.10.10.102", revision=9, since=9)

    def test_the_first_publisher_has_precedence_in_any_order(self) -> None:
        """The first publisher keeps precedence after a renewal, which makes its lease the latest lease."""
        for peers in ([self.OLD, self.NEW], [self.NEW, self.OLD]):
            outranked = VxlanBackend().outranked(peers, HOST)

            assert outranked.keys() == {self.NEW.subnet}
            assert "10.100.94.0/24 at 10.10.10.101, which published it first" in (outranked[self.NEW.subnet])

    def test_the_lowest_subnet_has_precedence_among_equals(self) -> None:
        old, new = replace(self.OLD, since=0), replace(self.NEW, since=0)

        assert VxlanBackend().outranked([new, old], HOST).keys() == {old.subnet}

    def test_two_leases_of_one_host_do_not_disturb_each_other(self) -> None:
        same = peer("10.100.95.0/24", "10.10.10.101", since=9)

        assert VxlanBackend().outranked([self.OLD, same], HOST) == {}

    def test_refused_and_directly_routed_peers_have_no_precedence(self) -> None:
        refused = peer("10.100.95.0/24", "10.10.10.102", vni=9, since=1)
        near = peer("10.100.96.0/24", "192.168.50.101", since=1)

        assert VxlanBackend(routes_directly=True).outranked([self.OLD, refused, near], HOST) == {}


class TestConfig:
    def test_omitted_keys_of_the_config_have_their_defaults(self) -> None:
        backend = configured()

        assert backend == VxlanBackend()
        assert (
            backend.config_line == "VXLAN config: VNI=1 Port=0 GBP=false Learning=false DirectRouting=false"
        )

    def test_every_key_of_the_config_is_read_in_any_case(self) -> None:
        backend = configured(
            vni=7, PORT=4789, gbp=True, learning=True, directrouting=True, mtu=1400, macprefix="0E-2A"
        )

        assert device(backend).name == "flannel.7"
        assert device(backend).mac.startswith("0e:2a:")
        assert device(backend).mtu == backend.mtu(HOST) == 1350
        assert vtep(backend) == Vxlan(
            vni=7, port=4789, parent="eth0", local=HOST.underlay.address, has_gbp=True, learns=True
        )
        assert (
            backend.config_line == "VXLAN config: VNI=7 Port=4789 GBP=true Learning=true DirectRouting=true"
        )
        assert backend.notes(HOST) == ()

    @pytest.mark.parametrize(
        ("key", "value", "shown", "allowed"),
        [
            ("VNI", "1", '"1"', "0 to 16777215"),
            ("VNI", -1, "-1", "0 to 16777215"),
            ("VNI", 2**24, "16777216", "0 to 16777215"),
            ("VNI", 1.0, "1.0", "0 to 16777215"),
            ("VNI", True, "true", "0 to 16777215"),
            ("Port", 65536, "65536", "0 to 65535"),
            ("Port", -1, "-1", "0 to 65535"),
            ("Port", [8472], "[8472]", "0 to 65535"),
            ("GBP", "true", '"true"', "true or false"),
            ("Learning", 1, "1", "true or false"),
            ("DirectRouting", "x" * 99, "xxx…", "true or false"),
            ("MTU", 117, "117", "118 to 65535"),
            ("MTU", 0, "0", "118 to 65535"),
            ("MacPrefix", "0E", '"0E"', '"0E-2A"'),
            ("MacPrefix", "01-00", '"01-00"', '"0E-2A"'),
            ("MacPrefix", 7, "7", '"0E-2A"'),
        ],
    )
    def test_a_bad_value_is_reported_with_the_allowed_values(
        self, key: str, value: object, shown: str, allowed: str
    ) -> None:
        with pytest.raises(ConfigError, match="error decoding VXLAN backend config: ") as caught:
            configured(**{key: value})

        assert f"Backend.{key} is " in str(caught.value)
        assert shown in str(caught.value)
        assert allowed in str(caught.value)
        assert allowed in caught.value.hint

    @pytest.mark.parametrize("key", ["VNI", "Port", "GBP", "Learning", "DirectRouting", "MTU", "MacPrefix"])
    def test_null_means_the_default(self, key: str) -> None:
        assert configured(**{key: None}) == VxlanBackend()

    def test_a_key_without_effect_is_named(self) -> None:
        (note,) = configured(Name="tunnel").notes(HOST)

        assert note.startswith("Backend.Name has no effect: the vxlan backend knows VNI, Port, GBP, ")

    @pytest.mark.parametrize(
        ("vni", "name"),
        [
            (0, ("flannel.0", "flannel-v6.0")),
            (9_999, ("flannel.9999", "flannel-v6.9999")),
            (10_000, ("flannel.10000", "flannel6x2710")),
            (9_999_999, ("flannel.9999999", "flannel6x98967f")),
            (10_000_000, ("flannel.x989680", "flannel6x989680")),
        ],
    )
    def test_the_names_of_the_devices_are_valid_in_the_kernel(self, vni: int, name: tuple[str, str]) -> None:
        backend = configured(VNI=vni)
        assert (backend.device(), backend.device(6)) == name
        assert max(map(len, name)) <= 15

    def test_a_network_with_ipv6_alone_is_refused_in_etcd_with_the_remedy(self) -> None:
        config = replace(CONFIG, enable_ipv4=False, enable_ipv6=True)

        with pytest.raises(ConfigError, match="EnableIPv4=false: etcd has no leases with IPv6") as caught:
            backend_of(config)

        assert "--kube-subnet-mgr" in caught.value.hint
        assert backend_of(replace(config, is_assigned=True)) == VxlanBackend()

    def test_the_setting_enable_ipv6_has_an_effect(self) -> None:
        assert parse(replace(CONFIG, enable_ipv6=True)).config_warnings == ()

    def test_the_backend_is_found_by_its_type(self) -> None:
        assert backend_of(CONFIG) == VxlanBackend()


class TestHost:
    def test_the_mtu_is_at_most_that_of_the_underlay(self) -> None:
        backend = configured(MTU=9000)

        assert device(backend).mtu == backend.mtu(HOST) == 1450
        assert backend.notes(HOST) == (
            "Backend.MTU is 9000, and eth0 carries up to 1500, which is used;"
            " allowed on this host are 118 to 1500",
        )

    def test_an_underlay_with_a_tiny_mtu_is_an_obstacle(self) -> None:
        narrow = replace(HOST.underlay, mtu=117)

        assert VxlanBackend().obstacle(HOST.underlay, UNKNOWN) is None
        assert "eth0, which has 117" in (VxlanBackend().obstacle(narrow, UNKNOWN) or "")

    def test_checksums_are_offloaded_unless_the_device_corrupts_checksums(self) -> None:
        trapped = replace(HOST, kernel="5.6.12")

        assert vtep(VxlanBackend()).offloads_checksums
        assert not vtep(VxlanBackend(), trapped).offloads_checksums
        assert "Linux 5.6.12" in VxlanBackend().notes(trapped)[0]
        assert VxlanBackend().notes(HOST) == ()
