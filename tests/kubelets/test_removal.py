"""flannel is removed from the nodes by the commands of the README. This is the last test of the cluster."""

from pyflannel.lab.waiting import wait_until
from testlab.console import task_commands
from testlab.kubelets import SOON_S, KubeApi


def test_the_commands_of_the_readme_remove_flannel_without_a_trace(api: KubeApi) -> None:
    assert all(node.traces() for node in api.nodes.values())
    api.kubectl("delete", "pods", "--all", "--now")

    for command in task_commands("Remove pyflannel"):
        api.run(command)

    for name, node in api.nodes.items():
        condition = api.cluster.condition(name)
        assert condition is not None
        assert (condition["status"], condition["reason"]) == ("True", "FlannelRemoved")
        assert api.cluster.annotations(name) == {}
        wait_until(lambda node=node: node.traces() == [], what=f"{name} is clean", deadline_s=SOON_S)
    kinds = "clusterroles,clusterrolebindings,roles,rolebindings,validatingadmissionpolicies"
    kinds += ",validatingadmissionpolicybindings,daemonsets,configmaps,serviceaccounts,namespaces"
    left = api.kubectl("get", kinds, "--all-namespaces", "--output=name")
    assert "flannel" not in left
