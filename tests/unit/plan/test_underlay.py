"""The interface is chosen by the options or by the default route, or the missing condition is named."""

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_interface
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import NoUnderlayError
from pyflannel.model.host import DefaultRoute, Interface, InterfaceAddress, Interfaces, Underlay
from pyflannel.model.link import MARK
from pyflannel.plan.underlay import UnderlayOptions, choose, narrate


def held(text: str, **facts: bool) -> InterfaceAddress:
    address = ip_interface(text)
    facts.setdefault("is_global", not address.ip.is_link_local)
    return InterfaceAddress(address=address, **facts)


def interface(name: str, *addresses: str | InterfaceAddress, index: int = 2, **facts) -> Interface:
    return Interface(
        name=name,
        index=index,
        mtu=facts.pop("mtu", 1500),
        addresses=tuple(held(one) if isinstance(one, str) else one for one in addresses),
        **facts,
    )


LO = interface("lo", "127.0.0.1/8", "::1/128", index=1, mtu=65536, is_loopback=True)
ETH0 = interface("eth0", "192.168.50.102/24", "fe80::1/64", index=2)
ETH1 = interface("eth1", "10.10.10.102/24", index=3, mtu=9000)
BARE = interface("eth2", "fe80::2/64", index=4)
NO_MTU = interface("eth3", "10.0.0.1/8", mtu=0)
DOCKER0 = interface("docker0", "172.17.0.1/16", index=5, kind="bridge")
FLANNEL0 = interface("flannel0", "10.100.15.0/16", index=6, kind="tun", alias=MARK, mtu=1472)
BY_ETH0 = DefaultRoute(link="eth0", metric=100)
HOST = Interfaces(
    interfaces=(LO, ETH0, ETH1, BARE, DOCKER0, FLANNEL0),
    default_routes=(BY_ETH0, DefaultRoute(link="eth1", metric=200)),
)


def chosen(wanted: UnderlayOptions, interfaces: Interfaces = HOST, reached=None) -> tuple[str, str]:
    underlay = choose(wanted, interfaces, reached)
    return underlay.link, str(underlay.address)


def pattern(text: str) -> UnderlayOptions:
    return UnderlayOptions(iface_regexes=(re.compile(text),))


def test_the_default_is_the_interface_of_the_default_route() -> None:
    assert choose(UnderlayOptions(), HOST) == Underlay(
        link="eth0",
        address=IPv4Address("192.168.50.102"),
        mtu=1500,
        public_ip=IPv4Address("192.168.50.102"),
    )


def test_the_lines_are_those_of_the_original() -> None:
    assert narrate(UnderlayOptions(), HOST) == (
        "Determining IP address of default interface",
        "Using 192.168.50.102 as external interface",
        "Using 192.168.50.102 as external endpoint",
    )


def test_failed_attempts_are_logged_before_the_choice() -> None:
    wanted = UnderlayOptions(ifaces=("eth9", "eth1"), public_ip=IPv4Address("203.0.113.7"))

    assert narrate(wanted, HOST) == (
        "Could not find valid interface matching eth9: no interface is named eth9",
        "Using 10.10.10.102 as external interface",
        "Using 203.0.113.7 as external endpoint",
    )


@given(st.permutations([("eth0", 100), ("eth1", 50), ("docker0", 1), ("flannel0", 0)]))
def test_the_lowest_metric_has_precedence_in_any_order(routes) -> None:
    """Devices of the overlay and of Docker are never chosen."""
    listed = tuple(DefaultRoute(link=link, metric=metric) for link, metric in routes)

    assert (
        chosen(UnderlayOptions(), Interfaces(interfaces=HOST.interfaces, default_routes=listed))[0] == "eth1"
    )


def test_a_bridge_of_the_operator_is_a_normal_interface() -> None:
    br0 = interface("br0", "10.0.0.5/24", kind="bridge")
    host = Interfaces(interfaces=(LO, br0), default_routes=(DefaultRoute(link="br0"),))

    assert chosen(UnderlayOptions(), host) == ("br0", "10.0.0.5")


def test_the_preferred_source_of_the_default_route_is_the_address() -> None:
    two = interface("eth0", "192.168.50.7/24", "192.168.50.102/24")
    route = DefaultRoute(link="eth0", source=IPv4Address("192.168.50.102"))

    assert (
        chosen(UnderlayOptions(), Interfaces(interfaces=(two,), default_routes=(route,)))[1]
        == "192.168.50.102"
    )


