"""The order of the operations of a batch, and the objects that the kernel drops as a consequence of these
operations.
"""

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)

from msgspec.structs import replace

from pyflannel.model.link import Address, Link, Veth, Vxlan
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Remove, Replace, State
from pyflannel.plan.diff import losses, order

OLD = Address(link="flannel0", address=IPv4Interface("10.100.15.0/16"))
VXLAN = Link(
    name="flannel.1", kind="vxlan", mtu=1450, vxlan=Vxlan(vni=1, port=8472, parent="eth0", local=None)
)
ADDRESS = Address(link="flannel.1", address=IPv4Interface("10.100.15.0/32"))
NEW = Address(link="flannel.1", address=IPv4Interface("10.100.16.0/32"))
NEIGHBOUR = Neighbour(link="flannel.1", address=IPv4Address("10.100.17.0"), mac="0e:00:00:00:00:02")
ENTRY = FdbEntry(link="flannel.1", mac="0e:00:00:00:00:02", destination=IPv4Address("192.168.50.101"))
ROUTE = Route(destination=IPv4Network("10.100.17.0/24"), link="flannel.1")
ROUTE6 = Route(destination=IPv6Network("fd00:17::/64"), link="flannel.1")
NEIGHBOUR6 = Neighbour(link="flannel.1", address=IPv6Address("fd00:17::"), mac="0e:00:00:00:00:02")
PLAN = State.of(VXLAN, NEW, NEIGHBOUR, ENTRY, ROUTE, ROUTE6, NEIGHBOUR6)


def test_an_address_is_removed_before_one_with_its_prefix_is_added() -> None:
    """In the other order, the new address is secondary to the old address and is removed with the old
    address.
    """
    new = Address(link="flannel0", address=IPv4Interface("10.100.16.0/16"))

    assert order([Add(new), Remove(OLD)], State.of(new)) == [Remove(OLD), Add(new)]


def test_an_address_is_removed_early_if_one_with_its_prefix_stays() -> None:
    """The kernel may drop the address that stays and its routes, which are then written again."""
    kept = Address(link="flannel0", address=IPv4Interface("10.100.16.0/16"))
    route = Route(destination=IPv4Network("10.100.0.0/16"), link="flannel0", source=kept.address.ip)

    assert order([Add(route), Remove(OLD)], State.of(kept, route)) == [Remove(OLD), Add(route)]
    assert dict(losses([Remove(OLD)], State.of(kept, route))) == {kept: None, route: None}


def test_an_address_is_added_before_the_last_one_of_another_prefix_is_removed() -> None:
    """In the other order, the link loses its routes and neighbours."""
    assert order([Remove(ADDRESS), Add(NEW)], PLAN) == [Add(NEW), Remove(ADDRESS)]
    assert not list(losses([Remove(ADDRESS), Add(NEW)], PLAN))


def test_an_address_stays_while_its_link_still_carries_packets() -> None:
    """The kernel removes the routes of an address with the address. When the backend changes, the new routes
    are added before the address is removed.
    """
    old = Link(name="flannel0", kind="tun", mtu=1472)

    operations = order([Remove(OLD), Remove(old), Add(ROUTE), Add(NEW), Add(VXLAN)], PLAN)

    assert operations == [Add(VXLAN), Add(NEW), Add(ROUTE), Remove(OLD), Remove(old)]


def test_a_link_loses_ipv4_routes_and_neighbours_with_its_last_ipv4_address() -> None:
    """IPv6 and the FDB are not affected."""
    pointed = replace(NEW, peer=IPv4Address("10.100.99.1"))

    assert dict(losses([Replace(pointed, NEW)], PLAN)) == {NEIGHBOUR: None, ROUTE: None}


def test_the_removal_of_an_ipv6_address_removes_no_other_object() -> None:
    address = Address(link="flannel.1", address=IPv6Interface("fd00:15::/128"))

    assert not list(losses([Remove(address)], PLAN))


def test_a_vxlan_device_is_created_again_for_another_ipv6_source() -> None:
    """The kernel would send from the previous address as long as its route to a peer is valid."""
    ipv4, other_ipv4, ipv6, other_ipv6 = (
        Vxlan(vni=1, port=8472, parent="eth0", local=ip_address(local))
        for local in ("10.0.0.1", "10.0.0.2", "fd07::1", "fd07::2")
    )

    assert ipv4.becomes(other_ipv4)
    assert not ipv6.becomes(other_ipv6)
    assert ipv6.becomes(replace(ipv6, learns=True))


def test_a_link_that_is_created_again_loses_all_objects_on_the_link() -> None:
    assert VXLAN.vxlan is not None
    old = replace(VXLAN, vxlan=replace(VXLAN.vxlan, vni=2))

    lost = dict(losses([Replace(old, VXLAN), Add(ENTRY)], PLAN))

    assert set(lost) == {NEW, NEIGHBOUR, ROUTE, ROUTE6, NEIGHBOUR6}  # the batch adds the entry after the link


def test_a_link_with_another_mac_address_loses_its_neighbours() -> None:
    lost = dict(losses([Replace(replace(VXLAN, mac="0e:00:00:00:00:09"), VXLAN)], PLAN))

    assert set(lost) == {NEIGHBOUR, NEIGHBOUR6}


def test_a_renamed_vxlan_device_is_removed_before_its_successor_is_built() -> None:
    """The kernel refuses a second device with the same VNI and port."""
    renamed = replace(VXLAN, name="stray")

    assert order([Add(VXLAN), Remove(renamed)], PLAN) == [Remove(renamed), Add(VXLAN)]


def test_another_vxlan_device_is_removed_after_its_successor_is_built() -> None:
    assert VXLAN.vxlan is not None
    other = replace(VXLAN, name="flannel.2", vxlan=replace(VXLAN.vxlan, vni=2))

    assert order([Remove(other), Add(VXLAN)], PLAN) == [Add(VXLAN), Remove(other)]


NEAR = Link(name="flannel0-gro", kind="veth", mtu=1500, veth=Veth(peer="flannel0-rx"))
FAR = Link(name="flannel0-rx", kind="veth", mtu=1500, veth=Veth(peer="flannel0-gro"))


def test_an_end_of_a_veth_is_recreated_before_the_other_is_added() -> None:
    """If the other end was renamed, the kernel refuses to add the other end while the name of this end is
    taken.
    """
    renamed = replace(NEAR, name="other")
    recreate = Replace(replace(FAR, veth=Veth(peer="other")), FAR)

    operations = order([Add(NEAR), recreate, Remove(renamed)], State.of(NEAR, FAR))

    assert operations == [recreate, Add(NEAR), Remove(renamed)]


def test_a_vxlan_device_in_the_way_is_removed_before_a_link_is_recreated() -> None:
    """The vxlan device was renamed, and another link has its name."""
    renamed, recreate = replace(VXLAN, name="other"), Replace(replace(VXLAN, kind="dummy", vxlan=None), VXLAN)

    assert order([recreate, Remove(renamed)], State.of(VXLAN)) == [Remove(renamed), recreate]


def test_the_other_end_of_a_veth_is_lost_when_one_is_recreated() -> None:
    """The kernel refused the first attempt because both names were taken. The operation on the other end
    created both ends.
    """
    recreate = Replace(replace(NEAR, kind="dummy", veth=None), NEAR)

    assert dict(losses([recreate], State.of(NEAR, FAR))) == {FAR: None}
