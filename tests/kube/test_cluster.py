"""Hosts of a Kubernetes cluster, with a real API server. Nodes have no kubelets."""

import re
import time
from pathlib import Path

import pytest

from pyflannel.lab.waiting import wait_until
from testlab.cluster import Cluster, Member, peer, pod_on
from testlab.pinging import pinging

REST_S = {False: 5.0, True: 60.0}
"""Time at rest by the long form."""


def test_hosts_join_reach_each_other_and_survive_an_outage(
    members: list[Member], cluster: Cluster, long_run: bool
) -> None:
    one, two = members
    for member in members:
        member.start()
    one.until_route("10.244.2.0/24")
    two.until_route("10.244.1.0/24")
    containers = []
    for member in members:
        variables = member.host.subnet_env()
        assert variables["FLANNEL_NETWORK"] == "10.240.0.0/12"
        assert variables["FLANNEL_MTU"] == "1450"
        assert variables["FLANNEL_IPMASQ"] == "true"
        containers.append(member.host.container("c", gateway=member.host.gateway(), mtu=1450))
    assert one.host.subnet_env()["FLANNEL_SUBNET"] == "10.244.1.1/24"

    wait_until(lambda: cluster.condition("node1") is not None, what="the condition", deadline_s=10)
    condition = cluster.condition("node1")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("False", "FlannelIsUp")
    annotations = cluster.annotations("node1")
    assert annotations["kube-subnet-manager"] == "true"
    assert annotations["backend-type"] == "vxlan"
    assert annotations["public-ip"] == "10.10.10.101"
    start = ["list /api/v1/nodes", "watch /api/v1/nodes", *["patch /api/v1/nodes/node1/status"] * 2]
    time.sleep(REST_S[long_run])
    assert cluster.requests(one.host.address) == start

    with pinging(containers[0], str(containers[1].address)) as pings:
        cluster.kill_api_server()
        one.until_waits_for("the store")
        time.sleep(3)
        cluster.start_api_server()
        ready_at = time.monotonic()
        cluster.add_node("node3", "10.244.3.0/24", **peer("10.10.10.103", "02:00:00:00:00:03"))
        one.until_route("10.244.3.0/24")
        print(f"new Node seen {time.monotonic() - ready_at:.1f} s after the API server was ready")
        assert time.monotonic() - ready_at < 5
        one.until_ready()

        before = len(cluster.requests(one.host.address))
        one.stop()
        one.start()
        one.until_route("10.244.3.0/24")
        cluster.delete_node("node3")
        wait_until(lambda: not one.has_route("10.244.3.0/24"), what="the route is gone", deadline_s=10)
        assert cluster.requests(one.host.address)[before:] == start[:2]
        assert cluster.condition("node1") == condition
        assert cluster.annotations("node1") == annotations
    assert pings.lost == 0

    one.stop()
    two.stop()
    cluster.kill_api_server()
    one.host.run(["ip", "link", "delete", "flannel.1"])
    one.host.run(["rm", "/run/flannel/subnet.env"])  # as after a boot
    one.launch()
    one.until_route("10.244.2.0/24")
    one.until_waits_for("the store: ")
    assert one.host.subnet_env()["FLANNEL_SUBNET"] == "10.244.1.1/24"
    cluster.start_api_server()
    one.until_ready()