def test_a_routed_host_has_its_address_on_loopback() -> None:
    lo = interface("lo", "127.0.0.1/8", "10.9.9.9/32", is_loopback=True)
    unnumbered = interface("eth0", "fe80::1/64")
    route = DefaultRoute(link="eth0", source=IPv4Address("10.9.9.9"))
    host = Interfaces(interfaces=(lo, unnumbered), default_routes=(route,))

    assert chosen(UnderlayOptions(), host) == ("eth0", "10.9.9.9")


@pytest.mark.parametrize(
    ("sought", "link", "address"),
    [
        ("eth1", "eth1", "10.10.10.102"),
        ("10.10.10.102", "eth1", "10.10.10.102"),
        ("fe80::1", "eth0", "192.168.50.102"),  # the original leaves its interface unset, and crashes
        ("docker0", "docker0", "172.17.0.1"),  # an explicit option selects the device
        ("127.0.0.1", "lo", "127.0.0.1"),
    ],
)
def test_an_interface_is_selected_by_name_or_address(sought: str, link: str, address: str) -> None:
    assert chosen(UnderlayOptions(ifaces=(sought,))) == (link, address)


@pytest.mark.parametrize(
    ("text", "link", "address"),
    [
        (r"^10\.10\.", "eth1", "10.10.10.102"),
        (r"eth1", "eth1", "10.10.10.102"),
        (r"168\.50", "eth0", "192.168.50.102"),
        (r"^10\.", "eth1", "10.10.10.102"),  # not the overlay's own 10.100.15.0
        (r".*", "eth0", "192.168.50.102"),  # not 127.0.0.1, which no other host reaches
        (r"eth[12]", "eth1", "10.10.10.102"),  # eth2 has no IPv4 address
    ],
)
def test_a_pattern_is_matched_with_addresses_then_with_names(text: str, link: str, address: str) -> None:
    assert chosen(pattern(text)) == (link, address)


def test_a_pattern_selects_the_matched_address() -> None:
    two = interface("eth0", "192.168.50.102/24", "10.1.1.1/24")

    assert chosen(pattern("^10"), Interfaces(interfaces=(two,))) == ("eth0", "10.1.1.1")


def test_selectors_are_tried_in_the_order_of_the_original() -> None:
    """The order is: names, patterns, and the address that must be reachable."""
    reached = ("eth0", IPv4Address("192.168.50.102"))
    both = UnderlayOptions(
        ifaces=("eth9",), iface_regexes=(re.compile("eth1"),), can_reach=IPv4Address("8.8.8.8")
    )
    last = UnderlayOptions(
        ifaces=("eth9",), iface_regexes=(re.compile("wlan"),), can_reach=IPv4Address("8.8.8.8")
    )

    assert chosen(both, HOST, reached)[0] == "eth1"
    assert chosen(last, HOST, reached)[0] == "eth0"


def test_the_interface_with_an_own_address_is_used_for_this_address() -> None:
    wanted = UnderlayOptions(can_reach=IPv4Address("10.10.10.102"))

    assert chosen(wanted, HOST, ("lo", IPv4Address("10.10.10.102"))) == ("eth1", "10.10.10.102")


def test_a_public_address_selects_the_interface_that_has_it() -> None:
    assert chosen(UnderlayOptions(public_ip=IPv4Address("10.10.10.102"))) == ("eth1", "10.10.10.102")


def test_a_public_address_without_an_interface_belongs_to_a_nat() -> None:
    """The original exits in this case."""
    underlay = choose(UnderlayOptions(public_ip=IPv4Address("203.0.113.7")), HOST)

    assert (underlay.link, str(underlay.address), str(underlay.public_ip)) == (
        "eth0",
        "192.168.50.102",
        "203.0.113.7",
    )


