"""Hosts of a Kubernetes cluster, with a real API server. Nodes have no kubelets."""

import os
import re
import time
from pathlib import Path

import pytest

from pyflannel.lab.waiting import wait_until
from testlab.cluster import Cluster, Member, peer, pod_on
from testlab.pinging import pinging

REST_S, LONGEST_WATCH_S = 5.0, 640.0
"""Seconds without changes. In the long form, this time lasts until the watch is renewed, after 300 to 599
s."""

RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-flannel"

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), Path("libfaketimeMT.so.1"))


@pytest.mark.timeout(1200)
def test_hosts_join_reach_each_other_and_survive_an_outage(
    members: list[Member], cluster: Cluster, long_run: bool
) -> None:
    one, two = members
    earlier = len(cluster.requests(one.host.address))

    def requests() -> list[str]:
        return cluster.requests(one.host.address)[earlier:]

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
    time.sleep(REST_S)
    assert requests() == start
    if long_run:
        wait_until(
            lambda: requests() != start,
            what="the renewal of the watch",
            deadline_s=LONGEST_WATCH_S,
        )
        start.append("watch /api/v1/nodes")
        cluster.add_node("node4", "10.244.4.0/24", **peer("10.10.10.104", "02:00:00:00:00:04"))
        one.until_route("10.244.4.0/24")
        assert requests() == start

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

        before = len(requests())
        one.stop()
        one.start()
        one.until_route("10.244.3.0/24")
        cluster.delete_node("node3")
        wait_until(lambda: not one.has_route("10.244.3.0/24"), what="no route", deadline_s=10)
        assert requests()[before:] == start[:2]
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


