"""The node keeper, with the store of a cluster on a strict API server in this process."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from doubles.fake_api_server import FakeApiServer
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.node_keeper import NodeKeeper
from pyflannel.kernel.host.machine import BoottimeClock
from pyflannel.model.kubernetes_node import OwnNode
from pyflannel.model.lease import BackendPart, Lease, LeaseAttributes, Vtep
from pyflannel.model.lease_protocol import (
    Acquired,
    Held,
    Lost,
    Report,
    StoreAway,
    StoreBack,
    Unassigned,
    Wanted,
)
from pyflannel.model.lease_set import LeaseSet
from pyflannel.wire.network_config_json import parse_network_config
from unit.stores.test_kubernetes import store_at

OWN = OwnNode(name="n1")
VTEP = Vtep(mac="02:00:00:00:00:01", vni=1)
PEER = {
    "kube_subnet_manager": "true",
    "backend_type": "vxlan",
    "backend_data": '{"VNI":1,"VtepMAC":"4e:d0:c7:f6:f3:4f"}',
    "public_ip": "10.99.0.12",
}


class Bench:
    """A keeper of a Node and its reports."""

    def __init__(self, server: FakeApiServer, directory: Path, own: OwnNode = OWN, **wanted: Any) -> None:
        self.server = server
        self.reports: list[Report] = []
        self.leases = LeaseSet()
        self.is_ready = asyncio.Event()
        network = parse_network_config('{"Network":"10.244.0.0/16"}', is_assigned=True)
        attributes = LeaseAttributes(
            public_ip=IPv4Address("10.99.0.11"), backend_type="vxlan", owner="n1", vtep=VTEP
        )
        self.wanted = Wanted(**({"network": network, "attributes": attributes} | wanted))
        clock = BoottimeClock()
        self.keeper = NodeKeeper(
            store=store_at(server.url, directory, prefix=own.prefix),
            clock=clock,
            draw=lambda _: 0,
            store_log=StoreLog(clock),
            own=own,
            wanted=self.wanted,
            held=None,
            report=self.reports.append,
            leases_changed=self._take,
            is_ready=self.is_ready,
        )

    def _take(self, leases: LeaseSet) -> None:
        self.leases = leases

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)

    def last(self, kind: type[Report]) -> Any:
        return next((report for report in reversed(self.reports) if isinstance(report, kind)), None)

    def subnets(self) -> list[str]:
        return sorted(str(lease.subnet) for lease in self.leases)


@pytest.fixture
def on_bench(tmp_path: Path) -> Callable[..., None]:
    def run(
        check: Callable[[Bench], Awaitable[None]], cidr: str | None = "10.244.1.0/24", **wanted: Any
    ) -> None:
        async def serve() -> None:
            async with FakeApiServer().serving() as server:
                if cidr is not None:
                    await server.put("n1", cidr or None)
                bench = Bench(server, tmp_path, **wanted)
                running = asyncio.ensure_future(bench.keeper.run())
                try:
                    await check(bench)
                finally:
                    running.cancel()
                    with suppress(asyncio.CancelledError):
                        await running

        asyncio.run(serve())

    return run


def test_the_lease_is_published_in_the_annotations_of_the_original(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        assert bench.last(Acquired).held.lease.subnet == IPv4Network("10.244.1.0/24")
        assert bench.server.annotations("n1") == {
            "backend-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}',
            "backend-type": "vxlan",
            "kube-subnet-manager": "true",
            "public-ip": "10.99.0.11",
        }
        bench.is_ready.set()
        await bench.until(lambda: len(bench.server.patches) == 2)
        (condition,) = bench.server.patches[1]["status"]["conditions"]
        assert condition["lastHeartbeatTime"] == condition["lastTransitionTime"]
        assert {key: text for key, text in condition.items() if not key.startswith("last")} == {
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "FlannelIsUp",
            "message": "Flannel is running on this node",
        }
        await bench.server.annotate("n1", other="x")  # flanneld does not react to its own change
        await bench.server.put("n2", "10.244.2.0/24", **PEER)
        await bench.until(lambda: "10.244.2.0/24" in bench.subnets())
        assert bench.server.verbs() == ["list", "watch", "patch", "patch"]

    on_bench(check)


def test_a_restart_changes_nothing_and_keeps_the_vtep_that_the_peers_know(
    on_bench: Callable[..., None],
) -> None:
    async def check(bench: Bench) -> None:
        await bench.server.annotate("n1", **{**PEER, "public_ip": "10.99.0.11"})
        node = bench.server.nodes["n1"]
        node["status"] = {
            "conditions": [
                {
                    "type": "NetworkUnavailable",
                    "status": "False",
                    "reason": "FlannelIsUp",
                    "message": "Flannel is running on this node",
                }
            ]
        }
        bench.is_ready.set()
        await bench.until(lambda: bench.last(Acquired))
        assert bench.last(Acquired).held.lease.attributes.vtep.mac == "4e:d0:c7:f6:f3:4f"
        await bench.server.put("n2", "10.244.2.0/24", **PEER)
        await bench.until(lambda: len(bench.subnets()) == 2)
        assert bench.server.patches == []

    on_bench(check)


def test_a_lease_of_the_previous_run_is_reported_again_when_the_cluster_confirms_it(
    on_bench: Callable[..., None],
) -> None:
    async def check(bench: Bench) -> None:
        kept = Lease(subnet=IPv4Network("10.244.1.0/24"), attributes=bench.wanted.attributes)
        bench.keeper.resume(Held(lease=kept))
        await bench.until(lambda: bench.last(Acquired))

    on_bench(check)


def test_a_node_without_pod_cidr_is_awaited(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Unassigned))
        assert bench.last(Unassigned).cause == 'node "n1" pod cidr not assigned'
        assert bench.server.patches == []
        await bench.server.put("n1", "10.244.7.0/24")
        await bench.until(lambda: bench.last(Acquired))

    on_bench(check, cidr="")


def test_a_node_with_ipv6_alone_is_refused_in_a_network_with_ipv4(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Unassigned))
        assert bench.last(Unassigned).cause == (
            'node "n1" pod cidr not assigned for IPv4: it has fd00:7::/64'
        )
        assert "EnableIPv4: false" in bench.last(Unassigned).hint
        assert bench.server.patches == []

    on_bench(check, cidr="fd00:7::/64")


IPV6_ALONE: dict[str, Any] = {
    "network": parse_network_config(
        '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:7::/48"}', is_assigned=True
    ),
    "attributes": LeaseAttributes(
        public_ip=IPv6Address("fd09::11"),
        public_ipv6=IPv6Address("fd09::11"),
        backend_type="vxlan",
        owner="n1",
        vtep_v6=VTEP,
    ),
}
IPV6_PEER = {
    "kube_subnet_manager": "true",
    "backend_type": "vxlan",
    "backend_v6_data": '{"VNI":1,"VtepMAC":"4e:d0:c7:f6:f3:4f"}',
    "public_ipv6": "fd09::12",
}


@pytest.mark.parametrize("cidr", ["fd00:7:0:1::/64", "10.244.1.0/24,fd00:7:0:1::/64"])
def test_in_a_network_with_ipv6_alone_the_ipv6_subnet_is_the_lease(
    on_bench: Callable[..., None], cidr: str
) -> None:
    """The annotations equal the annotations of the original, which writes no data of IPv4."""
    subnet, address = IPv6Network("fd00:7:0:1::/64"), IPv6Address("fd09::11")

    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        lease = bench.last(Acquired).held.lease
        assert (lease.subnet, lease.ipv6_subnet, lease.text) == (subnet, subnet, str(subnet))
        assert (lease.attributes.public_ip, lease.attributes.public_ipv6) == (address, address)
        assert lease.part(4) is None
        assert bench.server.annotations("n1") == {
            "backend-type": "vxlan",
            "backend-v6-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}',
            "kube-subnet-manager": "true",
            "public-ipv6": "fd09::11",
        }
        await bench.until(lambda: bench.subnets() == ["fd00:7:0:1::/64"])
        await bench.server.put("n2", "fd00:7:0:2::/64", **IPV6_PEER)
        await bench.server.put("n3", "10.244.3.0/24", **PEER)
        await bench.server.put("n4", "10.244.4.0/24,fd00:7:0:4::/64", **{**PEER, **IPV6_PEER})
        expected = ["fd00:7:0:1::/64", "fd00:7:0:2::/64", "fd00:7:0:4::/64"]
        await bench.until(lambda: bench.subnets() == expected)
        assert {one.attributes.host_text for one in bench.leases} == {
            "n1 (fd09::11)",
            "n2 (fd09::12)",
            "n4 (fd09::12)",
        }
        assert bench.last(Unassigned) is None

    on_bench(check, cidr=cidr, **IPV6_ALONE)


def test_the_operator_sets_the_published_ipv6_address(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        await bench.server.annotate("n1", public_ip_overwrite="10.9.9.9", public_ipv6_overwrite="fd09::99")
        await bench.until(lambda: bench.server.annotations("n1")["public-ipv6"] == "fd09::99")
        address = IPv6Address("fd09::99")
        await bench.until(lambda: bench.last(Acquired).held.lease.attributes.public_ip == address)

    on_bench(check, cidr="fd00:7:0:1::/64", **IPV6_ALONE)


def test_an_absent_node_is_awaited(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Unassigned))
        assert bench.last(Unassigned).cause == "there is no Node n1"
        await bench.server.put("n1", "10.244.7.0/24")
        await bench.until(lambda: bench.last(Acquired))

    on_bench(check, cidr=None)


def test_a_pod_cidr_outside_of_the_network_is_refused_before_anything_is_written(
    on_bench: Callable[..., None],
) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Unassigned))
        assert 'doesn\'t contain "10.50.1.0/24" PodCIDR' in bench.last(Unassigned).cause
        assert bench.server.patches == []

    on_bench(check, cidr="10.50.1.0/24")


def test_the_first_subnet_and_any_length_are_accepted(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))

    on_bench(check, cidr="10.244.0.0/26")


def test_a_node_created_again_is_published_again(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        bench.reports.clear()
        await bench.server.delete("n1")
        await bench.until(lambda: bench.last(Unassigned))
        assert bench.last(Lost) is not None
        await bench.server.put("n1", "10.244.1.0/24")
        await bench.until(lambda: bench.last(Acquired))
        assert bench.server.annotations("n1")["public-ip"] == "10.99.0.11"

    on_bench(check)


def test_a_node_with_another_pod_cidr_is_published_and_the_host_keeps_its_subnet(
    on_bench: Callable[..., None],
) -> None:
    async def check(bench: Bench) -> None:
        bench.is_ready.set()
        await bench.until(lambda: bench.last(Acquired))
        await bench.server.delete("n1")
        bench.reports.clear()
        await bench.server.put("n1", "10.244.9.0/24")
        await bench.until(lambda: "has podCIDR" in getattr(bench.last(Unassigned), "cause", ""))
        assert bench.last(Unassigned).cause == (
            "Node n1 has podCIDR 10.244.9.0/24 now, and its pods run in 10.244.1.0/24"
        )
        await bench.until(lambda: bench.server.nodes["n1"]["status"].get("conditions"))
        (condition,) = bench.server.nodes["n1"]["status"]["conditions"]
        assert (condition["status"], condition["reason"]) == ("True", "FlannelSubnetChanged")
        assert bench.server.annotations("n1")["kube-subnet-manager"] == "true"
        assert bench.last(Acquired) is None

    on_bench(check)


def test_a_host_that_may_renumber_takes_the_new_pod_cidr(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        await bench.server.delete("n1")
        await bench.server.put("n1", "10.244.9.0/24")
        await bench.until(lambda: str(bench.last(Acquired).held.lease.subnet) == "10.244.9.0/24")

    on_bench(check, renumbers=True)


def test_the_address_of_the_annotations_is_published_while_running(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))

        def published() -> str:
            assert str(bench.last(Acquired).held.lease.attributes.public_ip)
            return bench.server.annotations("n1")["public-ip"]

        await bench.server.annotate("n1", node_public_ip="10.99.0.213")
        await bench.until(lambda: published() == "10.99.0.213")
        await bench.server.annotate("n1", public_ip_overwrite="10.99.0.113")
        await bench.until(lambda: published() == "10.99.0.113")
        await bench.server.annotate("n1", node_public_ip=None, public_ip_overwrite=None)
        await bench.until(lambda: published() == "10.99.0.11")
        await bench.server.annotate("n1", public_ip_overwrite="x")
        await bench.until(lambda: bench.last(Unassigned))
        assert "public-ip-overwrite='x' is not an IPv4 address" in bench.last(Unassigned).cause

    on_bench(check)


def test_a_previous_backend_is_published_and_removed_without_another_patch(
    on_bench: Callable[..., None],
) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        own = bench.wanted.attributes
        also = (BackendPart(backend_type="host-gw"),)
        bench.keeper.order(replace(bench.wanted, attributes=replace(own, also=also)))
        await bench.until(lambda: bench.last(Acquired).held.lease.attributes.also == also)
        assert "host-gw" in bench.server.annotations("n1")["pyflannel"]
        bench.keeper.order(bench.wanted)
        await bench.until(lambda: not bench.last(Acquired).held.lease.attributes.also)
        assert "pyflannel" not in bench.server.annotations("n1")
        await bench.server.put("n2", "10.244.2.0/24", **PEER)
        await bench.until(lambda: len(bench.subnets()) == 2)
        assert len(bench.server.patches) == 3

    on_bench(check)


def test_a_new_address_of_the_host_is_published(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        moved = replace(bench.wanted.attributes, public_ip=IPv4Address("10.99.0.99"))
        bench.keeper.order(replace(bench.wanted, attributes=moved))
        await bench.until(lambda: bench.server.annotations("n1")["public-ip"] == "10.99.0.99")
        assert bench.server.patches[-1] == {
            "metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": "10.99.0.99"}}
        }

    on_bench(check)


BOTH = {
    "network": parse_network_config(
        '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48"}', is_assigned=True
    ),
    "attributes": LeaseAttributes(
        public_ip=IPv4Address("10.99.0.11"),
        public_ipv6=IPv6Address("fd00:99::11"),
        backend_type="vxlan",
        owner="n1",
        vtep=VTEP,
        vtep_v6=replace(VTEP, mac="02:00:00:00:06:01"),
    ),
}
"""The wanted lease of a host in a network with both families."""

PEER_BOTH = PEER | {
    "backend_v6_data": '{"VNI":1,"VtepMAC":"4e:d0:c7:f6:f3:66"}',
    "public_ipv6": "fd00:99::12",
}


@pytest.mark.parametrize(
    ("note", "text", "attribute"),
    [
        ("public_ip", "10.99.0.77", "public_ip"),
        ("public_ipv6", "fd00:99::77", "public_ipv6"),
        ("backend_data", '{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}', "vtep"),
        ("backend_v6_data", '{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}', "vtep_v6"),
    ],
)
def test_a_change_of_one_family_of_a_peer_is_followed(
    on_bench: Callable[..., None], note: str, text: str, attribute: str
) -> None:
    """The original drops a change of one family alone."""

    async def check(bench: Bench) -> None:
        def peer() -> LeaseAttributes | None:
            found = bench.leases.by_subnet.get(IPv4Network("10.244.2.0/24"))
            return None if found is None else found.attributes

        await bench.server.put("n2", "10.244.2.0/24,fd00:10:244:2::/64", **PEER_BOTH)
        await bench.until(peer)
        before = peer()
        assert before is not None
        await bench.server.annotate("n2", **{note: text})
        await bench.until(lambda: peer() != before)
        after = peer()
        assert after is not None
        assert after == replace(before, **{attribute: getattr(after, attribute)})
        assert "77" in str(getattr(after, attribute))

    on_bench(check, "10.244.1.0/24,fd00:10:244:1::/64", **BOTH)


@pytest.mark.parametrize(("note", "published"), [("public_ip", "10.99.0.77"), ("public_ipv6", "fd00:99::77")])
def test_an_overwritten_address_of_one_family_is_published(
    on_bench: Callable[..., None], note: str, published: str
) -> None:
    name = note.replace("_", "-")

    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        before = bench.server.annotations("n1")
        await bench.server.annotate("n1", **{f"{note}_overwrite": published})
        await bench.until(lambda: bench.server.annotations("n1")[name] == published)
        assert list(bench.server.patches[-1]["metadata"]["annotations"].values()) == [published]
        await bench.server.annotate("n1", **{f"{note}_overwrite": None})
        await bench.until(lambda: bench.server.annotations("n1") == before)

    on_bench(check, "10.244.1.0/24,fd00:10:244:1::/64", **BOTH)


def test_a_node_with_another_ipv6_pod_cidr_keeps_the_subnets_of_its_pods(
    on_bench: Callable[..., None],
) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        await bench.server.delete("n1")
        await bench.server.put("n1", "10.244.1.0/24,fd00:10:244:9::/64")
        await bench.until(lambda: "fd00:10:244:9::/64 now" in getattr(bench.last(Unassigned), "cause", ""))

    on_bench(check, "10.244.1.0/24,fd00:10:244:1::/64", **BOTH)


def test_annotations_with_another_prefix_are_written_and_read(on_bench: Callable[..., None]) -> None:
    prefix = "example.org/blue-"

    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        written = bench.server.nodes["n1"]["metadata"]["annotations"]
        assert all(name.startswith(prefix) for name in written)
        assert written[f"{prefix}public-ip"] == "10.99.0.11"
        await bench.server.put("n2", "10.244.2.0/24", **PEER)  # a Node of a network with the usual prefix
        await bench.server.put("n3", "10.244.3.0/24", prefix=prefix, **PEER)
        await bench.until(lambda: bench.subnets() == ["10.244.1.0/24", "10.244.3.0/24"])

    on_bench(check, own=OwnNode(name="n1", prefix=prefix))


def test_the_condition_is_left_alone_if_the_flag_says_so(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        bench.is_ready.set()
        await bench.until(lambda: bench.last(Acquired))
        await bench.server.put("n2", "10.244.2.0/24", **PEER)
        await bench.until(lambda: "10.244.2.0/24" in bench.subnets())
        assert [conditions_in(patch) for patch in bench.server.patches] == [[]]

    on_bench(check, own=OwnNode(name="n1", sets_condition=False))


def test_peers_are_added_changed_and_removed_with_their_nodes(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.server.put("n2", "10.244.2.0/24", **PEER)
        await bench.server.put("n3", "10.244.3.0/24", **{**PEER, "backend_data": "{"})
        await bench.until(lambda: bench.subnets() == ["10.244.1.0/24", "10.244.2.0/24"])
        await bench.server.annotate("n3", backend_data=PEER["backend_data"])
        await bench.until(lambda: "10.244.3.0/24" in bench.subnets())
        await bench.server.annotate("n2", public_ip="10.99.0.77")
        peer = IPv4Network("10.244.2.0/24")
        await bench.until(lambda: str(bench.leases.by_subnet[peer].attributes.public_ip) == "10.99.0.77")
        assert bench.leases.by_subnet[peer].attributes.owner == "n2"
        await bench.server.annotate("n3", kube_subnet_manager=None)
        await bench.server.delete("n2")
        await bench.until(lambda: bench.subnets() == ["10.244.1.0/24"])

    on_bench(check)


def test_a_refused_patch_is_repeated_until_it_is_allowed(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        bench.server.forbidden = {"patch"}
        await bench.server.annotate("n1", public_ip="1.2.3.4")
        await bench.until(lambda: bench.last(Unassigned))
        assert "Node n1 cannot be changed: " in bench.last(Unassigned).cause
        bench.reports.clear()
        bench.server.forbidden = set()
        await bench.until(lambda: bench.last(Acquired))
        assert bench.server.annotations("n1")["public-ip"] == "10.99.0.11"

    on_bench(check)


def test_an_outage_is_reported_and_new_nodes_are_seen_afterwards(on_bench: Callable[..., None]) -> None:
    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        bench.server.token = "another"
        await bench.server.end_watches()
        await bench.until(lambda: bench.last(StoreAway))
        await bench.server.put("n2", "10.244.2.0/24", **PEER)
        bench.server.compact()
        bench.server.token = "good"
        await bench.until(lambda: "10.244.2.0/24" in bench.subnets())
        assert bench.last(StoreBack) is not None

    on_bench(check)


def test_a_broken_data_path_sets_the_condition_only_if_it_lasts(
    on_bench: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyflannel.engine.node_keeper.PATH_PATIENCE_S", 0.05)

    async def check(bench: Bench) -> None:
        bench.is_ready.set()
        await bench.until(lambda: statuses(bench) == [("False", "FlannelIsUp")])
        bench.keeper.note_path("another program keeps changing this object")
        bench.keeper.note_path(None)
        await asyncio.sleep(0.1)
        bench.keeper.note_path("link flannel.1: File exists")
        await bench.until(lambda: len(statuses(bench)) == 2)
        assert statuses(bench)[1] == ("True", "FlannelPathBroken")
        assert "link flannel.1" in conditions_in(bench.server.patches[-1])[0]["message"]
        bench.keeper.note_path("link flannel.1: another cause")
        bench.keeper.note_path(None)
        await bench.until(lambda: len(statuses(bench)) == 3)
        assert statuses(bench)[2] == ("False", "FlannelIsUp")

    on_bench(check)


def test_a_data_path_that_is_broken_at_the_start_sets_the_condition(
    on_bench: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a boot, the Node still has the condition of the previous run."""
    monkeypatch.setattr("pyflannel.engine.node_keeper.PATH_PATIENCE_S", 0.05)

    async def check(bench: Bench) -> None:
        await bench.until(lambda: bench.last(Acquired))
        assert statuses(bench) == []
        bench.keeper.note_path("link flannel.1: File exists")
        await bench.until(lambda: statuses(bench) == [("True", "FlannelPathBroken")])
        bench.keeper.note_path(None)
        bench.is_ready.set()
        await bench.until(lambda: statuses(bench)[1:] == [("False", "FlannelIsUp")])

    on_bench(check)


def statuses(bench: Bench) -> list[tuple[str, str]]:
    """Return status and reason of each condition that the keeper wrote."""
    found = [one for patch in bench.server.patches for one in conditions_in(patch)]
    return [(one["status"], one["reason"]) for one in found]


def conditions_in(patch: dict[str, Any]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = patch.get("status", {}).get("conditions", [])
    return found
