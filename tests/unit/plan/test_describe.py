"""The texts of the differences that a pass finds."""

from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from pyflannel.model.fast_path import BpfProgram, Role, Tunnel
from pyflannel.model.link import Link, Veth
from pyflannel.model.route import FdbEntry
from pyflannel.model.state import Replace
from pyflannel.plan.diff import found

TUNNEL = Tunnel(
    device="flannel0",
    underlay="eth0",
    address=IPv4Address("10.10.10.102"),
    subnet=IPv4Network("10.100.156.0/24"),
    port=8285,
    mtu=1472,
)


def test_a_difference_in_a_tunnel_is_the_only_text() -> None:
    old = BpfProgram(link="eth0", role=Role.DECAPSULATE, tunnel=TUNNEL, is_current=False)
    new = replace(old, tunnel=replace(TUNNEL, gro_link="flannel0-gro", port=8286), is_current=True)

    assert found(Replace(old, new)) == (
        "program flannel_decap at eth0: port 8285, wanted 8286,"
        " gro link none, wanted flannel0-gro, not current"
    )


def test_nested_attributes_of_a_link_have_the_same_texts() -> None:
    gro_link = Link(name="flannel0-rx", kind="veth", mtu=1472, veth=Veth(peer="flannel0-gro", has_gro=True))
    without_gro = replace(gro_link, veth=Veth(peer="flannel0-gro"))
    dummy = replace(gro_link, kind="dummy", veth=None)

    assert found(Replace(without_gro, gro_link)) == "link flannel0-rx: not gro"
    assert found(Replace(dummy, gro_link)) == "link flannel0-rx: kind dummy, wanted veth, no veth"


def test_several_addresses_are_a_list() -> None:
    peer = FdbEntry(link="flannel.1", mac="0e:2a:00:00:00:01", destination=IPv4Address("10.10.10.102"))
    spread = replace(peer, others=(IPv4Address("10.10.10.7"), IPv4Address("10.10.10.8")))

    assert found(Replace(spread, peer)) == (
        "FDB entry 0e:2a:00:00:00:01 on flannel.1: others 10.10.10.7, 10.10.10.8, wanted none"
    )