@pytest.mark.parametrize(
    ("addresses", "best"),
    [
        (["169.254.1.1/16", "10.0.0.1/24"], "10.0.0.1"),
        (["169.254.1.1/16"], "169.254.1.1"),
        ([held("10.0.0.1/24", is_permanent=False), "10.0.0.2/24"], "10.0.0.2"),
        ([held("10.0.0.1/24", is_secondary=True), "10.0.0.2/24"], "10.0.0.2"),
        ([held("10.0.0.1/24", is_deprecated=True), held("10.0.0.2/24", is_permanent=False)], "10.0.0.2"),
        (["10.0.0.1/24", "10.0.0.2/24"], "10.0.0.1"),
    ],
)
def test_of_several_addresses_a_permanent_global_one_is_chosen(addresses, best: str) -> None:
    host = Interfaces(interfaces=(interface("eth0", *addresses),))

    assert chosen(UnderlayOptions(ifaces=("eth0",)), host)[1] == best


@pytest.mark.parametrize(
    ("wanted", "interfaces", "reason"),
    [
        (UnderlayOptions(), Interfaces(interfaces=(LO, ETH0)), "no default route"),
        (
            UnderlayOptions(),
            Interfaces(interfaces=(LO,), default_routes=(BY_ETH0,)),
            "uses eth0, which does not exist",
        ),
        (
            UnderlayOptions(),
            Interfaces(interfaces=(BARE,), default_routes=(DefaultRoute(link="eth2"),)),
            "eth2 has no IPv4 address",
        ),
        (UnderlayOptions(ifaces=("eth9",)), HOST, "no interface is named eth9"),
        (UnderlayOptions(ifaces=("10.1.1.1",)), HOST, "no interface has the address 10.1.1.1"),
        (UnderlayOptions(ifaces=("eth2",)), HOST, "eth2 has no IPv4 address"),
        (UnderlayOptions(ifaces=("flannel0",)), HOST, "flannel0 is the overlay's own device"),
        (pattern("wlan"), HOST, r"no interface matches wlan \(found eth0: 192.168.50.102; eth1"),
        (UnderlayOptions(can_reach=IPv4Address("8.8.8.8")), HOST, "no route to 8.8.8.8"),
        (
            UnderlayOptions(ifaces=("e",)),
            Interfaces(interfaces=(interface("e", "10.0.0.1/8", mtu=0),)),
            "e has no MTU",
        ),
    ],
)
def test_the_missing_condition_is_reported_in_one_line(wanted, interfaces, reason: str) -> None:
    with pytest.raises(NoUnderlayError, match=reason) as raised:
        choose(wanted, interfaces)

    assert str(raised.value).startswith("an interface to use: ")
    assert "\n" not in str(raised.value)
    assert raised.value.hint


@given(st.lists(st.sampled_from(HOST.interfaces), unique=True), st.booleans())
def test_the_chosen_interface_exists(present: list[Interface], asks_by_pattern: bool) -> None:
    interfaces = Interfaces(interfaces=tuple(present), default_routes=HOST.default_routes)
    try:
        underlay = choose(pattern("[0-9]") if asks_by_pattern else UnderlayOptions(), interfaces)
    except NoUnderlayError:
        return

    found = interfaces.named(underlay.link)
    assert found is not None
    assert found.holds(underlay.address)
    assert found.alias != MARK


PERMANENT = "fd07::102/64"


