"""A cluster with both families: pods reach each other and Services by IPv4 and by IPv6.

Helm installs flannel here, on a separate cluster, because the podCIDRs of a Node cannot change.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network

import pytest

from pyflannel.lab.lab import Lab
from pyflannel.lab.topology import COOKBOOK, LEFT, Topology
from pyflannel.lab.waiting import wait_until
from testlab.cluster import HELM, Cluster, copy_chart
from testlab.console import task_commands
from testlab.kubelets import SOON_S, WEB, WEB_PORT, KubeApi, Pod, is_built, source_at, start_cluster
from testlab.overlay import ipv6_underlay
from testlab.pinging import pinging

PODS = IPv4Network("10.244.0.0/16"), IPv6Network("fd00:10:244::/48")
SERVICES = IPv4Network("10.96.0.0/16"), IPv6Network("fd00:10:96::/112")
SERVER = WEB.replace("0.0.0.0:", "[::]:")

pytestmark = pytest.mark.skipif(not HELM.exists() or not is_built(), reason="Kubernetes is not built")


def both(networks: tuple[IPv4Network, IPv6Network]) -> str:
    return ",".join(map(str, networks))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeApi]:
    """The chart is installed with both families, and all nodes are ready."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    places = tuple(place for place in COOKBOOK.hosts if place.segment == LEFT)
    with Lab(f"dual-{os.getpid()}", Topology((LEFT,), places)) as lab:
        for host in lab.hosts.values():
            host.run(["ip", "address", "add", str(ipv6_underlay(host)), "dev", "eth0", "nodad"])
            router = ipv6_underlay(host).network[0xFE]
            host.run(["ip", "route", "add", "default", "via", str(router)])
        lab.router.run(["ip", "address", "add", f"{router}/64", "dev", "gw-left", "nodad"])
        cluster = Cluster(lab.router, LEFT.gateway.ip, lab.directory / "kubernetes", both(SERVICES))
        api = start_cluster(lab, cluster, both(PODS), has_ipv6=True)
        chart = copy_chart(tmp_path_factory.mktemp("chart"))
        settings = f"--set=podCidr={PODS[0]},podCidrv6={PODS[1]}"
        api.helm("install", "flannel", chart, "--create-namespace", settings)
        api.until_flannel_is_ready()
        yield api


def test_pods_reach_each_other_and_services_in_both_families(
    api: KubeApi, record_property: Callable[[str, object], None]
) -> None:
    pods = [api.pod(f"web{number}", f"node{number}", SERVER) for number in (1, 2)]
    for pod in pods:
        assert [address in network for address, network in zip(pod.addresses, PODS, strict=True)] == [
            True
        ] * 2
        service = {
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": {"name": pod.name},
            "spec": {
                "selector": {"app": pod.name},
                "ports": [{"port": 80, "targetPort": WEB_PORT}],
                "ipFamilyPolicy": "RequireDualStack",
            },
        }
        api.kubectl("apply", "--filename=-", text=json.dumps(service))

    def reaches(source: Pod, address: object, port: int, expected: object) -> bool:
        return source_at(source, address, port).strip("[]").removeprefix("::ffff:") == str(expected)

    for source, target in (pods, reversed(pods)):
        services = api.get("service", target.name)["spec"]["clusterIPs"]
        for own, other, service in zip(source.addresses, target.addresses, services, strict=True):
            for address, port in ((other, WEB_PORT), (service, 80)):
                wait_until(
                    lambda s=source, a=address, p=port, o=own: reaches(s, a, p, o),
                    what=f"{source.name} reaches {address} with its own address",
                    deadline_s=SOON_S,
                )
    annotations = api.cluster.annotations("node1")
    assert annotations["public-ipv6"] == str(ipv6_underlay(pods[0].node.host).ip)
    assert "VtepMAC" in annotations["backend-v6-data"]

    with ExitStack() as stack:
        streams = [stack.enter_context(pinging(pods[0], str(address))) for address in pods[1].addresses]
        api.kubectl("rollout", "restart", "daemonset/kube-flannel-ds", "--namespace=kube-flannel")
        api.until_rolled_out()
    lost = [pings.lost for pings in streams]
    record_property("pings", f"{lost} pings lost in a rollout, by IPv4 and IPv6")
    assert lost == [0, 0]


def test_a_change_of_one_family_of_a_node_leaves_the_other_family(
    api: KubeApi,
) -> None:
    one, two = api.nodes.values()

    def destinations() -> list[str]:
        """Return the addresses to which node2 sends packets for node1, by IPv4 and IPv6."""
        entries = [
            two.host.run(["bridge", "fdb", "show", "dev", link]).stdout
            for link in ("flannel.1", "flannel-v6.1")
        ]
        return [word for text in entries for word in re.findall(r"dst (\S+)", text)]

    own = [str(one.host.address), str(ipv6_underlay(one.host).ip)]
    assert destinations() == own
    others = (("public_ip_overwrite", "192.0.2.99"), ("public_ipv6_overwrite", "fd00:99::1"))
    for position, (note, other) in enumerate(others):
        expected = [*own]
        expected[position] = other
        api.cluster.annotate("node1", **{note: other})
        wait_until(lambda e=expected: destinations() == e, what=note, deadline_s=SOON_S)
        api.cluster.annotate("node1", **{note: None})
        wait_until(lambda: destinations() == own, what="the own addresses", deadline_s=SOON_S)


def test_the_removal_after_helm_leaves_no_trace(api: KubeApi) -> None:
    assert all(node.traces() for node in api.nodes.values())
    api.kubectl("delete", "pods", "--all", "--now")

    replace, wait, _ = task_commands("Remove pyflannel")
    api.run(replace)
    api.run(wait)
    api.helm("uninstall", "flannel")

    for name, node in api.nodes.items():
        assert api.cluster.annotations(name) == {}
        wait_until(lambda node=node: node.traces() == [], what=f"{name} is clean", deadline_s=SOON_S)
