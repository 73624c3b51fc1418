"""flannel is removed from the nodes by the commands of the guide. This is the last test of the cluster."""

import re
from collections.abc import Callable
from pathlib import Path

from pyflannel.lab.waiting import wait_until
from testlab.kubelets import SOON_S, KubeApi, KubeNode

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guides/kubernetes.md"


def commands() -> list[str]:
    """Return the commands of the section about the removal."""
    section = GUIDE.read_text().partition("\n## Remove flannel\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    return [line for line in block.splitlines() if line]


def traces(node: KubeNode) -> list[str]:
    """Return everything of flannel on a node."""
    files = ("/run/flannel", "/var/lib/flannel", "/sys/fs/bpf/flannel", "/opt/cni/bin/flannel")
    files += ("/opt/cni/bin/flannel.d", "/etc/cni/net.d/10-flannel.conflist", "/var/lib/cni/flannel")
    files += ("/var/lib/cni/networks/cbr0",)
    script = f"""
        for file in {" ".join(files)}; do if [ -e $file ]; then echo $file; fi; done
        ip -oneline link | grep -oE ' (flannel[^:]*|cni0):' || true
        ip route | grep 10.244 || true
        nft list ruleset | grep -i flannel || true
        iptables-save | grep -i flannel || true
    """
    found = node.host.run(["sh", "-c", script]).stdout
    return [line.strip() for line in found.splitlines()]


def test_the_commands_of_the_guide_remove_flannel_without_a_trace(
    api: KubeApi, record_property: Callable[[str, object], None]
) -> None:
    assert all(traces(node) for node in api.nodes.values())
    api.kubectl("delete", "pods", "--all", "--now")

    for command in commands():
        program, *words = command.replace("deploy/kubernetes", str(ROOT / "deploy/kubernetes")).split()
        assert program == "kubectl"
        api.kubectl(*words)

    for name, node in api.nodes.items():
        condition = api.cluster.condition(name)
        assert condition is not None
        assert (condition["status"], condition["reason"]) == ("True", "FlannelRemoved")
        assert api.cluster.annotations(name) == {}
        wait_until(lambda node=node: traces(node) == [], what=f"{name} is clean", deadline_s=SOON_S)
    kinds = "clusterroles,clusterrolebindings,roles,rolebindings,validatingadmissionpolicies"
    kinds += ",validatingadmissionpolicybindings,daemonsets,configmaps,serviceaccounts,namespaces"
    left = api.kubectl("get", kinds, "--all-namespaces", "--output=name")
    assert "flannel" not in left
