"""The interfaces of a real namespace, and the choice among them."""

from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import TypeVar

import pytest

from pyflannel.errors import NoUnderlayError
from pyflannel.kernel.network.interfaces import KernelInterfaces, parse_resolvers
from pyflannel.model.host import Interfaces, IpsecPolicy, RouteScope, Underlay
from pyflannel.plan.underlay import UnderlayOptions, choose

Result = TypeVar("Result")


@pytest.fixture
def host(namespace):
    """docker4 of the cookbook, with a second interface that has a worse default route."""
    # IPv6 sends notifications seconds after a link was set up, when its addresses proved unique.
    namespace.command("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")
    for name, address in (("eth0", "192.168.50.102/24"), ("eth1", "10.10.10.104/24")):
        namespace.ip(f"link add {name} type veth peer name {name}r")
        namespace.ip(f"address add {address} dev {name}")
        namespace.ip(f"link set {name}r up")
        namespace.ip(f"link set {name} up")
    namespace.settle(eth0="UP", eth0r="UP", eth1="UP", eth1r="UP")
    namespace.ip("route add default via 10.10.10.1 metric 200")
    namespace.ip("route add default via 192.168.50.1 metric 100")
    return namespace


def asked(namespace, work: Callable[[KernelInterfaces], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with KernelInterfaces() as source:
            return await work(source)

    return namespace.run(run)


def observed(namespace) -> Interfaces:
    return asked(namespace, KernelInterfaces.observe)


def chosen(namespace) -> Underlay:
    return choose(UnderlayOptions(), observed(namespace))


def test_the_interface_of_the_default_route_with_its_address_and_mtu(host) -> None:
    host.ip("link set eth0 mtu 1400")

    assert chosen(host) == Underlay(
        link="eth0",
        address=IPv4Address("192.168.50.102"),
        mtu=1400,
        public_ip=IPv4Address("192.168.50.102"),
        on_link=(IPv4Network("192.168.50.0/24"),),
        driver="veth",
    )


def test_the_kernels_own_order_of_default_routes_is_kept(host) -> None:
    host.ip("route delete default via 192.168.50.1")
    assert chosen(host).link == "eth1"

    host.ip("route add default via 192.168.50.1 metric 50")
    assert chosen(host).link == "eth0"


def test_attributes_of_addresses_are_read(host) -> None:
    host.ip("address add 192.168.50.103/24 dev eth0")
    host.ip("address add 192.168.50.104/24 dev eth0 valid_lft 1000 preferred_lft 0")
    host.ip("address add 169.254.7.7/16 dev eth0")

    eth0 = observed(host).named("eth0")

    assert eth0 is not None
    facts = {str(one.address.ip): one for one in eth0.addresses}
    assert facts["192.168.50.103"].is_secondary
    assert facts["192.168.50.104"].is_deprecated
    assert not facts["192.168.50.104"].is_permanent
    assert not facts["169.254.7.7"].is_global
    assert facts["192.168.50.102"].is_permanent
    assert not facts["192.168.50.102"].is_secondary


class TestOnLink:
    """The networks that an interface reaches without a gateway."""

    def of(self, host, name: str) -> list[str]:
        found = observed(host).named(name)
        assert found is not None
        return [str(prefix) for prefix in found.on_link]

    def test_prefixes_of_addresses_and_routes_without_a_gateway(self, host) -> None:
        host.ip("address add 192.168.60.1/25 dev eth0")
        host.ip("route add 172.20.0.0/16 dev eth0")
        host.ip("route add 172.21.0.0/16 via 192.168.50.1 dev eth0")
        host.ip("route add 172.22.0.0/16 nexthop via 192.168.50.1 dev eth0 nexthop via 10.10.10.1 dev eth1")
        host.ip("route add blackhole 172.23.0.0/16")
        host.ip("route add local 172.26.0.0/16 dev eth0 table main")
        host.ip("route add 172.24.0.0/16 dev eth0 table 100")
        host.ip("route add 172.25.0.1/32 dev eth0")
        # An owned route: the containers of a peer are behind this route.
        host.ip("route add 172.27.0.0/16 dev eth0 proto 80")

        assert self.of(host, "eth0") == [
            "172.20.0.0/16",
            "172.25.0.1/32",
            "192.168.50.0/24",
            "192.168.60.0/25",
        ]
        assert self.of(host, "eth1") == ["10.10.10.0/24"]

    def test_a_link_that_is_down_keeps_the_networks_of_its_addresses(self, host) -> None:
        """The kernel removes the routes of the link. Peers must not become unreachable because of the removed
        routes.
        """
        host.ip("link set eth0 down")

        assert self.of(host, "eth0") == ["192.168.50.0/24"]

    def test_an_address_with_a_full_prefix_adds_no_network(self, host) -> None:
        host.ip("address add 172.20.0.1/32 dev eth0")
        host.ip("address add 172.21.0.1/16 dev eth0 noprefixroute")
        host.ip("address add 172.22.0.1 peer 172.22.0.2/32 dev eth0")

        assert self.of(host, "eth0") == ["172.22.0.2/32", "192.168.50.0/24"]

    def test_the_default_route_is_not_a_prefix_of_its_link(self, host) -> None:
        host.ip("route add default dev eth0 metric 7")

        assert self.of(host, "eth0") == ["192.168.50.0/24"]


class TestScope:
    """The routes of other programs that may overlap a network."""

    NETWORK = IPv4Network("172.20.0.0/16")
    SCOPE = RouteScope(networks=frozenset([NETWORK, IPv4Network("10.100.0.0/16")]), protocol=101)

    def of(self, host) -> list[str]:
        found = asked(host, lambda source: source.observe(self.SCOPE))
        return [f"{route.destination} {route.kind} {route.link} {route.protocol}" for route in found.routes]

    def test_overlapping_routes_are_read_except_owned_and_default_routes(self, host) -> None:
        """Prefixes may be equal, smaller or larger than the network, with any type and protocol of route."""
        host.ip("route add 172.20.1.0/24 via 192.168.50.1 metric 5")
        host.ip("route add 172.20.0.0/16 dev eth0")
        host.ip("route add 172.16.0.0/12 via 10.10.10.1 proto static")
        host.ip("route add blackhole 172.20.2.0/24")
        host.ip("route add 172.20.3.0/24 via 192.168.50.1 proto 80")
        host.ip("route add 172.20.4.0/24 via 192.168.50.1 proto 101")
        host.ip("route add 172.21.0.0/16 via 192.168.50.1")
        host.ip("route add 172.20.5.0/24 via 192.168.50.1 table 100")
        host.ip("address add 10.100.7.1/24 dev eth1")

        assert sorted(self.of(host)) == [
            "10.100.7.0/24 unicast eth1 2",
            "172.16.0.0/12 unicast eth1 4",
            "172.20.0.0/16 unicast eth0 3",
            "172.20.1.0/24 unicast eth0 3",
            "172.20.2.0/24 blackhole  3",
            "172.20.3.0/24 unicast eth0 80",
        ]

    def test_the_prefixes_of_a_link_are_independent_of_the_scope(self, host) -> None:
        """A route of another daemon leads to containers, not to hosts on the link."""
        host.ip("route add 172.20.3.0/24 dev eth0 proto 80")

        found = asked(host, lambda source: source.observe(self.SCOPE))

        assert found.interfaces == observed(host).interfaces
        assert found.default_routes == observed(host).default_routes
        assert [route.gateway for route in found.default_routes] == [
            IPv4Address("192.168.50.1"),
            IPv4Address("10.10.10.1"),
        ]

    @pytest.mark.parametrize(
        ("words", "wakes_up"),
        [
            ("172.20.1.0/24 via 192.168.50.1", True),
            ("172.16.0.0/12 via 192.168.50.1", True),
            ("172.20.1.0/24 via 192.168.50.1 proto 101", False),
            ("172.21.0.0/16 via 192.168.50.1", False),
        ],
    )
    def test_a_change_is_announced(self, host, listen, words: str, wakes_up: bool) -> None:
        async def work(source: KernelInterfaces) -> None:
            await source.observe(self.SCOPE)
            async with listen(source.changes()) as wakes:
                await wakes.silence()
                host.ip(f"route add {words}")
                if wakes_up:
                    await wakes.next()
                else:
                    assert await wakes.silence() == 0

        asked(host, work)


def test_the_dns_servers_are_read() -> None:
    """Lines of other kinds are ignored (resolv.conf(5))."""
    lines = [
        "search example",
        "nameserver 10.9.0.1",
        " nameserver\t10.9.0.2 ",
        "nameserver fd00::1",
        "nameserver fe80::1%eth0",
        "nameserver",
        "#nameserver 10.9.0.3",
    ]
    text = "\n".join(lines)

    assert [str(address) for address in parse_resolvers(text)] == [
        "10.9.0.1",
        "10.9.0.2",
        "fd00::1",
        "fe80::1",
    ]


def test_the_default_route_of_another_table_is_used_if_the_main_table_has_none(host) -> None:
    host.ip("route flush 0.0.0.0/0")
    host.ip("route add default via 10.10.10.1 table 100")
    host.ip("rule add lookup 100")

    assert chosen(host).link == "eth1"


def test_routing_rules_are_followed_if_the_main_table_has_an_unreachable_route(host) -> None:
    host.ip("route flush 0.0.0.0/0")
    host.ip("route add unreachable default")
    host.ip("route add default via 10.10.10.1 table 100")
    host.ip("rule add lookup 100")

    assert chosen(host).link == "eth1"


def test_a_blackhole_default_route_is_ignored(host) -> None:
    host.ip("route flush 0.0.0.0/0")
    host.ip("route add unreachable default")

    with pytest.raises(NoUnderlayError, match="no default route"):
        chosen(host)


def test_the_first_next_hop_of_a_multipath_default_route_is_used(host) -> None:
    host.ip("route flush 0.0.0.0/0")
    host.ip("route add default nexthop via 10.10.10.1 dev eth1 nexthop via 192.168.50.1 dev eth0")

    assert chosen(host).link == "eth1"


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("10.10.10.77", ("eth1", "10.10.10.104")),
        ("8.8.8.8", ("eth0", "192.168.50.102")),
        ("192.168.50.102", ("lo", "192.168.50.102")),
    ],
)
def test_the_route_of_packets_is_looked_up_in_the_kernel(host, address: str, answer: tuple[str, str]) -> None:
    link, source = asked(host, lambda source: source.route_to(IPv4Address(address)))

    assert (link, str(source)) == answer


