"""The Helm chart on a real API server: installation, upgrade and removal."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyflannel.lab.lab import Lab
from pyflannel.lab.waiting import wait_until
from testlab.cluster import CHART, HELM, Cluster, Member, copy_chart, pod_on

OBJECTS = [
    "/apis/apps/v1/namespaces/kube-flannel/daemonsets/kube-flannel-ds",
    "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg",
    "/api/v1/namespaces/kube-flannel/serviceaccounts/flannel",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles/flannel-read-nodes",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles/flannel-publish",
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/flannel-read-nodes",
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/flannel-publish",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/flannel-report",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings/flannel-report",
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/flannel-own-node",
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/flannel-own-node",
]

pytestmark = pytest.mark.skipif(not HELM.exists(), reason="helm is not built: scripts/setup --kubelets")


@pytest.fixture
def helm(lab: Lab, cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Run helm in a cluster without the objects of the manifests."""
    admin = cluster.kubeconfig("admin", token="admin-token")
    manifests = [CHART / "policy.yaml", CHART / "rbac.yaml"]
    for manifest in manifests:
        cluster.delete(manifest)

    def run(*argv: str | Path) -> str:
        command = ["nice", "-n", "5", HELM, f"--kubeconfig={admin}", "--namespace=kube-flannel", *argv]
        return lab.router.run(command, timeout_s=120).stdout

    yield run
    for manifest in reversed(manifests):
        cluster.apply(manifest)


def existing(cluster: Cluster) -> list[str]:
    return [path for path in OBJECTS if cluster.call("GET", path)[0] == 200]


def network(cluster: Cluster) -> str:
    return str(cluster.must("GET", OBJECTS[1])["data"]["net-conf.json"])


def test_the_chart_is_installed_upgraded_and_removed(
    members: list[Member], cluster: Cluster, helm: Callable[..., str], tmp_path: Path
) -> None:
    one, _ = members
    chart = copy_chart(tmp_path)
    assert existing(cluster) == []
    helm("install", "flannel", chart, "--set=podCidr=10.240.0.0/12")
    assert existing(cluster) == OBJECTS

    token = cluster.token(pod=pod_on("node1", cluster))
    one.configure(json.loads(network(cluster)))
    one.start(kubeconfig=cluster.kubeconfig("chart", token=token))
    wait_until(lambda: cluster.condition("node1") is not None, what="the condition", deadline_s=30)
    assert cluster.annotations("node1")["backend-type"] == "vxlan"

    helm("upgrade", "flannel", chart, "--reuse-values", "--set=flannel.backend=host-gw,netpol.warn=true")
    one.configure(json.loads(network(cluster)))
    wait_until(
        lambda: cluster.annotations("node1")["backend-type"] == "host-gw", what="the backend", deadline_s=30
    )
    policies = "/apis/rbac.authorization.k8s.io/v1/clusterroles/flannel-read-network-policies"
    assert cluster.call("GET", policies)[0] == 200
    daemon = cluster.must("GET", OBJECTS[0])["spec"]["template"]["spec"]["containers"][0]
    assert "--warn-network-policies" in daemon["args"]
    assert "deployed" in helm("list", "--all")

    helm("uninstall", "flannel")
    assert [path for path in (*OBJECTS, policies) if cluster.call("GET", path)[0] != 404] == []
    assert "flannel" not in helm("list", "--all")
