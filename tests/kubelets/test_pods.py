"""Pods of two nodes with kubelets, kube-proxy and flanneld as a DaemonSet.

kube-proxy uses nftables on node1 and iptables on node2.
"""

import json
from collections.abc import Callable

import pytest

from pyflannel.lab.traffic import wait_reached
from pyflannel.lab.waiting import wait_until
from testlab.kubelets import SOON_S, KubeApi, Pod, check_traffic
from testlab.pinging import pinging

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
NODE = ("containerd", "kube-proxy", "kubelet")


def test_pods_reach_each_other_services_and_the_outside(api: KubeApi, pods: list[Pod]) -> None:
    for condition in api.conditions().values():
        assert condition is not None
        assert (condition["status"], condition["reason"]) == ("False", "FlannelIsUp")
    check_traffic(api, *pods)


def test_a_killed_flanneld_and_a_rollout_lose_no_packet(
    api: KubeApi, pods: list[Pod], record_property: Callable[[str, object], None]
) -> None:
    one, two = pods
    before = api.conditions()
    with pinging(one, str(two.address)) as pings:
        api.kill_flanneld("node1")
        api.kubectl("rollout", "restart", "daemonset/kube-flannel-ds", "--namespace=kube-flannel")
        api.until_rolled_out()
    record_property("pings", f"{pings.lost} of {pings.lost + len(pings.answered)} pings lost")
    assert pings.lost == 0
    assert api.conditions() == before, "not even the times of the conditions changed"


def test_a_restart_of_any_part_of_the_cluster_loses_no_packet(
    api: KubeApi, pods: list[Pod], record_property: Callable[[str, object], None]
) -> None:
    one, two = pods
    before = api.conditions()
    with pinging(one, str(two.address)) as pings:
        for part in CONTROL_PLANE:
            api.cluster.restart(part)
        for part in NODE:
            api.nodes["node2"].restart(part)
        third = api.pod("third", "node2", "exec sleep 1000000")
        wait_reached([one, third], deadline_s=SOON_S)
        api.kubectl("delete", "pod", "third", "--now")
        check_traffic(api, one, two)
    record_property("pings", f"{pings.lost} of {pings.lost + len(pings.answered)} pings lost")
    assert pings.lost == 0
    assert api.conditions() == before


@pytest.mark.parametrize("backend", ["host-gw", "udp", "vxlan"])
def test_the_backend_of_a_running_cluster_changes(
    api: KubeApi, pods: list[Pod], backend: str, record_property: Callable[[str, object], None]
) -> None:
    one, two = pods
    with pinging(one, str(two.address)) as pings:
        api.use_backend(backend)
    record_property("pings", f"{pings.lost} of {pings.lost + len(pings.answered)} pings lost")
    assert pings.lost == 0
    check_traffic(api, one, two)
    if backend == "udp":
        status = json.loads(one.node.host.flannelctl("status", "--json"))
        record_property("fast path", f"fast path: {status['fast_path']['mode']}")
        assert status["fast_path"]["mode"] == "safe", status["fast_path"]["reason"]


def test_pods_of_a_node_that_was_rebooted_are_reached_again(api: KubeApi, pods: list[Pod]) -> None:
    """This is the last test with these pods, because the pod on the rebooted node gets another address."""
    one, two = pods
    restarts = api.restarts(two.name)
    api.nodes["node2"].reboot()
    wait_until(lambda: api.restarts(two.name) > restarts, what="the pod is restarted", deadline_s=2 * SOON_S)
    api.until_flannel_is_ready()
    check_traffic(api, one, api.until_runs(two.name))