def test_there_is_no_result_without_a_route(host) -> None:
    host.ip("route flush 0.0.0.0/0")

    assert asked(host, lambda source: source.route_to(IPv4Address("8.8.8.8"))) is None


@pytest.mark.parametrize(
    "words",
    [
        "link set eth0 mtu 1400",
        "link set eth0 down",
        "address add 192.168.50.110/24 dev eth0",
        "address delete 192.168.50.102/24 dev eth0",
        "route delete default via 192.168.50.1",
        "route add default via 192.168.50.1 metric 5",
        "route add 172.20.0.0/16 via 10.10.10.1",
        "xfrm policy add src 10.0.0.0/8 dst 10.0.0.0/8 dir out",
        "xfrm policy setdefault in block",
    ],
)
def test_relevant_changes_are_announced(host, listen, words: str) -> None:
    async def work(source: KernelInterfaces) -> None:
        await source.route_to(IPv4Address("172.20.1.1"))
        async with listen(source.changes()) as wakes:
            await wakes.silence()
            host.ip(words)
            await wakes.next()

    asked(host, work)


@pytest.mark.parametrize("words", ["172.21.0.0/16 via 10.10.10.1", "172.21.0.0/16 dev eth0 protocol 80"])
def test_irrelevant_and_owned_routes_are_not_announced(host, listen, words: str) -> None:
    async def work(source: KernelInterfaces) -> None:
        await source.route_to(IPv4Address("172.20.1.1"))
        async with listen(source.changes()) as wakes:
            await wakes.silence()
            host.ip(f"route add {words}")
            assert await wakes.silence() == 0

    asked(host, work)