class TestIpv6Alone:
    """The interface of a network with IPv6 alone."""

    def chosen(
        self, *, wanted: UnderlayOptions | None = None, routes: tuple[DefaultRoute, ...] = (BY_ETH0,)
    ) -> Underlay:
        eth0 = interface("eth0", "fe80::1/64", PERMANENT, on_link=(IPv6Network("fd07::/64"),))
        eth1 = interface("eth1", "10.10.10.102/24", "fd08::102/64", index=3)
        found = Interfaces(interfaces=(LO, eth0, eth1), ipv6_default_routes=routes)
        return choose(wanted or UnderlayOptions(), found, families=(6,))

    def test_the_default_is_the_interface_of_the_ipv6_default_route(self) -> None:
        assert self.chosen() == Underlay(
            link="eth0",
            address=IPv6Address("fd07::102"),
            mtu=1500,
            public_ip=IPv6Address("fd07::102"),
            on_link=(IPv6Network("fd07::/64"),),
            ipv6_address=IPv6Address("fd07::102"),
            public_ipv6=IPv6Address("fd07::102"),
        )

    @pytest.mark.parametrize(
        "wanted",
        [
            UnderlayOptions(ifaces=("eth1",)),
            UnderlayOptions(ifaces=("fd08::102",)),
            UnderlayOptions(ifaces=("10.10.10.102",)),
            UnderlayOptions(public_ipv6=IPv6Address("fd08::102")),
            pattern("^fd08:"),
            pattern(r"^10\."),
        ],
    )
    def test_an_option_selects_the_interface(self, wanted: UnderlayOptions) -> None:
        found = self.chosen(wanted=wanted)

        assert (found.link, found.address) == ("eth1", IPv6Address("fd08::102"))

    @pytest.mark.parametrize(
        ("target", "source"), [("2001:db8::9", "fd08::102"), ("198.51.100.9", "10.10.10.102")]
    )
    def test_the_route_to_an_address_selects_the_interface(self, target: str, source: str) -> None:
        """The address may be of either family."""
        eth1 = interface("eth1", "10.10.10.102/24", "fd08::102/64", index=3)
        found = Interfaces(interfaces=(LO, ETH0, eth1))
        reached = "eth1", ip_address(source)

        underlay = choose(UnderlayOptions(can_reach=ip_address(target)), found, reached, families=(6,))

        assert (underlay.link, underlay.address) == ("eth1", IPv6Address("fd08::102"))

    def test_the_public_address_of_a_nat_is_published(self) -> None:
        found = self.chosen(wanted=UnderlayOptions(public_ipv6=IPv6Address("2001:db8::9")))

        assert (found.address, found.public_ip) == (IPv6Address("fd07::102"), IPv6Address("2001:db8::9"))
        assert (found.ipv6_address, found.public_ipv6) == (found.address, found.public_ip)

    def test_the_missing_condition_is_named(self) -> None:
        with pytest.raises(NoUnderlayError, match="no IPv6 default route"):
            self.chosen(routes=())
        found = Interfaces(interfaces=(LO, ETH0), ipv6_default_routes=(BY_ETH0,))
        with pytest.raises(NoUnderlayError, match="eth0 has no IPv6 address: other hosts cannot use"):
            choose(UnderlayOptions(), found, families=(6,))