def test_tokens_certificates_and_roles_that_are_missing_are_named_and_used_when_they_exist(
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
    one.until_waits_for("forbids the request: nodes is forbidden")
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


def test_the_node_of_a_pod_is_found_without_node_name(members: list[Member], cluster: Cluster) -> None:
    """The role in the manifest of the original contains the right to get pods."""
    one, _ = members
    pod = pod_on("node1", cluster)
    kubeconfig = cluster.kubeconfig("pod", token=cluster.token(pod=pod))
    pod_name = pod["metadata"]["name"]
    one.launch(kubeconfig=kubeconfig, NODE_NAME="", POD_NAME=pod_name, POD_NAMESPACE="kube-flannel")
    one.until_waits_for("the Node of its pod: ")
    assert f'forbids the request: pods "{pod_name}" is forbidden' in one.waits_for()
    assert "Set NODE_NAME to the name of the Node, or let flanneld get its pod" in one.log()

    role = {
        "metadata": {"name": "get-pods"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
    }
    cluster.must("POST", f"{RBAC}/roles", role)
    account = {"kind": "ServiceAccount", "name": "flannel", "namespace": "kube-flannel"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "get-pods"}
    binding = {"metadata": {"name": "get-pods"}, "roleRef": reference, "subjects": [account]}
    cluster.must("POST", f"{RBAC}/rolebindings", binding)
    one.until_ready()
    cluster.must("DELETE", f"{RBAC}/rolebindings/get-pods")
    cluster.must("DELETE", f"{RBAC}/roles/get-pods")


def test_a_clock_that_is_off_by_a_day_is_named_and_packets_flow(
    members: list[Member], cluster: Cluster
) -> None:
    one, two = members
    two.start()
    clock = one.host.directory / "run/faketime"
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": "/run/faketime",
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }

    def set_clock(offset: str) -> None:
        clock.with_suffix(".new").write_text(f"{offset}\n")
        clock.with_suffix(".new").replace(clock)

    set_clock("-1d")
    one.launch(**faked)
    one.until_waits_for("certificate is not yet valid")
    assert "Compare the clock of this host with that of the API server" in one.log()
    assert cluster.annotations("node1") == {}
    set_clock("+1d")
    one.until_ready()
    one.until_route("10.244.2.0/24")
    two.until_route("10.244.1.0/24")
    containers = [
        member.host.container("clock", gateway=member.host.gateway(), number=11, mtu=1450)
        for member in members
    ]
    with pinging(containers[0], str(containers[1].address)) as pings:
        for offset in ("-1d", "+30d"):  # the watch stays open
            set_clock(offset)
            node = f"node{offset}".replace("+", "-")
            cluster.add_node(node, "10.244.3.0/24", **peer("10.10.10.103", "02:00:00:00:00:03"))
            one.until_route("10.244.3.0/24")
            cluster.delete_node(node)
            wait_until(lambda: not one.has_route("10.244.3.0/24"), what="no route", deadline_s=30)
        one.stop()
        one.launch(**faked)
        one.until_waits_for("certificate has expired")
        set_clock("+0")
        one.until_ready()
    assert pings.lost == 0


def test_a_stolen_token_changes_no_other_node_and_no_other_object(
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
    forbidden = [
        ("GET", "/api/v1/nodes/node2"),
        ("PUT", "/api/v1/nodes/node1/status"),
        ("DELETE", "/api/v1/nodes/node2"),
        ("GET", "/api/v1/secrets"),
        ("GET", "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg"),
        ("POST", "/api/v1/namespaces/kube-flannel/pods"),
        ("POST", "/api/v1/namespaces/kube-system/events"),
        ("POST", "/api/v1/namespaces/kube-flannel/serviceaccounts/flannel/token"),
    ]
    for method, path in forbidden:
        assert cluster.call(method, path, {}, token=token)[0] == 403, f"{method} {path}"
    loose = cluster.token()
    status, _ = cluster.call("PATCH", "/api/v1/nodes/node1/status", ours, kind, loose)
    assert status == 422

    one.start(kubeconfig=cluster.kubeconfig("pod", token=token))
    wait_until(lambda: cluster.condition("node1") is not None, what="the condition", deadline_s=10)


def test_a_thousand_nodes_are_routed_in_two_seconds_with_less_than_fifty_megabytes(
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
    status = Path(f"/proc/{flanneld.pid}/status").read_text()
    memory, most = (
        int(number) / 1024 for name in ("RSS", "HWM") for number in re.findall(rf"Vm{name}:\s+(\d+)", status)
    )
    ticks = Path(f"/proc/{flanneld.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    worked_s = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    print(
        f"1,000 Nodes: {took_s:.1f} s to the last route, of which flanneld worked {worked_s:.1f} s; "
        f"{memory:.1f} MB, at most {most:.1f} MB"
    )
    assert memory < 50
    assert most < 57  # a copy of the list would need 63
    assert worked_s < 2  # on an idle machine, the last route exists after this processor time


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


def test_hosts_with_ipv6_alone_reach_each_other(members: list[Member], cluster: Cluster) -> None:
    """The API server accepts the annotations, which equal the annotations of the original."""
    config = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:10:244::/48"}
    for number, member in enumerate(members, 1):
        cluster.delete_node(member.node)
        cluster.add_node(member.node, f"fd00:10:244:{number}::/64")
        member.configure({**config, "Backend": {"Type": "host-gw"}})
        batch = (
            f"address add fd07:1::{number}/64 dev eth0 nodad\nlink add br7 type bridge\nlink set br7 up\n"
            f"address add fd00:10:244:{number}::1/64 dev br7 nodad\n"
        )
        member.host.run(["ip", "-batch", "-"], text=batch)
        member.start()
    one = members[0]

    command = ["ping", "-n", "-c1", "-W1", "-I", "fd00:10:244:1::1", "fd00:10:244:2::1"]
    wait_until(lambda: one.host.run(command, check=False).returncode == 0, what="an answer", deadline_s=30)

    assert cluster.annotations("node1") == {
        "backend-data": "null",
        "backend-type": "host-gw",
        "backend-v6-data": "null",
        "kube-subnet-manager": "true",
        "public-ip": "0.0.0.0",
        "public-ipv6": "fd07:1::1",
    }
    assert one.host.subnet_env()["FLANNEL_IPV6_SUBNET"] == "fd00:10:244:1::1/64"
    for member in members:
        member.stop()
        member.host.run(["ip", "link", "delete", "br7"])
        member.host.run(["ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"])