def test_waiting_ends_when_the_address_is_added(namespace, listen) -> None:
    """From no interface to a choice, with a notification of the kernel at each step."""
    namespace.command("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")
    steps = [
        "link add eth0 type veth peer name eth0r",
        "link set eth0r up",
        "link set eth0 up",
        "address add 192.168.50.102/24 dev eth0",
        "route add default via 192.168.50.1",
    ]

    async def work(source: KernelInterfaces) -> list[str]:
        waited_for: list[str] = []
        async with listen(source.changes()) as wakes:
            for words in steps:
                try:
                    choose(UnderlayOptions(), await source.observe())
                except NoUnderlayError as error:
                    waited_for.append(str(error))
                await wakes.silence()
                namespace.ip(words)
                await wakes.next()
            assert choose(UnderlayOptions(), await source.observe()).link == "eth0"
        return waited_for

    assert asked(namespace, work) == ["an interface to use: no default route"] * len(steps)


def test_ipsec_policies_are_read(host) -> None:
    """The list ends with policies that block all other packets. The newest policy is first."""
    ends = "src 10.0.0.1/32 dst 10.0.0.0/16"
    host.ip(f"xfrm policy add {ends} proto udp dport 8285 dir out action block mark 7 mask 7")
    host.ip(f"xfrm policy add {ends} dev eth0 proto tcp sport 5 dir fwd priority 9")
    host.ip("xfrm policy add src fd00::/8 dst fd00::/8 dir in")
    host.ip("xfrm policy setdefault in block")
    everybody = IPv4Network("0.0.0.0/0")

    found = observed(host)
    eth0 = found.named("eth0")
    assert eth0 is not None
    assert found.policies == (
        IpsecPolicy(direction="in", source=IPv6Network("fd00::/8"), destination=IPv6Network("fd00::/8")),
        IpsecPolicy(
            direction="forward",
            source=IPv4Network("10.0.0.1/32"),
            destination=IPv4Network("10.0.0.0/16"),
            protocol=6,
            source_port=5,
            source_port_mask=0xFFFF,
            link=eth0.index,
            priority=9,
        ),
        IpsecPolicy(
            direction="out",
            source=IPv4Network("10.0.0.1/32"),
            destination=IPv4Network("10.0.0.0/16"),
            protocol=17,
            port=8285,
            port_mask=0xFFFF,
            mark=7,
            mark_mask=7,
            is_block=True,
        ),
        *(
            IpsecPolicy(direction="in", source=one, destination=one, priority=1 << 32, is_block=True)
            for one in (everybody, IPv6Network("::/0"))
        ),
    )


def test_too_many_policies_are_replaced_by_one_for_all_addresses(host) -> None:
    lines = [f"xfrm policy add src 10.0.0.{n}/32 dst 10.1.0.0/16 dir out" for n in range(65)]
    host.command("ip", "-batch", "-", given="\n".join(lines) + "\n")

    assert {policy.source for policy in observed(host).policies} == {IPv4Network("0.0.0.0/0")}