class TestIpv6:
    """The IPv6 address of the interface that IPv4 selects."""

    def chosen(
        self, *addresses: str | InterfaceAddress, wanted: UnderlayOptions | None = None, **facts: Any
    ) -> Underlay:
        eth0 = interface("eth0", "192.168.50.102/24", "fe80::1/64", *addresses, **facts)
        other = interface("eth1", "10.10.10.102/24", "fd08::102/64", index=3)
        found = Interfaces(interfaces=(LO, eth0, other), default_routes=(BY_ETH0,))
        return choose(wanted or UnderlayOptions(), found, families=(4, 6))

    def test_a_permanent_address_is_chosen_before_a_dynamic_address(self) -> None:
        underlay = self.chosen(held("fd07::1/64", is_permanent=False), PERMANENT)

        assert (underlay.link, underlay.ipv6_address) == ("eth0", IPv6Address("fd07::102"))
        assert underlay.public_ipv6 == underlay.ipv6_address
        assert underlay.ipv6_trouble == ""

    @pytest.mark.parametrize(
        ("fact", "word"),
        [
            ("is_secondary", "temporary"),
            ("is_deprecated", "deprecated"),
            ("is_tentative", "not yet verified, or a duplicate"),
        ],
    )
    def test_an_address_that_does_not_last_is_never_chosen(self, fact: str, word: str) -> None:
        passing = held("fd07::1/64", **{fact: True})

        assert self.chosen(passing, PERMANENT).ipv6_address == IPv6Address("fd07::102")
        assert self.chosen(passing).ipv6_address is None
        assert self.chosen(passing).ipv6_trouble == (
            "an IPv6 address of eth0: other hosts cannot use those that it has"
            f" (fe80::1 is link-local, fd07::1 is {word})"
        )

    def test_without_an_option_the_interface_of_the_ipv6_default_route_carries_ipv6(self) -> None:
        """An option selects one interface for both families."""
        eth0 = interface("eth0", "192.168.50.102/24", "fe80::1/64")
        prefix = IPv6Network("fd08::/64")
        eth1 = interface("eth1", "10.10.10.102/24", "fd08::102/64", index=3, mtu=9000, on_link=(prefix,))
        found = Interfaces(
            interfaces=(LO, eth0, eth1),
            default_routes=(BY_ETH0,),
            ipv6_default_routes=(DefaultRoute(link="eth1"),),
        )

        underlay = choose(UnderlayOptions(), found, families=(4, 6))

        assert (underlay.link, underlay.mtu, underlay.ipv6_trouble) == ("eth0", 1500, "")
        assert underlay.in_family(4) is underlay
        ipv6 = underlay.in_family(6)
        assert (ipv6.link, ipv6.mtu, ipv6.on_link) == ("eth1", 9000, (prefix,))
        assert ipv6.address_in(6) == IPv6Address("fd08::102")
        selected = choose(UnderlayOptions(ifaces=("eth0",)), found, families=(4, 6))
        assert selected.ipv6_trouble.startswith("an IPv6 address of eth0: ")

    def test_a_disabled_family_is_named_with_its_sysctl(self) -> None:
        underlay = self.chosen(has_ipv6=False)

        assert underlay.address == IPv4Address("192.168.50.102")
        assert underlay.ipv6_trouble == (
            "an IPv6 address of eth0: IPv6 is disabled on it (sysctl net.ipv6.conf.eth0.disable_ipv6)"
        )

    @pytest.mark.parametrize(
        "wanted",
        [
            UnderlayOptions(public_ipv6=IPv6Address("fd07::5")),
            UnderlayOptions(ifaces=("fd07::5",)),
            pattern(r"fd07::5$"),
        ],
    )
    def test_an_option_selects_one_of_several_addresses(self, wanted: UnderlayOptions) -> None:
        assert self.chosen(PERMANENT, "fd07::5/64", wanted=wanted).ipv6_address == IPv6Address("fd07::5")

    def test_an_ipv6_address_selects_the_interface(self) -> None:
        underlay = self.chosen(PERMANENT, wanted=UnderlayOptions(ifaces=("fd08::102",)))

        assert (underlay.link, str(underlay.address)) == ("eth1", "10.10.10.102")
        assert underlay.ipv6_address == IPv6Address("fd08::102")

    def test_both_families_use_one_interface(self) -> None:
        underlay = self.chosen(PERMANENT, wanted=UnderlayOptions(public_ipv6=IPv6Address("fd08::102")))

        assert underlay.ipv6_address is None
        assert underlay.ipv6_trouble == (
            "one interface for both families: IPv4 uses eth0, and fd08::102 (--public-ipv6) is an address of"
            " eth1"
        )

    def test_a_public_address_of_a_nat_is_only_published(self) -> None:
        underlay = self.chosen(PERMANENT, wanted=UnderlayOptions(public_ipv6=IPv6Address("2001:db8::7")))

        assert underlay.ipv6_address == IPv6Address("fd07::102")
        assert underlay.public_ipv6 == IPv6Address("2001:db8::7")

    def test_the_underlay_of_a_network_without_ipv6_contains_no_ipv6_address(self) -> None:
        """If the underlay contained IPv6 addresses, each change of an IPv6 address would cause a new plan."""
        eth0 = interface("eth0", "192.168.50.102/24", PERMANENT, on_link=(IPv6Network("fd07::/64"),))
        found = Interfaces(interfaces=(eth0,), default_routes=(BY_ETH0,))

        underlay = choose(UnderlayOptions(), found)

        assert (underlay.ipv6_address, underlay.public_ipv6, underlay.on_link) == (None, None, ())


def test_an_address_on_two_interfaces_selects_no_interface() -> None:
    found = Interfaces(interfaces=(ETH0, interface("eth5", "192.168.50.102/24", index=9)))

    with pytest.raises(NoUnderlayError, match=r"192\.168\.50\.102 is an address of eth0 and eth5"):
        choose(UnderlayOptions(ifaces=("192.168.50.102",)), found)


def test_a_public_address_on_two_interfaces_selects_no_interface() -> None:
    """The log names both interfaces. The default route selects the interface."""
    found = Interfaces(
        interfaces=(interface("eth5", "10.9.9.9/24", index=1), ETH0, interface("eth6", "10.9.9.9/24")),
        default_routes=(BY_ETH0,),
    )
    wanted = UnderlayOptions(public_ip=IPv4Address("10.9.9.9"))

    assert chosen(wanted, found)[0] == "eth0"
    assert narrate(wanted, found)[1] == (
        "Could not find valid interface matching 10.9.9.9: 10.9.9.9 is an address of eth5 and eth6: select"
        " one of them by its name with --iface"
    )
