"""Hosts in one network, and a real Kubernetes API server on their router."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab.lab import Lab
from pyflannel.lab.topology import LEFT
from testlab.cluster import PROGRAM, Cluster, Member

MANIFESTS = Path(__file__).parents[2] / "deploy/kubernetes"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    if not PROGRAM.exists():
        pytest.skip("kube-apiserver is not built, because Go is not installed")
    with Lab(f"kube-{os.getpid()}") as lab:
        yield lab


@pytest.fixture(scope="session")
def cluster(lab: Lab) -> Cluster:
    """A cluster with the roles and the policy of the manifests."""
    cluster = Cluster(lab.router, LEFT.gateway.ip, lab.directory / "kubernetes")
    cluster.start()
    for name in ("namespace.yaml", "rbac.yaml", "policy.yaml"):
        cluster.apply(MANIFESTS / name)
    return cluster


@pytest.fixture
def members(lab: Lab, cluster: Cluster) -> Iterator[list[Member]]:
    """Two hosts with Nodes node1 and node2, which an operator may change; no flanneld runs yet."""
    cluster.kubeconfig("flannel", token="admin-token")
    pair = [Member(lab.hosts[f"docker{number}"], f"node{number}", cluster) for number in (1, 2)]
    for number, member in enumerate(pair, 1):
        cluster.add_node(member.node, f"10.244.{number}.0/24")
    yield pair
    for member in pair:
        member.clean()
    cluster.must("DELETE", "/api/v1/nodes")
