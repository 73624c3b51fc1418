"""The filter rules of a host, and their verdicts for packets."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Host, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.network_config import Family, NetworkConfig
from pyflannel.model.packet_filter import (
    Accept,
    FilterRule,
    ForeignRule,
    IptablesChain,
    Masquerade,
    NftTable,
    Prefix,
    Return,
    Rules,
    TunnelRule,
    Verdict,
)
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardedPath, GuardedTunnel, GuardMode, GuardPeer, GuardTable
from pyflannel.plan.backends import backend_of
from pyflannel.plan.packet_filter import (
    FilterOptions,
    forward_rules,
    masquerade_rules,
    plan_filter,
    plan_guard,
    plan_guard_peer,
    plan_open_ports,
)

NETWORK, SUBNET = IPv4Network("10.100.0.0/16"), IPv4Network("10.100.1.0/24")
NETWORK6, SUBNET6 = IPv6Network("fd00:5::/48"), IPv6Network("fd00:5:0:1::/64")
EVERYTHING = FilterOptions(masquerades=True, accepts_forwarded=True)

OURS, PEERS, OTHERS = "10.100.1.2", "10.100.2.2", "10.100.3.2"
HOST, CLIENT, WORLD, GROUP = "192.0.2.1", "192.0.2.9", "198.51.100.7", "224.0.0.251"


def verdict(rules: Rules, source: str, destination: str, mark: int = 0) -> Verdict | None:
    """Return the verdict of the first matching rule."""
    for rule in rules:
        assert isinstance(rule, FilterRule)
        if (
            contains(rule.source, source)
            and contains(rule.destination, destination)
            and (rule.mark is None or mark & rule.mark.mask == rule.mark.value)
        ):
            return rule.verdict
    return None


def contains(prefix: Prefix | None, address: str) -> bool:
    return prefix is None or (ip_address(address) in prefix.network) is not prefix.is_negated


def host(device: str = "flannel0", *, ipv6: bool = False) -> Host:
    address = IPv4Address(HOST)
    attributes = LeaseAttributes(public_ip=address)
    lease = Lease(subnet=SUBNET, ipv6_subnet=SUBNET6 if ipv6 else None, attributes=attributes)
    underlay = Underlay(link="eth0", address=address, mtu=1500, public_ip=address)
    return Host(lease=lease, underlay=underlay, device=device)


HOST6 = IPv6Address("2001:db8::1")


def ipv6_host() -> Host:
    one = host(ipv6=True)
    return replace(one, underlay=replace(one.underlay, ipv6_address=HOST6, public_ipv6=HOST6), family=6)


def kinds(state: State) -> set[tuple[str, int, str]]:
    found = set()
    for item in state:
        assert isinstance(item, IptablesChain | NftTable)
        found.add((type(item).__name__, item.family, item.name))
    return found


@pytest.mark.parametrize(
    ("source", "destination", "mark", "expected"),
    [
        (OURS, PEERS, 0, Return()),
        (PEERS, OURS, 0, Return()),
        (OURS, OURS, 0, Return()),
        (CLIENT, OURS, 0, Return()),
        (OURS, WORLD, 0, Masquerade()),
        (OURS, WORLD, 0x4000, Return()),
        (OURS, WORLD, 0xC001, Return()),
        (OURS, WORLD, 0x8000, Masquerade()),
        (OURS, GROUP, 0, None),
        (HOST, PEERS, 0, Masquerade()),
        (HOST, PEERS, 0x4000, Return()),
        (HOST, WORLD, 0, None),
        (PEERS, WORLD, 0, Masquerade()),
        (PEERS, OTHERS, 0, Masquerade()),
    ],
)
def test_masquerading_does_not_change_addresses_inside_the_network(
    source: str, destination: str, mark: int, expected: Verdict | None
) -> None:
    rules = masquerade_rules(NETWORK, SUBNET, is_fully_random=True)

    assert verdict(rules, source, destination, mark) == expected


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (OURS, PEERS, Accept()),
        (PEERS, OURS, Accept()),
        (OURS, WORLD, Accept()),
        (CLIENT, OURS, Accept()),
        (CLIENT, WORLD, None),
    ],
)
def test_packets_from_and_to_the_network_are_forwarded(
    source: str, destination: str, expected: Verdict | None
) -> None:
    assert verdict(forward_rules(NETWORK), source, destination) == expected


def test_source_ports_are_random_unless_a_flag_disables_this() -> None:
    for is_fully_random in (True, False):
        rules = masquerade_rules(NETWORK, SUBNET, is_fully_random=is_fully_random)

        assert verdict(rules, OURS, WORLD) == Masquerade(is_fully_random)


@pytest.mark.parametrize(
    ("options", "iptables", "nftables"),
    [
        (FilterOptions(), set(), set()),
        (
            FilterOptions(masquerades=True),
            {("IptablesChain", 4, "FLANNEL-POSTRTG")},
            {("NftTable", 4, "flannel-ipv4")},
        ),
        (
            FilterOptions(accepts_forwarded=True),
            {("IptablesChain", 4, "FLANNEL-FWD")},
            {("NftTable", 4, "flannel-ipv4"), ("IptablesChain", 4, "FLANNEL-FWD")},
        ),
        (
            EVERYTHING,
            {("IptablesChain", 4, "FLANNEL-FWD"), ("IptablesChain", 4, "FLANNEL-POSTRTG")},
            {("NftTable", 4, "flannel-ipv4"), ("IptablesChain", 4, "FLANNEL-FWD")},
        ),
    ],
)
def test_each_option_has_its_rules_in_the_engine_of_the_config(
    options: FilterOptions, iptables: set[tuple[str, int, str]], nftables: set[tuple[str, int, str]]
) -> None:
    for enable_nftables, expected in ((False, iptables), (True, nftables)):
        config = NetworkConfig(network=NETWORK, enable_nftables=enable_nftables)

        assert kinds(plan_filter(config, host(), options)) == expected


def test_both_engines_have_the_same_rules() -> None:
    chains = {
        item.table: item.rules
        for item in plan_filter(NetworkConfig(network=NETWORK), host(), EVERYTHING)
        if isinstance(item, IptablesChain)
    }
    config = NetworkConfig(network=NETWORK, enable_nftables=True)
    (table,) = [item for item in plan_filter(config, host(), EVERYTHING) if isinstance(item, NftTable)]

    assert {chain.kind: chain.rules for chain in table.chains} == chains


def test_with_nftables_the_accept_rules_in_iptables_exist_only_if_forward_drops() -> None:
    config = NetworkConfig(network=NETWORK, enable_nftables=True)
    (chain,) = [item for item in plan_filter(config, host(), EVERYTHING) if isinstance(item, IptablesChain)]

    assert chain.is_for_dropping
    assert chain.hook == "FORWARD"


@pytest.mark.parametrize("family", [4, 6])
def test_open_ports_accept_each_tunnel_to_the_address_of_the_host(family: Family) -> None:
    one = host() if family == 4 else ipv6_host()
    options = FilterOptions(opens_ports=True, guard="strict")
    for enable_nftables in (False, True):
        config = NetworkConfig(network=NETWORK, enable_nftables=enable_nftables)

        (chain,) = plan_open_ports([8472, 8285, 8472], config, one, options)

        assert isinstance(chain, IptablesChain)
        assert (chain.family, chain.table, chain.hook) == (family, "filter", "INPUT")
        assert chain.name == "FLANNEL-INPUT"
        assert chain.rules == (TunnelRule(one.address, 8285), TunnelRule(one.address, 8472))
        assert one.address.version == family
        assert chain.is_for_dropping == enable_nftables


@pytest.mark.parametrize(
    ("ports", "options"), [([8285], FilterOptions()), ([], FilterOptions(opens_ports=True))]
)
def test_no_chain_opens_ports_without_the_option_or_a_tunnel(
    ports: list[int], options: FilterOptions
) -> None:
    assert plan_open_ports(ports, NetworkConfig(network=NETWORK), host(), options) == State.EMPTY


def test_an_enabled_family_has_rules() -> None:
    dual = NetworkConfig(network=NETWORK, enable_ipv6=True, ipv6_network=NETWORK6)
    only_ipv4 = NetworkConfig(network=NETWORK, ipv6_network=NETWORK6)
    ipv4, ipv6 = host(ipv6=True), replace(host(ipv6=True), family=6)

    for config, one, families in ((dual, ipv4, {4}), (dual, ipv6, {6}), (only_ipv4, ipv6, set())):
        assert {family for _, family, _ in kinds(plan_filter(config, one, EVERYTHING))} == families


def test_a_second_daemon_has_its_own_names() -> None:
    for enable_nftables in (False, True):
        config = NetworkConfig(network=NETWORK, enable_nftables=enable_nftables)
        names = {name for _, _, name in kinds(plan_filter(config, host("flannel1"), EVERYTHING))}

        assert all(name.endswith("-1") for name in names)
        assert all(len(name) <= 28 for name in names)


def test_the_evaluator_refuses_foreign_rules() -> None:
    with pytest.raises(AssertionError):
        verdict((ForeignRule("-j DROP"),), OURS, WORLD)


UDP_PATH = GuardedPath(links=("flannel0",), tunnel=GuardedTunnel(link="flannel0", port=8285))
VXLAN_TUNNEL = GuardedTunnel(link="flannel.1", port=8472, vni=1)
PATHS = {
    "udp": UDP_PATH,
    "vxlan": GuardedPath(links=("flannel.1",), tunnel=VXLAN_TUNNEL),
    "host-gw": GuardedPath(links=("eth0",)),
    "alloc": None,
}


@pytest.mark.parametrize(("kind", "path"), PATHS.items())
def test_each_backend_defines_the_path_of_packets_from_other_hosts(
    kind: str, path: GuardedPath | None
) -> None:
    config = NetworkConfig(network=NETWORK, backend_type=kind)

    assert backend_of(config).guarded_path(host()) == path


def test_with_direct_routing_inner_packets_may_arrive_at_the_underlay() -> None:
    config = NetworkConfig(network=NETWORK, backend_type="vxlan", backend={"DirectRouting": True})

    path = backend_of(config).guarded_path(host())

    assert path == GuardedPath(links=("flannel.1", "eth0"), tunnel=VXLAN_TUNNEL)


@pytest.mark.parametrize(
    ("mode", "sources"), [("strict", IPv4Network("10.100.2.0/24")), ("peer", IPv4Network("0.0.0.0/0"))]
)
def test_the_guard_accepts_only_packets_of_peers(mode: GuardMode, sources: IPv4Network) -> None:
    peer = Lease(
        subnet=IPv4Network("10.100.2.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("192.0.2.2"))
    )

    config = NetworkConfig(network=NETWORK, subnet_length=24)
    (table,) = plan_guard(UDP_PATH, config, host("flannel1"), FilterOptions(guard=mode, users=(995,)))
    (entry,) = plan_guard_peer(UDP_PATH, peer, host("flannel1"), mode)

    assert table == GuardTable(
        device="flannel1",
        underlay="eth0",
        address=IPv4Address(HOST),
        source_length=sources.prefixlen,
        network=NETWORK,
        subnet=SUBNET,
        path=UDP_PATH,
        users=(995,),
    )
    assert entry == GuardPeer(
        device="flannel1", subnet=peer.subnet, address=IPv4Address("192.0.2.2"), port=8285, sources=sources
    )


IPV6_PATHS = {
    "vxlan": GuardedPath(
        links=("flannel-v6.1",), tunnel=GuardedTunnel(link="flannel-v6.1", port=8472, vni=1)
    ),
    "wireguard": GuardedPath(links=("flannel-wg-v6",), refuses_clear=True),
    "host-gw": GuardedPath(links=("eth0",)),
}


@pytest.mark.parametrize(("kind", "path"), IPV6_PATHS.items())
@pytest.mark.parametrize(("mode", "length"), [("strict", 64), ("peer", 0)])
def test_the_guard_of_ipv6_has_the_rules_of_ipv4(
    kind: str, path: GuardedPath, mode: GuardMode, length: int
) -> None:
    """The table of the IPv6 guard has the addresses of IPv6, and a peer without IPv6 has no entry."""
    config = NetworkConfig(network=NETWORK, ipv6_network=NETWORK6, enable_ipv6=True, backend_type=kind)
    one = ipv6_host()
    attributes = LeaseAttributes(public_ip=IPv4Address(HOST), public_ipv6=IPv6Address("2001:db8::2"))
    peer = Lease(
        subnet=IPv4Network("10.100.2.0/24"),
        ipv6_subnet=IPv6Network("fd00:5:0:2::/64"),
        attributes=attributes,
    )

    found = backend_of(config).guarded_path(one)
    (table,) = plan_guard(found, config, one, FilterOptions(guard=mode, users=(995,)))
    entries = plan_guard_peer(found, peer, one, mode)

    assert found == path
    assert table == GuardTable(
        device="flannel0",
        family=6,
        underlay="eth0",
        address=HOST6,
        source_length=length,
        network=NETWORK6,
        subnet=SUBNET6,
        path=path if mode == "strict" else replace(path, refuses_clear=False),
        users=(995,),
    )
    expected = GuardPeer(
        device="flannel0",
        subnet=IPv6Network("fd00:5:0:2::/64"),
        address=IPv6Address("2001:db8::2"),
        port=8472,
        sources=IPv6Network("fd00:5:0:2::/64") if mode == "strict" else IPv6Network("::/0"),
    )
    assert entries == ((expected,) if kind == "vxlan" else ())
    assert not plan_guard_peer(found, replace(peer, ipv6_subnet=None), one, mode)


def test_a_peer_behind_a_translated_port_is_guarded_at_that_port() -> None:
    attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.2"), port=40000)
    peer = Lease(subnet=IPv4Network("10.100.2.0/24"), attributes=attributes)

    (entry,) = plan_guard_peer(UDP_PATH, peer, host(), "strict")

    assert isinstance(entry, GuardPeer)
    assert entry.port == 40000


def test_without_a_tunnel_or_guard_there_are_no_entries() -> None:
    peer = Lease(subnet=IPv4Network("10.100.2.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address(HOST)))
    config = NetworkConfig(network=NETWORK)

    assert not plan_guard_peer(PATHS["host-gw"], peer, host(), "strict")
    assert not plan_guard(None, config, host(), FilterOptions(guard="strict"))
    assert not plan_guard(UDP_PATH, config, host(), FilterOptions(guard="off"))
    assert not plan_guard_peer(UDP_PATH, peer, host(), "off")
