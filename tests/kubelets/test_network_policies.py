"""kube-network-policies beside flanneld: it filters packets between nodes, and flanneld recognises it."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab.waiting import wait_until
from testlab.cluster import PROGRAMS
from testlab.console import task_commands
from testlab.kubelets import (
    SOON_S,
    KubeApi,
    KubeNode,
    Pod,
    check_traffic,
    source_at,
    write_policies_image,
)

MANIFEST = PROGRAMS / "kube-network-policies/install.yaml"
ENFORCER = """
import asyncio
from pyflannel.kernel.filters.ruleset import policy_enforcer
print(asyncio.run(policy_enforcer()))
"""
ONLY_WEB1 = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "only-web1"},
    "spec": {
        "podSelector": {"matchLabels": {"app": "web2"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web1"}}}]}],
    },
}

pytestmark = pytest.mark.skipif(not MANIFEST.exists(), reason="kube-network-policies is not built")


def enforcer(node: KubeNode) -> str:
    """Return the program that enforces NetworkPolicies on a node, as --warn-network-policies sees it."""
    return node.host.run([sys.executable, "-c", ENFORCER]).stdout.strip()


@pytest.fixture
def policies(api: KubeApi, tmp_path: Path) -> Iterator[None]:
    """kube-network-policies on each node, by its own manifest, which grants only NET_ADMIN."""
    text = MANIFEST.read_text().replace("privileged: true", "privileged: false")
    (image,) = re.findall(r"image: (\S+)", text)
    write_policies_image(tmp_path / "policies.tar", image)
    for node in api.nodes.values():
        node.load(tmp_path / "policies.tar")
    api.kubectl("apply", "--filename=-", text=text)
    daemons = ("daemonset/kube-network-policies", "--namespace=kube-system", f"--timeout={SOON_S:g}s")
    api.kubectl("rollout", "status", *daemons)
    yield
    api.kubectl("delete", "--filename=-", text=text)
    for node in api.nodes.values():
        node.host.run(["nft", "delete", "table", "inet", "kube-network-policies"], check=False)


def test_a_policy_between_nodes_is_enforced_and_flannel_still_connects_other_pods(
    api: KubeApi, pods: list[Pod], policies: None
) -> None:
    one, two = pods
    client = api.pod("client", "node1", "exec sleep 1000000")
    check_traffic(api, one, two)

    api.kubectl("apply", "--filename=-", text=json.dumps(ONLY_WEB1))
    wait_until(lambda: source_at(client, two.address) == "", what="the policy", deadline_s=SOON_S)
    assert source_at(one, two.address) == str(one.address)
    assert source_at(client, one.address) == str(client.address)
    assert {enforcer(node) for node in api.nodes.values()} == {"kube-network-policies"}

    api.kubectl("delete", "networkpolicy", "only-web1")
    wait_until(
        lambda: source_at(client, two.address) == str(client.address), what="no policy", deadline_s=SOON_S
    )
    api.kubectl("delete", "pod", "client", "--now")


def test_the_commands_of_the_readme_add_the_warning(api: KubeApi) -> None:
    """The cluster accepts the commands. tests/kube tests the warning."""
    for command in task_commands("Get a warning if no program enforces NetworkPolicies."):
        assert api.run(f"{command} --dry-run=server")
