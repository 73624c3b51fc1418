"""Make before break."""

from ipaddress import IPv4Interface, IPv4Network

from pyflannel.model.link import Address, Link
from pyflannel.model.route import Route
from pyflannel.model.state import Add, Remove
from pyflannel.plan.diff import order

OLD = Address(link="flannel0", address=IPv4Interface("10.100.15.0/16"))


def test_an_address_leaves_before_another_of_its_link_comes() -> None:
    """Else the new one would be secondary to it, and go with it."""
    new = Address(link="flannel0", address=IPv4Interface("10.100.16.0/16"))

    assert order([Add(new), Remove(OLD)]) == [Remove(OLD), Add(new)]


def test_an_address_stays_while_its_link_still_carries_packets() -> None:
    """Its routes go with it: when the backend changes, the new ones are there before."""
    link = Link(name="flannel.1", kind="vxlan", mtu=1450)
    address = Address(link="flannel.1", address=IPv4Interface("10.100.15.0/32"))
    route = Route(destination=IPv4Network("10.100.16.0/24"), link="flannel.1")
    old = Link(name="flannel0", kind="tun", mtu=1472)

    operations = order([Remove(OLD), Remove(old), Add(route), Add(address), Add(link)])

    assert operations == [Add(link), Add(address), Add(route), Remove(OLD), Remove(old)]
