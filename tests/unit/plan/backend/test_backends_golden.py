"""The plans equal the original's objects for the same leases, and the published leases equal the original's
leases.
"""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_interface
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Host, Underlay
from pyflannel.model.lease import Lease, Vtep
from pyflannel.model.link import Address, Link
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import State
from pyflannel.model.store_record import Record
from pyflannel.model.wireguard import UNKNOWN
from pyflannel.plan.backends import Backend, backend_of
from pyflannel.wire.lease_json import format_backend_data, parse_vtep
from pyflannel.wire.lease_record import lease_of, lease_value
from pyflannel.wire.network_config_json import parse_network_config

GOLDEN = Path(__file__).parents[3] / "golden"
OBJECTS = json.loads((GOLDEN / "backend-objects.json").read_text())["cases"]
LEASES = json.loads((GOLDEN / "backend-leases.json").read_text())["cases"]

Case = dict[str, Any]


def name(case: Case) -> str:
    return f"{case['run']}-{case['id'].rpartition('-')[2]}"


def lease(record: dict[str, str]) -> Lease:
    key = record["key"].removeprefix("/coreos.com/network/")
    return lease_of(Record(key=key, value=record["value"].encode(), revision=1, lease_id=1))


def planned(case: Case) -> tuple[Backend, Host, State]:
    backend = backend_of(parse_network_config(json.dumps(case["config"])))
    address = IPv4Address(case["public_ip"])
    leases = [lease(record) for record in case["leases"]]
    (own,) = [each for each in leases if each.attributes.public_ip == address]
    host = Host(
        lease=own,
        owner="f00d",
        underlay=Underlay(
            link="eth0",
            address=address,
            mtu=1500,
            public_ip=address,
            on_link=(IPv4Network("192.168.50.0/24"), IPv6Network("fd01::/64")),
            ipv6_address=own.attributes.public_ipv6,
            public_ipv6=own.attributes.public_ipv6,
        ),
    )
    plan = State.EMPTY
    for part in (host, replace(host, family=6)) if own.ipv6_subnet else (host,):
        plan |= backend.plan_host(part)
        for peer in leases:
            if peer is not own:
                plan |= backend.plan_peer(peer, part)
    return backend, host, plan


def of_type(plan: State, kind: type) -> list[Any]:
    return [item for item in plan if isinstance(item, kind)]


@pytest.mark.parametrize("case", OBJECTS, ids=name)
def test_the_device_equals_that_of_the_original(case: Case) -> None:
    """Exceptions are the MAC address, which is random in the original, and IPv6 on the device of IPv4."""
    _, _, plan = planned(case)

    found = []
    for link in of_type(plan, Link):
        assert link.vxlan is not None
        assert link.queue_length == 0
        assert link.has_ipv6 == link.name.startswith("flannel-v6")
        assert not link.accepts_routers
        found.append(
            (
                link.name,
                link.kind,
                link.mtu,
                link.vxlan.vni,
                link.vxlan.port,
                str(link.vxlan.local),
                link.vxlan.parent,
                link.vxlan.learns,
                link.vxlan.has_gbp,
            )
        )
    assert sorted(found) == sorted(
        (
            link["ifname"],
            link["linkinfo"]["info_kind"],
            link["mtu"],
            data["id"],
            data["port"],
            data.get("local") or data["local6"],
            data["link"],
            data["learning"],
            data.get("gbp", False),
        )
        for link in case["objects"]["link"]
        for data in [link["linkinfo"]["info_data"]]
    )
    assert all("txqlen" not in link for link in case["objects"]["link"])


@pytest.mark.parametrize("case", OBJECTS, ids=name)
def test_the_objects_of_a_peer_equal_those_of_the_original(case: Case) -> None:
    """Release 0.6 of vxlan has only FDB entries: the release answers ARP itself."""
    _, _, plan = planned(case)

    fdb = [(entry.mac, entry.link, str(entry.destination)) for entry in of_type(plan, FdbEntry)]
    objects = case["objects"]
    assert sorted(fdb) == sorted((e["mac"], e["ifname"], e["dst"]) for e in objects["fdb"])
    if case["version"] == "v0.6.2" and case["config"]["Backend"]["Type"] == "vxlan":
        return
    addresses = [(item.link, str(item.address)) for item in of_type(plan, Address)]
    assert sorted(addresses) == sorted(
        (a["ifname"], str(ip_interface(f"{a['local']}/{a['prefixlen']}"))) for a in objects["addr"]
    )
    neighbours = [(str(item.address), item.link, item.mac) for item in of_type(plan, Neighbour)]
    assert sorted(neighbours) == sorted((n["dst"], n["dev"], n["lladdr"]) for n in objects["neigh"])
    routes = [
        (str(r.destination), str(r.gateway), r.link, r.is_onlink, r.metric) for r in of_type(plan, Route)
    ]
    # The original does not remove the route that the kernel adds for its own IPv6 address.
    assert sorted(routes) == sorted(
        (r["dst"], r["gateway"], r["dev"], "onlink" in r["flags"], r.get("metric", 0))
        for r in (*objects["route"], *objects.get("route6", ()))
        if "gateway" in r
    )


@pytest.mark.parametrize("case", LEASES, ids=name)
def test_a_lease_of_the_original_is_read_and_written_back(case: Case) -> None:
    """The text equals the text of the later releases. The text of release 0.6 lacks two keys."""
    read = lease(case)

    attributes = read.attributes
    backend_type = case["config"]["Backend"]["Type"]
    assert attributes.backend_type == ("" if backend_type == "alloc" else backend_type)
    macs = case["device_mac"] or {}
    for vtep, is_ipv6 in ((attributes.vtep, False), (attributes.vtep_v6, True)):
        found = [mac for device, mac in macs.items() if device.startswith("flannel-v6") == is_ipv6]
        assert ([vtep.mac] if vtep else []) == found
    if case["version"] != "v0.6.2":
        assert lease_value(read).decode() == case["value"]


@pytest.mark.parametrize(
    "case",
    [case for case in LEASES if case["config"]["Backend"]["Type"] == "vxlan" and case["version"] != "v0.6.2"],
    ids=name,
)
def test_the_vtep_is_published_as_by_the_original(case: Case) -> None:
    attributes = lease(case).attributes
    assert attributes.vtep is not None

    assert f'"BackendData":{format_backend_data(attributes.vtep)}' in case["value"]
    if attributes.vtep_v6 is not None:
        assert f'"BackendV6Data":{format_backend_data(attributes.vtep_v6)}' in case["value"]
    assert attributes.backend_data is None  # the VTEP already contains the data


def test_a_published_lease_can_be_read_again() -> None:
    for case in LEASES:
        backend = backend_of(parse_network_config(json.dumps(case["config"])))
        data = backend.lease_data("f00d", UNKNOWN)
        if data is None:
            assert case["device_mac"] is None
        else:
            assert isinstance(data, Vtep)
            assert parse_vtep(format_backend_data(data)) == data