def test_the_address_of_an_annotation_is_published_while_running(
    members: list[Member], cluster: Cluster
) -> None:
    one, two = members
    for member in members:
        member.start()
    two.until_route("10.244.1.0/24")

    def destination() -> str:
        return two.host.run(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout

    cluster.annotate("node1", public_ip_overwrite="10.10.10.201")
    wait_until(lambda: "dst 10.10.10.201" in destination(), what="the overwrite", deadline_s=10)
    assert cluster.annotations("node1")["public-ip"] == "10.10.10.201"
    cluster.annotate("node1", public_ip_overwrite=None, node_public_ip="10.10.10.202")
    wait_until(lambda: "dst 10.10.10.202" in destination(), what="node-public-ip", deadline_s=10)
    cluster.annotate("node1", node_public_ip=None)
    wait_until(lambda: "dst 10.10.10.101" in destination(), what="the own address", deadline_s=10)
    (link,) = [link for link in one.host.links() if link["ifname"] == "flannel.1"]
    assert link["linkinfo"]["info_data"]["local"] == "10.10.10.101"


def test_a_host_waits_for_node_and_pod_cidr_and_writes_nothing_before(
    members: list[Member], cluster: Cluster
) -> None:
    one, _ = members
    cluster.delete_node("node1")
    one.launch()
    one.until_waits_for("there is no Node node1")
    cluster.add_node("node1")
    one.until_waits_for("pod cidr not assigned")
    assert cluster.annotations("node1") == {}
    cluster.assign("node1", "10.50.1.0/24")
    one.until_waits_for('doesn\'t contain "10.50.1.0/24" PodCIDR')
    assert cluster.annotations("node1") == {}
    one.configure({"Network": "10.50.0.0/16", "Backend": {"Type": "vxlan"}})
    one.until_ready()
    assert one.host.subnet_env()["FLANNEL_SUBNET"] == "10.50.1.1/24"


def test_a_node_created_again_with_another_pod_cidr_does_not_change_the_subnet_silently(
    members: list[Member], cluster: Cluster
) -> None:
    one, _ = members
    one.start()
    wait_until(lambda: cluster.condition("node1") is not None, what="the condition", deadline_s=10)
    cluster.delete_node("node1")
    one.until_waits_for("there is no Node node1")
    cluster.add_node("node1", "10.244.1.0/24")
    one.until_ready()
    assert cluster.annotations("node1")["public-ip"] == "10.10.10.101"

    cluster.delete_node("node1")
    cluster.add_node("node1", "10.244.9.0/24")
    one.until_waits_for("Node node1 has podCIDR 10.244.9.0/24 now")
    wait_until(lambda: cluster.condition("node1") is not None, what="the condition", deadline_s=10)
    condition = cluster.condition("node1")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("True", "FlannelSubnetChanged")
    assert cluster.annotations("node1")["kube-subnet-manager"] == "true"
    assert one.host.subnet_env()["FLANNEL_SUBNET"] == "10.244.1.1/24"
    one.stop()
    one.start()
    assert one.host.subnet_env()["FLANNEL_SUBNET"] == "10.244.9.1/24"
    assert "Changed the subnet from 10.244.1.0/24 to podCIDR 10.244.9.0/24" in one.log()
    wait_until(
        lambda: (cluster.condition("node1") or {}).get("status") == "False", what="condition", deadline_s=10
    )


def test_tokens_certificates_and_roles_that_are_missing_are_named_and_used_when_they_come(
    members: list[Member], cluster: Cluster
) -> None:
    one, _ = members
    token = cluster.directory / "token"
    token.write_text("wrong")
    by_file = cluster.kubeconfig("file", tokenFile="token")
    one.launch(kubeconfig=by_file)
    one.until_waits_for(f"does not accept the token in {token} (401 Unauthorized)")
    binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/flannel-read-nodes"
    before = cluster.must("GET", binding)
    cluster.must("DELETE", binding)
    pod = pod_on("node1", cluster)
    token.write_text(cluster.token(pod=pod))
    one.until_waits_for("forbids it: nodes is forbidden")
    del before["metadata"]["resourceVersion"], before["metadata"]["uid"]
    cluster.must("POST", binding.rpartition("/")[0], before)
    one.until_ready()
    assert cluster.annotations("node1")["kube-subnet-manager"] == "true"
    one.stop()

    by_certificate = {"client-certificate": "client.crt", "client-key": "client.key"}
    one.start(kubeconfig=cluster.kubeconfig("certificate", **by_certificate))
    one.stop()
    one.launch(kubeconfig=cluster.kubeconfig("foreign", ca="other.crt", token="admin-token"))
    one.until_waits_for("the certificate of the API server")


def test_a_stolen_token_changes_no_other_node_and_nothing_of_others(
    members: list[Member], cluster: Cluster
) -> None:
    one, _ = members
    token = cluster.token(pod=pod_on("node1", cluster))
    kind = "application/strategic-merge-patch+json"

    def attempt(node: str, patch: object, path: str = "/status") -> tuple[int, str]:
        status, answer = cluster.call("PATCH", f"/api/v1/nodes/{node}{path}", patch, kind, token)
        return status, str(answer.get("message", ""))

    ours = {"metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": "1.2.3.4"}}}
    # A new policy is in force a moment after its creation.
    wait_until(lambda: attempt("node2", ours)[0] == 422, what="the policy", deadline_s=30)
    assert "only the Node of its pod" in attempt("node2", ours)[1]
    assert attempt("node1", ours)[0] == 200
    cluster.annotate("node1", public_ip=None)
    others = {"metadata": {"annotations": {"other.org/x": "1"}}}
    assert "only annotations of flannel" in attempt("node1", others)[1]
    labels = {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}
    assert "may not change labels" in attempt("node1", labels)[1]
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert "only the condition NetworkUnavailable" in attempt("node1", ready)[1]
    assert attempt("node1", {"spec": {"unschedulable": True}}, path="")[0] == 403
    loose = cluster.token()
    status, _ = cluster.call("PATCH", "/api/v1/nodes/node1/status", ours, kind, loose)
    assert status == 422

    one.start(kubeconfig=cluster.kubeconfig("pod", token=token))
    wait_until(lambda: cluster.condition("node1") is not None, what="the condition", deadline_s=10)


def test_a_thousand_nodes_are_routed_with_less_than_fifty_megabytes(
    members: list[Member], cluster: Cluster
) -> None:
    one, _ = members
    cluster.add_peers(1000)
    began = time.monotonic()
    flanneld = one.start()

    def count() -> int:
        return len(one.host.run(["ip", "route", "show", "dev", "flannel.1"]).stdout.splitlines())

    wait_until(lambda: count() >= 1000, what="a thousand routes", deadline_s=60)
    took_s = time.monotonic() - began
    resident = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{flanneld.pid}/status").read_text())
    assert resident
    memory = int(resident[1]) / 1024
    print(f"1,000 Nodes: {took_s:.1f} s to the last route, {memory:.1f} MB")
    assert memory < 50


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "the network config is not JSON"),
        ('{"Network":"10.244.0.0"}', "invalid CIDR address"),
        ('{"Network":"10.240.0.0/12","Backend":{"Type":"none"}}', "unknown backend type: none"),
    ],
)
def test_a_malformed_config_is_named_and_used_when_it_is_correct(
    members: list[Member], config: str, reason: str
) -> None:
    one, _ = members
    one.configure(config)
    one.launch()
    one.until_waits_for(reason)
    one.configure({"Network": "10.240.0.0/12", "Backend": {"Type": "host-gw"}})
    one.until_ready()


@pytest.mark.parametrize(
    ("backend", "published"),
    [("host-gw", "host-gw"), ("alloc", "")],
)
def test_other_backends_publish_the_annotations_of_the_original(
    members: list[Member], cluster: Cluster, backend: str, published: str
) -> None:
    one, _ = members
    one.configure({"Network": "10.240.0.0/12", "Backend": {"Type": backend}})
    one.start()
    assert cluster.annotations("node1") == {
        "backend-data": "null",
        "backend-type": published,
        "kube-subnet-manager": "true",
        "public-ip": "10.10.10.101",
    }
