"""Two nodes of a Kubernetes cluster with kubelets, and flanneld as the DaemonSet of the manifests."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab.lab import Lab
from pyflannel.lab.topology import COOKBOOK, LEFT, Topology
from testlab.cluster import Cluster
from testlab.kubelets import (
    WEB,
    KubeApi,
    Pod,
    is_built,
    start_cluster,
)

MANIFESTS = Path(__file__).parents[2] / "deploy/kubernetes"
REPORT = Path(__file__).with_name("report.md")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    if not is_built():
        pytest.skip("the programs of Kubernetes are not built, because Go is not installed")
    places = tuple(place for place in COOKBOOK.hosts if place.segment == LEFT)
    with Lab(f"kubelets-{os.getpid()}", Topology((LEFT,), places)) as lab:
        yield lab


@pytest.fixture(scope="session")
def api(lab: Lab) -> KubeApi:
    """The manifests are installed by the command of the guide, and all nodes are ready."""
    cluster = Cluster(lab.router, LEFT.gateway.ip, lab.directory / "kubernetes")
    api = start_cluster(lab, cluster, "10.244.0.0/16")
    api.kubectl("apply", "--kustomize", MANIFESTS)
    api.until_flannel_is_ready()
    lab.router.start(["busybox", "sh", "-c", WEB], name="web")
    return api


@pytest.fixture(scope="session")
def pods(api: KubeApi) -> list[Pod]:
    """A web server on each node."""
    return [api.web_pod(f"web{number}", f"node{number}") for number in (1, 2)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the report, if the whole level ran and every test passed."""
    stats = terminalreporter.stats
    if any(stats.get(kind) for kind in ("failed", "error", "skipped", "deselected")):
        return
    calls = [one for one in stats.get("passed", ()) if one.when == "call" and "kubelets/" in one.nodeid]
    rows = [
        f"| {one.nodeid.partition('::')[2].removeprefix('test_').replace('_', ' ')} | {one.duration:.0f} "
        f"| {', '.join(str(text) for _, text in one.user_properties)} |"
        for one in calls
    ]
    files = {Path(one.nodeid.partition("::")[0]).name for one in calls}
    if files == {path.name for path in REPORT.parent.glob("test_*.py")}:
        REPORT.write_text("\n".join([*_head(), "| test | s | measured |", "|---|---|---|", *rows, ""]))
        terminalreporter.write_line(f"wrote {REPORT}")


def _head() -> list[str]:
    def line(*argv: str | Path) -> str:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]

    commit = line("git", "-C", MANIFESTS, "rev-parse", "--short", "HEAD")
    containerd = line("containerd", "--version").split()[2]
    kernel = ".".join(os.uname().release.split(".")[:2])
    return [
        "# Last complete run of `scripts/test kubelets`",
        "",
        "A run in which every test passes writes this file.",
        "",
        f"- pyflannel: commit {commit}, and the changes that were committed together with this file",
        "- Kubernetes 1.36.3: kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy",
        f"- containerd {containerd}, Linux {kernel}",
        "",
    ]
