"""The Helm chart: the objects of the manifests, and the values of the original."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from testlab.cluster import CHART, HELM, PROGRAMS

KUBERNETES = "--kube-version=1.36.3"

pytestmark = pytest.mark.skipif(not HELM.exists(), reason="helm is not built, because Go is not installed")


def documents(*argv: str | Path) -> list[dict[str, Any]]:
    """Return the objects that a command prints."""
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return [found for found in yaml.safe_load_all(text) if found]


def rendered(*values: str, namespace: str = "kube-flannel") -> dict[str, dict[str, Any]]:
    """Return the objects of the chart by kind and name."""
    settings = [f"--set-json={value}" for value in values]
    template = [HELM, "template", "flannel", CHART, KUBERNETES, f"--namespace={namespace}", *settings]
    return by_name(documents(*template))


def by_name(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{found['kind']}/{found['metadata']['name']}": found for found in objects}


def network(objects: dict[str, dict[str, Any]]) -> Any:
    return json.loads(objects["ConfigMap/kube-flannel-cfg"]["data"]["net-conf.json"])


def test_the_chart_with_its_default_values_equals_the_manifests() -> None:
    kubectl = shutil.which("kubectl") or PROGRAMS / "kubectl"
    expected = by_name(documents(kubectl, "kustomize", CHART))
    del expected["Namespace/kube-flannel"]  # helm install --create-namespace
    found = rendered()
    configs = network(found), network(expected)
    assert configs[0] == configs[1]
    for one in (found, expected):
        del one["ConfigMap/kube-flannel-cfg"]["data"]["net-conf.json"]
        args = one["DaemonSet/kube-flannel-ds"]["spec"]["template"]["spec"]["containers"][0]["args"]
        args.sort()
    assert found == expected


def test_helm_finds_no_fault_in_the_chart() -> None:
    subprocess.run([HELM, "lint", "--strict", CHART], check=True)


@pytest.mark.parametrize(
    ("values", "config"),
    [
        (['flannel={"backend":"host-gw","vni":7}'], {"Type": "host-gw"}),
        (
            ['flannel={"vni":7,"backendPort":4789,"directRouting":true,"mtu":1400}'],
            {"Type": "vxlan", "VNI": 7, "Port": 4789, "DirectRouting": True, "MTU": 1400},
        ),
        (
            ['flannel={"backend":"wireguard","tunnelMode":"separate","keepaliveInterval":25}'],
            {"Type": "wireguard", "Mode": "separate", "PersistentKeepaliveInterval": 25},
        ),
        (['flannel={"backend":"udp","backendPort":8286}'], {"Type": "udp", "Port": 8286}),
    ],
)
def test_the_values_of_a_backend_become_its_options(values: list[str], config: object) -> None:
    assert network(rendered(*values))["Backend"] == config


def test_the_other_values_of_the_chart_of_the_original_have_an_effect() -> None:
    flannel = {
        "image": {"repository": "example.org/pyflannel", "tag": "2"},
        "cniBinDir": "/var/lib/cni/bin",
        "cniConfDir": "/var/lib/cni/net.d",
        "skipCNIConfigInstallation": True,
        "enableNFTables": True,
        "args": ["--kube-subnet-mgr"],
        "resources": {"limits": {"memory": "100Mi"}},
        "healthz": {"port": 9999, "readinessProbe": {"periodSeconds": 3}},
        "tolerations": [{"operator": "Exists"}],
        "nodeSelector": {"role": "worker"},
        "cniConf": "{}",
    }
    secrets = 'global={"imagePullSecrets":[{"name":"key"}]}'
    families = ('podCidr="10.1.0.0/16"', 'podCidrv6="fd00::/48"')
    found = rendered(f"flannel={json.dumps(flannel)}", secrets, *families, namespace="net")

    assert network(found) == {
        "Network": "10.1.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "fd00::/48",
        "EnableNFTables": True,
        "Backend": {"Type": "vxlan"},
    }
    assert found["ConfigMap/kube-flannel-cfg"]["data"]["cni-conf.json"] == "{}"
    pod = found["DaemonSet/kube-flannel-ds"]["spec"]["template"]["spec"]
    (daemon,) = pod["containers"]
    (install,) = pod["initContainers"]
    assert daemon["image"] == install["image"] == "example.org/pyflannel:2"
    assert daemon["args"] == ["--kube-subnet-mgr", "--healthz-port=9999"]
    assert daemon["resources"]["limits"] == {"memory": "100Mi"}
    assert daemon["startupProbe"]["httpGet"]["port"] == 9999
    assert daemon["readinessProbe"] == {"httpGet": {"path": "/readyz", "port": 9999}, "periodSeconds": 3}
    assert (pod["tolerations"], pod["imagePullSecrets"]) == ([{"operator": "Exists"}], [{"name": "key"}])
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "role": "worker"}
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    assert (paths["cni-bin"], paths["cni"]) == ("/var/lib/cni/bin", "/var/lib/cni/net.d")
    assert {one["metadata"].get("namespace", "net") for one in found.values()} == {"net", "default"}
    subjects = [subject for one in found.values() for subject in one.get("subjects", ())]
    assert {subject["namespace"] for subject in subjects} == {"net"}
    (condition,) = found["ValidatingAdmissionPolicy/flannel-own-node"]["spec"]["matchConditions"]
    assert "serviceaccount:net:flannel" in condition["expression"]


def test_ipv6_alone_needs_no_ipv4() -> None:
    """The kubelet probes the IPv6 address of the Node."""
    found = rendered('podCidr=""', 'podCidrv6="fd00::/48"')

    assert network(found) == {
        "EnableIPv4": False,
        "EnableIPv6": True,
        "IPv6Network": "fd00::/48",
        "Backend": {"Type": "vxlan"},
    }
    pod = found["DaemonSet/kube-flannel-ds"]["spec"]["template"]["spec"]
    assert "--healthz-ip=::" in pod["containers"][0]["args"]


def test_the_warning_about_network_policies_has_its_role() -> None:
    found = rendered('netpol={"warn":true}')

    assert "ClusterRole/flannel-read-network-policies" in found
    pod = found["DaemonSet/kube-flannel-ds"]["spec"]["template"]["spec"]
    assert "--warn-network-policies" in pod["containers"][0]["args"]
    assert "ClusterRole/flannel-read-network-policies" not in rendered()


def test_network_policies_of_the_original_chart_are_refused() -> None:
    command = [HELM, "template", "flannel", CHART, KUBERNETES, "--set=netpol.enabled=true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "install kube-network-policies by itself" in done.stderr
