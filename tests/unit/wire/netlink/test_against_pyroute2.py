"""pyflannel's codec and pyroute2's read each other's messages."""

import sys
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from pyflannel.model.route import Route
from pyflannel.wire.netlink.addresses import (
    NO_DUPLICATE_DETECTION,
    NO_PREFIX_ROUTE,
    AddressRecord,
    add_address,
    address_index,
    parse_address_message,
    remove_address,
)
from pyflannel.wire.netlink.links import LinkRecord, change_link, parse_link, stop_ipv6_addresses
from pyflannel.wire.netlink.message import HEADER, attributes, pack
from pyflannel.wire.netlink.routes import (
    RouteRecord,
    covers,
    glance_at_route,
    parse_route,
    put_route,
    put_route_by,
    remove_route,
    remove_route_by,
)

indexes = st.integers(1, 2**31 - 1)
v4_addresses = st.integers(1, 2**32 - 1).map(IPv4Address)
v6_addresses = st.integers(1, 2**128 - 1).map(IPv6Address)
v4_networks = st.builds(
    lambda base, length: IPv4Network((base, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)
v6_networks = st.builds(
    lambda base, length: IPv6Network((base, length), strict=False),
    st.integers(0, 2**128 - 1),
    st.integers(0, 128),
)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-_", min_size=1, max_size=15)


def ip(text):
    """Parse an address from pyroute2, which writes some IPv6 addresses with dots."""
    return None if text is None else ip_address(text)


def routes_of(networks, addresses):
    return st.builds(
        RouteRecord,
        destination=networks,
        index=indexes,
        gateway=st.none() | addresses,
        source=st.none() | addresses,
        metric=st.integers(0, 2**32 - 1),
        protocol=st.integers(0, 255),
        scope=st.sampled_from([0, 200, 253, 254, 255]),
        kind=st.integers(1, 9),
        is_onlink=st.booleans(),
    )


routes = routes_of(v4_networks, v4_addresses) | routes_of(v6_networks, v6_addresses)
v4_interfaces = st.builds(lambda a, n: IPv4Interface((int(a), n)), v4_addresses, st.integers(0, 32))
v6_interfaces = st.builds(lambda a, n: IPv6Interface((int(a), n)), v6_addresses, st.integers(0, 128))


@given(routes)
def test_a_route_is_read_back_as_sent(route: RouteRecord) -> None:
    assert parse_route(put_route(route).body) == route
    assert parse_route(remove_route(route).body) == route


@given(st.builds(RouteRecord, destination=v4_networks, index=indexes, gateway=v6_addresses))
def test_an_ipv4_route_may_have_an_ipv6_gateway(route: RouteRecord) -> None:
    assert parse_route(put_route(route).body) == route


@given(routes)
def test_a_glance_equals_the_full_parser(route: RouteRecord) -> None:
    glance = glance_at_route(put_route(route).body)

    assert glance is not None
    assert glance.key == Route(destination=route.destination, metric=route.metric, link="").key
    assert (glance.protocol, glance.link) == (route.protocol, route.index)


@given(routes, v4_addresses | v6_addresses)
def test_a_route_covers_the_addresses_of_its_prefix(route: RouteRecord, address) -> None:
    assert covers(put_route(route).body, address) == (address in route.destination)


@given(routes)
def test_pyroute2_reads_written_routes(route: RouteRecord) -> None:
    theirs = rtmsg(pack(put_route(route), 1))

    theirs.decode()

    assert theirs["dst_len"] == route.destination.prefixlen
    assert theirs["proto"] == route.protocol
    assert theirs["scope"] == route.scope
    assert theirs["type"] == route.kind
    assert ip(theirs.get_attr("RTA_DST")) == route.destination.network_address
    assert theirs.get_attr("RTA_OIF") == route.index
    assert ip(theirs.get_attr("RTA_GATEWAY")) == route.gateway
    assert ip(theirs.get_attr("RTA_PREFSRC")) == route.source
    assert (theirs.get_attr("RTA_PRIORITY") or 0) == route.metric


@given(routes, st.integers(1, 2**32 - 1))
def test_pyroute2_reads_written_routes_by_next_hops(route: RouteRecord, next_hop: int) -> None:
    for request in (put_route_by(route, next_hop), remove_route_by(route, next_hop)):
        theirs = rtmsg(pack(request, 1))

        theirs.decode()

        assert int.from_bytes(attributes(request.body, 12)[30], sys.byteorder) == next_hop  # RTA_NH_ID
        assert theirs.get_attr("RTA_OIF") is None
        assert theirs.get_attr("RTA_GATEWAY") is None
        assert ip(theirs.get_attr("RTA_DST")) == route.destination.network_address
        assert (theirs.get_attr("RTA_PRIORITY") or 0) == route.metric


@given(v4_networks, v4_addresses, indexes, st.integers(1, 2**32 - 1))
def test_routes_of_pyroute2_are_read(
    network: IPv4Network, gateway: IPv4Address, index: int, metric: int
) -> None:
    theirs = rtmsg()
    theirs["family"], theirs["dst_len"], theirs["table"], theirs["type"] = 2, network.prefixlen, 254, 1
    theirs["attrs"] = [
        ("RTA_TABLE", 254),
        *([("RTA_DST", str(network.network_address))] if network.prefixlen else []),
        ("RTA_PRIORITY", metric),
        ("RTA_GATEWAY", str(gateway)),
        ("RTA_OIF", index),
    ]
    theirs.encode()

    ours = parse_route(bytes(theirs.data)[HEADER.size :])

    assert ours == RouteRecord(destination=network, index=index, gateway=gateway, metric=metric)


def test_the_mtu_of_a_route_of_pyroute2_is_read_and_written() -> None:
    theirs = rtmsg()
    theirs["family"], theirs["dst_len"], theirs["table"], theirs["type"] = 2, 24, 254, 1
    theirs["attrs"] = [("RTA_DST", "10.1.2.0"), ("RTA_METRICS", {"attrs": [("RTAX_MTU", 1350)]})]
    theirs.encode()

    ours = parse_route(bytes(theirs.data)[HEADER.size :])

    assert ours == RouteRecord(destination=IPv4Network("10.1.2.0/24"), mtu=1350)
    assert parse_route(put_route(ours).body) == ours


def test_a_multipath_route_is_recognized() -> None:
    theirs = rtmsg()
    theirs["family"], theirs["dst_len"], theirs["table"], theirs["type"] = 2, 24, 254, 1
    theirs["attrs"] = [
        ("RTA_DST", "10.1.2.0"),
        (
            "RTA_MULTIPATH",
            [
                {"oif": 7, "attrs": [("RTA_GATEWAY", "10.0.0.1")]},
                {"oif": 8, "attrs": [("RTA_GATEWAY", "10.0.0.2")]},
            ],
        ),
    ]
    theirs.encode()

    ours = parse_route(bytes(theirs.data)[HEADER.size :])

    assert ours == RouteRecord(destination=IPv4Network("10.1.2.0/24"), index=7, is_multipath=True)


@given(indexes, v4_interfaces, st.none() | v4_addresses)
def test_an_ipv4_address_is_read_back_as_sent(index, address, peer) -> None:
    body = remove_address(index, address, peer).body

    peer = None if peer == address.ip else peer
    assert parse_address_message(body) == AddressRecord(index=index, address=address, peer=peer)
    assert address_index(body) == index


@given(indexes, v6_interfaces)
def test_an_ipv6_address_is_read_back_as_sent(index, address) -> None:
    """The kernel does not search for duplicates, which takes a second, and adds no route to the prefix."""
    assert parse_address_message(add_address(index, address).body) == AddressRecord(
        index=index, address=address, flags=NO_DUPLICATE_DETECTION | NO_PREFIX_ROUTE
    )


@given(indexes, v4_interfaces | v6_interfaces)
def test_pyroute2_reads_written_addresses(index, address) -> None:
    theirs = ifaddrmsg(pack(add_address(index, address), 1))

    theirs.decode()

    assert (theirs["index"], theirs["prefixlen"]) == (index, address.network.prefixlen)
    assert ip(theirs.get_attr("IFA_LOCAL")) == address.ip
    assert ip(theirs.get_attr("IFA_ADDRESS")) == address.ip
    assert theirs.get_attr("IFA_BROADCAST") is None


@given(indexes, st.integers(0, 2**31), st.integers(0, 2**31), names, st.booleans())
def test_pyroute2_reads_written_changes_of_links(index, mtu, queue_length, alias, is_up) -> None:
    request = change_link(index, mtu=mtu, queue_length=queue_length, alias=alias, is_up=is_up)
    theirs = ifinfmsg(pack(request, 1))

    theirs.decode()

    assert (theirs["index"], theirs["flags"], theirs["change"]) == (index, int(is_up), 1)
    assert theirs.get_attr("IFLA_MTU") == mtu
    assert theirs.get_attr("IFLA_TXQLEN") == queue_length
    assert theirs.get_attr("IFLA_IFALIAS") == alias


def test_pyroute2_reads_the_written_removal_of_ipv6_addresses() -> None:
    theirs = ifinfmsg(pack(stop_ipv6_addresses(4), 1))

    theirs.decode()

    inet6 = theirs.get_attr("IFLA_AF_SPEC").get_attr("AF_INET6")
    assert inet6.get_attr("IFLA_INET6_ADDR_GEN_MODE") == 1


@given(indexes, names, st.integers(0, 2**31), st.sampled_from(["dummy", "veth", "bridge"]), st.booleans())
def test_links_of_pyroute2_are_read(index, name, mtu, kind, is_up) -> None:
    theirs = ifinfmsg()
    theirs["index"], theirs["flags"] = index, int(is_up)
    theirs["attrs"] = [
        ("IFLA_IFNAME", name),
        ("IFLA_MTU", mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]}),
    ]
    theirs.encode()

    ours = parse_link(bytes(theirs.data)[HEADER.size :])

    assert ours == LinkRecord(index=index, name=name, kind=kind, mtu=mtu, is_up=is_up)
