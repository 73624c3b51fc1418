"""Running hosts of a cluster change the backend one after the other, and no packet is lost."""

import json
from contextlib import ExitStack
from typing import Any

import pytest

from pyflannel.lab.waiting import wait_until
from testlab.cluster import Cluster, Member, pod_on
from testlab.pinging import pinging

SOON_S = 60.0
CHANGES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("udp", {"Type": "udp"}, ["partial-checksum"]),
    ("vxlan with VNI 2", {"Type": "vxlan", "VNI": 2}, []),
    ("direct routing", {"Type": "vxlan", "VNI": 2, "DirectRouting": True}, ["direct"]),
    ("host-gw", {"Type": "host-gw"}, []),
    ("wireguard", {"Type": "wireguard"}, []),
    ("vxlan", {"Type": "vxlan"}, []),
]
"""Each change with the backend, and the formats that hosts publish after the change."""


def own_annotation(cluster: Cluster, member: Member) -> Any:
    return json.loads(cluster.annotations(member.node).get("pyflannel", "{}"))


def publishes(cluster: Cluster, member: Member, backend: dict[str, Any]) -> bool:
    kind = "" if backend["Type"] == "udp" else backend["Type"]
    return cluster.annotations(member.node).get("backend-type") == kind


def publishes_both(cluster: Cluster, member: Member, backend: dict[str, Any]) -> bool:
    """Return whether a Node publishes this backend and the previous backend."""
    also = own_annotation(cluster, member).get("Also", [])
    return publishes(cluster, member, backend) and len(also) == 1


def has_changed(cluster: Cluster, member: Member, backend: dict[str, Any], reads: list[str]) -> bool:
    """Return whether a Node publishes this backend with these formats, and no previous backend."""
    own = own_annotation(cluster, member)
    return publishes(cluster, member, backend) and (own.get("Also", []), own.get("Reads", [])) == ([], reads)


@pytest.fixture
def restricted(members: list[Member], cluster: Cluster) -> list[Member]:
    """Two running hosts, each with the token of its pod."""
    for member in members:
        token = cluster.token(pod=pod_on(member.node, cluster))
        member.start(kubeconfig=cluster.kubeconfig(member.node, token=token))
    for member, other in zip(members, ("10.244.2.0/24", "10.244.1.0/24"), strict=True):
        member.until_route(other)
    for member in members:
        wait_until(
            lambda node=member.node: cluster.condition(node) is not None, what="condition", deadline_s=SOON_S
        )
    return members


def test_a_change_of_the_backend_loses_no_packet(restricted: list[Member], cluster: Cluster) -> None:
    one, two = restricted
    containers = [
        member.host.container("change", gateway=member.host.gateway(), number=9, mtu=1420)
        for member in restricted
    ]
    lost = {}
    for change, backend, reads in CHANGES:
        patches = [cluster.requests(member.host.address).count(patch_of(member)) for member in restricted]
        with ExitStack() as stack:
            streams = [
                stack.enter_context(pinging(source, str(target.address)))
                for source, target in (containers, reversed(containers))
            ]
            config = {"Network": "10.240.0.0/12", "Backend": backend}
            one.configure(config)
            wait_until(
                lambda b=backend: publishes_both(cluster, one, b), what="the first host", deadline_s=SOON_S
            )
            two.configure(config)
            for member in restricted:
                wait_until(
                    lambda m=member, b=backend, r=reads: has_changed(cluster, m, b, r),
                    what=f"{member.node} changed to {change}",
                    deadline_s=SOON_S,
                )
        lost[change] = sum(pings.lost for pings in streams)
        sent = lost[change] + sum(len(pings.answered) for pings in streams)
        print(f"{change}: {lost[change]} of {sent} pings lost")
        for member, before in zip(restricted, patches, strict=True):
            assert cluster.requests(member.host.address).count(patch_of(member)) - before <= 3
    assert lost == {change: 0 for change, _, _ in CHANGES}
    assert set(cluster.annotations("node1")) == {
        "backend-data",
        "backend-type",
        "kube-subnet-manager",
        "public-ip",
    }


def test_hosts_that_restart_with_another_backend_lose_no_packet(
    members: list[Member], cluster: Cluster
) -> None:
    """After `kubectl rollout restart`, the config has changed, and no running flanneld has read it."""
    backend: dict[str, Any] = {"Type": "host-gw"}
    for member in members:
        member.start()
    members[0].until_route("10.244.2.0/24")
    members[1].until_route("10.244.1.0/24")
    one, two = (
        member.host.container("restart", gateway=member.host.gateway(), number=10, mtu=1420)
        for member in members
    )
    with pinging(one, str(two.address)) as pings:
        for member in members:
            member.stop()
            member.configure({"Network": "10.240.0.0/12", "Backend": backend})
            member.start()
            wait_until(lambda m=member: publishes(cluster, m, backend), what="the backend", deadline_s=SOON_S)
        for member in members:
            wait_until(
                lambda m=member: has_changed(cluster, m, backend, []), what="the change", deadline_s=SOON_S
            )
    print(f"restarts: {pings.lost} of {pings.lost + len(pings.answered)} pings lost")
    assert pings.lost == 0


def patch_of(member: Member) -> str:
    return f"patch /api/v1/nodes/{member.node}/status"
