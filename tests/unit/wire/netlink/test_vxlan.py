"""vxlan devices: pyflannel's codec and pyroute2's read each other's messages."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from pyflannel.errors import WireError
from pyflannel.wire.netlink.links import (
    VxlanRecord,
    change_link,
    change_vxlan,
    create_vxlan,
    parse_link,
    parse_vxlan,
    vxlan_data,
)
from pyflannel.wire.netlink.message import HEADER, pack, packed_mac, parse_mac

v4_addresses = st.integers(1, 2**32 - 1).map(IPv4Address)
v6_addresses = st.integers(1, 2**128 - 1).map(IPv6Address)
macs = st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":"))
vxlans = st.builds(
    VxlanRecord,
    vni=st.integers(0, 2**24 - 1),
    port=st.integers(1, 65535),
    parent=st.integers(0, 2**31 - 1),
    local=st.none() | v4_addresses | v6_addresses,
    group=st.none() | v4_addresses | v6_addresses,
    has_gbp=st.booleans(),
    learns=st.booleans(),
    reports_misses=st.booleans(),
)


@given(vxlans)
def test_parameters_are_read_back_as_sent(vxlan: VxlanRecord) -> None:
    assert parse_vxlan(vxlan_data(vxlan)) == vxlan


@given(vxlans, macs)
def test_a_whole_request_reads_as_the_device_it_makes(vxlan: VxlanRecord, mac: str) -> None:
    link = parse_link(create_vxlan("flannel.1", mac, vxlan).body)

    assert (link.name, link.kind, link.mac, link.vxlan) == ("flannel.1", "vxlan", mac, vxlan)


@given(vxlans, macs)
def test_pyroute2_reads_written_devices(vxlan: VxlanRecord, mac: str) -> None:
    theirs = ifinfmsg(pack(create_vxlan("flannel.1", mac, vxlan), 1))

    theirs.decode()

    assert theirs.get_attr("IFLA_IFNAME") == "flannel.1"
    assert theirs.get_attr("IFLA_ADDRESS") == mac
    info = theirs.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "vxlan"
    data = info.get_attr("IFLA_INFO_DATA")
    assert data.get_attr("IFLA_VXLAN_ID") == vxlan.vni
    assert data.get_attr("IFLA_VXLAN_PORT") == vxlan.port
    assert data.get_attr("IFLA_VXLAN_LINK") == vxlan.parent
    assert data.get_attr("IFLA_VXLAN_LEARNING") == int(vxlan.learns)
    assert data.get_attr("IFLA_VXLAN_L2MISS") == int(vxlan.reports_misses)
    local = data.get_attr("IFLA_VXLAN_LOCAL") or data.get_attr("IFLA_VXLAN_LOCAL6")
    assert ip_address(local) == (vxlan.local or IPv4Address(0))
    assert ("IFLA_VXLAN_GBP" in dict(data["attrs"])) == vxlan.has_gbp


@given(vxlans)
def test_a_change_contains_only_changeable_parameters(vxlan: VxlanRecord) -> None:
    theirs = ifinfmsg(pack(change_vxlan(7, vxlan), 1))

    theirs.decode()

    assert theirs["index"] == 7
    data = dict(theirs.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")["attrs"])
    locals_ = {"IFLA_VXLAN_LOCAL", "IFLA_VXLAN_LOCAL6"}
    assert set(data) - locals_ == {"IFLA_VXLAN_ID", "IFLA_VXLAN_LINK", "IFLA_VXLAN_LEARNING"}


def test_devices_of_pyroute2_are_read() -> None:
    theirs = ifinfmsg()
    theirs["attrs"] = [
        ("IFLA_IFNAME", "flannel.7"),
        ("IFLA_ADDRESS", "0e:11:22:33:44:55"),
        (
            "IFLA_LINKINFO",
            {
                "attrs": [
                    ("IFLA_INFO_KIND", "vxlan"),
                    (
                        "IFLA_INFO_DATA",
                        {
                            "attrs": [
                                ("IFLA_VXLAN_ID", 7),
                                ("IFLA_VXLAN_PORT", 8472),
                                ("IFLA_VXLAN_LINK", 3),
                                ("IFLA_VXLAN_LOCAL", "10.7.0.1"),
                                ("IFLA_VXLAN_L3MISS", 1),
                            ]
                        },
                    ),
                ]
            },
        ),
    ]
    theirs.encode()

    ours = parse_link(bytes(theirs.data)[HEADER.size :])

    assert ours.mac == "0e:11:22:33:44:55"
    assert ours.vxlan == VxlanRecord(
        vni=7, port=8472, parent=3, local=IPv4Address("10.7.0.1"), reports_misses=True
    )


@given(macs)
def test_pyroute2_reads_the_written_mac_of_a_link(mac: str) -> None:
    theirs = ifinfmsg(pack(change_link(7, mac=mac), 1))

    theirs.decode()

    assert theirs.get_attr("IFLA_ADDRESS") == mac


@given(macs)
def test_a_mac_address_is_read_back(mac: str) -> None:
    assert parse_mac(packed_mac(mac)) == mac


@pytest.mark.parametrize("text", ["", "0e:11:22:33:44", "0e:11:22:33:44:5g", "0e:11:22:33:44:55:66"])
def test_an_invalid_mac_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(WireError, match=f"not '{text}'"):
        packed_mac(text)
