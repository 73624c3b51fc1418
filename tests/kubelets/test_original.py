"""The original, flannel 0.28.9, and pyflannel replace each other in a cluster, during pings.

The program of the original is built from its sources. The image is created in this test, under the name that
the manifest of the original contains.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyflannel.lab.lab import Lab
from testlab.cluster import PROGRAMS
from testlab.console import task_commands
from testlab.kubelets import (
    KubeApi,
    Pod,
    check_traffic,
    write_original_images,
)
from testlab.pinging import pinging

MANIFESTS = Path(__file__).parents[2] / "deploy/kubernetes"
ORIGINAL = PROGRAMS / "flannel/Documentation/kube-flannel.yml"
OURS = "pyflannel:0.1.0"

pytestmark = pytest.mark.skipif(not ORIGINAL.exists(), reason="the original is not built")


@pytest.fixture(scope="module")
def manifest(lab: Lab, api: KubeApi, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The manifest of the original, whose images are on the nodes."""
    text = ORIGINAL.read_text()
    flannel, plugin = (
        re.findall(rf"image: (\S+/{name}:\S+)", text)[0] for name in ("flannel", "flannel-cni-plugin")
    )
    directory = tmp_path_factory.mktemp("images")
    for image in write_original_images(directory, flannel, plugin, lab.directory / "plugin/flannel"):
        for node in api.nodes.values():
            node.load(image)
    return text


@contextmanager
def without_loss(one: Pod, two: Pod, record: Callable[[str, object], None]) -> Iterator[None]:
    with pinging(one, str(two.address)) as pings:
        yield
    record("pings", f"{pings.lost} of {pings.lost + len(pings.answered)} pings lost")
    assert pings.lost == 0


def images(api: KubeApi) -> list[str]:
    """Return the image of flanneld on each node."""
    pods = [api.flanneld_pod(name) for name in api.nodes]
    return [pod["spec"]["containers"][0]["image"].rpartition("/")[2] for pod in pods if pod]


def test_the_original_replaces_pyflannel_in_a_cluster_of_both(
    api: KubeApi, pods: list[Pod], manifest: str, record_property: Callable[[str, object], None]
) -> None:
    one, two = pods
    with without_loss(one, two, record_property):
        held = manifest.replace(
            "spec:\n  selector:", "spec:\n  updateStrategy: {type: OnDelete}\n  selector:", 1
        )
        api.kubectl("apply", "--filename=-", text=held)
        api.renew_flanneld("node1")
    assert images(api) == ["flannel:v0.28.9", OURS]
    check_traffic(api, one, two)

    with without_loss(one, two, record_property):
        api.renew_flanneld("node2")
    assert images(api) == ["flannel:v0.28.9"] * 2


def test_pyflannel_replaces_the_original_if_only_the_image_in_its_manifest_changes(
    api: KubeApi, pods: list[Pod], manifest: str, record_property: Callable[[str, object], None]
) -> None:
    """The README contains the commands. The manifest grants no CAP_BPF, no bpffs and no /dev/net/tun."""
    one, two = pods
    with without_loss(one, two, record_property):
        api.kubectl("apply", "--filename=-", text=manifest)  # the pods of the original stay
        assert images(api) == ["flannel:v0.28.9"] * 2
        for command in task_commands("Keep the manifest of the original"):
            api.run(command)
    assert images(api) == [OURS] * 2
    check_traffic(api, one, two)

    api.give_flanneld_tun()
    with without_loss(one, two, record_property):
        api.use_backend("udp")
    check_traffic(api, one, two)
    fast_path = json.loads(one.node.host.flannelctl("status", "--json"))["fast_path"]
    reason = f"{fast_path['mode']}: {fast_path['reason']}"
    record_property("fast path", f"fast path: {reason}")
    assert fast_path["mode"] == "user-space"
    assert "CAP_BPF" in reason
    assert reason in one.node.host.flannelctl("status")
    with without_loss(one, two, record_property):
        api.use_backend("vxlan")


def test_the_manifests_replace_those_of_the_original(
    api: KubeApi, pods: list[Pod], manifest: str, record_property: Callable[[str, object], None]
) -> None:
    one, two = pods
    with without_loss(one, two, record_property):
        api.kubectl("apply", "--filename=-", text=manifest)
        api.until_rolled_out()
    assert images(api) == ["flannel:v0.28.9"] * 2
    with without_loss(one, two, record_property):
        api.kubectl("apply", "--kustomize", MANIFESTS)
        api.until_rolled_out()
    assert images(api) == [OURS] * 2
    for command in task_commands("Remove the role of the original"):
        api.run(command)
    check_traffic(api, one, two)
